"""Which code, and whether to code at all, for workers whose times were measured."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxwgc
from experiments.delays import unseen_rounds
from experiments.delays.traces import LANGUAGE_MODELS, Trace, read_traces
from experiments.runner import figures
from experiments.runner.results import ExperimentError
from experiments.runner.study import Numbers, Once, Study, run
from experiments.runner.tables import ResultTable, with_half

# In the table of decisions, from the same rounds.
TARGETS = 0.1, 0.01, 0.001, 0.0001
HETEROGENEITIES = 0.01, 0.1, 1.0
# Of a choice in JSON.
LEFT_OUT = "code", "wait", "rounds"

REPLICATIONS = (1, 2, 3, 4)


def plan(
    trace: Path | None = None,
    array: str | None = None,
    num_workers: int | None = None,
    replications: tuple[int, ...] = REPLICATIONS,
    target: float = 0.01,
    condition: float = 100.0,
    heterogeneity: float = 0.1,
    rounds: int = 2_000,
    pairs: int = 40,
    seed: int = 0,
    out: Path = Path("results"),
) -> None:
    """Which code, how many copies, how long to wait, for measured times of workers.

    Args:
        trace: Times in NumPy's format, (rounds, workers), such as those of
            `RayCluster.trace`; or (rounds, workers, parts), or (loads, rounds,
            workers) beside an array `loads`. By default those of two trainings of
            language models.
        array: Of several arrays in the file that one; by default all.
        num_workers: As many as were measured by default. Of more, several have the
            history of one.
        replications: Copies of the data that are tried, by default those of them that
            the workers have; none at all always is.
        target: The loss that is to be reached, over that of the start.
        condition: The largest over the smallest curvature of the loss.
        heterogeneity: Mean square of the gradients of parts at the optimum, over that
            of the gradient at the start.
        rounds: That are drawn from those measured.
        pairs: Of short traces that are simulated of each law, one to plan with and one
            to judge by; only where no trace is given.
        seed: Of the random numbers.
        out: Folder for tables, figure and numbers.
    """
    traces = chosen_traces(trace, array)
    if pairs < 1:
        raise ExperimentError(f"--pairs must be at least 1; got {pairs}")
    if num_workers is not None and num_workers < 1:
        raise ExperimentError(f"--num-workers must be at least 1; got {num_workers}")
    goal = {"target": target, "condition": condition, "heterogeneity": heterogeneity}

    def study():
        key = jax.random.key(seed)
        cells = {
            name: Once(measure, trace, num_workers, replications, goal, rounds, key)
            for name, trace in traces.items()
        }
        numbers = {**goal, "rounds": rounds, "traces": cells}
        tables = {name: tabulator(name) for name in traces}
        tables |= {
            "decisions": tabulate_decisions,
            "halves": unseen_rounds.tabulate_halves,
        }
        if trace is None and array is None:
            numbers["simulated"] = {
                name: Once(
                    unseen_rounds.simulated_pairs, name, pairs, seed, num_rows=pairs
                )
                for name in unseen_rounds.LAWS
            }
            tables["simulated"] = unseen_rounds.tabulate_simulated
        return Study(numbers, tables=tables, figures={"": draw}, note=note)

    title = "Planning by measured times, rounds drawn"
    run("plan", title, {"": study}, rounds, seed, out, option="rounds")


def chosen_traces(path: Path | None, array: str | None) -> dict[str, Trace]:
    """Returns the traces of the file, or the one of that name."""
    traces = read_traces(LANGUAGE_MODELS if path is None else path)
    if array is None:
        return traces
    if array not in traces:
        raise ExperimentError(
            f"--array must be one of {', '.join(traces)}; got {array}"
        )
    return {array: traces[array]}


def plan_for(
    trace: Trace,
    num_workers: int | None = None,
    key: Any = None,
    replications: Sequence[int] | None = None,
    **options: Any,
) -> jaxwgc.Plan:
    """By default for as many workers as were measured."""
    number = trace.seconds.shape[2] if num_workers is None else num_workers
    if replications is not None and replications == REPLICATIONS:
        replications = [copies for copies in replications if copies <= number]
    return jaxwgc.plan(
        trace.delay(),
        number,
        jax.random.key(0) if key is None else key,
        replications=replications,
        memory=True,
        **options,
    )


def measure(
    trace: Trace,
    num_workers: int | None,
    replications: Sequence[int],
    goal: dict[str, float],
    rounds: int,
    key: jax.Array,
) -> dict[str, Any]:
    """The answer in words, and every choice but for the arrays of its code."""
    try:
        plan = plan_for(
            trace, num_workers, key, replications, num_rounds=rounds, **goal
        )
    except (TypeError, ValueError) as error:
        raise ExperimentError(str(error)) from error
    measured = trace.seconds.shape[2]
    answer = plan.answer
    if plan.num_workers > measured:
        answer += f"\nWith {measured} workers measured, several have the same history."
    shown = {id(choice) for choice in plan.by_code}

    def record(choice):
        numbers = choice._asdict() | {
            "replication": choice.replication,
            "waits_for": choice.waits_for,
            "is_best_of_code": id(choice) in shown,
        }
        return {name: each for name, each in numbers.items() if name not in LEFT_OUT}

    return {
        "num_workers": plan.num_workers,
        "answer": answer,
        "choices": [record(choice) for choice in plan.choices],
        "decisions": [
            {"target": target, "heterogeneity": parts} | decide(plan, target, parts)
            for target in TARGETS
            for parts in HETEROGENEITIES
        ],
        "halves": unseen_rounds.regrets(
            trace.half(0).delay(),
            trace.half(1).delay(),
            plan.num_workers,
            key,
            num_rounds=rounds,
            memory=True,
        ),
    }


def decide(plan: jaxwgc.Plan, target: float, heterogeneity: float) -> dict[str, Any]:
    """The best choice for another goal, and how it compares to the other side."""
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
    """The best choice by the goal, a row a trace and target."""

    def cell(best):
        if not best["is_reached"]:
            return "none reaches it"
        copies = f" × {best['replication']:.3g}" if best["replication"] > 1 else ""
        longer = best["other_side_takes_longer"]
        shown = f" ({longer:.0%})" if np.isfinite(longer) else ""
        return f"`{best['name']}`{copies}, {best['waits_for']}{shown}"

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


def best_of_codes(numbers: Numbers, name: str) -> list[dict[str, Any]]:
    """Returns the best choice of each code and replication, and waiting for all."""
    trace = numbers["traces"][name]
    return [
        each
        for each in trace["choices"]
        if each["is_best_of_code"] or each is waiting_for_all(trace)
    ]


def waiting_for_all(trace: Numbers) -> dict[str, Any]:
    """Without a code."""
    return next(
        each
        for each in trace["choices"]
        if each["replication"] == 1 and each["waits_for"] == "all"
    )


def tabulator(name: str) -> Any:
    """A table of the best choices, for one trace."""

    def row(choice, best):
        behind = choice["behind"]
        longer = 100 * behind.value / best, 200 * behind.standard_error / best
        is_reached = np.isfinite(choice["time"].value)
        return {
            "code": f"`{choice['name']}`",
            "copies": f"{choice['replication']:.3g}",
            "waits": choice["waits_for"],
            "step, s": f"{choice['step_time'].value:#.4g}",
            "with stalls, s": f"{choice['stalled_step_time'].value:#.4g}",
            "90%, s": f"{choice['step_quantile'].value:#.4g}",
            "error, %": f"{100 * choice['decoding_error'].value:.1f}",
            "MB": f"{choice['num_bytes'] / 1e6:.0f}",
            "steps": f"{choice['num_steps']:.1f}" if is_reached else "never",
            "longer than the best, %": with_half(*longer, 1) if is_reached else "",
        }

    def table(numbers):
        trace = numbers["traces"][name]
        shown = best_of_codes(numbers, name)
        best = shown[0]["time"].value
        rows = [row(choice, best) for choice in shown]
        title = (
            f"{name}, {trace['num_workers']} workers, to a loss of "
            f"{numbers['target']:g} of the start"
        )
        return ResultTable(title, rows[0], [each.values() for each in rows])

    return table


def draw(numbers: Numbers) -> figures.Figure:
    """Time of a step up to that of 90% of them, and time to the target: a row a trace.

    Over those of uncoded workers that are all waited for.
    """
    traces = numbers["traces"]
    figure, panels = figures.new_figure(8.5, 3 * len(traces), 2, len(traces))
    names = dict.fromkeys(
        each["name"] for name in traces for each in best_of_codes(numbers, name)
    )
    for row, name in enumerate(traces):
        base = waiting_for_all(traces[name])
        shown = [
            choice for choice in traces[name]["choices"] if choice["is_best_of_code"]
        ]
        for axes, kind in zip(panels[2 * row :], ("step_time", "time")):
            axes.axhline(1, color="0.3", linewidth=1)
            for index, code in enumerate(names):
                choices = sorted(
                    (each for each in shown if each["name"] == code),
                    key=lambda each: each["replication"],
                )
                copies = [each["replication"] for each in choices]
                means = np.array([each[kind].value for each in choices])
                half = np.array([2 * each[kind].standard_error for each in choices])
                high = means + half
                if kind == "step_time":
                    high = np.array([each["step_quantile"].value for each in choices])
                unit = base[kind].value
                with np.errstate(invalid="ignore"):  # never over never
                    band = (means - half) / unit, high / unit
                    figures.line(axes, index, copies, means / unit, band, label=code)
        panels[2 * row].set_ylabel(f"{name}\nover waiting for all")
    panels[0].set_title("time of a step, up to the 90% quantile")
    panels[1].set_title("time to the target")
    for axes in panels[-2:]:
        axes.set_xlabel("copies of each part")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def note(numbers: Numbers) -> str:
    """The answers in words."""
    return "\n\n".join(
        f"{name}\n{trace['answer']}" for name, trace in numbers["traces"].items()
    )
