"""The genomics commands: each takes its configuration and does its work through domains.genomics.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from domains.errors import UserError
from domains.genomics.config import DataConfig, EvaluateConfig, GenerateConfig, PredictConfig, TrainConfig
from domains.settings import to_dict
from pipelines.cli import Invocation, Outcome
from pipelines.config import copy_key, narrow
from pipelines.genomics.roots import (
    EvaluateRoot,
    GenerateRoot,
    ImportRunRoot,
    PredictRoot,
    PrepareRoot,
    SourceConfig,
    TrainRoot,
)

if TYPE_CHECKING:
    from domains.genomics.store import GenomeStore
    from pipelines.places import ModelPlace


def prepare(root: PrepareRoot, invocation: Invocation) -> Outcome:
    """A genome into a store."""
    from domains.genomics.train import open_store

    store = open_store(_data(root.data))
    how = "found prepared already" if store.reused else "prepared"
    return Outcome(
        f"store: {store.path} ({how}; {store.summary()})", (invocation.next(f"train data.store={store.path}"),)
    )


def train(root: TrainRoot, invocation: Invocation) -> Outcome:
    """A new run, or an interrupted one to its end."""
    from domains.genomics import train as training
    from pipelines.genomics.report import REPORT
    from pipelines.jobs import new_run_dir, run_training, tags
    from pipelines.live import Opening, Relay
    from pipelines.places import find_run
    from pipelines.recorder import recorder

    if root.run.export is not None:
        return _export(root, root.run.export, invocation)
    resume = root.resume is not None
    if root.resume is not None:
        run_dir = find_run(root.resume, root.tracking)
        config = _resumed_config(root, run_dir, invocation)
    else:
        run_dir = new_run_dir(root.run, invocation)
        config = narrow(TrainConfig, root)
    listener = recorder(root.tracking, invocation.domain.name, run_dir, continues=resume)
    listener.check()
    work = partial(
        training.train,
        config,
        run_dir,
        resume=resume,
        overwrite=root.run.overwrite and not resume,
        loggers=[Relay(listener)],
        callbacks=[Opening(listener, to_dict(config), partial(tags, invocation.domain.name, run_dir))],
        command=invocation.line,
    )
    result = run_training(invocation, listener, run_dir, REPORT, work)
    lines = [f"model: {result.model_dir}{_reached(result.metrics)}", *listener.where]
    onward = [invocation.next(f"evaluate model={result.model_dir}")]
    if not result.finished:
        lines.append(f"stopped by trainer.max_minutes={config.trainer.max_minutes:g}, before trainer.max_steps")
        onward.append(invocation.next(f"train resume={run_dir}"))
    return Outcome("\n".join(lines), (*onward, *listener.look))


def evaluate(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """A model beside Markov models, on what was held out from it."""
    from domains.genomics import evaluate as evaluation
    from pipelines.genomics.report import draw_contigs
    from pipelines.jobs import track_evaluation, write_evaluation
    from pipelines.places import find_model, output_folder
    from pipelines.recorder import recorder

    place = find_model(root.model, root.tracking)
    folder = output_folder(root.out or place.evaluation)
    recorder(root.tracking, invocation.domain.name, place.evaluation.parent, continues=True).check()
    store = _training_genome(place, root.data)
    found = evaluation.evaluate(place.folder, store, narrow(EvaluateConfig, root), device=root.device)
    print(found.table())
    plots = {"bits_per_base_by_contig": draw_contigs(found)}
    write_evaluation(folder, found.table(), found.to_dict(), found.metrics(), plots)
    listener = track_evaluation(invocation, root.tracking, place, folder)
    onward = (
        invocation.next(f"predict model={root.model} data.fasta=<other.fa> out=scores/"),
        invocation.next(f"generate model={root.model} out=sample.fa"),
    )
    return Outcome("\n".join([f"evaluation: {folder}", *listener.where]), (*onward, *listener.look))


def predict(root: PredictRoot, invocation: Invocation) -> Outcome:
    """The log-likelihood of every base of a file."""
    from domains.genomics import predict as prediction
    from domains.genomics.model import read_record
    from domains.genomics.train import open_store
    from pipelines.places import find_model, output_folder

    place = find_model(root.model, root.tracking)
    out = output_folder(root.out)
    read_record(place.folder)  # a folder that is none is told before the file is read
    store = open_store(DataConfig(fasta=root.data.fasta, stores=root.data.stores))
    config = PredictConfig(both_strands=root.both_strands, chunk=root.chunk)
    done = prediction.predict(place.folder, store, out, config, device=root.device)
    skipped = f", {len(done.skipped)} done before" if done.skipped else ""
    return Outcome(
        f"scores: {done.out} ({len(done.written)} contigs{skipped}; {done.bits_per_base:.4f} bits per base)",
        (f"open the bedGraph files of {done.out} in a genome browser, or read its Parquet files with polars",),
    )


def generate(root: GenerateRoot, invocation: Invocation) -> Outcome:
    """Sequences sampled from a model."""
    from domains.genomics import generate as generation
    from pipelines.places import find_model, output_file

    place = find_model(root.model, root.tracking)
    out = generation.generate(place.folder, output_file(root.out), narrow(GenerateConfig, root), device=root.device)
    onward = invocation.next(f"predict model={root.model} data.fasta={out} out={out.stem}-scores/")
    return Outcome(f"sequences: {out}", (onward,))


def import_run(root: ImportRunRoot, invocation: Invocation) -> Outcome:
    """A run folder into MLflow."""
    from domains.genomics.train import run_config
    from pipelines.genomics.report import REPORT
    from pipelines.jobs import import_folder
    from pipelines.places import find_run

    run_dir = find_run(root.run, root.tracking)
    listener = import_folder(invocation, root.tracking, run_dir, to_dict(run_config(run_dir)), REPORT)
    onward = f"evaluate model={run_dir / 'model'}" if (run_dir / "model").is_dir() else f"train resume={run_dir}"
    return Outcome("\n".join([f"imported: {run_dir}", *listener.where]), (invocation.next(onward), *listener.look))


def _export(root: TrainRoot, path: str, invocation: Invocation) -> Outcome:
    """The settings of a run as a file for a machine that has PyTorch and Lightning but not Hydra, MLflow or polars."""
    from domains.settings import write_yaml
    from pipelines.places import output_file

    if root.resume is not None:
        raise UserError("run.export and resume do not go together; a run folder holds its settings in config.yaml")
    config = narrow(TrainConfig, root)
    target = output_file(path)
    write_yaml(target, to_dict(config))
    onward = (
        "copy it and the prepared store (data.store) to the other machine",
        f"python -m domains.genomics.train --config {target} --run-dir <folder>",
        invocation.next("import-run run=<folder>"),
    )
    return Outcome(f"settings: {target}", onward)


def _resumed_config(root: TrainRoot, run_dir: Path, invocation: Invocation) -> TrainConfig:
    """The settings of the run, with what the user sets anew."""
    from domains.genomics.train import FREE_ON_RESUME, run_config
    from pipelines.jobs import check_resume

    config = run_config(run_dir)
    for key in check_resume(invocation.overrides, FREE_ON_RESUME):
        copy_key(key, root, config)
    return config


def _training_genome(place: "ModelPlace", source: SourceConfig) -> "GenomeStore":
    """The genome that a model was trained on: where the user says, where it was, or among the prepared ones here."""
    from domains.genomics.model import read_record
    from domains.genomics.train import find_store, open_store, run_config

    trained = read_record(place.folder)
    if source.fasta or source.store:
        return open_store(_data(source))
    try:
        if place.run_dir is not None:  # its settings have paths, those of the model folder have none
            return open_store(run_config(place.run_dir).data)
        return open_store(replace(trained.config.data, stores=source.stores))
    except UserError as error:
        if (found := find_store(source.stores, trained.fingerprint)) is not None:
            return found
        raise UserError(
            f"{error}; the model was trained on it ({trained.source}): say where it is now with data.fasta=<file>"
        ) from error


def _data(source: SourceConfig) -> DataConfig:
    return DataConfig(fasta=source.fasta, store=source.store, stores=source.stores)


def _reached(metrics: Mapping[str, float]) -> str:
    reached = metrics.get("best/validation/bits_per_base", metrics.get("validation/bits_per_base"))
    return "" if reached is None else f" ({reached:.4f} bits per base on validation)"
