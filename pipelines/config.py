"""Configuration that the jobs of every domain share, and how a job's configuration is declared to Hydra and checked."""

import dataclasses
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf

from domains.settings import from_dict

REQUIRED: Any = MISSING  # the default of a key that the user must give


@dataclass
class TrackingConfig:
    """Where a run is recorded."""

    enabled: bool = True
    uri: str = ""  # empty: MLFLOW_TRACKING_URI, and without it sqlite:///mlflow.db
    experiment: str = ""  # empty: the domain's name
    name: str = ""  # of the MLflow run; empty: the run folder's name
    system_metrics: bool = True  # processor, memory, disk, network and GPU over time


@dataclass
class RunConfig:
    """Where a run is written."""

    dir: str | None = None  # None: runs/<domain>-<date>-<time>
    overwrite: bool = False  # replace the run that stands there
    export: str | None = None  # write the settings to this file, for a machine without Hydra, and train nothing


@dataclass
class ImportRunRoot:
    """Root configuration of every import-run: a run folder from another machine."""

    run: str = REQUIRED
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load(reference: str) -> Any:
    """The object that ``reference`` ("package.module:name") names; imported only now, so that help stays fast."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def register(root: str, schema: type) -> None:
    """Make ``schema`` known to Hydra as ``<root>_schema``, on which the file configs/<root>.yaml builds."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{root}_schema", node=schema, provider="serpentine")


def keys(schema: type) -> list[str]:
    """Every leaf of a nested dataclass as a dotted key, in the order of declaration."""
    return list(_walk(schema, ""))


def groups(root: str) -> dict[str, list[str]]:
    """The groups that configs/<root>.yaml chooses from, each with the names of its files."""
    folder = files("configs")
    defaults = yaml.safe_load((folder / f"{root}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    return {
        group: sorted(entry.name.removesuffix(".yaml") for entry in (folder / group).iterdir() if _is_yaml(entry.name))
        for group in chosen
    }


def build(schema: type, config: DictConfig) -> Any:
    """The composed configuration as an instance of ``schema``.

    Raises:
        UserError: a value of the wrong type.
        omegaconf.errors.OmegaConfBaseException: a required value that is missing, or an interpolation without target.
    """
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return from_dict(schema, values, where="configuration")  # type: ignore[arg-type]


def narrow(schema: type, settings: Any) -> Any:
    """An instance of ``schema`` with the values of ``settings``, whose class has these fields and more."""
    return schema(**{entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(schema)})


def copy_key(key: str, source: Any, target: Any) -> None:
    """Set the dotted ``key`` of nested dataclass ``target`` to what ``source`` holds for it."""
    *tables, name = key.split(".")
    for table in tables:
        source, target = getattr(source, table), getattr(target, table)
    setattr(target, name, getattr(source, name))


def _walk(schema: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _walk(kind, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")
