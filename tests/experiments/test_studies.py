"""The runner: what a study declares is measured, shown and kept."""

import contextvars
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxwgc
from experiments.codes import orderings
from experiments.paper import mnist
from experiments.runner import interrupts, tables
from experiments.runner import study as studies
from experiments.runner.figures import new_figure
from experiments.runner.results import ExperimentError
from experiments.runner.study import Once, Study, Trial
from experiments.runner.tables import ResultTable, interval

ROOT = Path(__file__).parents[2]
KEY = jax.random.key(0)


def shifted(key, shift):
    return shift + jax.random.normal(key)


def uniform(key):
    return {"uniform": jax.random.uniform(key)}


def draw(numbers):
    figure, (axes,) = new_figure(2, 2)
    axes.plot(numbers["rows"])
    return figure


def small(runs=4):
    return Study(
        {
            "known": (1, 2),
            "normal": {"zero": Trial(shifted, 0.0), "many": [Trial(shifted, 5.0)]},
            "beside": {"known": 1, "": Trial(uniform)},
            "rows": Once(lambda: iter([1.0, 2.0]), num_rows=2),
        },
        key=KEY,
        runs=runs,
        x64=True,
        derive=lambda numbers: {"sum": sum(numbers["rows"])},
        tables={"": lambda numbers: ResultTable("t", ["sum"], [[str(numbers["sum"])]])},
        figures={"rows": draw},
    )


def test_numbers_stand_where_the_cells_stood():
    heard = []
    section = studies.measure(small(), lambda name, share: heard.append((name, share)))
    numbers = section.numbers
    assert list(numbers) == ["known", "normal", "beside", "rows", "runs", "sum"]
    assert numbers["known"] == [1, 2] and numbers["runs"] == 4 and numbers["sum"] == 3
    with jax.enable_x64(True):
        found = jaxwgc.summarize(jaxwgc.monte_carlo(jax.random.normal, KEY, 4))
    assert numbers["normal"]["zero"] == pytest.approx(found._asdict())
    assert numbers["normal"]["many"][0]["mean"] == pytest.approx(5 + found.mean)
    assert set(numbers["beside"]) == {"known", "uniform"}
    assert 0 < numbers["beside"]["uniform"]["mean"] < 1
    assert section.tables[""].rows == [["3.0"]]
    shares = [share for _, share in heard]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert {name for name, _ in heard} == {"zero", "many", "beside", "rows"}
    json.dumps(numbers)
    assert not jax.config.jax_enable_x64


def test_means_do_not_depend_on_the_other_cells():
    alone = Study({"zero": Trial(shifted, 0.0)}, key=KEY, runs=4, x64=True)
    together = studies.measure(small()).numbers["normal"]["zero"]
    assert studies.measure(alone).numbers["zero"] == together


def test_every_section_is_saved_when_it_is_done(tmp_path):
    def fail():
        written = json.loads((tmp_path / "tried.json").read_text())
        assert written["unfinished"] == ["second"]
        raise ZeroDivisionError

    sections = {"first": small, "second": fail}
    with pytest.raises(ZeroDivisionError):
        studies.run("tried", "Tried", sections, 4, 0, tmp_path)
    files = {"tried.json", "tried_first.md", "tried_rows.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert {path.name for path in interrupts.written} == files
    sections = {"first": small, "second": lambda: Study({"one": 1})}
    studies.run("tried", "Tried", sections, 4, 0, tmp_path)
    written = json.loads((tmp_path / "tried.json").read_text())
    assert list(written) == ["environment", "command", "first", "second"]
    assert written["command"] == "python -m experiments tried --runs 4 --seed 0"
    assert written["second"] == {"one": 1}


def test_a_section_without_a_name_is_the_whole_file(tmp_path):
    studies.run("tried", "Tried", {"": small}, 4, 7, tmp_path, prefix="table9")
    assert {path.name for path in tmp_path.iterdir()} == {
        "table9.json",
        "table9.md",
        "table9_rows.png",
    }
    assert json.loads((tmp_path / "table9.json").read_text())["sum"] == 3


INTERRUPTED = """
import pathlib, sys, time
from experiments.runner import interrupts
interrupts.end_on_interrupt()
from experiments.runner import study as studies

def second():
    print("second", flush=True)
    time.sleep(120)

sections = {"first": lambda: studies.Study({"one": 1}), "second": second}
studies.run("tried", "Tried", sections, 1, 0, pathlib.Path(sys.argv[1]))
"""


def test_redrawing_shows_what_was_kept_and_measures_nothing(tmp_path, monkeypatch):
    def table(numbers):
        return ResultTable("t", ["mean"], [[interval(numbers["normal"]["zero"])]])

    def run():
        study = dataclasses.replace(small(), tables={"": table})
        studies.run("tried", "Tried", {"": lambda: study}, 4, 0, tmp_path)

    run()
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.suffix for path in written} == {".json", ".md", ".png"}
    for path in written:
        if path.suffix != ".json":
            path.unlink()
    monkeypatch.delattr(studies, "measure")
    context = contextvars.copy_context()
    context.run(studies.is_redrawing.set, True)
    context.run(run)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_finished_sections_survive_an_interrupt(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert any("second" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. What was finished stays." in rest
    assert f"Wrote {tmp_path / 'tried.json'}" in rest
    assert os.listdir(tmp_path) == ["tried.json"]
    written = json.loads((tmp_path / "tried.json").read_text())
    assert written["first"] == {"one": 1} and written["unfinished"] == ["second"]


def test_wrong_arguments_are_refused_before_any_work(tmp_path):
    def work():
        raise AssertionError("work was begun")

    for option in ("runs", "repeats"):
        with pytest.raises(ExperimentError, match=f"^--{option} must be at least 1"):
            studies.run("tried", "Tried", {"": work}, 0, 0, tmp_path, option=option)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExperimentError, match="--out must be a folder"):
        studies.run("tried", "Tried", {"": work}, 1, 0, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_a_pipe_hears_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(studies, "SECONDS_BETWEEN_LINES", 0.01)
    said = ""
    with studies.progress_bar() as progress:
        progress.update(progress.add_task("noise binary", total=1.0), completed=0.4)
        while "noise binary: 40% after" not in said:
            said += capsys.readouterr().out


def test_wide_tables_are_printed_in_pieces(monkeypatch):
    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    monkeypatch.setattr(tables, "console", console)
    names = ["`communicate_efficiently`", "`cyclic_mds`"]
    cells = [[f"{10 * r + c}.25 ± 1.5" for c in range(9)] for r in range(2)]
    rows = [[name, *own] for name, own in zip(names, cells, strict=True)]
    ResultTable("Wide", ["code", *(f"s = {s}" for s in range(9))], rows).print()
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    for name, own in zip(names, cells, strict=True):
        shown = [line for line in lines if name in line]
        assert len(shown) > 1
        assert all(any(cell in line for line in shown) for cell in own)


def test_pieces_of_a_table_have_all_columns_that_tell_rows_apart(monkeypatch):
    console = Console(width=80, record=True, file=open(os.devnull, "w"))
    monkeypatch.setattr(tables, "console", console)
    rows = [[code, wait, *["0.123456789"] * 8] for code in "ab" for wait in "xy"]
    ResultTable("Two", ["code", "wait", *"12345678"], rows).print()
    lines = console.export_text().splitlines()
    shown = [line.split()[1:4:2] for line in lines if "0.123456789" in line]
    assert len(shown) > 4
    assert shown == [row[:2] for row in rows] * (len(shown) // 4)


def test_one_run_has_no_interval_and_differs_from_nothing():
    assert orderings.compare(1.0, 2.0, math.nan, math.nan) == "tie"
    single = jaxwgc.summarize(np.array([2.0]))
    assert tables.interval(single, 1) == "2.0"
    assert tables.interval_power_of_ten(single) == "(2.00) × 10⁰"
    cell = {"error": single, "iterations": single}
    runs = {"paper": dict.fromkeys(mnist.WEIGHTINGS, cell)}
    numbers = {
        "rules": {"paper": mnist.Rule(1e-3, 100.0)},
        "fit": {"runs": 1},
        "uncompressed": {
            "error_percent": 4.4,
            "iterations": 1,
            "step_on_mean_loss": 0.1,
        },
        "reproduced": {"rho=4": runs},
        "runs": 1,
    }
    assert "ρ = 4" not in mnist.note(numbers)
    assert "a single run has no interval" in mnist.note(numbers)
    many = jaxwgc.summarize(np.array([2.0, 2.1]))
    runs["paper"]["weighted"] = {"error": many, "iterations": many}
    assert "ρ = 4, weighted: error 2.05, published 7.09" in mnist.note(
        numbers | {"runs": 2}
    )


def test_trials_are_pure_functions_of_their_key():
    cell = Trial(shifted, 1.0)
    assert float(cell.run(KEY)) == float(cell.run(KEY)) == float(shifted(KEY, 1.0))
    assert jnp.shape(jax.vmap(cell.run)(jax.random.split(KEY, 3))) == (3,)
