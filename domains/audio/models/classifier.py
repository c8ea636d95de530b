"""A classifier of raw sound: strided convolutions, a backbone over their frames, mean and maximum, logits."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from domains.audio.models.front import Front, FrontConfig
from domains.audio.models.parts import Head, Pool, Scan
from domains.audio.models.slots import Slots, take
from mamba_core import BackboneConfig, State
from mamba_core.mixers.base import resume
from mamba_core.ops.arguments import working_dtype


@dataclass
class ClassifierConfig:
    """What stands round the backbone."""

    front: FrontConfig = field(default_factory=FrontConfig)
    bidirectional: bool = False  # a second backbone from the end to the beginning: whole clips alone, no streams
    dropout: float = 0.1  # of what is kept of a clip, in training

    def build(self, backbone: BackboneConfig, classes: int) -> "WaveClassifier":
        """The model round a backbone.

        Raises:
            ValueError: sizes that do not fit together.
        """
        return WaveClassifier(self, backbone, classes)


class WaveClassifier(nn.Module):
    """Samples in, logits about all that was heard out; one direction streams, in blocks of any size.

    State: ``samples`` (b, stride - 1), those of the unfinished block, and ``phase`` (b,) of them; ``tail.i`` of each
    convolution; ``scan``, that of the backbone; ``pool``; ``seq_idx`` (b,).
    """

    def __init__(self, config: ClassifierConfig, backbone: BackboneConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.front = Front(config.front, backbone.d_model, backbone.norm_eps)
        self.scan = Scan(backbone, config.bidirectional)
        self.pool = Pool(self.scan.width)
        self.head = Head(self.scan.width, classes, config.dropout)

    @property
    def stride(self) -> int:
        """Samples of a frame."""
        return self.front.stride

    @property
    def streams(self) -> bool:
        """Whether a state may be carried from call to call."""
        return not self.config.bidirectional

    def forward(
        self, samples: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Hear sounds, or what comes next of them.

        Args:
            samples: (b, l) floating, of any length; a last block that is not full waits for the next call.
            state: where an earlier call ended; a fresh one when None.
            seq_idx: (b, l) int64, -1 at padding, one other index in each row; an index that differs from the one
                before begins a new sound.

        Returns:
            logits (b, classes) about each sound from its beginning, and the state, empty in both directions.

        Raises:
            ValueError: a state for a model that does not stream, or two sounds in a row of seq_idx.
        """
        heard = self._hear(samples, state, seq_idx)
        kept, pooled = self.pool(heard.frames, heard.real, heard.pool)
        return self.head(kept), heard.behind(pooled) if self.streams else State({})

    def running(
        self, samples: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """As :meth:`forward`, and logits (b, l, classes) as they stand behind every sample.

        Raises:
            ValueError: as in :meth:`forward`, or a model in both directions.
        """
        if not self.streams:
            raise ValueError("a bidirectional classifier hears whole clips: it has no logits on the way")
        heard = self._hear(samples, state, seq_idx)
        logits = self.head(self.pool.running(heard.frames, heard.real, heard.pool))  # (b, 1 + blocks, classes)
        _, pooled = self.pool(heard.frames, heard.real, heard.pool)
        at = (heard.slots.slot + 1) // self.stride
        return take(logits, at), heard.behind(pooled)

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any sample."""
        weight = self.head.linear.weight
        device, dtype = device or weight.device, working_dtype(weight)
        tails = {
            f"tail.{i}": torch.zeros(batch, *shape, dtype=dtype, device=device)
            for i, shape in enumerate(self.front.tails)
        }
        scan = {} if self.scan.back else {"scan": self.scan.ahead.init_state(batch, device)}
        return State(
            {
                "samples": torch.zeros(batch, self.stride - 1, dtype=dtype, device=device),
                "phase": torch.zeros(batch, dtype=torch.int64, device=device),
                "seq_idx": torch.full((batch,), -1, dtype=torch.int64, device=device),
                **tails,
                **State.nest({**scan, "pool": self.pool.init_state(batch, device, dtype)}),
            }
        )

    def _hear(self, samples: Tensor, state: State | None, seq_idx: Tensor | None) -> "_Heard":
        if state is not None and not self.streams:
            raise ValueError("a bidirectional classifier hears whole clips: it takes no state")
        state = self.init_state(len(samples), samples.device) if state is None else state
        state, last = resume(state, seq_idx)
        slots = Slots.of(state["phase"], samples.shape[1], self.stride, seq_idx)
        if seq_idx is not None and bool((slots.run > 0).any()):
            raise ValueError("seq_idx: a row of a classifier holds one sound; give each a row of its own")
        samples = samples[..., None].to(self.head.linear.weight.dtype)
        laid, documents = slots.lay(samples, state["samples"][..., None]), slots.documents()
        real = documents >= 0
        tails = [state[f"tail.{i}"] for i in range(len(self.front.tails))]
        frames, tails = self.front(laid[:, : slots.blocks * self.stride], tails, real.sum(1))
        frames, scan = self.scan(frames, state.child("scan") if self.streams else None, seq_idx=documents)
        own = {
            "samples": slots.left_over(laid)[..., 0].to(state["samples"].dtype),
            "phase": slots.next_phase(),
            "seq_idx": last,
            **{f"tail.{i}": tail for i, tail in enumerate(tails)},
        }
        return _Heard(slots, frames, real, state.child("pool"), {**own, **State.nest({"scan": scan})})


@dataclass
class _Heard:
    """What a call made of its samples, and the state but for its pool."""

    slots: Slots
    frames: Tensor  # (b, blocks, width)
    real: Tensor  # (b, blocks) bool
    pool: State  # before the call
    rest: dict[str, Tensor]

    def behind(self, pool: State) -> State:
        return State({**self.rest, **State.nest({"pool": pool})})


class Running(nn.Module):
    """:meth:`WaveClassifier.running` as a model of its own, for a :class:`mamba_core.StreamPool`."""

    def __init__(self, model: WaveClassifier) -> None:
        super().__init__()
        if not model.streams:
            raise ValueError("a bidirectional classifier does not stream")
        self.model = model

    def forward(
        self, samples: Tensor, state: State | None = None, *, seq_idx: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(b, l) -> logits (b, l, classes)."""
        return self.model.running(samples, state, seq_idx=seq_idx)

    @torch.no_grad()
    def step_(self, samples: Tensor, state: State) -> Tensor:
        """One sample of each row, (b,) -> logits (b, classes); ``state`` is overwritten and keeps its storage."""
        logits, after = self.model.running(samples[:, None], state)
        state.copy_(after)
        return logits[:, 0]

    def init_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """The state before any sample."""
        return self.model.init_state(batch, device)
