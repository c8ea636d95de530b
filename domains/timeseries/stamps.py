"""Stamps of rows: dates, times and text in, microseconds UTC and the offset of the local clock out."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.errors import UserError

Column = Any  # a polars Series; polars itself is imported late

REMEDY = "write stamps as 2020-01-31, 2020-01-31 09:30:00 or 2020-01-31T09:30:00+02:00"

# What text may look like, after its offset was taken away. Only ISO 8601 and its variant with slashes: of 03/04/2020
# nobody can tell the day from the month.
_FORMATS = tuple(
    day + clock
    for day in ("%Y-%m-%d", "%Y/%m/%d")
    for clock in ("", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M")
)
_OFFSET = r":\d{2}(?:\.\d+)?\s*(Z|z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2})$"  # behind a time of day alone, never a date
_MOST = 18 * 3600  # seconds that a clock may be off UTC


@dataclass(frozen=True)
class Stamps:
    """Stamps of the rows of a batch.

    Attributes:
        time: int64 (n,), microseconds since 1970 UTC; 0 where there is none.
        offset: int32 (n,), seconds that the local clock is ahead of UTC.
        known: bool (n,), where a stamp was read.
        empty: bool (n,), where nothing is written.
    """

    time: np.ndarray
    offset: np.ndarray
    known: np.ndarray
    empty: np.ndarray


class StampReader:
    """Reads one column of stamps over all batches and files, and makes sure that they are written in one manner.

    Attributes:
        aware: whether the stamps say how far they are from UTC; None before the first.
    """

    def __init__(self, column: str, zone: str) -> None:
        """For stamps of ``column``; ``zone`` is the clock that ``offset`` is of, as the stamps have it when empty.

        Raises:
            UserError: no such zone.
        """
        _check_zone(zone)
        self.aware: bool | None = None
        self._column = column
        self._zone = zone
        self._named: tuple[str, Path] | None = None  # zone of a typed column, and where it was met first
        self._first = ""  # where the first stamp was, and how it was written

    def read(self, column: Column, path: Path, row: int) -> Stamps:
        """Stamps of a batch, a polars Series of dates, times or text; ``row`` (from 0) of the file is its first row.

        Raises:
            UserError: stamps with and without an offset come together, two files have different zones, or the column
                is of a type that holds no stamps.
        """
        import polars as pl

        kind = column.dtype
        text = column.cast(pl.String) if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) else None
        if text is not None:
            time, offset = _parse(text)
        elif kind in (pl.Date, pl.Datetime):
            time, offset = self._typed(column, path, row)
        else:
            shown = f" (row {row + 1}: {column[0]})" if len(column) else ""
            raise UserError(f"{path}: column {self._column} holds {kind}, no stamps{shown}; {REMEDY}")
        known = time.is_not_null().to_numpy()
        self._check_manner(column, known, offset.is_not_null().to_numpy(), path, row)
        microseconds = time.fill_null(0).to_numpy()
        if self._zone:
            seconds = _offset_in(self._zone, microseconds)
        else:
            seconds = offset.fill_null(0).to_numpy()
        empty = column.is_null() if text is None else text.fill_null("").str.strip_chars() == ""
        return Stamps(microseconds, seconds.astype(np.int32), known, empty.to_numpy())

    def _typed(self, column: Column, path: Path, row: int) -> tuple[Column, Column]:
        import polars as pl

        zone = getattr(column.dtype, "time_zone", None)
        time = column.cast(pl.Datetime("us", zone)).cast(pl.Int64)
        if zone is None:
            return time, pl.Series([None], dtype=pl.Int32).new_from_index(0, len(time))
        if self._named and self._named[0] != zone and not self._zone:
            raise UserError(
                f"{path}: column {self._column} is in zone {zone} (row {row + 1}: {column[0]}), but that of "
                f"{self._named[1].name} in {self._named[0]}; say as data.zone which clock to read both on"
            )
        self._named = self._named or (zone, path)
        offset = pl.Series(_offset_in(zone, time.fill_null(0).to_numpy()))
        return time, offset

    def _check_manner(self, column: Column, known: np.ndarray, aware: np.ndarray, path: Path, row: int) -> None:
        stamps = np.flatnonzero(known)
        if not len(stamps):
            return
        if self.aware is None:
            first = int(stamps[0])
            self.aware = bool(aware[first])
            self._first = f"row {row + first + 1} of {path.name}: {column[first]}"
        odd = stamps[aware[stamps] != self.aware]
        if len(odd):
            at = int(odd[0])
            has = "no offset from UTC" if self.aware else "an offset from UTC"
            others = "have one" if self.aware else "have none"
            raise UserError(
                f"{path}: row {row + at + 1}: column {self._column}: {column[at]} has {has}, but stamps before it "
                f"{others} ({self._first}); write all with it or all without"
            )


def _parse(text: Column) -> tuple[Column, Column]:
    """Microseconds UTC, and seconds ahead of UTC, both null where unknown; the latter also where none is written."""
    import polars as pl

    text = text.str.strip_chars()
    suffix = text.str.extract(_OFFSET, 1)
    if suffix.null_count() == len(suffix):
        return _parse_local(text), suffix.cast(pl.Int32)
    seconds = {written: _seconds(written) for written in suffix.drop_nulls().unique()}
    offset = suffix.replace_strict(list(seconds), list(seconds.values()), default=None, return_dtype=pl.Int32)
    local = pl.DataFrame({"text": text, "suffix": suffix}).select(
        pl.when(pl.col("suffix").is_null())
        .then("text")
        .otherwise(pl.col("text").str.strip_suffix(pl.col("suffix")).str.strip_chars_end())
    )
    time = _parse_local(local.to_series()) - offset.fill_null(0).cast(pl.Int64) * 1_000_000
    impossible = suffix.is_not_null() & offset.is_null()
    return time.set(impossible, None), offset


def _parse_local(text: Column) -> Column:
    """Microseconds since 1970 on the clock that the text is written in."""
    import polars as pl

    def parse(values: Column, form: str) -> Column:
        return values.str.to_datetime(form, time_unit="us", strict=False)

    first = text.drop_nulls().head(1)
    found = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    for form in sorted(_FORMATS, key=lambda form: parse(first, form).null_count()):  # most likely the right one first
        if found.null_count() == text.null_count():
            break
        found = found.zip_with(found.is_not_null(), parse(text, form))
    return found.cast(pl.Int64)


def _seconds(offset: str) -> int | None:
    match = re.fullmatch(r"([+-])(\d{2}):?(\d{2})?", offset)
    if not match:
        return 0  # Z, UTC, GMT
    hours, minutes = int(match[2]), int(match[3] or 0)
    seconds = hours * 3600 + minutes * 60
    return None if minutes > 59 or seconds > _MOST else seconds * (-1 if match[1] == "-" else 1)


def _offset_in(zone: str, time: np.ndarray) -> np.ndarray:
    """Seconds that the clock of a zone is ahead of UTC at each of these microseconds UTC, int32."""
    import polars as pl

    there = pl.Series(time).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(zone)
    local = there.dt.replace_time_zone(None).cast(pl.Int64).to_numpy()
    return ((local - time) // 1_000_000).astype(np.int32)


def _check_zone(zone: str) -> None:
    import polars as pl

    if not zone:
        return
    try:
        _offset_in(zone, np.zeros(1, dtype=np.int64))
    except pl.exceptions.PolarsError:
        from zoneinfo import available_timezones

        near = difflib.get_close_matches(zone, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "give a name such as America/New_York, or leave it empty"
        raise UserError(f"data.zone={zone}: no such time zone; {hint}") from None
