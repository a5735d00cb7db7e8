"""The progress bar of long studies."""

import importlib.util
import io
import sys

import jax
import rich.progress

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc._common import progress as study_progress

KEY = jax.random.key(0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_appears_in_long_studies(monkeypatch, capsys):
    from rich import progress as rich

    totals = []

    class Bar(rich.Progress):
        def add_task(self, *args, total):
            totals.append(total)
            return super().add_task(*args, total=total)

    monkeypatch.setattr(rich, "Progress", Bar)
    monkeypatch.setattr(sys, "stderr", Terminal())
    jaxwgc.monte_carlo(jax.random.bits, KEY, 10, 4)
    assert totals == []
    monkeypatch.setattr(study_progress, "_PATIENCE_SECONDS", 0.0)
    jaxwgc.monte_carlo(jax.random.bits, KEY, 10, 4)
    assert totals == [10]
    # A function of the caller takes the place of the bar.
    jaxwgc.monte_carlo(jax.random.bits, KEY, 10, 4, lambda *done: None)
    assert totals == [10]


def test_notebooks_without_widgets_show_no_bar(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "ipywidgets" else find_spec(name),
    )
    monkeypatch.setattr(study_progress, "_PATIENCE_SECONDS", 0.0)
    bars = []
    monkeypatch.setattr(rich.progress, "Progress", lambda *_, **__: bars.append(1))
    jaxwgc.compare(
        codes={"uncoded": codes.uncoded(6)},
        delays=[stragglers.bernoulli_slowdown(probability=0.3, slowdown=4.0)],
        waiting=[stragglers.fastest(4)],
        key=KEY,
        num_trials=10,
    )
    assert not bars


def test_widgets_show_no_bar_outside_of_notebooks(monkeypatch):
    """Though ipywidgets is installed."""
    monkeypatch.setattr(study_progress, "_is_installed", lambda module: True)
    monkeypatch.setattr(study_progress, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bars = []
    monkeypatch.setattr(rich.progress, "Progress", lambda *_, **__: bars.append(1))
    jaxwgc.monte_carlo(jax.random.bits, KEY, 10, 4)
    assert not bars
