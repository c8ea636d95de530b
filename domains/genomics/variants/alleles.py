"""What a VCF allele does to the reference: checked, without what both share, and with the room it can move in.

One change of a sequence can be written in several ways: deleting any one A of AAAA gives AAA. :class:`Edit` holds the
leftmost one, which is what VCF asks for (Tan, Abecasis and Kang 2015, Unified representation of genetic variants), and
how far to the right it may be moved. Both ends are needed: read forwards, reference and alternative first differ at the
rightmost place, read on the other strand at the leftmost.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from domains.genomics.tokens import LETTER_TO_TOKEN, A, T, decode

Reader = Callable[[int, int], np.ndarray]  # (start, stop), 0-based and half-open -> uint8 tokens of a contig

_BLOCK = 256  # bases looked at at a time while an indel is moved
_KNOWN = frozenset(range(A, T + 1))


class Reason(StrEnum):
    """Why an allele has no score; the words stand in the VCF and in the table."""

    MALFORMED = "malformed"  # not a line of VCF; it is not written again
    NO_ALT = "no_alt"  # ALT is '.'
    STAR = "star"  # '*': deleted by another record
    SYMBOLIC = "symbolic"  # <DEL> and the like: the bases are not told
    BREAKEND = "breakend"
    UNKNOWN_CONTIG = "unknown_contig"  # the genome does not have it
    BEYOND_CONTIG = "beyond_contig"
    UNKNOWN_REF = "unknown_ref"  # REF, or the genome there, is not A, C, G, T alone
    UNKNOWN_ALT = "unknown_alt"
    REF_MISMATCH = "ref_mismatch"  # the genome has other bases there
    SAME_AS_REF = "same_as_ref"
    NO_FLANK = "no_flank"  # of one strand nothing is left to compare: a contig's end, or N


class Edit(NamedTuple):
    """A change of a contig: ``deleted`` bases from ``start`` on give way to ``inserted``; the leftmost of its forms.

    Nothing that is deleted or inserted could be left out: one of the two is empty, or they differ at both ends.
    """

    start: int  # 0-based
    deleted: int
    inserted: bytes  # tokens of A, C, G, T
    shift: int  # bases to the right that it may move without changing the result; 0 unless one of the two is empty

    @property
    def kind(self) -> str:
        """snv, mnv, insertion, deletion or delins."""
        if not self.inserted or not self.deleted:
            return "deletion" if self.deleted else "insertion"
        if self.deleted == len(self.inserted):
            return "snv" if self.deleted == 1 else "mnv"
        return "delins"

    @property
    def rightmost(self) -> "Edit":
        """The same change, moved as far to the right as it goes (as a start from which it cannot be moved)."""
        turn = self.shift % len(self.inserted) if self.inserted else 0
        return Edit(self.start + self.shift, self.deleted, self.inserted[turn:] + self.inserted[:turn], 0)


def resolve(read: Reader, length: int, position: int, ref: str, alt: str) -> Edit | Reason:
    """What an allele does, or why that cannot be told.

    Args:
        read: tokens of the contig.
        length: of the contig.
        position: POS of the VCF, 1-based.
        ref, alt: in either case, as the VCF has them.
    """
    if kind := _without_bases(alt):
        return kind
    start, stop = position - 1, position - 1 + len(ref)
    if start < 0 or stop > length:
        return Reason.BEYOND_CONTIG
    told, genome = _tokens(ref), read(start, stop).tobytes()
    if not (_all_known(told) and _all_known(genome)):
        return Reason.UNKNOWN_REF
    if told != genome:
        return Reason.REF_MISMATCH
    inserted = _tokens(alt)
    if not _all_known(inserted):
        return Reason.UNKNOWN_ALT
    if told == inserted:
        return Reason.SAME_AS_REF
    return normalise(read, length, start, told, inserted)


def normalise(read: Reader, length: int, start: int, ref: bytes, alt: bytes) -> Edit:
    """The leftmost form of replacing tokens ``ref`` at ``start`` (0-based) by other tokens ``alt``."""
    tail = _common(ref[::-1], alt[::-1])
    ref, alt = ref[: len(ref) - tail], alt[: len(alt) - tail]
    lead = _common(ref, alt)
    start, ref, alt = start + lead, ref[lead:], alt[lead:]
    if ref and alt:
        return Edit(start, len(ref), alt, 0)
    unit = np.frombuffer(ref or alt, np.uint8)
    left = _repeats(lambda done, count: read(max(0, start - done - count), start - done)[::-1], unit[::-1])
    after = start + len(ref)
    right = _repeats(lambda done, count: read(min(after + done, length), min(after + done + count, length)), unit)
    turned = np.roll(unit, left % len(unit)).tobytes() if alt else b""
    return Edit(start - left, len(ref), turned, left + right)


def to_vcf(read: Reader, edit: Edit) -> tuple[int, str, str]:
    """POS (1-based), REF and ALT of an edit as VCF writes it: indels with the base before them, or at a contig's start
    with the base behind."""
    first, last = edit.start, edit.start + edit.deleted
    before = after = b""
    if not edit.deleted or not edit.inserted:
        if first:
            first, before = first - 1, read(first - 1, first).tobytes()
        else:
            last, after = last + 1, read(last, last + 1).tobytes()
    alt = before + edit.inserted + after
    return first + 1, decode(read(first, last)), decode(np.frombuffer(alt, np.uint8))


def _without_bases(alt: str) -> Reason | None:
    if alt in (".", ""):
        return Reason.NO_ALT
    if alt == "*":
        return Reason.STAR
    if alt.startswith("<") and alt.endswith(">"):
        return Reason.SYMBOLIC
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return Reason.BREAKEND
    return None


def _tokens(letters: str) -> bytes:
    return letters.encode("latin-1", "replace").translate(LETTER_TO_TOKEN)


def _all_known(tokens: bytes) -> bool:
    return _KNOWN.issuperset(tokens)


def _common(one: bytes, other: bytes) -> int:
    """Length of what both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _repeats(beyond: Callable[[int, int], np.ndarray], unit: np.ndarray) -> int:
    """For how many bases a contig goes on repeating ``unit``: ``beyond(done, count)`` gives the next of its tokens."""
    done = 0
    while len(block := beyond(done, _BLOCK)):
        same = block == unit[np.arange(done, done + len(block)) % len(unit)]
        if not same.all():
            return done + int(np.argmin(same))
        done += len(block)
    return done
