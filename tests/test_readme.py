"""README and RESULTS.md say what the committed results say, and name commands and files that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from pipelines.audio import AUDIO
from pipelines.genomics import GENOMICS
from pipelines.timeseries import TIMESERIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
TABLES = (ROOT / "benchmarks" / "RESULTS.md").read_text()


@pytest.mark.parametrize("name", ["demo_cpu", "umaydis_h100"])
def test_bits_per_base(name: str) -> None:
    evaluation = json.loads((RESULTS / f"{name}.json").read_text())["evaluation"]
    total = evaluation["rows"][0]
    orders = evaluation["markov"]["bits_per_base_by_order"]
    for bits in (total["model"], total["markov"], orders[3], orders[8]):
        assert f"{bits:.4f}" in TABLES


def test_what_is_put_first() -> None:
    """The README's table of numbers against the results that they are of."""
    numbers = README[README.index("## Numbers") : README.index("## Limits")]

    def result(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text())

    genes = {
        (row["task"], row["start"], row["labels"]): row["test"] for row in result("umaydis_annotation_h200")["rows"]
    }
    bases = {one["name"]: one["f1"] for one in genes["bases", "causal", 1.0]["classes"]}
    hidden = result("umaydis_mlm_h200")["evaluation"]["rows"][0]["bits"]
    voice = result("prompts_h200")["evaluation"]["rows"][0]
    speeds = (
        result("umaydis_h200")["metrics"]["train/bases_per_second"],
        result("prompts_h200")["trained"]["samples_per_second"],
    )
    for speed in speeds:
        assert f"{speed / 1e6:.2f} million" in numbers, speed
    for value, digits in (
        (hidden["model"], 4),
        (hidden["two-sided"], 4),
        (genes["windows", "causal", 1.0]["all"]["auc"], 3),
        (genes["windows", "causal", 0.01]["all"]["auc"], 3),
        (genes["windows", "scratch", 0.01]["all"]["auc"], 3),
        (genes["context", "causal", 1.0]["all"]["auc"], 3),
        (bases["CDS"], 3),
        (bases["intron"], 3),
        (voice["model"], 3),
        (voice["linear"], 3),
        (voice["context"], 3),
    ):
        assert f"{value:.{digits}f}".lstrip("0") in numbers, value


def rounded(value: float) -> str:
    """To three digits, as the prose has it."""
    return f"{float(f'{value:.3g}'):,.0f}"


def test_speeds_that_are_put_first() -> None:
    """Those of short sequences, of decoding and of generate, in the README and in RESULTS."""
    numbers = README[README.index("## Numbers") : README.index("## Limits")]
    rows = {
        (row["case"], row["batch"], row["mode"], row.get("variant"), row["impl"], row.get("mixer")): row
        for row in json.loads((RESULTS / "short_h200.json").read_text())["rows"]
        if row["length"] in (1, 2048)
    }
    modes = {"eager": "eager", "one thread": "eager, backward in the calling thread", "graph": "CUDA graph"}
    modes["compile"] = "torch.compile"
    cells = [[cell.strip() for cell in line.replace("*", "").split("|")[1:-1]] for line in TABLES.splitlines()]
    for mixer, title in (("mamba2", "Mamba-2, 2,048 tokens"), ("mamba1", "Mamba-1, 2,048 tokens")):
        at = next(i for i, row in enumerate(cells) if row[:1] == [title])
        for shown, (mode, words) in zip(cells[at : at + len(modes)], modes.items(), strict=True):
            row = rows[f"{mixer}_layer", 1, mode, None, "serpentine", None]
            assert shown[1] == words
            for value, cell in ((row["fwd_ms"], shown[2]), (row["fwdbwd_ms"], shown[4])):
                assert cell == f"{value:.{3 if value < 1 else 2}f}", (title, mode)
    profiles = json.loads((RESULTS / "layer_profile_h200.json").read_text())["rows"]
    for mixer in ("mamba2", "mamba1"):
        kernels = [row["kernels_ms"] for row in profiles if row["case"] == f"{mixer}_layer"]
        assert f"| {kernels[0]:.3f}, {kernels[1]:.3f} |" in TABLES, mixer
    for batch, variant, title in (
        (1, None, "Mamba-2"),
        (1, "no pdl", "Mamba-2, no kernel starts early"),
        (8, None, "Mamba-2"),
        (64, None, "Mamba-2"),
        (64, "bf16 state", "Mamba-2, state in bf16 (`state.scans_in(torch.bfloat16)`)"),
    ):
        step = rows["decode", batch, "graph", variant, "serpentine", "mamba2"]["fwd_ms"]
        assert f"| {title} | {batch} | {step:.3f} | {round(1e3 * batch / step, -1):,.0f} |" in TABLES, title
    for mode, digits in (("eager", 2), ("graph", 3)):
        for impl in ("serpentine", "mamba_ssm"):
            value = rows["mamba2_layer", 1, mode, None, impl, None]["fwdbwd_ms"]
            assert f"{value:.{digits}f}".lstrip("0") in numbers, (mode, impl)
    for batch in (1, 64):
        step = rows["decode", batch, "graph", None, "serpentine", "mamba2"]["fwd_ms"]
        assert f"{step:.3f}".lstrip("0") in numbers
        assert rounded(1e3 * batch / step) in numbers, batch
    for row in json.loads((RESULTS / "generation_h200.json").read_text())["rows"]:
        assert rounded(row["bases_per_second"]) in TABLES, row["count"]


def test_figures_of_sounds() -> None:
    def result(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text())

    sounds = TABLES[TABLES.index("## Sounds") : TABLES.index("## Forecasts")]
    runs = [result(name)["recipes"]["raw"] for name in ("drums_h200", "drums_h200_first")]
    seeds = [run["balanced_accuracy"] for found in runs for run in found["methods"]["model"]]
    mfcc = {row["recipe"]: row for row in result("mfcc_cpu")["rows"]}
    numbers = README[README.index("## Numbers") : README.index("## Limits")]
    for value in (sum(seeds) / len(seeds), min(seeds), max(seeds), mfcc["drums"]["balanced_accuracy"]):
        assert f"{value:.3f}"[1:] in numbers, value
        assert f"{value:.3f}"[1:] in sounds, value
    for value in (*(found["balanced_accuracy"] for found in runs), *seeds):
        assert f"| {value:.3f}" in sounds or f", {value:.3f}" in sounds, value
    for row in result("music_h200")["table"]:
        assert f"{row['bits_per_sample']:.4f}" in sounds, row
    for row in result("prompts_h200")["evaluation"]["by_context"]:
        assert f"{row['model']:.4f} | {row['linear']:.4f} | {row['context']:.4f}" in sounds, row
    drawn = result("audio_h200")["rows"][0]["samples per second"]
    for name in ("draw 64", "train", "train packed"):
        assert f"{drawn[name]:,.0f}" in sounds, name


def test_the_table_of_the_demo() -> None:
    for row in json.loads((RESULTS / "demo_cpu.json").read_text())["evaluation"]["rows"]:
        cells = (row["name"], f"{row['bases']:,}", f"{row['model']:.4f}", f"{row['markov']:.4f}")
        assert re.search(r"\s+".join(re.escape(cell) for cell in cells), README)


def test_cpu_speed() -> None:
    result = json.loads((RESULTS / "cpu.json").read_text())
    for row in result["rows"]:
        assert f"{row['serpentine_tokens_per_second']:,}" in TABLES
        assert f"{row['ratio']:.2f}" in TABLES


def test_kernel_tables() -> None:
    """Every kernels_<gpu>.json has its block, made from it; no block stands without its file."""
    results = {path.stem: path for path in RESULTS.glob("kernels_*.json")}
    assert set(re.findall(r"<!-- (kernels_\w+) -->", TABLES)) == results.keys()
    for path in results.values():
        assert report.block(json.loads(path.read_text()), f"results/{path.name}") in TABLES, path.name


def test_results_say_where_and_from_what() -> None:
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert re.fullmatch("[0-9a-f]{40}", result["commit"]), path.name
        assert {"cpu", "device"} <= result["hardware"].keys()


def test_every_command_is_shown_and_none_that_there_is_not() -> None:
    """A command that all domains have is shown with one of them at least."""
    shown: dict[str, set[str]] = {}
    for name, word in re.findall(r"python -m pipelines\.(\w+) ([a-z-]+)", README):
        shown.setdefault(name, set()).add(word)
    words = {domain.name: set(domain.words) for domain in (AUDIO, GENOMICS, TIMESERIES)}
    assert shown.keys() == words.keys()
    assert set.union(*shown.values()) == set.union(*words.values())
    for name, own in words.items():
        assert own - set.intersection(*words.values()) <= shown[name] <= own


def test_no_placeholder_is_left() -> None:
    pattern = r"@[A-Z0-9_]+@|\b(?:TODO|TBD|FIXME|XXX)\b|\?\?"
    assert re.findall(pattern, "lost @SP500@ bits, TBD") == ["@SP500@", "TBD"]
    notes = ROOT / "benchmarks" / "NOTES.md", ROOT / "benchmarks" / "RESULTS.md"
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *notes):
        assert re.findall(pattern, path.read_text()) == [], path.name


def test_links_exist() -> None:
    for folder, text in ((ROOT, README), (ROOT / "benchmarks", TABLES)):
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (folder / link).exists(), link


def test_every_result_is_spoken_of() -> None:
    linked = set(re.findall(r"results/([\w.-]+\.json)", README + TABLES))
    assert {path.name for path in RESULTS.glob("*.json")} <= linked
