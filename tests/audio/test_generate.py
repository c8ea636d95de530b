"""Sounds drawn from a generator: those that its forward pass allows, as loud as the prompt, the same for a seed."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domains.audio.config import GenerateConfig
from domains.audio.generate import Drawn, draw_sounds, generate
from domains.audio.io import read_clip
from domains.audio.models.sampling import draw
from domains.audio.tokens import SILENCE, decode, encode
from domains.audio.trained import load_model
from domains.errors import UserError
from tests.audio.models import RATE, save
from tests.audio.sounds import noise, write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model", "generate")


def run(model: Path, out: Path, **settings: Any) -> list[Path]:
    return generate(model, out, GenerateConfig(seconds=0.04, **settings), device="cpu", progress=False)


@pytest.mark.parametrize("prompted", [False, True])
def test_each_level_is_what_the_whole_before_it_gives(model: Path, prompted: bool) -> None:
    """Step-by-step drawing against the forward pass over prompt and sound, with the same random numbers."""
    loaded = load_model(model)
    prompt = noise(0.03, rate=RATE) if prompted else np.zeros(0)
    drawn = draw_sounds(loaded, prompt, GenerateConfig(seconds=0.05, count=2, temperature=0.9, top_p=0.95, seed=7))
    assert drawn.samples.shape == (2, len(prompt) + 200)
    assert np.array_equal(drawn.samples[:, : len(prompt)], np.repeat(prompt[None].astype(np.float32), 2, axis=0))
    levels = torch.from_numpy(encode(drawn.samples).astype(np.int64))
    assert np.array_equal(decode(levels[:, len(prompt) :].numpy()), drawn.samples[:, len(prompt) :])
    with torch.no_grad():
        logits, _ = loaded.model(torch.nn.functional.pad(levels, (1, -1), value=SILENCE))
    random = torch.Generator().manual_seed(7)
    told = [draw(row, torch.rand(2, dtype=torch.float64, generator=random), 0.9, 0.95)
            for row in logits[:, len(prompt) :].unbind(1)]  # fmt: skip
    assert torch.equal(torch.stack(told, dim=1), levels[:, len(prompt) :])


def test_the_same_seed_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    first = run(model, tmp_path / "a", count=2, seed=1)
    assert [path.name for path in first] == ["sample-1.wav", "sample-2.wav"]
    again, other = run(model, tmp_path / "b", count=2, seed=1), run(model, tmp_path / "c", count=2, seed=2)
    for path, same, different in zip(first, again, other, strict=True):
        assert path.read_bytes() == same.read_bytes() != different.read_bytes()
        assert path.with_suffix(".json").read_bytes() == same.with_suffix(".json").read_bytes()
    assert first[0].read_bytes() != first[1].read_bytes()
    with wave.open(str(first[0])) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (1, RATE, RATE // 25)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("sample-1.wav", "sample-1.json", "sample-2.wav", "sample-2.json")
    }


def test_a_folder_holds_one_draw(model: Path, tmp_path: Path) -> None:
    """The same settings write the same bytes again; with others, or beside other files, nothing is replaced."""
    out, prompt = tmp_path / "out", write(tmp_path / "seed.wav", noise(0.1, rate=RATE), RATE)
    first = run(model, out, count=2, prompt=str(prompt))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    first[1].unlink()  # interrupted: drawn again
    run(model, out, count=2, prompt=str(prompt))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for settings, told in (
        ({"count": 1}, "count=2"),
        ({"count": 2, "seed": 1}, "seed=0"),
        ({"count": 2, "temperature": 0.5}, r"temperature=1\.0"),
        ({"count": 2, "prompt": ""}, r"prompt=seed\.wav"),
    ):
        with pytest.raises(UserError, match=f"out: holds sounds drawn with {told}; choose another out folder"):
            run(model, out, **{"prompt": str(prompt), **settings})
    with pytest.raises(UserError, match="holds sounds drawn with another model"):
        run(save(tmp_path / "other", "generate", seed=2), out, count=2, prompt=str(prompt))
    write(prompt, noise(0.1, 5, rate=RATE), RATE)  # of the same name and length
    with pytest.raises(UserError, match="holds sounds drawn with another prompt"):
        run(model, out, count=2, prompt=str(prompt))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    mine = tmp_path / "mine"
    write(mine / "sample-1.wav", noise(0.1), RATE)
    with pytest.raises(UserError, match="mine: holds other files; choose a new out folder"):
        run(model, mine)
    write(out / "sample-9.wav", noise(0.1), RATE)
    with pytest.raises(UserError, match="out: holds other files; choose a new out folder"):
        run(model, out, count=2, prompt=str(write(prompt, noise(0.1, rate=RATE), RATE)))


def test_the_provenance_is_enough_to_draw_again(model: Path, tmp_path: Path) -> None:
    prompt = write(tmp_path / "seed.wav", noise(0.2), 16000)
    told = run(model, tmp_path / "a", prompt=str(prompt), prompt_seconds=0.15, count=3, seed=5, top_p=0.9)
    about = json.loads(told[2].with_suffix(".json").read_text())
    assert (about["file"], about["number"], about["rate"]) == ("sample-3.wav", 3, RATE)
    assert (about["prompt_samples"], about["drawn_samples"]) == (600, 160)
    assert about["model"] == load_model(model).hash
    settings = about["settings"] | {"prompt": str(prompt)}
    again = generate(model, tmp_path / "b", GenerateConfig(**settings), device="cpu", progress=False)
    assert again[2].read_bytes() == told[2].read_bytes()
    np.testing.assert_allclose(read_clip(told[0], RATE)[:600], read_clip(prompt, RATE)[-600:], atol=2e-5)


def test_what_is_drawn_is_as_loud_as_the_prompt(tmp_path: Path) -> None:
    """The model hears every prompt at the level of its training, and gives back the loudness that it had."""
    loaded = load_model(save(tmp_path / "model", "generate", level_db=-20.0))
    config = GenerateConfig(seconds=0.04, seed=3)
    loud = draw_sounds(loaded, noise(0.1, amplitude=0.1, rate=RATE), config)
    soft = draw_sounds(loaded, noise(0.1, amplitude=0.1, rate=RATE) / 8, config)
    np.testing.assert_allclose(soft.samples, loud.samples / 8, rtol=1e-5)
    plain = load_model(save(tmp_path / "plain", "generate"))
    same = draw_sounds(plain, decode(encode(noise(0.1, amplitude=0.1, rate=RATE) * gain(loud))), config)
    np.testing.assert_allclose(same.samples[:, 400:], loud.samples[:, 400:] * gain(loud), rtol=1e-5)
    silent = draw_sounds(loaded, np.zeros(0), config)
    assert np.array_equal(silent.samples, draw_sounds(plain, np.zeros(0), config).samples)


def gain(drawn: Drawn) -> float:
    """Of the prompt of a sound, to -20 dB."""
    return 0.1 / float(np.sqrt(np.mean(np.square(drawn.samples[0, : drawn.prompt], dtype=np.float64))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0: must be at least 1"),
        ({"count": 5000}, "count=5000: must be at most 1,024"),
        ({"temperature": 0.0}, r"temperature=0\.0: must lie between"),
        ({"top_p": 0.0}, r"top_p=0\.0: must lie above 0"),
        ({"seed": 2**64}, "seed="),
        ({"prompt_seconds": 0.0}, "prompt_seconds=0"),
        ({"prompt": "nowhere.wav"}, r"nowhere\.wav: no such file; check the path$"),
        ({"prompt": __file__}, r"test_generate\.py: not audio"),
    ],
)
def test_nonsense_is_one_line(model: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(model, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_classifier_draws_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained with task=classify; give a model of generate"):
        run(save(tmp_path / "model", "classify"), tmp_path / "out")


@pytest.mark.gpu
def test_on_a_gpu_the_same_seed_gives_the_same_sound(model: Path) -> None:
    loaded = load_model(model, "cuda")
    prompt = noise(0.03, rate=RATE)
    config = GenerateConfig(seconds=0.3, count=3, seed=4)
    first, again = (draw_sounds(loaded, prompt, config).samples for _ in range(2))
    assert np.array_equal(first, again)
