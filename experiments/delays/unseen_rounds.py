"""Plans by a half of the rounds, judged by the other: what a short trace hides."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Numbers
from experiments.runner.tables import ResultTable
from jaxwgc import stragglers

NUM_ROUNDS, NUM_WORKERS = 15, 32
OPTIONS = {"replications": (1, 2), "num_rounds": 600}
GOALS: dict[str, dict[str, float]] = {
    "as by default": {},
    "target 0.001": {"target": 1e-3},
    "heterogeneity 1": {"heterogeneity": 1.0},
    "both": {"target": 1e-3, "heterogeneity": 1.0},
}
# What would be chosen by the times of a trace alone, were there no deadlines that
# nearly all of them meet; and what a plan chooses.
CHOICES = "by times alone", "of least regret"
_ANSWERS_BY_DEADLINE = 0.98


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
    """The regrets by goal, for as many pairs of traces of a law."""
    for pair in range(number):
        generator = np.random.default_rng([seed, list(LAWS).index(name), pair])
        first, second = (
            stragglers.empirical(LAWS[name](generator, (NUM_ROUNDS, NUM_WORKERS)))
            for _ in range(2)
        )
        yield regrets(first, second, NUM_WORKERS, jax.random.key(seed), **OPTIONS)


def regrets(
    first: stragglers.DelayModel,
    second: stragglers.DelayModel,
    num_workers: int,
    key: jax.Array,
    **options: Any,
) -> dict[str, Any]:
    """By goal: what is chosen by the first, and how much longer it takes in the second.

    Longer than what is best in the second, as a share.
    """
    replications = options.pop("replications", None)

    def plan(delay, number, **more):
        plan_key = jax.random.fold_in(key, number)
        return jaxwgc.plan(delay, num_workers, plan_key, **options, **more)

    before = plan(first, 0, replications=replications)
    after = plan(second, 1, replications=replications, tail=0)
    chosen = {}
    for name, goal in GOALS.items():
        best = before.replan(**goal)
        alone = min(
            (choice for choice in best.choices if not _is_late_deadline(choice)),
            key=lambda choice: choice.time.value,
        )
        chosen[name] = alone, best.best, after.replan(**goal).best
    distinct = {_identity(choice): choice for row in chosen.values() for choice in row}
    judged = plan(second, 2, choices=list(distinct.values()), tail=0)
    by_goal = {}
    for name, goal in GOALS.items():
        times = {
            _identity(choice): choice.time.value
            for choice in judged.replan(**goal).choices
        }
        least = min(times.values())
        by_goal[name] = {
            how: {"choice": str(choice), "regret": times[_identity(choice)] / least - 1}
            for how, choice in zip(CHOICES, chosen[name])
        }
    return by_goal


def _is_late_deadline(choice):
    most = _ANSWERS_BY_DEADLINE * choice.code.num_workers
    return isinstance(choice.wait, stragglers.deadline) and choice.num_answers > most


def _identity(choice):
    return id(choice.code), choice.wait


def tabulate_simulated(numbers: Numbers) -> ResultTable:
    """A row a law, and one for all."""

    def row(name, pairs):
        cells = [name]
        for what in CHOICES:
            shares = [each[what]["regret"] for pair in pairs for each in pair.values()]
            cells += [f"{100 * np.median(shares):.1f}", f"{100 * np.max(shares):.0f}"]
        return cells

    laws = numbers["simulated"]
    every = [pair for pairs in laws.values() for pair in pairs]
    return ResultTable(
        f"Planned by a trace of {NUM_ROUNDS} rounds of {NUM_WORKERS} workers: how much "
        "longer it takes in another such trace than what is best there, in percent; "
        f"{len(every)} pairs of traces, {len(GOALS)} goals each",
        [
            "law",
            *(f"{what}: {kind}" for what in CHOICES for kind in ("median", "worst")),
        ],
        [*(row(name, pairs) for name, pairs in laws.items()), row("all", every)],
    )


def tabulate_halves(numbers: Numbers) -> ResultTable:
    """A row a trace and goal."""
    rows = [
        [
            name,
            goal,
            *(
                f"{each[what]['choice']} ({100 * each[what]['regret']:.1f})"
                for what in CHOICES
            ),
        ]
        for name, trace in numbers["traces"].items()
        for goal, each in trace["halves"].items()
    ]
    return ResultTable(
        "Chosen by the first half of the rounds; in brackets how much longer it takes "
        "in the second half than what is best there, in percent",
        ["trace", "goal", *CHOICES],
        rows,
    )
