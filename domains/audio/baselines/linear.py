"""A linear predictor over the amplitudes that mu-law levels stand for, with a discretised logistic residual.

The next amplitude is expected at x̂ = sum of a_k x_(t-k); the probability of a level is the mass that a logistic
distribution round x̂ has between the level's edges. The order is chosen on validation, the coefficients are least
squares on the training part, and what comes before a clip is silence.

The scale of the distribution comes in two kinds. A fixed one is fitted once for all sound. One that *follows* is
proportional to the mean magnitude of the last residuals, which forgets as an exponential does, and its coefficients are
least squares of residuals over that scale: on speech, which is loud and soft in turn, this saves two bits in six.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from domains.audio.baselines.share import Stretch, even_share
from domains.audio.store import AudioStore
from domains.audio.tokens import CENTRES, EDGES, expand

ORDERS = (1, 2, 4, 8, 16, 32)
_FIRST = 16  # the order that scales are fitted with before one is chosen
_FORGET = (0.7, 0.8, 0.9, 0.95)  # of the mean magnitude, each sample
_FIT = 4_000_000  # training samples that coefficients are fitted on
_CHOOSE = 200_000  # validation samples that scales and order are chosen on
_BLOCK = 1 << 18
_SMALLEST = 1e-12  # no level is given less

_AMPLITUDES = expand(CENTRES)  # float64 (256,)
_EDGES = np.concatenate([[-np.inf], expand(EDGES[1:-1]), [np.inf]])  # float64 (257,)


@dataclass(frozen=True)
class Scale:
    """The scale of a residual: ``floor + factor *`` the mean magnitude of those before it; fixed where factor is 0."""

    floor: float
    factor: float = 0.0
    forget: float = 0.0

    def after(self, residuals: np.ndarray, before: float) -> tuple[np.ndarray, float]:
        """Scale of each residual from those before it, float64 (l,), and the mean magnitude behind the last.

        Args:
            residuals: float64 (l,).
            before: mean magnitude before the first.
        """
        if not self.factor:
            return np.full(len(residuals), self.floor), 0.0
        from scipy.signal import lfilter

        sizes, _ = lfilter([1 - self.forget], [1, -self.forget], np.abs(residuals), zi=[self.forget * before])
        known = np.concatenate([[before], sizes])
        return self.floor + self.factor * known[:-1], float(known[-1])


class LinearPredictor:
    """A fitted predictor.

    Attributes:
        coefficients: float64 (order,), of the last amplitude first.
        scale: of the residual.
        validation_bits: order -> bits per sample on validation.
    """

    def __init__(self, coefficients: np.ndarray, scale: Scale, validation_bits: dict[int, float]) -> None:
        self.coefficients = coefficients
        self.scale = scale
        self.validation_bits = validation_bits

    @property
    def name(self) -> str:
        kind = "scale follows" if self.scale.factor else "fixed scale"
        return f"linear {len(self.coefficients)}, {kind}"

    @classmethod
    def fit(
        cls,
        store: AudioStore,
        train: Sequence[int],
        validation: Sequence[int],
        *,
        follow: bool,
        level_db: float | None = None,
    ) -> "LinearPredictor":
        """Fit on the training clips, and choose order and scale on the validation clips.

        Of long parts an even share is used.

        Args:
            store: the clips.
            train, validation: their numbers.
            follow: which scale.
            level_db: loudness that clips are brought to; None: as recorded.
        """
        fitted = list(even_share(store, train, _FIT, level_db))
        chosen = list(even_share(store, validation, _CHOOSE, level_db))
        by_order = _least_squares(fitted, None)
        scale = _choose_scale(by_order[_FIRST], chosen, follow)
        if follow:  # once more, each residual over the scale that it was expected to have
            by_order = _least_squares(fitted, cls(by_order[_FIRST], scale, {}))
            scale = _choose_scale(by_order[_FIRST], chosen, follow)
        bits = {order: _mean_bits(cls(a, scale, {}), chosen) for order, a in by_order.items()}
        best = min(bits, key=lambda order: bits[order])
        return cls(by_order[best], _choose_scale(by_order[best], chosen, follow), bits)

    def bits(self, levels: np.ndarray) -> np.ndarray:
        """Bits of each sample of a clip from its beginning: uint8 (l,) -> float64 (l,)."""
        from scipy.special import expit

        found = []
        for at, residuals, scale in self.residuals(_AMPLITUDES[levels]):
            block = levels[at : at + len(residuals)]
            expected = _AMPLITUDES[block] - residuals
            low, high = (_EDGES[block] - expected) / scale, (_EDGES[block.astype(np.intp) + 1] - expected) / scale
            right = low > 0  # the same mass on the other side, where it is not lost beside 1
            low, high = np.where(right, -high, low), np.where(right, -low, high)
            found.append(-np.log2(np.maximum(expit(high) - expit(low), _SMALLEST)))
        return np.concatenate(found) if found else np.zeros(0)

    def residuals(self, x: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Amplitudes, float64 (l,), less what was expected, and the scale of that, in blocks: place, both float64."""
        order, size = len(self.coefficients), 0.0
        padded = np.concatenate([np.zeros(order), x])
        for at in range(0, len(x), _BLOCK):
            block = padded[at : at + order + min(_BLOCK, len(x) - at)]
            residuals = np.convolve(block, np.concatenate([[1.0], -self.coefficients]), mode="valid")
            scale, size = self.scale.after(residuals, size)
            yield at, residuals, scale


def _least_squares(stretches: Sequence[Stretch], scaled_by: LinearPredictor | None) -> dict[int, np.ndarray]:
    """Coefficients of each order: those of the lags' moments up to it."""
    most = ORDERS[-1]
    moments = np.zeros((most + 1, most + 1))
    for levels, lead in stretches:
        x = _AMPLITUDES[levels]
        padded = np.concatenate([np.zeros(most), x])
        lags = np.lib.stride_tricks.sliding_window_view(padded, most + 1)[lead:, ::-1]  # (l, lag), lag 0 first
        if scaled_by is not None:
            lags = lags / np.concatenate([scale for _, _, scale in scaled_by.residuals(x)])[lead:, None]
        moments += lags.T @ lags
    ridge = (1e-9 * np.trace(moments) / len(moments) + 1e-30) * np.eye(most)
    own, next_ = moments[1:, 1:] + ridge, moments[1:, 0]
    return {order: np.linalg.solve(own[:order, :order], next_[:order]) for order in ORDERS}


def _choose_scale(coefficients: np.ndarray, stretches: Sequence[Stretch], follow: bool) -> Scale:
    """The scale with the fewest bits on these stretches."""
    from scipy.optimize import minimize

    def best(forget: float) -> tuple[float, Scale]:
        def scale_of(logs: np.ndarray) -> Scale:
            return Scale(*np.exp(logs).tolist(), *([forget] if follow else []))

        def bits(logs: np.ndarray) -> float:
            return _mean_bits(LinearPredictor(coefficients, scale_of(logs), {}), stretches)

        start = np.log([3e-5, 0.6] if follow else [1e-2])
        found = minimize(bits, start, method="Nelder-Mead", options={"xatol": 1e-2, "fatol": 1e-4})
        return found.fun, scale_of(found.x)

    return min((best(forget) for forget in (_FORGET if follow else (0.0,))), key=lambda pair: pair[0])[1]


def _mean_bits(predictor: LinearPredictor, stretches: Sequence[Stretch]) -> float:
    bits = [predictor.bits(levels)[lead:] for levels, lead in stretches]
    return float(np.concatenate(bits).mean())
