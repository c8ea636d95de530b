"""Tables in, stores out: what is read back, what is kept aside, what is found again."""

import json
import pickle
import shutil
import subprocess
import sys
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import domains.timeseries.io as io_module
import domains.timeseries.store as store_module
from benchmarks.panel import write_panel
from domains.errors import UserError
from domains.timeseries.config import SourceConfig
from domains.timeseries.sample import sample_series
from domains.timeseries.store import SeriesStore, open_store, prepare_store

DAY = 86_400_000_000
START = datetime(2020, 1, 1)
FIRST = 1_577_836_800_000_000  # microseconds UTC of START


def table(names=("b", "a"), rows=5):
    """Series of daily prices with covariates, one behind the other; no two values are equal."""
    count = len(names) * rows
    values = np.arange(count, dtype=float)
    return pl.DataFrame(
        {
            "unique_id": [name for name in names for _ in range(rows)],
            "ds": [START + timedelta(days=i) for _ in names for i in range(rows)],
            "y": 100 + values / 8,
            "volume": 1000 + values,
            "holiday": values % 2,
            "size": [float(len(name)) for name in names for _ in range(rows)],
        }
    )


def lines(*rows):
    return "\n".join(("unique_id,ds,y", *rows)) + "\n"


def good(name="a", start=1, stop=6):
    """Rows of a series that has nothing wrong, as CSV."""
    return [f"{name},2020-01-{day:02d},{day}.5" for day in range(start, stop)]


def prepare(folder, content, name=None, *, progress=False, **options):
    """A store of a frame, or of the text of a CSV file."""
    path = folder / (name or ("a.csv" if isinstance(content, str) else "a.parquet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".csv":
        content.write_csv(path)
    else:
        content.write_parquet(path)
    return prepare_store(source_of(folder, path, **options), progress=progress)


def source_of(folder, path, **options):
    return SourceConfig(**{"path": str(path), "stores": str(folder / "stores"), "min_rows": 2, **options})


def rejected_rows(store):
    return pl.read_parquet(store.path / "rejects.parquet").rows()


def message(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


COVARIATES = {"past": ["volume"], "future": ["holiday"], "static": ["size"]}


def test_reads_back_what_the_table_holds(tmp_path):
    frame = table(("b", "aa"))
    store = prepare(tmp_path, frame, **COVARIATES)
    assert store.names == ["aa", "b"]
    assert store.starts.tolist() == [0, 5, 10]
    for i, name in enumerate(store.names):
        rows, expected = store.series(i), frame.filter(pl.col("unique_id") == name)
        assert store.time[rows].tolist() == [FIRST + day * DAY for day in range(5)]
        assert store.target[rows].tolist() == expected["y"].to_list()
        assert store.past[rows].tolist() == [[value] for value in expected["volume"]]
        assert store.future[rows].tolist() == [[value] for value in expected["holiday"]]
    assert store.static.tolist() == [[2.0], [1.0]]
    assert not store.offset.any()
    assert (store.past_names, store.future_names, store.static_names) == (["volume"], ["holiday"], ["size"])
    kinds = {"time": "i8", "offset": "i4", "target": "f8", "past": "f4", "future": "f4", "static": "f4", "starts": "i8"}
    assert {name: getattr(store, name).dtype.str[1:] for name in kinds} == kinds
    assert not any(getattr(store, name).flags.writeable for name in ("time", "offset", "target", "past", "future"))
    assert store.rejects == {}
    assert rejected_rows(store) == []
    assert store.summary() == "2 series, 10 rows, 2020-01-01 to 2020-01-05, 0.00% missing"
    files = {path.name for path in store.path.iterdir()}
    assert files == {f"{name}.bin" for name in ("time", "offset", "target", "past", "future")} | {
        *("starts.npy", "static.npy", "meta.json", "rejects.parquet")
    }


def test_history_of_a_series(tmp_path):
    store = prepare(tmp_path, lines(*good("a"), "a,2020-01-06,", "a,2020-01-07,9"))
    history = store.history(0)
    assert (history.name, history.kind, len(store)) == ("a", "price", 1)
    np.testing.assert_array_equal(history.y, [1.5, 2.5, 3.5, 4.5, 5.5, np.nan, 9])
    np.testing.assert_allclose(history.x[[1, 5, 6]], [np.log(2.5 / 1.5), np.nan, np.log(9 / 5.5)])


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(range(12)),
    group=st.integers(1, 12),
    cells=st.integers(1, 60),
    csv=st.booleans(),
    pieces=st.integers(1, 3),
)
def test_order_format_pieces_and_batches_change_nothing(tmp_path_factory, order, group, cells, csv, pieces):
    frame = table(("b", "a", "c"), 4).with_columns(y=pl.col("y").replace(100.5, None))
    expected = prepare(tmp_path_factory.mktemp("plain"), frame, **COVARIATES)
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "table").mkdir()
    mixed = frame[order]
    for i in range(pieces):
        part = mixed[i * 12 // pieces : (i + 1) * 12 // pieces]
        if csv:
            part.write_csv(folder / "table" / f"{i}.csv")
        else:
            part.write_parquet(folder / "table" / f"{i}.parquet", row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io_module, "_CELLS", cells)
        store = prepare_store(source_of(folder, folder / "table", **COVARIATES), progress=False)
    assert store.fingerprint == expected.fingerprint
    for column in ("time", "target", "past", "future", "static"):
        np.testing.assert_array_equal(getattr(store, column), getattr(expected, column))


@pytest.mark.parametrize(
    "change",
    [
        {"y": pl.col("y") + 1e-9},
        {"ds": pl.col("ds") + timedelta(microseconds=1)},
        {"unique_id": pl.col("unique_id") + "_"},
        {"volume": pl.col("volume") + 1},
        {"holiday": pl.col("holiday") + 1},
        {"size": pl.col("size") + 1},
    ],
)
def test_the_fingerprint_tells_tables_apart(tmp_path, change):
    before = prepare(tmp_path, table(), **COVARIATES)
    after = prepare(tmp_path, table().with_columns(**change), **COVARIATES)
    assert after.fingerprint != before.fingerprint
    assert after.path != before.path


def test_local_clocks(tmp_path):
    texts = ["2020-03-28T12:00:00+01:00", "2020-03-29T12:00:00+02:00", "2020-03-30T12:00:00+02:00"]
    text = prepare(tmp_path, lines(*(f"a,{stamp},{i + 1}" for i, stamp in enumerate(texts))))
    noon = [datetime(2020, 3, day, 12) for day in (28, 29, 30)]
    frame = pl.DataFrame({"unique_id": "a", "ds": noon, "y": [1.0, 2, 3]})
    frame = frame.with_columns(pl.col("ds").dt.replace_time_zone("Europe/Berlin"))
    typed = prepare(tmp_path, frame)
    assert text.offset.tolist() == typed.offset.tolist() == [3600, 7200, 7200]
    assert np.diff(text.time).tolist() == [23 * DAY // 24, DAY]
    assert text.fingerprint == typed.fingerprint
    assert prepare(tmp_path, frame, zone="Asia/Tokyo").offset.tolist() == [9 * 3600] * 3


def test_ids_of_any_type_and_a_table_without(tmp_path):
    frame = table(("7", "12"))
    expected = prepare(tmp_path, frame)
    assert prepare(tmp_path, frame.with_columns(pl.col("unique_id").cast(pl.Int64))).fingerprint == expected.fingerprint
    categories = frame.with_columns(pl.col("unique_id").cast(pl.Categorical))
    assert prepare(tmp_path, categories).fingerprint == expected.fingerprint
    alone = table(("gold",))
    named = prepare(tmp_path, alone.drop("unique_id"), "gold.parquet")
    assert named.names == ["gold"]
    assert named.fingerprint == prepare(tmp_path, alone).fingerprint
    assert prepare(tmp_path, alone.drop("unique_id"), "tin.parquet").names == ["tin"]  # same bytes, another series


def test_several_targets(tmp_path):
    store = prepare(tmp_path, table().with_columns(low=pl.col("y") - 1), target=["y", "low"], past=["volume"])
    assert store.names == ["a/y", "a/low", "b/y", "b/low"]
    assert store.target[store.series(1)].tolist() == (store.target[store.series(0)] - 1).tolist()
    assert store.past[store.series(1)].tolist() == store.past[store.series(0)].tolist()
    one_bad = prepare(
        tmp_path,
        lines(*good(), "a,2020-01-09,9")
        .replace("y\n", "y,z\n")
        .replace(".5", ".5,1.5")
        .replace(",1.5,1.5", ",1.5,2.5")
        .replace("09,9", "09,9,?"),
        target=["y", "z"],
    )
    assert np.diff(one_bad.starts).tolist() == [6, 5]
    assert rejected_rows(one_bad) == [("a.csv", "a/z", "2020-01-09", "?", "z is not a number")]


def test_rows_kept_aside(tmp_path, capsys):
    store = prepare(
        tmp_path,
        lines(
            *good(),
            "a,2020-01-06,abc",
            "a,2020-01-07,inf",
            "a,2020-01-08,-3",
            "a,2020-01-09,0",
            "a,,7",
            "a,next week,8",
            ",2020-01-10,9",
            "a,2020-01-11,",
        ),
        progress=True,
    )
    assert rejected_rows(store) == [
        ("a.csv", "a", "2020-01-06", "abc", "y is not a number"),
        ("a.csv", "a", "2020-01-07", "inf", "y is infinite"),
        ("a.csv", "a", "2020-01-08", "-3", "y is not a positive price"),
        ("a.csv", "a", "2020-01-09", "0", "y is not a positive price"),
        ("a.csv", "a", None, "7", "no stamp"),
        ("a.csv", "a", "next week", "8", "stamp cannot be read"),
        ("a.csv", None, "2020-01-10", "9", "no series name in unique_id"),
    ]
    assert store.rejects["y is not a positive price"] == 2
    assert sum(store.rejects.values()) == 7
    np.testing.assert_array_equal(store.target, [1.5, 2.5, 3.5, 4.5, 5.5, np.nan])  # what is missing stays
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6
    assert f"a.csv: 2 rows kept aside: y is not a positive price (see {store.path / 'rejects.parquet'})" in said
    assert prepare(tmp_path, lines(*good(), "a,2020-01-08,-3"), kind="level").rejects == {}


def test_rows_out_of_order_and_twice(tmp_path):
    rows = good()
    store = prepare(tmp_path, lines(rows[2], rows[0], rows[1], rows[3], rows[4], rows[0], "a,2020-01-02,99"))
    assert store.target.tolist() == [1.5, 2.5, 3.5, 4.5, 5.5]
    assert store.rejects == {
        "rows out of order: sorted": 4,
        "duplicate stamp": 1,
        "contradicting duplicate stamp": 1,
    }
    assert rejected_rows(store) == [
        ("a.csv", "a", "2020-01-01T00:00:00.000000", "1.5", "duplicate stamp"),
        ("a.csv", "a", "2020-01-02T00:00:00.000000", "99.0", "contradicting duplicate stamp"),
    ]
    aware = prepare(tmp_path, lines("a,2020-01-01 10:00-03:30,1", "a,2020-01-01 13:30Z,2", "a,2020-01-02 00:00Z,3"))
    assert rejected_rows(aware) == [
        ("a.csv", "a", "2020-01-01T13:30:00.000000+00:00", "2.0", "contradicting duplicate stamp")
    ]


def test_several_series_whose_names_are_in_another_column(tmp_path):
    frame = table(("a", "b", "c")).rename({"unique_id": "ticker"})
    assert message(prepare, tmp_path, frame) == (
        f"{tmp_path}/a.parquet: has no column 'unique_id' (data.id), so it is one series, but 10 of its 15 rows "
        "contradict others of the same stamp; name the column of the series as data.id"
    )
    assert prepare(tmp_path, frame, id="ticker").names == ["a", "b", "c"]
    twice = pl.concat([table(("a",)), table(("a",))]).drop("unique_id")  # of a single series, and nothing contradicts
    assert prepare(tmp_path, twice).rejects["duplicate stamp"] == 5


def test_files_of_which_some_name_their_series(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    table().write_parquet(folder / "a.parquet")
    table().rename({"unique_id": "id"}).write_parquet(folder / "b.parquet")
    assert message(prepare_store, source_of(tmp_path, folder)) == (
        f"{folder}/b.parquet: has no column 'unique_id' (data.id), which {folder}/a.parquet has; add it, or give files "
        "alone that have it"
    )


def test_rows_twice_that_differ_in_a_covariate_contradict(tmp_path):
    frame = pl.concat([table(("a",)), table(("a",)).with_columns(holiday=9.0)[3:4], table(("a",))[4:5]])
    store = prepare(tmp_path, frame, future=["holiday"])
    assert store.rejects == {
        "rows out of order: sorted": 1,
        "contradicting duplicate stamp": 1,
        "duplicate stamp": 1,
    }
    assert store.future[3].tolist() == [1.0]  # the first


def test_covariates_that_are_no_numbers(tmp_path):
    frame = table(("a",), 8).with_columns(volume=pl.Series(["1", "2", "many", "4", None, "1e300", "7", "8"]))
    store = prepare(tmp_path, frame, past=["volume"])
    assert store.rejects == {"volume is not a number": 1, "volume is infinite": 1}
    np.testing.assert_array_equal(store.past[:, 0], [1, 2, 4, np.nan, 7, 8])
    frame = frame.with_columns(volume=pl.lit("many"))
    assert message(prepare, tmp_path, frame, past=["volume"]) == (
        f"{tmp_path}/a.parquet: column volume holds no number (row 1: 'many'); name another column"
    )


def test_series_kept_aside(tmp_path, capsys):
    rows = [*good("a"), *good("short", 1, 4)]
    rows += [f"flat{i},2020-01-{day:02d},7" for i in range(7) for day in range(1, 6)]
    rows += [f"none,2020-01-{day:02d}," for day in range(1, 6)] + ["lost,soon,1"]
    store = prepare(tmp_path, lines(*rows), min_rows=4, progress=True)
    assert store.names == ["a"]
    assert store.rejected_series[-1] == {"name": "short", "reason": "fewer than 4 observations", "rows": 3}
    assert store.rejects == {
        "stamp cannot be read": 1,
        "constant series": 7,
        "no observation": 2,
        "fewer than 4 observations": 1,
    }
    said = capsys.readouterr().err
    assert "a.csv: 7 series kept aside: constant series (flat0, flat1, flat2, flat3, flat4 and 2 more)\n" in said
    assert "a.csv: 2 series kept aside: no observation (lost, none)\n" in said


def test_without_a_least_number_of_rows_all_series_that_have_any_stay(tmp_path):
    rows = ["one,2020-01-01,1", "flat,2020-01-01,7", "flat,2020-01-02,7", "none,2020-01-01,", "lost,soon,1"]
    store = prepare(tmp_path, lines(*rows), min_rows=0)
    assert store.names == ["flat", "none", "one"]
    assert store.rejected_series == [{"name": "lost", "reason": "no observation", "rows": 0}]


def test_a_static_covariate_that_changes(tmp_path):
    frame = table(("a", "b", "c")).with_columns(
        size=pl.Series([1.0, 1, 1, 1, 2] + [None, 3.0, None, 3.0, None] + [None] * 5, dtype=pl.Float64)
    )
    store = prepare(tmp_path, frame, static=["size"])
    assert store.names == ["b", "c"]
    np.testing.assert_array_equal(store.static, [[3.0], [np.nan]])
    assert store.rejects == {"static covariate size changes": 1}


def test_no_series_is_left(tmp_path):
    assert message(prepare, tmp_path, lines(*good(), "a,x,9", "b,2020-01-01,1"), min_rows=64) == (
        "a.csv: no series is left (1 x stamp cannot be read, 2 x fewer than 64 observations); lower data.min_rows or "
        "mend the table"
    )
    assert [path.name for path in (tmp_path / "stores").iterdir()] == []


def test_empty_files_are_passed_over(tmp_path, capsys):
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "b.csv").touch()
    (folder / "c.csv").write_text(lines())
    assert message(prepare_store, source_of(tmp_path, folder)) == (
        f"{folder}: holds no rows; give a table with a header and rows"
    )
    (folder / "a.csv").write_text(lines(*good()))
    store = prepare_store(source_of(tmp_path, folder))
    assert store.rejects == {"empty file": 2}
    assert [row[0] for row in rejected_rows(store)] == ["b.csv", "c.csv"]
    rejects = store.path / "rejects.parquet"
    assert capsys.readouterr().err == f"table: 2 empty files passed over (see {rejects})\n"


def test_two_files_of_the_same_name_without_ids(tmp_path):
    for place in ("x", "y"):
        (tmp_path / "table" / place).mkdir(parents=True)
        table(("a",)).drop("unique_id").write_parquet(tmp_path / "table" / place / "prices.parquet")
    folder = tmp_path / "table"
    assert message(prepare_store, source_of(tmp_path, folder)) == (
        f"{folder}/y/prices.parquet: has no column of series names, and {folder}/x/prices.parquet would be a series of "
        "the same name; rename one of them, or add the column to both"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "prices"}, "data.kind=prices: must be one of price, return, level"),
        ({"target": []}, "data.target is empty; name at least one column"),
        ({"min_rows": -1}, "data.min_rows=-1: must be at least 0"),
        ({"future": ["y"]}, "column 'y' is named as data.target and as data.future; keep one"),
        ({"zone": "Mars/Base"}, "data.zone=Mars/Base: no such time zone; "),
    ],
)
def test_settings_that_make_no_sense(tmp_path, options, said):
    assert message(prepare, tmp_path, table(), **options).startswith(said)


def test_found_again_by_content(tmp_path, monkeypatch):
    first = prepare(tmp_path, table(), "a.parquet")
    monkeypatch.setattr(store_module, "write_store", None)  # nothing is made a second time
    again = prepare(tmp_path, table(), "other name.parquet")
    assert (first.reused, again.reused) == (False, True)
    assert again.path == first.path
    assert first.path.name.startswith("a-")
    monkeypatch.undo()
    others = [{"kind": "level"}, {"min_rows": 3}, {"zone": "UTC"}, {"past": ["volume"]}, {"target": ["volume"]}]
    paths = {prepare(tmp_path, table(), **options).path for options in others}
    assert len(paths | {first.path}) == 6
    assert not prepare(tmp_path, table(rows=6)).reused


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "stores" / "a-0123456789ab.partial-01234567").mkdir(parents=True)
    store = prepare(tmp_path, table())
    assert list((tmp_path / "stores").iterdir()) == [store.path]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("domains.timeseries.prepare.os.pwrite", full)
    assert message(prepare, tmp_path, table()) == (
        f"{tmp_path}/stores: cannot keep the series of {tmp_path}/a.parquet (No space left on device); make room or "
        "give another folder as data.stores"
    )
    assert list((tmp_path / "stores").iterdir()) == []


def test_copies_open_the_same_store(tmp_path):
    store = prepare(tmp_path, table(), **COVARIATES)
    sent = pickle.dumps(store)
    assert len(sent) < 500
    assert pickle.loads(sent).target.tolist() == store.target.tolist()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: shutil.rmtree(path), "is no prepared table (meta.json is missing); run prepare on the table"),
        (
            lambda path: (path / "time.bin").unlink(),
            "is no prepared table (time.bin is missing); run prepare on the table",
        ),
        (
            lambda path: (path / "target.bin").write_bytes(b"1234567"),
            "cannot be read (target.bin has 7 bytes, not 80); delete it and prepare the table again",
        ),
        (
            lambda path: np.save(path / "starts.npy", np.array([0, 3, 9])),
            "cannot be read (starts.npy does not fit the rows); delete it and prepare the table again",
        ),
        (
            lambda path: np.save(path / "static.npy", np.zeros((1, 1))),
            "cannot be read (static.npy has shape (1, 1), not (2, 1)); delete it and prepare the table again",
        ),
        (
            lambda path: (path / "meta.json").write_text(json.dumps({"format": 0})),
            "is a store of format 0, not 1; prepare the table again",
        ),
        (
            lambda path: (path / "meta.json").write_text("[]"),
            "cannot be read (list indices must be integers or slices, not str); delete it and prepare the table again",
        ),
    ],
)
def test_damaged_stores(tmp_path, damage, said):
    path = prepare(tmp_path, table(), **COVARIATES).path
    damage(path)
    assert message(SeriesStore.open, path) == f"{path}: {said}"


def test_a_store_wins_over_a_path_and_is_asked_for_its_kind(tmp_path):
    path = prepare(tmp_path, table(), kind="level", past=["volume"]).path
    store = open_store(SourceConfig(path="nowhere.csv", store=str(path)))
    assert (store.path, store.kind) == (path, "level")
    assert message(open_store, SourceConfig(store=str(path), kind="return")) == (
        f"{path}: was prepared with data.kind=level, not return; prepare the table again, or leave that setting out"
    )
    assert "data.past=['volume'], not ['y']" in message(open_store, SourceConfig(store=str(path), past=["y"]))
    assert open_store(source_of(tmp_path, tmp_path / "a.parquet", kind="level", past=["volume"]), False).reused


def test_series_by_name(tmp_path):
    store = prepare(tmp_path, table(("gold", "tin")))
    assert store.index("tin") == 1
    assert message(store.index, "goldd") == "a.parquet: has no series 'goldd'; did you mean 'gold'?"
    assert message(store.index, "x") == "a.parquet: has no series 'x'; it has gold, tin"


def test_the_bundled_series(tmp_path):
    pytest.importorskip("arch")
    from arch.data import wti

    store = open_store(SourceConfig(stores=str(tmp_path)), progress=False)
    assert store.names == ["NASDAQ", "SP500", "WTI"]
    assert np.diff(store.starts).tolist() == [5031, 5031, 8611]
    oil = wti.load()
    history = store.history(2)
    np.testing.assert_array_equal(history.y, oil["DCOILWTICO"])
    assert history.time.tolist() == (oil.index.to_numpy().astype("datetime64[us]").astype(int)).tolist()
    assert np.isnan(history.y).sum() == 290
    assert store.rejects == {}
    assert open_store(SourceConfig(stores=str(tmp_path)), progress=False).reused
    assert sample_series(tmp_path).parent == tmp_path


def test_the_bundled_series_need_arch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "arch.data", None)
    assert message(sample_series, tmp_path) == (
        "the bundled series come with the package arch, which is not installed; install arch or give data.path"
    )


PEAKS = """
import json, resource, sys
from domains.timeseries.config import SourceConfig
from domains.timeseries.store import prepare_store
for path in sys.argv[1:]:
    prepare_store(SourceConfig(path=path, stores=path + ".stores"), progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_table(tmp_path):
    """Eight times the rows of a batch take what one takes, though as columns of numbers they are 90 MiB more."""
    sizes = {1200: tmp_path / "small.parquet", 9600: tmp_path / "large.parquet"}
    for rows, path in sizes.items():
        write_panel(path, 500, rows, "time")
    command = [sys.executable, "-c", PEAKS, *map(str, sizes.values())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = map(float, done.stdout.split())
    assert large < small + 60
