"""What training on many sequences of unequal length shares: packed rows, and passes over the data found by number."""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Generic, Protocol, TypeVar


class Span(Protocol):
    """A stretch of some sequence, half-open."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...


S = TypeVar("S", bound=Span)
T = TypeVar("T")


def cut_range(whole: range, window: int, first: int) -> list[range]:
    """A range in stretches of ``window``, but for the first, of ``first`` at most, and the last."""
    borders = [whole.start, *range(whole.start + first, whole.stop, window), whole.stop]
    return [range(a, b) for a, b in pairwise(borders) if b > a]


def pack(pieces: Iterable[S], window: int) -> list[list[S]]:
    """Pieces in rows of at most ``window`` steps, in their order: a piece that does not fit begins the next row."""
    rows: list[list[S]] = []
    room = 0
    for piece in pieces:
        length = piece.stop - piece.start
        if length > room:
            rows.append([])
            room = window
        rows[-1].append(piece)
        room -= length
    return rows


class Passes(Generic[T]):
    """An endless sequence of items that come in passes over the data, each drawn by its number alone.

    So any item is found from its number, by drawing passes and keeping the last.

    Args:
        draw: the items of a pass; never none.
    """

    def __init__(self, draw: Callable[[int], list[T]]) -> None:
        self._draw = draw
        self._ends: list[int] = []  # items up to the end of each pass drawn so far
        self._kept: tuple[int, list[T]] = (-1, [])

    def __getitem__(self, index: int) -> T:
        while not self._ends or self._ends[-1] <= index:
            number = len(self._ends)
            self._ends.append(self._first(number) + len(self._pass(number)))
        number = bisect_right(self._ends, index)
        return self._pass(number)[index - self._first(number)]

    def _first(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _pass(self, number: int) -> list[T]:
        if self._kept[0] != number:
            self._kept = (number, self._draw(number))
        return self._kept[1]
