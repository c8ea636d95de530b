"""Sounds in long recordings: found where they are, named as they are alone, whatever the blocks and the neighbours."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from domains.audio.endpoints import EndpointConfig, EndPointer, Stretch
from domains.audio.models.classifier import ClassifierConfig, WaveClassifier
from domains.audio.models.front import FrontConfig
from domains.audio.models.spectrogram import SpectrogramConfig
from domains.audio.resample import Resampler
from domains.audio.stream import Heard, Segment, SoundStreams
from domains.errors import UserError
from mamba_core import BackboneConfig, Mamba2Config
from tests.audio.sounds import noise, tone

RATE = 4000  # a frame is 40 samples
LABELS = ["bell", "drum", "voice"]
BACKBONE = BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8))
ENDS = EndpointConfig(hold_seconds=0.1, lead_seconds=0.02)


def make_model(bidirectional: bool = False) -> WaveClassifier:
    torch.manual_seed(1)
    config = ClassifierConfig(FrontConfig(strides=[4, 2], kernels=[9, 3], width=6), bidirectional=bidirectional)
    model = config.build(BACKBONE, classes=3).eval()
    nn.init.normal_(model.head.linear.weight)
    return model


MODEL = make_model()


def scene(rate: int = RATE) -> np.ndarray:
    """2.4 s: a tone from 0.30 to 0.60 s, noise from 1.00 to 1.25 s, a soft tone from 1.28 to 1.60 s, a click at 2 s."""
    x = 1e-4 * np.random.default_rng(0).standard_normal(round(2.4 * rate))
    for start, sound in (
        (0.3, tone(0.3, rate, 300.0, 0.3)),
        (1.0, noise(0.25, 3, 0.2, rate)),
        (1.28, tone(0.32, rate, 700.0, 0.1)),
        (2.0, noise(0.02, 4, 0.2, rate)),
    ):
        x[round(start * rate) :][: len(sound)] += sound
    return x.astype(np.float32)


def hear(x: np.ndarray, cuts: Sequence[int], rate: int = RATE, **settings: object) -> tuple[list[Segment], np.ndarray]:
    """What streams make of a recording in blocks that end at ``cuts``, and the frames: seconds, then probabilities."""
    config = EndpointConfig(**{**vars(ENDS), **settings})  # type: ignore[arg-type]
    streams = SoundStreams(MODEL, LABELS, RATE, slots=1, config=config)
    streams.open("x", rate)
    heard = [streams.feed({"x": block})["x"] for block in np.split(x, cuts)]
    return joined([*heard, streams.close("x")])


def joined(heard: Sequence[Heard]) -> tuple[list[Segment], np.ndarray]:
    frames = [np.concatenate([one.frames.seconds[:, None], one.frames.probabilities], axis=1) for one in heard]
    return [segment for one in heard for segment in one.segments], np.concatenate(frames)


def alone(samples: np.ndarray) -> np.ndarray:
    """What the model says of a clip that it hears whole."""
    with torch.no_grad():
        return MODEL(torch.from_numpy(samples)[None])[0][0].softmax(-1).numpy()


def test_sounds_are_where_they_are_and_named_as_they_are_alone() -> None:
    x = scene()
    segments, frames = hear(x, [])
    assert [(s.start, s.end) for s in segments] == [(0.3, 0.6), (1.0, 1.6)]  # the gap of 30 ms is held, the click short
    for start, end, label, score in segments:
        said = alone(x[round((start - 0.02) * RATE) : round(end * RATE)])  # with the lead, and without what was held
        assert label == LABELS[said.argmax()]
        assert score == pytest.approx(said.max(), abs=1e-5)
    # Frames: from the lead to what was held, the running verdict.
    heard = np.concatenate([np.arange(29, 71), np.arange(99, 171), np.arange(199, 213)]) / 100
    np.testing.assert_allclose(frames[:, 0], heard, atol=1e-9)
    np.testing.assert_allclose(frames[:, 1:].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(frames[9, 1:], alone(x[1120:1520]), atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 9600), max_size=12))
def test_blocks_of_any_size_say_what_the_whole_says(cuts: list[int]) -> None:
    segments, frames = hear(scene(), sorted(cuts))
    wanted, rows = hear(scene(), [])
    assert [s[:3] for s in segments] == [s[:3] for s in wanted]
    np.testing.assert_allclose([s.score for s in segments], [s.score for s in wanted], atol=1e-4)
    np.testing.assert_allclose(frames, rows, atol=1e-4)


@pytest.mark.parametrize("rate", [4000, 11025])
@pytest.mark.parametrize("seconds", [0.02, 0.3, 10])
def test_blocks_from_20_ms_to_10_s_at_any_rate(rate: int, seconds: float) -> None:
    x = np.concatenate([scene(rate)] * 2)
    size = round(seconds * rate)
    segments, frames = hear(x, list(range(size, len(x), size)), rate)
    resampler = Resampler(rate, RATE)
    whole = np.concatenate([resampler.push(x), resampler.finish()])
    wanted, rows = hear(whole, [])
    assert len(segments) == 4
    assert [s.label for s in segments] == [s.label for s in wanted]
    np.testing.assert_allclose([s[:2] for s in segments], [s[:2] for s in wanted], atol=1e-9)
    np.testing.assert_allclose(frames, rows, atol=1e-4)


def test_neighbours_change_nothing_and_slots_are_enough() -> None:
    """Three recordings in two slots, the third begun when the first has ended, fed in blocks with many sounds."""
    rng = np.random.default_rng(5)
    recordings = {name: np.concatenate([scene()[rng.integers(0, 2000) :] for _ in range(3)]) for name in "abc"}
    streams = SoundStreams(MODEL, LABELS, RATE, slots=2, config=ENDS)
    found: dict[str, list[Heard]] = {name: [] for name in "abc"}
    streams.open("a"), streams.open("b")
    places = dict.fromkeys("abc", 0)
    while places:
        sizes = {name: int(rng.integers(1, 9000)) for name in places if name in streams._recordings}
        blocks = {name: recordings[name][places[name] : places[name] + size] for name, size in sizes.items()}
        for key, heard in streams.feed(blocks).items():
            found[str(key)].append(heard)
        for name, size in sizes.items():
            places[name] += size
            if places[name] >= len(recordings[name]):
                found[name].append(streams.close(name))
                del places[name]
                if "c" in places and "c" not in streams._recordings:
                    streams.open("c")
    for name, heard in found.items():
        segments, frames = joined(heard)
        wanted, rows = hear(recordings[name], [])
        assert [s[:3] for s in segments] == [s[:3] for s in wanted]
        assert len(segments) >= 4
        np.testing.assert_allclose(frames, rows, atol=1e-4)
    assert len(streams) == len(streams._pool) == 0


def test_what_lasts_long_is_judged_anew_and_told_as_one_where_the_label_stays() -> None:
    """Two seconds without quiet, in pieces of 0.4 s; the last has 0.04 s, too short for a judgement of its own."""
    x = np.concatenate([tone(1.2, RATE, 300.0, 0.3), noise(0.84, 3, 0.3, RATE)]).astype(np.float32)
    said = [alone(x[start : start + 1600]) for start in range(0, 8000, 1600)]
    labels = [LABELS[one.argmax()] for one in said]
    assert labels[:3] == [labels[0]] * 3 != labels[3:] == [labels[3]] * 2  # or the test says nothing
    segments, _ = hear(x, [1000], longest_seconds=0.4)
    assert [s[:3] for s in segments] == [(0.0, 1.2, labels[0]), (1.2, 2.04, labels[3])]
    np.testing.assert_allclose(segments[0].score, np.mean([one.max() for one in said[:3]]), atol=1e-5)
    whole, _ = hear(x, [1000])
    assert [s[:2] for s in whole] == [(0.0, 2.04)]
    assert hear(np.zeros(8000, np.float32), [70])[0] == []
    everything, frames = hear(scene(), [70], quiet_db=None)
    assert [s[:2] for s in everything] == [(0.0, 2.4)]
    assert len(frames) == 240


def stretches(x: np.ndarray, cuts: Sequence[int], config: EndpointConfig) -> Iterator[Stretch]:
    pointer = EndPointer(RATE, config, longest_seconds=0.5)
    for block in np.split(x, cuts):
        yield from pointer.push(block)
    yield from pointer.push(x[:0], last=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(0, 39), st.data())
def test_end_points_against_a_definition_by_frames(loud: list[bool], rest: int, data: st.DataObject) -> None:
    """A frame belongs to a sound if it is loud, at most ``hold`` frames behind one, or at most ``lead`` before one."""
    hold, lead = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 3))
    config = EndpointConfig(hold_seconds=hold / 100, lead_seconds=lead / 100, longest_seconds=1e3)
    flags = np.array([*loud, data.draw(st.booleans())])
    x = np.repeat(np.where(flags, 0.5, 0.0), 40)[: 40 * len(loud) + rest].astype(np.float32)
    flags = flags[: -(-len(x) // 40)]
    x += np.arange(len(x)) * 1e-9  # to know samples again
    places = np.flatnonzero(flags)
    kept = {i for at in places for i in range(max(0, at - lead), min(len(flags), at + hold + 1))}
    found = list(stretches(x, sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=5))), config))
    frames = [one.start // 40 + i for one in found for i in range(-(-len(one.samples) // 40))]
    assert frames == sorted(kept)
    for one in found:
        assert np.array_equal(one.samples, x[one.start : one.start + len(one.samples)])
    over = [one for one in found if one.ends]
    assert len({one.sound for one in found}) == len(over)
    for one in over:
        assert one.onset is not None
        assert one.onset // 40 in places
        assert one.loud_until == min(len(x), 40 * (max(p for p in places if 40 * p < one.loud_until) + 1))


def test_what_cannot_be_heard_is_refused() -> None:
    for model in (make_model(bidirectional=True), SpectrogramConfig(64, 16, 8, 2, 4).build(BACKBONE, 3, RATE)):
        with pytest.raises(UserError, match="cannot stream: use mode=clips"):
            SoundStreams(model, LABELS, RATE, slots=1)
    for bad, message in (
        ({"quiet_db": 3.0}, "quiet_db=3.0: must lie between"),
        ({"hold_seconds": -1.0}, "hold_seconds=-1.0: must be at least 0"),
        ({"longest_seconds": 0.0}, "longest_seconds=0.0: must be at least 0.1"),
    ):
        with pytest.raises(UserError, match=message):
            SoundStreams(MODEL, LABELS, RATE, slots=1, config=EndpointConfig(**bad))  # type: ignore[arg-type]
    streams = SoundStreams(MODEL, LABELS, RATE, slots=1)
    streams.open("a")
    with pytest.raises(ValueError, match="'a' is open already"):
        streams.open("a")
    with pytest.raises(ValueError, match="all 1 are taken"):
        streams.open("b")
    with pytest.raises(ValueError, match="'b' is not open"):
        streams.feed({"b": np.zeros(3)})
    with pytest.raises(UserError, match="one channel"):
        streams.feed({"a": np.zeros((3, 2))})
    with pytest.raises(UserError, match="not numbers"):
        streams.feed({"a": np.array([0.0, np.nan])})


@pytest.mark.parametrize(("kind", "scale"), [("<i2", 2**15), (">i2", 2**15), ("i4", 2**31)])
def test_integer_blocks_are_heard_as_the_floats_that_they_stand_for(kind: str, scale: int) -> None:
    whole = np.rint(scene() * scale * 0.999).astype(kind)
    segments, frames = hear(whole, [3000])
    wanted, rows = hear((whole / scale).astype(np.float32), [3000])
    assert segments == wanted
    assert len(segments) == 2
    assert np.array_equal(frames, rows)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i8", "?", "O", "c8"])
def test_blocks_of_other_types_are_refused(kind: str) -> None:
    streams = SoundStreams(MODEL, LABELS, RATE, slots=1)
    streams.open("a")
    with pytest.raises(UserError, match="'a': a block is floats from -1 to 1, int16 or int32, not "):
        streams.feed({"a": np.zeros(100, kind)})


@pytest.mark.parametrize("rate", [0, -5, 999, 768_001, 16000.5, "a", True])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    streams = SoundStreams(MODEL, LABELS, RATE, slots=1)
    with pytest.raises(UserError, match=r"'a': rate=.*: must be a whole number from 1,000 to 768,000"):
        streams.open("a", rate=rate)
    assert len(streams) == 0
    streams.open("a", rate=np.int64(8000))  # type: ignore[arg-type]


def test_a_gain_is_what_the_recording_is_multiplied_by() -> None:
    streams = SoundStreams(MODEL, LABELS, RATE, slots=1, config=ENDS)
    streams.open("x", gain=0.5)
    heard = [streams.feed({"x": scene() * 2})["x"], streams.close("x")]
    assert joined(heard)[0] == hear(scene(), [])[0]
