"""Scores as tables for people."""

from collections.abc import Mapping, Sequence

import numpy as np

from domains.tables import aligned
from domains.timeseries.report import TAILS, Scores

_STEPS_SHOWN = 12


def lines_of(scores: Mapping[str, Scores], unit: str) -> list[str]:
    """The tables of an evaluation, for people: a line each."""
    measured = any("qlike_target" in one.overall for one in scores.values())  # the series is a volatility
    qlike = [("QLIKE", "qlike", ".4f")]
    if measured:
        qlike = [("QLIKE", "qlike_target", ".4f"), ("p", "qlike_target_p", ".3f")]
    columns: list[tuple[str, str, str]] = [
        ("CRPS", "crps", ".4f"),
        ("p", "crps_p", ".3f"),
        ("WQL", "wql", ".4f"),
        ("MASE", "mase", ".4f"),
        *qlike,
        ("in 80%", "coverage_80", ".1%"),
        ("in 95%", "coverage_95", ".1%"),
        ("direction", "direction", ".1%"),
        ("from", "direction_low", ".1%"),
        ("to", "direction_high", ".1%"),
    ]
    if any("rank_ic" in one.overall for one in scores.values()):
        columns.append(("rank IC", "rank_ic", ".3f"))
    risks = [
        (f"{title} {tail:.0%}", f"var_{100 * tail:.0f}_{key}", form)
        for tail in TAILS
        for title, key, form in (
            ("hits", "hits", ".2%"),
            ("Kupiec p", "kupiec_p", ".3f"),
            ("cond. p", "christoffersen_p", ".3f"),
            ("tick", "tick", ".5f"),
        )
    ]
    risks = [*risks[:4], ("p", "tick_5_p", ".3f"), *risks[4:], ("p", "tick_1_p", ".3f")]
    lines = [f"scores in {unit}; p: could the difference in CRPS from the first line be chance (by day)", ""]
    lines += _table(scores, columns)
    lines += _bounce(next(iter(scores.values())).overall)
    if measured:
        lines += ["", "QLIKE: of the variance V itself and its expectation F, V / F - log(V / F) - 1"]
    else:
        lines += [
            "",
            "value at risk: hits and their tests one step ahead (of several series pooled: rejected too soon); tick",
            "loss at all steps; p: could its difference from the first line be chance",
            "",
        ]
        lines += _table(scores, risks)
    lines += _by_step(scores)
    partial = {name: one.covered for name, one in scores.items() if one.covered < 1}
    lines += [f"{name}: of {share:.0%} of the outcomes alone" for name, share in partial.items()]
    return lines


def _bounce(numbers: Mapping[str, float]) -> list[str]:
    """What signs are to be compared with, beside a coin."""
    if np.isnan(numbers.get("bounce", np.nan)):
        return []
    share, low, high = (f"{numbers[name]:.1%}" for name in ("bounce", "bounce_low", "bounce_high"))
    what = "direction: signs foretold one step ahead, with the 95% interval"
    return ["", f"{what}; by the bounce (each move turns): {share}, {low} to {high}"]


def _by_step(scores: Mapping[str, Scores]) -> list[str]:
    """CRPS by how far is looked ahead; of many steps some, from the first to the last."""
    steps = len(next(iter(scores.values())).by_step["crps"])
    if steps == 1:
        return []
    shown = np.unique(np.linspace(0, steps - 1, _STEPS_SHOWN).round().astype(int)).tolist()
    cells = [["", *(str(h + 1) for h in shown)]]
    cells += [[name, *(_cell(one.by_step["crps"][h], ".4f") for h in shown)] for name, one in scores.items()]
    return ["", "CRPS by steps ahead", "", *aligned(cells)]


def _table(scores: Mapping[str, Scores], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    cells = [["", *(title for title, _, _ in columns)]]
    for name, one in scores.items():
        cells.append([name, *(_cell(one.overall.get(key), form) for _, key, form in columns)])
    return aligned(cells)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None or np.isnan(value) else format(value, form)
