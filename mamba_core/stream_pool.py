"""Many streams through one model at once: they begin, end and swap when they like, and each is as if it were alone."""

import heapq
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mamba_core.backbone import Backbone
from mamba_core.causal_lm import CausalLM
from mamba_core.mixers import Mixer
from mamba_core.state import State

Chunks = Mapping[Hashable, Tensor]


class StreamPool:
    """Streams by name, each with a row in one batch of states that is allocated once, on the model's device.

    ::

        pool = StreamPool(model, slots=1000)
        pool.open("a")
        y = pool.feed({"a": tokens})["a"]
        pool.state("a").save("a.safetensors"), pool.close("a")
        pool.open("b", State.load("a.safetensors"))  # goes on where a was

    What a stream gives does not depend on who is fed beside it, nor on how its sequence is cut, but for rounding: 1e-5
    in float32 without TF32. No gradients.
    """

    def __init__(self, model: CausalLM | Backbone, slots: int, *, rows: int = 256, length: int = 256):
        """Make room for streams.

        Args:
            model: in evaluation mode.
            slots: how many streams can be open at a time.
            rows, length: a call of the model reads at most this many streams, and tokens of each; what is longer takes
                several. They bound the memory that comes and goes. Single tokens of streams whose slots lie side by
                side, such as all of a full pool, are one call in place.

        Raises:
            ValueError: a number below 1, or a model with a mixer whose state grows or cannot be carried past padding.
        """
        for name, value in (("slots", slots), ("rows", rows), ("length", length)):
            if value < 1:
                raise ValueError(f"StreamPool: {name}={value}: must be at least 1")
        mixers = [mixer for mixer in model.modules() if isinstance(mixer, Mixer)]
        for mixer in mixers:
            can = mixer.capabilities
            if not (can.streams and can.packs and can.constant_state):
                raise ValueError(
                    f"StreamPool: {type(mixer).__name__} has no state of a fixed size to carry past padding"
                )
        self.model = model
        self.slots, self.rows, self.length = slots, rows, length
        self._device = next(model.parameters()).device
        self._steps = all(mixer.capabilities.steps for mixer in mixers)
        with torch.inference_mode(False):  # so that the pool may be used in that mode and out of it
            self._state = model.init_state(slots, self._device)
            self._fresh = model.init_state(1, self._device)
        self._free = list(range(slots))  # a heap: open streams lie side by side as far as may be
        self._slots: dict[Hashable, int] = {}
        self._documents: dict[Hashable, int] = {}  # seq_idx that a stream goes on with
        self._lost: set[Hashable] = set()  # streams whose state is unknown since a call of the model failed

    def __len__(self) -> int:
        """Open streams."""
        return len(self._slots)

    def __contains__(self, stream: Hashable) -> bool:
        """Whether a stream is open."""
        return stream in self._slots

    def open(self, stream: Hashable, state: State | None = None) -> None:
        """Begin a stream.

        Args:
            stream: its name, anything that can be a key.
            state: of one row, on any device, where it goes on from; fresh when None.

        Raises:
            ValueError: it is open already, all slots are taken, or the state is not one of this model.
        """
        if stream in self._slots:
            raise ValueError(f"stream {stream!r} is open already; close it first")
        if not self._free:
            raise ValueError(f"no slot for stream {stream!r}: all {len(self)} are taken; close a stream first")
        if state is not None and (wrong := _difference(state, self._fresh)):
            raise ValueError(f"stream {stream!r}: the state is not one row of this model's: {wrong}")
        slot = self._slots[stream] = heapq.heappop(self._free)
        row = self._fresh if state is None else state
        self._state.rows(slice(slot, slot + 1)).copy_(row)
        self._documents[stream] = 0 if state is None else _document(state)

    def close(self, stream: Hashable) -> None:
        """End a stream; its slot is free for another.

        Raises:
            ValueError: it is not open.
        """
        slot = self._slot(stream)
        del self._slots[stream], self._documents[stream]
        self._lost.discard(stream)
        heapq.heappush(self._free, slot)

    def state(self, stream: Hashable) -> State:
        """A copy of where a stream is, one row, for :meth:`State.save` and :meth:`open`.

        Raises:
            ValueError: it is not open, or its state was lost (see :meth:`feed`).
        """
        slot = self._readable(stream)
        return self._state.rows(slice(slot, slot + 1)).clone()

    @torch.no_grad()
    def feed(self, chunks: Chunks) -> dict[Hashable, Tensor]:
        """Read the next chunk of some streams.

        Args:
            chunks: by stream, (l, ...) of any length of at least 1, on any device, best on the CPU; tokens (l,) for a
                CausalLM, (l, d_model) for a Backbone. Streams that are left out stay as they are.

        Returns:
            y (l, ...) of each of these streams, on the model's device, in the order of ``chunks``. They may share
            memory with each other, and with nothing else.

        Raises:
            ValueError: a stream that is not open, or an empty chunk; nothing has been read then.
            Exception: whatever the model raises (no memory, a token outside its vocabulary). How far the streams of
                this call were read is unknown then: they can be closed and opened again from a saved state, and any
                other use of them is a ValueError. The others are as they were.
        """
        for stream, chunk in chunks.items():
            self._readable(stream)
            if not len(chunk):
                raise ValueError(f"stream {stream!r}: its chunk is empty; leave out a stream that has nothing new")
        try:
            return self._feed(chunks)
        except BaseException:
            self._lost.update(chunks)
            raise

    def _feed(self, chunks: Chunks) -> dict[Hashable, Tensor]:
        told: dict[Hashable, list[Tensor]] = {stream: [] for stream in chunks}
        for start in range(0, max(map(len, chunks.values()), default=0), self.length):
            cut = slice(start, start + self.length)
            pieces = {stream: chunk[cut] for stream, chunk in chunks.items() if len(chunk) > start}
            for group in self._groups(pieces):
                for stream, y in zip(group, self._read([pieces[stream] for stream in group], group), strict=True):
                    told[stream].append(y)
        return {stream: parts[0] if len(parts) == 1 else torch.cat(parts) for stream, parts in told.items()}

    def _groups(self, pieces: Chunks) -> list[list[Hashable]]:
        """The streams of each call, in the order of their slots: of like length, or of one token each."""
        single = sorted((stream for stream in pieces if len(pieces[stream]) == 1), key=self._slots.__getitem__)
        longer = sorted((stream for stream in pieces if len(pieces[stream]) > 1), key=lambda name: len(pieces[name]))
        lie_together = single and isinstance(self._where(single), slice)
        groups = [single] if lie_together else [single[i : i + self.rows] for i in range(0, len(single), self.rows)]
        for i in range(0, len(longer), self.rows):
            groups.append(sorted(longer[i : i + self.rows], key=self._slots.__getitem__))
        return groups

    def _read(self, pieces: list[Tensor], group: list[Hashable]) -> Sequence[Tensor]:
        """One call of the model, and the new states put in their places; y of each piece."""
        where = self._where(group)
        before = self._state.rows(where)  # a view where the rows lie together, else a copy
        x = self._send(pad_sequence(pieces, batch_first=True))
        lengths = [len(piece) for piece in pieces]
        if max(lengths) == 1 and self._steps:
            y, after = self.model.step_(x[:, 0], before)[:, None], before
        else:
            y, after = self.model(x, before, seq_idx=self._index(group, lengths))
        if after is not before or not isinstance(where, slice):
            for name, tensor in self._state.items():
                tensor[where] = after[name]
        return [row[:length] for row, length in zip(y.unbind(0), lengths, strict=True)]

    def _where(self, group: list[Hashable]) -> slice | Tensor:
        """The slots of streams that are in the order of their slots: a slice where there is none between them."""
        slots = [self._slots[stream] for stream in group]
        if slots[-1] - slots[0] + 1 == len(slots):
            return slice(slots[0], slots[-1] + 1)
        return self._send(torch.tensor(slots))

    def _index(self, group: list[Hashable], lengths: list[int]) -> Tensor | None:
        """seq_idx (b, l) that goes on with each stream's document, -1 where a row is padded; None without padding."""
        if min(lengths) == max(lengths):
            return None
        document = torch.tensor([self._documents[stream] for stream in group])
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return self._send(torch.where(real, document[:, None], -1))

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # without which the copy would wait for the GPU
        return tensor.to(self._device, non_blocking=True)

    def _slot(self, stream: Hashable) -> int:
        if stream not in self._slots:
            raise ValueError(f"stream {stream!r} is not open")
        return self._slots[stream]

    def _readable(self, stream: Hashable) -> int:
        """The slot of an open stream whose state is known."""
        if stream in self._lost:
            raise ValueError(f"stream {stream!r}: reading it failed; close it, and open it from a saved state")
        return self._slot(stream)


def _document(state: State) -> int:
    """The seq_idx with which a state goes on, as every layer of it has it; 0 for one that has read nothing."""
    return max([0, *(int(tensor[0]) for name, tensor in state.items() if name.rpartition(".")[2] == "seq_idx")])


def _difference(state: State, wanted: State) -> str:
    """How the names, shapes and dtypes of two states differ, in words; empty when they do not."""
    if unknown := sorted(state.keys() ^ wanted.keys()):
        return f"{unknown[0]} is in one of them only"
    for name, tensor in wanted.items():
        if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
            found = f"{tuple(state[name].shape)} {state[name].dtype}"
            return f"{name} is {found} in place of {tuple(tensor.shape)} {tensor.dtype}"
    return ""
