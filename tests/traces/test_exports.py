"""Files as tools write them: TensorBoard, PyTorch's profiler, wandb, Megatron."""

import gzip
import json
import pathlib

import numpy as np
import pandas
import pytest

import jaxwgc
from jaxwgc.reports import Kind
from jaxwgc.traces._column_names import FileOptions
from jaxwgc.traces._files import read_trace
from jaxwgc.traces._several_files import read_workers

EXPORTS = pathlib.Path(__file__).parent / "exports"
NUM_STEPS = 30
# Seconds of three workers, of which the last one is 1.6 times as slow.
SECONDS = np.random.default_rng(0).uniform(1.0, 1.1, (NUM_STEPS, 3)) * [1, 1, 1.6]
NAMES = ["fallen-sun-7", "vague-sky-12", "wild-moon-3"]


def read(paths, **options):
    return read_workers(paths, FileOptions(**options))


def check_report(trace, names=NAMES):
    """The last worker is slow, and the times are those that were written."""
    assert trace.workers == list(names)
    report = jaxwgc.straggler_report(trace.times, names=trace.workers)
    assert (report.kinds == [Kind.STEADY, Kind.STEADY, Kind.CHRONIC]).all()
    np.testing.assert_allclose(trace.times, SECONDS, rtol=1e-6)


@pytest.mark.parametrize(
    "files",
    [
        "run-rank0-tag-perf_step_time.csv run-rank1-tag-perf_step_time.csv",
        "rank0.pt.trace.json.gz rank1.pt.trace.json.gz",
    ],
)
def test_exports_of_a_training_with_a_slow_rank(files):
    trace = read([EXPORTS / name for name in files.split()])
    assert trace.workers == ["rank0", "rank1"]
    assert trace.has_steps and not trace.notes
    report = jaxwgc.straggler_report(trace.times, names=trace.workers)
    assert report.kinds[1] == Kind.CHRONIC
    assert 1.2 < report.slowdown[1] < 4


def test_the_collective_of_a_profile_is_the_wait():
    """Without it, the steps of both ranks of the export take equally long."""
    waits = []
    for rank in (0, 1):
        path = EXPORTS / f"rank{rank}.pt.trace.json.gz"
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        whole = [
            event["dur"] / 1e6
            for event in events
            if event["name"].startswith("ProfilerStep#")
        ]
        paths = [EXPORTS / f"rank{rank}.pt.trace.json.gz" for rank in (0, 1)]
        waits.append(whole - read(paths).times[:, rank])
    # The slow rank hardly waits.
    assert np.median(waits[0]) > 2 * np.median(waits[1])


def test_a_profile_of_a_gpu(tmp_path):
    """Microseconds; a collective that overlaps with kernels is waited for in part."""

    def event(name, start, length, category):
        return {"ph": "X", "name": name, "ts": start, "dur": length, "cat": category}

    events = [
        event("ProfilerStep#3", 0, 1000, "user_annotation"),
        event("ProfilerStep#3", 5, 990, "gpu_user_annotation"),
        event("gemm", 100, 300, "kernel"),
        event("gemm", 350, 100, "kernel"),
        event("ncclDevKernel_AllReduce_Sum_f32", 400, 500, "kernel"),
        event("aten::mm", 500, 100, "cpu_op"),
        event("ProfilerStep#4", 1000, 600, "user_annotation"),
        # It begins in the step before.
        event("ncclDevKernel_AllReduce_Sum_f32", 950, 150, "kernel"),
        {"ph": "i", "name": "marker", "ts": 3},
    ]
    paths = [tmp_path / f"{name}.json" for name in "ab"]
    for path in paths:
        path.write_text(json.dumps({"traceEvents": events}))
    trace = read(paths)
    # 500 less the 50 of the second gemm, and 50; then 100.
    np.testing.assert_allclose(trace.times[:, 0], [500e-6, 500e-6], rtol=1e-12)
    assert trace.steps.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be a trace of PyTorch's profiler, in JSON; .* rename it to .jsonl"),
        ("[]", "must have events ProfilerStep#N .* call profiler.step"),
        ('{"traceEvents": []}', "must have events ProfilerStep#N"),
    ],
)
def test_other_json_is_no_profile(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read([path, EXPORTS / "rank0.pt.trace.json.gz"])


def wandb(steps, metric="train/step_time"):
    """An export of wandb with runs of default names, and steps of each run."""
    columns = {"Step": np.unique(steps)}
    for run, (own, seconds) in enumerate(zip(steps, SECONDS.T)):
        values = pandas.Series(seconds, index=own).reindex(columns["Step"])
        for end in ("", "__MIN", "__MAX"):
            columns[f"{NAMES[run]} - {metric}{end}"] = values.to_numpy()
    return pandas.DataFrame(columns)


def write(table, folder, name="a.csv"):
    table.to_csv(folder / name, index=False, quoting=1)
    return [folder / name]


SHARED = np.tile(np.arange(NUM_STEPS), (3, 1))
# Each run logs at other steps, so that no row has two runs.
OWN = SHARED * 10 + np.array([[0], [1], [2]])


def test_runs_of_wandb_with_default_names(tmp_path):
    check_report(read(write(wandb(SHARED), tmp_path)))
    check_report(read(write(wandb(SHARED), tmp_path), workers="* - train/step_time"))


def test_runs_of_wandb_that_count_their_own_steps(tmp_path):
    """One run after the other, or in turns."""
    for steps in (OWN, SHARED + NUM_STEPS * np.array([[0], [1], [2]])):
        path = write(wandb(steps), tmp_path)
        with pytest.raises(ValueError, match=r"0 of 90 rows do\. .* add --own-steps"):
            read(path)
        check_report(read(path, own_steps=True))


def test_metrics_of_wandb_that_are_no_times(tmp_path):
    path = write(wandb(SHARED, "loss"), tmp_path)
    with pytest.raises(ValueError, match=r"one metric, .*'loss'.*--workers '\* - los"):
        read(path)
    both = wandb(SHARED).merge(wandb(SHARED, "eval_time"))
    with pytest.raises(ValueError, match="one metric.* got 'eval_time', 'train/step_t"):
        read(write(both, tmp_path))


def write_files(folder, names, table_of, write):
    paths = []
    for worker, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write(table_of(worker), path)
        paths.append(path)
    return paths


def of_worker(worker):
    return pandas.DataFrame({"step": np.arange(NUM_STEPS), "loss": 1.0}).assign(
        step_time=SECONDS[:, worker]
    )


def to_csv(table, path):
    table.to_csv(path, index=False)


def to_json_lines(table, path):
    table.to_json(path, orient="records", lines=True)


@pytest.mark.parametrize(
    ("names", "expected", "write"),
    [
        ("gpu0.csv gpu1.csv gpu2.csv", "gpu0 gpu1 gpu2", to_csv),
        ("a/times.csv b/times.csv c/times.csv", "a b c", to_csv),
        ("a/0.csv a/1.csv b/0.csv", "a/0 a/1 b/0", to_csv),
        ("n-0.svc.jsonl n-1.svc.jsonl n-2.jsonl", "n-0.svc n-1.svc n-2", to_json_lines),
    ],
)
def test_a_file_for_each_worker(names, expected, write, tmp_path):
    paths = write_files(tmp_path, names.split(), of_worker, write)
    trace = read(paths)
    check_report(trace, expected.split())
    assert trace.has_steps
    assert "skipped columns that are not known to be workers: 'loss'" in trace.notes[0]


def test_files_are_compared_at_equal_steps(tmp_path):
    """The second worker has logged other steps, too."""

    def table_of(worker):
        table = of_worker(worker)
        if worker == 1:
            extra = pandas.DataFrame({"step": [-1, 99], "loss": 0.0, "step_time": 5.0})
            return pandas.concat([extra, table[::-1]])
        return table

    trace = read(write_files(tmp_path, ["a.csv", "b.csv", "c.csv"], table_of, to_csv))
    assert trace.steps.tolist() == [-1, *range(NUM_STEPS)]
    np.testing.assert_allclose(trace.times[1:], SECONDS)
    assert np.isnan(trace.times[0]).tolist() == [True, False, True]
    assert trace.notes[-1] == "left out the last 1 rows, which a does not have yet"


@pytest.mark.parametrize(("num_rows", "is_gone"), [(25, False), (12, True)])
def test_a_file_that_is_behind_is_not_that_of_a_lost_worker(
    num_rows, is_gone, tmp_path
):
    """One worker writes later than others, or has stopped."""

    def table_of(worker):
        return of_worker(worker)[: num_rows if worker == 1 else None]

    trace = read(write_files(tmp_path, ["a.csv", "b.csv", "c.csv"], table_of, to_csv))
    report = jaxwgc.straggler_report(trace.times, names=trace.workers)
    assert (report.kinds[1] == Kind.MISSING_SINCE) == is_gone
    assert report.kinds[2] == Kind.CHRONIC


def test_files_without_steps_are_compared_row_by_row(tmp_path):
    def table_of(worker):
        return of_worker(worker)[["step_time"]]

    paths = write_files(tmp_path, ["a.csv", "b.csv", "c.csv"], table_of, to_csv)
    trace = read(paths)
    check_report(trace, ["a", "b", "c"])
    [note] = trace.notes
    assert note == "without a column of steps, rows of equal number are compared"
    to_csv(of_worker(2), paths[2])
    with pytest.raises(ValueError, match="must have a column of steps, or none"):
        read(paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.assign(wall_time=1),
            "'step_time', 'wall_time'. .*--secon",
        ),
        (
            lambda table: pandas.concat([table, table]),
            r"c\.csv: each step must occur o",
        ),
        (lambda table: table.assign(step=table.step + 100), "60 rows do"),
        (lambda table: table[:0], r"^c\.csv must have rows of times"),
    ],
)
def test_files_of_workers_that_are_rejected(change, message, tmp_path):
    names = ["a.csv", "b.csv", "c.csv"]
    paths = write_files(tmp_path, names, of_worker, to_csv)
    to_csv(change(of_worker(2)), paths[2])
    if "rows do" in message:
        to_csv(of_worker(1).assign(step=np.arange(NUM_STEPS) + 200), paths[1])
        message = "0 of 90 rows do"
    elif "wall_time" in message:
        message = "one column of times; .*Choose .* by --seconds COLUMN"
        to_csv(change(of_worker(2)).rename(columns={"wall_time": "time"}), paths[2])
    with pytest.raises(ValueError, match=message):
        read(paths)


@pytest.mark.parametrize("name", ["samples_per_sec", "loss", "gpu_util"])
def test_a_single_column_of_another_quantity_is_no_time(name, tmp_path):
    def table_of(worker):
        return of_worker(worker)[["step", "step_time"]].set_axis(["step", name], axis=1)

    paths = write_files(tmp_path, ["a.csv", "b.csv", "c.csv"], table_of, to_csv)
    with pytest.raises(ValueError, match="a.csv: a file of one worker must have one"):
        read(paths)
    check_report(read(paths, seconds=name), ["a", "b", "c"])


def test_the_same_file_or_worker_twice_is_rejected(tmp_path):
    path = EXPORTS / "run-rank0-tag-perf_step_time.csv"
    with pytest.raises(ValueError, match="files must differ; got a file twice"):
        read([path, path])
    tags = [tmp_path / f"run-rank0-tag-{tag}_time.csv" for tag in "ab"]
    for tag in tags:
        tag.write_bytes(path.read_bytes())
    with pytest.raises(
        ValueError, match="different workers; got several files of rank0"
    ):
        read(tags)


def test_one_file_of_one_worker_is_told(tmp_path):
    to_csv(of_worker(0), tmp_path / "a.csv")
    with pytest.raises(ValueError, match="If this is the file of one worker, give"):
        read([tmp_path / "a.csv"])
    path = EXPORTS / "run-rank0-tag-perf_step_time.csv"
    with pytest.raises(ValueError, match="got times of one worker. Give the files of"):
        read([path])
    with pytest.raises(ValueError, match="got times of one worker"):
        read([EXPORTS / "rank0.pt.trace.json.gz"])


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = pandas.DataFrame(SECONDS, columns=["host0", "host1", "host2"])
    table.to_parquet(tmp_path / "a.parquet")
    check_report(read([tmp_path / "a.parquet"]), table.columns)


# Lines of Megatron-LM, with the times of its timers on all ranks.
ITERATION = (
    " [2026-12-03 05:41:12] iteration {:8d}/    1000 | consumed samples: 160 | "
    "elapsed time per iteration (ms): {:.1f} | learning rate: 1.0E-04 | lm loss: 9.1 |"
)


def megatron(of_ranks, steps=range(1, NUM_STEPS + 1), slower=1):
    """Returns a log; the last ten steps are slower by a factor."""
    lines = ["training ...", "(min, max) time across ranks (ms):", "    setup: (1, 2)"]
    for step in steps:
        seconds = SECONDS[step - 1] * (slower if step > NUM_STEPS - 10 else 1)
        lines.append(ITERATION.format(step, 1e3 * seconds.max()))
        lines.append("times across ranks (ms):")
        for timer, share in of_ranks.items():
            lines.append(f"  {timer}:")
            for rank, own in enumerate(seconds):
                lines.append(f"     rank {rank:2d}: {1e3 * share * own:.4f}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "timers",
    [
        {"forward-compute": 0.25, "backward-compute": 0.75, "optimizer": 9.0},
        {"forward-backward": 1.0, "optimizer": 9.0},
    ],
)
def test_timers_of_all_ranks_of_megatron(timers, tmp_path):
    path = tmp_path / "train.log"
    # Training starts again, and repeats the last ten steps.
    first, last = np.split(np.arange(1, NUM_STEPS + 1), [NUM_STEPS - 10])
    again = megatron(timers, [*first, *last], slower=3) + megatron(timers, last)
    path.write_text(again)
    trace = read([path])
    check_report(trace, ["0", "1", "2"])
    assert trace.steps.tolist() == list(range(1, NUM_STEPS + 1))


def test_iterations_of_megatron_include_the_wait(tmp_path):
    paths = [tmp_path / "node0.txt", tmp_path / "node1.txt"]
    for path in paths:
        path.write_text(megatron({}))
    for some in (paths, paths[:1]):
        with pytest.raises(ValueError, match="train with --timing-log-option all"):
            read(some)


def test_a_last_line_that_is_not_finished_is_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,host0,host1\n1,2,3\n2,4,5\n3,6")
    trace = read([path])
    np.testing.assert_array_equal(trace.times, [[2, 3], [4, 5]])
    assert trace.notes == ("skipped the last line, which is not finished",)
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1, "host0": 2, "host1": 3}\n{"step": 2, "ho')
    trace = read([path])
    np.testing.assert_array_equal(trace.times, [[2, 3]])
    assert trace.notes == ("skipped the last line, which is not finished",)


def test_late_times_of_json_lines_are_in_the_rows_of_their_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"run": "r", "step": 1, "worker/0/seconds": 1.0, "worker/1/seconds": null}\n'
        '{"run": "r", "step": 2, "worker/0/seconds": 1.5, "worker/1/seconds": null, '
        '"late": [[1, 1, 2.5], [1, -3, 9.0]]}\n'
    )
    trace = read_trace(path, FileOptions())
    np.testing.assert_array_equal(trace.times, [[1, 2.5], [1.5, np.nan]])
    path.write_text(path.read_text() + path.read_text().replace('"r"', '"other"'))
    with pytest.raises(
        ValueError, match="must have the steps of one run; got the runs r, other"
    ):
        read_trace(path, FileOptions())


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ("gpu0 gpu1", "'gpu*'"),
        ("cn0101 cn0102 loss", "'cn*'"),
        ("ip-10-0-1-17 ip-10-0-2-4", "'ip-*'"),
        ("worker-0.trainer.svc worker-1.trainer.svc", "'worker-*.trainer.svc'"),
        ("a1.lab.org a22.lab.org b", "'a*.lab.org'"),
    ],
)
def test_host_names_get_the_pattern_that_fits(names, pattern, tmp_path):
    columns = names.split()
    table = pandas.DataFrame(SECONDS[:, : len(columns)], columns=columns)
    table.insert(0, "step", np.arange(NUM_STEPS))
    path = write(table, tmp_path)
    with pytest.raises(ValueError) as info:
        read(path)
    assert f"Choose columns by --workers {pattern} (" in str(info.value)
    hosts = [name for name in columns if name not in ("loss", "b")]
    trace = read(path, workers=pattern.strip("'"))
    assert trace.workers == hosts
    # In Python, the error names what Python has.
    with pytest.raises(ValueError) as info:
        jaxwgc.straggler_report(table)
    assert "--" not in str(info.value)
    report = jaxwgc.straggler_report(table[["step", *hosts]], names=hosts)
    assert report.names.tolist() == hosts
    assert report.noun == "step"


def test_times_since_the_start_are_rejected(tmp_path):
    table = pandas.DataFrame(SECONDS.cumsum(0), columns=["host0", "host1", "host2"])
    with pytest.raises(ValueError, match="as times since the start do. Take the"):
        read(write(table, tmp_path))


def test_columns_with_equal_times_are_named(tmp_path):
    table = pandas.DataFrame(SECONDS, columns=["host0", "host1", "host2"])
    [note] = read(write(table.assign(host1=table.host0), tmp_path)).notes
    assert note.startswith("times of host0, host1 are equal in all rows")
    # If all are, the report says that they include the wait.
    equal = table.assign(host1=table.host0, host2=table.host0)
    assert not read(write(equal, tmp_path)).notes


def test_files_with_their_own_steps(tmp_path):
    """The steps of the second one occur twice, and the third has none."""

    def table_of(worker):
        table = of_worker(worker)
        if worker == 1:
            table["step"] //= 2
        return table.drop(columns="step") if worker == 2 else table

    paths = write_files(tmp_path, ["a.csv", "b.csv", "c.csv"], table_of, to_csv)
    check_report(read(paths, own_steps=True), ["a", "b", "c"])
    to_csv(of_worker(1)[:20], paths[1])
    trace = read(paths, own_steps=True)
    np.testing.assert_allclose(trace.times, SECONDS[:20])
    assert trace.notes[-1].startswith("compares the first 20 times of each worker: b ")
    np.save(tmp_path / "a.npy", SECONDS[:, :, None])
    with pytest.raises(
        ValueError, match=r"--own-steps needs times .* got \(30, 3, 1\)"
    ):
        read([tmp_path / "a.npy"], own_steps=True)
