"""Training a DNA language model: from settings and a genome to a model folder.

With a prepared store this runs where there is no more than PyTorch, Lightning, numpy, safetensors and PyYAML::

    python -m domains.genomics.train --config train.yaml --run-dir runs/one
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from domains.config import FREE_TRAINER_KEYS, TrainerConfig
from domains.errors import UserError
from domains.genomics.annotation.pretrained import KINDS as ANNOTATION
from domains.genomics.annotation.pretrained import adopt
from domains.genomics.annotation.train import Assembled, annotation_splits, assemble, check_annotation
from domains.genomics.config import DataConfig, TrainConfig
from domains.genomics.data import NEXT_BASE, Form, GenomeDataModule, check_data
from domains.genomics.masking import Masking
from domains.genomics.model import build_model, describe_data, save_model
from domains.genomics.module import CausalTask, MaskedTask
from domains.genomics.sample import sample_genome
from domains.genomics.splits import Splits, make_splits
from domains.genomics.store import GenomeStore, prepare_store
from domains.session import Session, TrainResult, command_line, open_session, seeded
from domains.task import Task
from mamba_core import CausalLM, MaskedLM

DOMAIN = "genomics"
KINDS = ("causal", "mlm", *ANNOTATION)  # of task.kind
FREE_ON_RESUME = FREE_TRAINER_KEYS | {
    "data.fasta",
    "data.store",
    "data.stores",
    "data.workers",
    "data.annotation",
    "task.pretrained",
}


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
    check_data(config.data)
    if config.task.kind not in KINDS:
        raise UserError(f"task.kind={config.task.kind}: must be one of {', '.join(KINDS)}")
    annotates = config.task.kind in ANNOTATION
    if annotates:
        check_annotation(config)
        config = adopt(config, resume=resume)
    elif config.data.annotation:
        raise UserError(
            f"data.annotation={config.data.annotation}: is for task=classify or segment; choose one, or leave it out"
        )
    session = open_session(DOMAIN, config, run_dir, resume=resume, overwrite=overwrite, free=FREE_ON_RESUME)
    store = open_store(config.data, progress)
    recorded = session.recorded_data(store.fingerprint, store.source_name, "genome") if resume else None
    if recorded is not None:
        splits = Splits.from_dict(recorded.get("splits", {}))
    else:
        splits = annotation_splits(store, config) if annotates else make_splits(store, config.data)
    if annotates:
        parts = assemble(config, store, splits, session, recorded, progress)
    else:
        parts = _pretraining(config, store, splits, session)
    found = ", found prepared" if store.reused else ""
    return session.train(
        parts.task,
        parts.data,
        parts.described,
        save_model,
        announce=(f"{store.source_name}: {store.summary()}{found}", splits.note, *parts.announce),
        loggers=loggers,
        callbacks=callbacks,
        progress=progress,
        command=command,
    )


def _pretraining(config: TrainConfig, store: GenomeStore, splits: Splits, session: Session) -> Assembled:
    """What a model of bases trains with."""
    model = seeded(partial(build_model, config), config.seed)
    steps, accumulate = config.trainer.max_steps, config.trainer.accumulate
    forms = _forms(config)
    data = GenomeDataModule(store, splits, config.data, steps, accumulate, config.seed, session.share, forms)
    return Assembled(make_task(model, config.trainer), data, describe_data(store, splits))


def make_task(model: CausalLM | MaskedLM, config: TrainerConfig) -> Task:
    """What a model of pre-training learns; a UserError when it cannot on so many devices."""
    if isinstance(model, CausalLM):
        return CausalTask(model, config)
    if config.context_parallel > 1:
        raise UserError(f"trainer.context_parallel={config.context_parallel}: a masked model needs windows as a whole")
    return MaskedTask(model, config)


def _forms(config: TrainConfig) -> tuple[Form, Form]:
    """What the task makes of windows of training and of validation. Those are hidden alike whatever the run's seed."""
    if config.task.kind == "causal":
        return NEXT_BASE, NEXT_BASE
    fraction = config.task.mask_fraction
    return Masking(fraction, 0, config.seed), Masking(fraction, 1, hide_all=True)


def open_store(data: DataConfig, progress: bool = True) -> GenomeStore:
    """The genome that the settings name: a prepared store, a FASTA or GenBank file (prepared, or found prepared), or
    the bundled genome."""
    if data.store:
        return GenomeStore.open(data.store)
    return prepare_store(Path(data.fasta) if data.fasta else sample_genome(), Path(data.stores), progress=progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (see domains.session.command_line)."""
    return command_line(DOMAIN, TrainConfig, train, (__doc__ or "").split("\n")[0], arguments)


if __name__ == "__main__":
    sys.exit(main())
