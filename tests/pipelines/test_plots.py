"""Plots show what they were given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.plots import by_part, save_figure, training_curve

ROWS: list[dict[str, Any]] = [
    {"step": 1, "time": 0.0, "t": 2.0},
    {"step": 2, "time": 1.0, "t": None},
    {"step": 3, "time": 2.0, "t": 1.8, "v": 1.9},
]


def test_a_training_curve_leaves_gaps_out() -> None:
    figure = training_curve(ROWS, training="t", validation="v", label="bits per base")
    training, validation = figure.axes[0].lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 2.0], [3, 1.8]])
    np.testing.assert_array_equal(validation.get_xydata(), [[3, 1.9]])
    assert figure.axes[0].get_ylabel() == "bits per base"


def test_a_training_curve_without_validation_is_drawn(tmp_path: Path) -> None:
    figure = training_curve(ROWS[:1], training="t", validation="v", label="loss")
    assert len(figure.axes[0].lines) == 1
    assert save_figure(figure, tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("parts", [1, 3, 60])
def test_measures_by_part(tmp_path: Path, parts: int) -> None:
    names = [f"chr{i}" for i in range(parts)]
    figure = by_part(names, {"model": [1.9] * parts, "Markov 8": [1.93] * parts}, label="bits per base", limit=40)
    axes = figure.axes[0]
    shown = min(parts, 40)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names[:shown]
    assert [len(line.get_xydata()) for line in axes.lines] == [shown, shown]
    assert ("the first 40 of 60" in axes.get_title()) == (parts == 60)
    assert save_figure(figure, tmp_path / "parts.png").stat().st_size > 1000
