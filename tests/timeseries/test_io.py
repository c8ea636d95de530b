"""Files, columns, numbers and stamps of long tables, and what is said when they are not what they should be."""

import gzip
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import domains.timeseries.io as io_module
from domains.errors import UserError
from domains.timeseries.config import SourceConfig
from domains.timeseries.io import find_files, open_table, read_batches, read_names, read_numbers
from domains.timeseries.stamps import StampReader

HERE = Path("a.csv")
UTC = ZoneInfo("UTC")


def stamps_of(texts, zone="", dtype=pl.String):
    return StampReader("ds", zone).read(pl.Series(texts, dtype=dtype), HERE, 0)


def microseconds(moment):
    """Of an aware datetime, by Python's own arithmetic."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def write_csv(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def read_all(path, source=None):
    source = source or SourceConfig()
    return list(read_batches(open_table(path, source), source, StampReader(source.time, source.zone)))


def message(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_a_file_a_folder_and_a_glob(tmp_path):
    names = ["b.csv", "a.parquet", "sub/c.csv.gz", "notes.md", ".hidden.csv", "_part/d.csv", "stores/e.parquet"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    stores = tmp_path / "stores"

    def found(path):
        return [str(file.relative_to(tmp_path)) for file in find_files(str(path), stores)]

    assert found(tmp_path / "b.csv") == ["b.csv"]
    assert found(tmp_path) == ["a.parquet", "b.csv", "sub/c.csv.gz"]
    assert found(tmp_path / "*.csv") == ["b.csv"]
    assert found(tmp_path / "**" / "*.gz") == ["sub/c.csv.gz"]
    assert found(stores / "e.parquet") == ["stores/e.parquet"]  # named outright


def test_no_file_is_said(tmp_path):
    known = ".csv, .csv.gz, .tsv, .tsv.gz, .txt, .parquet, .pq"
    assert message(find_files, "nowhere.csv", tmp_path) == "nowhere.csv: no such file or folder; check data.path"
    assert message(find_files, f"{tmp_path}/*.csv", tmp_path / "stores") == (
        f"{tmp_path}/*.csv: holds or matches no file that ends in one of {known}; check data.path"
    )
    other = tmp_path / "a.xlsx"
    other.touch()
    assert message(find_files, str(other), tmp_path) == (
        f"{other}: is neither CSV nor Parquet by its name; it must end in one of {known}"
    )


@pytest.mark.parametrize(
    ("header", "end"),
    [
        ("unique_id,DS,y", "has no column 'ds' (data.time); did you mean 'DS'?"),
        ("unique_id,ds,yy", "has no column 'y' (data.target); did you mean 'yy'?"),
        ("unique_id,ds,close", "has no column 'y' (data.target); it has unique_id, ds, close"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(tmp_path, header, end):
    path = write_csv(tmp_path / "a.csv", header, "a,2020-01-01,1")
    assert message(open_table, path, SourceConfig()) == f"{path}: {end}"


def test_a_missing_id_column_is_an_error_only_if_asked_for(tmp_path):
    path = write_csv(tmp_path / "gold.csv", "ds,y", "2020-01-01,1")
    table = open_table(path, SourceConfig())
    assert [names.to_list() for names in read_names(table, SourceConfig())] == [["gold"]]
    assert message(open_table, path, SourceConfig(id="ticker")) == (
        f"{path}: has no column 'ticker' (data.id); it has ds, y"
    )


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("packed", [False, True])
def test_separators_and_gzip(tmp_path, separator, packed):
    text = "unique_id,ds,y\na,2020-01-01,1.5\n".replace(",", separator).encode()
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(text) if packed else text)
    (batch,) = read_all(path)
    assert batch.names.to_list() == ["a"]
    assert batch.numbers["y"].tolist() == [1.5]


def test_files_without_rows(tmp_path):
    (tmp_path / "nothing.csv").touch()
    (tmp_path / "nothing.parquet").touch()
    write_csv(tmp_path / "header.csv", "unique_id,ds,y")
    pl.DataFrame(schema={"unique_id": pl.String, "ds": pl.Date, "y": pl.Float64}).write_parquet(tmp_path / "a.parquet")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert [open_table(path, SourceConfig()) for path in files] == [None] * 4


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.parquet", b"PAR1 and then nothing", "Parquet"),
        ("a.csv", b"unique_id,ds,y\na,b,c,d,e\n", "CSV"),
        ("a.csv", b"unique_id,ds,y\n\xff\xfe,b,c\n", "CSV"),
        ("a.csv.gz", gzip.compress(b"unique_id,ds,y\n" + b"a,2020-01-01,1\n" * 99, mtime=0)[:-20], "CSV"),
    ],
)
def test_damaged_files(tmp_path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(content)
    said = message(read_all, path)
    assert said.startswith(f"{path}: cannot be read as {kind} (")
    assert said.endswith("); write or copy the file again")


def test_batches_are_rows_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(io_module, "_CELLS", 30)
    frame = pl.DataFrame({"unique_id": ["a"] * 95, "ds": [datetime(2020, 1, 1)] * 95, "y": np.arange(95.0)})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=95)
    batches = read_all(tmp_path / "a.parquet")
    assert [len(batch) for batch in batches] == [10] * 9 + [5]
    assert np.concatenate([batch.numbers["y"] for batch in batches]).tolist() == list(range(95))


def test_numbers_as_people_write_them():
    numbers, foreign = read_numbers(
        pl.Series(["1.5", " 2 ", "1e3", "", None, "NaN", "n/a", ".", "-inf", "x", "1,5", "True"])
    )
    nan = np.nan
    np.testing.assert_array_equal(numbers, [1.5, 2, 1000, nan, nan, nan, nan, nan, -np.inf, nan, nan, 1])
    assert np.flatnonzero(foreign).tolist() == [9, 10]
    assert read_numbers(pl.Series([True, None, False]))[0].tolist()[::2] == [1.0, 0.0]
    assert read_numbers(pl.Series([datetime(2020, 1, 1), None]))[1].tolist() == [True, False]


def test_a_column_without_a_number(tmp_path):
    path = write_csv(tmp_path / "a.csv", "unique_id,ds,y", "a,2020-01-01,", "a,2020-01-02,up", "a,2020-01-03,down")
    assert message(read_all, path) == f"{path}: column y holds no number (row 2: 'up'); name another column"


def test_a_column_without_a_stamp(tmp_path):
    path = write_csv(tmp_path / "a.csv", "unique_id,ds,y", "a,31.01.2020,1", "a,01.02.2020,2")
    assert message(read_all, path) == (
        f"{path}: column ds holds no stamp that can be read (row 1: '31.01.2020'); write stamps as 2020-01-31, "
        "2020-01-31 09:30:00 or 2020-01-31T09:30:00+02:00"
    )


def test_whole_numbers_are_no_stamps():
    assert message(stamps_of, [20200131], "", pl.Int64) == (
        "a.csv: column ds holds Int64, no stamps (row 1: 20200131); write stamps as 2020-01-31, 2020-01-31 09:30:00 or "
        "2020-01-31T09:30:00+02:00"
    )


@given(
    st.datetimes(min_value=datetime(1700, 1, 1), max_value=datetime(2200, 1, 1)),
    st.sampled_from([" ", "T"]),
    st.sampled_from(["auto", "seconds", "microseconds"]),
    st.sampled_from(["", "Z", "+00:00", "+05:30", "-0300", "+01"]),
)
def test_text_is_read_as_python_reads_it(moment, between, precision, offset):
    text = moment.isoformat(between, precision) + offset
    read = stamps_of([text])
    expected = datetime.fromisoformat(text)
    utc = expected if expected.tzinfo else expected.replace(tzinfo=UTC)
    assert read.time.tolist() == [microseconds(utc)]
    assert read.offset.tolist() == [int(utc.utcoffset().total_seconds())]
    assert read.known.all()


def test_manners_of_one_column_may_change():
    texts = ["2020-01-31", "2020-01-31 09:30", "2020/01/31", " 2020-01-31T09:30:00.25 ", "2020-02-30", "soon", "", None]
    read = stamps_of(texts)
    day = microseconds(datetime(2020, 1, 31, tzinfo=UTC))
    half_past_nine = day + 9 * 3_600_000_000 + 30 * 60_000_000
    assert read.time.tolist() == [day, half_past_nine, day, half_past_nine + 250_000, 0, 0, 0, 0]
    assert read.known.tolist() == [True] * 4 + [False] * 4
    assert read.empty.tolist() == [False] * 6 + [True] * 2


def test_an_impossible_offset_is_no_stamp():
    assert stamps_of(["2020-01-01 00:00+01:00", "2020-01-01 00:00+99:00"]).known.tolist() == [True, False]


ACROSS_SUMMER = [datetime(2020, 3, 29, 0, 30), datetime(2020, 3, 29, 1, 30), datetime(2020, 10, 25, 0, 30)]


@pytest.mark.parametrize("zone", ["Europe/Zurich", "America/New_York", "Asia/Kolkata"])
def test_offsets_of_a_zone_are_those_of_python(zone):
    moments = [moment.replace(tzinfo=UTC) for moment in ACROSS_SUMMER]
    expected = [int(moment.astimezone(ZoneInfo(zone)).utcoffset().total_seconds()) for moment in moments]
    typed = pl.Series(ACROSS_SUMMER).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    for column, asked in [
        (typed, ""),
        (typed.dt.convert_time_zone("Asia/Tokyo"), zone),
        (pl.Series(ACROSS_SUMMER), zone),
    ]:
        read = StampReader("ds", asked).read(column, HERE, 0)
        assert read.time.tolist() == [microseconds(moment) for moment in moments]
        assert read.offset.tolist() == expected


def test_stamps_without_a_zone_are_taken_as_they_are():
    for column in [pl.Series(ACROSS_SUMMER), pl.Series(ACROSS_SUMMER).cast(pl.Datetime("ns"))]:
        read = StampReader("ds", "").read(column, HERE, 0)
        assert read.time.tolist() == [microseconds(moment.replace(tzinfo=UTC)) for moment in ACROSS_SUMMER]
        assert read.offset.tolist() == [0, 0, 0]


def test_an_unknown_zone_is_an_error():
    assert message(StampReader, "ds", "America/New_Yrok") == (
        "data.zone=America/New_Yrok: no such time zone; did you mean America/New_York?"
    )
    assert message(StampReader, "ds", "0?").endswith("give a name such as America/New_York, or leave it empty")


def test_stamps_with_and_without_offset_do_not_mix():
    assert message(stamps_of, ["2020-01-01 10:00+01:00", "2020-01-01 11:00"]) == (
        "a.csv: row 2: column ds: 2020-01-01 11:00 has no offset from UTC, but stamps before it have one "
        "(row 1 of a.csv: 2020-01-01 10:00+01:00); write all with it or all without"
    )
    reader = StampReader("ds", "")  # the same over files and types
    reader.read(pl.Series(["2020-01-01"]), HERE, 0)
    aware = pl.Series([datetime(2020, 1, 1, 12)]).dt.replace_time_zone("UTC")
    assert message(reader.read, aware, Path("b.parquet"), 40) == (
        "b.parquet: row 41: column ds: 2020-01-01 12:00:00+00:00 has an offset from UTC, but stamps before it have "
        "none (row 1 of a.csv: 2020-01-01); write all with it or all without"
    )


def test_two_zones_need_one_clock():
    zurich, tokyo = (
        pl.Series([datetime(2020, 1, 1)]).dt.replace_time_zone(zone) for zone in ("Europe/Zurich", "Asia/Tokyo")
    )
    reader = StampReader("ds", "")
    reader.read(zurich, HERE, 0)
    assert message(reader.read, tokyo, Path("b.csv"), 0) == (
        "b.csv: column ds is in zone Asia/Tokyo (row 1: 2020-01-01 00:00:00+09:00), but that of a.csv in "
        "Europe/Zurich; say as data.zone which clock to read both on"
    )
    reader = StampReader("ds", "UTC")
    assert reader.read(zurich, HERE, 0).time[0] - reader.read(tokyo, HERE, 0).time[0] == 8 * 3_600_000_000
