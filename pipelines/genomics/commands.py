"""The genomics commands: each takes its configuration and does its work through domains.genomics.

What is slow to import is imported where it is used, so that a mistake in the configuration is told at once.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from domains.errors import UserError
from domains.genomics.config import (
    DataConfig,
    EmbedConfig,
    EvaluateConfig,
    GenerateConfig,
    PredictConfig,
    ScoreConfig,
    TrainConfig,
)
from pipelines.cli import Invocation, Outcome
from pipelines.commands import Training, evaluate_command, import_command, kind_of_run, train_command
from pipelines.config import ImportRunRoot, narrow
from pipelines.genomics.roots import (
    EmbedRoot,
    EvaluateRoot,
    GenerateRoot,
    PredictRoot,
    PrepareRoot,
    ScoreRoot,
    SourceConfig,
    TrainRoot,
)

if TYPE_CHECKING:
    from domains.genomics.evaluate import Evaluation
    from domains.genomics.masked_evaluate import MaskedEvaluation
    from domains.genomics.store import GenomeStore
    from pipelines.genomics import annotation
    from pipelines.places import ModelPlace

TRAINING = Training(
    config=TrainConfig,
    module="domains.genomics.train",
    report="pipelines.genomics.report:REPORT",
    metric="validation/bits_per_base",
    measure="bits per base",
)


# Tasks whose runs are measured and drawn otherwise.
TRAININGS = {
    kind: replace(TRAINING, report="pipelines.genomics.annotation_report:REPORT", metric=metric, measure=measure)
    for kind, metric, measure in (
        ("classify", "validation/loss", "nats a window"),
        ("segment", "validation/loss", "nats a base"),
    )
}


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
    kind = root.task.kind if root.resume is None else kind_of_run(invocation, TrainConfig, root.resume, root.tracking)
    return train_command(TRAININGS.get(kind, TRAINING), root, invocation)


def evaluate(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """A model beside its baselines, on what was held out from it."""
    from domains.genomics.model import read_record
    from pipelines.places import find_model

    kind = read_record(find_model(root.model, root.tracking).folder).config.task.kind
    known = {"mlm": _evaluate_masked, "classify": _evaluate_annotation, "segment": _evaluate_annotation}
    return known.get(kind, _evaluate_causal)(root, invocation)


def _evaluate_causal(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """Beside Markov models."""
    from domains.genomics import evaluate as evaluation
    from pipelines.genomics.report import draw_evaluation

    def measure(place: "ModelPlace") -> "Evaluation":
        store = _training_genome(place, root.data)
        return evaluation.evaluate(place.folder, store, narrow(EvaluateConfig, root), device=root.device)

    onward = (
        f"predict model={root.model} data.fasta=<other.fa> out=scores/",
        f"generate model={root.model} out=sample.fa",
    )
    return evaluate_command(root, invocation, measure, draw_evaluation, onward, {"context": root.context})


def _evaluate_masked(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """Beside two-sided k-mer models."""
    from domains.genomics.masked_evaluate import evaluate_masked
    from pipelines.genomics.report import draw_masked_evaluation

    def measure(place: "ModelPlace") -> "MaskedEvaluation":
        store = _training_genome(place, root.data)
        return evaluate_masked(place.folder, store, narrow(EvaluateConfig, root), device=root.device)

    onward = (f"predict model={root.model} data.fasta=<other.fa> out=scores/",)
    apart = {"mask_fraction": root.mask_fraction}
    return evaluate_command(root, invocation, measure, draw_masked_evaluation, onward, apart)


def _evaluate_annotation(root: EvaluateRoot, invocation: Invocation) -> Outcome:
    """Beside k-mer regression and Markov log-odds, or codon models."""
    from pipelines.genomics import annotation

    def measure(place: "ModelPlace") -> "annotation.Evaluation":
        store = _training_genome(place, root.data)
        return annotation.measure(place, store, root.data, narrow(EvaluateConfig, root), root.device)

    onward = (f"predict model={root.model} data.fasta=<other.fa> out=annotated/",)
    return evaluate_command(root, invocation, measure, annotation.draw, onward)


def predict(root: PredictRoot, invocation: Invocation) -> Outcome:
    """The log-likelihood of every base of a file, or what a model of annotation says of it."""
    from domains.genomics import predict as prediction
    from domains.genomics.annotation.predict import annotate
    from domains.genomics.model import read_record
    from domains.genomics.train import open_store
    from pipelines.genomics import annotation
    from pipelines.places import find_model, output_folder

    place = find_model(root.model, root.tracking)
    out = output_folder(root.out)
    config = narrow(PredictConfig, root)
    prediction.check_request(config)
    kind = read_record(place.folder).config.task.kind  # a folder that is none is told before the file is read
    store = open_store(DataConfig(fasta=root.data.fasta, stores=root.data.stores))
    annotates = kind in annotation.KINDS
    run = annotate if annotates else prediction.predict
    done = run(place.folder, store, out, config, device=root.device)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    onward = _onward(done.out, done.missing, config.tracks, "the bigWig files" if annotates else prediction.BIGWIG)
    return Outcome(f"{'annotation' if annotates else 'scores'}: {done.out} ({done.summary()})", (onward,))


def _onward(out: Path, missing: int, tracks: Sequence[str], bigwig: str = "") -> str:
    if missing:
        return f"the last shard to end completes {out}; the same line without shards= does what is left"
    kinds = {"bedgraph": "the bedGraph files", "bigwig": bigwig}
    shown = " or ".join(kinds[track] for track in kinds if track in tracks)
    return f"{f'open {shown} of {out} in a genome browser, or ' if shown else ''}read its Parquet files with polars"


def score(root: ScoreRoot, invocation: Invocation) -> Outcome:
    """The variants of a VCF, each with how much likelier it is than the reference."""
    from domains.genomics.model import read_record
    from domains.genomics.train import open_store
    from domains.genomics.variants import score as scoring
    from pipelines.genomics.report import record_scores
    from pipelines.jobs import track_results
    from pipelines.places import find_model, output_file
    from pipelines.recorder import recorder

    place = find_model(root.model, root.tracking)
    out, vcf = output_file(root.out), Path(root.data.vcf)
    config = narrow(ScoreConfig, root)
    scoring.check_request(config, vcf, out)
    read_record(place.folder)  # a folder that is none is told before the genome is read
    recorder(root.tracking, invocation.domain.name, out.parent, continues=True).check()
    store = open_store(DataConfig(fasta=root.data.fasta, stores=root.data.stores))
    done = scoring.score(place.folder, store, vcf, out, config, device=root.device)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if done.unscored.keys() <= scoring.OF_ANOTHER_GENOME and done.unscored and not sum(done.scored.values()):
        raise UserError(f"{done.vcf}: is written, but nothing in it could be scored; {done.summary()}")
    listener = track_results(invocation, root.tracking, place, done.folder, partial(record_scores, done))
    before = " (done before)" if done.reused else ""
    return Outcome(
        "\n".join([f"scores: {done.vcf} ({done.summary()}){before}", f"table: {done.table}", *listener.where]),
        (f"bcftools view -i 'SERP_LLR<-5' {done.vcf}, or read {done.table} with polars", *listener.look),
    )


def embed(root: EmbedRoot, invocation: Invocation) -> Outcome:
    """Windows, bases or regions of a file as vectors."""
    from domains.genomics import embed as embedding
    from domains.genomics.annotation.table import read_annotation
    from domains.genomics.model import read_record
    from domains.genomics.train import open_store
    from pipelines.genomics.annotation import KINDS
    from pipelines.places import find_model, output_folder

    place = find_model(root.model, root.tracking)
    out = output_folder(root.out)
    config = narrow(EmbedConfig, root)
    embedding.check_request(config, bool(root.data.regions))
    kind = read_record(place.folder).config.task.kind  # a folder that is none is told before the files are read
    if kind in KINDS:
        raise UserError(f"{place.folder}: is a model of task={kind}; embed with the pre-trained model it was made from")
    regions = read_annotation(root.data.regions) if root.data.regions else None
    store = open_store(DataConfig(fasta=root.data.fasta, stores=root.data.stores))
    done = embedding.embed(place.folder, store, out, config, regions, device=root.device)
    onward = f"read the Parquet files of {done.out} with polars"
    return Outcome(
        f"embeddings: {done.out} ({done.summary()})", (_onward(out, done.missing, ()) if done.missing else onward,)
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
    kind = kind_of_run(invocation, TrainConfig, root.run, root.tracking)
    return import_command(TRAININGS.get(kind, TRAINING), root, invocation)


def _training_genome(place: "ModelPlace", source: SourceConfig) -> "GenomeStore":
    """The genome that a model was trained on: where the user says, or where it is found."""
    from domains.genomics.model import read_record
    from domains.genomics.store import GenomeStore
    from domains.genomics.train import open_store
    from pipelines.places import find_training_data

    trained = read_record(place.folder)
    if source.fasta or source.store:
        return open_store(_data(source))
    return find_training_data(place, trained, source.stores, open_store, GenomeStore.open, key="data.fasta")


def _data(source: SourceConfig) -> DataConfig:
    return DataConfig(fasta=source.fasta, store=source.store, stores=source.stores)
