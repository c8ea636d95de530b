"""Packed rows, and passes over the data."""

import pytest

from domains.packing import Passes, cut_range, pack


def test_a_range_is_cut_from_a_phase() -> None:
    assert cut_range(range(3, 13), 4, 2) == [range(3, 5), range(5, 9), range(9, 13)]
    assert cut_range(range(3, 13), 4, 4) == [range(3, 7), range(7, 11), range(11, 13)]
    assert cut_range(range(3, 5), 4, 4) == [range(3, 5)]
    assert cut_range(range(3, 3), 4, 4) == []


def test_pieces_fill_rows_in_their_order() -> None:
    pieces = [range(3), range(4), range(10), range(2), range(9, 17)]
    assert pack(pieces, 10) == [[range(3), range(4)], [range(10)], [range(2), range(9, 17)]]


@pytest.mark.parametrize("order", [range(30), reversed(range(30)), [17, 3, 17, 29, 0]])
def test_an_item_of_any_pass_is_found_by_its_number(order: list[int]) -> None:
    sizes = [3, 1, 5, 2] * 5
    every = [(number, i) for number, size in enumerate(sizes) for i in range(size)]
    passes = Passes(lambda number: [(number, i) for i in range(sizes[number])])
    for index in order:
        assert passes[index] == every[index]
