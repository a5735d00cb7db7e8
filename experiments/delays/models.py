"""Delay models judged by times that they have not seen, and by known laws."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.delays.traces import LANGUAGE_MODELS, halves, read_traces, simulated
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable
from jaxwgc import stragglers

# The f-th fastest of the workers, as shares: 24, 28 and 30 of 32.
SHARES = (3 / 4, 7 / 8, 15 / 16)
SHOWN_FITS = 8
# Simulated data sets of known laws.
SHAPE = NUM_ROUNDS, NUM_WORKERS = 40, 10
# Deviation of the logarithms of the speeds of unequal workers.
SPREAD = 0.3
# Standard errors in half of an interval of 95%.
_HALF_WIDTH = 1.96


class Known(NamedTuple):
    """The parameters of a family, and `draw(generator)` of its times."""

    parameters: dict[str, float]
    draw: Callable[[np.random.Generator], np.ndarray]


KNOWN = {
    "shifted_exponential": Known(
        {"shift": 1.0, "rate": 1.0},
        lambda generator: 1 + generator.exponential(1.0, SHAPE),
    ),
    "pareto": Known(
        {"scale": 1.0, "shape": 2.0}, lambda generator: 1 + generator.pareto(2.0, SHAPE)
    ),
    "weibull": Known(
        {"scale": 1.0, "shape": 1.7}, lambda generator: generator.weibull(1.7, SHAPE)
    ),
    "log_normal": Known(
        {"median": 1.0, "deviation": 0.5},
        lambda generator: generator.lognormal(0.0, 0.5, SHAPE),
    ),
}


def delays(
    trace: Path = LANGUAGE_MODELS,
    runs: int = 400,
    data_sets: int = 100,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Delay models fitted to measured times, and judged by the rounds after them.

    Args:
        trace: File with measured times, as for `python -m jaxwgc report`. By default
            those of two trainings of language models.
        runs: Simulated histories as long as the measured ones, and samples for the
            intervals of what was measured.
        data_sets: Simulated and fitted data sets of each family; only without a trace.
        seed: Seed of the random numbers.
        out: Folder for tables, figures and numbers.
    """
    if data_sets < 1:
        raise ExperimentError(f"--data-sets must be at least 1; got {data_sets}")
    sections: dict[str, Callable[[], Study]] = {
        name: functools.partial(study, name, times, runs, seed)
        for name, times in read_traces(trace).items()
    }
    if trace == LANGUAGE_MODELS:
        sections["known"] = lambda: Study(
            {"known": known_cells(data_sets, seed)},
            tables={"known": tabulate_known},
        )
    title = "Delay models: fitted to the first half of the rounds, judged by the second"
    run("delays", title, sections, runs, seed, out)


def study(name: str, times: np.ndarray, runs: int, seed: int) -> Study:
    """Returns the fits of a trace, judged by its second half."""
    return Study(
        {"": Once(measure, name, times, runs, seed)},
        tables={
            f"{name}_fits": functools.partial(tabulate_fits, name),
            f"{name}_fastest": functools.partial(tabulate_fastest, name),
        },
    )


def measure(name: str, times: np.ndarray, runs: int, seed: int) -> Numbers:
    """Returns what the second half measured, and what fits of the first say of it."""
    first, second = halves(times)
    try:
        fits = stragglers.fit_delays(first)
    except ValueError as error:
        raise ExperimentError(f"{name}: {error}") from error
    counts = sorted({math.ceil(share * times.shape[1]) for share in SHARES})
    generator = np.random.default_rng(seed)
    # Rounds of all workers, as many as are measured, drawn again with replacement.
    again = second[generator.integers(0, len(second), (runs, len(second)))]
    spread = [of_fastest(rounds, counts) for rounds in again]
    models = {"best fit": fits[0].delay} | {
        what: stragglers.empirical(first, what, replace=True)
        for what in ("rounds", "workers", "cells")
    }
    keys = jax.random.split(jax.random.key(seed), runs)
    drawn = {
        name: simulated(delay, times.shape[1], len(second), keys)
        for name, delay in models.items()
    }
    return {
        "fits": [
            {"name": fit.name, "held_out": fit.held_out, "distance": fit.distance}
            for fit in fits[:SHOWN_FITS]
        ],
        "num_workers": times.shape[1],
        "counts": counts,
        "measured": of_fastest(second, counts),
        "interval": np.quantile(spread, [0.025, 0.975], axis=0),
        "said": {
            name: of_fastest(np.concatenate(times), counts)
            for name, times in drawn.items()
        },
    }


def of_fastest(times: np.ndarray, counts: list[int]) -> np.ndarray:
    """Returns the median and 90% quantile of the f-th fastest time, (2, counts)."""
    fastest = np.sort(times, axis=1)[:, np.array(counts) - 1]
    return np.quantile(fastest, [0.5, 0.9], axis=0, method="inverted_cdf")


def tabulate_fits(name: str, numbers: Numbers) -> ResultTable:
    """Returns a row per fit, the best first."""

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
        numbers["fits"],
    )


def tabulate_fastest(name: str, numbers: Numbers) -> ResultTable:
    """Returns two rows per f: median and 90% quantile."""
    rows = []
    for column, count in enumerate(numbers["counts"]):
        for row, what in enumerate(("median", "90%")):
            true = numbers["measured"][row][column]
            low, high = (end[row][column] for end in numbers["interval"])
            errors = [
                f"{100 * (said[row][column] / true - 1):+.1f}"
                for said in numbers["said"].values()
            ]
            shown = f"{true:.3g} [{low:.3g}, {high:.3g}]"
            rows.append([f"{count}", what, shown, *errors])
    return ResultTable(
        f"{name}: time of the f-th fastest of {numbers['num_workers']} workers in the "
        "second half of the rounds, in seconds with the 95% interval of what was "
        "measured; error in percent of what the first half says: "
        f"{numbers['fits'][0]['name']}, and resampling of",
        ["f", "quantile", "measured", *numbers["said"]],
        rows,
    )


def known_cells(data_sets: int, seed: int) -> dict[str, Once]:
    """Returns a cell per family, a row per data set."""
    return {
        name: Once(fits_of_known, name, data_sets, seed, num_rows=data_sets)
        for name in KNOWN
    }


def fits_of_known(name: str, data_sets: int, seed: int) -> Iterator[dict[str, Any]]:
    """Fits delays drawn of equal workers, and of others with unequal speeds."""
    known = KNOWN[name]
    for number in range(data_sets):
        generator = np.random.default_rng([seed, list(KNOWN).index(name), number])
        equal = stragglers.fit_delays(known.draw(generator))
        logs = generator.normal(0.0, SPREAD, NUM_WORKERS)
        speeds = np.exp(logs - logs.mean())
        unequal = stragglers.fit_delays(known.draw(generator) / speeds)
        # Times may be affine in the load though they were not made so.
        whole = f"{name}, proportional to the load"
        fitted = next((fit for fit in unequal if fit.name == f"{whole}, speeds"), None)
        yield {
            "first": equal[0].name,
            "first_unequal": unequal[0].name,
            "is_covered": None if fitted is None else _is_covered(fitted, known),
        }


def _is_covered(fitted, known):
    return {
        name: abs(fitted.parameters[name] - value)
        < _HALF_WIDTH * fitted.standard_errors[name]
        for name, value in known.parameters.items()
    }


def tabulate_known(numbers: Numbers) -> ResultTable:
    """Returns a row per family."""

    def show(pair):
        name, sets = pair

        def share(what):
            return f"{np.mean([fit[what].startswith(name) for fit in sets]):.0%}"

        inside = [fit["is_covered"] for fit in sets if fit["is_covered"] is not None]
        parameters = KNOWN[name].parameters
        values = ", ".join(f"{name}={value:g}" for name, value in parameters.items())
        columns = zip(("location or scale", "shape or rate"), parameters, strict=True)
        return {
            "family": f"`{name}({values})`",
            "first": share("first"),
            "first, unequal speeds": share("first_unequal"),
            **{
                f"{column} in its interval": f"{np.mean([x[name] for x in inside]):.0%}"
                for column, name in columns
            },
        }

    families = numbers["known"]
    return ResultTable.of_records(
        f"{len(next(iter(families.values())))} data sets of each family, {NUM_ROUNDS} "
        f"rounds of {NUM_WORKERS} workers: how often it comes first; with unequal "
        "speeds, how often it does, and how often 95% intervals have its parameters",
        show,
        families.items(),
    )
