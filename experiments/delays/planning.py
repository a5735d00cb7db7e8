"""Plans from measured times of workers, judged by rounds that they have not seen."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.delays.traces import halves, label, read_traces
from experiments.runner import figures
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Sections, Study, command
from experiments.runner.tables import Printed, ResultTable, table_of, with_half
from jaxwgc import codes, stragglers
from jaxwgc.studies import Candidate

NUM_ROUNDS = 15
NUM_WORKERS = 32
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
EVERYONE = "waiting for all"
STALE = "first f, stale gradients"
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
        shape = NUM_ROUNDS, NUM_WORKERS
        first, second = (LAWS[name](generator, shape) for _ in range(2))
        yield regrets(first, second, NUM_WORKERS, jax.random.key(seed), OPTIONS)[0]


def regrets(first, second, num_workers, key, options):
    """Returns the regrets by goal, and the plan by the first rounds.

    The regret is the additional time in the second rounds relative to the best choice
    there.
    """
    delays = (stragglers.empirical(each, replace=True) for each in (first, second))
    plan = jaxwgc.plan
    by_first, by_second = (functools.partial(plan, own, num_workers) for own in delays)
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    before = by_first(keys[0], **options)
    after = by_second(keys[1], tail=0, **options)
    # Judges choices of both plans by the same draws, in the same programs.
    rules = options | {"replications": None, "tail": 0}
    plans = before, after
    judged = [by_second(keys[2], choices=own.choices, **rules) for own in plans]
    again = {_identity(choice): choice for each in judged for choice in each.choices}
    found = {}
    for name, goal in GOALS.items():
        plan = before.replan(**goal)
        early = [choice for choice in plan.choices if not _is_late_deadline(choice)]
        alone = min(early, key=lambda choice: choice.time.value)
        chosen = [alone, plan.best, after.replan(**goal).best]
        few = tuple(again[_identity(choice)] for choice in chosen)
        times = {
            _identity(choice): choice.time.value
            for choice in judged[0]._replace(choices=few).replan(**goal).choices
        }
        least = min(times.values())
        ratios = [times[_identity(choice)] / least for choice in chosen]
        found[name] = {
            how: {"choice": label(choice), "regret": ratio - 1}
            for how, choice, ratio in zip((*CHOICES, BEST), chosen, ratios)
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
    request = codes.replicated(number, num_parts, 2)
    by_speed = codes.replicated(number, num_parts, 2, speeds)
    everyone = stragglers.fastest(number)
    others = stragglers.fastest(number - 1)
    done = stragglers.until_decodable
    stored = next(choice for choice in plan.choices if choice.memory)
    uncoded = codes.uncoded(number)
    by_load = codes.uncoded(number, num_parts, speeds)
    ways = {
        EVERYONE: Candidate("", uncoded, everyone, "busy"),
        "work in proportion to speed": Candidate("", by_load, everyone, "busy"),
        "proportional placement × 2": Candidate("", shared, others, "busy"),
        "on request × 2": Candidate("", request, done(request)),
        "on request × 2, by speed": Candidate("", by_speed, done(by_speed)),
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


GOAL: dict[str, Any] = {"target": 0.01, "condition": 100.0, "heterogeneity": 0.1}
# Goals in the table of decisions, which all use the same rounds.
TARGETS = 0.1, 0.01, 0.001, 0.0001
HETEROGENEITIES = 0.01, 0.1, 1.0
REPLICATIONS = 1, 2
# Trace of the printed plan.
PRINTED = "one_slow_seconds"
# Pairs of short traces simulated from each law: one to plan with, one to judge by.
NUM_PAIRS = 12
# Fields of a choice in tables.
FIELDS = (
    *("name", "replication", "waits_for", "step_time", "stalled_step_time", "time"),
    *("step_quantile", "decoding_error", "num_bytes", "num_steps", "behind"),
)


@command("plan", "Planning by measured times, rounds drawn", count="rounds")
def plan(trace: Path | None = None, rounds: int = 1_000, seed: int = 0) -> Sections:
    """Plans by measured times: which code, how many copies, which waiting rule.

    Args:
        trace: File with measured times, see `python -m jaxwgc report`. By default
            two trainings of language models and four jobs on Alibaba's PAI.
        rounds: Rounds resampled from the measured ones.
    """
    key = jax.random.key(seed)
    traces = read_traces(trace)

    def measured():
        cells = {name: Once(measure, own, rounds, key) for name, own in traces.items()}
        tables: Any = {name: functools.partial(tabulate, name) for name in traces}
        more = {"decisions": tabulate_decisions, "ways": tabulate_ways}
        numbers = {"target": GOAL["target"], "traces": cells}
        return Study(numbers, tables=tables | more, figures={"ways": draw_ways})

    def printed():
        found = jaxwgc.plan(stragglers.empirical(traces[PRINTED]), 4, key)
        return Study(
            {"text": str(found)},
            tables={"": lambda numbers: Printed(numbers["text"])},
            figures={PRINTED: lambda _: found.plot()},
        )

    def simulated():
        each = functools.partial(Once, simulated_pairs)
        cells = {name: each(name, NUM_PAIRS, seed) for name in LAWS}
        return Study(cells, tables={"": tabulate_simulated})

    if trace:
        return {"measured": measured}
    return {"printed": printed, "measured": measured, "simulated": simulated}


def measure(times: np.ndarray, rounds: int, key: jax.Array) -> dict[str, Any]:
    """Returns the best choices of each code and for each goal, and their regrets."""
    num_workers = times.shape[1]
    # The same for all plans, so that they share their programs.
    options: dict[str, Any] = {"replications": REPLICATIONS, "memory": True}
    options["num_rounds"] = rounds
    try:
        delay = stragglers.empirical(times, replace=True)
        plan = jaxwgc.plan(delay, num_workers, key, **options, **GOAL)
        found = by_halves(times, num_workers, key, options)
    except (TypeError, ValueError) as error:
        raise ExperimentError(str(error)) from error
    everyone = "uncoded", stragglers.fastest(num_workers)
    best = {id(choice) for choice in plan.by_code}
    return {
        "num_workers": num_workers,
        "choices": [
            {name: getattr(choice, name) for name in FIELDS}
            for choice in plan.choices
            if id(choice) in best or (choice.name, choice.wait) == everyone
        ],
        "decisions": [
            {"target": target, "heterogeneity": parts} | decide(plan, target, parts)
            for target in TARGETS
            for parts in HETEROGENEITIES
        ],
        "halves": found,
    }


def decide(plan: jaxwgc.Plan, target: float, heterogeneity: float) -> dict[str, Any]:
    """Returns the best choice for a goal, and the best one with or without a code."""
    other = plan.replan(target=target, heterogeneity=heterogeneity)
    best = other.best
    longer = math.nan
    against = [each for each in other.choices if each.is_coded != best.is_coded]
    if other.is_reached and against:
        longer = against[0].behind.value / best.time.value
    found = {name: getattr(best, name) for name in ("name", "replication", "waits_for")}
    return found | {"is_reached": other.is_reached, "other_side_takes_longer": longer}


def tabulate_decisions(numbers: Numbers) -> ResultTable:
    """Returns the best choice by goal, a row per trace and target."""

    def cell(best):
        if not best["is_reached"]:
            return "none reaches it"
        longer = best["other_side_takes_longer"]
        return label(best) + (f" ({longer:.0%})" if np.isfinite(longer) else "")

    def row(name, target):
        decisions = numbers["traces"][name]["decisions"]
        every = [cell(best) for best in decisions if best["target"] == target]
        return name, f"{target:g}", *every

    return ResultTable(
        "The best choice by goal. In brackets: additional time of the best code if the "
        "choice is uncoded, or of the best uncoded choice if it is coded",
        ["trace", "target", *(f"heterogeneity {value:g}" for value in HETEROGENEITIES)],
        [row(name, target) for name in numbers["traces"] for target in TARGETS],
    )


def tabulate(name: str, numbers: Numbers) -> ResultTable:
    """Returns the best choices of each code for one trace."""
    trace = numbers["traces"][name]
    best = trace["choices"][0]["time"].value

    def is_reached(choice):
        return np.isfinite(choice["time"].value)

    def longer(choice):
        value = choice["behind"].value
        error = choice["behind"].standard_error
        shown = with_half(100 * value / best, 200 * error / best, 1)
        return shown if is_reached(choice) else ""

    return table_of(
        f"{name}, {trace['num_workers']} workers, to a loss of {numbers['target']:g} "
        "of the start",
        {
            "code": "`{name}`",
            "copies": "{replication:.3g}",
            "waiting rule": "{waits_for}",
            "step": "{step_time[value]:#.4g}",
            "with stalls": "{stalled_step_time[value]:#.4g}",
            "90%": "{step_quantile[value]:#.4g}",
            "error, %": "{decoding_error[value]:100 .1f}",
            "MB": "{num_bytes:1e-6 .0f}",
            "steps": lambda choice: (
                f"{choice['num_steps']:.1f}" if is_reached(choice) else "never"
            ),
            "longer than the best, %": longer,
        },
    )(trace["choices"])
