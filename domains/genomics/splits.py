"""Which parts of a genome are trained on, validated on and tested on.

Neighbouring windows of a genome share genes, repeats and composition, so parts are whole contigs wherever there are
enough of them, and otherwise blocks of a contig with a gap between them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from domains.config import check_range
from domains.errors import UserError
from domains.genomics.config import DataConfig
from domains.genomics.store import Contig, GenomeStore
from domains.words import counted


class Region(NamedTuple):
    """A stretch of a contig, 0-based and half-open."""

    contig: str
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Splits:
    """The three parts of a genome, and one line that says how they were chosen."""

    train: list[Region]
    validation: list[Region]
    test: list[Region]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON."""
        parts = {part: [region._asdict() for region in getattr(self, part)] for part in _PARTS}
        return parts | {"note": self.note}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "Splits":
        """The inverse of :meth:`to_dict`; a UserError when the table is not one of splits."""
        try:
            parts = {
                part: [Region(str(r["contig"]), int(r["start"]), int(r["stop"])) for r in table[part]]
                for part in _PARTS
            }
            return cls(note=str(table["note"]), **parts)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"splits: the table is not one of splits ({error!r}); train again to write it") from None


_PARTS = ("train", "validation", "test")
_HELD_OUT = ("test", "validation")


def make_splits(store: GenomeStore, data: DataConfig) -> Splits:
    """Split a genome as ``data`` says: contigs by name, or whole contigs by fraction of the bases.

    Contigs drawn by fraction are spread over all sizes, without chance. A genome with fewer usable contigs (at least a
    window long) than parts is split into blocks of its longest contig, in the order train, validation, test, with a gap
    of a window between them.

    Raises:
        UserError: a named contig does not exist or is in two parts, a fraction is out of range, every contig is shorter
            than the window, or nothing is left to train or validate on.
    """
    _check(data)
    named = _named(store, data)
    _check_lengths(store, data.window)
    taken = {contig.name for contigs in named.values() for contig in contigs}
    free = [contig for contig in store.contigs if contig.name not in taken]
    usable = [contig for contig in free if contig.length >= data.window]
    asked = {part: getattr(data, f"{part}_fraction") for part in _HELD_OUT if not named[part]}
    if not usable:
        raise UserError(
            f"{store.source_name}: nothing is left to train on; name fewer contigs in data.test and data.validation"
        )
    if len(usable) > len(asked):
        how, parts = "whole contigs", _split_contigs(free, usable, asked)
    else:
        longest = max(usable, key=lambda contig: contig.length)
        how = f"blocks of {longest.name}, {data.window:,} bases apart, for want of contigs"
        parts = _split_longest(store, free, longest, asked, data.window)
    parts |= {part: _whole(contigs) for part, contigs in named.items() if contigs}
    if not any(region.length >= data.window for region in parts["validation"]):
        raise UserError(
            f"{store.source_name}: every validation contig is shorter than the window of {data.window:,}; "
            "name a longer one in data.validation, or give a smaller data.window"
        )
    return Splits(**parts, note=_note(store, how, parts, data.window))


def _check(data: DataConfig) -> None:
    for part in _HELD_OUT:
        fraction, names = getattr(data, f"{part}_fraction"), getattr(data, part)
        if not 0 < fraction < 1:
            raise UserError(f"data.{part}_fraction={fraction}: must lie between 0 and 1")
        if names is not None and not names:
            raise UserError(f"data.{part}=[]: name a contig, or leave it out to hold out data.{part}_fraction")
    if data.test_fraction + data.validation_fraction >= 1:
        raise UserError("data.test_fraction and data.validation_fraction leave nothing to train on; lower them")
    check_range("data.window", data.window, 2)


def _check_lengths(store: GenomeStore, window: int) -> None:
    longest = max(contig.length for contig in store.contigs)
    if longest < window:
        raise UserError(
            f"{store.source_name}: every contig is shorter than the window of {window:,} (the longest has "
            f"{longest:,} bases); give a data.window well below that"
        )


def _named(store: GenomeStore, data: DataConfig) -> dict[str, list[Contig]]:
    named: dict[str, list[Contig]] = {}
    for part in _HELD_OUT:
        try:
            named[part] = [store.contig(name) for name in dict.fromkeys(getattr(data, part) or [])]
        except UserError as error:
            raise UserError(f"data.{part}: {error} (data=genome holds out fractions instead)") from None
    if both := [contig.name for contig in named["test"] if contig in named["validation"]]:
        raise UserError(f"{store.source_name}: contig {both[0]} is in data.test and data.validation; name it in one")
    return named


def _split_contigs(free: list[Contig], usable: list[Contig], fractions: dict[str, float]) -> dict[str, list[Region]]:
    held = _by_fraction(usable, fractions)
    taken = {contig.name for contigs in held.values() for contig in contigs}
    train = [contig for contig in free if contig.name not in taken]
    return {"train": _whole(train)} | {part: _whole(contigs) for part, contigs in held.items()}


def _split_longest(
    store: GenomeStore, free: list[Contig], longest: Contig, fractions: dict[str, float], gap: int
) -> dict[str, list[Region]]:
    blocks = {part: [region] for part, region in _blocks(store, longest, fractions, gap).items()}
    blocks["train"] += _whole(contig for contig in free if contig is not longest)
    return blocks


def _by_fraction(contigs: list[Contig], fractions: dict[str, float]) -> dict[str, list[Contig]]:
    """Whole contigs for each part, the parts' shares of all the bases nearly as asked.

    The contigs are passed by size, largest first; a part's debt grows by its share of each contig, and it takes a
    contig that brings its debt nearer to zero. So every part holds large and small contigs.
    """
    left = sorted(contigs, key=lambda contig: (-contig.length, contig.name))
    total = sum(contig.length for contig in left)
    parts: dict[str, list[Contig]] = {}
    for part, fraction in fractions.items():
        wanted = fraction * total
        later = len(fractions) - len(parts)  # parts that need a contig after this one, training among them
        part_contigs = _spread(left, wanted)[: len(left) - later]
        parts[part] = part_contigs or [_nearest(left, wanted)]
        taken = {contig.name for contig in parts[part]}
        left = [contig for contig in left if contig.name not in taken]
    return parts


def _nearest(contigs: list[Contig], wanted: float) -> Contig:
    return min(contigs, key=lambda contig: abs(contig.length - wanted))


def _spread(contigs: list[Contig], wanted: float) -> list[Contig]:
    """Contigs of ``wanted`` bases together, about, taken evenly along the list."""
    share = wanted / sum(contig.length for contig in contigs)
    taken, debt = [], 0.0
    for contig in contigs:
        debt += share * contig.length
        if contig.length <= 2 * debt:
            taken.append(contig)
            debt -= contig.length
    return taken


def _blocks(store: GenomeStore, contig: Contig, fractions: dict[str, float], gap: int) -> dict[str, Region]:
    """Cut a contig into train, validation and test (those asked for), ``gap`` bases left out between them."""
    room = contig.length - gap * len(fractions)
    held: dict[str, int] = {part: int(fractions[part] * room) for part in ("validation", "test") if part in fractions}
    sizes = {"train": room - sum(held.values()), **held}
    if min(sizes.values()) < gap:
        smallest = min([*fractions.values(), 1 - sum(fractions.values())])
        enough = int(contig.length / (len(fractions) + 1 / smallest)) - 1
        raise UserError(
            f"{store.source_name}: {contig.name} ({contig.length:,} bases) is too short to be cut into "
            f"{', '.join(sizes)} with a window of {gap:,}; give data.window={max(enough, 2)} or less"
        )
    blocks: dict[str, Region] = {}
    start = 0
    for part, size in sizes.items():
        blocks[part] = Region(contig.name, start, start + size)
        start += size + gap
    return blocks


def _whole(contigs: Iterable[Contig]) -> list[Region]:
    return [Region(contig.name, 0, contig.length) for contig in contigs]


def _note(store: GenomeStore, how: str, parts: dict[str, list[Region]], window: int) -> str:
    total = sum(region.length for regions in parts.values() for region in regions)
    said = []
    for part in _PARTS:
        share = sum(region.length for region in parts[part]) / total
        said.append(f"{part} {share:.1%} ({_names(store, parts[part])})")
    if short := [region for region in parts["train"] if region.length < window]:
        said.append(f"{counted(len(short), 'contig')} shorter than the window unused in training")
    return f"split into {how}: {'; '.join(said)}"


def _names(store: GenomeStore, regions: list[Region]) -> str:
    if len(regions) > 4:
        return counted(len(regions), "contig")
    cut = [region.length < store.contig(region.contig).length for region in regions]
    return ", ".join(
        f"{r.contig}:{r.start}-{r.stop}" if part else r.contig for r, part in zip(regions, cut, strict=True)
    )
