"""The table of benchmarks/music.py: bits per sample by training and context, and what baselines have beside them."""

from typing import Any

from benchmarks import contexts

LOCAL = "local"  # the first phase, among trainings by window
NEVER = "never"  # forgets nothing
Result = dict[str, Any]
Bits = dict[str, list[float]]  # piece -> bits of each block


def mean(result: Result, bits: Bits) -> float:
    """Bits per sample over all blocks."""
    return contexts.mean(result["known"], bits)


def make_table(result: Result) -> list[dict[str, Any]]:
    """A row for each training and context, and each baseline: bits per sample, by piece too, and differences.

    The row of the first phase has ``first_phase`` in place of ``window``; both hold the window's length. Where nothing
    is forgotten, ``from_baselines`` tells how many bits more than each baseline's it takes.
    """
    scores = {name: row.get("scores", {}) for name, row in result["trained"].items()}
    cells = {
        (int(name), context): bits for name, own in scores.items() if name != LOCAL for context, bits in own.items()
    }
    table = [
        {"first_phase": min(result["windows"]), "forgets_after": context, **_means(result, bits)}
        | _from_baselines(result, context, bits)
        for context, bits in scores.get(LOCAL, {}).items()
    ]
    table += [
        {"window": cell[0], "forgets_after": cell[1], **_means(result, bits)}
        | contexts.differences(result["known"], cells, cell)
        | _from_baselines(result, cell[1], bits)
        for cell, bits in sorted(cells.items(), key=lambda entry: entry[0][0])
    ]
    return table + [{"baseline": name, **_means(result, bits)} for name, bits in result["baselines"].items()]


def markdown(result: Result) -> str:
    """The table for people; where there are baselines, also who is better than which."""
    table = result["table"]
    cells = {(row["window"], row["forgets_after"]): row for row in table if "window" in row}
    others: dict[str, dict[str, float]] = {}
    for row in table:
        if "window" not in row:
            others.setdefault(_who(row), {})[row.get("forgets_after", NEVER)] = row["bits_per_sample"]
    lines = [contexts.markdown(cells, "bits_per_sample", None, others)] if cells else []
    verdicts = [
        f"- {_who(row)}: {_verdict(found)} the {name}"
        for row in table
        for name, found in row.get("from_baselines", {}).items()
    ]
    if verdicts:
        lines += ["", "Without forgetting, difference (95 % interval) from the baselines:", "", *verdicts]
    return "\n".join(lines)


def _who(row: dict[str, Any]) -> str:
    if "first_phase" in row:
        return f"{row['first_phase']:,}, first phase"
    return str(row["baseline"]) if "baseline" in row else f"{row['window']:,}"


def _verdict(found: dict[str, float]) -> str:
    interval = f"{found['difference']:+.4f} bits per sample ({found['low']:+.4f} to {found['high']:+.4f})"
    known = "worse than" if found["low"] > 0 else "better than" if found["high"] < 0 else "not shown to differ from"
    return f"{interval}, {known}"


def _means(result: Result, bits: Bits) -> dict[str, Any]:
    """Bits per sample over all, and of each piece."""
    return {"bits_per_sample": round(mean(result, bits), 5), "by_piece": contexts.by_part(result["known"], bits)}


def _from_baselines(result: Result, context: str, bits: Bits) -> dict[str, Any]:
    if context != NEVER or not result["baselines"]:
        return {}
    compared = {name: contexts.difference(result["known"], bits, own) for name, own in result["baselines"].items()}
    return {"from_baselines": compared}
