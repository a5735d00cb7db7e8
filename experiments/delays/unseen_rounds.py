"""Plans by one half of the rounds, judged by the other half."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.delays.traces import halves, label
from experiments.runner import figures
from experiments.runner.study import Numbers
from experiments.runner.tables import ResultTable
from jaxwgc import codes, stragglers
from jaxwgc.studies import Choice

NUM_ROUNDS, NUM_WORKERS = 15, 32
OPTIONS: dict[str, Any] = {"replications": (1, 2), "num_rounds": 600}
GOALS: dict[str, dict[str, float]] = {
    "default goal": {},
    "target 0.001": {"target": 1e-3},
    "heterogeneity 1": {"heterogeneity": 1.0},
    "both": {"target": 1e-3, "heterogeneity": 1.0},
}
# The fastest choice in a trace without deadlines that nearly all workers meet, and the
# choice of a plan.
CHOICES = "fastest in the trace", "least regret"
# The choice of a plan by the other rounds.
BEST = "second half"
# Fraction of workers that respond before a late deadline.
_LATE_DEADLINE = 0.98
EVERYONE, STALE = "waiting for all", "first f, stale gradients"
# Parts per worker if loads are unequal or parts are sent on request.
_NUM_PARTS = 8


def _with_stalls(generator, shape):
    times = generator.lognormal(0.0, 0.2, shape)
    return np.where(generator.random(shape) < 1 / 500, 20 * times, times)


LAWS: dict[str, Callable[[np.random.Generator, Any], np.ndarray]] = {
    "shifted exponential": lambda generator, shape: 1 + generator.exponential(1, shape),
    "Pareto, shape 1.5": lambda generator, shape: 1 + generator.pareto(1.5, shape),
    "Pareto, shape 2.5": lambda generator, shape: 1 + generator.pareto(2.5, shape),
    "log-normal": lambda generator, shape: generator.lognormal(0.0, 0.5, shape),
    "one in 500 stalls": _with_stalls,
}


def simulated_pairs(name: str, number: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the regrets by goal, for pairs of traces of a law."""
    for pair in range(number):
        generator = np.random.default_rng([seed, list(LAWS).index(name), pair])
        first, second = (
            LAWS[name](generator, (NUM_ROUNDS, NUM_WORKERS)) for _ in range(2)
        )
        yield regrets(first, second, NUM_WORKERS, jax.random.key(seed), OPTIONS)[0]


def regrets(first, second, num_workers, key, options):
    """Returns the regrets by goal, and the plan by the first rounds.

    The regret is the additional time in the second rounds relative to the best choice
    there.
    """
    by_first, by_second = (
        functools.partial(
            jaxwgc.plan, stragglers.empirical(each, replace=True), num_workers
        )
        for each in (first, second)
    )
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    before, after = by_first(keys[0], **options), by_second(keys[1], tail=0, **options)
    # Judges choices of both plans by the same draws, in the same programs.
    rules = options | {"replications": None, "tail": 0}
    judged = [
        by_second(keys[2], choices=each.choices, **rules) for each in (before, after)
    ]
    again = {_identity(choice): choice for each in judged for choice in each.choices}
    found = {}
    for name, goal in GOALS.items():
        plan = before.replan(**goal)
        alone = min(
            (choice for choice in plan.choices if not _is_late_deadline(choice)),
            key=lambda choice: choice.time.value,
        )
        chosen = [alone, plan.best, after.replan(**goal).best]
        few = tuple(again[_identity(choice)] for choice in chosen)
        times = {
            _identity(choice): choice.time.value
            for choice in judged[0]._replace(choices=few).replan(**goal).choices
        }
        least = min(times.values())
        found[name] = {
            how: {
                "choice": label(choice),
                "regret": times[_identity(choice)] / least - 1,
            }
            for how, choice in zip((*CHOICES, BEST), chosen)
        }
    return found, before


def _is_late_deadline(choice):
    most = _LATE_DEADLINE * choice.code.num_workers
    return isinstance(choice.wait, stragglers.deadline) and choice.num_answers > most


def _identity(choice):
    return id(choice.code), choice.wait, choice.memory


def by_halves(times: np.ndarray, number: int, key, options) -> dict[str, Any]:
    """Returns regrets of plans by the first half, and step times of other choices."""
    first, second = halves(times)
    goals, plan = regrets(first, second, number, key, options)
    num_parts = _NUM_PARTS * number
    speeds = 1 / np.median(first, axis=0)
    placement = codes.proportional_placement(speeds, num_parts, 2)
    shared = codes.any_placement(key, placement, 1)
    request, by_speed = (
        codes.replicated(number, num_parts, 2, loads) for loads in (None, speeds)
    )
    everyone, done = stragglers.fastest(number), stragglers.until_decodable
    stored = next(choice for choice in plan.choices if choice.memory)
    uncoded = codes.uncoded(number)
    by_load = codes.uncoded(number, num_parts, speeds)
    ways = {
        EVERYONE: Choice("", uncoded, everyone, "busy"),
        "work in proportion to speed": Choice("", by_load, everyone, "busy"),
        "proportional placement × 2": Choice(
            "", shared, stragglers.fastest(number - 1), "busy"
        ),
        "on request × 2": Choice("", request, done(request)),
        "on request × 2, by speed": Choice("", by_speed, done(by_speed)),
        STALE: stored,
        "choice of the plan": plan.best,
    }
    delay = stragglers.empirical(second, replace=True)
    rules = options | {"replications": None, "tail": 0}
    judged = jaxwgc.plan(delay, number, key, choices=[*ways.values()], **rules)
    seconds = {_identity(each): each.step_time.value for each in judged.choices}
    return {
        "goals": goals,
        "waits_for": stored.waits_for,
        "ways": {name: seconds[_identity(way)] for name, way in ways.items()},
        "bound": np.mean(number / np.sum(1 / second, axis=1)),
    }


def tabulate_simulated(numbers: Numbers) -> ResultTable:
    """Returns a row per law, and one for all."""
    every = [pair for pairs in numbers.values() for pair in pairs]
    heads = ["law"]
    rows = [[name] for name in (*numbers, "all")]
    for what in CHOICES:
        heads += [f"{what}: median", f"{what}: worst"]
        for row, pairs in zip(rows, (*numbers.values(), every)):
            shares = [each[what]["regret"] for pair in pairs for each in pair.values()]
            row += [f"{100 * np.median(shares):.1f}", f"{100 * np.max(shares):.0f}"]
    return ResultTable(
        f"Planned by a trace of {NUM_ROUNDS} rounds of {NUM_WORKERS} workers: "
        "additional time in another such trace relative to the best choice there, in "
        f"percent; {len(every)} pairs of traces, {len(GOALS)} goals each",
        heads,
        rows,
    )


def tabulate_ways(numbers: Numbers) -> ResultTable:
    """Returns a row per way to act, and a column per trace."""

    def column(found):
        cells = {way: f"{time:.4g}" for way, time in found["ways"].items()}
        cells[STALE] += f" (f = {found['waits_for'].split()[1]})"
        cells["perfect division"] = f"{found['bound']:.4g}"
        for what in (CHOICES[1], BEST):
            cells[f"choice: {what}"] = found["goals"]["default goal"][what]["choice"]
        for goal in GOALS:
            regret = found["goals"][goal][CHOICES[1]]["regret"]
            cells[f"regret, %: {goal}"] = f"{100 * regret:.1f}"
        return cells

    columns = [column(trace["halves"]) for trace in numbers["traces"].values()]
    return ResultTable(
        "Time of a step in the second half of the rounds, in the unit of each trace. "
        "Speeds, f and the plan are those of the first half. Regret: additional time "
        "of its choice to a goal, relative to a plan by the second half",
        ["", *(f"`{name}`" for name in numbers["traces"])],
        [[way, *(cells[way] for cells in columns)] for way in columns[0]],
    )


def draw_ways(numbers: Numbers) -> figures.Figure:
    """Draws the time of a step relative to waiting for all by trace."""
    figure, (axes,) = figures.new_figure(9, 3.4)
    names = [name.replace("_", "\n") for name in numbers["traces"]]
    found = [trace["halves"] for trace in numbers["traces"].values()]
    for index, way in enumerate([*found[0]["ways"]][1:]):
        shares = [each["ways"][way] / each["ways"][EVERYONE] for each in found]
        look = figures.style(index) | {"linestyle": ""}
        axes.plot(names, shares, label=way, **look)
    bounds = [each["bound"] / each["ways"][EVERYONE] for each in found]
    axes.plot(names, bounds, "k_", markersize=30, label="perfect division")
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set(ylim=(0, None), ylabel="time of a step\nrelative to waiting for all")
    figure.legend(loc="outside right upper")
    return figure
