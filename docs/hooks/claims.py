"""Sentences of README.md and the pages that compare results, with their conditions.

`tables.py` looks for the words on their pages and checks the conditions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from quantities import (
    TRACES,
    cell,
    code_pays_from,
    column,
    fixed_share,
    number,
    number_after,
    planned_step,
    results,
    rows,
    way,
)

ASYNCHRONOUS = "docs/asynchronous.md"
CODES = "docs/codes.md"
HALBAWI = "docs/reproduction/halbawi.md"
LOCAL_STEPS = "docs/cluster/local-steps.md"
MEASURED = "docs/reproduction/clusters.md"
PLANNING = "docs/planning.md"
REPORTS = "docs/which-worker-is-slow.md"
SKETCHING = "docs/sketching.md"
SLOW = "docs/slow-workers.md"
THE_PAPER = "docs/reproduction/charalambides.md"
WEIGHTS = "docs/weights.md"
WEIGHTS_MEASURED = "docs/reproduction/weights.md"
WRONG = "docs/wrong-answers.md"


EXACT_CODES = (
    "`fractional_repetition`",
    "`binary`",
    "`cyclic_repetition`",
    "`reed_solomon`",
    "`communication_efficient`",
    "`clustered`",
    "`any_placement`",
)


class Claim(NamedTuple):
    """A sentence of a page that compares results.

    Attributes:
      page: Path of the page.
      words: Words of the sentence.
      holds: Returns whether the sentence agrees with the results.
    """

    page: str
    words: str
    holds: Callable[[], bool]


def of_training(title: str, name: str) -> float:
    """Returns a number of the trainings of a language model."""
    return cell("language_model", title, name)


def seconds_per_restart() -> float:
    """Returns the seconds of a restart, without those of repeated steps."""
    ways = {row["way"]: row for row in results("language_model")["ways"]}
    calm = ways["no faults"]["seconds"]
    restarted = ways["restart from checkpoint"]
    repeated = restarted["repeated"] * calm / results("language_model")["num_steps"]
    return (restarted["seconds"] - calm - repeated) / restarted["restarts"]


def ways_of_ten_local_steps() -> list[dict]:
    """Returns the records of trainings with ten local steps per round."""
    ways = results("local_steps")["ways"]["rows"]
    return [way for way in ways if way["way"].startswith("10 steps")]


def distances_over_control() -> list[float]:
    """Returns distances from one process, over those of another order of the sum."""
    rows = results("local_steps")["exact"]["rows"]
    controls = {
        (row["epsilon"], row["x64"]): row["distance"]
        for row in rows
        if not row["faults"]
    }
    return [row["distance"] / controls[row["epsilon"], row["x64"]] for row in rows]


def race_times(kind: int) -> dict[str, np.ndarray]:
    """Returns times to the target by method, (delays,); the kind is its position."""
    rows_of_kind = results("asynchronous")["kinds"][kind]["rows"]
    by_method: dict[str, list[float]] = {}
    for row in rows_of_kind:
        for method in row["methods"]:
            time = np.inf if method["time"] is None else float(method["time"])
            by_method.setdefault(method["name"], []).append(time)
    return {name: np.array(times) for name, times in by_method.items()}


def over_fastest(kind: int, *names: str) -> np.ndarray:
    """Returns times of the fastest of some methods over those of the fastest of all."""
    times = race_times(kind)
    fastest = np.min([*times.values()], axis=0)
    return np.min([times[name] for name in names], axis=0) / fastest


# Positions of the problems of the races.
LOGISTIC_EQUAL, LOGISTIC_SORTED, NETWORK_EQUAL, NETWORK_SORTED = range(4)
IGNORING = ("ignore a quarter", "ignore half")
UPDATING = ("every arrival", "delay-adaptive", "Ringmaster")

# The delay model of the last panel of the figure of shares.
STALLING = "spread of a tenth, 0.75% stall for 25"


def times_by_share() -> list[tuple[float, dict[str, float]]]:
    """Returns shares that do not depend on the load, with times by choice."""
    laws = ("spread of a tenth", "1 + Exp(1)", STALLING)
    return [item for law in laws for item in fixed_share(law).items()]


def num_stored_choices(row: str) -> int:
    """Returns in how many traces a row chooses stored messages."""
    [choices] = rows("plan_ways", row)
    return sum("memory" in choice for choice in choices.values())


def worst_errors(code: str) -> np.ndarray:
    """Returns errors against an adversary with 6, 8, 10, 12 and 15 stragglers."""
    [row] = rows("codes_equal_load_adversarial", code)
    return np.array([number(row[f"s = {num}"]) for num in (6, 8, 10, 12, 15)])


def worst_residuals(*tolerances: float) -> list[float]:
    """Returns the worst residuals found for codes with k = n and d / n as given."""
    return [
        max(row[search] for search in ("random", "strides", "neighbours", "search"))
        for row in results("benchmark")["worst_patterns"]
        if row["code"][0] == row["code"][1]
        and row["code"][2] / row["code"][0] in tolerances
    ]


def excess_of_estimated_weights() -> list[float]:
    """Returns errors relative to the oracle, from 20 rows per source on."""
    return [
        cell("weights_sources", "estimated twice", "10", num_rows) - 1
        for num_rows in ("20", "50", "100", "200")
    ]


def fitted_over_published() -> np.ndarray:
    """Returns fitted iterations over those of table 1."""
    fitted = column("table1_fit", "fitted", "iterations")
    return fitted / column("table1_fit", "published", "iterations")


def errors_of_table_1() -> np.ndarray:
    """Returns fitted errors minus those of table 1, in percentage points."""
    fitted = column("table1_fit", "fitted", "error, %")
    return fitted - column("table1_fit", "published", "error, %")


CLAIMS = [
    Claim(
        ASYNCHRONOUS,
        "is never more than 40% slower than the fastest method",
        lambda: bool(
            np.all(over_fastest(LOGISTIC_EQUAL, *IGNORING) < 1.45)
            and np.all(over_fastest(NETWORK_EQUAL, *IGNORING) < 1.45)
        ),
    ),
    Claim(
        ASYNCHRONOUS,
        "within 10% of the fastest method on seven of nine delay models for logistic "
        "regression, and on three for the network",
        lambda: (
            np.sum(over_fastest(LOGISTIC_EQUAL, *UPDATING) < 1.1) == 7
            and np.sum(over_fastest(NETWORK_EQUAL, *UPDATING) < 1.1) == 3
        ),
    ),
    Claim(
        ASYNCHRONOUS,
        "are fastest on all nine delay models and both models",
        lambda: bool(
            np.all(over_fastest(LOGISTIC_SORTED, "stored messages") == 1)
            and np.all(over_fastest(NETWORK_SORTED, "stored messages") == 1)
        ),
    ),
    Claim(
        "README.md",
        "language model with six faults trains",
        lambda: of_training("restarts", "restart from checkpoint") == 6,
    ),
    Claim(
        MEASURED,
        "the final loss is the loss without faults to all printed digits",
        lambda: (
            of_training("held-out loss", "on request, 2 copies")
            == of_training("held-out loss", "restart from checkpoint")
            == of_training("held-out loss", "no faults")
        ),
    ),
    Claim(
        MEASURED,
        "each takes about half a minute",
        lambda: 20 < seconds_per_restart() < 40,
    ),
    Claim(
        PLANNING,
        "is as good as the best choice there in the median",
        lambda: set(column("plan_simulated", "least regret: median")) == {0},
    ),
    Claim(
        PLANNING,
        "never finishes with some Pareto times",
        lambda: any(
            row["law"].startswith("Pareto")
            for row in rows("plan_simulated")
            if row["fastest in the trace: worst"] == "inf"
        ),
    ),
    Claim(
        SLOW,
        "is faster than waiting for all at every share if workers stall for long",
        lambda: code_pays_from(STALLING) == 0,
    ),
    Claim(
        SLOW,
        "always faster than waiting for all, and faster than one message per worker up "
        "to a share of 0.8. At a share of 1, one message per worker is the fastest "
        "choice.",
        lambda: all(
            times["request"] < times["all"]
            and (times["request"] < times["code"] or share > 0.8)
            and (times["code"] == min(times.values()) or share < 1)
            for share, times in times_by_share()
        ),
    ),
    Claim(
        SLOW,
        "are the fastest choice up to a share of 0.6",
        lambda: all(
            times["first"] == min(times.values())
            for share, times in times_by_share()
            if share <= 0.6
        ),
    ),
    Claim(
        SLOW,
        "hardly slower than their neighbours, and nothing is gained",
        lambda: (
            cell("slow_workers_on_request", "relative to all", "`job_2`") > 0.99
            and cell("slow_workers_on_request", "relative to all", "`job_3`") > 0.99
        ),
    ),
    Claim(
        CODES,
        "at half its error (up to 12 of 30 stragglers)",
        lambda: np.array_equal(
            2 * worst_errors("`edge_graph`")[:4],
            worst_errors("`fractional_repetition`")[:4],
        ),
    ),
    Claim(
        PLANNING,
        "is reached in less than half of the time of waiting for all",
        # Stale gradients are the best choice.
        lambda: (
            cell("plan_one_slow_seconds", "regret, %", "first 2 + memory") == 0
            and cell(
                "plan_one_slow_seconds", "longer than the best, %", "`uncoded`", "all"
            )
            > 100
        ),
    ),
    Claim(
        PLANNING,
        "parts on request take less than two thirds",
        lambda: planned_step("one_slow_seconds", "`replicated`", "decodable") < 2 / 3,
    ),
    Claim(
        PLANNING,
        "in five of six traces, they are the choice of both halves",
        lambda: (
            num_stored_choices("choice: least regret")
            == num_stored_choices("choice: second half")
            == 5
        ),
    ),
    Claim(
        PLANNING,
        "faster than waiting for all in `job_4` alone",
        lambda: (
            [trace for trace in TRACES if way(trace, "proportional placement × 2") < 1]
            == ["job_4"]
        ),
    ),
    Claim(
        REPORTS,
        "Work in proportion to speed more than halves the time of a round",
        lambda: (
            2 * number_after("report_job_4", "would take")
            < number_after("report_job_4", "instead of")
        ),
    ),
    Claim(
        THE_PAPER,
        "published errors (7 to 9%) to within about a point",
        lambda: max(np.abs(errors_of_table_1())) <= 1,
    ),
    Claim(
        THE_PAPER,
        "to within about a quarter",
        lambda: max(np.abs(fitted_over_published() - 1)) <= 0.255,
    ),
    Claim(
        HALBAWI,
        "may fail and there are as many parts as workers, it does not",
        lambda: min(worst_residuals(0.5)) > 1e-3,
    ),
    Claim(
        SKETCHING,
        "take less than half a GiB for 5,000,000 rows",
        lambda: (
            max(column("benchmark_streaming_scores", "peak of the process, MiB")) < 512
        ),
    ),
    Claim(
        SKETCHING,
        "with two refinements are faster than sketches of $4p$ rows without",
        lambda: (
            cell(
                "sketching_logistic", "seconds", "`logistic_newton_sketch`, 2p, 2 ref."
            )
            < cell("sketching_logistic", "seconds", "`logistic_newton_sketch`, 4p")
        ),
    ),
    Claim(
        WEIGHTS,
        "estimated weights come within 10% of the oracle from 20 rows per source on",
        lambda: max(excess_of_estimated_weights()) <= 0.1,
    ),
    Claim(
        WEIGHTS_MEASURED,
        "the paper's weights have a smaller excess everywhere",
        lambda: max(column("weights_fixed_step", "weighted, 5 steps")) < 1,
    ),
    Claim(
        WEIGHTS_MEASURED,
        r"$\epsilon < 1$, and none is beyond the bound",
        lambda: (
            set(results("weights")["convergence"]["sketches"]["speaks"]) == {1.0}
            and not any(results("weights")["convergence"]["sketches"]["violations"])
        ),
    ),
    Claim(
        WRONG,
        "rarely blames an honest worker",
        lambda: max(column("wrong_answers_located", "honest workers blamed")) <= 1,
    ),
    Claim(
        WRONG,
        "Corrected trainings end at the loss of clean ones, to all printed digits",
        lambda: all(
            f"{kind['clean']['loss']:.4g}" == f"{kind['corrected']['loss']:.4g}"
            for kind in results("wrong_answers")["training"].values()
        ),
    ),
    Claim(
        WRONG,
        "of 10,000 with a missing message, for each of six codes, none is rejected",
        lambda: (
            results("wrong_answers")["clean"]["rounds"] == 10_000
            and len(rows("wrong_answers_clean")) == 6
        ),
    ),
    Claim(
        WRONG,
        "Clean rounds raise no alarm",
        lambda: (
            not any(column("wrong_answers_clean", "honest workers blamed"))
            and not any(column("wrong_answers_clean", "rejected"))
        ),
    ),
    Claim(
        LOCAL_STEPS,
        "Every way with ten local steps and all changes ends at the same loss",
        lambda: (
            np.ptp(
                [
                    way["loss"]
                    for way in ways_of_ten_local_steps()
                    if not way["incomplete"]
                ]
            )
            < 1e-3
        ),
    ),
    Claim(
        LOCAL_STEPS,
        "by rounding alone, as much as another order of the sum does",
        lambda: max(distances_over_control()) < 2,
    ),
    Claim(
        CODES,
        "an adversary harms it [less than other exact codes]",
        lambda: all(
            np.all(worst_errors("`cyclic_mds`") < worst_errors(code))
            for code in EXACT_CODES
        ),
    ),
    Claim(
        HALBAWI,
        "were tried to $10^{-4}$ if a tenth of up to 200 workers may fail",
        lambda: max(worst_residuals(0.1)) < 1e-4,
    ),
    Claim(
        HALBAWI,
        "If a fifth of up to 200 workers may fail, it decodes them to $10^{-3}$",
        lambda: max(worst_residuals(0.1, 0.2)) < 1e-3,
    ),
]
