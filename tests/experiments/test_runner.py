"""The runner: what a study declares is measured, shown and kept, in whole files."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxwgc
from experiments.runner import results
from experiments.runner import study as runner
from experiments.runner.figures import new_figure
from experiments.runner.study import Once, Study, Trial
from experiments.runner.tables import ResultTable, table_of
from experiments.runner.timing import Timing
from tests.experiments.conftest import RESULTS

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("figure2 --runs 0", "--runs must be at least 1; got 0"),
        ("figure2 --no-such-option", "--no-such-option"),
        ("figure2 --out file/below", "--out must be a folder that can be written to"),
        ("only third report", "report has no section third; it has measured, "),
        ("delays --trace short.npy", "at least 8 rounds; got (3, 4)"),
        ("delays --trace zeros.npy", "must be positive"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    tmp_path, monkeypatch, command, line, message
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    np.save("short.npy", np.ones((3, 4)))
    np.save("zeros.npy", np.zeros((9, 4)))
    status, said = command(*line.split())
    assert status != 0 and message in said
    assert not list(tmp_path.rglob("*.json"))


def test_numbers_in_json_are_read_back_as_they_are_shown(tmp_path):
    numbers = {
        "code": (50, 20),
        "time": Timing(0.5, 0.25, 1.0, runs=3),
        "curve": jaxwgc.summarize(np.array([[1.0, 2.0], [3.0, 2.0]])),
        "mean": jaxwgc.Summary(2 / 3, -math.inf, math.nan, 0.1),
        "mixed": [1, 0.5],
    }
    (tmp_path / "a.json").write_bytes(results.to_json(numbers))
    result = results.to_records(json.loads((tmp_path / "a.json").read_text()))
    assert result.code == (50, 20) and result["mixed"] == [1, 0.5]
    assert result.time == numbers["time"]
    np.testing.assert_array_equal(result.curve.mean, [2, 2])
    assert np.isnan(result.curve.standard_error)
    assert result["mean"][:2] == (0.66666667, -math.inf) and np.isnan(
        result["mean"].high
    )


def test_tables_are_templates_of_records():
    mean = jaxwgc.Summary(0.0027, 0.0026, 0.0028, 0.0)
    record = {"seconds": {"all": 2e-3}, "mean": mean, "time": Timing(1, 1, 1, runs=1)}
    columns = {
        "code": "`{name}`",
        "ms": "{seconds[all]:1e3 .1f}",
        "mean": "{mean:4}",
        "small": "{mean:e}",
        "percent": "{mean:100 1}",
        "time": "{time}",
        "first": "{first}",
        "both": lambda row: f"{len(row['seconds'])}, {row['time'].runs}",
    }
    records = results.to_records(results.to_builtin({"a": record | {"first": None}}))
    table = table_of("{a.first}", columns)(records)
    assert table.title == "None" and table.columns == [*columns]
    means = ["0.0027 ± 0.0001", "(2.70 ± 0.10) × 10⁻³", "0.3 ± 0.0"]
    assert table.rows == [["`a`", "2.0", *means, "1", "never", "1, 1"]]


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
            "rows": Once(lambda: iter([1.0, 2.0])),
        },
        key=KEY,
        runs=runs,
        x64=True,
        derive=lambda numbers: {"sum": sum(numbers["rows"])},
        tables={"": lambda numbers: ResultTable("t", ["sum"], [[str(numbers["sum"])]])},
        figures={"rows": draw},
    )


def test_measured_numbers_replace_the_cells():
    heard = []
    section = runner.measure(small(), lambda name, share: heard.append((name, share)))
    numbers = section.numbers
    assert list(numbers) == ["known", "normal", "beside", "rows", "runs", "sum"]
    assert numbers["known"] == [1, 2] and numbers["runs"] == 4 and numbers["sum"] == 3
    with jax.enable_x64(True):
        summary = jaxwgc.summarize(jaxwgc.monte_carlo(jax.random.normal, KEY, 4))
    expected = pytest.approx(summary._asdict(), rel=1e-5)
    assert numbers["normal"]["zero"] == expected
    assert numbers["normal"]["many"][0]["mean"] == pytest.approx(5 + summary.mean, 1e-5)
    assert set(numbers["beside"]) == {"known", "uniform"}
    assert section.tables[""].rows == [["3.0"]]
    shares = [share for _, share in heard]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 3 / 4
    names = ["zero", "many", "beside", "rows", "rows 1", "rows 2"]
    assert {name for name, _ in heard} == {*names}
    assert not jax.config.jax_enable_x64
    # Means do not depend on the other cells.
    alone = Study({"zero": Trial(shifted, 0.0)}, key=KEY, runs=4, x64=True)
    assert runner.measure(alone).numbers["zero"] == numbers["normal"]["zero"]


def test_every_section_is_saved_when_it_is_done(tmp_path):
    def fail():
        written = json.loads((tmp_path / "tried.json").read_text())
        assert written["unfinished"] == ["second"]
        raise ZeroDivisionError

    def second():
        return Study({"one": 1}, tables={"second": lambda numbers: table(numbers.one)})

    def table(number):
        return ResultTable("t", ["one"], [[str(number)]])

    with pytest.raises(ZeroDivisionError):
        runner.run("tried", "", {"first": small, "second": fail}, 4, 0, tmp_path)
    files = {"tried.json", "tried_first.md", "tried_rows.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    runner.run("tried", "", {"first": small, "second": second}, 4, 0, tmp_path)
    written = json.loads((tmp_path / "tried.json").read_text())
    assert list(written) == ["environment", "command", "first", "second"]
    assert written["command"] == "python -m experiments tried --runs 4 --seed 0"
    assert written["second"] == {"one": 1}


@pytest.mark.parametrize("name", ["figure2", "benchmark", "delays", "chaos"])
def test_tables_of_the_documentation_are_those_of_the_numbers(tmp_path, command, name):
    """Only experiments whose declaration takes no time are compared."""
    shutil.copy(RESULTS / f"{name}.json", tmp_path)
    assert command("redraw", name, "--out", tmp_path)[0] == 0
    assert [*tmp_path.glob("*.md")]
    for path in tmp_path.iterdir():
        if path.suffix != ".png":
            assert path.read_bytes() == (RESULTS / path.name).read_bytes()
