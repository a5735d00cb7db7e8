"""Delay models judged by held-out times, and by known laws."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.delays.traces import LANGUAGE_MODELS, halves, read_traces, simulated
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Sections, Study, command
from experiments.runner.tables import ResultTable, table_of
from jaxwgc import stragglers

# Ranks of the f-th fastest worker as fractions: 24, 28 and 30 of 32.
SHARES = (3 / 4, 7 / 8, 15 / 16)
SHOWN_FITS = 8
# Simulated data sets of known laws, and their shape.
DATA_SETS = 100
NUM_ROUNDS = 40
NUM_WORKERS = 10
SHAPE = (NUM_ROUNDS, NUM_WORKERS)
# Standard deviation of the logarithms of speeds of unequal workers.
SPREAD = 0.3
# Half of a 95% interval in standard errors.
_HALF_WIDTH = 1.96


class Known(NamedTuple):
    """Parameters of a family, and `draw(generator)` of its times."""

    parameters: dict[str, float]
    draw: Callable[[np.random.Generator], np.ndarray]


KNOWN = {
    "shifted_exponential": Known(
        {"shift": 1.0, "rate": 1.0}, lambda g: 1 + g.exponential(1.0, SHAPE)
    ),
    "pareto": Known({"scale": 1.0, "shape": 2.0}, lambda g: 1 + g.pareto(2.0, SHAPE)),
    "weibull": Known({"scale": 1.0, "shape": 1.7}, lambda g: g.weibull(1.7, SHAPE)),
    "log_normal": Known(
        {"median": 1.0, "deviation": 0.5}, lambda g: g.lognormal(0.0, 0.5, SHAPE)
    ),
}


@command("delays", "Delay models, fitted to half of the rounds")
def delays(trace: Path = LANGUAGE_MODELS, runs: int = 400, seed: int = 0) -> Sections:
    """Fits delay models to measured times, and judges them by later rounds.

    Args:
        trace: File with measured times, see `python -m jaxwgc report`. By default
            those of two trainings of language models.
        runs: Simulated histories as long as the measured ones, and samples for the
            intervals of what was measured.
    """
    sections: dict[str, Callable[[], Study]] = {}
    for name, times in read_traces(trace).items():
        sections[name] = functools.partial(study, name, times, runs, seed)
    if trace == LANGUAGE_MODELS:
        sections["known"] = functools.partial(study_of_known, seed)
    return sections


def study_of_known(seed: int) -> Study:
    """Returns the fits of data of known laws."""
    cells = {name: Once(fits_of_known, name, seed) for name in KNOWN}
    return Study({"known": cells}, tables={"known": tabulate_known})


def study(name: str, times: np.ndarray, runs: int, seed: int) -> Study:
    """Returns the fits of a trace, judged by its second half."""
    return Study(
        {"": Once(measure, name, times, runs, seed)},
        tables={
            f"{name}_fits": table_of(
                f"Models fitted to the first half of {name}: mean log-likelihood of "
                "the last third of this half, for models of the rest",
                {"delay model": "{name}", "log-likelihood": "{held_out:.3f}"},
                "fits",
            ),
            f"{name}_fastest": functools.partial(tabulate_fastest, name),
        },
    )


def measure(name: str, times: np.ndarray, runs: int, seed: int) -> Numbers:
    """Returns times of the second half, measured and predicted by the first half."""
    first, second = halves(times)
    try:
        fits = stragglers.fit_delays(first)
    except ValueError as error:
        raise ExperimentError(f"{name}: {error}") from error
    num_workers = times.shape[1]
    num_rounds = len(second)
    counts = sorted({math.ceil(share * num_workers) for share in SHARES})
    generator = np.random.default_rng(seed)
    # Bootstrap samples of whole rounds.
    chosen_rounds = generator.integers(0, num_rounds, (runs, num_rounds))
    quantiles = [of_fastest(second[chosen], counts) for chosen in chosen_rounds]
    models: dict[str, stragglers.DelayModel] = {"best fit": fits[0].delay}
    for unit in ("rounds", "workers", "cells"):
        models[unit] = stragglers.empirical(first, unit, replace=True)
    keys = jax.random.split(jax.random.key(seed), runs)
    predicted = {}
    for model_name, model in models.items():
        histories = simulated(model, num_workers, num_rounds, keys)
        predicted[model_name] = of_fastest(np.concatenate(histories), counts)
    shown_fits = []
    for fit in fits[:SHOWN_FITS]:
        shown_fits.append({"name": fit.name, "held_out": fit.held_out})
    return {
        "fits": shown_fits,
        "num_workers": num_workers,
        "counts": counts,
        "measured": of_fastest(second, counts),
        "interval": np.quantile(quantiles, [0.025, 0.975], axis=0),
        "said": predicted,
    }


def of_fastest(times: np.ndarray, counts: list[int]) -> np.ndarray:
    """Returns the median and 90% quantile of the f-th fastest time, (2, counts)."""
    fastest = np.sort(times, axis=1)[:, np.array(counts) - 1]
    return np.quantile(fastest, [0.5, 0.9], axis=0, method="inverted_cdf")


def tabulate_fastest(name: str, numbers: Numbers) -> ResultTable:
    """Returns two rows per f: median and 90% quantile."""
    table = ResultTable(
        f"{name}: time of the f-th fastest of {numbers['num_workers']} workers in the "
        "second half of the rounds, in seconds with 95% interval; errors in percent of "
        "predictions from the first half: by the best fit "
        f"({numbers['fits'][0]['name']}), and by resampling whole rounds, histories of "
        "workers, or single times (cells)",
        ["f", "quantile", "measured", *numbers["said"]],
    )
    lows, highs = numbers["interval"]
    for column, count in enumerate(numbers["counts"]):
        for index, quantile in enumerate(("median", "90%")):
            measured = numbers["measured"][index][column]
            low = lows[index][column]
            high = highs[index][column]
            row = [str(count), quantile, f"{measured:.3g} [{low:.3g}, {high:.3g}]"]
            for predicted in numbers["said"].values():
                error = predicted[index][column] / measured - 1
                row.append(f"{100 * error:+.1f}")
            table.rows.append(row)
    return table


def fits_of_known(name: str, seed: int) -> Iterator[Numbers]:
    """Fits the families to delays of equal workers, and of workers of unequal speed."""
    known = KNOWN[name]
    families = [getattr(stragglers, family) for family in KNOWN]

    def is_covered(fit):
        covered = {}
        for parameter, value in known.parameters.items():
            error = abs(fit.parameters[parameter] - value)
            half_width = _HALF_WIDTH * fit.standard_errors[parameter]
            covered[parameter] = error < half_width
        return covered

    for number in range(DATA_SETS):
        generator = np.random.default_rng([seed, list(KNOWN).index(name), number])
        equal = stragglers.fit_delays(known.draw(generator), families=families)
        logs = generator.normal(0.0, SPREAD, NUM_WORKERS)
        speeds = np.exp(logs - logs.mean())
        times = known.draw(generator) / speeds
        unequal = stragglers.fit_delays(times, families=families)
        # Fits may also be affine in the load, which the data are not.
        whole = f"{name}, proportional to the load"
        fitted = [fit for fit in unequal if fit.name == f"{whole}, speeds"]
        yield {
            "first": equal[0].name,
            "first_unequal": unequal[0].name,
            "is_covered": is_covered(fitted[0]) if fitted else None,
        }


def tabulate_known(numbers: Numbers) -> ResultTable:
    """Returns a row per family."""
    table = ResultTable(
        f"{DATA_SETS} data sets of each family, {NUM_ROUNDS} rounds of {NUM_WORKERS} "
        "workers: how often it is the best fit; for unequal speeds also how often 95% "
        "intervals contain its parameters",
        [
            "family",
            "first",
            "first, unequal speeds",
            "location or scale in its interval",
            "shape or rate in its interval",
        ],
    )
    for family, fits in numbers["known"].items():
        parameters = KNOWN[family].parameters
        values = ", ".join(f"{name}={value:g}" for name, value in parameters.items())
        row = [f"`{family}({values})`"]
        for kind in ("first", "first_unequal"):
            is_first = [fit[kind].startswith(family) for fit in fits]
            row.append(f"{np.mean(is_first):.0%}")
        covered = [fit["is_covered"] for fit in fits if fit["is_covered"] is not None]
        for parameter in parameters:
            is_inside = [by_parameter[parameter] for by_parameter in covered]
            row.append(f"{np.mean(is_inside):.0%}")
        table.rows.append(row)
    return table
