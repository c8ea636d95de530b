"""Sound files of every kind, and those that are none."""

import struct
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from domains.audio import io
from domains.audio.io import ClipError, inspect_clip, read_blocks, read_clip, read_mixed, write_clip
from domains.audio.mp3 import _length, read_frames
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
    elif kind == "no rate":
        return with_rate(write(folder / "a.wav", noise()), 0)
    elif kind == "rate beyond 31 bits":
        return with_rate(write(folder / "a.wav", noise()), 2**31)
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
    "cut ogg": io.CUT_SHORT,
    "rate": io.BAD_RATE,
    "huge rate": io.BAD_RATE,
    "no rate": io.BAD_RATE,
    "rate beyond 31 bits": io.BAD_RATE,
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


def frame_length(data: bytes, at: int = 0) -> int:
    return _length(int.from_bytes(data[at : at + 4], "big") >> 9)


def untagged(path: Path, samples: np.ndarray, rate: int, mode: str) -> bytes:
    """An MP3 file without the frame that tells its length."""
    data = write(path, samples, rate, bitrate_mode=mode, compression_level=0.5).read_bytes()  # type: ignore[arg-type]
    assert b"Xing" in data[:64] or b"Info" in data[:64]
    return data[frame_length(data) :]


TITLE = b"ID3\x04\x00\x00" + bytes([0, 0, 0x10, 0x00]) + bytes(0x800)
APE = bytes(100) + b"APETAGEX" + struct.pack("<4I", 2000, 132, 1, 0) + bytes(8)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])  # versions 2.5, 2 and 1
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize(("front", "back"), [(b"", b""), (TITLE * 2, APE + b"TAG" + bytes(125))])
def test_an_mp3_that_does_not_tell_its_length_is_read_whole(
    tmp_path: Path, rate: int, channels: int, mode: str, front: bytes, back: bytes
) -> None:
    x = np.concatenate([noise(2.0, rate=rate), tone(4.0, rate), 0.1 * noise(2.0, rate=rate)])
    frames = untagged(tmp_path / "a.mp3", np.stack([x] * channels, axis=1), rate, mode)
    path = tmp_path / "b.mp3"
    path.write_bytes(front + frames + back)
    found = read_clip(path, rate)
    assert len(x) <= len(found) <= len(x) + 3 * 1152  # the encoder's delay and the rest of the last frame
    whole = read_clip(tmp_path / "a.mp3", rate)
    delay = int(np.argmax(np.correlate(found[: rate + 3000], whole[:rate])))
    np.testing.assert_allclose(found[delay : delay + len(whole)][3000:-3000], whole[3000:-3000], atol=1e-3)
    for missing in (1, 20):
        path.write_bytes(front + frames[:-missing] + back)
        with pytest.raises(ClipError) as caught:
            inspect_clip(path)
        assert caught.value.reason == io.CUT_SHORT
    at = frame_length(frames)
    path.write_bytes(front + frames[: at + 2])
    with pytest.raises(ClipError, match="the last frame breaks off in its header"):
        inspect_clip(path)


def test_blocks_of_an_mp3_go_on_into_each_other(tmp_path: Path) -> None:
    x = np.concatenate([noise(1.0), tone(2.0), noise(1.0)])
    path = write(tmp_path / "a.mp3", x, bitrate_mode="VARIABLE", compression_level=0.5)  # type: ignore[arg-type]
    info = inspect_clip(path)
    blocks = list(read_mixed(path, info, 0.05))
    assert len(blocks) == 80
    assert np.array_equal(np.concatenate(blocks), next(read_mixed(path, info)))


def test_an_mp3_with_something_between_its_frames_is_left_to_the_decoder(tmp_path: Path) -> None:
    frames = untagged(tmp_path / "a.mp3", noise(2.0), RATE, "CONSTANT")
    at = 3 * frame_length(frames)
    for data in (frames + b"junk", frames + b"j", frames[:at] + b"junk" + frames[at:], b"junk", b""):
        assert read_frames(BytesIO(data)) is None


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (0xFFFB9064, 417),  # version 1, layer III, 128 kbit/s, 44,100 Hz
        (0xFFFB9264, 418),  # with padding
        (0xFFF388C4, 288),  # version 2, layer III, 64 kbit/s, 16,000 Hz
        (0xFFE388C4, 576),  # version 2.5, 8,000 Hz
        (0xFFFDA404, 576),  # version 1, layer II, 192 kbit/s, 48,000 Hz
        (0xFFF58004, 417),  # version 2, layer II, 64 kbit/s, 22,050 Hz
        (0xFFFFC604, 388),  # version 1, layer I, 384 kbit/s, 48,000 Hz, with padding
        (0xFFFB0064, 0),  # free format
        (0xFFFBF064, 0),
        (0xFFFB9C64, 0),
        (0xFFF19064, 0),  # AAC
        (0x52494646, 0),
    ],
)
def test_lengths_of_frames(header: int, length: int) -> None:
    assert _length(header >> 9) == length


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_its_end_is_told(tmp_path: Path, subtype: str) -> None:
    one, two = (
        write(tmp_path / f"{i}.ogg", noise(4.0, i), format="OGG", subtype=subtype).read_bytes() for i in range(2)
    )
    path = tmp_path / "a.ogg"
    for whole in (one, one + two):
        path.write_bytes(whole)
        assert inspect_clip(path).seconds >= 4
        path.write_bytes(whole + b"TAG" + bytes(125))
        assert inspect_clip(path).seconds >= 4
        last = whole.rfind(b"OggS")
        for size, detail in (
            (len(whole) - 1, "bytes of the last page are there"),
            (last + 20, "breaks off in the header of a page"),
            (last + 29, "breaks off in the header of a page"),
            (last + 2, "the last page is not the end of a stream"),
        ):
            path.write_bytes(whole[:size])
            with pytest.raises(ClipError, match=f"cut short .*{detail}"):
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
