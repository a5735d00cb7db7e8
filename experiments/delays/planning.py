"""Plans from measured times of workers, judged by rounds that they have not seen."""

import dataclasses
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
from jaxwgc.planning import Candidate, Candidates, Choice, Goal

NUM_ROUNDS = 15
NUM_WORKERS = 32
OPTIONS: dict[str, Any] = {
    "candidates": Candidates(copies=(1, 2)),
    "num_rounds": 600,
}
GOALS = {
    "default goal": Goal(),
    "target 0.001": Goal(target=1e-3),
    "heterogeneity 1": Goal(heterogeneity=1.0),
    "both": Goal(target=1e-3, heterogeneity=1.0),
}
# The fastest choice in a trace without deadlines that nearly all workers meet, and the
# choice of a plan.
CHOICES = ("fastest in the trace", "least regret")
# The choice of a plan by the other rounds.
BEST = "second half"
# Fraction of workers that respond before a late deadline.
_LATE_DEADLINE = 0.98
EVERYONE = "waiting for all"
STORED = "first f, memory"
# Half of the width of a trace in the figure of ways; traces have a distance of 1.
_HALF_WIDTH = 0.3
# Parts per worker if loads are unequal or parts are sent on request.
_NUM_PARTS = 8


def _with_stalls(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    times = generator.lognormal(0.0, 0.2, shape)
    is_stalled = generator.random(shape) < 1 / 500
    return np.where(is_stalled, 20 * times, times)


LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "shifted exponential": lambda generator, shape: 1 + generator.exponential(1, shape),
    "Pareto, shape 1.5": lambda generator, shape: 1 + generator.pareto(1.5, shape),
    "Pareto, shape 2.5": lambda generator, shape: 1 + generator.pareto(2.5, shape),
    "log-normal": lambda generator, shape: generator.lognormal(0.0, 0.5, shape),
    "one in 500 stalls": _with_stalls,
}


def simulated_pairs(name: str, number: int, seed: int) -> Iterator[Numbers]:
    """Yields the regrets by goal, for pairs of traces of a law."""
    draw = LAWS[name]
    law_index = list(LAWS).index(name)
    shape = (NUM_ROUNDS, NUM_WORKERS)
    for pair in range(number):
        generator = np.random.default_rng([seed, law_index, pair])
        first = draw(generator, shape)
        second = draw(generator, shape)
        key = jax.random.key(seed)
        by_goal, _ = regrets(first, second, NUM_WORKERS, key, OPTIONS)
        yield by_goal


def regrets(
    first: np.ndarray,
    second: np.ndarray,
    num_workers: int,
    key: jax.Array,
    options: dict[str, Any],
) -> tuple[dict[str, Numbers], jaxwgc.Plan]:
    """Returns the regrets by goal, and the plan by the first rounds.

    The regret is the additional time in the second rounds relative to the best choice
    there.
    """
    first_delay = stragglers.empirical(first, replace=True)
    second_delay = stragglers.empirical(second, replace=True)
    first_key, second_key, judge_key = (jax.random.fold_in(key, i) for i in range(3))
    before = jaxwgc.plan(first_delay, num_workers, first_key, **options)
    after = jaxwgc.plan(second_delay, num_workers, second_key, tail=0, **options)
    # Judges choices of both plans by the same draws, in the same programs.
    judge = functools.partial(
        jaxwgc.plan,
        second_delay,
        num_workers,
        judge_key,
        num_rounds=options["num_rounds"],
        tail=0,
    )
    judged_before = judge(candidates=before.choices)
    judged_after = judge(candidates=after.choices)
    judged = {}
    for choice in (*judged_before.choices, *judged_after.choices):
        judged[_identity(choice)] = choice
    by_goal = {}
    for name, goal in GOALS.items():
        plan = before.replan(goal)
        chosen = {
            CHOICES[0]: _fastest_in_trace(plan),
            CHOICES[1]: plan.best,
            BEST: after.replan(goal).best,
        }
        few = tuple(judged[_identity(choice)] for choice in chosen.values())
        times = {}
        judged_few = dataclasses.replace(judged_before, choices=few).replan(goal)
        for choice in judged_few.choices:
            times[_identity(choice)] = choice.time.value
        shortest = min(times.values())
        by_goal[name] = {}
        for way, choice in chosen.items():
            regret = times[_identity(choice)] / shortest - 1
            by_goal[name][way] = {"choice": label(choice), "regret": regret}
    return by_goal, before


def _fastest_in_trace(plan: jaxwgc.Plan) -> Choice:
    """Returns the fastest choice without deadlines that nearly all workers meet."""

    def is_late_deadline(choice):
        if not isinstance(choice.wait, stragglers.deadline):
            return False
        return choice.num_messages > _LATE_DEADLINE * choice.code.num_workers

    choices = [choice for choice in plan.choices if not is_late_deadline(choice)]
    return min(choices, key=lambda choice: choice.time.value)


def _identity(choice: Candidate | Choice) -> tuple[int, stragglers.WaitingRule, bool]:
    return id(choice.code), choice.wait, choice.memory


def by_halves(
    times: np.ndarray, number: int, key: jax.Array, options: dict[str, Any]
) -> Numbers:
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
    until_decodable = stragglers.until_decodable
    stored = next(choice for choice in plan.choices if choice.memory)
    uncoded = codes.uncoded(number)
    by_load = codes.uncoded(number, num_parts, speeds)
    ways = {
        EVERYONE: Candidate("", uncoded, everyone, "busy"),
        "work in proportion to speed": Candidate("", by_load, everyone, "busy"),
        "proportional placement × 2": Candidate("", shared, others, "busy"),
        "on request × 2": Candidate("", request, until_decodable(request)),
        "on request × 2, by speed": Candidate("", by_speed, until_decodable(by_speed)),
        STORED: stored,
        "choice of the plan": plan.best,
    }
    delay = stragglers.empirical(second, replace=True)
    judged = jaxwgc.plan(
        delay,
        number,
        key,
        candidates=[*ways.values()],
        num_rounds=options["num_rounds"],
        tail=0,
    )
    seconds = {_identity(choice): choice.step_time.value for choice in judged.choices}
    return {
        "goals": goals,
        "waits_for": stored.waits_for,
        "ways": {name: seconds[_identity(way)] for name, way in ways.items()},
        "bound": np.mean(number / np.sum(1 / second, axis=1)),
    }


def tabulate_simulated(numbers: Numbers) -> ResultTable:
    """Returns a row per law, and one for all."""
    all_pairs = [pair for pairs in numbers.values() for pair in pairs]
    heads = ["law"]
    for way in CHOICES:
        heads += [f"{way}: median", f"{way}: worst"]

    def row(name, pairs):
        cells = [name]
        for way in CHOICES:
            regrets = [goal[way]["regret"] for pair in pairs for goal in pair.values()]
            cells.append(f"{100 * np.median(regrets):.1f}")
            cells.append(f"{100 * np.max(regrets):.0f}")
        return cells

    rows = [row(name, pairs) for name, pairs in numbers.items()]
    return ResultTable(
        f"Planned by a trace of {NUM_ROUNDS} rounds of {NUM_WORKERS} workers: "
        "additional time in another such trace relative to the best choice there, in "
        f"percent; {len(all_pairs)} pairs of traces, {len(GOALS)} goals each",
        heads,
        [*rows, row("all", all_pairs)],
    )


def tabulate_ways(numbers: Numbers) -> ResultTable:
    """Returns a row per way to act, and a column per trace."""

    def column(record):
        cells = {way: f"{time:.4g}" for way, time in record["ways"].items()}
        num_awaited = record["waits_for"].split()[1]
        cells[STORED] += f" (f = {num_awaited})"
        cells["perfect division"] = f"{record['bound']:.4g}"
        goals = record["goals"]
        for way in (CHOICES[1], BEST):
            cells[f"choice: {way}"] = goals["default goal"][way]["choice"]
        for goal in GOALS:
            regret = goals[goal][CHOICES[1]]["regret"]
            cells[f"regret, %: {goal}"] = f"{100 * regret:.1f}"
        return cells

    heads = [f"`{name}`" for name in numbers["traces"]]
    columns = [column(trace["halves"]) for trace in numbers["traces"].values()]
    return ResultTable(
        "Time of a step in the second half of the rounds, in the unit of each trace. "
        "Speeds, f and the plan are those of the first half. Regret: additional time "
        "of its choice to a goal, relative to a plan by the second half",
        ["", *heads],
        [[way, *(cells[way] for cells in columns)] for way in columns[0]],
    )


def draw_ways(numbers: Numbers) -> figures.Figure:
    """Draws the time of a step relative to waiting for all by trace."""
    figure, (axes,) = figures.new_figure(9, 3.4)
    names = [name.replace("_", "\n") for name in numbers["traces"]]
    records = [trace["halves"] for trace in numbers["traces"].values()]
    ways = [way for way in records[0]["ways"] if way != EVERYONE]
    places = np.arange(len(names))
    # Ways of equal time stand side by side.
    offsets = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, len(ways))
    for index, way in enumerate(ways):
        ratios = [record["ways"][way] / record["ways"][EVERYONE] for record in records]
        look = figures.style(index)
        look["linestyle"] = ""
        axes.plot(places + offsets[index], ratios, label=way, **look)
    bounds = [record["bound"] / record["ways"][EVERYONE] for record in records]
    axes.hlines(
        bounds,
        places - _HALF_WIDTH,
        places + _HALF_WIDTH,
        color="black",
        label="perfect division",
    )
    axes.set_xticks(places, names)
    axes.grid(visible=False, axis="x")
    axes.axhline(1, color="0.3", linewidth=1)
    axes.set(ylim=(0, None), ylabel="time of a step\nrelative to waiting for all")
    figure.legend(loc="outside right upper")
    return figure


GOAL = Goal(target=0.01, condition=100.0, heterogeneity=0.1)
# Goals in the table of decisions, which all use the same rounds.
TARGETS = (0.1, 0.01, 0.001, 0.0001)
HETEROGENEITIES = (0.01, 0.1, 1.0)
COPIES = (1, 2)
# Trace of the printed plan.
PRINTED = "one_slow_seconds"
# Rows of its table that are shown.
NUM_PRINTED_ROWS = 6
# Pairs of short traces simulated from each law: one to plan with, one to judge by.
NUM_PAIRS = 12
# Fields of a choice in tables.
FIELDS = (
    "name",
    "copies",
    "waits_for",
    "step_time",
    "stalled_step_time",
    "time",
    "step_quantile",
    "decoding_error",
    "num_bytes",
    "num_steps",
    "behind",
    "regret",
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
        cells = {}
        tables: dict[str, Callable[[Numbers], ResultTable]] = {}
        for name, times in traces.items():
            cells[name] = Once(measure, times, rounds, key)
            tables[name] = functools.partial(tabulate, name)
        tables["decisions"] = tabulate_decisions
        tables["ways"] = tabulate_ways
        numbers = {"target": GOAL.target, "traces": cells}
        return Study(numbers, tables=tables, figures={"ways": draw_ways})

    def printed():
        plan = jaxwgc.plan(stragglers.empirical(traces[PRINTED]), 4, key)
        return Study(
            {"text": str(plan)},
            tables={"": lambda numbers: Printed(shortened(numbers["text"]))},
            figures={PRINTED: lambda numbers: plan.plot()},
        )

    def simulated():
        cells = {name: Once(simulated_pairs, name, NUM_PAIRS, seed) for name in LAWS}
        return Study(cells, tables={"": tabulate_simulated})

    if trace:
        return {"measured": measured}
    return {"printed": printed, "measured": measured, "simulated": simulated}


def measure(times: np.ndarray, rounds: int, key: jax.Array) -> Numbers:
    """Returns the best choices of each code and for each goal, and their regrets."""
    num_workers = times.shape[1]
    # The same for all plans, so that they share their programs.
    options: dict[str, Any] = {
        "candidates": Candidates(copies=COPIES, memory=True),
        "num_rounds": rounds,
    }
    try:
        delay = stragglers.empirical(times, replace=True)
        plan = jaxwgc.plan(delay, num_workers, key, goal=GOAL, **options)
        judged = by_halves(times, num_workers, key, options)
    except (TypeError, ValueError) as error:
        raise ExperimentError(str(error)) from error
    everyone = stragglers.fastest(num_workers)
    best_of_codes = {id(choice) for choice in plan.by_code}
    choices = []
    for choice in plan.choices:
        is_baseline = choice.name == "uncoded" and choice.wait == everyone
        if is_baseline or id(choice) in best_of_codes:
            choices.append({name: getattr(choice, name) for name in FIELDS})
    decisions = []
    for target in TARGETS:
        for heterogeneity in HETEROGENEITIES:
            decisions.append(decide(plan, target, heterogeneity))
    return {
        "num_workers": num_workers,
        "choices": choices,
        "decisions": decisions,
        "halves": judged,
    }


def decide(plan: jaxwgc.Plan, target: float, heterogeneity: float) -> Numbers:
    """Returns the best choice for a goal, and the best one with or without a code."""
    goal = dataclasses.replace(GOAL, target=target, heterogeneity=heterogeneity)
    replanned = plan.replan(goal)
    best = replanned.best
    other_side = [
        choice for choice in replanned.choices if choice.is_coded != best.is_coded
    ]
    longer = math.nan
    if replanned.is_reached and other_side:
        longer = other_side[0].behind.value / best.time.value
    return {
        "target": target,
        "heterogeneity": heterogeneity,
        "name": best.name,
        "copies": best.copies,
        "waits_for": best.waits_for,
        "is_reached": replanned.is_reached,
        "other_side_takes_longer": longer,
    }


def tabulate_decisions(numbers: Numbers) -> ResultTable:
    """Returns the best choice by goal, a row per trace and target."""

    def cell(best):
        if not best["is_reached"]:
            return "none reaches it"
        longer = best["other_side_takes_longer"]
        if np.isfinite(longer):
            return f"{label(best)} ({longer:.0%})"
        return label(best)

    heads = [f"heterogeneity {value:g}" for value in HETEROGENEITIES]
    table = ResultTable(
        "The best choice by goal. In brackets: additional time of the best code if the "
        "choice is uncoded, or of the best uncoded choice if it is coded",
        ["trace", "target", *heads],
    )
    for name, trace in numbers["traces"].items():
        for target in TARGETS:
            row = [name, f"{target:g}"]
            for best in trace["decisions"]:
                if best["target"] == target:
                    row.append(cell(best))
            table.rows.append(row)
    return table


def shortened(text: str) -> str:
    """Returns the advice of a printed plan and the first rows of its table."""
    advice, table, _ = text.split("\n\n")
    lines = table.splitlines()[: 1 + NUM_PRINTED_ROWS]
    return "\n".join([advice, "", *lines, "…"])


def tabulate(name: str, numbers: Numbers) -> ResultTable:
    """Returns the best choices of each code for one trace."""
    trace = numbers["traces"][name]
    best = trace["choices"][0]["time"].value

    def is_reached(choice):
        return np.isfinite(choice["time"].value)

    def num_steps(choice):
        if is_reached(choice):
            return f"{choice['num_steps']:.1f}"
        return "never"

    def longer(choice):
        if not is_reached(choice):
            return ""
        value = choice["behind"].value
        error = choice["behind"].standard_error
        return with_half(100 * value / best, 200 * error / best, 1)

    return table_of(
        f"{name}, {trace['num_workers']} workers, to a loss of {numbers['target']:g} "
        "of the start. Regret: how much longer it takes than the fastest choice, as "
        "measured or with stalls, whichever is more. Longer than the best: as measured "
        "(± 95% confidence interval). Step, with stalls: mean time of a step, in the "
        "unit of the trace, as measured and with stalls. 90%: quantile of this time, "
        "as measured. Error: of decoding. MB: through the coordinator per step, for a "
        "million parameters",
        {
            "code": "`{name}`",
            "copies": "{copies:.3g}",
            "waiting rule": "{waits_for}",
            "regret, %": "{regret:100 .1f}",
            "longer than the best, %": longer,
            "steps": num_steps,
            "step": "{step_time[value]:#.4g}",
            "with stalls": "{stalled_step_time[value]:#.4g}",
            "90%": "{step_quantile[value]:#.4g}",
            "error, %": "{decoding_error[value]:100 .1f}",
            "MB": "{num_bytes:1e-6 .0f}",
        },
    )(trace["choices"])
