"""Labels of recordings, however long: a table of sounds with their times, written part by part.

The folder holds ``manifest.json`` (which model, which recordings are done; see domains.manifest), ``labels-00000.csv``
and so on (or ``.parquet``) with a row for each sound, ``rejects.csv`` with a row for each file that could not be used,
and with ``frames`` a table of probabilities for each recording. Recordings that come later are added by another call.
"""

import csv
import io
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from domains.audio.checks import sound_note
from domains.audio.clips import Found, Reject, Source, find_clips
from domains.audio.config import PredictConfig, SourceConfig
from domains.audio.done import file_stamp, labelled, look_up
from domains.audio.endpoints import EndpointConfig, check_endpoints
from domains.audio.io import ClipError, ClipInfo, inspect_clip, read_clip
from domains.audio.label_tables import TABLES, FrameTables, open_table
from domains.audio.models.classifier import WaveClassifier
from domains.audio.models.generator import Generator
from domains.audio.recordings import Recording, hear_recordings, recording_gain
from domains.audio.stream import Segment, SoundStreams
from domains.audio.trained import CLASSIFY, SPECTROGRAM, LoadedModel, load_model
from domains.audio.whole import clip_probabilities
from domains.config import check_range
from domains.errors import UserError
from domains.files import atomic_file
from domains.hardware import choose_device
from domains.manifest import Manifest, Plan, disk_errors, open_manifest

REJECTS = "rejects.csv"
TOO_LONG = "longer than clip_seconds"
_FORMAT = 1
_MOST, _SECONDS = 256, 4 * 3600.0  # recordings, and seconds of sound, with which a part is full
_COLUMNS = {"file": str, "start": float, "end": float, "label": str, "score": float}


@dataclass(frozen=True)
class Prediction:
    """What a call of :func:`predict` did.

    Attributes:
        out: the folder.
        written, skipped: recordings labelled now, and recordings found done.
        sounds, seconds: of all recordings that are labelled in the folder.
        rejects: reason -> files that could not be used.
    """

    out: Path
    written: list[str]
    skipped: list[str]
    sounds: int
    seconds: float
    rejects: dict[str, int]


class _Job(NamedTuple):
    """What every recording is labelled with."""

    loaded: LoadedModel
    config: PredictConfig
    out: Path
    progress: bool

    @property
    def causal(self) -> bool:
        """Whether the model can hear a recording in pieces."""
        return self.loaded.model.streams if isinstance(self.loaded.model, WaveClassifier) else False

    @property
    def in_streams(self) -> bool:
        """Whether sounds are looked for, rather than one label for each recording."""
        return self.causal and self.config.mode != "clips"

    @property
    def ends(self) -> EndpointConfig:
        """What a sound is; all of a recording where it gets one label."""
        return self.config if self.in_streams else EndpointConfig(quiet_db=None, shortest_seconds=0.0)

    @property
    def longest(self) -> float:
        """Seconds of a sound that are judged at a time, where the settings leave that open."""
        return self.loaded.config.data.max_seconds if self.in_streams else math.inf


class _Todo(NamedTuple):
    """A recording that can be read, and what tells whether it has changed."""

    source: Source
    info: ClipInfo
    stamp: dict[str, Any]


class _Aside(NamedTuple):
    """A file that cannot be used, and what tells whether it has changed."""

    reject: Reject
    stamp: dict[str, Any]


def predict(
    model_dir: Path | str,
    source: SourceConfig,
    out: Path | str,
    config: PredictConfig,
    *,
    device: str = "auto",
    progress: bool = True,
) -> Prediction:
    """Label recordings.

    Columns: ``file``, the path below the root; ``start`` and ``end`` in seconds; ``label``; ``score``, its probability.

    Args:
        model_dir: a model folder of a classifier.
        source: where recordings are: ``root``, a folder or a file, or ``manifest``, a table with a column path.
        out: folder of the labels; recordings labelled there by the same model with the same settings are skipped.
        config: settings.
        device: auto, cpu or gpu.
        progress: show a bar, and say on standard error which files are kept aside, clipped or silent on a channel.

    Raises:
        UserError: a setting makes no sense; the model cannot do it; no recording is found, or none that can be used;
            one has changed since it was labelled; the folder holds something else; another process is at work there; or
            the disk is full.
    """
    check_predict(config)
    loaded = load_model(model_dir, str(choose_device(device)), (CLASSIFY, SPECTROGRAM))
    job = _Job(loaded, config, Path(out), progress)
    _check_model(job)
    found = _find(source, job.out)
    with open_manifest(job.out, _plan(job, found.where)) as manifest:
        new, skipped, aside = look_up(manifest, found)
        for reject in found.rejects:
            _tell(job, reject)
        with tqdm(total=len(new), desc="labelling", unit="file", leave=False, disable=not progress) as bar:
            for todo, bad in _parts(job, new):
                with disk_errors(job.out):
                    bad += _label_part(job, manifest, todo, bad)
                aside += [one.reject for one in bad]
                bar.update(len(todo))
        with disk_errors(job.out):
            _write_rejects(job.out / REJECTS, aside)
    entries = labelled(manifest)
    if not entries:
        first = aside[len(found.rejects)]
        raise UserError(
            f"{found.where}: no recording can be used; the first: {first}; see {job.out / REJECTS}, mend them or add "
            "others, and run again"
        )
    return Prediction(
        job.out,
        [one.name for one in new if one.name in entries],
        skipped,
        sum(entry["sounds"] for entry in entries.values()),
        sum(entry["seconds"] for entry in entries.values()),
        dict(Counter(reject.reason for reject in aside)),
    )


def load_streams(
    model_dir: Path | str, *, slots: int, config: EndpointConfig | None = None, device: str = "auto"
) -> SoundStreams:
    """A classifier that listens: recordings are opened in it, fed in blocks of any size, and closed.

    Args:
        model_dir: a model folder of a classifier in one direction.
        slots: how many recordings can be open at a time.
        config: what a sound is.
        device: auto, cpu or gpu.

    Raises:
        UserError: the model cannot stream, or a setting makes no sense.
    """
    loaded = load_model(model_dir, str(choose_device(device)), (CLASSIFY, SPECTROGRAM))
    assert not isinstance(loaded.model, Generator)
    longest = loaded.config.data.max_seconds
    return SoundStreams(
        loaded.model, loaded.sound.labels, loaded.sound.rate, slots=slots, config=config, longest_seconds=longest
    )


def check_predict(config: PredictConfig) -> None:
    """Make sure that the settings make sense; a UserError names the first that does not."""
    check_endpoints(config)
    if config.mode not in ("auto", "stream", "clips"):
        raise UserError(f"mode={config.mode}: must be auto, stream or clips")
    if config.table not in TABLES:
        raise UserError(f"table={config.table}: must be {' or '.join(TABLES)}")
    check_range("streams", config.streams, 1, 10_000)
    check_range("clip_seconds", config.clip_seconds, 0.01, 3600)


def _check_model(job: _Job) -> None:
    """Make sure that the model can do what is asked of it."""
    if not job.causal:
        needs = "mode=stream" if job.config.mode == "stream" else "frames=true" if job.config.frames else ""
        if needs:
            raise UserError(
                f"{job.loaded.path}: hears whole clips, from both ends, and {needs} wants one that streams; give "
                "mode=clips frames=false, or a model of task=classify with task.classifier.bidirectional=false"
            )


def _find(source: SourceConfig, out: Path) -> Found:
    """The recordings that are meant; what lies in the folder of the labels is passed over."""
    path = Path(source.root)
    if source.root and not source.manifest and path.is_file():
        return Found(path, [Source(path.name, path)], [])
    return find_clips(replace(source, stores=str(out)))


def _plan(job: _Job, where: Path) -> Plan:
    """What labels of this job have in common, so that others are told from them."""
    config = job.config
    settings: dict[str, Any] = {
        "mode": "stream" if job.in_streams else "clips",
        "table": config.table,
        "frames": config.frames,
    }
    if job.in_streams:
        settings |= {entry.name: getattr(config, entry.name) for entry in fields(EndpointConfig)}
    elif not job.causal:
        settings["clip_seconds"] = config.clip_seconds
    return Plan(
        holds="labels",
        parts="parts",
        identity={"format": _FORMAT, "model": job.loaded.hash},
        settings=settings,
        notes={"source": str(where), "model_folder": str(job.loaded.path), "labels": list(job.loaded.sound.labels)},
        endings=(".csv", ".parquet"),
    )


def _parts(job: _Job, new: Sequence[Source]) -> Iterator[tuple[list[_Todo], list[_Aside]]]:
    """Recordings in groups that are labelled together, and what of each group cannot be read."""
    todo: list[_Todo] = []
    bad: list[_Aside] = []
    for source in new:
        stamp = file_stamp(source.path)
        try:
            info = inspect_clip(source.path)
            if not job.causal and info.seconds > job.config.clip_seconds:
                raise ClipError(source.path, TOO_LONG, f"{info.seconds:,.1f} s; a model in one direction streams it")
            todo.append(_Todo(source, info, stamp))
            if job.progress and (note := sound_note(info)):
                tqdm.write(f"{source.name}: {note}", file=sys.stderr)
        except ClipError as error:
            bad.append(_aside(job, source, stamp, error))
        if len(todo) + len(bad) >= _MOST or sum(one.info.seconds for one in todo) >= _SECONDS:
            yield todo, bad
            todo, bad = [], []
    if todo or bad:
        yield todo, bad


def _aside(job: _Job, source: Source, stamp: dict[str, Any], error: ClipError) -> _Aside:
    reject = Reject(source.name, error.reason, error.detail)
    _tell(job, reject)
    return _Aside(reject, stamp)


def _tell(job: _Job, reject: Reject) -> None:
    if job.progress:
        tqdm.write(f"kept aside: {reject}", file=sys.stderr)


def _label_part(job: _Job, manifest: Manifest, todo: Sequence[_Todo], bad: Sequence[_Aside]) -> list[_Aside]:
    """Write the tables of a part and note that it is done; what could not be read after all."""
    number = next(i for i in range(len(manifest.parts) + 1) if f"part-{i:05d}" not in manifest.parts)
    files = {"labels": f"labels-{number:05d}.{job.config.table}"}
    sounds: dict[str, list[Segment]] = {}
    late: list[_Aside] = []
    for one, told in _heard(job, todo, files):
        if isinstance(told, ClipError):
            late.append(_aside(job, one.source, one.stamp, told))
        else:
            sounds[one.source.name] = told
    with (
        atomic_file(job.out / files["labels"]) as file,
        open_table(job.config.table, file, _COLUMNS, job.loaded.hash) as table,
    ):
        rows = [(name, *sound) for name in sorted(sounds) for sound in sounds[name]]
        table.write([list(column) for column in zip(*rows, strict=True)] or [[] for _ in _COLUMNS])
    recordings = {
        one.source.name: {**one.stamp, "seconds": one.info.seconds, "sounds": len(sounds[one.source.name])}
        for one in todo
        if one.source.name in sounds
    }
    # What cannot even be opened has no stamp: it is tried again each time.
    rejects = {a.reject.file: a.reject._asdict() | a.stamp for a in [*bad, *late] if a.stamp}
    manifest.record(f"part-{number:05d}", files, {"recordings": recordings, "rejects": rejects})
    return late


def _heard(
    job: _Job, todo: Sequence[_Todo], files: dict[str, str]
) -> Iterator[tuple[_Todo, list[Segment] | ClipError]]:
    """The sounds of each recording, as it ends. With ``frames`` its table is written, and noted in ``files``."""
    if not job.causal:
        yield from ((one, _named_whole(job, one)) for one in todo)
        return
    sound, by_name = job.loaded.sound, {one.source.name: one for one in todo}
    recordings = []
    for one in todo:
        try:
            gain = recording_gain(one.source.path, one.info, sound.rate, job.ends, sound.level_db)
            recordings.append(Recording(one.source.name, one.source.path, one.info, gain))
        except ClipError as error:
            yield one, error
    assert isinstance(job.loaded.model, WaveClassifier)
    slots = min(job.config.streams, max(1, len(recordings)))
    streams = SoundStreams(
        job.loaded.model, sound.labels, sound.rate, slots=slots, config=job.ends, longest_seconds=job.longest
    )
    told: dict[str, list[Segment]] = {one.name: [] for one in recordings}
    with FrameTables(job.out, job.config.table, job.loaded) if job.config.frames else nullcontext() as tables:
        for step in hear_recordings(streams, recordings, slots):
            told[step.name] += step.segments
            if tables is not None and step.frames is not None:
                tables.write(step.name, step.frames)
            if step.ended:
                if tables is not None:
                    files |= tables.close(step.name, step.error)
                yield by_name[step.name], step.error or told.pop(step.name)


def _named_whole(job: _Job, one: _Todo) -> list[Segment] | ClipError:
    """The one label of a clip that is heard whole."""
    sound, model = job.loaded.sound, job.loaded.model
    assert not isinstance(model, Generator)
    try:
        samples = read_clip(one.source.path, sound.rate)
    except ClipError as error:
        return error
    probabilities = clip_probabilities(model, samples, sound.level_db)
    label = int(probabilities.argmax())
    return [Segment(0.0, one.info.seconds, sound.labels[label], float(probabilities[label]))]


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    with atomic_file(path) as file:
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(Reject._fields)
        table.writerows(sorted(rejects))
        file.write(text.getvalue().encode())
