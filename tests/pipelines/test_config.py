"""Every configuration that ships composes, fits its dataclass, and can be built."""

from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from domains.audio.module import make_task
from domains.audio.trained import Sound, build_model
from domains.genomics import model as genomics_model
from domains.genomics.config import TrainConfig
from domains.genomics.sample import sample_genome
from domains.timeseries.distributions import make_head
from domains.timeseries.model import Forecaster, Shape
from pipelines import config
from pipelines.audio import AUDIO
from pipelines.genomics import GENOMICS
from pipelines.genomics.roots import EvaluateRoot, PredictRoot, TrainRoot
from pipelines.overrides import check_form, check_keys, suggest
from pipelines.timeseries import TIMESERIES

DOMAINS = (GENOMICS, AUDIO, TIMESERIES)
ROOTS = {domain.root(command): command for domain in DOMAINS for command in domain.commands}
GROUPS = {domain.root(command): domain.groups(command) for domain in DOMAINS for command in domain.commands}
CHOICES = [(root, group, name) for root in ROOTS for group, names in GROUPS[root].items() for name in names]
REQUIRED = ("model", "out", "run", "state", "data.fasta", "data.path", "data.vcf")
CONFIGS = Path(str(files("configs")))


def composed(root: str, *overrides: str) -> Any:
    schema = config.load(ROOTS[root].schema)
    config.register(root, schema)
    required = [f"{key}=given" for key in REQUIRED if _is_required(schema, key)]
    with initialize_config_module("configs", version_base="1.3"):
        return config.build(schema, compose(root, [*required, *overrides]))


def _is_required(schema: type, key: str) -> bool:
    value: Any = schema()
    for name in key.split("."):
        value = getattr(value, name, None)
    return value == config.REQUIRED


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes_to_the_defaults_of_its_dataclass(root: str) -> None:
    found = composed(root)
    assert type(found) is config.load(ROOTS[root].schema)


@pytest.mark.parametrize(("root", "group", "name"), CHOICES)
def test_every_choice_composes(root: str, group: str, name: str) -> None:
    composed(root, f"{group}={name}")


def test_every_file_that_ships_is_composed_here() -> None:
    shipped = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert shipped == set(ROOTS) | {f"{group}/{name}" for _, group, name in CHOICES}


def test_every_experiment_is_of_one_domain() -> None:
    shipped = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    assert sorted(name for domain in DOMAINS for name in domain.experiments) == shipped


def test_every_folder_of_configurations_is_a_package() -> None:
    """Otherwise Hydra does not find it in an installed wheel."""
    assert all((path.parent / "__init__.py").exists() for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", config.groups("genomics_train")["backbone"])
def test_every_backbone_can_be_built(name: str) -> None:
    task = "mlm" if name.startswith("bimamba2") else "causal"
    root = composed("genomics_train", f"backbone={name}", f"task={task}")
    with torch.device("meta"):
        model = genomics_model.build_model(root)
    assert len(model.backbone.layers) == root.backbone.n_layers


@pytest.mark.parametrize("name", TIMESERIES.experiments)
def test_every_experiment_in_time_series_is_a_whole_recipe(name: str) -> None:
    root = composed("timeseries_train", f"experiment={name}")
    assert root.data.tokens_per_step % root.data.window == 0
    datetime.fromisoformat(root.data.test)  # of published numbers: a date, whatever the table
    make_head(root.head)
    with torch.device("meta"):
        Forecaster(Shape((), (), (), root.data.horizon), root.backbone, root.head)


@pytest.mark.parametrize("name", AUDIO.experiments)
def test_every_experiment_in_audio_is_a_whole_recipe(name: str) -> None:
    root = composed("audio_train", f"experiment={name}")
    if root.task.kind == "generate":
        assert root.data.tokens_per_step % root.data.window == 0
        assert root.data.window % (root.trainer.segment_length or root.data.window) in (0, root.data.window)
    with torch.device("cpu" if root.task.kind == "spectrogram" else "meta"):  # torchaudio's filters are numbers
        model = build_model(root, Sound(root.task.kind, root.data.rate, ("a", "b"), root.data.level_db))
    make_task(model, root)


def test_bundled_clips_suit_the_task() -> None:
    assert composed("audio_train").data.sample == "prompts"
    assert composed("audio_train", "task=classify").data.sample == "arrow"
    assert composed("audio_train", "task=classify", "data.sample=prompts").data.sample == "prompts"
    assert composed("audio_train", "task=classify", "data.root=clips").data.sample == ""


def test_dates_shares_and_one_target_arrive_as_meant() -> None:
    root = composed("timeseries_train", "data.test=2014-02-03", "data.validation=0.25", "data.target=close")
    assert (root.data.test, root.data.validation, root.data.target) == ("2014-02-03", "0.25", ["close"])
    assert composed("timeseries_train", "data.target=[bid,ask]").data.target == ["bid", "ask"]
    assert composed("timeseries_forecast", "data.target=close").data.target == "close"


@pytest.mark.parametrize("name", GENOMICS.experiments)
def test_every_experiment_is_a_whole_recipe(name: str) -> None:
    root = composed("genomics_train", f"experiment={name}")
    assert root.data.fasta == ""  # the bundled genome, so that anyone can run it
    assert sample_genome().exists()
    assert root.data.test == ["chr20", "chr21", "chr22", "chr23"]  # of the published numbers
    assert root.data.tokens_per_step % root.data.window == 0
    with torch.device("meta"):
        genomics_model.build_model(root)


def test_what_is_typed_wins_over_the_experiment_and_that_over_its_groups() -> None:
    root = composed("genomics_train", "experiment=demo", "trainer.max_steps=3", "backbone=mamba1")
    assert root.trainer.max_steps == 3
    assert root.backbone.pattern == ["mamba1"]
    assert root.data.window == composed("genomics_train", "experiment=demo").data.window
    assert root.data.window != TrainRoot().data.window


def test_numbers_lists_and_names_that_look_like_numbers_arrive_as_meant() -> None:
    root = composed(
        "genomics_train",
        "data.test=[1,NC_001133.9,chr20]",
        "trainer.max_minutes=9",
        "trainer.optimizer.betas=[0.8,0.9]",
    )
    assert root.data.test == ["1", "NC_001133.9", "chr20"]
    assert root.trainer.max_minutes == 9.0
    assert root.trainer.optimizer.betas == (0.8, 0.9)


def test_a_training_root_narrows_to_its_training_configuration() -> None:
    root = composed("genomics_train", "seed=5", "data.window=256")
    narrowed = config.narrow(TrainConfig, root)
    assert type(narrowed) is TrainConfig
    assert (narrowed.seed, narrowed.data.window) == (5, 256)


@dataclass
class Inner:
    a: int = 1
    b: list[str] | None = None


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    c: float = 2.0


def test_keys_of_nested_dataclasses() -> None:
    assert config.keys(Outer) == ["inner.a", "inner.b", "c"]


def test_copy_key() -> None:
    target = Outer()
    config.copy_key("inner.a", Outer(Inner(a=7), c=9.0), target)
    assert target == Outer(Inner(a=7))


def test_commands_share_the_names_of_what_they_share() -> None:
    shared = [set(config.keys(root)) for root in (EvaluateRoot, PredictRoot)]
    assert {"model", "out", "device", "chunk", "both_strands", "data.fasta", "tracking.uri"} <= shared[0] & shared[1]


@pytest.mark.parametrize("text", ["seed=0,1,2", "backbone=mamba1,mamba2", "backbone=glob(*)", "~experiment"])
def test_sweeps_pass_the_checks(text: str) -> None:
    groups = config.groups("genomics_train")
    check_form([text], groups)
    check_keys([text], config.keys(TrainRoot), groups)


def test_every_key_passes_the_check_of_keys() -> None:
    for (root, command), prefix in product(ROOTS.items(), ("", "hydra.")):
        keys = config.keys(config.load(command.schema))
        check_keys([f"{prefix}{key}=1" for key in keys], keys, GROUPS[root])


def test_suggestions() -> None:
    known = ["data.fasta", "data.window", "trainer.max_steps"]
    assert suggest("fasta", known) == "did you mean data.fasta?"
    assert suggest("trainer.maxsteps", known) == "did you mean trainer.max_steps?"
    assert suggest("qqq", known) == "there are data.fasta, data.window, trainer.max_steps"
