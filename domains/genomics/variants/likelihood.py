"""Log-probabilities of windows by a causal model: each context is read once, and gone on from by all its branches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from domains.genomics.config import ScoreConfig
from domains.genomics.masked import true_log_probs
from domains.genomics.module import base_log_probs
from domains.genomics.tokens import BOS, N
from domains.genomics.variants.haplotypes import Place, Windows, make_windows
from domains.genomics.variants.masked import check_finite, masked_ratios
from domains.hardware import full_precision
from mamba_core import CausalLM, MaskedLM, State

_NO_TOKEN = -1  # seq_idx of padding: state and convolution stay as they are


def log_likelihood_ratios(model: CausalLM | MaskedLM, places: Sequence[Place], config: ScoreConfig) -> np.ndarray:
    """Log-likelihood of alternatives less that of the reference, by a model of either kind.

    Returns:
        float64 (alleles, 2), nats, of each strand; NaN where there is nothing to compare.

    Raises:
        UserError: the model gives no finite probability.
    """
    if isinstance(model, MaskedLM):
        return masked_ratios(model, places, config.context, config.window, chunk=config.chunk)
    windows = make_windows(places, config.context, config.window)
    return windows.ratios(causal_log_probs(model, windows, chunk=config.chunk))


@torch.inference_mode()
@full_precision()
def causal_log_probs(model: CausalLM, windows: Windows, *, chunk: int = 65536) -> np.ndarray:
    """Log-probability of each base of the branches, given the bases before it and their context.

    The model reads BOS, the context, and from the state behind it the branches, in float32 where its weights are,
    without TF32. The branches of one context are read in the same call, so that what they have in common gives the
    same numbers.

    Args:
        model: in evaluation mode.
        windows: see :func:`domains.genomics.variants.haplotypes.make_windows`.
        chunk: most bases a call, of all windows together, if at least one context's branches fit; it changes the
            result by rounding alone.

    Returns:
        float32, of the shape of ``windows.branches``, nats; NaN at N.

    Raises:
        UserError: the model gives no finite probability.
    """
    device = next(model.parameters()).device
    scores = np.full(windows.branches.shape, np.nan, dtype=np.float32)
    for contexts, branches in _groups(windows, chunk):
        lengths = windows.before_length[contexts]
        before = torch.from_numpy(windows.before[contexts, : max(lengths, default=0)]).to(device)
        state, last = _read_contexts(model, before, torch.from_numpy(lengths).to(device), chunk)
        own = torch.from_numpy(np.searchsorted(contexts, windows.context_of[branches])).to(device)
        after = torch.from_numpy(windows.branches[branches]).to(device)
        scores[branches] = _read_branches(model, after, last[own], state.rows(own), chunk).cpu().numpy()
    check_finite(scores[windows.branches != N])
    return scores


def _groups(windows: Windows, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Contexts and their branches that are read in one call each, as rising numbers; contexts of like length together.

    The number of contexts follows from what they have at most, so that groups do not depend on where contigs end.
    """
    sizes = np.bincount(windows.context_of, minlength=len(windows.before))
    last = np.cumsum(sizes)
    order = np.argsort(-windows.before_length, kind="stable")
    longest, window = windows.before.shape[1], windows.branches.shape[1]
    start = 0
    while start < len(order):
        stop, count = start, 0
        while stop < len(order):
            count += sizes[order[stop]]
            if stop > start and max((stop - start + 1) * longest, count * window) > chunk:
                break
            stop += 1
        contexts = np.sort(order[start:stop])
        yield contexts, np.concatenate([np.arange(last[i] - sizes[i], last[i]) for i in contexts])
        start = stop


def _read_contexts(model: CausalLM, before: Tensor, lengths: Tensor, chunk: int) -> tuple[State, Tensor]:
    """The state behind all but the last token of BOS and each context, and that token: uint8 (contexts,).

    Args:
        model: the model.
        before: uint8 (contexts, l).
        lengths: (contexts,), of the contexts; what is behind them is not read.
        chunk: bases a call.
    """
    rows, longest = before.shape
    started = torch.cat([before.new_full((rows, 1), BOS), before], dim=1)
    last = started.gather(1, lengths[:, None]).squeeze(1)
    state = model.init_state(rows, before.device)
    padded = bool((lengths != longest).any())
    for start in range(0, longest, max(1, chunk // rows)):
        stop = min(start + max(1, chunk // rows), longest)
        real = torch.arange(start, stop, device=before.device) < lengths[:, None]
        document = torch.where(real, 0, _NO_TOKEN) if padded else None
        _, state = model(started[:, start:stop].int(), state, seq_idx=document)
    return state, last


def _read_branches(model: CausalLM, after: Tensor, last: Tensor, state: State, chunk: int) -> Tensor:
    """Log-probabilities of tokens ``after`` (b, l), the first of which follows ``last`` (b,): float32 (b, l)."""
    inputs = torch.cat([last[:, None], after[:, :-1]], dim=1).int()
    length = max(1, chunk // len(after))
    found = []
    for piece, wanted in zip(inputs.split(length, dim=1), after.split(length, dim=1), strict=True):
        logits, state = model(piece, state)
        found.append(true_log_probs(base_log_probs(logits), wanted))
    return torch.cat(found, dim=1)
