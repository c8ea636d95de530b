"""What a sceptic would try first on sound; reported beside every result."""

from domains.audio.baselines.context import ContextModels
from domains.audio.baselines.linear import LinearPredictor
from domains.audio.baselines.mfcc import Majority, MfccLogistic

__all__ = ["ContextModels", "LinearPredictor", "Majority", "MfccLogistic"]
