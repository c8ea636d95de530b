"""Real series and a small model of them, made once a session."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from domains.config import TrainerConfig
from domains.timeseries.config import DataConfig, HeadConfig, SourceConfig, TrainConfig
from domains.timeseries.store import SeriesStore, prepare_store
from domains.timeseries.train import train
from mamba_core import BackboneConfig, Mamba2Config

HORIZON = 2


def daily_prices() -> pl.DataFrame:
    """Three indices and an oil price, the last 420 days of 2013 to 2015, as a long table."""
    from arch.data import nasdaq, sp500, wti

    columns = {
        "SP500": sp500.load()["Adj Close"],
        "NASDAQ": nasdaq.load()["Adj Close"],
        "HIGH": sp500.load()["High"],
        "WTI": wti.load()["DCOILWTICO"],
    }
    parts = []
    for name, values in columns.items():
        values = values.loc["2013-11-01":"2015-06-30"]  # type: ignore[misc]
        stamps = values.index.to_numpy().astype("datetime64[us]")
        parts.append(pl.DataFrame({"unique_id": name, "ds": stamps, "y": values.to_numpy(dtype=np.float64)}))
    return pl.concat(parts).with_columns(pl.col("y").fill_nan(None))


@pytest.fixture(scope="session")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """:func:`daily_prices` as a Parquet file."""
    path = tmp_path_factory.mktemp("prices") / "prices.parquet"
    daily_prices().write_parquet(path)
    return path


@pytest.fixture(scope="session")
def store(prices: Path) -> SeriesStore:
    return prepare_store(SourceConfig(path=str(prices), stores=str(prices.parent / "stores")), progress=False)


def small_config(prices: Path) -> TrainConfig:
    """A few steps of a model that is trained in a second."""
    return TrainConfig(
        data=DataConfig(
            path=str(prices),
            stores=str(prices.parent / "stores"),
            horizon=HORIZON,
            test="2015-03-01",
            validation="2014-12-01",
            window=64,
            tokens_per_step=256,
            validation_tokens=1024,
        ),
        backbone=BackboneConfig(d_model=16, n_layers=1, mamba2=Mamba2Config(d_state=16, headdim=16)),
        head=HeadConfig(),
        trainer=TrainerConfig(max_steps=6, validate_every=3, checkpoint_every=2, log_every=1, accelerator="cpu"),
    )


@pytest.fixture(scope="session")
def trained(prices: Path) -> Path:
    """The model folder of a trained model."""
    return train(small_config(prices), prices.parent / "run", progress=False).model_dir
