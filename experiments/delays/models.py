"""Delay models judged by times that they have not seen, and their tails."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from experiments.delays import known_laws
from experiments.delays.traces import LANGUAGE_MODELS, Trace, read_traces, simulated
from experiments.runner.figures import COLORS, new_figure
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable

# The f-th fastest of so many workers, as shares: 24, 28 and 30 of 32.
SHARES = (3 / 4, 7 / 8, 15 / 16)
SHOWN_FITS = 8
NUM_WORKERS = 32


def delays(
    trace: Path | None = None,
    runs: int = 400,
    data_sets: int = 100,
    seed: int = 0,
    num_workers: int = NUM_WORKERS,
    out: Path = Path("results"),
) -> None:
    """Delay models fitted to measured times, and judged by the rounds after them.

    Args:
        trace: File of NumPy with measured times: (rounds, workers), (rounds, workers,
            parts), or (loads, rounds, workers) beside `loads`. By default those of two
            trainings of language models.
        runs: Simulated histories as long as the measured ones, and samples for the
            intervals of what was measured.
        data_sets: Of each family, simulated and fitted; only where no trace is given.
        seed: Of the random numbers.
        num_workers: Of a round; more workers of a trace make several rounds.
        out: Folder for tables, figures and numbers.
    """
    if num_workers < 2:
        raise ExperimentError(f"--num-workers must be at least 2; got {num_workers}")
    traces = read_traces(LANGUAGE_MODELS if trace is None else trace)
    sections: dict[str, Callable[[], Study]] = {
        name: functools.partial(study, trace, runs, seed, num_workers)
        for name, trace in traces.items()
    }
    if data_sets < 1:
        raise ExperimentError(f"--data-sets must be at least 1; got {data_sets}")
    if trace is None:
        sections["known"] = lambda: Study(
            {"known": known_laws.cells(data_sets, seed)},
            tables={"known": known_laws.tabulate},
        )
    title = "Delay models: fitted to the first half of the rounds, judged by the second"
    run("delays", title, sections, runs, seed, out)


def study(trace: Trace, runs: int, seed: int, num_workers: int) -> Study:
    """One cell: the fits, and what they and resampling say of the second half."""
    num_workers = min(num_workers, trace.seconds.shape[2])
    return Study(
        {
            "num_workers": num_workers,
            "loads": trace.loads,
            "": Once(measure, trace, runs, seed, num_workers),
        },
        tables={
            f"{trace.name}_fits": functools.partial(tabulate_fits, trace.name),
            f"{trace.name}_fastest": functools.partial(tabulate_fastest, trace.name),
        },
        figures={f"{trace.name}_tails": functools.partial(draw, trace.name)},
    )


def measure(trace: Trace, runs: int, seed: int, num_workers: int) -> Numbers:
    """Returns what the second half measured, and what fits of the first say of it."""
    first, second = trace.half(0), trace.half(1)
    try:
        fits = first.fit()
    except ValueError as error:
        raise ExperimentError(f"{trace.name}: {error}") from error
    counts = sorted({int(np.ceil(share * num_workers)) for share in SHARES})
    generator = np.random.default_rng(seed)
    groups = second.groups(num_workers)
    measured = [of_fastest(group, counts) for group in groups]
    spread = [
        np.quantile(
            [of_fastest(new, counts) for new in drawn_again(group, runs, generator)],
            [0.025, 0.975],
            axis=0,
        )
        for group in groups
    ]
    models = {
        "best fit": fits[0].delay,
        **{what: first.delay(what) for what in ("rounds", "workers", "cells")},
    }
    num_rounds = second.seconds.shape[1]
    keys = jax.random.split(jax.random.key(seed), runs)
    said, tails = {}, {}
    for name, delay in models.items():
        drawn = [
            simulated(delay, jnp.full(num_workers, load), num_rounds, keys)
            for load in trace.loads
        ]
        said[name] = [
            of_fastest(times.reshape(-1, num_workers), counts) for times in drawn
        ]
        tails[name] = [tail(times) for times in drawn]
    return {
        "fits": [
            {
                "name": fit.name,
                "held_out": fit.held_out,
                "distance": fit.distance,
                "parameters": fit.parameters,
                "standard_errors": fit.standard_errors,
            }
            for fit in fits
        ],
        "counts": counts,
        "measured": measured,
        "interval": spread,
        "said": said,
        "tails": {
            "measured": [
                tail(drawn_again(times, runs, generator)) for times in second.seconds
            ],
            **tails,
        },
    }


def of_fastest(times: np.ndarray, counts: list[int]) -> np.ndarray:
    """Median and 90% quantile over rounds of the f-th fastest time, (2, counts)."""
    ordered = np.sort(np.where(np.isnan(times), np.inf, times), axis=1)
    fastest = ordered[:, np.array(counts) - 1]
    return np.quantile(fastest, [0.5, 0.9], axis=0, method="inverted_cdf")


LEVELS = 1 - np.geomspace(1e-3, 0.99, 61)[::-1]


def tail(times: np.ndarray) -> dict[str, Any]:
    """Quantiles of times (runs, rounds, workers), with their spread over runs."""
    flat = times.reshape(len(times), -1)
    each = np.quantile(flat, LEVELS, axis=1, method="inverted_cdf")
    low, middle, high = np.quantile(each, [0.025, 0.5, 0.975], 1, method="inverted_cdf")
    return {"low": low, "middle": middle, "high": high}


def drawn_again(times: np.ndarray, runs: int, generator: Any) -> np.ndarray:
    """As many rounds with replacement, (runs, rounds, workers); missing ones never."""
    rounds = generator.integers(0, len(times), (runs, len(times)))
    return np.where(np.isnan(times), np.inf, times)[rounds]


def tabulate_fits(name: str, numbers: Numbers) -> ResultTable:
    """A row a fit, the best first."""

    def show(fit):
        return {
            "delay model": fit["name"],
            "log-likelihood": f"{fit['held_out']:.3f}",
            "distance": f"{fit['distance']:.3f}",
        }

    return ResultTable.of_records(
        f"Fitted to the first half of {name}: mean logarithm of the likelihood of its "
        "last third, and Kolmogorov-Smirnov distance, for models of the rest",
        show,
        numbers["fits"][:SHOWN_FITS],
    )


def tabulate_fastest(name: str, numbers: Numbers) -> ResultTable:
    """Two rows a load and f: median and 90% quantile."""
    rows = []
    for number, load in enumerate(numbers["loads"]):
        for column, count in enumerate(numbers["counts"]):
            for row, what in enumerate(("median", "90%")):
                true = numbers["measured"][number][row][column]
                low, high = (end[row][column] for end in numbers["interval"][number])
                errors = [
                    f"{100 * (said[number][row][column] / true - 1):+.1f}"
                    for said in numbers["said"].values()
                ]
                shown = f"{true:.3g} [{low:.3g}, {high:.3g}]"
                rows.append([f"{load:g}", f"{count}", what, shown, *errors])
    return ResultTable(
        f"{name}: time of the f-th fastest of {numbers['num_workers']} workers in the "
        "second half of the rounds, in seconds with the 95% interval of what was "
        "measured; error in percent of what the first half says: "
        f"{numbers['fits'][0]['name']}, and resampling of",
        ["load", "f", "quantile", "measured", *numbers["said"]],
        rows,
    )


def draw(name: str, numbers: Numbers) -> Figure:
    """How many times are longer, measured and simulated."""
    loads = numbers["loads"]
    chosen = sorted({0, len(loads) // 2, len(loads) - 1})
    figure, panels = new_figure(4.2 * len(chosen) + 0.6, 3.6, len(chosen))
    survivals = 1 - LEVELS
    for axes, number in zip(panels, chosen, strict=True):
        for index, what in enumerate(("rounds", "best fit", "measured")):
            curves = {
                name: np.array(x) for name, x in numbers["tails"][what][number].items()
            }
            color = "black" if what == "measured" else COLORS[index]
            look = {"linestyle": ":", "linewidth": 2} if what == "measured" else {}
            label = "rounds drawn again" if what == "rounds" else what
            axes.plot(curves["middle"], survivals, color=color, label=label, **look)
            bounds = curves["low"], curves["high"]
            axes.fill_betweenx(survivals, *bounds, color=color, alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="seconds")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))
        axes.set_title(f"load {loads[number]:g}" if len(loads) > 1 else name)
    panels[0].set_ylabel("share of times that are longer")
    panels[0].legend(loc="lower left")
    return figure
