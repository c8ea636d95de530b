import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from domains.errors import UserError
from domains.genomics.config import GenerateConfig
from domains.genomics.generate import check_request, draw, generate, provenance, sample
from domains.genomics.io import read_records
from domains.genomics.model import load_model
from domains.genomics.tokens import BASES, BOS, encode, reverse_complement
from domains.precision import check_precision, to_precision

CONFIG = GenerateConfig(prompt="ATGGCG", length=40, count=3, seed=1)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model).model


def test_sequences_begin_with_the_prompt_and_say_where_they_come_from(tiny_model, tmp_path):
    out = generate(tiny_model, tmp_path / "sample.fa", CONFIG, device="cpu", progress=False)
    records = list(read_records(out))
    assert [record.name for record in records] == ["sample1", "sample2", "sample3"]
    assert all(record.sequence.startswith(b"ATGGCG") and len(record.sequence) == 46 for record in records)
    assert len({record.sequence for record in records}) == 3
    name, *words = out.read_text().splitlines()[0].split()
    assert name == ">sample1"
    said = dict(word.split("=") for word in words)
    assert said["model"] == load_model(tiny_model).hash
    assert (said["sampled"], said["count"], said["prompt_bases"], said["device"]) == ("40", "3", "6", "cpu")
    assert torch.__version__.startswith(said["torch"])
    assert said["serpentine"]


def test_what_is_there_already_is_not_overwritten(tiny_model, tmp_path):
    out = tmp_path / "sample.fa"
    once = generate(tiny_model, out, CONFIG, device="cpu", progress=False).read_bytes()
    assert generate(tiny_model, out, CONFIG, device="cpu", progress=False).read_bytes() == once
    longer = tmp_path / "longer.fa"
    longer.write_bytes(once + b">mine\nACGT\n")
    genome = tmp_path / "genome.fa"
    genome.write_text(">c1\nACGT\n")
    for there, config in (
        (out, replace(CONFIG, seed=CONFIG.seed + 1)),
        (longer, CONFIG),
        (genome, CONFIG),
        (tmp_path, CONFIG),
    ):
        with pytest.raises(UserError, match=r"is there already, and holds something else; choose another name"):
            generate(tiny_model, there, config, device="cpu", progress=False)
    assert (out.read_bytes(), genome.read_text()) == (once, ">c1\nACGT\n")


def test_a_header_says_what_it_takes_to_get_the_same_again(tiny_model, tmp_path):
    config = replace(CONFIG, temperature=0.123456789, top_k=3)
    first = generate(tiny_model, tmp_path / "a.fa", config, device="cpu", progress=False)
    said = dict(word.split("=") for word in first.read_text().splitlines()[0].split()[1:])
    again = GenerateConfig(
        prompt=said["prompt"],
        length=int(said["sampled"]),
        count=int(said["count"]),
        temperature=float(said["temperature"]),
        top_k=int(said["top_k"]),
        seed=int(said["seed"]),
    )
    second = generate(tiny_model, tmp_path / "b.fa", again, device=said["device"], progress=False)
    assert first.read_bytes() == second.read_bytes()


def test_a_long_prompt_goes_by_its_hash_and_none_is_empty():
    prompt = encode("ACGGT" * 30)
    said = provenance("abc", prompt, CONFIG, "cpu")
    assert f" prompt=sha256:{hashlib.sha256(b'ACGGT' * 30).hexdigest()} prompt_bases=150 " in said
    assert " prompt= prompt_bases=0 " in provenance("abc", prompt[:0], CONFIG, "cpu")


def test_the_seed_decides(tiny_model, tmp_path):
    def text(name, **changes):
        out = generate(tiny_model, tmp_path / name, replace(CONFIG, **changes), device="cpu", progress=False)
        return [record.sequence for record in read_records(out)]

    assert text("a.fa") == text("b.fa")
    assert text("a.fa") != text("c.fa", seed=2)
    assert text("d.fa", prompt="augGCG") == text("a.fa")  # U is T, and case means nothing to the model


@pytest.mark.parametrize("prompt", ["", "ACGTACGT"])
def test_stepping_takes_the_bases_that_the_whole_model_finds_likeliest(model, prompt):
    tokens = encode(prompt)
    greedy = sample(model, tokens, GenerateConfig(length=30, count=2, top_k=1))
    assert (greedy[0] == greedy[1]).all()
    inputs = torch.tensor([[BOS, *tokens.tolist(), *greedy[0].tolist()]])
    with torch.no_grad():
        logits, _ = model(inputs)
    likeliest = logits[0, len(prompt) : -1, BASES].argmax(-1) + BASES.start
    assert likeliest.tolist() == greedy[0].tolist()


def test_a_long_prompt_is_read_in_pieces(model, monkeypatch):
    tokens = encode("ACGGT" * 30)
    whole = sample(model, tokens, CONFIG)
    monkeypatch.setattr("domains.genomics.generate._PREFILL", 7)
    assert (sample(model, tokens, CONFIG) == whole).all()


def test_draws_follow_temperature_and_top_k():
    logits = torch.full((20_000, 16), 9.0)
    logits[:, BASES] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    random = torch.Generator().manual_seed(0)

    def shares(**settings):
        drawn = draw(logits, settings.get("temperature", 1.0), settings.get("top_k", 4), random)
        return np.bincount(drawn.numpy() - BASES.start, minlength=4) / len(drawn)

    assert shares() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)
    assert shares(top_k=2) == pytest.approx([0, 0, 3 / 7, 4 / 7], abs=0.015)
    cold = np.array([1, 4, 9, 16]) / 30
    assert shares(temperature=0.5) == pytest.approx(cold, abs=0.015)
    assert shares(temperature=1e-3) == pytest.approx([0, 0, 0, 1])


def test_a_trained_model_writes_what_it_has_read(model, tiny):
    """Base pairs of the sample occur about as often as in the genome; an untrained model is far from it."""
    drawn = sample(model, np.empty(0, np.uint8), GenerateConfig(length=400, count=8))

    def pairs(tokens):
        codes = (tokens[..., :-1].astype(int) - 7) * 4 + tokens[..., 1:] - 7
        return np.bincount(codes.ravel(), minlength=16) / codes.size

    genome = np.stack([tiny.tokens("c5"), reverse_complement(tiny.tokens("c5"))])
    assert np.abs(pairs(drawn) - pairs(genome)).sum() < 0.5 * np.abs(1 / 16 - pairs(genome)).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "ACGTNA"}, "prompt: 'N' at base 5 is no known base"),
        ({"prompt": "ACGR"}, "prompt: 'R' at base 4 is no known base"),
        ({"prompt": "MEEPQ"}, "prompt: 'E' at base 2 .* looks like protein"),
        ({"prompt": "AC GT"}, "prompt: ' ' at base 3 is no nucleotide code; give A, C, G and T alone"),
        ({"prompt": "123"}, "prompt: '1' at base 1 is no nucleotide code; give A, C, G and T alone"),
        ({"prompt": "ACé"}, "prompt: 'é' at base 3 is no nucleotide code"),
        ({"seed": 10**23}, "seed=1(0){23}: must lie between"),
        ({"count": 10**11}, "count=1(0){11}: must be at most 10,000"),
        ({"length": 10**12}, "length=1(0){12}: must be at most 333,333,333"),
        ({"temperature": 1e-320}, "temperature=1e-320: must lie between"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"length": 0}, "length=0"),
        ({"count": 0}, "count=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 5}, "top_k=5"),
    ],
)
def test_a_request_without_sense_writes_nothing(tiny_model, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        generate(tiny_model, tmp_path / "sample.fa", replace(CONFIG, **changes), progress=False)
    assert not list(tmp_path.iterdir())


def test_a_request_with_sense_gives_the_tokens_of_its_prompt():
    assert check_request(CONFIG).tolist() == encode("ATGGCG").tolist()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_weights_in_fewer_bits_say_nearly_the_same(tiny_model, precision):
    """Stepping and the whole agree, and both are near the model in float32; the state stays in float32."""
    exact, low = load_model(tiny_model).model, to_precision(load_model(tiny_model).causal, precision)
    tokens = torch.from_numpy(encode("ACGTTGCA" * 12).astype(np.int64))[None]
    with torch.no_grad():
        want, _ = exact(tokens)
        got, state = low(tokens)
        assert (got.float() - want).norm() < 0.03 * want.norm()
        assert not torch.equal(got.float(), want)
        state, parts = low.init_state(1), []
        for t in range(tokens.shape[1]):
            logits, state = low.step(tokens[:, t], state)
            parts.append(logits.float())
    assert (torch.stack(parts, 1) - got.float()).norm() < 0.03 * want.norm()
    assert all(t.dtype == torch.float32 for name, t in state.items() if "seq_idx" not in name)


def test_precision_is_named_in_the_header_and_checked(tiny_model, tmp_path):
    out = generate(tiny_model, tmp_path / "a.fa", replace(CONFIG, precision="int8"), device="cpu", progress=False)
    assert "precision=int8" in out.read_text().splitlines()[0]
    with pytest.raises(UserError, match="precision=fp4: must be one of float32, bf16, int8"):
        check_request(replace(CONFIG, precision="fp4"))
    with pytest.raises(UserError, match="int8 is for CPUs"):
        check_precision("int8", torch.device("cuda"))
