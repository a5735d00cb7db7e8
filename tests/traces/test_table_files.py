"""Tables as people have them, and files that hold none."""

import json
import sys

import numpy as np
import pandas
import pytest

import jaxwgc
from jaxwgc.traces._column_names import FileOptions
from jaxwgc.traces._files import read_trace

# Three rounds of three workers, and a missing response.
TIMES = np.array([[1.0, 2.0, 8.0], [1.5, 2.0, 9.0], [1.0, np.nan, 7.0]])
TEXTS = [[f"{time:g}" for time in row] for row in TIMES]


def wide(names, delimiter=","):
    """A column per worker; missing responses are empty cells."""
    rows = [[cell.replace("nan", "") for cell in row] for row in TEXTS]
    return "".join(delimiter.join(row) + "\n" for row in [names, *rows])


def long(names, units=1, workers="2 9 10"):
    """A row per time, in another order, and no row for the missing response."""
    rows = [
        f"{step},{worker},{units * TIMES[step, place]:g}\n"
        for place, worker in enumerate(workers.split())
        for step in (2, 0, 1)
        if np.isfinite(TIMES[step, place])
    ]
    return ",".join(names) + "\n" + "".join(rows[::-1])


def wandb():
    """An export of wandb: a run per rank, with its range."""
    runs = [f"rank-{rank} - step_time" for rank in range(3)]
    names = [run + suffix for run in runs for suffix in ("", "__MIN", "__MAX")]
    rows = [
        [str(step), *np.repeat(row, 3).astype(str)] for step, row in enumerate(TIMES)
    ]
    quoted = [
        ",".join(f'"{cell}"' for cell in row) for row in [["Step", *names], *rows]
    ]
    return "\n".join(quoted)


TABLES = {
    "no-names.csv": ("1,2,8\n1.5,2,9\n1,,7\n", "0 1 2"),
    "spaces.txt": ("1.0 2e0 8\n1.5 2 9\n1 nan 7\n", "0 1 2"),
    "tabs.tsv": (wide(["host0", "host1", "host2"], "\t"), "host0 host1 host2"),
    "upper-case.CSV": (wide(["host0", "host1", "host2"]), "host0 host1 host2"),
    "letters.csv": (wide(["host-a", "host-b", "host-c"]), "host-a host-b host-c"),
    "numbers.csv": ("Step,1,2,3\n5,1,2,8\n6,1.5,2,9\n7,1,,7\n", "1 2 3"),
    "rows-are-counted.csv": (
        ",rank0,rank1,rank2\n5,1,2,8\n6,1.5,2,9\n7,1,,7\n",
        "rank0 rank1 rank2",
    ),
    "hosts-beside-metrics.csv": (
        "Step,lr,tokens,host0,host1,time,host2\n"
        "1,0.1,512,1,2,9:00,8\n2,0.1,512,1.5,2,9:01,9\n3,0.1,512,1,,9:02,7\n",
        "host0 host1 host2",
    ),
    "wandb.csv": (wandb(), "rank-0 rank-1 rank-2"),
    "semicolons.csv": (
        wide(["host0", "host1", "host2"], ";").replace(".", ","),
        "host0 host1 host2",
    ),
    "decimal-commas-without-names.txt": (
        "1,0 2,0 8,0\n1,5 2,0 9,0\n1,0 nan 7,0\n",
        "0 1 2",
    ),
    "excel.csv": (
        "sep=;\n" + wide(["host0", "host1", "host2"], ";").replace(".", ","),
        "host0 host1 host2",
    ),
    "savetxt.csv": (
        "# step,host0,host1,host2\n10,1,2,8\n20,1.5,2,9\n30,1,,7\n",
        "host0 host1 host2",
    ),
    "steps-out-of-order.csv": (
        "iteration,host0,host1,host2\n3,1,,7\n1,1,2,8\n2,1.5,2,9\n",
        "host0 host1 host2",
    ),
    "comments.csv": (
        "# A cluster\n\n" + wide(["host0", "host1", "host2"]) + "# the end\n",
        "host0 host1 host2",
    ),
    "milliseconds.csv": (
        "rank0_step_time_ms,rank1_step_time_ms,rank2_step_time_ms\n"
        "1000,2000,8000\n1500,2000,9000\n1000,,7000\n",
        "rank0 rank1 rank2",
    ),
    "thousands.csv": (
        "rank0_ms,rank1_ms,rank2_ms\n"
        '"1,000.0","2,000.0","8,000.0"\n1500,2000,"9,000"\n"1,000",,7000\n',
        "rank0 rank1 rank2",
    ),
    "step-worker-seconds.csv": (long(["step", "worker", "seconds"]), "2 9 10"),
    "iteration-rank-step_time.csv": (
        long(["iteration", "rank", "step_time"]),
        "2 9 10",
    ),
    "global_step-host-duration_ms.csv": (
        long(["global_step", "Host", "Duration (ms)"], 1e3, workers="a b cc"),
        "a b cc",
    ),
    "round-node-time_us.csv": (long(["round", "node", "time_us"], 1e6), "2 9 10"),
    "iter-process-seconds.csv": (long(["iter", "process", "seconds"]), "2 9 10"),
    "lists.jsonl": ("[1, 2, 8]\n[1.5, 2, 9]\n[1, null, 7]\n", "0 1 2"),
    "objects.jsonl": (
        '{"host0": 1, "host1": 2, "host2": 8, "loss": 3}\n'
        '{"host2": 9, "host0": 1.5, "host1": 2}\n{"host0": 1, "host2": 7}\n',
        "host0 host1 host2",
    ),
    "metrics.jsonl": (
        "".join(
            json.dumps({"step": 1, **{f"worker/{i}/seconds": row[i] for i in range(3)}})
            + "\n"
            for row in TIMES
        ),
        "0 1 2",
    ),
}


# Decimal marks of tables with commas in numbers, which are not guessed.
MARKS = {
    "semicolons.csv": ",",
    "decimal-commas-without-names.txt": ",",
    "excel.csv": ",",
    "thousands.csv": ".",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_format_are_read(name, encoding, tmp_path):
    text, workers = TABLES[name]
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    decimal = MARKS.get(name)
    if decimal:
        with pytest.raises(ValueError, match="--decimal , or --decimal [.]"):
            read_trace(path, FileOptions())
    trace = read_trace(path, FileOptions(decimal=decimal))
    np.testing.assert_allclose(trace.times, TIMES, rtol=1e-15)
    assert trace.workers == workers.split()


def test_json_objects_of_the_long_form(tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [
        {"worker": str(worker), "step": step, "seconds": TIMES[step, worker], "loss": 0}
        for step in range(3)
        for worker in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read_trace(path, FileOptions())
    np.testing.assert_array_equal(trace.times, TIMES)
    assert trace.notes == ()


def test_numpy_files(tmp_path):
    parts = np.stack([TIMES / 2, TIMES / 2], -1)
    np.save(tmp_path / "a.npy", parts)
    np.savez(tmp_path / "one.npz", TIMES)
    np.savez(tmp_path / "two.npz", a=TIMES, b=2 * TIMES)
    for name, options, expected in [
        ("a.npy", FileOptions(), parts),
        ("one.npz", FileOptions(), TIMES),
        ("two.npz", FileOptions(array="b"), 2 * TIMES),
    ]:
        trace = read_trace(tmp_path / name, options)
        np.testing.assert_array_equal(trace.times, expected)
        assert trace.workers == ["0", "1", "2"]


def test_skipped_columns_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(TABLES["hosts-beside-metrics.csv"][0])
    (note,) = read_trace(path, FileOptions()).notes
    assert note == (
        "skipped columns that are not known to be workers: 'lr', 'tokens', 'time'"
    )


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("t,w,x\n1,a,2\n1,b,3\n2,a,4\n", ("t", "w", "x", None), [[2, 3], [4, np.nan]]),
        ("t,a,b\n1,2,3\n2,4,5\n", (None, None, None, "[ab]"), [[2, 3], [4, 5]]),
    ],
)
def test_columns_are_chosen(text, options, expected, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    trace = read_trace(path, FileOptions(*options))
    np.testing.assert_array_equal(trace.times, expected)
    assert trace.workers == ["a", "b"]


@pytest.mark.parametrize(
    ("cells", "decimal", "expected"),
    [
        ("0,61;0,58", ",", [0.61, 0.58]),
        ("1,234;0,58", ",", [1.234, 0.58]),
        ("1,234;2", ",", [1.234, 2.0]),
        ("1,234;2", ".", [1234.0, 2.0]),
        ("1,234.5;2", ".", [1234.5, 2.0]),
        ("1.234,5;2", ",", [1234.5, 2.0]),
        ("1.643;967", ",", [1643.0, 967.0]),
        ("1.643;967", ".", [1.643, 967.0]),
        ("1.234.000;2", ",", [1234000.0, 2.0]),
        ("1.64;967", None, [1.64, 967.0]),
        ("0.643;967", None, [0.643, 967.0]),
        ("1.643;1.205", None, [1.643, 1.205]),
    ],
)
def test_commas_in_numbers(cells, decimal, expected, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"rank0;rank1\n{cells}\n")
    trace = read_trace(path, FileOptions(decimal=decimal))
    np.testing.assert_array_equal(trace.times[0], expected)


@pytest.mark.parametrize(
    ("cells", "decimal", "message"),
    [
        ("1,234;5,678", None, "decimal mark '.'; got '1,234'. Choose the mark by"),
        ("0,61;0,58", None, "decimal mark '.'; got '0,61'. Choose the mark by"),
        ("1,234.5;2", None, "decimal mark '.'; got '1,234.5'. Choose the mark by"),
        ("1.234,5;2", None, "decimal mark '.'; got '1.234,5'. Choose the mark by"),
        ("1.234.000;2", None, "decimal mark '.'; got '1.234.000'. Choose the mark by"),
        ("1.234;967", None, "may separate thousands; got '1.234'. Choose"),
        ("1,5;2.5", None, "decimal mark '.'; got '1,5'. Choose the mark by"),
        ("1,5;2,25", ".", "decimal mark '.'; got '1,5'. Choose the mark by"),
        ("1,234.5;2", ",", "decimal mark ','; got '1,234.5'. Choose the mark by"),
        ("2.5;1,5", ",", "decimal mark ','; got '2.5'. Choose the mark by"),
    ],
)
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_decimal_marks_are_not_guessed(
    cells, decimal, message, skip_bad_rows, tmp_path
):
    path = tmp_path / "a.csv"
    path.write_text(f"rank0;rank1\n{cells}\n")
    with pytest.raises(ValueError, match=message):
        read_trace(path, FileOptions(decimal=decimal, skip_bad_rows=skip_bad_rows))


def test_bad_rows_are_skipped_and_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("# c\nhost0,host1\n1,2\n3\nx,4\n5,6\n7,8,9\n\n,10\n")
    with pytest.raises(ValueError, match="row 4 must have 2 columns, .* got 1"):
        read_trace(path, FileOptions())
    trace = read_trace(path, FileOptions(skip_bad_rows=True))
    np.testing.assert_array_equal(trace.times, [[1, 2], [5, 6], [np.nan, 10]])
    assert trace.notes == (
        "skipped rows with a cell that is no number: 1",
        "skipped rows that cannot be read: 2",
    )
    path = tmp_path / "a.jsonl"
    path.write_text('{"host0": 1, "host1": 2}\n{"host0": 3, \n{"host0": "x"}\n')
    trace = read_trace(path, FileOptions(skip_bad_rows=True))
    np.testing.assert_array_equal(trace.times, [[1, 2]])
    assert trace.notes == (
        "skipped rows with a cell that is no number: 1",
        "skipped rows that cannot be read: 1",
    )
    path = tmp_path / "b.csv"
    path.write_text("step,rank,seconds\n1,0,2\n1,,3\n,1,4\n1,1,5\n")
    trace = read_trace(path, FileOptions(skip_bad_rows=True))
    np.testing.assert_array_equal(trace.times, [[2, 5]])


LONG = "step,worker,seconds\n"
BAD = [
    (
        "a.csv",
        "host0,host1\n1,2\n1,?\n",
        "row 3, column host1 must be a number; got '.'",
    ),
    ("a.csv", "3,2\n1,x\n", "row 2, column 1 must be a number; got 'x'"),
    ("a.csv", "3,2\n1,1_0\n", "row 2, column 1 must be a number; got '1_0'"),
    ("a.csv", "rank0,rank1\n1,True\n", "row 2, column rank1 must be a number"),
    ("a.csv", "3,2\n1\n", "row 2 must have 2 columns, like the first row; got 1"),
    ("a.csv", "the quick fox\njumps over it\n", "the columns 'the', 'quick', 'fox'"),
    ("a.csv", "quick\nbrown\nfox\n", "no column is known .* the columns 'quick'"),
    ("a.csv", "", "a.csv must have rows of times; got none"),
    ("a.csv", "host0,host1\n", "a.csv must have rows of times; got none"),
    ("a.jsonl", "", "a.jsonl must have rows of times; got none"),
    ("a.csv", "\0\1\2binary", "a.csv must be text in UTF-8 or UTF-16; got a binary"),
    ("a.csv", "1,2\n1,\xff\n", "row 2, column 2 must be a number; got '\ufffd'"),
    ("a.csv", "a,b\n1,2\n", "no column is known to hold times of workers; got the"),
    ("a.csv", "1,5,6\n2,5,6\n3,7,5\n", "first column that increases in each row"),
    ("a.csv", "10,5\n20,6\n30,5\n", "first column that increases in each row"),
    (
        "a.csv",
        LONG + "1,a,2\n1,b,2\n1,a,3\n",
        "row 4 has a second time of step 1 and worker a. Keep",
    ),
    ("a.csv", LONG + "one,a,2\n", "row 2, column step must be a number; got 'one'"),
    (
        "a.csv",
        LONG + "1,a,2\n2,,3\n",
        "row 3, column worker must not be empty",
    ),
    ("a.csv", LONG + ",a,2\n", "row 2, column step must not be empty"),
    ("a.jsonl", "[1, 2]\n[1, x]\n[1, 2]\n", "row 2 must be JSON: a list .*; got .1, x"),
    ("a.jsonl", '[1, 2]\n[1, "x"]\n', "row 2, column 1 must be a number; got 'x'"),
    ("a.jsonl", "[1, 2]\n[1, true]\n", "row 2, column 1 must be a number; got True"),
    ("a.jsonl", "3\n", "row 1 must be JSON: a list .* or an object.*; got 3"),
    ("a.jsonl", "[1, 2]\n[3]\n", "row 2 must be JSON: .* as many times as in the"),
    (
        "a.jsonl",
        '{"host0": 1}\n[3]\n',
        "row 2 must be JSON: .* like the first row; got .3",
    ),
    ("a.pdf", "1,2\n", "FILE must end with .csv, .tsv, .txt, .log, .jsonl, .ndjson"),
    ("a.npy", "", "a.npy must be a NumPy file .*; No data left in file"),
    ("a.npy", "words", "a.npy must be a NumPy file with an array of numbers"),
    ("a.npz", "words", "a.npz must be a NumPy file with an array of numbers"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_files_that_cannot_be_read(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_trace(path, FileOptions())


def test_times_that_increase_are_no_steps_if_columns_have_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,worker0,worker1\n1,1.0,2.1\n2,1.5,2.0\n3,2.0,2.2\n")
    trace = read_trace(path, FileOptions())
    np.testing.assert_array_equal(trace.times, [[1, 2.1], [1.5, 2], [2, 2.2]])
    assert list(trace.workers) == ["0", "1"]
    assert list(trace.steps) == [1, 2, 3]


def test_steps_in_a_numpy_file(tmp_path):
    np.save(tmp_path / "a.npy", np.column_stack([[1, 2, 3], TIMES]))
    with pytest.raises(ValueError, match="first column that increases in each row"):
        read_trace(tmp_path / "a.npy", FileOptions())


def test_steps_that_occur_twice_are_told(tmp_path):
    """Rows of a run that was resumed, or of several epochs."""
    path = tmp_path / "a.csv"
    path.write_text("step,host0,host1\n2,1,2\n1,3,4\n2,5,6\n")
    trace = read_trace(path, FileOptions())
    np.testing.assert_array_equal(trace.times, [[1, 2], [3, 4], [5, 6]])
    assert trace.notes == (
        "steps of the column 'step' occur more than once: rows keep their order",
    )


def test_summary_rows_are_no_steps(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,host0,host1\n2,1,2\nmean,3,4\n")
    with pytest.raises(
        ValueError, match="row 3, column step must be a number; got 'me"
    ):
        read_trace(path, FileOptions())
    path.write_text(",host0,host1\nmin,1,2\nmean,3,4\n")
    (note,) = read_trace(path, FileOptions()).notes
    assert note == "skipped the column '': it has no numbers"


def clock_table(start):
    """Seconds of a clock at the end of each step."""
    rows = [
        f"{step},{rank},{start + step + rank}" for step in range(20) for rank in (0, 1)
    ]
    return "step,rank,time\n" + "\n".join(rows)


def test_seconds_since_1970_are_no_durations(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(clock_table(1.7e9))
    with pytest.raises(ValueError, match="must be durations; got seconds since 1"):
        read_trace(path, FileOptions())


def test_times_that_increase_in_each_step_are_rejected(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(clock_table(1.0))
    with pytest.raises(ValueError, match="that increase in each step, as times since"):
        read_trace(path, FileOptions())


def test_names_of_workers_keep_their_digits(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,node,seconds\n1,1.1,2\n1,1.10,3\n2,1.1,4\n2,1.10,5\n")
    trace = read_trace(path, FileOptions())
    assert trace.workers == ["1.1", "1.10"]
    np.testing.assert_array_equal(trace.times, [[2, 3], [4, 5]])


def test_large_steps_keep_their_digits(tmp_path):
    path = tmp_path / "a.csv"
    first = 1_700_000_000_000_000_001
    path.write_text(f"step,rank0,rank1\n{first + 1},3,4\n{first},1,2\n")
    trace = read_trace(path, FileOptions())
    np.testing.assert_array_equal(trace.times, [[1, 2], [3, 4]])
    assert trace.notes == ()


def test_steps_in_thousands(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step;rank0;rank1\n999;0.5;0.6\n1.000;0.7;0.8\n1.001;0.9;1.0\n")
    with pytest.raises(ValueError, match="may separate thousands; got '1.000'"):
        read_trace(path, FileOptions())
    path.write_text("step,rank0,rank1\n999,0.5,0.6\n1.001,0.9,1.0\n")
    with pytest.raises(
        ValueError, match="row 3, column step must be a whole number; got 1.0"
    ):
        read_trace(path, FileOptions())
    path.write_text('step,rank0,rank1\n"1,000",0.5,0.6\n999,0.7,0.8\n')
    trace = read_trace(path, FileOptions(decimal="."))
    np.testing.assert_array_equal(trace.times, [[0.7, 0.8], [0.5, 0.6]])


def test_fractions_of_three_digits_are_no_thousands(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step;rank0;rank1\n1;1.234;2.000\n2;1.345;2.100\n")
    trace = read_trace(path, FileOptions())
    np.testing.assert_array_equal(trace.times, [[1.234, 2.0], [1.345, 2.1]])


def test_rows_without_a_step(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,rank0,rank1\n1,1,2\n,3,4\n0,5,6\n")
    with pytest.raises(ValueError, match="row 3, column step must not be empty"):
        read_trace(path, FileOptions())
    trace = read_trace(path, FileOptions(skip_bad_rows=True))
    np.testing.assert_array_equal(trace.times, [[5, 6], [1, 2]])


def test_a_transposed_table_is_rejected(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",0,1,2,3\nhost0,1,2,3,4\nhost1,5,6,7,8\n")
    with pytest.raises(ValueError, match="workers in the column ''. Transpose the ta"):
        read_trace(path, FileOptions())


def test_one_of_several_arrays_is_named(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, a=TIMES, b=TIMES)
    with pytest.raises(ValueError, match="--array must name .*, one of a, b; got None"):
        read_trace(path, FileOptions())


def test_steps_and_workers_that_hardly_meet(tmp_path):
    """A column of names that differ in every row holds no workers."""
    path = tmp_path / "a.csv"
    rows = [f"{number},job{number},2\n" for number in range(300)]
    path.write_text("step,process,seconds\n" + "".join(rows))
    with pytest.raises(ValueError, match="300 times for 300 steps × 300 workers"):
        read_trace(path, FileOptions())


def test_a_missing_pandas_is_named_with_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("host0,host1\n1,2\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[report\]'"):
        read_trace(path, FileOptions())


FRAMES = {
    "array": pandas.DataFrame(TIMES),
    "wide": pandas.DataFrame(TIMES, columns=["rank2", "rank9", "rank10"]),
    "long": pandas.DataFrame(
        {
            "iteration": np.repeat([3, 4, 5], 3),
            "rank": np.tile([2, 9, 10], 3),
            "duration_ms": 1e3 * TIMES.ravel(),
        }
    ),
}
FRAMES["pivot"] = FRAMES["long"].pivot(
    index="iteration", columns="rank", values="duration_ms"
)


@pytest.mark.parametrize("name", FRAMES)
def test_a_data_frame_is_taken_as_an_array(name):
    frame = FRAMES[name]
    expected = jaxwgc.straggler_report(TIMES)
    report = jaxwgc.straggler_report(frame)
    np.testing.assert_allclose(report.slowdown, expected.slowdown, rtol=1e-12)
    names = {"array": "0 1 2", "wide": "rank2 rank9 rank10"}.get(name, "2 9 10")
    assert report.names.tolist() == names.split()
    table = jaxwgc.stragglers.empirical(frame).table[:, :, -1]
    scale = 1e3 if name == "pivot" else 1
    seconds = np.where(np.isnan(TIMES), np.inf, scale * TIMES)
    np.testing.assert_allclose(table, seconds, rtol=1e-15)


@pytest.mark.parametrize("levels", [["iteration", "rank"], ["rank", "iteration"]])
def test_levels_of_an_index_are_columns(levels):
    frame = FRAMES["long"].set_index(levels)
    table = jaxwgc.stragglers.empirical(frame).table[:, :, -1]
    expected = np.where(np.isnan(TIMES), np.inf, TIMES)
    np.testing.assert_allclose(table, expected, rtol=1e-15)
    assert jaxwgc.straggler_report(frame).names.tolist() == ["2", "9", "10"]


def test_levels_without_names_are_rejected_with_what_to_do():
    frame = FRAMES["long"].set_index(["iteration", "rank"])
    with pytest.raises(ValueError, match=r"got 2 levels. Select .* table\['seconds'\]"):
        jaxwgc.straggler_report(frame.unstack())
    with pytest.raises(ValueError, match=r"Name them, e.g. by table.rename_axis\("):
        jaxwgc.straggler_report(frame.rename_axis([None, None]))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timedelta64_is_read_in_seconds(unit, tmp_path):
    seconds = np.array([[3.0, 4.0], [5.0, np.nan], [6.0, 9.0]])
    units_per_second = np.timedelta64(1, "s") // np.timedelta64(1, unit)
    durations = (units_per_second * seconds).astype(f"timedelta64[{unit}]")
    np.save(tmp_path / "a.npy", durations)
    trace = read_trace(tmp_path / "a.npy", FileOptions())
    report = jaxwgc.straggler_report(trace.times)
    np.testing.assert_array_equal(report.rounds.times, seconds)
    table = jaxwgc.stragglers.empirical(durations).table[:, :, -1]
    np.testing.assert_array_equal(table, np.where(np.isnan(seconds), np.inf, seconds))
    assert jaxwgc.straggler_report(waits=durations).mean_wait[0] == 14 / 3


def test_timedelta64_in_a_data_frame_is_rejected_with_what_to_do():
    frame = pandas.DataFrame({"rank2": [1, 2], "rank9": [3, 4]}).astype("m8[s]")
    with pytest.raises(ValueError, match=r"rank2.*to seconds by .dt.total_seconds"):
        jaxwgc.straggler_report(frame)


def test_names_of_a_data_frame_can_be_replaced():
    report = jaxwgc.straggler_report(FRAMES["wide"], names=["a", "b", "c"])
    assert report.names.tolist() == ["a", "b", "c"]
    # Names in another order would accuse another worker.
    with pytest.raises(ValueError, match="names must be in the order of the workers"):
        jaxwgc.straggler_report(FRAMES["wide"], names=["rank9", "rank2", "rank10"])


def test_steps_of_a_data_frame_are_in_order():
    shuffled = FRAMES["wide"].assign(step=[1, 2, 3]).iloc[[2, 0, 1]]
    for frame in (shuffled, shuffled.set_index("step")):
        table = jaxwgc.stragglers.empirical(frame).table[:, :, -1]
        np.testing.assert_array_equal(table, np.where(np.isnan(TIMES), np.inf, TIMES))


def test_a_pivot_with_other_columns():
    """Its columns are called "rank", also those that hold steps and losses."""
    pivot = FRAMES["long"].pivot(
        index="iteration", columns="rank", values="duration_ms"
    )
    report = jaxwgc.straggler_report(pivot.reset_index())
    assert report.names.tolist() == ["2", "9", "10"]
    with pytest.warns(UserWarning, match="not known to be workers: 'loss'"):
        report = jaxwgc.straggler_report(pivot.assign(loss=2.0))
    assert report.names.tolist() == ["2", "9", "10"]
    named = pivot.rename(columns={2: "a.b", 9: "c.d", 10: "e.f"}).reset_index()
    report = jaxwgc.straggler_report(named)
    assert report.names.tolist() == ["a.b", "c.d", "e.f"]


def test_an_index_of_steps_that_cannot_be_sorted():
    frame = FRAMES["wide"].set_axis([4, 5, 4], axis=0).rename_axis("step")
    with pytest.warns(UserWarning, match="occur more than once: rows keep their order"):
        table = jaxwgc.stragglers.empirical(frame).table[:, :, -1]
    np.testing.assert_array_equal(table[0], TIMES[0])
    frame = frame.set_axis(["0", "10", "1"], axis=0).rename_axis("step")
    with pytest.warns(
        UserWarning, match="skipped the column 'step': it has no numbers"
    ):
        table = jaxwgc.stragglers.empirical(frame).table[:, :, -1]
    np.testing.assert_array_equal(table[0], TIMES[0])


def test_a_transposed_data_frame_is_rejected():
    transposed = FRAMES["long"].pivot(
        index="rank", columns="iteration", values="duration_ms"
    )
    with pytest.raises(
        ValueError, match="rows 'rank' and columns 'iteration'. Pass ta"
    ):
        jaxwgc.straggler_report(transposed)


def test_a_data_frame_warns_of_skipped_columns():
    frame = FRAMES["wide"].assign(loss=1.0)
    with pytest.warns(UserWarning, match="not known to be workers: 'loss'") as seen:
        report = jaxwgc.straggler_report(frame)
    assert seen[0].filename == __file__
    assert len(report.names) == 3


def test_a_data_frame_with_unknown_columns_is_rejected():
    frame = pandas.DataFrame(TIMES, columns=["a", "b", "c"])
    with pytest.raises(ValueError, match="pass these columns .* names=columns"):
        jaxwgc.straggler_report(frame)
    report = jaxwgc.straggler_report(frame.rename_axis(columns="worker"))
    assert report.names.tolist() == ["a", "b", "c"]


def test_a_series_is_rejected_with_what_to_do():
    series = FRAMES["long"].set_index(["iteration", "rank"])["duration_ms"]
    with pytest.raises(TypeError, match=r"got a Series. Pass series.to_frame\('seco"):
        jaxwgc.straggler_report(series)
    report = jaxwgc.straggler_report(series.to_frame("seconds"))
    assert report.names.tolist() == ["2", "9", "10"]


def test_loads_have_equally_many_rounds():
    with pytest.raises(ValueError, match="must have equally many rounds at each load"):
        jaxwgc.stragglers.empirical([TIMES, TIMES[:2]], measured_at=[1, 2])
