"""Fits to times of known laws: whether the family is found, and how errors hold."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.runner.study import Numbers, Once
from experiments.runner.tables import ResultTable
from jaxwgc import stragglers

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


def cells(data_sets: int, seed: int) -> dict[str, Once]:
    """A cell a family, a row a data set."""
    return {
        name: Once(fits, name, data_sets, seed, num_rows=data_sets) for name in KNOWN
    }


def fits(name: str, data_sets: int, seed: int) -> Iterator[dict[str, Any]]:
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
        held_out = next(fit.held_out for fit in equal if fit.name == whole)
        fitted = next((fit for fit in unequal if fit.name == f"{whole}, speeds"), None)
        yield {
            "first": equal[0].name,
            "most_likely": max(equal, key=lambda fit: fit.held_out).name,
            "first_unequal": unequal[0].name,
            "held_out": held_out,
            "is_covered": None if fitted is None else _is_covered(fitted, known),
        }


def _is_covered(fitted, known):
    return {
        name: abs(fitted.parameters[name] - value)
        < _HALF_WIDTH * fitted.standard_errors[name]
        for name, value in known.parameters.items()
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a family."""

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
            "largest likelihood": share("most_likely"),
            "least log-likelihood": f"{min(fit['held_out'] for fit in sets):.2f}",
            "first, unequal speeds": share("first_unequal"),
            **{
                f"{column} in its interval": f"{np.mean([x[name] for x in inside]):.0%}"
                for column, name in columns
            },
        }

    families = numbers["known"]
    return ResultTable.of_records(
        f"{len(next(iter(families.values())))} data sets of each family, {NUM_ROUNDS} "
        f"rounds of {NUM_WORKERS} workers: how often it comes first, and has the "
        "largest likelihood of the times held out; the least logarithm of that of the "
        "true model; with unequal speeds, how often it comes first, and how often "
        "intervals of 95% have its parameters",
        show,
        families.items(),
    )
