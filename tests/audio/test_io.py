"""Sound files of every kind, and those that are none."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from domains.audio import io
from domains.audio.io import ClipError, inspect_clip, read_blocks, read_clip, write_clip
from domains.errors import UserError
from tests.audio.sounds import RATE, noise, tone, write

KINDS = [
    ("wav", "PCM_U8", 0.01),
    ("wav", "PCM_16", 4e-5),
    ("wav", "PCM_24", 1e-6),
    ("wav", "PCM_32", 1e-6),
    ("wav", "FLOAT", 1e-6),
    ("wav", "DOUBLE", 1e-6),
    ("flac", "PCM_16", 4e-5),
    ("aiff", "PCM_24", 1e-6),
    ("ogg", "VORBIS", 0.05),
    ("mp3", "MPEG_LAYER_III", 0.05),
]


@pytest.mark.parametrize(("ending", "subtype", "tolerance"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_is_read(tmp_path: Path, ending: str, subtype: str, tolerance: float, channels: int) -> None:
    x = tone(1.0)
    path = write(tmp_path / f"a.{ending}", np.stack([x] * channels, axis=1), subtype=subtype)
    info = inspect_clip(path)
    assert (info.rate, info.channels, info.frames, info.silent) == (RATE, channels, len(x), ())
    assert info.peak == pytest.approx(0.3, abs=0.02)
    middle = slice(2000, -2000)  # lossy formats need a start
    np.testing.assert_allclose(read_clip(path, RATE)[middle], x[middle], atol=tolerance)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_the_one_asked_for(tmp_path: Path, rate: int) -> None:
    found = read_clip(write(tmp_path / "a.wav", tone(1.0, rate), rate), RATE)
    assert len(found) == RATE
    np.testing.assert_allclose(found[1000:-1000], tone(1.0)[1000:-1000], atol=2e-3)


def test_16_bit_at_the_same_rate_is_read_to_the_bit(tmp_path: Path) -> None:
    x = noise()
    assert np.array_equal(read_clip(write(tmp_path / "a.wav", x), RATE), x.astype(np.float32))


def test_channels_are_mixed_to_their_mean_and_a_silent_one_is_left_out(tmp_path: Path) -> None:
    a, b = noise(seed=1), noise(seed=2)
    both = write(tmp_path / "both.wav", np.stack([a, b], axis=1))
    np.testing.assert_allclose(read_clip(both, RATE), (a + b) / 2, atol=1e-7)
    half = write(tmp_path / "half.wav", np.stack([np.zeros_like(a), a, b], axis=1))
    assert inspect_clip(half).silent == (0,)
    np.testing.assert_allclose(read_clip(half, RATE), (a + b) / 2, atol=1e-7)
    nothing = write(tmp_path / "nothing.wav", np.zeros((800, 2)))
    assert inspect_clip(nothing).silent == ()
    assert not read_clip(nothing, RATE).any()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_samples_at_full_scale_are_counted(tmp_path: Path, subtype: str) -> None:
    x = tone(amplitude=0.5)
    x[100:200] = 1.0
    assert inspect_clip(write(tmp_path / "a.wav", x, subtype=subtype)).full_scale == pytest.approx(100 / len(x))
    assert inspect_clip(write(tmp_path / "b.wav", tone(amplitude=0.5), subtype=subtype)).full_scale == 0


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    short = path.with_name(f"cut{path.suffix}")
    short.write_bytes(data[: int(len(data) * share)])
    return short


def with_rate(path: Path, rate: int) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:24] + struct.pack("<I", rate) + data[28:])
    return path


def make_bad(folder: Path, kind: str) -> Path:
    if kind == "text":
        (folder / "a.wav").write_text("this is no sound\n" * 100)
    elif kind == "zero bytes":
        (folder / "a.wav").touch()
    elif kind == "no sample":
        write(folder / "a.wav", noise()[:0])
    elif kind == "nan":
        write(folder / "a.wav", np.where(np.arange(8000) == 4000, np.nan, tone()), subtype="FLOAT")
    elif kind == "infinite":
        write(folder / "a.wav", np.where(np.arange(8000) == 4000, np.inf, tone()), subtype="FLOAT")
    elif kind.startswith("cut "):
        return cut(write(folder / f"a.{kind[4:]}", noise(2.0)), 0.6)
    elif kind == "damaged":
        path = write(folder / "a.flac", noise(4.0))
        data = path.read_bytes()
        path.write_bytes(data[:30000] + bytes(4000) + data[34000:])
        return path
    elif kind == "rate":
        return with_rate(write(folder / "a.wav", noise()), 7)
    elif kind == "huge rate":
        return with_rate(write(folder / "a.wav", noise()), 2**31 - 1)
    return folder / "a.wav"


BAD = {
    "missing": io.MISSING,
    "text": io.NO_AUDIO,
    "zero bytes": io.EMPTY,
    "no sample": io.EMPTY,
    "nan": io.NOT_FINITE,
    "infinite": io.NOT_FINITE,
    "cut wav": io.CUT_SHORT,
    "cut aiff": io.CUT_SHORT,
    "cut mp3": io.CUT_SHORT,
    "rate": io.BAD_RATE,
    "huge rate": io.BAD_RATE,
}


@pytest.mark.parametrize(("kind", "reason"), BAD.items())
def test_bad_files_are_one_line(tmp_path: Path, kind: str, reason: str) -> None:
    path = make_bad(tmp_path, kind)
    with pytest.raises(ClipError) as caught:
        inspect_clip(path)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("kind", ["cut flac", "damaged"])
def test_a_damaged_flac_is_told(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ClipError) as caught:
        inspect_clip(make_bad(tmp_path, kind))
    assert caught.value.reason in (io.DAMAGED, io.CUT_SHORT)


def test_a_cut_mp3_is_told_behind_its_title_too(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp3", noise(2.0)).read_bytes()
    title = b"ID3\x04\x00\x00" + bytes([0, 0, 0x10, 0x00]) + bytes(0x800)  # 2,048 bytes in digits of 7 bits
    path = tmp_path / "b.mp3"
    path.write_bytes(title + whole)
    assert inspect_clip(path).frames == 2 * RATE
    path.write_bytes(title + whole[: len(whole) // 2])
    with pytest.raises(ClipError, match="cut short"):
        inspect_clip(path)


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", noise())

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # the tests may run as root, who may read everything

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ClipError, match=r"cannot be opened \(Permission denied\)"):
        inspect_clip(path)


def test_a_writer_that_did_not_know_the_length_is_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise())
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert inspect_clip(path).frames == len(noise())


def test_a_long_file_takes_the_memory_of_a_block(tmp_path: Path) -> None:
    path, frames = tmp_path / "long.wav", 30 * 60 * 8000
    with soundfile.SoundFile(path, "w", 8000, 2, "PCM_U8") as file:
        for _ in range(30):
            file.write(np.random.default_rng(0).uniform(-0.5, 0.5, (frames // 30, 2)))
    tracemalloc.start()
    info = inspect_clip(path)
    total = sum(len(block) for block in read_blocks(path, info, 8000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == frames
    assert peak < 16e6 < 4 * frames  # as float32, one channel alone would take 58 MB


def test_writing(tmp_path: Path) -> None:
    x = noise()
    for name in ("a.wav", "a.flac"):
        write_clip(tmp_path / name, x, RATE)
        assert np.array_equal(read_clip(tmp_path / name, RATE), x.astype(np.float32))
    write_clip(tmp_path / "loud.wav", np.array([2.0, -2.0] * 500), RATE)
    assert read_clip(tmp_path / "loud.wav", RATE)[:2].tolist() == [32767 / 32768, -1.0]
    with pytest.raises(UserError, match=r"written as \.wav or \.flac"):
        write_clip(tmp_path / "a.mp3", x, RATE)
    with pytest.raises(UserError, match="cannot be written"):
        write_clip(tmp_path / "nowhere" / "a.wav", x, RATE)
