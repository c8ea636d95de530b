"""Names of contigs across files: what one calls ``chr1`` another calls ``1``, and a third ``NC_000001.11``.

A genome and the annotation, variants or regions that belong to it must name the same contigs. Names are never guessed:
where they differ, the user is told how, for a contig that was taken for another would be found by nobody.
"""

import difflib
import re
from collections.abc import Collection, Iterable

from domains.errors import UserError

_SHOWN = 3  # names in a message
_SEARCHED = 10_000  # names that similar ones are looked for among: a genome may have a million
_MITOCHONDRIAL = frozenset({"m", "mt", "mito", "mitochondrion"})


def check_contigs(
    names: Iterable[str], known: Collection[str], *, source: object, genome: object, partial: bool = False
) -> list[str]:
    """Make sure that the contigs which a file names are those of the genome.

    Args:
        names: of contigs, as the file writes them; repetitions do not matter.
        known: names of the genome's contigs; membership is asked of it, so a dict or set when it is large.
        source: the file that names them, for the message.
        genome: the file of the genome, for the message.
        partial: names that the genome lacks are allowed as long as it has one of them at least, and none that differs
            by spelling alone: an annotation of all chromosomes may be used with the sequence of one.

    Returns:
        the names that the genome lacks, in their order; none unless ``partial``.

    Raises:
        UserError: names are missing; the line names them and what they may be called in the genome.
    """
    names = list(dict.fromkeys(names))
    missing = [name for name in names if name not in known]
    if not missing:
        return missing
    respelled = _respelled(missing, known)
    if partial and len(missing) < len(names) and not respelled:
        return missing
    asked = next(iter(respelled), missing[0])
    shown = ", ".join(repr(name) for name in missing[:_SHOWN])
    more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    raise UserError(
        f"{source}: {genome} has no contig {shown}{more}; {suggest_contig(asked, known)}; "
        "rename them in one of the two files"
    )


def suggest_contig(name: str, known: Collection[str]) -> str:
    """A phrase for a name that no contig has: the contig that may be meant, or some that there are."""
    if (other := _with_or_without_chr(name)) in known:
        habit = "without" if len(other) < len(name) else "with"
        return f"this genome writes its names {habit} 'chr': did you mean {other!r}?"
    if same := _respelled([name], known):
        return f"did you mean {same[name]!r}?"
    searched = [known_name for known_name, _ in zip(known, range(_SEARCHED), strict=False)]
    alike = [known_name for known_name in searched if _digits(known_name) == _digits(name)]  # chr10 is not chr03
    if near := difflib.get_close_matches(name, alike, n=_SHOWN):
        return f"did you mean {' or '.join(repr(match) for match in near)}?"
    return f"it has {', '.join(searched[:5])}{f' and {len(known) - 5:,} more' if len(known) > 5 else ''}"


def _with_or_without_chr(name: str) -> str:
    return name[3:] if name.lower().startswith("chr") else f"chr{name}"


def _respelled(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """Those of ``names`` that differ from one of ``known`` by what people leave out, each with that one."""
    bare = {_bare(name): name for name in reversed(list(names))}
    found = {bare[_bare(name)]: name for name in known if _bare(name) in bare}
    return {name: found[name] for name in names if name in found}


def _bare(name: str) -> str:
    """A contig's name without what people leave out: case, chr, leading zeros, a version."""
    bare = re.sub(r"^(chr|chromosome)?[_-]?0*|\.\d+$", "", name.lower())
    return "mt" if bare in _MITOCHONDRIAL else bare


def _digits(name: str) -> str:
    return "".join(filter(str.isdigit, name)).lstrip("0")
