"""`python -m jaxwgc report FILE`."""

import json
import types

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc.__main__ import main

TIMES = np.array([[1.0, 2.0, 8.0], [1.5, 2.0, 9.0], [1.0, np.nan, 7.0]])
# Steps and workers in another order, and no row for the missing response.
LONG = [(2, 10, 7), (0, 9, 2), (0, 10, 8), (0, 2, 1), (1, 2, 1.5), (1, 9, 2), (2, 2, 1)]
LONG += [(1, 10, 9)]
AS_LONG = "Step,Worker,seconds\n" + "".join(f"{a},{b},{c}\n" for a, b, c in LONG)
AS_JSON = "".join(
    json.dumps({"worker": b, "step": a, "seconds": c, "loss": 0}) + "\n"
    for a, b, c in LONG
)
FILES = {
    "plain.csv": ("1,2,8\n1.5,2,9\n1,,7\n", "0 1 2"),
    "names.csv": ("\ufeffa,b,c\n1,2,8\n1.5,2,9\n1,nan,7\n", "a b c"),
    "numbers.csv": ("Step,1,2,3\n5,1,2,8\n6,1.5,2,9\n7,1,,7\n", "1 2 3"),
    "counted.csv": (",a,b,c\n5,1,2,8\n6,1.5,2,9\n7,1,inf,7\n", "a b c"),
    "dated.csv": (
        "Timestamp,a,b,Loss,c\n9:00,1,2,-1,8\n9:01,1.5,2,-2,9\n9:02,1,,-3,7\n",
        "a b c",
    ),
    "long.csv": (AS_LONG, "2 9 10"),
    "lists.jsonl": ("[1, 2, 8]\n[1.5, 2, 9]\n[1, null, 7]\n", "0 1 2"),
    "objects.jsonl": (
        '{"a": 1, "b": 2, "c": 8}\n{"c": 9, "a": 1.5, "b": 2}\n{"a": 1, "c": 7}\n',
        "a b c",
    ),
    "long.jsonl": (AS_JSON, "2 9 10"),
    "metrics.jsonl": (
        "".join(
            f'{{"step": 1, "worker/0/seconds": {a}, "worker/1/seconds": {b}, '
            f'"worker/2/seconds": {c}}}\n'
            for a, b, c in ((1, 2, 8), (1.5, 2, 9), (1, "null", 7))
        ),
        "0 1 2",
    ),
}


def shown(capsys, *arguments):
    """What the command line prints."""
    main(["report", *map(str, arguments)])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_text_files(name, tmp_path, capsys):
    text, names = FILES[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    expected = jaxwgc.straggler_report(TIMES, names=names.split())
    assert shown(capsys, path) == f"{expected}\n"
    assert json.loads(shown(capsys, path, "--json")) == expected.to_dict()


def test_numpy_files(tmp_path, capsys):
    parts = np.stack([TIMES / 2, TIMES / 2], -1)
    np.save(tmp_path / "a.npy", parts)
    np.savez(tmp_path / "one.npz", TIMES)
    np.savez(tmp_path / "two.npz", a=TIMES, b=2 * TIMES)
    expected = f"{jaxwgc.straggler_report(TIMES)}\n"
    assert shown(capsys, tmp_path / "a.npy") == expected
    assert shown(capsys, tmp_path / "one.npz") == expected
    assert shown(capsys, tmp_path / "two.npz", "--array", "a") == expected


def test_plot_and_plan(tmp_path, capsys, monkeypatch):
    """`plan` itself, which is tested elsewhere, takes long."""
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "a.npy", tmp_path / "a.png"
    np.save(path, TIMES)
    asked = []
    answer = types.SimpleNamespace(answer="uncoded, waiting for all")
    monkeypatch.setattr(jaxwgc, "plan", lambda *given: asked.append(given) or answer)
    read = json.loads(shown(capsys, path, "--json", "--plan", "--plot", picture))
    assert read["plan"] == answer.answer
    assert shown(capsys, path, "--plan").endswith(f"\n\n{answer.answer}\n")
    assert picture.stat().st_size > 1000
    (delay, num_workers, _), _ = asked
    drawn, _ = jax.jit(delay.sample)(jax.random.key(0), delay.init(3), np.ones(3))
    assert drawn.tolist() in np.where(np.isnan(TIMES), np.inf, TIMES).tolist()
    assert num_workers == 3


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.csv", "3,2\n1,x\n", "row 2, column 2 must be a number; got 'x'"),
        ("a.csv", "1,x\n1,2\n", "row 1, column 2 must be a number; got 'x'"),
        ("a.csv", "a,b\n1,2\n1,?\n", "row 3, column b must be a number; got '?'"),
        ("a.csv", "3,2\n1\n", "row 2 must have 2 columns; got 1"),
        ("a.csv", "3,2\n1,-2\n", "times must be positive"),
        ("a.csv", "1\n2\n", "at least 2 workers; got (2, 1)"),
        ("a.csv", "a,b\n1,2\n", "at least 2 rounds; got (1, 2)"),
        ("a.csv", "a,b\n,\nnan,\n", "at least one response; got none"),
        ("a.csv", "", "times must have shape"),
        ("a.csv", "\n1,2\n", "at least 2 rounds; got (1, 2)"),
        (
            "a.csv",
            "step,worker,seconds\n1,a,2\n1,b,2\n1,a,3\n",
            "row 4 must be of another step or worker; got step 1 and worker a again",
        ),
        ("a.csv", "worker,step,seconds\na,one,2\n", "column step must be a number; go"),
        ("a.csv", "worker,step,seconds\na,1,2\n,2,3\n", "row 3, column worker must n"),
        ("a.csv", "step,rank,seconds\n1,0,2\n", "columns step, worker, seconds; got ["),
        ("a.csv", "a,b,\n1,2,\n", "name each worker exactly once; got ['a', 'b', '']"),
        ("a.csv", "a,a\n1,2\n", "name each worker exactly once; got ['a', 'a']"),
        ("a.jsonl", "[1, 2]\n[1, x]\n[1, 2]\n", "line 2 column 5"),
        ("a.jsonl", '[1, 2]\n[1, "x"]\n', "row 2, column 2 must be a number; got 'x'"),
        ("a.jsonl", "[1, 2]\n[3]\n", "row 2 must have 2 columns; got 1"),
        ("a.txt", "1,2\n", "FILE must be .csv, .jsonl, .npy or .npz; got a.txt"),
        ("a.npy", "", "No data left in file"),
        (None, "", "No such file"),
    ],
)
def test_bad_files(name, text, error, tmp_path, capsys):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as ended:
        shown(capsys, tmp_path / (name or "none.csv"))
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_one_of_several_arrays_is_named(tmp_path, capsys):
    path = tmp_path / "two.npz"
    np.savez(path, a=TIMES, b=TIMES)
    with pytest.raises(SystemExit):
        shown(capsys, path)
    assert "--array must be one of a, b in " in capsys.readouterr().err
