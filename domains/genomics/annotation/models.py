"""Models of annotation: a backbone that reads both strands, and a head that does not know which was first.

Both strands are read with one set of weights. At each base the head sees two states, that of the strand which is given
and that of the other one, read from the other end: a causal backbone so sees what stands on either side. The head is
applied to the two in either order and the results are added, so a sequence and its reverse complement get one answer,
base for base where there is an answer for each (compare Caduceus, arXiv:2403.03234, section 4).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from domains.errors import UserError
from domains.files import file_sha256
from domains.genomics.annotation.labels import SITES
from domains.genomics.hidden import hidden_states
from domains.genomics.tokens import COMPLEMENT, VOCAB_SIZE
from domains.model_folder import WEIGHTS
from mamba_core import BackboneConfig, CausalLM, MaskedLM
from mamba_core.reverse_complement import Strands

_LOST = ("head.weight",)  # of a pre-trained model: what its own task alone needs


class BothStrands(nn.Module):
    """Two states for every base, one from each strand, of the backbone of a pre-training model.

    Args:
        backbone: causal, or bidirectional, or with weights shared between strands, as mamba_core.MaskedLM has it.
        freeze: keep the weights as they are; forward then records nothing for a backward pass.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(self, backbone: BackboneConfig, freeze: bool = False) -> None:
        super().__init__()
        self.width = backbone.d_model
        self.freeze = freeze
        self.strands = Strands(COMPLEMENT)
        self.trunk: CausalLM | MaskedLM
        if backbone.bidirectional or backbone.reverse_complement:
            self.trunk = MaskedLM(VOCAB_SIZE, backbone, COMPLEMENT)
        else:
            self.trunk = CausalLM(VOCAB_SIZE, backbone)
        del self.trunk.head
        self.trunk.requires_grad_(not freeze)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read sequences from both ends.

        Args:
            tokens: (b, l) int64.

        Returns:
            own and other, (b, l, width) each: at each base the state of the strand that is given, and of the other. Of
            a causal backbone they know what comes up to the base in their direction, the base included.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            if isinstance(self.trunk, MaskedLM) and self.trunk.symmetric:
                own, other = self.trunk.hidden(tokens).chunk(2, dim=-1)
                return own, other
            both, _ = self.strands.read(tokens, None)
            return self.strands.align(hidden_states(self.trunk, both))

    def load_pretrained(self, folder: Path) -> str:
        """Take embedding and backbone from a model folder; sha256 of its weights.

        Raises:
            UserError: the weights cannot be read, or are of another backbone.
        """
        path = folder / WEIGHTS
        try:
            weights = {name: tensor for name, tensor in load_file(path).items() if name not in _LOST}
            self.trunk.load_state_dict(weights)
            return file_sha256(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); copy the model folder again") from None
        except RuntimeError:
            raise UserError(f"{path}: the weights do not fit config.yaml beside them; restore both files") from None


class SymmetricHead(nn.Module):
    """Logits of two states in either order: g(own, other) + g(other, own), g with one hidden layer."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.into = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """(..., width) each -> (..., outputs), float32 or float64."""
        logits = self._one(own, other) + self._one(other, own)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _one(self, first: Tensor, second: Tensor) -> Tensor:
        return self.out(nn.functional.gelu(self.into(torch.cat([first, second], dim=-1))))


class WindowClassifier(nn.Module):
    """How likely a window is of the class, from itself and from what stands around it.

    The states of the window's bases come in as their mean and as the last in reading order, which of a causal backbone
    knows all from its end of the context to the window's end.

    Args:
        backbone: see :class:`BothStrands`.
        window: bases of a window.
        freeze: see :class:`BothStrands`.
    """

    def __init__(self, backbone: BackboneConfig, window: int, freeze: bool = False) -> None:
        super().__init__()
        self.window = window
        self.encoder = BothStrands(backbone, freeze)
        self.head = SymmetricHead(2 * self.encoder.width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Sequences with the window amid them, (b, l) int64 with l at least the window, an even number of bases more.

        Returns:
            logits (b,) float32.
        """
        first = (tokens.shape[1] - self.window) // 2
        own, other = (states[:, first : first + self.window] for states in self.encoder(tokens))
        return self.head(
            torch.cat([own.mean(1), own[:, -1]], dim=-1), torch.cat([other.mean(1), other[:, 0]], dim=-1)
        ).squeeze(-1)


class Segmented(NamedTuple):
    """What a segmenter says of every base."""

    classes: Tensor  # (b, l, classes) float32, logits
    sites: Tensor  # (b, l, len(SITES)) float32, logits of each kind of site by itself


class Segmenter(nn.Module):
    """A class for every base, and whether it is one of a start or stop codon, a donor or an acceptor, on either strand.

    Args:
        backbone, freeze: see :class:`BothStrands`.
        classes: how many there are.
    """

    def __init__(self, backbone: BackboneConfig, classes: int, freeze: bool = False) -> None:
        super().__init__()
        self.classes = classes
        self.encoder = BothStrands(backbone, freeze)
        self.head = SymmetricHead(self.encoder.width, classes + len(SITES))

    def forward(self, tokens: Tensor) -> Segmented:
        """Sequences of any length, (b, l) int64."""
        logits = self.head(*self.encoder(tokens))
        return Segmented(logits[..., : self.classes], logits[..., self.classes :])


Annotator = WindowClassifier | Segmenter
