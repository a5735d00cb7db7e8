"""Plans from measured times of workers: code, copies and waiting rule."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.delays import unseen_rounds
from experiments.delays.traces import label, read_traces
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, command
from experiments.runner.tables import ResultTable, with_half
from jaxwgc import stragglers

GOAL: dict[str, Any] = {"target": 0.01, "condition": 100.0, "heterogeneity": 0.1}
# Goals in the table of decisions, which all use the same rounds.
TARGETS = 0.1, 0.01, 0.001, 0.0001
HETEROGENEITIES = 0.01, 0.1, 1.0
REPLICATIONS = 1, 2
# Pairs of short traces simulated from each law: one to plan with, one to judge by.
NUM_PAIRS = 12
# Fields of a choice in tables.
FIELDS = (
    *("name", "replication", "waits_for", "step_time", "stalled_step_time", "time"),
    *("step_quantile", "decoding_error", "num_bytes", "num_steps", "behind"),
)


@command("plan", "Planning by measured times, rounds drawn", count="rounds")
def plan(
    trace: Path | None = None, rounds: int = 1_000, seed: int = 0
) -> dict[str, Any]:
    """Plans by measured times: which code, how many copies, which waiting rule.

    Args:
        trace: File with measured times, see `python -m jaxwgc report`. By default
            two trainings of language models and four jobs on Alibaba's PAI.
        rounds: Rounds resampled from the measured ones.
    """
    key, traces = jax.random.key(seed), read_traces(trace)

    def measured():
        cells = {name: Once(measure, own, rounds, key) for name, own in traces.items()}
        tables: Any = {name: functools.partial(tabulate, name) for name in traces}
        tables["decisions"] = tabulate_decisions
        tables["ways"] = unseen_rounds.tabulate_ways
        figures = {"ways": unseen_rounds.draw_ways}
        return Study(
            {**GOAL, "traces": cells}, tables=tables, figures=figures, note=note
        )

    def simulated():
        each = functools.partial(Once, unseen_rounds.simulated_pairs)
        cells = {
            name: each(name, NUM_PAIRS, seed, num_rows=NUM_PAIRS)
            for name in unseen_rounds.LAWS
        }
        return Study(cells, tables={"": unseen_rounds.tabulate_simulated})

    return {"measured": measured} | ({} if trace else {"simulated": simulated})


def measure(times: np.ndarray, rounds: int, key: jax.Array) -> dict[str, Any]:
    """Returns the plan in words, the best choices of each code, and their regrets."""
    num_workers = times.shape[1]
    # The same for all plans, so that they share their programs.
    options: dict[str, Any] = {
        "replications": REPLICATIONS,
        "memory": True,
        "num_rounds": rounds,
    }
    try:
        delay = stragglers.empirical(times, replace=True)
        plan = jaxwgc.plan(delay, num_workers, key, **options, **GOAL)
        found = unseen_rounds.by_halves(times, num_workers, key, options)
    except (TypeError, ValueError) as error:
        raise ExperimentError(str(error)) from error
    everyone = "uncoded", stragglers.fastest(num_workers)
    best = {id(choice) for choice in plan.by_code}
    return {
        "num_workers": num_workers,
        "answer": plan.answer,
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
    best, longer = other.best, math.nan
    against = [each for each in other.choices if each.is_coded != best.is_coded]
    if other.is_reached and against:
        longer = against[0].behind.value / best.time.value
    return {
        "is_reached": other.is_reached,
        "name": best.name,
        "replication": best.replication,
        "waits_for": best.waits_for,
        "other_side_takes_longer": longer,
    }


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
        value, error = choice["behind"].value, choice["behind"].standard_error
        shown = with_half(100 * value / best, 200 * error / best, 1)
        return shown if is_reached(choice) else ""

    return ResultTable.of_records(
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
        trace["choices"],
    )


def note(numbers: Numbers) -> str:
    """Returns the plans in words."""
    return "\n\n".join(
        f"{name}\n{trace['answer']}" for name, trace in numbers["traces"].items()
    )
