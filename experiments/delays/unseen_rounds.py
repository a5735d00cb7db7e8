"""Plans by one half of the rounds, judged by the other: what a short trace hides."""

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
    "as by default": {},
    "target 0.001": {"target": 1e-3},
    "heterogeneity 1": {"heterogeneity": 1.0},
    "both": {"target": 1e-3, "heterogeneity": 1.0},
}
# The choice by the times of a trace alone, without deadlines that nearly all of them
# meet; and the choice of a plan.
CHOICES = "by times alone", "of least regret"
# The choice of a plan by the other rounds.
BEST = "by the second half"
_ANSWERS_BY_DEADLINE = 0.98
EVERYONE, STALE = "waiting for all", "first f, stale gradients"
# Parts of a worker where loads are unequal or parts are sent on request.
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


def regrets(
    first: np.ndarray,
    second: np.ndarray,
    num_workers: int,
    key: jax.Array,
    options: dict[str, Any],
) -> tuple[dict[str, Any], jaxwgc.Plan]:
    """Returns the regrets by goal, and the plan by the first rounds.

    The regret is by how much longer it takes in the second rounds than what is best
    there, as a share.
    """
    by_first, by_second = (
        functools.partial(
            jaxwgc.plan, stragglers.empirical(each, replace=True), num_workers
        )
        for each in (first, second)
    )
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    before, after = by_first(keys[0], **options), by_second(keys[1], tail=0, **options)
    # Choices of both plans by the same draws, in the same programs.
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
    most = _ANSWERS_BY_DEADLINE * choice.code.num_workers
    return isinstance(choice.wait, stragglers.deadline) and choice.num_answers > most


def _identity(choice):
    return id(choice.code), choice.wait, choice.memory


def by_halves(
    times: np.ndarray, number: int, key: jax.Array, options: dict[str, Any]
) -> dict[str, Any]:
    """Returns regrets of plans by the first half, and ways to act side by side."""
    first, second = halves(times)
    goals, plan = regrets(first, second, number, key, options)
    num_parts = _NUM_PARTS * number
    # More workers than were measured share the histories of these.
    speeds = np.resize(1 / np.median(first, axis=0), number)
    placement = codes.proportional_placement(speeds, num_parts, 2)
    shared = codes.any_placement(key, placement, 1)
    request, by_speed = (
        codes.replicated(number, num_parts, 2, loads) for loads in (None, speeds)
    )
    everyone, done = stragglers.fastest(number), stragglers.until_decodable
    stored = next(choice for choice in plan.choices if choice.memory)
    acts: dict[str, tuple[Any, ...]] = {
        EVERYONE: (codes.uncoded(number), everyone, "busy"),
        "work in proportion to speed": (
            codes.uncoded(number, num_parts, speeds),
            everyone,
            "busy",
        ),
        "proportional placement × 2": (shared, stragglers.fastest(number - 1), "busy"),
        "on request × 2": (request, done(request)),
        "on request × 2, by speed": (by_speed, done(by_speed)),
    }
    ways = {name: Choice("", *act) for name, act in acts.items()}
    ways |= {STALE: stored, "choice of the plan": plan.best}
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

    def row(name, pairs):
        cells = [name]
        for what in CHOICES:
            shares = [each[what]["regret"] for pair in pairs for each in pair.values()]
            cells += [f"{100 * np.median(shares):.1f}", f"{100 * np.max(shares):.0f}"]
        return cells

    laws = numbers.items()
    every = [pair for _, pairs in laws for pair in pairs]
    return ResultTable(
        f"Planned by a trace of {NUM_ROUNDS} rounds of {NUM_WORKERS} workers: how much "
        "longer it takes in another such trace than what is best there, in percent; "
        f"{len(every)} pairs of traces, {len(GOALS)} goals each",
        [
            "law",
            *(f"{what}: {kind}" for what in CHOICES for kind in ("median", "worst")),
        ],
        [*(row(name, pairs) for name, pairs in laws), row("all", every)],
    )


def tabulate_ways(numbers: Numbers) -> ResultTable:
    """Returns a row per way to act, and a column per trace."""
    traces = numbers["traces"]
    found = [trace["halves"] for trace in traces.values()]
    rows = [
        [way, *(f"{each['ways'][way]:.4g}" for each in found)]
        for way in found[0]["ways"]
    ]
    stale = next(row for row in rows if row[0] == STALE)
    stale[1:] = [
        f"{seconds} (f = {each['waits_for'].split()[1]})"
        for seconds, each in zip(stale[1:], found)
    ]
    rows.append(["perfect division", *(f"{each['bound']:.4g}" for each in found)])
    for what in (CHOICES[1], BEST):
        choices = (each["goals"]["as by default"][what]["choice"] for each in found)
        rows.append([f"choice {what}", *choices])
    for goal in GOALS:
        shares = [each["goals"][goal][CHOICES[1]]["regret"] for each in found]
        rows.append([f"regret, %: {goal}", *(f"{100 * each:.1f}" for each in shares)])
    return ResultTable(
        "Time of a step in the second half of the rounds, in the unit of each trace: "
        "speeds, f and the plan are those of the first half. Regret: how much longer "
        "its choice takes to a goal than that of a plan by the second half",
        ["", *(f"`{name}`" for name in traces)],
        rows,
    )


def draw_ways(numbers: Numbers) -> figures.Figure:
    """Draws the time of a step over that of waiting for all, a column per trace."""
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
    axes.set_ylim(0)
    axes.set_ylabel("time of a step\nover waiting for all")
    figure.legend(loc="outside right upper")
    return figure
