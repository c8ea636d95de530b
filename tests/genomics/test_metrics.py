import math

import numpy as np
import pytest

from domains.genomics.metrics import BitsPerBase, Row


def test_groups_and_totals():
    bits = BitsPerBase()
    bits.add("a", np.log2([0.5, 0.25, np.nan, 0.125]), np.array([True, False, True, True]))
    bits.add("b", np.log2([0.25]), np.array([False]))
    bits.add("a", np.log2([0.5]), np.array([False]))
    assert bits.to_rows() == [
        Row("all", "all", 5, 9 / 5),
        Row("contig", "a", 4, 7 / 4),
        Row("contig", "b", 1, 2.0),
        Row("mask", "repeat-masked", 2, 2.0),
        Row("mask", "unmasked", 3, 5 / 3),
    ]
    assert (bits.bases, bits.bits_per_base) == (5, 9 / 5)


def test_a_genome_without_a_mask_has_no_mask_rows():
    bits = BitsPerBase()
    bits.add("a", np.log2([0.5]))
    assert [row.group for row in bits.to_rows()] == ["all", "contig"]


def test_pieces_in_any_order_give_the_whole():
    log2 = np.log2(np.random.default_rng(0).uniform(0.01, 1, size=100_000)).astype(np.float32)
    mask = np.random.default_rng(1).random(len(log2)) < 0.4
    whole, pieces = BitsPerBase(), BitsPerBase()
    whole.add("a", log2, mask)
    for start in reversed(range(0, len(log2), 977)):
        pieces.add("a", log2[start : start + 977], mask[start : start + 977])
    for one, other in zip(whole.to_rows(), pieces.to_rows(), strict=True):
        assert one[:3] == other[:3]
        assert one.bits_per_base == pytest.approx(other.bits_per_base, rel=1e-13)
    assert whole.bits_per_base == pytest.approx(-math.fsum(log2.tolist()) / len(log2), rel=1e-13)


def test_float32_input_is_summed_in_float64():
    bits = BitsPerBase()
    for _ in range(50):
        bits.add("a", np.full(400_001, -1.9, dtype=np.float32))
    assert bits.bits_per_base == pytest.approx(float(np.float32(1.9)), rel=1e-13)


def test_nats_are_turned_into_bits():
    nats, bits = BitsPerBase(), BitsPerBase()
    odds = np.array([0.3, 0.1, np.nan])
    nats.add_nats("a", np.log(odds).astype(np.float32), np.array([True, False, False]))
    bits.add("a", np.log2(odds), np.array([True, False, False]))
    for one, other in zip(nats.to_rows(), bits.to_rows(), strict=True):
        assert one.bases == other.bases
        assert one.bits_per_base == pytest.approx(other.bits_per_base, rel=1e-6)


def test_nothing_known_is_nan_not_an_error():
    bits = BitsPerBase()
    assert bits.bases == 0
    assert math.isnan(bits.bits_per_base)
    bits.add("a", np.array([np.nan]), np.array([True]))
    rows = bits.to_rows()
    assert [(row.group, row.bases) for row in rows] == [("all", 0)]
    assert math.isnan(rows[0].bits_per_base)


def test_a_mask_that_covers_nothing_has_no_row():
    bits = BitsPerBase()
    bits.add("a", np.log2([0.5, 0.25]), np.array([False, False]))
    bits.add("only N", np.array([np.nan]), np.array([False]))
    assert [(row.name, row.bases) for row in bits.to_rows()] == [("all", 2), ("a", 2), ("unmasked", 2)]
