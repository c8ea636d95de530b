"""One sequence of any length through a model in the memory of two chunks: one is computed while the next comes."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mamba_core.state import State


def stream(
    model: nn.Module, chunks: Iterable[Tensor], state: State | None = None
) -> Generator[tuple[Tensor, State], None, None]:
    """Run a model over a sequence that comes in chunks, without gradients.

    A thread reads the next chunk and copies it to the model's device while the present one is computed (see
    :func:`prefetch`). How the sequence is cut changes the outputs by rounding alone: 1e-5 in float32 without TF32. To
    the bit, outputs depend on the state and on the chunks from there on: a stream that was stopped and its state saved
    (:meth:`State.save`) goes on in another process, on the same kind of device, as if it had not been stopped.

    Args:
        model: ``y, state = model(x, state)``, with parameters, whose device it runs on: a CausalLM, a Backbone.
        chunks: what it reads, (b, l, ...) on the CPU, any l of at least 1.
        state: where an earlier stream ended, on any device; fresh when None.

    Yields:
        for each chunk, y (b, l, ...) and the state behind it, both on the model's device. Both are new tensors: they
        may be kept, and later chunks leave them as they are. Whatever reading raises is raised here; closing the
        iterator, or dropping it, ends the thread.

    Raises:
        ValueError: a chunk is empty; what came before it has been read.
    """
    device = next(model.parameters()).device
    state = None if state is None else state.to(device)
    with closing(prefetch(chunks, device)) as arriving:
        for x in arriving:
            if not x.shape[1]:
                raise ValueError("stream: a chunk is empty; leave it out")
            with torch.no_grad():
                y, state = model(x, state)
            del x  # two chunks are alive at most, and one y
            yield y, state
            del y


def prefetch(chunks: Iterable[Tensor], device: torch.device | str = "cpu") -> Generator[Tensor, None, None]:
    """Chunks on a device, each read and copied by a thread while the consumer works on the one before.

    On a GPU the copy goes through pinned memory on a stream of its own. The thread reads one chunk ahead and no more:
    with a consumer that lets go of a chunk before it asks for the next, two are alive at any time.

    Args:
        chunks: tensors on the CPU. The thread alone iterates over them.
        device: where they are wanted.

    Yields:
        the chunks in their order. An exception of ``chunks`` is raised in its place. Closing the iterator, or dropping
        it, ends the thread, once the chunk that it is reading has come.
    """
    reader = _Reader(iter(chunks), torch.device(device))
    try:
        while True:
            found = reader.ready.get()
            if isinstance(found, StopIteration):
                return
            if isinstance(found, BaseException):
                raise found
            reader.wanted.release()
            yield reader.receive(found)
    finally:
        reader.close()


class _Arrival(NamedTuple):
    """A chunk on the device, once ``copied`` has happened there; None where nothing was copied."""

    chunk: Tensor
    copied: torch.cuda.Event | None


class _Reader:
    """The thread of :func:`prefetch`: puts into ``ready`` a chunk for each time that one is ``wanted``."""

    def __init__(self, chunks: Iterator[Tensor], device: torch.device) -> None:
        self.ready: SimpleQueue[_Arrival | BaseException] = SimpleQueue()
        self.wanted = Semaphore(1)
        self._closed = False
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = Thread(target=self._read, args=(chunks,), name="prefetch", daemon=True)
        self._thread.start()

    def receive(self, arrival: _Arrival) -> Tensor:
        """The chunk, for use on the consumer's stream."""
        if arrival.copied is not None:
            current = torch.cuda.current_stream(arrival.chunk.device)
            current.wait_event(arrival.copied)
            arrival.chunk.record_stream(current)  # else its memory could be given away while it is still being read
        return arrival.chunk

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self.wanted.release()
        self._thread.join()

    def _read(self, chunks: Iterator[Tensor]) -> None:
        try:
            while True:
                self.wanted.acquire()
                if self._closed:
                    return
                self.ready.put(self._send(next(chunks)))
        except BaseException as error:  # whatever it is, the end of the chunks too, is for the consumer
            self.ready.put(error)

    def _send(self, chunk: Tensor) -> _Arrival:
        if self._side is None:
            return _Arrival(chunk, None)
        with torch.cuda.stream(self._side):
            moved = chunk.pin_memory().to(self._side.device, non_blocking=True)
            return _Arrival(moved, self._side.record_event())
