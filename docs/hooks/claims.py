"""Sentences of README.md and the pages that compare results, with their conditions.

`tables.py` looks for the words on their pages and checks the conditions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from quantities import (
    EXACT_ON_REQUEST,
    TRACES,
    cell,
    code_pays_from,
    column,
    fixed_share,
    number,
    number_after,
    over_everyone,
    planned_step,
    results,
    rows,
    serverless,
    way,
)

ASYNCHRONOUS = "docs/asynchronous.md"
CODES = "docs/codes.md"
DELAYS = "docs/delays.md"
HALBAWI = "docs/reproduction/halbawi.md"
LOCAL_STEPS = "docs/cluster/local-steps.md"
MEASURED = "docs/reproduction/clusters.md"
PLANNING = "docs/planning.md"
REPORTS = "docs/which-worker-is-slow.md"
SKETCHING = "docs/sketching.md"
SLOW = "docs/slow-workers.md"
THE_PAPER = "docs/reproduction/charalambides.md"
WEIGHTS = "docs/weights.md"
WRONG = "docs/wrong-answers.md"


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


def is_about(value: float, fraction: float) -> bool:
    """Returns whether a fraction in words is right to a tenth of itself."""
    return abs(value / fraction - 1) <= 0.1


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


def best_with_errors() -> list[tuple[str, str]]:
    """Returns traces with their code that is the best choice with an error of 10%."""
    return [
        (row["trace"], row["heterogeneity 0.01"].partition(" × ")[0])
        for row in rows("plan_decisions", "0.01")
        if "tolerance 0.316" in row["heterogeneity 0.01"]
    ]


def num_stored_choices(row: str) -> int:
    """Returns in how many traces a row chooses stored messages."""
    [choices] = rows("plan_ways", row)
    return sum("memory" in choice for choice in choices.values())


def random_errors(code: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean errors at random stragglers, in percent, and half widths."""
    [row] = rows("codes_equal_load_random", code)
    cells = [text for title, text in row.items() if title.startswith("s =")]
    means = [number(text) if "seen" not in text else 0.0 for text in cells]
    half_widths = [number(text.partition("±")[2] or "0") for text in cells]
    return np.array(means), np.array(half_widths)


def is_equal_at_random(code: str, other: str) -> bool:
    """Returns whether the intervals of two codes overlap for all straggler numbers."""
    mean, half_width = random_errors(code)
    other_mean, other_half_width = random_errors(other)
    return bool(np.all(np.abs(mean - other_mean) <= half_width + other_half_width))


def worst_errors(code: str) -> np.ndarray:
    """Returns errors against an adversary with 6, 8, 10, 12 and 15 stragglers."""
    [row] = rows("codes_equal_load_adversarial", code)
    return np.array([number(row[f"s = {num}"]) for num in (6, 8, 10, 12, 15)])


EXACT_CODES = (
    "`fractional_repetition`",
    "`binary`",
    "`cyclic_repetition`",
    "`reed_solomon`",
    "`communication_efficient`",
    "`clustered`",
    "`any_placement`",
)


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


def large_deviations() -> list[float]:
    """Returns the deviations from table 1 of more than 10 standard errors."""
    deviations = column("table1_fit", "deviation", "iterations")
    return sorted(np.round(deviations[np.abs(deviations) > 10]))


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
        ASYNCHRONOUS,
        "half of the workers are more than twice as fast as three quarters",
        lambda: bool(
            race_times(LOGISTIC_EQUAL)["ignore a quarter"][5]
            > 2 * race_times(LOGISTIC_EQUAL)["ignore half"][5]
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
        MEASURED,
        "Their loss is no higher here",
        lambda: (
            of_training("held-out loss", "ignoring lost workers")
            <= of_training("held-out loss", "no faults")
        ),
    ),
    Claim(
        MEASURED,
        "are as fast as those on request",
        lambda: (
            of_training("seconds", "ignoring lost workers")
            <= of_training("seconds", "on request, 2 copies")
        ),
    ),
    Claim(
        MEASURED,
        "the longest step is shorter than the shortest absence",
        lambda: (
            cell("chaos", "value", "seconds per step, longest")
            < cell("chaos", "value", "seconds away, shortest")
        ),
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
        "The right end of the last panel is this law",
        lambda: all(
            abs(time / serverless(choice) - 1) < 0.005
            for choice, time in fixed_share(STALLING)[1.0].items()
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
        PLANNING,
        "`replicated` with an error of 10% is the best choice in `uneven_seconds`, "
        "`job_1` and `job_3`, and `replicated by speed` in `job_2`",
        lambda: (
            best_with_errors()
            == [
                ("uneven_seconds", "`replicated`"),
                ("job_1", "`replicated`"),
                ("job_2", "`replicated by speed`"),
                ("job_3", "`replicated`"),
            ]
        ),
    ),
    Claim(
        PLANNING,
        "uncoded training with stale gradients is the best choice for every trace and "
        "target",
        lambda: all(
            row["heterogeneity 1"].startswith("`uncoded`, first ")
            and " + memory" in row["heterogeneity 1"]
            for row in rows("plan_decisions")
        ),
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
        CODES,
        "at half its error (up to 12 of 30 stragglers)",
        lambda: np.array_equal(
            2 * worst_errors("`edge_graph`")[:4],
            worst_errors("`fractional_repetition`")[:4],
        ),
    ),
    Claim(
        CODES,
        "of a graph and this Reed–Solomon code are equal to it within the intervals",
        lambda: (
            is_equal_at_random("`edge_graph`", "`fractional_repetition`")
            and is_equal_at_random("`reed_solomon`", "`fractional_repetition`")
        ),
    ),
    Claim(
        DELAYS,
        "two copies in fractional repetition take a ninth less time",
        lambda: is_about(
            1
            - over_everyone(
                "one_slow_seconds", "`fractional_repetition` × 2, decodable"
            ),
            1 / 9,
        ),
    ),
    Claim(
        DELAYS,
        "On request, they take more than a third less",
        lambda: 1 - over_everyone("one_slow_seconds", EXACT_ON_REQUEST) > 1 / 3,
    ),
    Claim(
        DELAYS,
        "its quarter of the data for good, is twice as fast",
        lambda: is_about(
            over_everyone("one_slow_seconds", "`uncoded`, first 2", "time to target"),
            1 / 2,
        ),
    ),
    Claim(
        DELAYS,
        "descent is another fifth faster",
        lambda: is_about(
            1
            - cell(
                "time_one_slow_seconds", "time to target", "`uncoded`, first 2 + memory"
            )
            / cell("time_one_slow_seconds", "time to target", "`uncoded`, first 2"),
            1 / 5,
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
        "Fractional repetition is slower than waiting for all",
        lambda: planned_step("job_4", "`fractional_repetition`", "decodable") > 1,
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
        "still take twice the time of perfect division there",
        lambda: is_about(
            way("job_4", "on request × 2, by speed", "perfect division"), 2
        ),
    ),
    Claim(
        PLANNING,
        "It is faster than waiting for all in `job_4` alone",
        lambda: (
            [trace for trace in TRACES if way(trace, "proportional placement × 2") < 1]
            == ["job_4"]
        ),
    ),
    Claim(
        REPORTS,
        "With 300 rounds, all do",
        lambda: (
            cell("report_simulated", "named correctly", "chronic", "1.3", "300")
            == cell("report_simulated", "named correctly", "chronic", "1.1", "300")
            == 1
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
        THE_PAPER,
        "three of the counts by -15, +11 and +36",
        lambda: large_deviations() == [-15, 11, 36],
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
        WEIGHTS,
        "The error is still a third of the unweighted error",
        lambda: is_about(
            cell("weights_sources", "estimated twice", "10", "5")
            / cell("weights_sources", "unweighted", "10", "5"),
            1 / 3,
        ),
    ),
    Claim(
        WEIGHTS,
        "the paper's weights have a smaller excess everywhere",
        lambda: max(column("weights_fixed_step", "weighted, 5 steps")) < 1,
    ),
    Claim(
        WEIGHTS,
        "Without the longer step, they are behind in every row",
        lambda: min(column("weights_fixed_step", "weighted, unbiased, 50 steps")) > 1,
    ),
    Claim(
        WEIGHTS,
        "the bound is within a factor of three of the distance",
        # Of the samples with most draws.
        lambda: (
            max(column("weights_distance", "ε / (1 − ε) / distance, median")[-5:]) < 3
        ),
    ),
    Claim(
        WEIGHTS,
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
]
