"""Which clips are trained on, validated on and tested on.

Clips of one group (speaker, kit, level) resemble each other more than those of a stranger ever will, so parts are whole
groups wherever groups are known. Without groups clips are drawn by their names.
"""

import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from domains.audio.checks import label_notes
from domains.audio.clips import PARTS
from domains.audio.config import DataConfig
from domains.audio.prepare import Clip
from domains.audio.store import AudioStore
from domains.errors import UserError
from domains.words import counted

_HELD_OUT = ("test", "validation")


@dataclass(frozen=True)
class Splits:
    """The three parts of a store.

    Attributes:
        train, validation, test: names of clips, sorted.
        note: one line that says how they were chosen.
        warnings: what should make one think twice, a line each.
    """

    train: list[str]
    validation: list[str]
    test: list[str]
    note: str
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, ready for JSON."""
        return {part: list(getattr(self, part)) for part in (*PARTS, "warnings")} | {"note": self.note}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "Splits":
        """The inverse of :meth:`to_dict`; a UserError when the table is not one of splits."""
        try:
            lists = {name: [str(item) for item in table[name]] for name in (*PARTS, "warnings")}
            return cls(note=str(table["note"]), **lists)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"splits: the table is not one of splits ({error!r}); train again to write it") from None

    def clips(self, store: AudioStore, part: str) -> list[int]:
        """The numbers in ``store`` of a part's clips."""
        return [store.index(name) for name in getattr(self, part)]


def make_splits(store: AudioStore, data: DataConfig, labelled: bool) -> Splits:
    """Split a store: as its table says, else by the names in ``data``, else by fraction.

    By fraction, parts get whole groups such that each label is shared out as nearly as asked; without groups, clips of
    each label in an order that only their names decide. What the table or ``data`` leaves open is drawn by fraction.

    Args:
        store: the clips.
        data: see :class:`domains.audio.config.DataConfig`.
        labelled: whether labels are to be learned; clips without one, and labels of one clip, are then left out.

    Raises:
        UserError: a name that is no group or clip or is in two parts, a fraction out of range, no two labels to tell
            apart, or nothing is left for a part.
    """
    _check(data)
    clips = _usable(store, labelled)
    grouped = any(clip.group for clip in clips)
    units = {clip.name: clip.group or clip.name for clip in clips}  # what is not torn apart
    part_of = {clip.name: clip.split for clip in clips if clip.split}
    given = bool(part_of)
    for part in _HELD_OUT:
        for unit in _named(store, data, part, sorted(set(units.values()))):
            part_of |= {name: part for name, own in units.items() if own == unit}
    for part in _HELD_OUT:
        if part not in part_of.values():
            free = [clip for clip in clips if part_of.get(clip.name, "train") == "train"]
            wanted = getattr(data, f"{part}_fraction") * len(clips) / max(len(free), 1)
            part_of |= dict.fromkeys(_draw(free, min(wanted, 1.0), grouped, labelled), part)
    parts = {part: sorted(name for name in units if part_of.get(name, "train") == part) for part in PARTS}
    for part, names in parts.items():
        if not names:
            raise UserError(
                f"{store.source_name}: no {'group' if grouped else 'clip'} is left for the {part} part of "
                f"{len(set(units.values())):,}; give more of them, or other data.test and data.validation"
            )
    by = "the table" if given else "group" if grouped else "name"
    return Splits(**parts, note=_note(by, parts, units, grouped), warnings=_warnings(clips, parts, units, labelled))


def leave_one_group_out(store: AudioStore, data: DataConfig, labelled: bool) -> list[tuple[str, Splits]]:
    """One fold for each group: tested on it, trained and validated on the others. Sorted by group.

    Raises:
        UserError: fewer than three groups are known; and see :func:`make_splits`.
    """
    groups = sorted({clip.group for clip in _usable(store, labelled)} - {""})
    if len(groups) < 3:
        raise UserError(
            f"{store.source_name}: folds need three groups, and it has {len(groups)}; give a table with a column group"
        )
    return [(group, make_splits(store, replace(data, test=[group], validation=None), labelled)) for group in groups]


def _check(data: DataConfig) -> None:
    for part in _HELD_OUT:
        fraction, names = getattr(data, f"{part}_fraction"), getattr(data, part)
        if not 0 < fraction < 1:
            raise UserError(f"data.{part}_fraction={fraction}: must lie between 0 and 1")
        if names is not None and not names:
            raise UserError(f"data.{part}=[]: name a group, or leave it out to hold out data.{part}_fraction")
    if data.test_fraction + data.validation_fraction >= 1:
        raise UserError("data.test_fraction and data.validation_fraction leave nothing to train on; lower them")
    if data.test and data.validation and (both := sorted(set(data.test) & set(data.validation))):
        raise UserError(f"{both[0]!r} is in data.test and in data.validation; name it in one")


def _usable(store: AudioStore, labelled: bool) -> list[Clip]:
    if not labelled:
        return store.clips
    counts = Counter(clip.label for clip in store.clips if clip.label)
    many = {label for label, count in counts.items() if count > 1}
    if len(many) < 2:
        raise UserError(
            f"{store.source_name}: has {counted(len(many), 'label')} of two clips or more, and "
            "nothing can be told apart; name folders after labels, or give a table with a column label"
        )
    return [clip for clip in store.clips if clip.label in many]


def _named(store: AudioStore, data: DataConfig, part: str, units: list[str]) -> list[str]:
    names = list(dict.fromkeys(getattr(data, part) or []))
    for name in names:
        if name not in units:
            near = difflib.get_close_matches(name, units, n=3) or units[:5]
            raise UserError(
                f"data.{part}: {store.source_name} has no {'group' if store.groups else 'clip'} {name!r}; it has "
                f"{', '.join(near)}{' and more' if len(units) > len(near) else ''}"
            )
    return names


def _draw(clips: Sequence[Clip], fraction: float, grouped: bool, labelled: bool) -> list[str]:
    """Names of the clips of a part."""
    labels = [clip.label if labelled else "" for clip in clips]
    if grouped:
        chosen = _draw_groups([clip.group or clip.name for clip in clips], labels, fraction)
        return [clip.name for clip in clips if (clip.group or clip.name) in chosen]
    names = []
    for label in sorted(set(labels)):
        own = sorted((clip.name for clip, of in zip(clips, labels, strict=True) if of == label), key=_order)
        count = max(round(fraction * len(own)), 1 if len(own) > 2 else 0)
        names += own[: min(count, len(own) - 1)]
    return names


def _order(name: str) -> str:
    """Any order, always the same: that of hashes."""
    return hashlib.sha256(name.encode()).hexdigest()


def _draw_groups(units: Sequence[str], labels: Sequence[str], fraction: float) -> set[str]:
    """Groups that hold as nearly as may be ``fraction`` of each label: one after another while it comes nearer.

    A label that would be left without a clip counts as if it were missed altogether, and the last group is never taken.
    """
    names, which = np.unique(units, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), label.max(initial=0) + 1))
    np.add.at(counts, (which, label), 1)
    shares = counts / counts.sum(axis=0)  # of each label
    chosen: list[int] = []
    held, best = np.zeros(shares.shape[1]), np.inf
    while len(chosen) < len(names) - 1:
        after = held + shares
        costs = ((after - fraction) ** 2 + (after > 1 - 1e-9)).sum(axis=1)
        costs[chosen] = np.inf
        unit = int(np.argmin(costs))
        if costs[unit] >= best:
            break
        chosen.append(unit)
        held, best = after[unit], costs[unit]
    return set(names[chosen].tolist())


def _note(by: str, parts: dict[str, list[str]], units: dict[str, str], grouped: bool) -> str:
    said = []
    for part, names in parts.items():
        groups = sorted({units[name] for name in names})
        of = f" of {', '.join(groups) if len(groups) <= 4 else f'{len(groups):,} groups'}" if grouped else ""
        said.append(f"{part} {counted(len(names), 'clip')}{of}")
    return f"split by {by}: {'; '.join(said)}"


def _warnings(clips: list[Clip], parts: dict[str, list[str]], units: dict[str, str], labelled: bool) -> list[str]:
    lines = []
    where: dict[str, set[str]] = {}
    for part, names in parts.items():
        for name in names:
            where.setdefault(units[name], set()).add(part)
    if torn := sorted(unit for unit, found in where.items() if len(found) > 1):
        lines.append(f"group {_some(torn)} is in more than one part: scores tell less than they seem to")
    if labelled:
        lines += label_notes(clips)
        labels = {part: {clip.label for clip in clips if clip.name in set(names)} for part, names in parts.items()}
        for part in _HELD_OUT:
            if unseen := sorted(labels[part] - labels["train"]):
                lines.append(f"label {_some(unseen)} is in the {part} part and not in training: always told wrong")
        if untested := sorted(labels["train"] - labels["test"]):
            lines.append(f"label {_some(untested)} is not in the test part: nothing is known of it")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
