"""Settings of a batch job that models of annotation do not ask for: refused rather than ignored."""

from operator import attrgetter

from domains.errors import UserError
from domains.genomics.config import EvaluateConfig, PredictConfig

_READING = ("both_strands", "chunk", "windows.length", "windows.halo")
_IGNORED = {
    PredictConfig: (*_READING, "mask_every", "warmup"),
    EvaluateConfig: (*_READING, "mask_fraction", "context", "max_order"),
}


def refuse_ignored(config: PredictConfig | EvaluateConfig) -> None:
    """A UserError when a setting that means nothing to a model of annotation is not at its default."""
    default = type(config)()
    for key in _IGNORED[type(config)]:
        value = attrgetter(key)(config)
        if value != attrgetter(key)(default):
            raise UserError(f"{key}={str(value).lower()}: means nothing to a model of annotation; leave it out")
