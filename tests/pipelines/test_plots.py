"""Plots show what they were given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.plots import (
    by_context,
    by_part,
    by_step,
    confusion_plot,
    coverage_plot,
    fan_chart,
    pit_histogram,
    save_figure,
    spectrogram_plot,
    training_curve,
)

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


def test_a_fan_chart_shows_bands_and_what_came() -> None:
    times, centre, observed = [1, 2, 3], [0.0, 0.1, 0.0], [0.5, float("nan"), -2.0]
    bands = {"95%": ([-2.0] * 3, [2.0] * 3), "40%": ([-0.5] * 3, [0.5] * 3)}
    figure = fan_chart(times, observed, bands, centre, label="per cent", title="SP500")
    axes = figure.axes[0]
    assert len(axes.collections) == 2
    assert axes.collections[0].get_datalim(axes.transData).height == 4.0  # the widest first, the others upon it
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), centre)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), observed)
    assert (axes.get_ylabel(), axes.get_title()) == ("per cent", "SP500")


def test_kept_against_promised_coverage() -> None:
    figure = coverage_plot([0.8, 0.95], {"model": [0.81, 0.93], "naive": [0.7, 0.99]})
    diagonal, model, naive = figure.axes[0].lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(model.get_xydata(), [[0.8, 0.81], [0.95, 0.93]])
    assert naive.get_label() == "naive"


def test_a_pit_histogram_is_flat_at_1_when_right() -> None:
    figure = pit_histogram({"right": [5, 5, 5, 5], "wide": [0, 10, 10, 0], "nothing": [0, 0, 0, 0]})
    right, wide, nothing = (patch.get_data().values for patch in figure.axes[0].patches)
    np.testing.assert_array_equal(right, [1, 1, 1, 1])
    np.testing.assert_array_equal(wide, [0, 2, 2, 0])
    np.testing.assert_array_equal(nothing, [0, 0, 0, 0])


@pytest.mark.parametrize("steps", [2, 48])
def test_measures_by_step(tmp_path: Path, steps: int) -> None:
    figure = by_step(list(range(1, steps + 1)), {"model": [0.5] * steps}, label="CRPS (per cent)")
    assert len(figure.axes[0].lines[0].get_xydata()) == steps
    assert figure.axes[0].get_ylabel() == "CRPS (per cent)"
    assert save_figure(figure, tmp_path / "steps.png").stat().st_size > 1000


def test_a_confusion_plot_shows_counts_by_true_and_told_label(tmp_path: Path) -> None:
    figure = confusion_plot(["kick", "snare", "hat"], [[3, 1, 0], [0, 0, 0], [2, 0, 1234]], title="model")
    axes = figure.axes[0]
    told = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert told == {(0, 0): "3", (0, 1): "1", (2, 0): "2", (2, 2): "1,234"}
    np.testing.assert_allclose(axes.images[0].get_array()[0], [0.75, 0.25, 0.0])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["kick", "snare", "hat"]
    assert save_figure(figure, tmp_path / "confusion.png").stat().st_size > 1000


def test_a_measure_by_context_has_a_logarithmic_axis() -> None:
    figure = by_context([1024, 65536], {"model": [3.6, 3.5], "linear": [3.9, 3.9]}, label="bits", x="samples")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1,024", "65,536"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1024, 3.6], [65536, 3.5]])


@pytest.mark.parametrize("length", [30, 8000])
def test_a_spectrogram_is_brightest_where_the_tone_is(length: int) -> None:
    figure = spectrogram_plot(0.5 * np.sin(2 * np.pi * 2000 * np.arange(length) / 16000), 16000, title="a tone")
    image = figure.axes[1].images[0]
    assert figure.axes[0].get_title() == "a tone"
    picture = np.asarray(image.get_array())[::-1]  # low frequencies first
    hertz = picture.mean(axis=1).argmax() / (len(picture) - 1) * 8000
    assert abs(hertz - 2000) <= 8000 / (len(picture) - 1)
