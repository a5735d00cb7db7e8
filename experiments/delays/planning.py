"""Which code, and whether to code at all, for workers whose times were measured."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.delays import unseen_rounds
from experiments.delays.traces import label, read_traces
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable, with_half
from jaxwgc import stragglers

# Goals in the table of decisions, judged by the same rounds.
TARGETS = 0.1, 0.01, 0.001, 0.0001
HETEROGENEITIES = 0.01, 0.1, 1.0
# Fields of a choice that JSON does not have.
LEFT_OUT = "code", "wait", "rounds"

REPLICATIONS = (1, 2)


def plan(
    trace: Path | None = None,
    num_workers: int | None = None,
    replications: tuple[int, ...] = REPLICATIONS,
    target: float = 0.01,
    condition: float = 100.0,
    heterogeneity: float = 0.1,
    rounds: int = 1_000,
    pairs: int = 12,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Which code, how many copies, how long to wait, for measured times of workers.

    Args:
        trace: File with measured times, as for `python -m jaxwgc report`. By default
            two trainings of language models and four jobs on Alibaba's PAI.
        num_workers: Number of workers; as many as were measured by default. Of more,
            several have the history of one.
        replications: Copies of the data that are tried; those above the number of
            workers are left out.
        target: Loss to be reached, over that of the start.
        condition: Largest over smallest curvature of the loss.
        heterogeneity: Mean square of the gradients of parts at the optimum, over that
            of the gradient at the start.
        rounds: Rounds that are drawn from those measured.
        pairs: Pairs of short traces simulated from each law, one to plan with and one
            to judge by; only without a trace.
        seed: Seed of the random numbers.
        out: Folder for tables, figure and numbers.
    """
    if pairs < 1:
        raise ExperimentError(f"--pairs must be at least 1; got {pairs}")
    if num_workers is not None and num_workers < 1:
        raise ExperimentError(f"--num-workers must be at least 1; got {num_workers}")
    goal = {"target": target, "condition": condition, "heterogeneity": heterogeneity}
    key, traces = jax.random.key(seed), read_traces(trace)
    options = replications, goal, rounds, key
    cells = {
        name: Once(measure, times, num_workers or times.shape[1], *options)
        for name, times in traces.items()
    }

    def measured():
        tables = {name: tabulator(name) for name in traces}
        tables["decisions"] = tabulate_decisions
        tables["ways"] = unseen_rounds.tabulate_ways
        figures = {"ways": unseen_rounds.draw_ways}
        return Study(
            {**goal, "traces": cells}, tables=tables, figures=figures, note=note
        )

    def simulated():
        cells = {
            name: Once(unseen_rounds.simulated_pairs, name, pairs, seed, num_rows=pairs)
            for name in unseen_rounds.LAWS
        }
        return Study(cells, tables={"": unseen_rounds.tabulate_simulated})

    sections = {"measured": measured} | ({} if trace else {"simulated": simulated})
    title = "Planning by measured times, rounds drawn"
    run("plan", title, sections, rounds, seed, out, option="rounds")


def measure(
    times: np.ndarray,
    num_workers: int,
    replications: tuple[int, ...],
    goal: dict[str, Any],
    rounds: int,
    key: jax.Array,
) -> dict[str, Any]:
    """Returns the answer in words, and every choice but for the arrays of its code."""
    measured = times.shape[1]
    # Of all plans, so that they share their programs.
    options: dict[str, Any] = {
        "replications": [each for each in replications if each <= num_workers],
        "memory": True,
        "num_rounds": rounds,
    }
    try:
        delay = stragglers.empirical(times, replace=True)
        plan = jaxwgc.plan(delay, num_workers, key, **options, **goal)
        found = unseen_rounds.by_halves(times, num_workers, key, options)
    except (TypeError, ValueError) as error:
        raise ExperimentError(str(error)) from error
    answer = plan.answer
    if num_workers > measured:
        answer += f"\nWith {measured} workers measured, several have the same history."
    everyone = "uncoded", stragglers.fastest(num_workers)
    shown = {id(choice) for choice in plan.by_code}

    def record(choice):
        numbers = choice._asdict() | {
            "replication": choice.replication,
            "waits_for": choice.waits_for,
            "is_best_of_code": id(choice) in shown,
            "is_for_all": (choice.name, choice.wait) == everyone,
        }
        return {name: each for name, each in numbers.items() if name not in LEFT_OUT}

    return {
        "num_workers": num_workers,
        "answer": answer,
        "choices": [record(choice) for choice in plan.choices],
        "decisions": [
            {"target": target, "heterogeneity": parts} | decide(plan, target, parts)
            for target in TARGETS
            for parts in HETEROGENEITIES
        ],
        "halves": found,
    }


def decide(plan: jaxwgc.Plan, target: float, heterogeneity: float) -> dict[str, Any]:
    """Returns the best choice for another goal, and that of coding or not coding."""
    other = plan.replan(target=target, heterogeneity=heterogeneity)
    best = other.best
    against = next(
        (choice for choice in other.choices if choice.is_coded != best.is_coded), None
    )
    longer = math.nan
    if other.is_reached and against is not None:
        longer = against.behind.value / best.time.value
    return {
        "is_reached": other.is_reached,
        "name": best.name,
        "replication": best.replication,
        "waits_for": best.waits_for,
        "other_side_takes_longer": longer,
    }


def tabulate_decisions(numbers: Numbers) -> ResultTable:
    """Returns the best choice by the goal, a row per trace and target."""

    def cell(best):
        if not best["is_reached"]:
            return "none reaches it"
        longer = best["other_side_takes_longer"]
        return label(best) + (f" ({longer:.0%})" if np.isfinite(longer) else "")

    rows = [
        [
            name,
            f"{target:g}",
            *(cell(best) for best in trace["decisions"] if best["target"] == target),
        ]
        for name, trace in numbers["traces"].items()
        for target in TARGETS
    ]
    return ResultTable(
        "The best choice by the goal; in brackets, how much longer the best code takes "
        "if it is not to code, or not coding if it is",
        ["trace", "target", *(f"heterogeneity {value:g}" for value in HETEROGENEITIES)],
        rows,
    )


def tabulator(name: str) -> Any:
    """Returns a table of the best choices of each code, for one trace."""

    def row(choice, best):
        behind = choice["behind"]
        longer = 100 * behind.value / best, 200 * behind.standard_error / best
        is_reached = np.isfinite(choice["time"].value)
        return {
            "code": f"`{choice['name']}`",
            "copies": f"{choice['replication']:.3g}",
            "waits": choice["waits_for"],
            "step": f"{choice['step_time'].value:#.4g}",
            "with stalls": f"{choice['stalled_step_time'].value:#.4g}",
            "90%": f"{choice['step_quantile'].value:#.4g}",
            "error, %": f"{100 * choice['decoding_error'].value:.1f}",
            "MB": f"{choice['num_bytes'] / 1e6:.0f}",
            "steps": f"{choice['num_steps']:.1f}" if is_reached else "never",
            "longer than the best, %": with_half(*longer, 1) if is_reached else "",
        }

    def table(numbers):
        trace = numbers["traces"][name]
        shown = [
            choice
            for choice in trace["choices"]
            if choice["is_best_of_code"] or choice["is_for_all"]
        ]
        best = shown[0]["time"].value
        title = (
            f"{name}, {trace['num_workers']} workers, to a loss of "
            f"{numbers['target']:g} of the start"
        )
        return ResultTable.of_records(title, lambda choice: row(choice, best), shown)

    return table


def note(numbers: Numbers) -> str:
    """Returns the answers in words."""
    return "\n\n".join(
        f"{name}\n{trace['answer']}" for name, trace in numbers["traces"].items()
    )
