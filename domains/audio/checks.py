"""What about clips, their labels and groups should make one think twice before believing a score."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

from domains.audio.io import ClipInfo
from domains.words import counted

CLIPPED = 1e-3  # share of samples at full scale from which a clip is called clipped


class Labelled(Protocol):
    """A clip, as far as it matters here."""

    @property
    def label(self) -> str: ...

    @property
    def group(self) -> str: ...


def sound_note(info: ClipInfo) -> str:
    """What is odd about the sound of a file, for people; empty if nothing is."""
    said = [f"clipped, {info.full_scale:.2%} of the samples at full scale"] if info.full_scale >= CLIPPED else []
    if info.silent:
        said.append(f"{len(info.silent):,} of {info.channels:,} channels silent, and left out")
    return "; ".join(said)


def label_notes(clips: Sequence[Labelled]) -> list[str]:
    """A line for each doubt: classes of one clip, clips that lack a label, labels that a group gives away."""
    labels = Counter(clip.label for clip in clips if clip.label)
    if not labels:
        return []
    lines = []
    if alone := sorted(label for label, count in labels.items() if count == 1):
        lines.append(f"one clip alone has the label {_some(alone)}: too few to learn from and to test on")
    if missing := len(clips) - labels.total():
        lines.append(
            f"{counted(missing, 'clip')} {'has' if missing == 1 else 'have'} no label: left out of classification"
        )
    return lines + _group_notes(clips)


def _group_notes(clips: Sequence[Labelled]) -> list[str]:
    groups: dict[str, set[str]] = defaultdict(set)  # of each label
    labels: dict[str, set[str]] = defaultdict(set)  # of each group
    for clip in clips:
        if clip.label and clip.group:
            groups[clip.label].add(clip.group)
            labels[clip.group].add(clip.label)
    if len(groups) < 2:
        return []
    same = sorted(label for label, where in groups.items() if len(where) == 1 and labels[next(iter(where))] == {label})
    if same:
        return [
            f"label {_some(same)} equals a group: a model may learn the group (speaker, kit, room) instead, and no "
            "split by group can test it"
        ]
    if all(len(known) == 1 for known in labels.values()):
        return ["every group has one label: what sets groups apart may be learned in place of the label"]
    if once := sorted(label for label, where in groups.items() if len(where) == 1):
        return [f"label {_some(once)} occurs in one group alone: held out with it, it is never learned"]
    return []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
