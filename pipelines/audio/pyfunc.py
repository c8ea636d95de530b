"""The MLflow model of a model of sound: a table of clips in, what the model says of each out.

MLflow runs this file when it loads the model. It imports only what travels with the model. A table has a column
``path`` of sound files, or a column ``samples`` of arrays (or lists) of one channel from -1 to 1, and then possibly
``rate``, samples per second, where that is not the model's.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from domains.audio.bits import generator_of, sample_bits
from domains.audio.io import read_clip
from domains.audio.loudness import level_gain, measure
from domains.audio.resample import Resampler
from domains.audio.tokens import encode
from domains.audio.trained import GENERATE, load_model
from domains.audio.whole import clip_probabilities
from domains.errors import UserError

_CHUNK = 65536  # samples that a generator reads at a time


class SoundModel(PythonModel):
    """Hears whole clips.

    Of a classifier each row has ``seconds``, ``label``, ``score``, and the probability of each label under its name
    with ``p_`` before it; of a generator ``seconds`` and ``bits_per_sample``.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder, on the CPU."""
        self._loaded = load_model(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each clip.

        Raises:
            UserError: a column is missing, a file cannot be used, or samples are none.
        """
        if not {"path", "samples"} & set(model_input.columns):
            raise UserError("the table has neither a column 'path' of files nor a column 'samples' of arrays")
        rows = [self._say(self._sound(number, row)) for number, (_, row) in enumerate(model_input.iterrows(), start=1)]
        return pd.DataFrame(rows, index=model_input.index)

    def _sound(self, number: int, row: pd.Series) -> np.ndarray:
        """A clip at the model's rate, float32 (l,)."""
        rate = self._loaded.sound.rate
        if "path" in row:
            return read_clip(str(row["path"]), rate)
        samples = np.asarray(row["samples"], dtype=np.float32)
        if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
            raise UserError(f"row {number}: samples are to be finite numbers of one channel, and at least one")
        resampler = Resampler(int(row["rate"]) if "rate" in row else rate, rate)
        return np.concatenate([resampler.push(samples), resampler.finish()])

    def _say(self, samples: np.ndarray) -> dict[str, Any]:
        sound = self._loaded.sound
        seconds = len(samples) / sound.rate
        if sound.kind == GENERATE:
            levels = encode(samples * level_gain(*measure(samples), sound.level_db))
            bits = sample_bits(generator_of(self._loaded), levels, chunk=_CHUNK)
            return {"seconds": seconds, "bits_per_sample": float(bits.mean())}
        said = clip_probabilities(self._loaded.model, samples, sound.level_db)  # type: ignore[arg-type]
        best = int(said.argmax())
        each = {f"p_{label}": float(p) for label, p in zip(sound.labels, said, strict=True)}
        return {"seconds": seconds, "label": sound.labels[best], "score": float(said[best]), **each}


mlflow.models.set_model(SoundModel())
