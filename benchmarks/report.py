"""Results of the kernel benchmark: one JSON that appears whole or not at all, and the README's table made from it.

Nothing here imports PyTorch.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]

CASES = {
    "ssd": "SSD",
    "selective_scan": "S6 scan",
    "conv": "convolution",
    "norm": "gated norm",
    "mamba2_layer": "Mamba-2 layer",
    "mamba1_layer": "Mamba-1 layer",
}
MIXERS = {"mamba1": "Mamba-1", "mamba2": "Mamba-2"}


def key(row: Row) -> tuple[Any, ...]:
    """What makes a row the same measurement."""
    names = ("impl", "case", "mixer", "length", "batch", "mode")
    variant = row.get("variant")
    return (*[row.get(name) for name in names], *([] if variant is None else [variant]))


def _identity(result: Result) -> tuple[Any, ...]:
    """What rows must share to stand in one table; mamba_ssm is left out, as a run may go without it."""
    versions = {name: version for name, version in result["versions"].items() if name != "mamba_ssm"}
    return result["commit"], result["hardware"].get("gpu"), versions, result.get("d_model")


def merge(old: Result | None, new: Result) -> Result:
    """Put new rows, and new rows of ``long``, into an earlier result of the same commit, GPU, versions and width.

    A result of anything else is replaced as a whole: rows of two commits do not share a table. A row that was skipped
    for time does not push out one that was measured.
    """
    if old is None or _identity(old) != _identity(new):
        return dict(new)
    rows = {key(row): row for row in old.get("rows", [])}
    for row in new.get("rows", []):
        if "skipped" not in row.get("error", "") or key(row) not in rows:
            rows[key(row)] = row
    done = {(row["case"], row["length"]) for row in new.get("long", [])}
    long = [row for row in old.get("long", []) if (row["case"], row["length"]) not in done] + new.get("long", [])
    merged = {**old, **new, "versions": old["versions"] | new["versions"]}
    return merged | {"rows": list(rows.values()), "long": long}


def _order(row: Row) -> tuple[Any, ...]:
    names = [*CASES, "decode", "first_call"]
    place = names.index(row["case"]) if row["case"] in names else len(names)
    return (
        place, row.get("mixer") or "", row["batch"], row["length"], row["mode"], row["impl"], row.get("variant") or ""
    )  # fmt: skip


def read(path: Path) -> Result | None:
    """An earlier result, None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, new: Result) -> None:
    """Merge into the file; it holds the old result or the new one, never a part."""
    result = merge(read(path), new)
    result["rows"] = sorted(result["rows"], key=_order)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def number(value: float | None) -> str:
    """Milliseconds in three digits or so."""
    if value is None:
        return "-"
    digits = 3 if value < 0.0995 else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


class _Table:
    """Cells for one result; what fails or wants a remark collects its footnotes."""

    def __init__(self, result: Result):
        self.rows = {key(row): row for row in result["rows"]}
        self.published = {key(row): row for row in result.get("notes", {}).get("rows", [])}
        self.source = result.get("notes", {}).get("source")
        self.footnotes: list[str] = []

    def find(self, impl: str, case: str, batch: int, length: int, mode: str = "eager", mixer: str | None = None) -> Row:
        return self.rows.get((impl, case, mixer, length, batch, mode), {})

    def times(self, row: Row) -> str:
        """forward / forward and backward, in ms."""
        if "error" in row:
            return self.remark(row["error"], "failed")
        if not row:
            return "-"
        if row["fwdbwd_ms"] is None:
            return number(row["fwd_ms"])
        return f"{number(row['fwd_ms'])} / {number(row['fwdbwd_ms'])}" + self.remark(row.get("note"))

    def remark(self, text: str | None, word: str = "") -> str:
        """``word`` with the number of its footnote."""
        if text is None:
            return word
        if text not in self.footnotes:
            self.footnotes.append(text)
        return f"{word}<sup>{self.footnotes.index(text) + 1}</sup>"

    def memory(self, row: Row) -> str:
        value = row.get("extra_peak_mib")
        return "-" if value is None else f"{value:,.0f}"

    def cases(self) -> list[str]:
        """Operations and layers: one line a case and length that some implementation of ours or theirs answered."""
        lines = [
            "| forward / forward + backward, ms | tokens | Serpentine | MiB | mamba_ssm | MiB "
            "| its CUDA kernels, H100* | attention | floor |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        shapes = sorted({(row["batch"], row["length"]) for row in self.rows.values() if row["case"] in CASES})
        for case, name in CASES.items():
            for batch, length in shapes:
                sides = {
                    impl: self.find(impl, case, batch, length)
                    for impl in ("serpentine", "mamba_ssm", "attention", "floor")
                }
                if not sides["serpentine"] and not sides["mamba_ssm"]:
                    continue
                published = self.published.get(("mamba_ssm", case, None, length, batch, "eager"), {})
                ours, theirs = sides["serpentine"], sides["mamba_ssm"]
                cells = [name, f"{batch} x {length:,}" if batch > 1 else f"{length:,}"]
                cells += [self.times(ours), self.memory(ours), self.times(theirs), self.memory(theirs)]
                cells += [self.times(published), self.times(sides["attention"]), self.times(sides["floor"])]
                lines.append(f"| {' | '.join(cells)} |")
        return lines

    def decode(self) -> list[str]:
        """One token through the stack."""
        found = sorted({(row["mixer"], row["batch"]) for row in self.rows.values() if row["case"] == "decode"})
        if not found:
            return []
        lines = [
            "| one token through 24 layers, ms | batch | Serpentine, graph | eager | mamba_ssm, graph | eager "
            "| its CUDA kernels, graph, H100* | floor |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for mixer, batch in found:
            cells = [MIXERS[mixer], str(batch)]
            for impl in ("serpentine", "mamba_ssm"):
                cells += [
                    self.times(self.find(impl, "decode", batch, 1, mode, mixer))
                    + self.remark(self.find(impl, "decode", batch, 1, mode, mixer).get("note"))
                    for mode in ("graph", "eager")
                ]
            cells.append(self.times(self.published.get(("mamba_ssm", "decode", mixer, 1, batch, "graph"), {})))
            cells.append(number(self.find("floor", "decode", batch, 1, "eager", mixer).get("fwd_ms")))
            lines.append(f"| {' | '.join(cells)} |")
        return ["", *lines]

    def first_calls(self) -> list[str]:
        """Sentences on fresh processes."""
        parts = []
        for row in sorted((row for row in self.rows.values() if row["case"] == "first_call"), key=_order):
            side = {"serpentine": "Serpentine"}.get(row["impl"], row["impl"])
            seconds = "failed" if row["fwdbwd_ms"] is None else f"{row['fwdbwd_ms'] / 1e3:.1f} s"
            parts.append(f"{MIXERS[row['mixer']]} layer {side} {self.remark(row.get('error'), seconds)}")
        if not parts:
            return []
        return [
            "",
            f"First call (import to the end of forward + backward, fresh process, caches empty): {'; '.join(parts)}.",
        ]


def long_lines(result: Result) -> list[str]:
    """A sentence for each length on the check of long sequences."""
    lines = []
    for length in sorted({row["length"] for row in result.get("long", [])}):
        found = [row for row in result["long"] if row["length"] == length]
        rows = [row for row in found if "skipped" not in row]
        skipped = sorted({row["case"] for row in found if "skipped" in row})
        measured = [row for row in rows if row["error"] is not None]
        failed = sorted({row["case"] for row in rows if row["error"] is None or not row["error"] <= row["tolerance"]})
        text = f"At {length:,} tokens against the same call in segments that pass state"
        if measured:
            worst = max(measured, key=lambda row: row["error"] / row["tolerance"])
            text += f", {len(measured)} outputs and gradients: largest relative error {worst['error']:.1e}"
            text += f" ({worst['case']}, {worst['output']}; tolerance {worst['tolerance']:.0e})"
        text += f"; no memory for gradients: {', '.join(skipped)}" if skipped else ""
        lines.append(text + (f"; failed: {', '.join(failed)}." if failed else "."))
    return ["", *lines] if lines else []


def markdown(result: Result, link: str) -> str:
    """The README's block: table, decoding, first calls, long sequences, footnotes."""
    table = _Table(result)
    gpu = result["hardware"].get("gpu", result["hardware"]["device"])
    versions = result["versions"]
    body = [*table.cases(), *table.decode(), *table.first_calls(), *long_lines(result)]
    notes = [f"{i}. {text}" for i, text in enumerate(table.footnotes, 1)]
    head = (
        f"One {gpu}, bf16, d_model {result['d_model']:,}, PyTorch {versions['torch']}, commit {result['commit'][:10]} "
        f"(`python benchmarks/kernels.py`, [{Path(link).name}]({link})). MiB: extra peak memory of forward + backward."
    )
    star = [f"\\* {table.source}; the other columns are one run on this GPU."] if table.source else []
    return "\n".join([head, "", *body, "", *star, *(["", *notes] if notes else [])])


def block(result: Result, link: str) -> str:
    """:func:`markdown` between the markers by which a README is brought up to date."""
    name = Path(link).stem
    return f"<!-- {name} -->\n{markdown(result, link)}\n<!-- /{name} -->"


def replace_block(text: str, result: Result, link: str) -> str:
    """A README with the block of this result brought up to date.

    Raises:
        ValueError: it has no markers of that name.
    """
    name = re.escape(Path(link).stem)
    pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no block <!-- {Path(link).stem} --> ... <!-- /{Path(link).stem} --> to replace")
    return pattern.sub(lambda _: block(result, link), text)
