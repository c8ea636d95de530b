"""Runs a batch job over the parts of a genome: what is missing, by this process, by shards, or by actors of Ray.

Whoever does a part writes the same bytes, so it does not matter how the work was divided.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domains.config import MANY, check_range
from domains.engines import Progress, check_engine, run_local, run_ray
from domains.errors import UserError
from domains.files import FolderInUse
from domains.genomics.config import DivisionConfig
from domains.genomics.parts import Part
from domains.manifest import Manifest, Plan, disk_errors, open_manifest
from domains.shards import Shard, choose_shard, share_out
from domains.words import counted

Work = Callable[[Part, Path, Progress], dict[str, Any]]
"""Does a part: (part, folder for what is unfinished, where to report bases done) -> its entry in the manifest."""


@dataclass(frozen=True)
class Run:
    """A batch job over parts.

    Attributes:
        out: folder of the results.
        plan: what they are.
        parts: all of them.
        work: does one.
        open_work: makes ``work`` in another process; picklable, so a partial of a function at the top of a module.
        finish: what is made of all parts once they are done, by one process.
        device: cpu or cuda.
        kinds: of files that each part has.
        passes: how often each base is read, for the bar.
        wholes: names of the files that ``finish`` makes.
    """

    out: Path
    plan: Plan
    parts: Sequence[Part]
    work: Work
    open_work: Callable[[], Work]
    finish: Callable[[Manifest], None]
    device: str
    kinds: tuple[str, ...]
    passes: int = 1
    wholes: tuple[str, ...] = ()


@dataclass
class Ran:
    """What became of a :class:`Run`.

    Attributes:
        manifest: the file.
        entries: of all parts that are done, by whomever, in their order.
        written, skipped: names of the parts done now, and of those of this process that were done before.
        missing: parts that are left to other shards.
        shard: of this process; None when it had all parts.
    """

    manifest: Path
    entries: dict[str, dict[str, Any]]
    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: int = 0
    shard: Shard | None = None

    def in_words(self, unit: str) -> str:
        """What this process did, for people; ``unit`` is what a part is called."""
        whose = f"shard {self.shard.index} of {self.shard.count}: " if self.shard else ""
        before = f", {len(self.skipped):,} done before" if self.skipped else ""
        left = f"; {self.missing:,} left to other shards" if self.missing else ""
        return f"{whose}{counted(len(self.written), unit)}{before}{left}"


def run_parts(run: Run, how: DivisionConfig, *, progress: bool = True) -> Ran:
    """Do the parts that are missing, or those of them that are this process's share.

    A shard ends by looking whether it was the last: then it finishes the results as one process would have.

    Raises:
        UserError: as :func:`domains.manifest.open_manifest`; a setting of ``how`` makes no sense; the disk is full.
    """
    shard = check_division(how)
    shares = [range(len(run.parts))] if shard is None else share_out([part.length for part in run.parts], shard.count)
    mine = [run.parts[number] for number in shares[shard.index if shard else 0]]
    with open_manifest(run.out, run.plan, shard) as manifest:
        if shard is None:
            _refuse_foreign(run, manifest)
        ran = Ran(manifest.path, {}, shard=shard)
        ran.skipped = [part.name for part in mine if manifest.is_done(part.name, run.kinds)]
        done = set(ran.skipped)
        missing = [part for part in mine if part.name not in done]
        skipped = sum(part.length for part in mine) - sum(part.length for part in missing)
        with _bar(run, mine, skipped, progress) as bar:
            unfinished = manifest.progress if missing else run.out
            for part, entry in _run(run, how, missing, unfinished, bar):
                manifest.enter(part.name, entry)
        ran.written = [part.name for part in missing]
        if shard is None:
            _finish(run, manifest)
        _collect(run, manifest, ran)
    if shard is not None:
        try:
            with open_manifest(run.out, run.plan) as manifest:
                _refuse_foreign(run, manifest)
                if _finish(run, manifest):
                    ran.manifest = manifest.path
                _collect(run, manifest, ran)
        except FolderInUse:
            pass  # another shard is at work and will look in its turn
    return ran


def _refuse_foreign(run: Run, manifest: Manifest) -> None:
    for file in run.wholes:
        manifest.refuse_foreign(file)


def check_division(how: DivisionConfig) -> Shard | None:
    """The shard that this process is, once the settings make sense; a UserError otherwise."""
    check_engine(how.engine)
    check_range("workers", how.workers, 1, MANY)
    shard = choose_shard(how.shards, how.shard)
    if shard is not None and how.engine == "ray":
        raise UserError("shards and engine=ray do not go together: Ray divides the work itself; give one of the two")
    return shard


def _run(
    run: Run, how: DivisionConfig, parts: list[Part], unfinished: Path, bar: tqdm
) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Parts and their entries, as they are done."""
    if how.engine == "ray":
        jobs = {_to_text(part, unfinished): part for part in parts}
        for text, entry in run_ray(
            partial(_open_for_ray, run.open_work, run.out), list(jobs), workers=how.workers, device=run.device
        ):
            bar.update(jobs[text].length * run.passes)
            yield jobs[text], json.loads(entry)
        return
    progress = Progress(bar.update)

    def work(part: Part) -> dict[str, Any]:
        with disk_errors(run.out):
            return run.work(part, unfinished, progress)

    yield from run_local(work, parts, device=run.device, progress=progress)


def _open_for_ray(open_work: Callable[[], Work], out: Path) -> Callable[[str], str]:
    work = open_work()

    def do(text: str) -> str:
        job = json.loads(text)
        part = Part(**{**job["part"], "contigs": range(*job["part"]["contigs"])})
        with disk_errors(out):
            return json.dumps(work(part, Path(job["unfinished"]), Progress()))

    return do


def _to_text(part: Part, unfinished: Path) -> str:
    plain = {**asdict(part), "contigs": [part.contigs.start, part.contigs.stop]}
    return json.dumps({"part": plain, "unfinished": str(unfinished.resolve())})


def _finish(run: Run, manifest: Manifest) -> bool:
    """Make what is made of all parts, once all are done."""
    if not all(part.name in manifest.parts for part in run.parts):
        return False
    with disk_errors(run.out):
        run.finish(manifest)
        return manifest.close([part.name for part in run.parts])


def _collect(run: Run, manifest: Manifest, ran: Ran) -> None:
    known = {**manifest.others, **manifest.parts}
    ran.entries = {part.name: known[part.name] for part in run.parts if part.name in known}
    ran.missing = len(run.parts) - len(ran.entries)


def _bar(run: Run, parts: Sequence[Part], done: int, progress: bool) -> tqdm:
    total = sum(part.length for part in parts) * run.passes
    return tqdm(total=total, initial=done * run.passes, unit="b", unit_scale=True, delay=1, disable=not progress)
