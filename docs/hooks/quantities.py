"""Quantities that README.md and the pages quote: functions for their expressions.

`tables.py` computes the expressions. A cell with a percent sign is a share: "45%" is
0.45.
"""

import functools
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
# Of the package and of the experiments, for `constant`.
sys.path.append(str(ROOT))

# Number, its confidence interval and its percent sign.
_NUMBER = re.compile(r"(-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?: ± [\d.]+)?(%?)")


@functools.cache
def results(name: str) -> Any:
    """Returns docs/results/NAME.json."""
    path = ROOT / "docs/results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def text(name: str) -> str:
    """Returns docs/results/NAME.md."""
    path = ROOT / "docs/results" / f"{name}.md"
    return path.read_text(encoding="utf-8")


def number(cell_text: str) -> float:
    """Returns the first number of a text, such as 45.38 of "45.38 ± 0.01"."""
    match = _NUMBER.search(cell_text)
    if match is None:
        raise ValueError(f"there is no number in {cell_text!r}")
    value = float(match[1].replace(",", ""))
    return value / 100 if match[2] else value


def number_after(name: str, words: str) -> float:
    """Returns the number after some words of docs/results/NAME.md."""
    return number(" ".join(text(name).split()).split(words, 1)[1])


def rows(name: str, *cells: str) -> list[dict[str, str]]:
    """Returns the rows of docs/results/NAME.md that have these cells, by column."""
    lines = [line[1:-1].split("|") for line in text(name).splitlines() if "|" in line]
    titles, _, *body = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(titles, line)) for line in body if {*cells} <= {*line}]


def column(name: str, title: str, *cells: str) -> np.ndarray:
    """Returns the numbers of a column, of all rows that have these cells."""
    values = [row[title] for row in rows(name, *cells)]
    return np.array([number(value) for value in values if re.search(r"\d", value)])


def cell(name: str, title: str, *cells: str) -> float:
    """Returns the number of a column in the only row that has these cells."""
    [row] = rows(name, *cells)
    return number(row[title])


def half_width(name: str, title: str, *cells: str) -> float:
    """Returns the half width of the interval in such a row, 0.01 of "45.38 ± 0.01"."""
    [row] = rows(name, *cells)
    return number(row[title].partition("±")[2])


def constant(name: str) -> Any:
    """Returns a constant by the names of its module and its own."""
    module, _, own_name = name.rpartition(".")
    return getattr(importlib.import_module(module), own_name)


def num_runs(experiment: str) -> float:
    """Returns the number of runs in the command of an experiment."""
    return number(results(experiment)["command"].partition("--runs")[2])


SIMILAR_JOBS = ("job_1", "job_2", "job_3")
STEADY_TRACES = ("uneven_seconds", "one_slow_seconds", *SIMILAR_JOBS)
TRACES = (*STEADY_TRACES, "job_4")


def losses(trace: str, waits_for: str) -> np.ndarray:
    """Returns the mean losses of an uncoded training."""
    [loss] = [
        choice["loss"]["mean"]
        for choice in results("time")[trace]["choices"]
        if choice["name"] == "uncoded" and choice["waits_for"] == waits_for
    ]
    return np.array(loss)


def plateau_of_stored_messages() -> float:
    """Returns the loss that changes least between two times, in job_4."""
    loss = losses("job_4", "first 5 + memory")
    before = loss[1 : np.argmax(loss < 0.05)]
    return before[np.argmin(np.abs(np.diff(before)))]


def planned_over_measured(trace: str, quantity: str) -> np.ndarray:
    """Returns planned times over those of the trainings, of all choices."""
    return np.array(
        [
            choice[f"planned_{quantity}"] / choice[quantity]["mean"]
            for choice in results("time")[trace]["choices"]
        ]
    )


def median_of_planned_times() -> float:
    """Returns planned over measured times to the target, without job_4."""
    ratios = [planned_over_measured(trace, "time") for trace in STEADY_TRACES]
    return np.median(np.concatenate(ratios))


def largest_error_of_planned_steps(*traces: str) -> float:
    """Returns the largest relative error of a planned time of a step."""
    ratios = np.concatenate([planned_over_measured(trace, "step") for trace in traces])
    return np.max(np.abs(1 / ratios - 1))


def largest_error_of_planned_ratios() -> float:
    """Returns the largest error of planned times over that of waiting for all."""
    ratios = [planned_over_measured(trace, "time") for trace in STEADY_TRACES]
    relative = np.concatenate([ratio / ratio[0] for ratio in ratios])
    return np.max(np.abs(relative - 1))


# docs/slow-workers.md
def fixed_share(delays: str) -> dict[float, dict[str, float]]:
    """Returns times by the share that does not depend on the load, and by choice.

    Codes have the best number of copies.
    """
    times = {}
    for row in results("slow_workers")["fixed_share"]:
        if row["delays"] == delays:
            seconds = {name: value["mean"] for name, value in row["seconds"].items()}
            times[row["share"]] = {
                "all": seconds["all"],
                "code": min(seconds["code_2"], seconds["code_4"]),
                "request": min(seconds["request_2"], seconds["request_4"]),
                "first": seconds["first"],
            }
    return times


def serverless(choice: str) -> float:
    """Returns the time of a step of 256 cloud functions."""
    [times] = fixed_share("serverless").values()
    return times[choice]


def code_pays_from(delays: str) -> float:
    """Returns the least share from which codes are faster than waiting for all."""
    times = fixed_share(delays)
    slower = [share for share in times if times[share]["code"] >= times[share]["all"]]
    return min(share for share in times if share > max(slower, default=-1))


# docs/reproduction/clusters.md
def milliseconds(code: str, fault: str = "calm") -> float:
    """Returns the median time of a step of `python -m experiments cluster`."""
    return results("cluster")["summary"][code][fault]["milliseconds"]["median"]


def calm_on_request() -> np.ndarray:
    """Returns milliseconds of steps on request without faults, by copies."""
    return np.array(
        [milliseconds(f"on request, {copies} copies") for copies in (2, 3, 5)]
    )


def slowdown_on_request(copies: int) -> float:
    """Returns a step with two slow workers relative to one without faults."""
    code = f"on request, {copies} copies"
    return milliseconds(code, "two slow") / milliseconds(code)


# docs/planning.md
def way(trace: str, name: str, relative_to: str = "waiting for all") -> float:
    """Returns the time of a way to act relative to another way."""
    times = [cell("plan_ways", f"`{trace}`", way) for way in (name, relative_to)]
    return times[0] / times[1]


def planned_step(trace: str, code: str, waits_for: str) -> float:
    """Returns the step of a choice relative to waiting for all without a code."""
    name = f"plan_{trace}"
    return cell(name, "step", code, waits_for) / cell(name, "step", "`uncoded`", "all")


# docs/sketching.md
def seconds_of_solver(solver: str) -> float:
    """Returns the median time of a solver at a condition number of 1e8."""
    [time] = [
        row["time"]
        for row in results("sketching")["solvers"]["measured"]["1e+08"]
        if row["solver"] == solver
    ]
    return time["median"]


def rough_solutions(title: str) -> np.ndarray:
    """Returns a column of the solvers with sketches of 16 p rows."""
    name = "sketching_solvers_ill"
    solvers = [row["solver"] for row in rows(name) if "16p" in row["solver"]]
    return np.array([cell(name, title, solver) for solver in solvers])


def exact_scores_over_products() -> np.ndarray:
    """Returns the time of exact scores relative to two matrix products."""
    name = "benchmark_approximate_scores"
    wide = column(name, "exact") / column(name, "two products")
    return np.append(wide, column("benchmark_leverage_scores", "jaxwgc / products"))


def worst_backward_error(name: str) -> float:
    """Returns the worst backward error of `preconditioned`, in machine epsilons."""
    methods = [row for row in rows(name) if "preconditioned`" in row["method"]]
    return max(number(row["worst"]) for row in methods)


def seconds_of_sparse_solver(matrix: str, solver: str) -> float:
    """Returns the time of a solver of sparse least squares."""
    [row] = [
        row
        for row in rows("benchmark_sparse_least_squares")
        if matrix in row["matrix"] and solver in row["solver"]
    ]
    return number(row["seconds"])


# docs/weights.md
def cost_of_uniform_parts() -> float:
    """Returns by how much uniform parts are worse if scores are nearly even."""
    even = [
        row for row in rows("weights_best_step") if number(row["spread of Π"]) <= 1 / 3
    ]
    return max(number(row["uniform"]) for row in even) - 1


def gains_of_new_samples() -> np.ndarray:
    """Returns the excess of one sample over that of new samples."""
    name = "weights_best_step"
    return 1 / np.append(column(name, "block leverage"), column(name, "block uniform"))


# docs/wrong-answers.md
def largest_harm_of_flips() -> float:
    """Returns the largest error of the gradient after a flipped bit."""
    runs = results("wrong_answers")["bits"]["codes"].values()
    return max(bit["harm"] for run in runs for bit in run["bits"])


def cost_of_correction() -> float:
    """Returns a step with corrected messages over one that only decodes messages."""
    corrected = cell(
        "benchmark_step", "milliseconds", "coded, corrupted messages corrected"
    )
    decoded = cell(
        "benchmark_step", "milliseconds", "coded, every message formed and decoded"
    )
    return corrected / decoded
