"""The forecaster, and its model folder."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from domains.errors import UserError
from domains.timeseries.clock import HOURS_A_WEEK
from domains.timeseries.config import LEVELS, DataConfig, HeadConfig, TrainConfig
from domains.timeseries.history import cumulated
from domains.timeseries.model import Forecaster, Shape, build_model, parameter_count
from domains.timeseries.scaler import Scaler
from domains.timeseries.splits import make_splits, splits_from_dict
from domains.timeseries.store import SeriesStore, prepare_store
from domains.timeseries.stream import Said, forecasts, walk_series
from domains.timeseries.train import train
from domains.timeseries.trained import FILES, Calibration, load_model, read_record
from tests.timeseries.panels import COVARIATES, panel, panel_config, tiny_backbone

HEADS = [
    HeadConfig(),
    HeadConfig(loss="crps"),
    HeadConfig(mean=False),
    HeadConfig(kind="mixture"),
    HeadConfig(kind="quantiles"),
    HeadConfig(kind="normal"),
    HeadConfig(kind="normal", loss="qlike", mean=False),
]
SHAPES = [Shape((), (), (), 1), Shape(("volume",), ("holiday",), ("size",), 3)]


def model_of(shape: Shape, head: HeadConfig | None = None, *, trained: bool = True) -> Forecaster:
    """With outputs that say something, as after training."""
    torch.manual_seed(0)
    model = Forecaster(shape, tiny_backbone(), head or HeadConfig())
    if trained:
        for weight in (model.out.weight, model.out.bias, model.direct.weight):
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def rows_of(shape: Shape, *size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(*size, shape.features)
    cells = torch.randint(HOURS_A_WEEK, (*size, shape.horizon))
    return inputs, cells, torch.randn(*size, shape.horizon, shape.known)


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "covariates"])
@pytest.mark.parametrize("cuts", [[1], [30], [7, 8, 40]])
@torch.no_grad()
def test_any_split_says_the_same(shape: Shape, cuts: list[int]) -> None:
    model = model_of(shape)
    rows = rows_of(shape, 2, 50)
    whole, end = model(*rows)
    assert whole.shape == (2, 50, shape.horizon, model.head.size)
    parts, state = [], None
    for start, stop in zip([0, *cuts], [*cuts, 50], strict=True):
        raw, state = model(*(row[:, start:stop] for row in rows), state)
        parts.append(raw)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert state is not None
    assert all(torch.allclose(state[name], end[name], atol=1e-5) for name in end)


@torch.no_grad()
def test_what_came_before_matters() -> None:
    """Otherwise the test above says nothing."""
    model = model_of(SHAPES[0])
    rows = rows_of(SHAPES[0], 1, 50)
    whole, _ = model(*rows)
    alone, _ = model(*(row[:, 30:] for row in rows))
    assert not torch.allclose(alone, whole[:, 30:], atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "covariates"])
@torch.no_grad()
def test_packed_pieces_say_what_they_say_apart(shape: Shape) -> None:
    model = model_of(shape)
    rows = rows_of(shape, 1, 40)
    pieces = [slice(0, 13), slice(13, 14), slice(14, 33)]
    index = torch.full((1, 40), -1)
    for number, piece in enumerate(pieces):
        index[0, piece] = number
    packed, _ = model(*rows, seq_idx=index)
    for piece in pieces:
        apart, _ = model(*(row[:, piece] for row in rows))
        assert torch.allclose(packed[:, piece], apart, atol=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{head.kind}-{head.loss}-{head.mean}")
@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "covariates"])
@torch.no_grad()
def test_the_first_forecast_is_as_wide_as_expected(shape: Shape, head: HeadConfig) -> None:
    """A distribution of variance about 1, times the spread that running means and the clock expect."""
    model = model_of(shape, head, trained=False)
    raw, _ = model(*rows_of(shape, 1, 9))
    assert (raw == 0).all()
    spread = np.random.default_rng(0).uniform(0.5, 2.0, (9, shape.horizon))
    found = forecasts(model, Said(raw[0], spread, np.ones(9, bool)), np.array(LEVELS))
    assert np.allclose(found.mean, 0, atol=1e-9)
    assert np.allclose(found.variance / spread**2, 1, atol=0.06)
    assert np.allclose(found.quantiles[..., ::-1], -found.quantiles, atol=1e-9)
    assert (np.diff(found.quantiles) > 0).all()
    widest = found.quantiles[..., -1] / spread  # of a normal distribution 2.33; mixtures have longer tails
    assert ((widest > 2.3) & (widest < 2.9)).all()


def test_sizes_that_do_not_fit_are_told_in_one_line() -> None:
    config = TrainConfig(backbone=replace(tiny_backbone(), pattern=["mamba9"]))
    with pytest.raises(UserError, match=r"^here: backbone\.pattern names 'mamba9'"):
        build_model(SHAPES[0], config, "here")
    with pytest.raises(UserError, match=r"^config: head\.kind=cauchy: must be one of student_t, mixture"):
        build_model(SHAPES[0], TrainConfig(backbone=tiny_backbone(), head=HeadConfig(kind="cauchy")))


def test_parameters_are_counted() -> None:
    model = model_of(Shape((), (), (), 1))
    assert parameter_count(model) == sum(weight.numel() for weight in model.parameters())


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def test_a_model_folder_comes_back_whole(trained: Path, store: SeriesStore) -> None:
    assert {path.name for path in trained.iterdir()} == set(FILES)
    assert {path.suffix for path in trained.iterdir()} == {".safetensors", ".json", ".yaml"}
    loaded = load_model(trained)
    assert not loaded.model.training
    assert loaded.fingerprint == store.fingerprint
    assert loaded.series == tuple(store.names)
    assert (loaded.scaler.kind, loaded.scaler.weekends, loaded.scaler.shape.horizon) == ("price", False, 2)
    assert loaded.scaler.shape == Shape((), (), (), 2)
    assert loaded.config.data.path == "prices.parquet"
    text = "".join(path.read_text() for path in trained.iterdir() if path.suffix != ".safetensors")
    assert str(store.path.parent) not in text
    assert "best/validation/loss" in loaded.metrics


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"is no complete model folder \({name} missing\)"):
        load_model(folder)


def changed(name: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        table = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(table | values))

    return spoil


def cut_short(folder: Path) -> None:
    for name in ("scaler.json", "calibration.json"):
        (folder / name).write_text((folder / name).read_text()[:40])


def other_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["out.weight"] = weights["out.weight"][:1].contiguous()
    save_file(weights, folder / "model.safetensors")


SCORES = [[0.0] * len(LEVELS)] * 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, r"scaler\.json: is not valid JSON"),
        (changed("scaler.json", kind="share"), r"scaler\.json: kind is 'share', none of price"),
        (changed("scaler.json", horizon="many"), r"scaler\.json: holds no scaler .*restore the file"),
        (changed("scaler.json", past=None), r"scaler\.json: holds no scaler"),
        (changed("scaler.json", clock=[1]), r"scaler\.json: holds no (scaler|clock)"),
        (changed("scaler.json", clock={"hour_of_week": [-1.0] * HOURS_A_WEEK}), r"scaler\.json: holds no clock"),
        (changed("scaler.json", clock={"hour_of_week": ["x"] * HOURS_A_WEEK}), r"scaler\.json: holds no "),
        (changed("scaler.json", past=["volume"]), "the weights do not fit"),
        (changed("scaler.json", horizon=3), "calibration.json: holds no calibration of 3 steps"),
        (changed("calibration.json", normal_scores=SCORES[:1]), r"calibration\.json: holds no calibration of 2 steps"),
        (changed("calibration.json", normal_scores=[["x"] * len(LEVELS)] * 2), r"calibration\.json: holds no "),
        (changed("calibration.json", normal_scores=[list(range(len(LEVELS), 0, -1))] * 2), r"calibration\.json: holds"),
        (changed("calibration.json", normal_scores=[[float("nan")] * len(LEVELS)] * 2), r"calibration\.json: holds no"),
        (changed("calibration.json", levels=[0.5]), r"calibration\.json: holds no calibration"),
        (changed("data.json", series=3), r"data\.json: "),
        (lambda folder: (folder / "data.json").write_text('{"source": "x"}'), r"data\.json: lacks 'splits'"),
        (other_shape, r"the weights do not fit config\.yaml"),
    ],
)
def test_a_damaged_folder_gets_one_clear_line(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_its_record_is_read_without_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    assert read_record(folder).source == "prices.parquet"


def test_who_trains_on_a_store_leaves_the_columns_of_its_table(tmp_path: Path) -> None:
    """The store knows them, the settings do not; a forecast of another table needs them."""
    names = {"unique_id": "ticker", "ds": "day", "y": "close"}
    panel().rename(names).with_columns(log_returns("close")).write_parquet(tmp_path / "table.parquet")
    source = panel_config(tmp_path / "table.parquet").data
    source = replace(source, id="ticker", time="day", target=["close"], kind="return")
    prepared = prepare_store(source, progress=False)
    config = panel_config(tmp_path / "table.parquet")
    blind = replace(DataConfig(store=str(prepared.path)), horizon=1, test=config.data.test, window=32)
    blind = replace(blind, validation=config.data.validation, tokens_per_step=64, validation_tokens=64)
    done = train(replace(config, data=blind), tmp_path / "run", progress=False)
    kept = load_model(done.model_dir).config.data
    assert (kept.id, kept.time, kept.target, kept.kind) == ("ticker", "day", ["close"], "return")
    assert {name: getattr(kept, name) for name in COVARIATES} == COVARIATES
    assert (kept.path, kept.store, kept.min_rows) == ("table.parquet", "", 30)


def log_returns(column: str) -> pl.Expr:
    return pl.col(column).log().diff().over("ticker")


def test_calibrated_quantiles_hold_in_the_validation_part(trained: Path, store: SeriesStore) -> None:
    """At every level so many outcomes lie below as the level says: it is what they were made for."""
    loaded = load_model(trained)
    splits = splits_from_dict(store, loaded.splits, "here")
    below = []
    for i in range(len(store)):
        cutoffs = np.array(splits.validation_cutoffs(i))
        said = walk_series(loaded.model, loaded.scaler, store, i, cutoffs, 100)
        quantiles = loaded.calibration.apply(forecasts(loaded.model, said, np.array(LEVELS)).quantiles)
        assert (np.diff(quantiles) >= 0).all()
        history = store.history(i)
        x = cumulated(history.x, history.kind, cutoffs, 2)
        below.append((x[..., None] < quantiles)[~np.isnan(x).any(axis=1)])
    share = np.concatenate(below).mean(axis=0)
    assert len(np.concatenate(below)) > 150
    assert np.allclose(share, LEVELS, atol=0.01)


def test_a_calibration_of_few_outcomes_changes_nothing(tmp_path: Path) -> None:
    panel().write_parquet(tmp_path / "table.parquet")
    config = panel_config(tmp_path / "table.parquet", data={"validation": "2014-01-20"})
    prepared = prepare_store(config.data, progress=False)
    splits = make_splits(prepared, config.data)
    scaler = Scaler.fit(prepared, splits)
    found = Calibration.fit(model_of(scaler.shape), scaler, prepared, splits)
    quantiles = np.sort(np.random.default_rng(0).standard_normal((5, 2, len(LEVELS))))
    assert np.array_equal(found.apply(quantiles), quantiles)
    again = Calibration.from_dict(found.to_dict(), "here", 2)
    assert np.array_equal(again.scores, found.scores)
