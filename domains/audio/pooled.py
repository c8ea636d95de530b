"""Evaluations of several trainings as one: folds that test every clip once, repeated with several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.audio.metrics import Difference, Naming
from domains.audio.naming import MODEL, class_lines, compare_all, group_lines
from domains.errors import UserError
from domains.tables import aligned
from domains.words import counted


@dataclass(frozen=True)
class Pooled:
    """Clips named by models that never heard their group, beside baselines under the same folds.

    Attributes:
        labels: names of the classes.
        seeds: of the trainings, each of which names every clip once.
        methods: the model first, then the baselines: a score for each seed, of baselines for all.
        together: the mean of the seeds' probabilities decides.
        differences: baseline -> what was drawn (clips, groups) -> the seeds' mean balanced accuracy less its own.
        names, truth, groups: of the clips.
        called: method -> int64 (runs, n).
    """

    labels: list[str]
    seeds: list[int]
    methods: Mapping[str, Sequence[Naming]]
    together: Naming
    differences: Mapping[str, Mapping[str, Difference]]
    names: list[str]
    truth: np.ndarray
    groups: list[str]
    called: Mapping[str, np.ndarray]

    @property
    def balanced_accuracy(self) -> float:
        """Of the model, the mean over the seeds."""
        return float(np.mean([naming.balanced_accuracy for naming in self.methods[MODEL]]))

    def table(self) -> str:
        """A line each method, and each class by the model of all seeds together."""
        rows = [["", "accuracy", "balanced", "of each seed", "model - it, 95% by clips", "by groups"]]
        for name, runs in self.methods.items():
            each = " ".join(f"{run.balanced_accuracy:.3f}" for run in runs) if len(runs) > 1 else ""
            means = (np.mean([getattr(run, key) for run in runs]) for key in ("accuracy", "balanced_accuracy"))
            found = self.differences.get(name, {})
            shown = (str(found[what]) if what in found else "" for what in ("clips", "groups"))
            rows.append([name, *(f"{mean:.3f}" for mean in means), each, *shown])
        both = self.together
        rows.append(["seeds together", f"{both.accuracy:.3f}", f"{both.balanced_accuracy:.3f}", "", "", ""])
        clips = f"{counted(len(self.names), 'clip')} of {counted(len(set(self.groups)), 'group')}"
        title = f"{clips}, each named by models without its group"
        single = {name: self.together if name == MODEL else runs[0] for name, runs in self.methods.items()}
        return "\n".join([title, "", *aligned(rows), *group_lines(self.differences), *class_lines(single)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "labels": self.labels,
            "seeds": self.seeds,
            "clips": len(self.names),
            "groups": sorted(set(self.groups)),
            "balanced_accuracy": self.balanced_accuracy,
            "methods": {name: [run.to_dict() for run in runs] for name, runs in self.methods.items()},
            "together": self.together.to_dict(),
            "names": self.names,
            "truth": self.truth.tolist(),
            "called": {name: np.asarray(called).tolist() for name, called in self.called.items()},
            "differences": {
                name: {drawn: found.to_dict() for drawn, found in of.items()} for name, of in self.differences.items()
            },
        }


def pool(evaluations: Sequence[Mapping[str, Any]], resamples: int = 2000) -> Pooled:
    """One result out of those of :meth:`domains.audio.naming.NamingEvaluation.to_dict`.

    Args:
        evaluations: of models of one kind, trained with one or several seeds on folds of the same clips.
        resamples: of the bootstrap.

    Raises:
        UserError: none; clips or labels differ, a clip is named twice by one seed, or seeds named other clips.
    """
    if not evaluations:
        raise UserError("there is no evaluation to pool; give some")
    first = evaluations[0]
    if any(found[key] != first[key] for found in evaluations for key in ("kind", "labels", "fingerprint")):
        raise UserError("evaluations of other clips, labels or kinds cannot be pooled; give those of one set of folds")
    labels: list[str] = first["labels"]
    seeds = sorted({int(found["seed"]) for found in evaluations})
    by_seed = {seed: _clips([found for found in evaluations if found["seed"] == seed], seed) for seed in seeds}
    names = sorted(by_seed[seeds[0]])
    if other := [seed for seed in seeds if sorted(by_seed[seed]) != names]:
        raise UserError(f"seed {other[0]} named other clips than seed {seeds[0]}; evaluate the folds that it lacks")
    rows = [[by_seed[seed][name] for name in names] for seed in seeds]
    truth = np.array([labels.index(row["label"]) for row in rows[0]], dtype=np.int64)
    groups = [str(row["group"]) for row in rows[0]]
    called = {
        name: np.array([[labels.index(row["called"][name]) for row in run] for run in rows], dtype=np.int64)
        for name in first["methods"]
    }
    probabilities = np.array([[[row["probabilities"][label] for label in labels] for row in run] for run in rows])
    called = {name: own if name == MODEL else own[:1] for name, own in called.items()}
    return Pooled(
        labels=labels,
        seeds=seeds,
        methods={name: [Naming(labels, truth, run) for run in own] for name, own in called.items()},
        together=Naming(labels, truth, probabilities.mean(0).argmax(1)),
        differences=compare_all(labels, truth, called, groups, resamples),
        names=names,
        truth=truth,
        groups=groups,
        called=called,
    )


def _clips(evaluations: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Mapping[str, Any]]:
    """The rows of clips of one seed, by name."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in (row for evaluation in evaluations for row in evaluation["clips"]):
        if row["name"] in found:
            raise UserError(f"{row['name']}: was named twice with seed {seed}; give each fold once")
        found[row["name"]] = row
    return found
