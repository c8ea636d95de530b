"""A made panel with every kind of column, small enough to train on within a test."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from domains.config import TrainerConfig
from domains.timeseries.config import DataConfig, HeadConfig, TrainConfig
from mamba_core import BackboneConfig, Mamba2Config

ROWS = 320
COVARIATES: dict[str, Any] = {"past": ["volume"], "future": ["holiday"], "static": ["size"]}
TEST, VALIDATION = "2014-02-03", "2013-11-04"  # rows 240 and 175 of a series from the first day on


def days(rows: int, first: int = 0) -> list[date]:
    """Weekdays from 4 March 2013 on."""
    every = (date(2013, 3, 4) + timedelta(days=i) for i in range(2 * (first + rows) + 7))
    return [day for day in every if day.weekday() < 5][first : first + rows]


def prices(rng: np.random.Generator, rows: int) -> np.ndarray:
    """A price whose moves cluster, 3% of it missing."""
    noise, size, x = rng.standard_normal(rows), 0.01, np.zeros(rows)
    for i in range(1, rows):
        size = np.sqrt(1e-5 + 0.85 * size**2 + 0.1 * x[i - 1] ** 2)
        x[i] = size * noise[i]
    y = 100 * np.exp(np.cumsum(x))
    y[1:][rng.random(rows - 1) < 0.03] = np.nan
    return y


def panel(seed: int = 0) -> pl.DataFrame:
    """A and B from the first day on; C is younger, and D begins within the test part."""
    rng = np.random.default_rng(seed)
    parts = []
    for name, first, size in (("A", 0, 1.0), ("B", 0, 20.0), ("C", 60, 3.0), ("D", 245, 5.0)):
        rows = ROWS - first
        columns = {
            "unique_id": [name] * rows,
            "ds": days(rows, first),
            "y": prices(rng, rows),
            "volume": rng.lognormal(size=rows),
            "holiday": (rng.random(rows) < 0.1).astype(np.float64),
            "size": [size] * rows,
        }
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts).with_columns(pl.col("y").fill_nan(None))


def tiny_backbone() -> BackboneConfig:
    return BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=8, headdim=8))


def panel_config(table: Path, *, data: dict[str, Any] | None = None, **head: Any) -> TrainConfig:
    """Three steps on such a panel."""
    source = DataConfig(
        path=str(table),
        stores=str(table.parent / "stores"),
        min_rows=30,
        horizon=2,
        test=TEST,
        validation=VALIDATION,
        window=32,
        tokens_per_step=128,
        validation_tokens=512,
        **COVARIATES,
    )
    trainer = TrainerConfig(max_steps=3, validate_every=3, checkpoint_every=2, log_every=1, accelerator="cpu")
    config = TrainConfig(source, tiny_backbone(), HeadConfig(**head), trainer)
    return replace(config, data=replace(source, **(data or {})))
