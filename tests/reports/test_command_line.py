"""`python -m jaxwgc report FILE` and `python -m jaxwgc plan FILE`."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc.__main__ import keep_programs, main

TIMES = np.array([[1.0, 2.0, 8.0], [1.5, 2.0, 9.0], [1.0, np.nan, 7.0]])
TEXT = "Step,lr,host0,host1,host2\n1,0,1,2,8\n2,0,1.5,2,9\n3,0,1,,7\n"
NAMES = ["host0", "host1", "host2"]


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(TEXT)
    return path


def shown(capsys, *arguments):
    """Text that the command line prints."""
    main(["report", *map(str, arguments)])
    return capsys.readouterr().out


def test_report_is_printed_as_text_and_as_json(csv, capsys):
    expected = jaxwgc.straggler_report(TIMES, names=NAMES, steps=[1, 2, 3])
    assert shown(capsys, csv) == f"{expected}\n"
    assert json.loads(shown(capsys, csv, "--json")) == expected.to_dict()


@pytest.mark.parametrize("options", [[], ["--json"], ["--waits"]])
def test_a_report_needs_no_jax(csv, options):
    """JAX takes most of a second to import."""
    program = (
        "import sys; from jaxwgc.__main__ import main; main(sys.argv[1:]); "
        "print('jax' in sys.modules, 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", program, "report", str(csv), *options]
    ended = subprocess.run(command, capture_output=True, check=True, text=True)
    assert ended.stdout.splitlines()[-1] == "False True"


def test_numpy_files_need_no_pandas(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", a=TIMES, b=2 * TIMES)
    expected = f"{jaxwgc.straggler_report(2 * TIMES)}\n"
    assert shown(capsys, tmp_path / "two.npz", "--array", "b") == expected


def test_skipped_columns_are_told_beside_the_report(csv, capsys):
    main(["report", str(csv)])
    note = "a.csv: skipped columns that are not known to be workers: 'lr'\n"
    assert capsys.readouterr().err.endswith(note)


def test_columns_and_marks_are_chosen(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("t;who;took\n0;a;1,234\n0;b;2\n1;a;1\n1;b;2\n1;c\n")
    chosen = ["--step", "t", "--worker", "who", "--seconds", "took", "--decimal", ","]
    read = json.loads(shown(capsys, path, "--json", "--skip-bad-rows", *chosen))
    assert read["names"] == ["a", "b"]
    assert read["round_time"] == 2.0
    path.write_text("t,a,b\n0,1,2\n1,1,2\n")
    read = json.loads(shown(capsys, path, "--json", "--workers", "[ab]"))
    assert read["names"] == ["a", "b"]


def test_plot_and_plan(tmp_path, capsys, monkeypatch):
    """`plan` itself, which is tested elsewhere, takes long."""
    path = tmp_path / "a.npy"
    picture = tmp_path / "a.png"
    np.save(path, TIMES)
    asked = []
    made = types.SimpleNamespace(advice="uncoded, waiting for all")

    def plan(*arguments, names, candidates):
        asked.append((*arguments, names, candidates.memory))
        return made

    monkeypatch.setattr(jaxwgc, "plan", plan)
    read = json.loads(shown(capsys, path, "--json", "--plan", "--plot", picture))
    assert read["plan"] == made.advice
    assert shown(capsys, path, "--plan").endswith(f"\n\n{made.advice}\n")
    assert picture.stat().st_size > 1000
    shown(capsys, path, "--plan", "--memory")
    assert [memory for *_, memory in asked] == [False, False, True]
    delay, num_workers, _, names, _ = asked[0]
    assert names == ["0", "1", "2"]
    drawn, _ = jax.jit(delay.sample)(jax.random.key(0), delay.init(3), np.ones(3))
    assert drawn.tolist() in np.where(np.isnan(TIMES), np.inf, TIMES).tolist()
    assert num_workers == 3


def test_waiting_times(tmp_path, capsys):
    path = tmp_path / "a.npy"
    waits = np.random.default_rng(0).random((100, 4))
    waits[:, 2] = 0
    np.save(path, waits)
    expected = jaxwgc.straggler_report(waits=waits)
    assert shown(capsys, path, "--waits") == f"{expected}\n"
    read = json.loads(shown(capsys, path, "--waits", "--json", "--plan"))
    assert read["kinds"] == ["steady", "steady", "late", "steady"]
    assert read["plan"].startswith("No plan: a plan needs the time of each worker")


def test_times_after_a_barrier_are_not_planned_with(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.npy"
    times = np.random.default_rng(0).random((100, 1)) + 1
    np.save(path, times.repeat(4, 1))
    printed = shown(capsys, path, "--plan")
    assert printed.startswith("These times seem to include the wait for the slowest")
    assert "No plan: " in printed
    monkeypatch.setattr(
        jaxwgc,
        "plan",
        lambda *arguments, names, candidates: types.SimpleNamespace(advice="uncoded"),
    )
    printed = shown(capsys, path, "--plan", "--before-collective")
    assert "Nothing to gain" in printed
    assert printed.endswith("uncoded\n")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "host0,host1\n1,-2\n1,2\n", "times must be positive"),
        ("a.csv", "1\n2\n", "times must have at least 2 workers; got (2, 1)"),
        ("a.csv", "host0,host1\n1,2\n", "at least 2 rounds; got (1, 2)"),
        ("a.csv", "host0,host1\n,\nnan,\n", "at least one response; got none"),
        ("a.csv", "a,b\n1,2\n", "--workers PATTERN"),
        ("a.txt", "", "a.txt must have rows of times; got none"),
        (None, "", "No such file"),
    ],
)
def test_errors_end_the_command_with_status_2(name, text, message, tmp_path, capsys):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as ended:
        shown(capsys, tmp_path / (name or "none.csv"))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_waits_and_times_exclude_each_other(csv, capsys):
    with pytest.raises(SystemExit):
        shown(capsys, csv, "--waits", "--before-collective")
    error = capsys.readouterr().err
    assert error.startswith("error: argument --before-collective: not allowed with")


def test_waits_are_not_drawn(csv, capsys):
    with pytest.raises(SystemExit):
        shown(capsys, csv, "--waits", "--plot", "a.png")
    assert "--plot draws times, not waits" in capsys.readouterr().err


def test_memory_is_an_option_of_the_plan(csv, capsys):
    with pytest.raises(SystemExit):
        shown(capsys, csv, "--memory")
    assert "--memory needs --plan" in capsys.readouterr().err


def test_rounds_are_named_by_the_steps_of_the_file(tmp_path, capsys):
    """Every tenth step is in the file, from 1000 on."""
    times = np.exp(0.05 * np.random.default_rng(0).standard_normal((200, 8)))
    times[30:, 3] *= 2
    steps = 1000 + 10 * np.arange(200)
    path = tmp_path / "a.csv"
    header = "step," + ",".join(f"host{worker}" for worker in range(8))
    table = np.column_stack([steps, times])
    np.savetxt(path, table, delimiter=",", header=header, comments="")
    printed = shown(capsys, path)
    assert "since step 1300 (" in printed
    assert "round 30" not in printed
    assert "Rounds count from 0." not in printed
    read = json.loads(shown(capsys, path, "--json"))
    assert read["kinds"][3] == "since step 1300"
    assert read["change_round"][3] == 1300


def test_rows_per_time_are_named_by_their_steps(tmp_path, capsys):
    times = np.exp(0.05 * np.random.default_rng(0).standard_normal((200, 4)))
    times[17, 3] = 1e6
    rows = [
        f"{1000 + 10 * number},{worker},{times[number, worker]}"
        for number in range(200)
        for worker in range(4)
    ]
    path = tmp_path / "a.csv"
    path.write_text("step,rank,seconds\n" + "\n".join(rows))
    assert "worker 3 in step 1170." in " ".join(shown(capsys, path).split())


def test_a_plan_is_printed_as_text_and_as_json(tmp_path, capsys):
    path = tmp_path / "a.npy"
    times = 1 + np.random.default_rng(0).random((20, 3))
    np.save(path, times)
    options = "--exact", "--copies", "1", "2", "--target", "0.001"
    main(["plan", str(path), *options])
    printed = capsys.readouterr().out
    expected = jaxwgc.plan(
        jaxwgc.stragglers.empirical(times),
        3,
        jax.random.key(0),
        candidates=jaxwgc.planning.Candidates(exact=True, copies=[1, 2]),
        goal=jaxwgc.planning.Goal(target=0.001),
    )
    assert printed == f"{expected}\n"
    main(["plan", str(path), "--json", *options])
    assert json.loads(capsys.readouterr().out) == expected.to_dict()


def test_a_plan_with_stored_messages_is_drawn(tmp_path, capsys):
    path = tmp_path / "a.npy"
    picture = tmp_path / "a.png"
    np.save(path, 1 + np.random.default_rng(0).random((20, 3)))
    main(["plan", str(path), "--memory", "--copies", "1", "--plot", str(picture)])
    assert "+ memory" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


@pytest.fixture
def at_loads(tmp_path):
    """Files of a load each: the same workers in another order, and more rounds."""
    (tmp_path / "once.csv").write_text("step,host0,host1\n0,1,5\n1,2,6\n")
    (tmp_path / "twice.csv").write_text("step,host1,host0\n0,8,3\n1,9,4\n2,9,4\n")
    (tmp_path / "others.csv").write_text("step,host0,host2\n0,1,2\n1,1,2\n")
    return tmp_path


def test_a_plan_takes_a_file_for_each_load(at_loads, capsys, monkeypatch):
    """`plan` itself, which is tested elsewhere, takes long."""
    plans = []

    def plan(delay, num_workers, key, *, names, **options):
        plans.append((delay, num_workers, names))
        return types.SimpleNamespace(to_dict=dict, plot=None)

    monkeypatch.setattr(jaxwgc, "plan", plan)
    once = str(at_loads / "once.csv")
    twice = str(at_loads / "twice.csv")
    options = ["--before-collective", "--at", "1", once, "--at", "2", twice]
    main(["plan", *options])
    assert "twice.csv: uses the first 2 rounds" in capsys.readouterr().err
    ((delay, num_workers, names),) = plans
    assert (num_workers, names) == (2, ["host0", "host1"])
    assert delay.measured_loads() == (1.0, 2.0)
    expected = jaxwgc.stragglers.empirical(
        [[[1.0, 5.0], [2.0, 6.0]], [[3.0, 8.0], [4.0, 9.0]]], measured_at=[1.0, 2.0]
    )
    np.testing.assert_array_equal(delay.table, expected.table)


LOADS = {
    "long.csv": (
        "load,step,rank,seconds\n2,0,host1,8\n2,0,host0,3\n2,1,host0,4\n2,1,host1,9\n"
        "2,2,host0,4\n2,2,host1,9\n1,0,host0,1\n1,0,host1,5\n1,1,host0,2\n1,1,host1,6\n"
    ),
    "wide.csv": "Load,host0,host1\n1,1,5\n2,3,8\n1,2,6\n2,4,9\n2,4,9\n",
    "wide.jsonl": "".join(
        json.dumps({"load": load, "step": step, "host1": last, "host0": first}) + "\n"
        for load, step, first, last in [
            (1, 1, 2, 6),
            (1, 0, 1, 5),
            (2, 0, 3, 8),
            (2, 1, 4, 9),
            (2, 2, 4, 9),
        ]
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_a_plan_takes_a_file_with_a_column_of_loads(
    name, tmp_path, capsys, monkeypatch
):
    plans = []

    def plan(delay, num_workers, key, *, names, **options):
        plans.append((delay, names))
        return types.SimpleNamespace(to_dict=dict, plot=None)

    monkeypatch.setattr(jaxwgc, "plan", plan)
    path = tmp_path / name
    path.write_text(LOADS[name])
    main(["plan", "--before-collective", str(path)])
    assert f"{name} at load 2: uses the first 2 rounds" in capsys.readouterr().err
    ((delay, names),) = plans
    assert sorted(names) == ["host0", "host1"]
    assert delay.measured_loads() == (1.0, 2.0)
    times = np.array([[[1.0, 5.0], [2.0, 6.0]], [[3.0, 8.0], [4.0, 9.0]]])
    order = [("host0", "host1").index(name) for name in names]
    expected = jaxwgc.stragglers.empirical(times[:, :, order], measured_at=[1.0, 2.0])
    np.testing.assert_array_equal(delay.table, expected.table)


@pytest.mark.parametrize("option", [[], ["--workers", "*"]])
def test_a_column_of_loads_is_no_worker(option, tmp_path, monkeypatch):
    """One load is that of all rows."""
    plans = []

    def plan(delay, num_workers, key, *, names, **options):
        plans.append((delay.measured_loads(), names))
        return types.SimpleNamespace(to_dict=dict, plot=None)

    monkeypatch.setattr(jaxwgc, "plan", plan)
    path = tmp_path / "a.csv"
    path.write_text("load,host0,host1\n2,1,5\n2,2,6\n")
    main(["plan", "--before-collective", str(path), *option])
    assert plans == [((2.0,), ["host0", "host1"])]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,1,5\n0,2,6\n", "must have a load above 0; got only 0"),
        ("1,1,5\n-2,2,6\n", "row 3, column load must be a load of at least 0; got"),
        ("1,1,5\n,2,6\n", "row 3, column load must be a load of at least 0; got nan"),
        ("1,1,5\ntwo,2,6\n", "column load must be a load of at least 0; got two"),
        ("1,1,5\ninf,2,6\n", "column load must be a load of at least 0; got"),
        ("1,1,5\n1,2,6\n2,3,7\n", "at least 2 rounds; got (1, 2)"),
    ],
)
def test_wrong_columns_of_loads_are_told(rows, message, tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("load,host0,host1\n" + rows)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--before-collective", str(path)])
    assert message in " ".join(capsys.readouterr().err.split())


def test_loads_have_the_same_workers(tmp_path, capsys):
    path = tmp_path / "a.csv"
    rows = ["1,0,a,1", "1,0,b,2", "1,1,a,1", "1,1,b,2", "2,0,a,2", "2,0,c,3"]
    text = "load,step,rank,seconds\n" + "\n".join([*rows, "2,1,a,2", "2,1,c,3"])
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--before-collective", str(path)])
    error = " ".join(capsys.readouterr().err.split())
    assert "at load 2 must have the workers of" in error
    assert "at load 1, a, b; got a, c" in error


def test_a_load_is_given_once(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("load,host0,host1\n1,1,5\n1,2,6\n")
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--before-collective", "--at", "2", str(path)])
    error = " ".join(capsys.readouterr().err.split())
    assert "--at gives the load of all rows of a file" in error
    assert "a.csv has a column 'load'" in error


def test_a_report_is_of_one_load(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text(LOADS["wide.csv"])
    with pytest.raises(SystemExit, match="2"):
        shown(capsys, path)
    error = " ".join(capsys.readouterr().err.split())
    assert "must have times at one load; got the loads 1, 2 in a column load." in error
    assert "python -m jaxwgc plan" in error
    path.write_text("load,host0,host1\n2,1,5\n2,2,6\n")
    assert json.loads(shown(capsys, path, "--json"))["names"] == ["host0", "host1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["once.csv", "--at", "1", "once.csv"], "give one file of times, or a file"),
        ([], "give one file of times, or a file per"),
        (["--at", "one", "once.csv"], "--at must have a load"),
        (["--at", "0", "once.csv"], "--at must have increasing loads"),
        (
            ["--at", "2", "once.csv", "--at", "1", "twice.csv"],
            "--at must have increasing",
        ),
        (
            ["--at", "1", "once.csv", "--at", "1", "twice.csv"],
            "--at must have increasing",
        ),
        (
            ["--at", "-1", "once.csv", "--at", "1", "twice.csv"],
            "--at must have increasing",
        ),
        (
            ["--at", "nan", "once.csv", "--at", "1", "twice.csv"],
            "--at must have increasing",
        ),
        (["--at", "1", "once.csv", "--at", "2", "others.csv"], "others.csv must have"),
    ],
)
def test_wrong_loads_of_files_are_told(options, message, at_loads, capsys, monkeypatch):
    monkeypatch.chdir(at_loads)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--before-collective", *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--copies", "9"], "copies must be at most num_workers"),
        (["--target", "2"], "target must be between 0 and 1"),
    ],
)
def test_wrong_options_of_a_plan_are_told(options, message, csv, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(csv), *options])
    assert message in capsys.readouterr().err


def test_times_after_a_barrier_are_no_plan(tmp_path, capsys):
    """Equal times in each step say nothing about single workers."""
    path = tmp_path / "a.npy"
    random = np.random.default_rng(0)
    times = 1 + random.random((60, 1)) * (1 + 1e-4 * random.random((60, 4)))
    np.save(path, times)
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(path), "--exact"])
    assert "before it waits for others" in capsys.readouterr().err
    main(["plan", str(path), "--exact", "--copies", "1", "--before-collective"])
    assert "uncoded" in capsys.readouterr().out


def test_a_file_for_each_worker(tmp_path, capsys):
    steps = np.arange(len(TIMES))
    for worker, times in enumerate(TIMES.T):
        path = tmp_path / f"gpu{worker}.csv"
        lines = [f"{step},{time}" for step, time in zip(steps, times)]
        path.write_text("\n".join(["step,seconds", *lines]))
    paths = sorted(tmp_path.glob("gpu*.csv"))
    names = ["gpu0", "gpu1", "gpu2"]
    expected = jaxwgc.straggler_report(TIMES, names=names, steps=steps)
    assert shown(capsys, *paths) == f"{expected}\n"


def test_workers_with_their_own_steps(tmp_path, capsys):
    own = np.full((60, 2), np.nan)
    own[0::2, 0] = np.linspace(1, 1.1, 30)
    own[1::2, 1] = np.linspace(2, 2.1, 30)[::-1]
    np.savetxt(tmp_path / "a.txt", own)
    with pytest.raises(SystemExit):
        shown(capsys, tmp_path / "a.txt")
    error = capsys.readouterr().err
    assert error.startswith("error: rows must have times of several workers")
    assert "add --own-steps" in error
    read = json.loads(shown(capsys, tmp_path / "a.txt", "--own-steps", "--json"))
    assert read["kinds"] == ["steady", "chronic"]


def test_live_follows_a_growing_file(tmp_path, capsys, monkeypatch):
    """Until the user interrupts it; a file that cannot be read yet is waited for."""
    path = tmp_path / "a.csv"
    path.write_text("step,host0,host1\n")
    more = iter(["1,2.0,3.0\n2,2.", "0,3.5\n3,2.1,3.3\n"])

    def sleep(seconds):
        try:
            text = next(more)
        except StopIteration:
            raise KeyboardInterrupt from None
        with path.open("a") as file:
            file.write(text)

    monkeypatch.setattr("time.sleep", sleep)
    seen = []
    monkeypatch.setattr(
        "rich.live.Live.update", lambda *arguments, **_: seen.append(str(arguments[1]))
    )
    shown(capsys, path, "--live")
    assert seen[0] == "no report yet: a.csv must have rows of times; got none"
    assert seen[1].startswith("no report yet: times must have shape")
    assert seen[2].startswith("3 rounds of 2 workers.")
    with pytest.raises(SystemExit):
        shown(capsys, path, "--live", "--json")
    assert "leave out --json" in capsys.readouterr().err


def test_compiled_programs_are_kept_in_the_cache_folder(tmp_path, monkeypatch):
    """Of the user, who may have chosen another one; no JAX is imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # What is set first is restored at the end.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "other")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    keep_programs()
    folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.parent == tmp_path / "jaxwgc"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
