"""What experiments write: whole files or none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxwgc
from experiments import __main__
from experiments.runner import results, tables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: its status, and what it says."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
        try:
            status = __main__.main()
        except SystemExit as ended:
            status = ended.code
        return status, "".join(capsys.readouterr())

    return run


def test_no_argument_lists_the_experiments(run):
    status, listed = run()
    assert status == 0
    for name in __main__.EXPERIMENTS:
        assert name in listed


def test_unwritable_out_is_said_before_any_work(tmp_path, run):
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    # As it is called, which ends with that status.
    process = subprocess.run(
        [sys.executable, "-m", "experiments", "figure2", "--out", str(occupied)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    below = run("figure2", "--out", str(occupied / "below"))
    for status, said in ((process.returncode, process.stdout), below):
        assert status == 1
        assert "--out must be a folder that can be written to" in said
    assert occupied.read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


def test_wrong_option_is_refused(tmp_path, run):
    for arguments in (["--runs", "0"], ["--runs", "many"], ["--no-such-option"]):
        status, said = run("figure2", *arguments, "--out", str(tmp_path / "new"))
        assert status != 0
        assert "--runs" in said or "--no-such-option" in said
    assert not list(tmp_path.rglob("*.json"))


# While modules are imported, and once the work is under way.
@pytest.mark.parametrize("moment", ["", "Table 2"])
def test_interrupted_run_says_so_and_leaves_nothing(tmp_path, moment):
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "linear-regression", "--out", tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    seen = ""
    while moment not in seen:
        character = process.stdout.read(1)
        assert character, seen
        seen += character
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. Nothing was written." in rest
    assert not list(tmp_path.iterdir())


def test_files_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = results.Results("Test", tmp_path, 1)
    numbers = {"mean": np.float64(1.5), "list": np.arange(2), "longest": [np.inf]}
    folder.add_json("numbers.json", numbers)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(results.ExperimentError, match="No space left"):
            folder.save()
    assert not list(tmp_path.iterdir())
    folder.save()
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written["mean"] == 1.5
    assert written["list"] == [0, 1]
    assert written["longest"] == ["Infinity"]
    assert written["environment"]["jaxwgc"] == jaxwgc.__version__


def test_table_in_markdown():
    table = tables.ResultTable("θ* in ‖x‖²", ["name", "value"])
    table.add_row("a", "1")
    assert table.to_markdown() == (
        "*θ\\* in ‖x‖²*\n\n| name | value |\n|:--|--:|\n| a | 1 |\n"
    )
    with pytest.raises(ValueError, match="2 cells expected"):
        table.add_row("b")


def test_interval_formats():
    summary = jaxwgc.summarize(np.array([2.0e-6, 3.0e-6, 4.0e-6]))
    assert tables.interval_power_of_ten(summary) == "(3.00 ± 2.48) × 10⁻⁶"
    assert (
        tables.interval(jaxwgc.summarize(np.array([1.0, 2.0, 3.0])), 1) == "2.0 ± 2.5"
    )
