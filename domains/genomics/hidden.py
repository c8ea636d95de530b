"""What a pre-trained model makes of each base: the numbers before its head."""

import torch
from torch import Tensor

from domains.genomics.tokens import BOS
from mamba_core import CausalLM, MaskedLM


def hidden_states(model: CausalLM | MaskedLM, tokens: Tensor) -> Tensor:
    """Hidden states of whole sequences, with gradients where they are wanted.

    A causal model has read BOS and the sequence up to and with the base; a masked model both its sides. Of a symmetric
    model it is the mean of both strands: the same for the base whichever strand is given.

    Args:
        model: of pre-training.
        tokens: (b, l) integer.

    Returns:
        (b, l, d_model).
    """
    if isinstance(model, CausalLM):
        before = torch.full_like(tokens[:, :1], BOS)
        return model.backbone(model.embedding(torch.cat([before, tokens], dim=1).int()))[0][:, 1:]
    hidden = model.hidden(tokens.int())
    return hidden.unflatten(-1, (2, -1)).mean(-2) if model.symmetric else hidden
