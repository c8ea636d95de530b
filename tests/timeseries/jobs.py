"""Models, tables and runs for the tests of the batch job."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from domains.files import file_sha256
from domains.folder import write_json
from domains.model_folder import write_model_folder
from domains.timeseries.calibration import normal_scores
from domains.timeseries.clock import HOURS_A_WEEK, Clock
from domains.timeseries.config import LEVELS, DataConfig, ForecastConfig, SourceConfig, TrainConfig
from domains.timeseries.forecast import Forecasted, forecast
from domains.timeseries.model import Shape, build_model
from domains.timeseries.scaler import Scaler
from domains.timeseries.store import SeriesStore, prepare_store
from domains.timeseries.trained import CALIBRATION, SCALER, Calibration
from mamba_core import BackboneConfig, Mamba1Config, Mamba2Config

HORIZON = 3
_IDS = re.compile(rb'("(?:id|states|out)": )"[0-9a-f]{16}"')


def make_model(folder: Path, seed: int = 0, trained_until: str = "1900-01-01", **data: Any) -> Path:
    """A model folder whose forecasts depend on all that it sees: random weights, an uneven clock and calibration."""
    rng = np.random.default_rng(seed)
    source = DataConfig(**{"horizon": HORIZON, **data})
    backbone = BackboneConfig(
        d_model=8,
        n_layers=2,
        pattern=["mamba1", "mamba2"],
        mamba1=Mamba1Config(d_state=4),
        mamba2=Mamba2Config(d_state=8, headdim=8),
    )
    config = TrainConfig(data=source, backbone=backbone)
    shape = Shape(tuple(source.past), tuple(source.future), tuple(source.static), source.horizon)
    clock = Clock(np.exp(0.3 * rng.standard_normal(HOURS_A_WEEK)))
    scaler = Scaler(source.kind, clock, False, shape)
    calibration = Calibration(normal_scores(np.array(LEVELS)) * np.linspace(0.9, 1.2, source.horizon)[:, None])
    torch.manual_seed(seed)
    model = build_model(shape, config)
    weights = model.state_dict()
    for name in ("out.weight", "direct.weight"):
        weights[name] = 0.2 * torch.randn(weights[name].shape)
    own = {
        SCALER: lambda path: write_json(path, scaler.to_dict()),
        CALIBRATION: lambda path: write_json(path, calibration.to_dict()),
    }
    told = {"splits": {"validation": trained_until}, "fingerprint": "", "source": "", "series": ["a", "b"]}
    write_model_folder(folder, weights, config, told, {}, own)
    return folder


def make_rows(
    name: str, count: int, seed: int, missing: float = 0.0, start: str = "2020-01-01", **more: Any
) -> pl.DataFrame:
    """Hourly prices of one series, some of them missing; ``more``: numbers of covariates to draw."""
    rng = np.random.default_rng(seed)
    y = 100 * np.exp(np.cumsum(0.01 * rng.standard_normal(count)))
    y[rng.random(count) < missing] = np.nan
    stamps = np.datetime64(start, "us") + np.arange(count) * np.timedelta64(1, "h")
    columns = {"unique_id": [name] * count, "ds": stamps, "y": y}
    for kind, numbers in more.items():
        for number in range(numbers):
            columns[f"{kind}{number}"] = rng.standard_normal(1 if kind == "static" else count).repeat(
                count if kind == "static" else 1
            )
    return pl.DataFrame(columns).with_columns(pl.col("y").fill_nan(None))


def make_store(folder: Path, rows: pl.DataFrame, **source: Any) -> SeriesStore:
    """A prepared table."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.parquet"
    rows.write_parquet(path)
    return prepare_store(SourceConfig(path=str(path), stores=str(folder / "stores"), min_rows=0, **source), False)


def run(model: Path, root: Path, rows: pl.DataFrame | SeriesStore, source: Any = None, **config: Any) -> Forecasted:
    """The batch job into root/out and root/states."""
    store = rows if isinstance(rows, SeriesStore) else make_store(root / "tables", rows, **source or {})
    return forecast(model, store, root / "out", root / "states", ForecastConfig(**config), device="cpu")


def forecasts_in(out: Path) -> pl.DataFrame:
    """What counts in an output folder; there are no other files of forecasts, and each forecast is there once."""
    frame = _listed(out, "files", "cutoff=*/*")
    if frame.is_empty():
        return frame
    assert not frame.select("series", "cutoff", "step", "model").is_duplicated().any()
    return frame.sort("series", "cutoff", "step")


def paths_in(out: Path) -> pl.DataFrame:
    """Likewise of sampled paths."""
    frame = _listed(out, "paths", "paths/cutoff=*/*")
    if frame.is_empty():
        return frame
    assert not frame.select("series", "cutoff", "path", "step", "model").is_duplicated().any()
    return frame.sort("series", "cutoff", "path", "step")


def _listed(out: Path, name: str, pattern: str) -> pl.DataFrame:
    files = json.loads((out / "manifest.json").read_text())[name]
    for entry in files:
        assert file_sha256(out / entry["file"]) == entry["sha256"]
    assert {entry["file"] for entry in files} == {str(path.relative_to(out)) for path in out.glob(pattern)}
    return pl.concat([pl.read_parquet(out / entry["file"]) for entry in files]) if files else pl.DataFrame()


def contents(*folders: Path) -> dict[str, bytes]:
    """Names, relative to the parent, and bytes of all files, but for the random names that folders give themselves."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder.parent))] = _IDS.sub(rb'\1""', path.read_bytes())
    return found


def assert_same_numbers(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Equal to 1e-6 of every number, and equal in all else."""
    assert found.columns == expected.columns
    for name in expected.columns:
        if expected[name].dtype == pl.Float64:
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-6, err_msg=name)
        else:
            assert found[name].to_list() == expected[name].to_list(), name
