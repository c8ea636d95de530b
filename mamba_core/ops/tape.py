"""Operations that remember their launches: the second call of a kind is kernels alone, without the Python between them.

Below some thousand tokens an operation costs what Python costs: shapes are cut into programs, scratch memory is asked
for piece by piece, and Triton looks every argument over at every launch. All that depends only on dtypes, shapes,
strides and alignment. So a function behind :func:`taped` is watched the first time it runs for arguments of a kind:
what it allocates, which kernels it launches, and where in an argument or an allocation each pointer points. Later calls
take one piece of memory for everything that does not outlive them, and launch the same kernels with the pointers moved.

A tape is only kept if nothing but launches and views happened: any other PyTorch operation, memory of unknown origin or
of two arguments at once, or scratch memory beyond ``MOST_SCRATCH`` (a tape holds all of it until the end) leaves the
function as it is for that kind. Bits are those of the function: the same kernels run with the same arguments.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton import knobs

MOST_SCRATCH = 2**28  # bytes; beyond that the GPU is busy for longer than Python takes anyway
MOST_KINDS = 512  # of arguments that a function remembers
ALIGNMENT = 256  # bytes, within scratch memory
aten = torch.ops.aten
EMPTY = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_UNKNOWN = object()
_watching = threading.local()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """``kernel[grid](*args, **constants)``, as the functions behind :func:`taped` launch every kernel."""
    watcher: _Watcher | None = getattr(_watching, "now", None)
    if watcher is None:
        kernel[grid](*args, **constants)
        return
    with _disable_current_modes():  # what the interpreter does with tensors is not the function's doing
        compiled = kernel[grid](*args, **constants)
    watcher.launched(kernel, compiled, grid, args, constants)


@dataclass(frozen=True)
class _Place:
    """A tensor within a piece of memory: number of the piece (arguments, then outputs, then scratch), and bytes in."""

    piece: int
    offset: int
    tensor: Tensor  # without memory: dtype, shape and strides, for the interpreter


@dataclass(frozen=True)
class _Launch:
    kernel: Any
    compiled: Any  # None in the interpreter
    grid: tuple[int, int, int]
    places: tuple[_Place, ...]  # the pointers, which come first among a kernel's arguments
    rest: tuple[Any, ...]  # all that follows them
    options: dict[str, Any]


@dataclass(frozen=True)
class _Output:
    """A result: the piece itself, or a view of it."""

    piece: int
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None  # size, strides, offset in elements


class _Watcher(TorchDispatchMode):
    """What happens while a function runs."""

    def __init__(self, arguments: Sequence[Any]):
        super().__init__()
        self.arguments = [argument for argument in arguments if isinstance(argument, Tensor)]
        self.allocated: dict[int, Tensor] = {}  # by the address of their memory; held, so that no two share one
        self.launches: list[tuple[Any, Any, tuple[int, ...], list[Any], dict[str, Any]]] = []
        self.obstacle: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in EMPTY:
            self.allocated[out.untyped_storage().data_ptr()] = out
        elif not func.is_view and self.obstacle is None:
            self.obstacle = str(func)
        return out

    def launched(self, kernel: Any, compiled: Any, grid: tuple[int, ...], args: Any, constants: dict[str, Any]) -> None:
        names = kernel.arg_names
        values = list(args) + [constants[name] for name in names[len(args) :]]
        options = {name: value for name, value in constants.items() if name not in names}
        self.launches.append((kernel, compiled, grid, values, options))

    def tape(self, result: Any) -> "_Tape | None":
        """All of it in a form that can be played again; None where there was an obstacle."""
        try:
            return _Tape(self, result)
        except _Obstacle as obstacle:
            self.obstacle = str(obstacle)
            return None


class _Obstacle(Exception):
    pass


class _Tape:
    """The launches of one call, for arguments of one kind."""

    def __init__(self, watcher: _Watcher, result: Any):
        if watcher.obstacle is not None:
            raise _Obstacle(watcher.obstacle)
        self._watcher = watcher
        results = result if isinstance(result, tuple) else (result,)
        self.single = not isinstance(result, tuple)
        self._pieces: dict[int, tuple[int, int]] = {}  # of allocations, by their address: number, and bytes in
        self.made: list[tuple[tuple[int, ...], torch.dtype]] = []  # memory of the outputs
        self.count = len(watcher.arguments)
        for tensor in results:
            if tensor is not None:
                self._keep(tensor)
        self.scratch = 0
        for address, memory in watcher.allocated.items():
            if address not in self._pieces:
                self._pieces[address] = (self.count + len(self.made), self.scratch)
                size = memory.untyped_storage().nbytes()
                self.scratch += -(-size // ALIGNMENT) * ALIGNMENT
        if self.scratch > MOST_SCRATCH:
            raise _Obstacle(f"{self.scratch} bytes of scratch memory")
        self.fresh = [*self.made, ((self.scratch,), torch.uint8)] if self.scratch else self.made
        self.outputs = [None if tensor is None else self._output(tensor) for tensor in results]
        self.launches = [self._launch(*launched) for launched in watcher.launches]
        self.used = sorted({place.piece for one in self.launches for place in one.places})
        self.prepared = [_prepare(one) for one in self.launches] if _compiled(self.launches) else None
        del self._watcher, self._pieces

    def _keep(self, tensor: Tensor) -> None:
        """An output's memory is memory of its own."""
        address = tensor.untyped_storage().data_ptr()
        memory = self._watcher.allocated.get(address)
        if memory is not None and address not in self._pieces:
            if not memory.is_contiguous():
                raise _Obstacle("an output with strides of its own")
            self._pieces[address] = (self.count + len(self.made), 0)
            self.made.append((tuple(memory.shape), memory.dtype))

    def _output(self, tensor: Tensor) -> _Output:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._pieces:
            place = self._find(tensor)  # an argument that was written to
            if self._watcher.arguments[place.piece] is not tensor:
                raise _Obstacle("an output that is a part of an argument")
            return _Output(place.piece, None)
        memory = self._watcher.allocated[address]
        same = tensor.shape == memory.shape and tensor.stride() == memory.stride() and tensor.dtype == memory.dtype
        if not same and tensor.dtype != memory.dtype:
            raise _Obstacle("an output that reads memory as another dtype")
        view = None if same else (tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        return _Output(self._pieces[address][0], view)

    def _find(self, tensor: Tensor) -> _Place:
        storage = tensor.untyped_storage().data_ptr()
        about = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if storage in self._pieces:
            piece, start = self._pieces[storage]
            return _Place(piece, start + int(tensor.storage_offset()) * tensor.element_size(), about)
        given = self._watcher.arguments
        exact = [i for i, one in enumerate(given) if one.data_ptr() == tensor.data_ptr()]
        near = exact or [i for i, one in enumerate(given) if one.untyped_storage().data_ptr() == storage]
        if len(near) != 1:
            raise _Obstacle("arguments that share memory" if near else "memory of unknown origin")
        return _Place(near[0], tensor.data_ptr() - given[near[0]].data_ptr(), about)

    def _launch(
        self, kernel: Any, compiled: Any, grid: tuple[int, ...], values: list[Any], options: dict[str, Any]
    ) -> _Launch:
        count = sum(isinstance(value, Tensor) for value in values)
        if not all(isinstance(value, Tensor) for value in values[:count]):
            raise _Obstacle("a kernel whose pointers do not come first")
        places = tuple(self._find(value) for value in values[:count])
        return _Launch(kernel, compiled, _three(grid), places, tuple(values[count:]), options)

    def play(self, arguments: Sequence[Tensor]) -> Any:
        """Launch everything for other arguments of the same kind."""
        new = arguments[0].new_empty
        pieces = [*arguments, *[new(size, dtype=dtype) for size, dtype in self.fresh]]
        if self.prepared is None:
            self._interpret(pieces)
        else:
            stream = torch._C._cuda_getCurrentRawStream(arguments[0].get_device())
            start = [piece.data_ptr() for piece in pieces]
            for run, grid, fixed, places, rest in self.prepared:
                run(*grid, stream, *fixed, *[start[piece] + offset for piece, offset in places], *rest)
        results = [
            None if out is None
            else pieces[out.piece] if out.view is None
            else pieces[out.piece].as_strided(*out.view)
            for out in self.outputs
        ]  # fmt: skip
        return results[0] if self.single else tuple(results)

    def _interpret(self, pieces: Sequence[Tensor]) -> None:
        """The same through Triton's interpreter, which wants tensors."""
        for one in self.launches:
            pointers = [_at(pieces[place.piece], place) for place in one.places]
            one.kernel[one.grid](*pointers, *one.rest, **one.options)


def _three(grid: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z


def _at(piece: Tensor, place: _Place) -> Tensor:
    about, storage = place.tensor, piece.untyped_storage()
    start = piece.storage_offset() * piece.element_size() + place.offset
    out = torch.empty(0, dtype=about.dtype, device=piece.device)
    return out.set_(storage, start // about.element_size(), about.shape, about.stride())


def _compiled(launches: list[_Launch]) -> bool:
    return all(one.compiled is not None for one in launches)


def _prepare(one: _Launch) -> tuple[Any, tuple[int, int, int], tuple[Any, ...], tuple[tuple[int, int], ...], Any]:
    """What Triton 3.6's launcher in C takes, without the Python around it; pointers may be plain numbers there."""
    launcher, compiled = one.compiled.run, one.compiled
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        raise _Obstacle("a kernel that wants memory from Triton")
    fixed: tuple[Any, ...] = (compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, None, None)
    fixed += (compiled.packed_metadata, None, None, None)
    places = tuple((place.piece, place.offset) for place in one.places)
    return launcher.launch, one.grid, fixed, places, one.rest


def _has_hooks() -> bool:
    """Whether somebody, a profiler for example, wants to be told of every launch."""
    runtime = knobs.runtime
    return bool(getattr(runtime.launch_enter_hook, "calls", None) or getattr(runtime.launch_exit_hook, "calls", None))


def _kind(argument: Any) -> Any:
    """All of an argument that decides what is launched."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.shape, argument.stride(), argument.data_ptr() % 16
    return argument


def taped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the launches of a function of tensors on one GPU, plain numbers, and None; positional arguments only.

    The function gets a first argument that is a tensor, may write to its arguments, and returns one tensor or a tuple
    of tensors and None. A call with keyword arguments is passed through.
    """
    tapes: dict[Any, Any] = {}  # _Tape, or None for a kind that has none

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if options or getattr(_watching, "now", None) is not None or _has_hooks():
            return function(*arguments, **options)
        first = arguments[0]
        index = first.get_device()
        if index >= 0 and index != torch.cuda.current_device():
            return function(*arguments)
        given = [argument for argument in arguments if isinstance(argument, Tensor)]
        apart = len(set(map(id, given)))  # a tensor that is given twice is no two
        kind = (index, apart, *[_kind(argument) for argument in arguments])
        tape = tapes.get(kind, _UNKNOWN)
        if tape is _UNKNOWN:
            return _watch(function, arguments, tapes, kind)
        if tape is None:
            return function(*arguments)
        return tape.play(given)

    call.tapes = tapes  # type: ignore[attr-defined]
    return call


def _watch(function: Callable[..., Any], arguments: tuple[Any, ...], tapes: dict[Any, Any], kind: Any) -> Any:
    watcher = _Watcher(arguments)
    _watching.now = watcher
    try:
        with watcher:
            result = function(*arguments)
    finally:
        _watching.now = None
    if len(tapes) >= MOST_KINDS:
        tapes.clear()
    tapes[kind] = watcher.tape(result)
    return result
