"""Training a DNA language model: from settings and a genome to a model folder.

With a prepared store this runs where there is no more than PyTorch, Lightning, numpy, safetensors and PyYAML::

    python -m domains.genomics.train --config train.yaml --run-dir runs/one
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from domains.checkpoint import Terminated, newest_checkpoint
from domains.config import check_seed
from domains.errors import UserError
from domains.folder import RunFolder, read_json, write_json
from domains.genomics.config import DataConfig, TrainConfig
from domains.genomics.data import GenomeDataModule, check_data
from domains.genomics.model import build_model, describe_data, save_model
from domains.genomics.module import CausalTask
from domains.genomics.sample import sample_genome
from domains.genomics.splits import Splits, make_splits
from domains.genomics.store import GenomeStore, prepare_store
from domains.hardware import choose_device, describe_hardware
from domains.runlog import truncate_metrics
from domains.settings import flatten, from_dict, read_yaml, to_dict, write_yaml
from domains.trainer import Fitted, check_trainer, fit
from mamba_core import CausalLM

DOMAIN = "genomics"

# What a resumed run may be told anew, because it decides no number of it: where things are, and for how long to go on.
FREE_ON_RESUME = frozenset(
    {
        "data.fasta",
        "data.store",
        "data.stores",
        "data.workers",
        "trainer.accelerator",
        "trainer.threads",
        "trainer.max_minutes",
        "trainer.checkpoint_every",
    }
)


@dataclass(frozen=True)
class TrainResult:
    """Where a training run left its results.

    Attributes:
        run_dir: the run folder.
        model_dir: the model folder in it.
        metrics: the latest value of every metric, and the best validation under ``best/``.
        finished: False when ``trainer.max_minutes`` ended it before ``trainer.max_steps``; it can be resumed.
    """

    run_dir: Path
    model_dir: Path
    metrics: dict[str, float]
    finished: bool


def train(
    config: TrainConfig,
    run_dir: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    command: str | None = None,
) -> TrainResult:
    """Train a model, or go on with a run that was stopped or killed.

    Args:
        config: all settings; those of a resumed run must be its own, but for FREE_ON_RESUME.
        run_dir: folder of the run; made when missing.
        resume: go on from the newest readable checkpoint of ``run_dir``, or from the beginning when there is none.
        overwrite: remove an earlier run in ``run_dir`` first.
        loggers: get every row that goes into metrics.jsonl, with the number of optimizer steps done.
        callbacks: further Lightning callbacks.
        progress: say what is done, with bars, on standard error.
        command: the command line, for run.json.

    Raises:
        UserError: a mistake in settings, data or folder, or a loss that is not finite.
        Terminated: SIGTERM came; a checkpoint holds all the work.
        KeyboardInterrupt: Ctrl-C; a checkpoint holds all the work once training has begun.
    """
    check_seed(config.seed)
    check_trainer(config.trainer)
    check_data(config.data)
    device = choose_device(config.trainer.accelerator)
    if resume:
        run = RunFolder.open(run_dir)
        _check_same(config, run)
    else:
        run = RunFolder(run_dir)
        run.check_free(overwrite=overwrite)
    store = open_store(config.data, progress)
    splits = _recorded_splits(run, store) if resume else make_splits(store, config.data)
    model = seeded_model(config)
    steps, accumulate = config.trainer.max_steps, config.trainer.accumulate
    data = GenomeDataModule(store, splits, config.data, steps, accumulate, config.seed)
    if not resume:  # only now, so that a mistake in the settings or the data leaves nothing behind
        run.create(overwrite=overwrite)
        write_yaml(run.config_path, to_dict(config))
        write_json(run.splits_path, describe_data(store, splits))
    if progress:
        _announce(store, splits, config, model, device)
    task = CausalTask(model, config.trainer)
    with run.locked():
        checkpoint, step = newest_checkpoint(run.checkpoints) or (None, 0)
        truncate_metrics(run.metrics_path, step)
        hardware = describe_hardware(device, config.trainer.threads)
        run.begin(DOMAIN, command=command, hardware=hardware, from_step=step)
        with _recorded_end(run):
            fitted = fit(
                task, data, run, resume_from=checkpoint, loggers=loggers, callbacks=callbacks, progress=progress
            )
            save_model(run.model, fitted.weights, config, describe_data(store, splits), _reached(fitted))
        run.end("finished" if fitted.finished else "stopped", fitted.step)
    return TrainResult(run.path, run.model, fitted.metrics, fitted.finished)


def run_config(run_dir: Path | str) -> TrainConfig:
    """The settings of an existing run; a UserError when ``run_dir`` is no run folder."""
    path = RunFolder.open(run_dir).config_path
    return from_dict(TrainConfig, read_yaml(path), where=str(path))


def open_store(data: DataConfig, progress: bool = True) -> GenomeStore:
    """The genome that the settings name: a prepared store, a FASTA or GenBank file (prepared, or found prepared), or
    the bundled genome."""
    if data.store:
        return GenomeStore.open(data.store)
    return prepare_store(Path(data.fasta) if data.fasta else sample_genome(), Path(data.stores), progress=progress)


def find_store(stores: Path | str, fingerprint: str) -> GenomeStore | None:
    """The prepared genome of that fingerprint in the folder ``stores``, wherever its source is now; None without one.

    Stores that cannot be read are passed over.
    """
    for meta in sorted(Path(stores).glob("*/meta.json")):
        try:
            if read_json(meta).get("fingerprint") == fingerprint:
                return GenomeStore.open(meta.parent)
        except UserError:
            continue
    return None


def seeded_model(config: TrainConfig) -> CausalLM:
    """The model at step 0: decided by ``config`` alone, whatever random numbers were drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(config)


def _check_same(config: TrainConfig, run: RunFolder) -> None:
    """Make sure that a resumed run keeps the settings that decide its numbers."""
    recorded, given = flatten(to_dict(run_config(run.path))), flatten(to_dict(config))
    for key, value in given.items():
        if key not in FREE_ON_RESUME and recorded.get(key) != value:
            raise UserError(
                f"{run.config_path}: {key} is {recorded.get(key)!r} in this run and {value!r} now; resume with the "
                "run's own settings, or start a new run"
            )


def _recorded_splits(run: RunFolder, store: GenomeStore) -> Splits:
    recorded = read_json(run.splits_path)
    if recorded.get("fingerprint") != store.fingerprint:
        raise UserError(
            f"{store.source_name}: is not the genome that this run began with ({recorded.get('source')}); "
            "resume with that genome, or start a new run"
        )
    return Splits.from_dict(recorded.get("splits", {}))


def _reached(fitted: Fitted) -> dict[str, float]:
    """What metrics.json of the model folder holds."""
    measured = {name: value for name, value in fitted.metrics.items() if not name.startswith("health/")}
    return measured | {"step": float(fitted.step), "weights_step": float(fitted.weights_step)}


@contextmanager
def _recorded_end(run: RunFolder) -> Iterator[None]:
    """Write to run.json how a session ends when it does not end well."""
    try:
        yield
    except Terminated as stop:
        run.end("stopped", stop.step)
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt(str(stop)) from stop
        raise
    except BaseException:
        run.end("failed")
        raise


def _announce(store: GenomeStore, splits: Splits, config: TrainConfig, model: CausalLM, device: torch.device) -> None:
    backbone = config.backbone
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = ", found prepared" if store.reused else ""
    print(f"{store.source_name}: {store.summary()}{found}", file=sys.stderr)
    print(splits.note, file=sys.stderr)
    print(
        f"model: {backbone.n_layers} layers ({', '.join(backbone.pattern)}) of width {backbone.d_model}, "
        f"{parameters:,} parameters, on {device.type}",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m domains.genomics.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--config", type=Path, help="YAML file with any of the settings of TrainConfig")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir (needs no --config)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --run-dir")
    parser.add_argument("--no-progress", action="store_true", help="say nothing while working")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    options = parser.parse_args(arguments)
    try:
        if options.resume and not options.config:
            config = run_config(options.run_dir)
        else:
            values = read_yaml(options.config) if options.config else {}
            config = from_dict(TrainConfig, values, where=str(options.config))
        result = train(
            config,
            options.run_dir,
            resume=options.resume,
            overwrite=options.overwrite,
            progress=not options.no_progress,
            command=" ".join(["python -m domains.genomics.train", *(sys.argv[1:] if arguments is None else arguments)]),
        )
    except UserError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Terminated as stop:
        print(f"{stop}; go on with --resume", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt as stop:
        print(f"{stop}; go on with --resume", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"model: {result.model_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
