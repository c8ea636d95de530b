import pickle

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.genomics.config import DataConfig
from domains.genomics.data import (
    IGNORE,
    TrainBatches,
    ValidationBatches,
    WindowStream,
    make_batch,
    plan_stages,
)
from domains.genomics.splits import Region
from domains.genomics.tokens import BOS, N, decode, encode, reverse_complement
from domains.parallel import Share
from tests.genomics.genomes import make_store, random_bases

GENOME = {
    "a": random_bases(1000, 1),
    "b": "N" * 300 + random_bases(600, 2) + "N" * 100,
    "c": random_bases(64, 3),
    "d": random_bases(40, 4),
}
WHOLE = [Region(name, 0, len(sequence)) for name, sequence in GENOME.items()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data"), GENOME)


def config(**told):
    return DataConfig(**{"window": 64, "tokens_per_step": 256} | told)


def train(store, data=None, regions=WHOLE, steps=50, accumulate=1, seed=0):
    return TrainBatches(store, regions, data or config(), steps, accumulate, seed)


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("inputs", "targets", "weights"))


def place(tokens):
    """(contig, start) of a window of GENOME, whichever strand it is read from."""
    for strand in (tokens, reverse_complement(tokens)):
        for name, sequence in GENOME.items():
            if (start := sequence.find(decode(strand))) >= 0:
                return name, start
    raise AssertionError("a window that is not in the genome, or crosses a contig edge")


def test_make_batch_shifts_by_one_and_leaves_n_out():
    windows = np.stack([encode("ACNT"), encode("GGTA")])
    batch = make_batch(windows, np.ones((2, 4), np.float32))
    assert batch["inputs"].tolist() == [[BOS, 7, 8, N], [BOS, 9, 9, 10]]
    assert batch["targets"].tolist() == [[7, 8, IGNORE, 10], [9, 9, 10, 7]]
    assert batch["inputs"].dtype == batch["targets"].dtype == torch.int64
    assert batch["weights"].dtype == torch.float32


def test_windows_are_of_the_genome_and_cross_no_edge(store):
    seen = set()
    batches = train(store)
    for index in range(len(batches)):
        batch = batches[index]
        assert batch["inputs"].shape == batch["targets"].shape == batch["weights"].shape == (4, 64)
        for inputs, targets in zip(batch["inputs"].numpy(), batch["targets"].numpy(), strict=True):
            tokens = np.where(targets == IGNORE, N, targets)
            seen.add(place(tokens)[0])
            assert inputs.tolist() == [BOS, *tokens[:-1]]
    assert seen == {"a", "b", "c"}  # d is shorter than a window


def test_windows_stay_inside_their_regions(store):
    regions = [Region("a", 100, 400), Region("b", 350, 500)]
    batches = train(store, config(reverse_complement=False), regions)
    for index in range(50):
        for targets in batches[index]["targets"].numpy():
            contig, start = place(targets)
            region = next(r for r in regions if r.contig == contig)
            assert region.start <= start <= region.stop - 64


def test_an_epoch_tiles_each_region_once_without_windows_of_n(store):
    stream = WindowStream(store, WHOLE, 64, seed=0, flip=True)
    phases = set()
    for number in range(40):
        starts = np.sort(stream.epoch(number).starts)
        assert np.all(np.diff(starts) >= 64)
        in_a = starts[starts < 1000]
        assert len(in_a) == (1000 - in_a[0]) // 64
        assert np.all(np.diff(in_a) == 64)
        phases.add(int(in_a[0]))
        in_b = starts[(starts >= 1000) & (starts < 2000)] - 1000
        assert in_b[0] > 300 - 64  # earlier windows would be wholly N
        assert in_b[-1] < 900
        assert 2000 in starts  # c is one window long
    assert len(phases) > 20
    assert phases <= set(range(64))


def test_a_region_barely_longer_than_a_window_is_in_every_epoch(store):
    stream = WindowStream(store, [Region("a", 0, 70)], 64, seed=0, flip=False)
    starts = [stream.epoch(number).starts.tolist() for number in range(60)]
    assert {len(found) for found in starts} == {1}
    assert {found[0] for found in starts} == set(range(7))


def test_windows_come_shuffled_and_each_epoch_anew(store):
    stream = WindowStream(store, [Region("a", 0, 1000)], 10, seed=0, flip=False)
    orders = [stream.epoch(number).starts for number in range(3)]
    for starts in orders:
        assert not np.array_equal(starts, np.sort(starts))
    assert not np.array_equal(np.argsort(orders[0]), np.argsort(orders[1]))


def test_the_stream_runs_through_epochs_without_loss(store):
    stream = WindowStream(store, WHOLE, 64, seed=3, flip=True)
    epochs = [stream.epoch(number) for number in range(6)]
    expected = np.concatenate([epoch.starts for epoch in epochs])
    flips = np.concatenate([epoch.flips for epoch in epochs])
    for first, count in [(0, len(expected)), (5, 1), (20, 37), (len(expected) - 1, 1)]:
        again = WindowStream(store, WHOLE, 64, seed=3, flip=True)  # nothing drawn before
        found = again.windows(first, count)
        assert np.array_equal(found.starts, expected[first : first + count])
        assert np.array_equal(found.flips, flips[first : first + count])


def test_a_batch_is_a_function_of_seed_and_number(store):
    batches = train(store, config(window_warmup=[16]), seed=7)
    forward = [batches[index] for index in range(50)]
    for index in (49, 3, 20, 3):
        assert equal(train(store, config(window_warmup=[16]), seed=7)[index], forward[index])
        assert equal(batches[index], forward[index])
    assert not equal(train(store, config(window_warmup=[16]), seed=8)[3], forward[3])
    assert train(store, seed=-1)[0]["inputs"].shape == (4, 64)


def test_half_the_windows_are_read_from_the_other_strand(store):
    def forward(data):
        batches = train(store, data, [Region("a", 0, 1000)], steps=100)
        rows = np.concatenate([batches[index]["targets"].numpy() for index in range(100)])
        return np.mean([decode(row) in GENOME["a"] for row in rows])

    assert forward(config()) == pytest.approx(0.5, abs=0.1)
    assert forward(config(reverse_complement=False)) == 1.0


def test_lower_case_is_weighted_on_both_strands(tmp_path):
    upper = random_bases(500, 5)
    sequence = "".join(base.lower() if base in "AC" else base for base in upper)  # the mask is told by the base
    store = make_store(tmp_path, {"m": sequence})
    batches = train(store, config(soft_mask_weight=0.25), [Region("m", 0, 500)])
    kinds = set()
    for index in range(20):
        batch = batches[index]
        for targets, weights in zip(batch["targets"].numpy(), batch["weights"].numpy(), strict=True):
            flipped = decode(targets) not in upper
            kinds.add(flipped)
            masked = np.isin(targets, encode("GT" if flipped else "AC"))
            assert np.array_equal(weights, np.where(masked, 0.25, 1.0).astype(np.float32))
    assert kinds == {False, True}
    assert torch.all(train(store, config(), [Region("m", 0, 500)])[0]["weights"] == 1)


def test_length_warm_up_keeps_tokens_per_step(store):
    data = config(window_warmup=[16, 32], window_warmup_fraction=0.5)
    batches = train(store, data, steps=40, accumulate=3)
    shapes = [tuple(batches[index]["inputs"].shape) for index in range(len(batches))]
    assert shapes == [(16, 16)] * 30 + [(8, 32)] * 30 + [(4, 64)] * 60


def test_stages_change_between_steps():
    stages = plan_stages(config(window_warmup=[16, 32]), max_steps=7, accumulate=4)
    assert [length for _, length in stages] == [16, 32, 64]
    assert all(first % 4 == 0 for first, _ in stages)


def test_a_window_longer_than_the_step_makes_a_single_row(store):
    assert train(store, config(tokens_per_step=10))[0]["inputs"].shape == (1, 64)


def test_numbers_outside_the_run_are_refused(store):
    batches = train(store, steps=5, accumulate=2)
    assert len(batches) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError):
            batches[index]


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ({"window_warmup": [128]}, r"data\.window_warmup=\[128\]: give lengths from 2 to data\.window=64"),
        ({"window_warmup": [0]}, r"data\.window_warmup"),
        ({"window_warmup": [16], "window_warmup_fraction": 2.0}, "must lie between 0 and 1"),
        ({"window": 1001}, r"made\.fa: no training contig holds a window of 1,001"),
    ],
)
def test_settings_that_cannot_be(store, told, answer):
    with pytest.raises(UserError, match=answer):
        train(store, config(**told))


def test_nothing_but_n_is_refused(store):
    with pytest.raises(UserError, match="no training contig holds a window of 64 with a known base"):
        train(store, regions=[Region("b", 0, 300)])
    with pytest.raises(UserError, match="no validation contig holds a window of 64 with a known base"):
        ValidationBatches(store, [Region("b", 0, 300)], config())


def test_validation_windows_are_fixed_spread_and_plain(store):
    regions = [Region("a", 0, 1000), Region("b", 300, 900)]
    batches = ValidationBatches(store, regions, config(validation_tokens=8 * 64, tokens_per_step=3 * 64))
    rows = [row.numpy() for index in range(len(batches)) for row in batches[index]["targets"]]
    places = [place(row) for row in rows]
    assert len(rows) == 8
    assert [len(batches[index]["targets"]) for index in range(3)] == [3, 3, 2]
    assert [contig for contig, _ in places] == ["a"] * 5 + ["b"] * 3  # 15 and 9 windows there are
    assert all(decode(row) in GENOME[contig] for row, (contig, _) in zip(rows, places, strict=True))
    assert len(set(places)) == 8
    assert all((start - 300 * (contig == "b")) % 64 == 0 for contig, start in places)
    with pytest.raises(IndexError):
        batches[3]


def test_validation_takes_all_there_is_and_skips_n(store):
    batches = ValidationBatches(store, WHOLE, config(tokens_per_step=64))
    assert len(batches) == 15 + 11 + 1  # b: of 15 windows 4 are wholly N
    assert torch.all(batches[0]["weights"] == 1)


def test_batches_travel_to_worker_processes(store):
    batches = train(store)
    sent = pickle.dumps(batches)
    assert len(sent) < 5000
    assert equal(pickle.loads(sent)[7], batches[7])


class Counted:
    """Bases of a genome that says how many were read."""

    def __init__(self, raw):
        self.raw, self.read = raw, 0

    def __getitem__(self, at):
        self.read += at.stop - at.start
        return self.raw[at]


@pytest.mark.parametrize("segment", [None, 8])
def test_shares_add_up_to_the_batch_and_read_no_more(tmp_path, segment):
    letters = list(random_bases(900, 5))
    letters[100:400] = "".join(letters[100:400]).lower()
    store = make_store(tmp_path, {"a": "".join(letters)})
    data, regions = config(soft_mask_weight=0.25), [Region("a", 0, 900)]
    whole = TrainBatches(store, regions, data, 3, 1, 0)
    assert len({float(weight) for weight in whole[0]["weights"].unique()}) == 2
    count = store.raw = Counted(store.raw)
    got = {name: torch.empty_like(tensor) for name, tensor in whole[1].items()}
    for group in range(2):
        for place in range(2):
            share = Share(group, 2, place, 2, segment)
            before = count.read
            part = TrainBatches(store, regions, data, 3, 1, 0, share)[1]
            parts = share.tokens(64)
            assert count.read - before <= 2 * (32 + len(parts))
            columns = torch.cat([torch.arange(64)[own] for own in parts])
            for name, tensor in part.items():
                got[name][share.rows(4), columns] = tensor
    assert equal(whole[1], got)


def test_a_share_without_a_row_counts_in_no_loss(store):
    batches = ValidationBatches(store, WHOLE, config(validation_tokens=64), Share(group=0, groups=2, places=2))
    assert (batches[0]["targets"] == IGNORE).all()
    other = ValidationBatches(store, WHOLE, config(validation_tokens=64), Share(group=1, groups=2, places=2))
    assert (other[0]["targets"] != IGNORE).any()
    assert batches[0]["inputs"].shape == other[0]["inputs"].shape == (1, 32)


def test_windows_that_cannot_be_shared(store):
    with pytest.raises(UserError, match=r"trainer.context_parallel=3: does not divide windows of 64 tokens"):
        TrainBatches(store, WHOLE, config(), 3, 1, 0, Share(places=3))
    with pytest.raises(UserError, match="cannot share the 4 windows of 64 tokens in a batch evenly"):
        TrainBatches(store, WHOLE, config(), 3, 1, 0, Share(groups=3))
