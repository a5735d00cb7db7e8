"""Numbers in the sentences of README.md and the pages agree with stored results.

A number looks measured if it is a decimal, a percentage, "N times", or has a unit. The
test finds each such number in sentences and in tables that are written by hand, outside
of code, headings, targets of links and generated tables (those between `<!-- NAME -->`
and `<!-- end -->`, see docs/hooks/tables.py). It must be one of these:

1. A number of a generated table: of its section, or of the page if its section has no
   table. Numbers with one significant digit equal some cell by chance, so they have to
   be listed.
2. Listed in `QUOTED`, with the function that computes it from docs/results or from a
   constant of the code.
3. Listed in `PARAMETERS`, with the reason why it is not measured.
4. In a paragraph that names the command and the month in which it was measured.

`CLAIMS` has sentences that compare, or have their numbers in words or without a unit,
each with a function that says whether it holds.

The test does not find new sentences of the kind of `CLAIMS`, such as "half as fast",
"always" or "30 calls". It does not notice a number that equals another cell of the
tables of its section, or a reason in `PARAMETERS` that is wrong. It does not look at
pictures, at formulas besides powers of ten, and at docs/api and the mathematics.
"""

import functools
import json
import re
import tomllib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

import jaxwgc
from experiments.codes import equal_load
from experiments.delays import against_the_clock, straggler_reports, when_coding_pays
from experiments.paper import mnist
from experiments.ray import language_model
from jaxwgc.checks import _check_step
from jaxwgc.distributed import Timeouts
from jaxwgc.distributed.ray import _options, _part_worker, _response_limit
from jaxwgc.reports import _inputs, _kinds, _lost_time, _statistics
from jaxwgc.traces import _missing_at_end
from tests import prose_numbers
from tests.prose_numbers import PAGES, ROOT

CODES = "docs/codes.md"
DELAYS = "docs/delays.md"
GUARANTEES = "docs/cluster/guarantees.md"
MACHINES = "docs/cluster/several-machines.md"
MEASURED = "docs/cluster/measured.md"
OPTIONS = "docs/cluster/options.md"
PLANNING = "docs/planning.md"
REPORTS = "docs/which-worker-is-slow.md"
REPRODUCTION = "docs/reproduction/index.md"
THE_PAPER = "docs/reproduction/charalambides.md"
HALBAWI = "docs/reproduction/halbawi.md"
BENCHMARKS = "docs/reproduction/benchmarks.md"
SKETCHING = "docs/sketching.md"
SLOW = "docs/slow-workers.md"
STARTED = "docs/getting-started.md"
WEIGHTS = "docs/weights.md"
WRONG = "docs/wrong-answers.md"


class Quoted(NamedTuple):
    """A number of a page that follows from stored results or from the code.

    Attributes:
      page: Path of the page.
      text: Words of the page around the number, with this number alone.
      value: Computes the number, before it is rounded to the printed digits.
    """

    page: str
    text: str
    value: Callable[[], float]


class Parameter(NamedTuple):
    """A number of a page that was not measured by this project.

    Attributes:
      page: Path of the page.
      text: Words of the page around the number, with this number alone.
      reason: What the number is.
    """

    page: str
    text: str
    reason: str


class Claim(NamedTuple):
    """A sentence of a page that compares results.

    Attributes:
      page: Path of the page.
      text: Words of the sentence.
      holds: Returns whether the sentence agrees with the results.
    """

    page: str
    text: str
    holds: Callable[[], bool]


@functools.cache
def results(name):
    """Returns docs/results/NAME.json."""
    path = ROOT / "docs/results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def table(name):
    """Returns the rows of docs/results/NAME.md as dictionaries of text."""
    path = ROOT / "docs/results" / f"{name}.md"
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line[1:-1].split("|") for line in lines if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in row] for row in rows]
    return [dict(zip(header, row)) for row in body]


def number(text):
    """Returns the first number of a cell, such as 45.38 of "45.38 ± 0.01"."""
    return float(re.search(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?", text)[0].replace(",", ""))


def column(name, title):
    """Returns the numbers of a column, where it has some."""
    cells = [row[title] for row in table(name)]
    return np.array([number(cell) for cell in cells if re.search(r"\d", cell)])


def cell(name, title, row):
    """Returns a number of the row whose first cell is `row`."""
    [result] = [cells for cells in table(name) if next(iter(cells.values())) == row]
    return number(result[title])


EVERYONE = "`uncoded`, all"
EXACT_ON_REQUEST = "`replicated` × 2, decodable"
NEARLY_ALL_PARTS = "`replicated` × 2, error 10%"
EXACT_REPETITION = "`fractional_repetition` × 2, decodable"


def of_everyone(trace, row, title="step"):
    """Returns the time of a choice relative to that of waiting for all."""
    name = f"time_{trace}"
    return cell(name, title, row) / cell(name, title, EVERYONE)


def times_to_target(trace, words):
    """Returns times to the target relative to waiting for all, of some choices."""
    name = f"time_{trace}"
    chosen = [row for row in table(name) if words in row["code, waiting rule"]]
    times = np.array([number(row["time to target"]) for row in chosen])
    return times / cell(name, "time to target", EVERYONE)


SIMILAR_JOBS = ("job_1", "job_2", "job_3")


def of_similar_jobs(choice):
    """Returns relative times to the target in the jobs with similar workers."""
    return np.concatenate([times_to_target(job, choice) for job in SIMILAR_JOBS])


def of_codes_with_one_message():
    """Returns relative times to the target of codes with one message per worker."""
    return np.concatenate(
        [of_similar_jobs("fractional_repetition"), of_similar_jobs("any_placement")]
    )


def choices_of(trace):
    """Returns the choices of `python -m experiments time` for a trace."""
    return results("time")[trace]["choices"]


def loss_at_end(trace, waits_for):
    """Returns the last loss of an uncoded training, in percent."""
    [loss] = [
        choice["loss"]["mean"][-1]
        for choice in choices_of(trace)
        if choice["name"] == "uncoded" and choice["waits_for"] == waits_for
    ]
    return 100 * loss


def plateau_of_stale_gradients():
    """Returns the loss, in percent, that changes least between two times, in job_4."""
    [loss] = [
        np.array(choice["loss"]["mean"])
        for choice in choices_of("job_4")
        if choice["waits_for"] == "first 5 + late"
    ]
    before = loss[: np.argmax(loss < 0.05)]
    return 100 * before[1:][np.argmin(np.abs(np.diff(before)))]


STEADY_TRACES = ("uneven_seconds", "one_slow_seconds", "job_1", "job_2", "job_3")


def planned_over_measured(trace, quantity):
    """Returns planned times over those of the trainings, of all choices."""
    return np.array(
        [
            choice[f"planned_{quantity}"] / choice[quantity]["mean"]
            for choice in choices_of(trace)
        ]
    )


def median_of_planned_times():
    """Returns planned over measured times to the target, without job_4."""
    ratios = [planned_over_measured(trace, "time") for trace in STEADY_TRACES]
    return np.median(np.concatenate(ratios))


def largest_error_of_planned_steps(traces):
    """Returns the largest error of a planned time of a step, in percent."""
    ratios = np.concatenate([planned_over_measured(trace, "step") for trace in traces])
    return 100 * np.max(np.abs(1 / ratios - 1))


def largest_error_of_ratios(traces):
    """Returns the largest error of planned times over that of waiting for all."""
    ratios = [planned_over_measured(trace, "time") for trace in traces]
    relative = np.concatenate([ratio / ratio[0] for ratio in ratios])
    return 100 * np.max(np.abs(relative - 1))


# The delay model of the last panel of the figure of shares.
STALLING = list(when_coding_pays.LAWS)[-1]


def on_request(delays, numerator="request_2", denominator="all"):
    """Returns a ratio of two columns of `python -m experiments slow-workers`."""
    [row] = [
        row for row in results("slow_workers")["on_request"] if row["delays"] == delays
    ]
    return row["seconds"][numerator]["mean"] / row["seconds"][denominator]["mean"]


def fixed_share(delays):
    """Returns times by share and choice of `python -m experiments slow-workers`.

    The share is that of the time which does not depend on the load. Codes have the best
    number of copies.
    """
    times_by_share = {}
    for row in results("slow_workers")["fixed_share"]:
        if row["delays"] == delays:
            seconds = {name: own["mean"] for name, own in row["seconds"].items()}
            times_by_share[row["share"]] = {
                "all": seconds["all"],
                "code": min(seconds["code_2"], seconds["code_4"]),
                "request": min(seconds["request_2"], seconds["request_4"]),
                "first": seconds["first"],
            }
    return times_by_share


def serverless(choice):
    """Returns the time of a step of 256 cloud functions."""
    [times] = fixed_share("serverless").values()
    return times[choice]


def code_pays_from(delays):
    """Returns the least share from which codes are faster than waiting for all."""
    slower = [
        share
        for share, times in fixed_share(delays).items()
        if times["code"] >= times["all"]
    ]
    return min(
        share for share in fixed_share(delays) if share > max(slower, default=-1)
    )


def milliseconds(code, fault):
    """Returns the median time of a step of `python -m experiments cluster`."""
    return results("cluster")["summary"][code][fault]["milliseconds"]["median"]


def way_of_language_model(name):
    """Returns the record of a way of `python -m experiments language-model`."""
    [own] = [own for own in results("language_model")["ways"] if own["way"] == name]
    return own


def seconds_per_restart():
    """Returns the seconds of a restart, without those of repeated steps."""
    calm = way_of_language_model("no faults")
    own = way_of_language_model("restart from checkpoint")
    num_steps = results("language_model")["num_steps"]
    repeated = own["repeated"] * calm["seconds"] / num_steps
    return (own["seconds"] - calm["seconds"] - repeated) / own["restarts"]


def seconds_of_messages(num_bytes):
    """Returns seconds for 8 messages of GPT-2 XL at 10, 25 and 100 Gbit/s, rounded."""
    bits = 8 * 8 * num_bytes * 1.5e9
    return np.round(bits / (1e9 * np.array([10, 25, 100])))


NUM_COPIES = (2, 3, 5)
CALM_ON_REQUEST = [f"on request, {copies} copies" for copies in NUM_COPIES]


def added_on_request():
    """Returns milliseconds that a calm step on request adds, by copies."""
    base = milliseconds("uncoded, all", "calm")
    return np.array([milliseconds(code, "calm") - base for code in CALM_ON_REQUEST])


def ratios_on_request():
    """Returns calm steps on request relative to a step without a code, by copies."""
    base = milliseconds("uncoded, all", "calm")
    return np.array([milliseconds(code, "calm") / base for code in CALM_ON_REQUEST])


def slowdown_on_request(copies):
    """Returns a step with two slow workers relative to one without faults."""
    code = f"on request, {copies} copies"
    return milliseconds(code, "two slow") / milliseconds(code, "calm")


def overhead_with_empty_work(code):
    """Returns milliseconds that a step on request adds with empty work."""
    price = results("cluster")["price"]
    return price[code]["milliseconds"] - price["uncoded"]["milliseconds"]


def way(trace, name, relative_to="waiting for all"):
    """Returns the time of a way to act relative to another way."""
    ways = results("plan")["measured"]["traces"][trace]["halves"]["ways"]
    return ways[name] / ways[relative_to]


TRACES = (*STEADY_TRACES, "job_4")


def gains_on_request():
    """Returns by how much two copies shorten a step, in percent, by trace."""
    return [100 * (1 - way(trace, "on request × 2")) for trace in TRACES]


def planned_step(trace, choice_name, waits_for):
    """Returns the step of a choice on the planning page."""
    [step] = [
        choice["step_time"]["value"]
        for choice in results("plan")["measured"]["traces"][trace]["choices"]
        if (choice["name"], choice["waits_for"]) == (choice_name, waits_for)
    ]
    return step


def planned_ratio(trace, choice_name, waits_for):
    """Returns the step of a choice relative to waiting for all without a code."""
    step_time = planned_step(trace, choice_name, waits_for)
    return step_time / planned_step(trace, "uncoded", "all")


def text_of_report(trace):
    """Returns the report of a measured trace."""
    return results("report")["measured"][trace]["text"]


def in_report(trace, pattern):
    """Returns a number of the report of a trace."""
    return float(re.search(pattern, text_of_report(trace))[1])


def step_through_messages(name):
    """Returns milliseconds of a training step."""
    return 1000 * results("benchmark")["step"][name]["seconds"]


CORRECTED = "coded, corrupted messages corrected"
NOT_CORRECTED = "coded, every message formed and decoded"


def largest_harm_of_flips():
    """Returns the largest error of the gradient after a flipped bit."""
    runs = results("wrong_answers")["bits"]["codes"].values()
    return max(bit["harm"] for run in runs for bit in run["bits"])


def table_1_deviations(quantity):
    """Returns published minus fitted, in standard errors."""
    rows = [row for row in table("table1_fit") if row[""] == quantity]
    return np.array([number(row["deviation"]) for row in rows])


def table_1_errors():
    """Returns fitted errors minus published ones, in percentage points."""
    rows = [row for row in table("table1_fit") if row[""] == "error, %"]
    return np.array([number(row["fitted"]) - number(row["published"]) for row in rows])


def table_1_iterations():
    """Returns fitted iterations over published ones."""
    rows = [row for row in table("table1_fit") if row[""] == "iterations"]
    return np.array([number(row["fitted"]) / number(row["published"]) for row in rows])


def table_2_differences(compression):
    """Returns deviations from the published iterations, in percent."""
    rows = [row for row in table("table2") if row["ρ"] == compression]
    return np.abs([number(row["difference"]) for row in rows])


def seconds_of_solver(solver):
    """Returns the median time of a solver at a condition number of 1e8."""
    return cell("sketching_solvers_ill", "seconds", solver)


def rough_solutions(title):
    """Returns a column of the solvers with sketches of 16 p rows."""
    rows = [row for row in table("sketching_solvers_ill") if "16p" in row["solver"]]
    return np.array([number(row[title]) for row in rows])


def exact_scores_over_products():
    """Returns the time of exact scores relative to two matrix products."""
    dense = [
        row["seconds"]["jaxwgc"] / row["seconds"]["two_products"]
        for row in results("benchmark")["leverage_scores"]
    ]
    wide = [
        row["seconds"]["exact"] / row["seconds"]["two_products"]
        for row in results("benchmark")["approximate_scores"]
    ]
    return np.array(dense + wide)


def backward_errors_of_preconditioned(name):
    """Returns the worst backward errors of a table, in machine epsilons."""
    rows = table(name)
    return [number(row["worst"]) for row in rows if "preconditioned`" in row["method"]]


def unequal_noise(rows, title):
    """Returns a column for noise that differs by a factor of ten, by rows a source."""
    [row] = [
        row
        for row in table("weights_sources")
        if (row["σ max / min"], row["rows"]) == ("10", rows)
    ]
    return number(row[title])


def estimated_weights_over_oracle():
    """Returns errors relative to the oracle, from 20 rows per source on, in percent."""
    ratios = [
        unequal_noise(rows, "estimated twice") for rows in ("20", "50", "100", "200")
    ]
    return 100 * (np.array(ratios) - 1)


def gain_of_leverage():
    """Returns by how much uniform parts are worse if scores are nearly even."""
    rows = [
        row for row in table("weights_best_step") if number(row["spread of Π"]) <= 1 / 3
    ]
    return 100 * (max(number(row["uniform"]) for row in rows) - 1)


def gains_of_new_samples():
    """Returns the excess of one sample over that of new samples."""
    name = "weights_best_step"
    new = [column(name, "block leverage"), column(name, "block uniform")]
    return 1 / np.concatenate(new)


def on_request_over_published():
    """Returns times of parts on request over those of block coordinate coding."""
    on_request_times = np.array(column("slow_workers_blocks", "on request ×6"))
    return on_request_times / column("slow_workers_blocks", "published optimum")


def chronic_workers_named(slowdown, num_rounds):
    """Returns the share of traces that name a chronic straggler, in percent."""
    [row] = [
        row
        for row in table("report_simulated")
        if row["straggler"] == "chronic"
        and row["slowdown"] == slowdown
        and row["rounds"] == num_rounds
    ]
    return number(row["named correctly"])


def probability_of_three_stalls():
    """Returns the share of traces of 30 rounds with at least 3 stalls, in percent."""
    num_rounds = 30
    stall = straggler_reports.STALLED
    fewer = (1 - stall) ** num_rounds
    fewer += num_rounds * stall * (1 - stall) ** (num_rounds - 1)
    pairs = num_rounds * (num_rounds - 1) / 2
    fewer += pairs * stall**2 * (1 - stall) ** (num_rounds - 2)
    return 100 * (1 - fewer)


def worst_residual(code):
    """Returns the worst residual that any of the searches finds."""
    [row] = [
        row for row in results("benchmark")["worst_patterns"] if row["code"] == code
    ]
    return max(row[key] for key in ("random", "strides", "neighbours", "search"))


def excess_of_uniform_labels():
    """Returns the excess of uniform rows over that of rows by scores, on MNIST."""
    rows = [row for row in table("sketching_active") if "MNIST" in row["data"]]
    return [number(row["uniform / leverage"]) for row in rows]


def rows_saved_by_pivotal_sampling():
    """Returns shares of rows, in percent, that independent samples take beyond it."""
    return column("sketching_pivotal_rows", "saved against Poisson")


def random_errors(code):
    """Returns mean errors at random stragglers, in percent, by their number."""
    [row] = [row for row in table("codes_equal_load_random") if row["code"] == code]
    cells = [cell for title, cell in row.items() if title.startswith("s =")]
    return np.array([number(cell) if "seen" not in cell else 0.0 for cell in cells])


def half_widths_of_random_errors(code):
    """Returns half widths of the intervals of `random_errors`."""
    [row] = [row for row in table("codes_equal_load_random") if row["code"] == code]
    cells = [cell for title, cell in row.items() if title.startswith("s =")]
    return np.array([number(cell.partition("±")[2] or "0") for cell in cells])


def is_equal_at_random(code, other):
    """Returns whether the intervals of two codes overlap for all straggler numbers."""
    distance = np.abs(random_errors(code) - random_errors(other))
    reach = half_widths_of_random_errors(code) + half_widths_of_random_errors(other)
    return bool(np.all(distance <= reach))


def worst_errors(code, numbers):
    """Returns errors against an adversary, in percent, for numbers of stragglers."""
    [row] = [
        row for row in table("codes_equal_load_adversarial") if row["code"] == code
    ]
    return np.array([number(row[f"s = {stragglers}"]) for stragglers in numbers])


EXACT_CODES = (
    "`fractional_repetition`",
    "`binary`",
    "`cyclic_repetition`",
    "`reed_solomon`",
    "`communication_efficient`",
    "`clustered`",
    "`any_placement`",
)
# Numbers of stragglers beyond the tolerance of all of these codes.
BEYOND = (6, 8, 10, 12, 15)


def is_best_exact_code_under_attack(code):
    """Returns whether a code has the least worst error of the exact codes."""
    errors = worst_errors(code, BEYOND)
    return all(np.all(errors < worst_errors(other, BEYOND)) for other in EXACT_CODES)


def is_decoded_to(residual, *shares):
    """Returns whether codes with k = n and d / n in `shares` reach a residual."""
    worst = [
        worst_residual(row["code"])
        for row in results("benchmark")["worst_patterns"]
        if row["code"][0] == row["code"][1]
        and row["code"][2] / row["code"][0] in shares
    ]
    return max(worst) < residual


def is_about(value, fraction):
    """Returns whether a fraction in words is right to a tenth of itself."""
    return abs(value / fraction - 1) <= 0.1


def goals_of(trace):
    """Returns the chosen codes of the default goal, by the half that chose them."""
    halves = results("plan")["measured"]["traces"][trace]["halves"]
    return halves["goals"]["default goal"]


def num_traces_with_stale_gradients(half):
    """Returns in how many traces a half chooses stale gradients."""
    return sum("late" in goals_of(trace)[half]["choice"] for trace in TRACES)


def plan_time(trace, choice_name, waits_for):
    """Returns the planned time to the goal relative to waiting for all."""
    choices = results("plan")["measured"]["traces"][trace]["choices"]
    times = {
        (choice["name"], choice["waits_for"]): choice["time"]["value"]
        for choice in choices
    }
    return times[choice_name, waits_for] / times["uncoded", "all"]


def bound_over_distance(num_large):
    """Returns the bound over the distance of the samples with most draws."""
    return column("weights_distance", "ε / (1 − ε) / distance, median")[-num_large:]


def cell_of(name, title, conditions):
    """Returns a number of the row whose cells contain the given words.

    Args:
      name: Name of the table.
      title: Title of the column.
      conditions: Words that the cell of a column contains, by title.
    """
    [row] = [
        row
        for row in table(name)
        if all(words in row[own] for own, words in conditions.items())
    ]
    return number(row[title])


def seconds_of_influence(way):
    """Returns the time of regression diagnostics of 1,000,000 rows in float32."""
    conditions = {"size": "float32", "way": way}
    return cell_of("benchmark_influence", "seconds", conditions)


def seconds_of_sparse_solver(matrix, solver):
    """Returns the time of a solver of sparse least squares."""
    conditions = {"matrix": matrix, "solver": solver}
    return cell_of("benchmark_sparse_least_squares", "seconds", conditions)


def of_sketched_directions(title, way="block, float32"):
    """Returns a number of the table of scores in the leading directions."""
    return cell_of("benchmark_rank_k_scores", title, {"way": way})


def logistic(row, title):
    """Returns a number of the table of logistic regression."""
    return cell("sketching_logistic", title, f"`logistic_newton_sketch`, {row}")


def results_text(name):
    """Returns docs/results/NAME.md."""
    return (ROOT / "docs/results" / f"{name}.md").read_text(encoding="utf-8")


def seconds_until_back(beside):
    """Returns the median seconds until a lost worker is back."""
    return cell("benchmark_recovery", "back after, median", beside)


def step_on_mesh(step):
    """Returns the time of a step on a mesh relative to that of an uncoded step."""
    return cell("benchmark_mesh", "relative to the plain step", step)


def measured_over_bound(loads):
    """Returns steps relative to the bound, for 1 and 2 copies with these loads."""
    return [
        cell("cluster_placement", "measured / bound", f"{copies}, {loads}")
        for copies in ("1 copy", "2 copies")
    ]


def gigabytes_of_gradients(num_gradients):
    """Returns the size of gradients of GPT-2 XL in float32."""
    return 4 * 1.5 * num_gradients


def error_of_third_worker(resampled):
    """Returns the error, in percent, at the 90% quantile of the third worker."""
    [row] = [
        row
        for row in table("delays_one_slow_seconds_fastest")
        if (row["f"], row["quantile"]) == ("3", "90%")
    ]
    return number(row[resampled])


def sorted_digits(choice):
    """Returns the time to the target of a choice if parts are sorted by digit."""
    return cell("time_one_slow_seconds_sorted", "time to target", choice)


def megabytes_read(code, title):
    """Returns the megabytes that are read per step with 1,000 workers."""
    [row] = [
        row
        for row in table("benchmark_scale")
        if (row["code"], row["workers"]) == (code, "1,000")
    ]
    return number(row[title])


def default_of_goal(name):
    """Returns the default value of an attribute of `planning.Goal`."""
    return getattr(jaxwgc.planning.Goal(), name)


QUOTED = [
    Quoted(
        "docs/if-something-looks-wrong.md",
        "by less than 2% agree",
        lambda: 100 * _check_step.TOLERANCE,
    ),
    Quoted("README.md", "a round takes 0.93", lambda: on_request("`uneven_seconds`")),
    Quoted(
        "README.md",
        "and 0.63 times as long as waiting",
        lambda: on_request("`one_slow_seconds`"),
    ),
    Quoted("README.md", "step takes 1.05 instead", lambda: serverless("code")),
    Quoted("README.md", "instead of 23.9 seconds", lambda: serverless("all")),
    Quoted(
        "README.md",
        "instead of 220 seconds",
        lambda: way_of_language_model("restart from checkpoint")["seconds"],
    ),
    Quoted(
        OPTIONS, "after 10 times the slowest recent", lambda: _response_limit._MULTIPLE
    ),
    Quoted(OPTIONS, "at least 2 and at", lambda: _options.SHORTEST_ANSWER_SECONDS),
    Quoted(OPTIONS, "at most 60 seconds", lambda: _response_limit._CEILING_SECONDS),
    Quoted(OPTIONS, "are the last 20 of each", lambda: _response_limit._NUM_RECENT),
    Quoted(
        OPTIONS,
        "without a response so far has 60 seconds",
        lambda: _response_limit._CEILING_SECONDS,
    ),
    Quoted(OPTIONS, "it has responded 20 times", lambda: _response_limit._NUM_RECENT),
    Quoted(
        OPTIONS, "of more than 60 seconds", lambda: _response_limit._CEILING_SECONDS
    ),
    Quoted(OPTIONS, "60 seconds by default", lambda: Timeouts().replacement),
    Quoted(
        OPTIONS,
        "ready within 50 milliseconds",
        lambda: 1000 * _part_worker.HOLD_SECONDS,
    ),
    Quoted(
        GUARANTEES,
        "`timeouts.answer` (at least 2 s)",
        lambda: _options.SHORTEST_ANSWER_SECONDS,
    ),
    Quoted(
        MEASURED,
        "a step of 210 milliseconds",
        lambda: milliseconds("uncoded, all", "calm"),
    ),
    Quoted(MEASURED, "sleeps for 0.1 seconds", lambda: language_model.SECONDS_PER_PART),
    Quoted(MEASURED, "lost after 3 seconds", lambda: language_model.RESPONSE_SECONDS),
    Quoted(MEASURED, "takes 27 to", lambda: min(added_on_request())),
    Quoted(MEASURED, "to 30 milliseconds more", lambda: max(added_on_request())),
    Quoted(MEASURED, "without a code (1.13", lambda: min(ratios_on_request())),
    Quoted(MEASURED, "to 1.14 times)", lambda: max(ratios_on_request())),
    Quoted(MEASURED, "takes 1.8 times as long", lambda: slowdown_on_request(2)),
    Quoted(MEASURED, "share this work: 1.4 times", lambda: slowdown_on_request(3)),
    Quoted(
        MEASURED,
        "two copies add 154 milliseconds",
        lambda: overhead_with_empty_work("on request, 2 copies"),
    ),
    Quoted(
        MEASURED,
        "| 2.2e-06 |",
        lambda: cell("chaos", "value", "largest relative error"),
    ),
    Quoted(
        MEASURED,
        "| 0.788 s",
        lambda: cell("chaos", "value", "seconds per step, longest"),
    ),
    Quoted(
        MEASURED,
        "| 5.2e-06 |",
        lambda: cell("chaos_on_request", "value", "largest relative error"),
    ),
    Quoted(
        MEASURED,
        "| 3.846 s",
        lambda: cell("chaos_on_request", "value", "seconds per step, longest"),
    ),
    Quoted(MEASURED, "a spare process | 0.3", lambda: seconds_until_back("idle")),
    Quoted(MEASURED, "0.3 |", lambda: seconds_until_back("one busy process")),
    Quoted(
        MEASURED,
        "| without | 3.1",
        lambda: seconds_until_back("idle, without a spare process"),
    ),
    Quoted(
        MEASURED,
        "| 4.7 |",
        lambda: seconds_until_back("one busy process, without a spare process"),
    ),
    Quoted(
        MEASURED,
        "34.7 ms, as long",
        lambda: cell("benchmark_coordinator_peers", "RayCluster", "1,000,000"),
    ),
    Quoted(
        MEASURED,
        "(34.6 ms)",
        lambda: cell("benchmark_coordinator_peers", "plain Ray", "1,000,000"),
    ),
    Quoted(
        MEASURED,
        "9.1 ms with shared",
        lambda: cell("benchmark_coordinator_peers", "shared memory", "1,000,000"),
    ),
    Quoted(
        MEASURED,
        "1.04 s in float",
        lambda: cell("benchmark_large_messages", "seconds", "float32"),
    ),
    Quoted(
        MEASURED,
        "0.84 s with messages",
        lambda: cell("benchmark_large_messages", "seconds", "bfloat16"),
    ),
    Quoted(
        MEASURED,
        "fractional repetition 0.97",
        lambda: step_on_mesh("fractional repetition"),
    ),
    Quoted(MEASURED, "cyclic MDS 1.02", lambda: step_on_mesh("cyclic MDS")),
    Quoted(
        MACHINES,
        "a step takes 1.51",
        lambda: min(measured_over_bound("alike")),
    ),
    Quoted(
        MACHINES,
        "to 1.53 times as long",
        lambda: max(measured_over_bound("alike")),
    ),
    Quoted(
        MACHINES,
        "loads by speed 1.01",
        lambda: min(measured_over_bound("by speed")),
    ),
    Quoted(
        MACHINES,
        "to 1.03 times.",
        lambda: max(measured_over_bound("by speed")),
    ),
    Quoted(MACHINES, "48 GB travel", lambda: gigabytes_of_gradients(8)),
    Quoted(MACHINES, "(60 GB)", lambda: gigabytes_of_gradients(2 + 8)),
    Quoted(MACHINES, "(36 GB)", lambda: gigabytes_of_gradients(6)),
    Quoted(
        CODES,
        "entries have [21%",
        lambda: min(column("codes_learned", "reduction, paired")),
    ),
    Quoted(
        CODES,
        "to 31% less error",
        lambda: max(column("codes_learned", "reduction, paired")),
    ),
    Quoted(CODES, "a probability of 0.2", lambda: equal_load.PROBABILITY),
    Quoted(
        DELAYS,
        "It trains 20 times",
        lambda: number(results("time")["command"].partition("--runs")[2]),
    ),
    Quoted(
        DELAYS,
        "in at least [97% of",
        lambda: min(column("delays_known", "first, unequal speeds")),
    ),
    Quoted(DELAYS, "until 1% of the loss", lambda: 100 * against_the_clock.TARGET),
    Quoted(
        DELAYS,
        "at least 1.6 times as long",
        lambda: min(times_to_target("uneven_seconds", "fractional_repetition")),
    ),
    Quoted(
        DELAYS,
        "two copies take 0.92 of it",
        lambda: of_everyone("uneven_seconds", EXACT_ON_REQUEST),
    ),
    Quoted(
        DELAYS,
        "0.75 at nine tenths of the parts",
        lambda: of_everyone("uneven_seconds", NEARLY_ALL_PARTS),
    ),
    Quoted(
        DELAYS,
        "takes 45% less",
        lambda: 100 - 100 * of_everyone("one_slow_seconds", "`uncoded by speed`, all"),
    ),
    Quoted(
        DELAYS,
        "then stays at 0.3%",
        lambda: loss_at_end("one_slow_seconds", "first 2"),
    ),
    Quoted(DELAYS, "then stays at 0.4%", lambda: loss_at_end("job_4", "first 5")),
    Quoted(DELAYS, "stays at 6% until", plateau_of_stale_gradients),
    Quoted(
        DELAYS,
        "on request take 0.84",
        lambda: min(of_similar_jobs("error 10%")),
    ),
    Quoted(
        DELAYS,
        "to 0.86 of the time",
        lambda: max(of_similar_jobs("error 10%")),
    ),
    Quoted(
        DELAYS,
        "Stale gradients take 0.82",
        lambda: min(of_similar_jobs("+ late")),
    ),
    Quoted(DELAYS, "to 0.90, and codes", lambda: max(of_similar_jobs("+ late"))),
    Quoted(
        DELAYS,
        "one message per worker 1.8",
        lambda: min(of_codes_with_one_message()),
    ),
    Quoted(
        DELAYS,
        "to 1.9 times as long. The",
        lambda: max(of_codes_with_one_message()),
    ),
    Quoted(
        DELAYS,
        "step are accurate to 3%",
        lambda: largest_error_of_planned_steps(STEADY_TRACES[:-1]),
    ),
    Quoted(
        DELAYS,
        "are accurate to 8%",
        lambda: largest_error_of_planned_steps(["job_3"]),
    ),
    Quoted(DELAYS, "about 3.4 times as long", median_of_planned_times),
    Quoted(
        DELAYS,
        "are accurate to 12%",
        lambda: largest_error_of_ratios(STEADY_TRACES),
    ),
    Quoted(
        DELAYS,
        "four workers by 122%",
        lambda: error_of_third_worker("cells"),
    ),
    Quoted(
        DELAYS,
        "resampled rounds by 0.3%",
        lambda: abs(error_of_third_worker("rounds")),
    ),
    Quoted(
        SLOW,
        "a step of 210 milliseconds",
        lambda: milliseconds("uncoded, all", "calm"),
    ),
    Quoted(
        SLOW,
        "takes [238 on",
        lambda: milliseconds("on request, 2 copies", "calm"),
    ),
    Quoted(SLOW, "share of 0.2 with", lambda: code_pays_from("1 + Exp(1)")),
    Quoted(SLOW, "from 0.9 with", lambda: code_pays_from("spread of a tenth")),
    Quoted(SLOW, "The first 90% of", lambda: 100 * when_coding_pays.RESPONSES),
    Quoted(SLOW, "the first 90% of", lambda: 100 * when_coding_pays.RESPONSES),
    Quoted(
        SLOW,
        "and 0.15 seconds more for the whole",
        lambda: 256 * when_coding_pays.SERVERLESS_SLOPE,
    ),
    Quoted(SLOW, "A call takes 1 second", lambda: when_coding_pays.SERVERLESS_OVERHEAD),
    Quoted(SLOW, "spread of 0.1, and", lambda: when_coding_pays.SPREAD),
    Quoted(
        SLOW,
        "and 0.75% of the responses",
        lambda: 100 * when_coding_pays.STALL_PROBABILITY,
    ),
    Quoted(SLOW, "stall for 25 seconds", lambda: when_coding_pays.STALL_TIME),
    Quoted(SLOW, "takes 23.9 seconds", lambda: serverless("all")),
    Quoted(SLOW, "copies 1.05, parts", lambda: serverless("code")),
    Quoted(SLOW, "parts on request 1.08", lambda: serverless("request")),
    Quoted(SLOW, "of the workers 1.14", lambda: serverless("first")),
    Quoted(SLOW, "on request take 0.78", lambda: min(on_request_over_published())),
    Quoted(SLOW, "to 0.83 of [its", lambda: max(on_request_over_published())),
    Quoted(
        SLOW,
        "take 0.97",
        lambda: min(column("cluster_busy", 'late="busy"')),
    ),
    Quoted(
        SLOW,
        "to 1.02 of the measured",
        lambda: max(column("cluster_busy", 'late="busy"')),
    ),
    Quoted(
        SLOW,
        "takes 42 ms without",
        lambda: cell("cluster_price", "ms per step", "uncoded"),
    ),
    Quoted(
        SLOW,
        "takes 161 ms with",
        lambda: cell("cluster_price", "ms per step", "on request, 1 copy"),
    ),
    Quoted(
        SLOW,
        "and 196 ms with",
        lambda: cell("cluster_price", "ms per step", "on request, 2 copies"),
    ),
    Quoted(
        PLANNING,
        "on average 1.3 times as long",
        lambda: in_report("uneven_seconds", r"a round takes ([\d.]+)\s+times"),
    ),
    Quoted(
        PLANNING,
        "takes 0.55 of that time",
        lambda: planned_ratio("one_slow_seconds", "uncoded by speed", "all"),
    ),
    Quoted(
        PLANNING,
        "makes steps 2.5 times as fast",
        lambda: 1 / planned_ratio("job_4", "uncoded by speed", "all"),
    ),
    Quoted(
        PLANNING,
        "which costs 12% at the default",
        lambda: cell("plan_ways", "`job_3`", "regret, %: default goal"),
    ),
    Quoted(
        PLANNING,
        "It takes 0.55 of the time",
        lambda: way("one_slow_seconds", "work in proportion to speed"),
    ),
    Quoted(
        PLANNING,
        "and 0.47 in `job_4`",
        lambda: way("job_4", "work in proportion to speed"),
    ),
    Quoted(PLANNING, "gain up to 37% over", lambda: max(gains_on_request())),
    Quoted(
        PLANNING,
        "another 10% over loads by speed",
        lambda: (
            100
            - 100
            * way("job_4", "on request × 2, by speed", "work in proportion to speed")
        ),
    ),
    Quoted(
        PLANNING,
        "worst case it takes 24% longer",
        lambda: cell("plan_simulated", "least regret: worst", "all"),
    ),
    Quoted(
        PLANNING,
        "`Goal(target=…)` (0.01 by default)",
        lambda: default_of_goal("target"),
    ),
    Quoted(PLANNING, "`Goal(condition=…)` (100)", lambda: default_of_goal("condition")),
    Quoted(
        PLANNING,
        "`Goal(heterogeneity=…)` (0.1)",
        lambda: default_of_goal("heterogeneity"),
    ),
    Quoted(REPORTS, "at least 95% of the rounds", lambda: 100 * _inputs._NEARLY_ALL),
    Quoted(REPORTS, "within 2% of", lambda: 100 * _inputs._RANGE_OF_JITTER),
    Quoted(REPORTS, "within 8%, if", lambda: 100 * _inputs._RANGE_IN_TURNS),
    Quoted(
        REPORTS,
        "within 12%, if",
        lambda: 100 * _inputs._RANGE_IN_UNEQUAL_ROUNDS,
    ),
    Quoted(
        REPORTS,
        "up to 5 ms of jitter",
        lambda: 1000 * straggler_reports.BARRIER_JITTER_SECONDS,
    ),
    Quoted(
        REPORTS,
        "It is only 9% slower",
        lambda: 100 * in_report("job_2", r"chronic +([\d.]+)") - 100,
    ),
    Quoted(
        PLANNING,
        "probability of at least 0.1%",
        lambda: 100 * _missing_at_end._STOPPED_BY_CHANCE,
    ),
    Quoted(
        REPORTS,
        "at least 5% slower",
        lambda: 100 * np.expm1(_statistics.MARGIN),
    ),
    Quoted(
        REPORTS,
        "at least 5% faster",
        lambda: 100 * np.expm1(_statistics.MARGIN),
    ),
    Quoted(
        REPORTS,
        "One round takes 77% of",
        lambda: number(
            re.search(r"One round takes (\d+)", results_text("report_one_stall"))[1]
        ),
    ),
    Quoted(
        REPORTS,
        "workers takes 4.3 seconds",
        lambda: cell("report_speed", "seconds", "1,000,000"),
    ),
    Quoted(REPORTS, "at most 1% of the rounds", lambda: 100 * _lost_time._FEW_ROUNDS),
    Quoted(REPORTS, "logarithm of 1.05", lambda: np.exp(_statistics.MARGIN)),
    Quoted(REPORTS, "more than 1.5 times", lambda: np.exp(_kinds._STALL)),
    Quoted(
        REPORTS,
        "probability of at most 5%",
        lambda: 100 * _statistics.FALSE_ALARMS,
    ),
    Quoted(
        REPORTS,
        "(up to 46.3%): a spell",
        lambda: max(column("report_alarms", "30 rounds of 10")),
    ),
    Quoted(REPORTS, "and of 0.8 with", lambda: straggler_reports.CORRELATIONS[-1]),
    Quoted(
        REPORTS,
        "with a stall in 5% of them",
        lambda: 100 * straggler_reports.STALLED,
    ),
    Quoted(REPORTS, "of them, 19% have", probability_of_three_stalls),
    Quoted(REPORTS, "99.9% name", lambda: chronic_workers_named("1.3", "30")),
    Quoted(REPORTS, "34.6% one", lambda: chronic_workers_named("1.1", "30")),
    Quoted(
        THE_PAPER,
        "the published errors (7",
        lambda: min(run["error"] for run in mnist.PUBLISHED.values()),
    ),
    Quoted(
        THE_PAPER,
        "to 9%) to within",
        lambda: max(run["error"] for run in mnist.PUBLISHED.values()),
    ),
    Quoted(
        THE_PAPER,
        "uncompressed 4.37%",
        lambda: mnist.PUBLISHED_UNCOMPRESSED_ERROR,
    ),
    Quoted(
        THE_PAPER,
        "its published 4.37%",
        lambda: mnist.PUBLISHED_UNCOMPRESSED_ERROR,
    ),
    Quoted(
        THE_PAPER,
        "the weights save 0.45",
        lambda: cell("table1_weights", "paper", "4"),
    ),
    Quoted(
        THE_PAPER,
        "± 0.05 points instead",
        lambda: number(table("table1_weights")[0]["paper"].partition("±")[2]),
    ),
    Quoted(
        THE_PAPER,
        "points instead of 1.99",
        lambda: mnist.PUBLISHED_SAVING["rho=4"],
    ),
    Quoted(THE_PAPER, ", 0.5,", lambda: mnist.STEP_SIZES[1]),
    Quoted(THE_PAPER, ", 0.2,", lambda: mnist.STEP_SIZES[2]),
    Quoted(
        THE_PAPER,
        "come near 5%",
        lambda: np.median(column("table1", "unbiased")),
    ),
    Quoted(
        THE_PAPER,
        "by up to 3.4% at",
        lambda: max(table_2_differences("2")),
    ),
    Quoted(
        THE_PAPER,
        "and by 5.9% at",
        lambda: max(table_2_differences("4")),
    ),
    Quoted(
        THE_PAPER,
        "errors deviate by up to 5,",
        lambda: np.max(np.abs(table_1_deviations("error, %"))),
    ),
    Quoted(
        THE_PAPER,
        "step 0.00063",
        lambda: results("table1")["rules"]["paper"]["step_size"],
    ),
    Quoted(
        THE_PAPER,
        "threshold 142",
        lambda: results("table1")["rules"]["paper"]["stop_norm"],
    ),
    Quoted(
        THE_PAPER,
        r"are $2.7 \cdot 10^{-6}$",
        lambda: 1e-6 * cell("table2_errors", "weighted", "2"),
    ),
    Quoted(
        THE_PAPER,
        r"$7.2 \cdot 10^{-6}$",
        lambda: 1e-6 * cell("table2_errors", "weighted", "4"),
    ),
    Quoted(
        BENCHMARKS,
        "masks is 49",
        lambda: min(column("benchmark_decoding", "lstsq / complex64")),
    ),
    Quoted(
        BENCHMARKS,
        "to 1,221 times",
        lambda: max(column("benchmark_decoding", "lstsq / complex64")),
    ),
    Quoted(
        BENCHMARKS,
        "a batch is 18",
        lambda: min(column("benchmark_least_squares", "lstsq / float32")),
    ),
    Quoted(
        BENCHMARKS,
        "to 29 times",
        lambda: max(column("benchmark_least_squares", "lstsq / float32")),
    ),
    Quoted(
        BENCHMARKS,
        "descent take 13.9 seconds",
        lambda: results("benchmark")["trials"][0]["seconds"],
    ),
    Quoted(
        BENCHMARKS,
        "and 0.39 GiB",
        lambda: results("benchmark")["trials"][0]["peak"],
    ),
    Quoted(
        BENCHMARKS,
        "takes 4.76 seconds",
        lambda: results("benchmark")["comparison"][0]["first"],
    ),
    Quoted(
        BENCHMARKS,
        "takes 9.76 seconds",
        lambda: results("benchmark")["comparison"][0]["numpy"],
    ),
    Quoted(
        BENCHMARKS,
        "leverage scores take 0.7",
        lambda: cell(
            "benchmark_first_calls", "seconds / lstsq", "`sketching.leverage_scores`"
        ),
    ),
    Quoted(
        BENCHMARKS,
        "a coded step 2.7",
        lambda: cell("benchmark_first_calls", "seconds / lstsq", "`README step`"),
    ),
    Quoted(
        BENCHMARKS,
        "Newton sketch 2.8",
        lambda: cell(
            "benchmark_first_calls",
            "seconds / lstsq",
            "`sketching.logistic_newton_sketch`",
        ),
    ),
    Quoted(
        SKETCHING,
        "It takes 0.69 seconds",
        lambda: seconds_of_solver('`preconditioned` "gram"'),
    ),
    Quoted(
        SKETCHING,
        "and 0.96 seconds",
        lambda: seconds_of_solver('`preconditioned` "sketch"'),
    ),
    Quoted(SKETCHING, "LAPACK takes 0.66", lambda: seconds_of_solver("numpy `lstsq`")),
    Quoted(SKETCHING, "and 0.82 to", lambda: seconds_of_solver("scipy `lstsq`, gelsy")),
    Quoted(
        SKETCHING,
        "to 0.85 in SciPy",
        lambda: seconds_of_solver("scipy `lstsq`, gelsd"),
    ),
    Quoted(SKETCHING, "takes 0.10", lambda: min(rough_solutions("seconds"))),
    Quoted(SKETCHING, "to 0.23 seconds", lambda: max(rough_solutions("seconds"))),
    Quoted(SKETCHING, "that is 3%", lambda: 100 * min(rough_solutions("excess"))),
    Quoted(SKETCHING, "to 4% too large", lambda: 100 * max(rough_solutions("excess"))),
    Quoted(
        SKETCHING,
        "backward error is [2.1 eps]",
        lambda: max(backward_errors_of_preconditioned("stability_difficulty")),
    ),
    Quoted(
        SKETCHING,
        "and [4.1 eps](results/stability_grid.md)",
        lambda: max(backward_errors_of_preconditioned("stability_grid")),
    ),
    Quoted(
        SKETCHING,
        "it takes 0.79 seconds",
        lambda: seconds_of_influence("`influence`"),
    ),
    Quoted(
        SKETCHING,
        "without DFFITS, [12.5]",
        lambda: seconds_of_influence("statsmodels"),
    ),
    Quoted(
        SKETCHING,
        "It takes 0.151 seconds",
        lambda: seconds_of_sparse_solver("one-hot", "columns"),
    ),
    Quoted(
        SKETCHING,
        "SciPy's `lsmr` 2.66",
        lambda: seconds_of_sparse_solver("one-hot", "lsmr"),
    ),
    Quoted(
        SKETCHING,
        "but 0.346 and",
        lambda: seconds_of_sparse_solver("random", "columns"),
    ),
    Quoted(
        SKETCHING,
        "0.0949 for [random entries]",
        lambda: seconds_of_sparse_solver("random", "lsmr"),
    ),
    Quoted(
        SKETCHING,
        "memory map of 12.0 GiB",
        lambda: max(column("benchmark_memory_map", "file, GiB")),
    ),
    Quoted(
        SKETCHING,
        "needs 909 MiB",
        lambda: max(column("benchmark_memory_map", "peak of the process, MiB")),
    ),
    Quoted(
        SKETCHING,
        "is a factor of 3.0",
        lambda: min(column("benchmark_approximate_scores", "exact / approximate")),
    ),
    Quoted(
        SKETCHING,
        "to 6.4.",
        lambda: max(column("benchmark_approximate_scores", "exact / approximate")),
    ),
    Quoted(
        SKETCHING,
        "At least 99.50% of them",
        lambda: min(column("benchmark_approximate_scores", "within 1 ± epsilon")),
    ),
    Quoted(SKETCHING, "take 5.0 seconds", lambda: of_sketched_directions("seconds")),
    Quoted(
        SKETCHING,
        "worst error of 4.68%",
        lambda: of_sketched_directions("worst error, percent"),
    ),
    Quoted(
        SKETCHING,
        "`svds` takes 15.6 seconds",
        lambda: of_sketched_directions("seconds", way="svds, float32"),
    ),
    Quoted(SKETCHING, "scores take 0.8", lambda: min(exact_scores_over_products())),
    Quoted(
        SKETCHING,
        "to 2.1 times as long",
        lambda: max(exact_scores_over_products()),
    ),
    Quoted(SKETCHING, "uniform rows is 2.3", lambda: min(excess_of_uniform_labels())),
    Quoted(SKETCHING, "to 4.7 times that", lambda: max(excess_of_uniform_labels())),
    Quoted(SKETCHING, "need [32% to", lambda: min(rows_saved_by_pivotal_sampling())),
    Quoted(SKETCHING, "54% fewer", lambda: max(rows_saved_by_pivotal_sampling())),
    Quoted(
        WEIGHTS,
        "estimation: 3% at",
        lambda: 100 * cell("weights_sources", "estimated twice", "1") - 100,
    ),
    Quoted(
        WEIGHTS,
        "weights have 1.4 times",
        lambda: unequal_noise("5", "estimated twice"),
    ),
    Quoted(WEIGHTS, "at most 13% if", gain_of_leverage),
    Quoted(WEIGHTS, "one sample is 8", lambda: min(gains_of_new_samples())),
    Quoted(WEIGHTS, "to 200 times that", lambda: max(gains_of_new_samples())),
    Quoted(WRONG, r"at most $1.2 \cdot 10^{-5}$ of its norm", largest_harm_of_flips),
    Quoted(
        WRONG,
        "through messages takes 56.0 ms",
        lambda: step_through_messages(CORRECTED),
    ),
    Quoted(WRONG, "and 42.0 ms without", lambda: step_through_messages(NOT_CORRECTED)),
    Quoted(
        WRONG,
        "a factor of 1.33",
        lambda: step_through_messages(CORRECTED) / step_through_messages(NOT_CORRECTED),
    ),
]

LEVEL = "level of the intervals"
LICENCE = "version of a licence"
REPORTED = "reported for another library"

PARAMETERS = [
    Parameter("README.md", "CC BY-SA 3.0", LICENCE),
    Parameter("README.md", "communication, says 46.3", "published by the source"),
    Parameter("README.md", "and 23.5 for", "published by the source"),
    Parameter(MACHINES, "GPT-2 XL has 1.5 billion", "size of the published model"),
    Parameter(OPTIONS, "medians from 10 milliseconds", "scaled on purpose"),
    Parameter(OPTIONS, "to 4 seconds), no worker", "scaled on purpose"),
    Parameter(
        CODES, r"below about $2 \cdot 10^{-5}$", "size of a bound, not its value"
    ),
    Parameter(CODES, "with 95% confidence intervals", LEVEL),
    Parameter(DELAYS, "with 95% bands", LEVEL),
    Parameter(DELAYS, "the 90% quantile of", "name of a quantile"),
    Parameter(PLANNING, "a target of 0.01 and", "see CLAIMS"),
    Parameter(PLANNING, "an error of 10% is the best", "see CLAIMS"),
    Parameter(STARTED, "draws 20 times", "argument of the example"),
    Parameter(STARTED, "means with 95% confidence", LEVEL),
    Parameter(PLANNING, "up to $3/m$, with 95% confidence", LEVEL),
    Parameter(PLANNING, "they hide, with 95% confidence", LEVEL),
    Parameter(REPORTS, "its 95% confidence", LEVEL),
    Parameter(REPORTS, "half of its 95% interval", LEVEL),
    Parameter(REPORTS, "Black lines are 95% intervals", LEVEL),
    Parameter(REPORTS, "CC BY 4.0", LICENCE),
    Parameter(REPORTS, "always 1.3 times", "row of report_simulated"),
    Parameter(REPORTS, "that is 1.1 times", "row of report_simulated"),
    Parameter(REPORTS, "correlated (0.4", "see test_most_workers_are_correlated"),
    Parameter(REPORTS, "to 0.7 for most", "see test_most_workers_are_correlated"),
    Parameter(REPORTS, "autocorrelation of up to 0.5 with", "see report_alarms"),
    Parameter(REPORTS, "once, for 1,000 times its", "argument of the example"),
    Parameter(REPRODUCTION, "Means have 95% confidence", LEVEL),
    Parameter(BENCHMARKS, "takes about 11 minutes", "in the Makefile, too"),
    Parameter(THE_PAPER, "as short as 0.1", "threshold of the paper"),
    Parameter(THE_PAPER, "falls below 0.1", "threshold of the paper"),
    Parameter(THE_PAPER, "0.1 (on the mean loss)", "grid of step sizes"),
    Parameter(THE_PAPER, "at the step 2e-7", "twice the step of the paper"),
    Parameter(THE_PAPER, "With the step 2e-7", "twice the step of the paper"),
    Parameter(THE_PAPER, "step of the text, 1e-7", "step of the paper"),
    Parameter(THE_PAPER, "has 12.5 rows", "1,000 rows in 20 parts of 4"),
    Parameter(SKETCHING, "condition number of 1e8", "argument of the experiment"),
    Parameter(SKETCHING, "below 0.02 in float32", "bound in tests/sketching"),
    Parameter(SKETCHING, "come back as 2020.3", REPORTED),
    Parameter(SKETCHING, "and 0.3 |", REPORTED),
    Parameter(SKETCHING, "± 0.2; values", "bound in tests/sketching"),
    Parameter(SLOW, "up to a share of 0.8", "see CLAIMS"),
    Parameter(SLOW, "up to a share of 0.6", "see CLAIMS"),
    Parameter(SLOW, "*97%* and", "name of a column"),
    Parameter(SLOW, "and *90%* of the first", "name of a column"),
    Parameter(WEIGHTS, "Intervals are 95% confidence", LEVEL),
    Parameter(WEIGHTS, "[Within 10% of knowing", "see CLAIMS"),
    Parameter(WEIGHTS, "come within 10% of the oracle", "see CLAIMS"),
]

CLAIMS = [
    Claim(
        MACHINES,
        "seconds out, or in with float32 | 38 | 15 | 4",
        lambda: np.array_equal(seconds_of_messages(num_bytes=4), [38, 15, 4]),
    ),
    Claim(
        MACHINES,
        "seconds in with bfloat16 | 19 | 8 | 2",
        lambda: np.array_equal(seconds_of_messages(num_bytes=2), [19, 8, 2]),
    ),
    Claim(
        MEASURED,
        "the final loss is the loss without faults to all printed digits",
        lambda: (
            cell("language_model", "held-out loss", "on request, 2 copies")
            == cell("language_model", "held-out loss", "restart from checkpoint")
            == cell("language_model", "held-out loss", "no faults")
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
            way_of_language_model("ignoring lost workers")["loss"]
            <= way_of_language_model("no faults")["loss"]
        ),
    ),
    Claim(
        MEASURED,
        "are as fast as those on request",
        lambda: (
            way_of_language_model("ignoring lost workers")["seconds"]
            <= way_of_language_model("on request, 2 copies")["seconds"]
        ),
    ),
    Claim(
        MEASURED,
        "the longest step is shorter than the shortest absence",
        lambda: (
            results("chaos")["summary"]["longest_seconds"]
            < results("chaos")["summary"]["shortest_away"]
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
            and row["fastest in the trace: worst"] == "inf"
            for row in table("plan_simulated")
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
            for delays in when_coding_pays.LAWS
            for share, times in fixed_share(delays).items()
        ),
    ),
    Claim(
        SLOW,
        "are the fastest choice up to a share of 0.6",
        lambda: all(
            times["first"] == min(times.values())
            for delays in when_coding_pays.LAWS
            for share, times in fixed_share(delays).items()
            if share <= 0.6
        ),
    ),
    Claim(
        SLOW,
        "The right end of the last panel is this law",
        lambda: (
            fixed_share(STALLING)[1.0]
            == pytest.approx(
                {
                    choice: serverless(choice)
                    for choice in ("all", "code", "request", "first")
                },
                rel=0.005,
            )
        ),
    ),
    Claim(
        SLOW,
        "target in 331 units of time, parts on request in 556, and waiting for all in "
        "889",
        lambda: (
            sorted_digits("`uncoded`, first 2 + late") == 331
            and sorted_digits(EXACT_ON_REQUEST) == 556
            and sorted_digits(EVERYONE) == 889
        ),
    ),
    Claim(
        "README.md",
        "six faults trains in 43 instead of",
        lambda: (
            round(way_of_language_model("on request, 2 copies")["seconds"]) == 43
            and way_of_language_model("restart from checkpoint")["restarts"] == 6
        ),
    ),
    Claim(
        MEASURED,
        "1,000,000 parameters | 3,204; in clusters of 100 workers, each with a head "
        "that decodes: 40, and 324 by each head",
        lambda: (
            megabytes_read("`reed_solomon`", "MB read") == 3204
            and megabytes_read("`reed_solomon, clusters of 100`", "MB read") == 40
            and megabytes_read("`reed_solomon, clusters of 100`", "MB read by a head")
            == 324
        ),
    ),
    Claim(
        PLANNING,
        "`replicated` with an error of 10% is the best choice in `uneven_seconds`, "
        "`job_1` and `job_3`, and `replicated by speed` in `job_2`",
        lambda: (
            [
                (row["trace"], row["heterogeneity 0.01"].split(" × ")[0])
                for row in table("plan_decisions")
                if row["target"] == "0.01" and "error 10%" in row["heterogeneity 0.01"]
            ]
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
            re.match(r"`uncoded`, first \d+ \+ late", row["heterogeneity 1"])
            for row in table("plan_decisions")
        ),
    ),
    Claim(
        CODES,
        "an adversary harms it [less than other exact codes]",
        lambda: is_best_exact_code_under_attack("`cyclic_mds`"),
    ),
    Claim(
        CODES,
        "at half its error (up to 12 of 30 stragglers)",
        lambda: np.array_equal(
            2 * worst_errors("`edge_graph`", [6, 8, 10, 12]),
            worst_errors("`fractional_repetition`", [6, 8, 10, 12]),
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
        lambda: is_about(1 - of_everyone("one_slow_seconds", EXACT_REPETITION), 1 / 9),
    ),
    Claim(
        DELAYS,
        "On request, they take more than a third less",
        lambda: 1 - of_everyone("one_slow_seconds", EXACT_ON_REQUEST) > 1 / 3,
    ),
    Claim(
        DELAYS,
        "its quarter of the data for good, is twice as fast",
        lambda: is_about(
            of_everyone("one_slow_seconds", "`uncoded`, first 2", "time to target"),
            1 / 2,
        ),
    ),
    Claim(
        DELAYS,
        "descent is another fifth faster",
        lambda: is_about(
            1
            - cell(
                "time_one_slow_seconds", "time to target", "`uncoded`, first 2 + late"
            )
            / cell("time_one_slow_seconds", "time to target", "`uncoded`, first 2"),
            1 / 5,
        ),
    ),
    Claim(
        PLANNING,
        "is reached in less than half of the time of waiting for all",
        lambda: plan_time("one_slow_seconds", "uncoded", "first 2 + late") < 1 / 2,
    ),
    Claim(
        PLANNING,
        "parts on request take less than two thirds",
        lambda: planned_ratio("one_slow_seconds", "replicated", "decodable") < 2 / 3,
    ),
    Claim(
        PLANNING,
        "Fractional repetition is slower than waiting for all",
        lambda: planned_ratio("job_4", "fractional_repetition", "decodable") > 1,
    ),
    Claim(
        PLANNING,
        "in five of six traces, they are the choice of both halves",
        lambda: (
            num_traces_with_stale_gradients("least regret")
            == num_traces_with_stale_gradients("second half")
            == 5
        ),
    ),
    Claim(
        PLANNING,
        "still take twice the time of perfect division there",
        lambda: is_about(
            cell("plan_ways", "`job_4`", "on request × 2, by speed"),
            2 * cell("plan_ways", "`job_4`", "perfect division"),
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
            chronic_workers_named("1.3", "300")
            == chronic_workers_named("1.1", "300")
            == 100
        ),
    ),
    Claim(
        REPORTS,
        "Work in proportion to speed more than halves the time of a round",
        lambda: (
            2 * in_report("job_4", r"would\s+take (\d+)")
            < in_report("job_4", r"instead of (\d+)")
        ),
    ),
    Claim(
        THE_PAPER,
        "published errors (7 to 9%) to within about a point",
        lambda: np.max(np.abs(table_1_errors())) <= 1,
    ),
    Claim(
        THE_PAPER,
        "to within about a quarter",
        lambda: np.max(np.abs(table_1_iterations() - 1)) <= 0.255,
    ),
    Claim(
        THE_PAPER,
        "three of the counts by -15, +11 and +36",
        lambda: (
            {-15, 11, 36} <= {*np.round(table_1_deviations("iterations")).astype(int)}
            and np.sum(np.abs(table_1_deviations("iterations")) > 10) == 3
        ),
    ),
    Claim(
        THE_PAPER,
        "falls below 0.1 after 119 iterations with weights, and 145 without",
        lambda: (
            cell("figure2", "weighted", "mean below 0.1 after") == 119
            and cell("figure2", "unweighted", "mean below 0.1 after") == 145
        ),
    ),
    Claim(
        HALBAWI,
        "were tried to $10^{-4}$ if a tenth of up to 200 workers may fail",
        lambda: is_decoded_to(1e-4, 0.1),
    ),
    Claim(
        HALBAWI,
        "If a fifth of up to 200 workers may fail, it decodes them to $10^{-3}$",
        lambda: is_decoded_to(1e-3, 0.1, 0.2),
    ),
    Claim(
        HALBAWI,
        "may fail and there are as many parts as workers, it does not",
        lambda: (
            min(worst_residual([size, size, size // 2]) for size in (50, 100, 200))
            > 1e-3
        ),
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
        lambda: logistic("2p, 2 ref.", "seconds") < logistic("4p", "seconds"),
    ),
    Claim(
        SLOW,
        "hardly slower than their neighbours, and nothing is gained",
        lambda: min(on_request("`job_2`"), on_request("`job_3`")) > 0.99,
    ),
    Claim(
        WEIGHTS,
        "estimated weights come within 10% of the oracle from 20 rows per source on",
        lambda: max(estimated_weights_over_oracle()) <= 10,
    ),
    Claim(
        WEIGHTS,
        "The error is still a third of the unweighted error",
        lambda: is_about(
            unequal_noise("5", "estimated twice") / unequal_noise("5", "unweighted"),
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
        lambda: max(bound_over_distance(num_large=5)) < 3,
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
        "float32 [rejects up to 84 of 200 rounds]",
        lambda: max(column("wrong_answers_located", "rejected, of all")) == 84,
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
            and len(results("wrong_answers")["clean"]["codes"]) == 6
        ),
    ),
    Claim(
        WRONG,
        "Clean rounds raise no alarm",
        lambda: (
            not any(
                run["blamed"] or run["rejected"]
                for run in results("wrong_answers")["clean"]["codes"].values()
            )
        ),
    ),
]


def entries():
    """Yields the numbers that are listed."""
    yield from QUOTED
    yield from PARAMETERS


def paragraphs(page):
    """Returns the paragraphs of a page, each in one line."""
    parts = prose_numbers.sections(prose_numbers.read(page))
    return [paragraph for part in parts for paragraph in part.paragraphs]


def only_number(entry):
    """Returns the number in the text of an entry, which must be the only one."""
    numbers = [*prose_numbers.literals(entry.text)]
    assert len(numbers) == 1, f"{entry.text!r} has {len(numbers)} numbers; name one"
    return numbers[0]


def is_around(text, place):
    """Returns whether words of an entry stand around a number of a page."""
    starts = [match.start() for match in re.finditer(re.escape(text), place.paragraph)]
    return any(
        start <= place.literal.start and place.literal.end <= start + len(text)
        for start in starts
    )


def is_in_table(place):
    """Returns whether a number with several digits stands in a table of its section."""
    literal = place.literal
    if literal.num_significant_digits < 2:
        return False
    return any(literal.is_rounded(cell) for cell in place.cells)


def sentence_of(place):
    """Returns the sentence with a number."""
    ends = [match.end() for match in re.finditer(r"[.:;?!] ", place.paragraph)]
    start = max((end for end in ends if end <= place.literal.start), default=0)
    behind = [end for end in ends if end >= place.literal.end]
    return place.paragraph[start : min(behind, default=None)].strip()


def unexplained(page, text):
    """Returns the numbers of a page that have no source."""
    listed = [entry.text for entry in entries() if entry.page == page]
    return [
        f"{page}: {place.literal.printed} in {sentence_of(place)!r} has no source"
        for place in prose_numbers.places(text)
        if not any(is_around(entry, place) for entry in listed)
        and not is_in_table(place)
        and not prose_numbers.is_dated(place.paragraph)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_each_number_has_a_source(page):
    lines = unexplained(page, prose_numbers.read(page))
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    "entry", QUOTED, ids=lambda entry: f"{entry.page}: {entry.text}"
)
def test_quoted_numbers_are_those_of_the_results(entry):
    quoted = only_number(entry)
    value = float(entry.value())
    message = f"{entry.page} says {quoted.printed} in {entry.text!r}; it is {value:.6g}"
    assert quoted.is_rounded(value), message


@pytest.mark.parametrize("page", PAGES)
def test_listed_words_are_still_on_their_page(page):
    text = "\n".join(paragraphs(page))
    lines = []
    for entry in [*entries(), *CLAIMS]:
        if entry.page == page and entry.text not in text:
            line = f"{page} no longer says {entry.text!r}"
            if isinstance(entry, Quoted):
                line += f"; by the results it is {float(entry.value()):.6g}"
            lines.append(line)
    assert not lines, "\n".join(lines)


def test_listed_words_have_one_number():
    for entry in entries():
        only_number(entry)


@pytest.mark.parametrize(
    "claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.text}"
)
def test_claims_hold(claim):
    assert claim.holds(), f"{claim.page}: {claim.text!r} contradicts the results"


def delays_of(file):
    """Returns the traces of a file, (rounds, workers) each, by name."""
    stored = np.load(ROOT / "experiments/data" / file)
    traces = {name: stored[name] for name in stored.files}
    return {
        name: times.sum(-1) if times.ndim == 3 else times
        for name, times in traces.items()
    }


def test_most_workers_are_correlated():
    """The page of reports says: successive rounds are correlated, 0.4 to 0.7."""
    correlations = []
    for times in delays_of("pai_delays.npz").values():
        middle = (times.shape[1] - 1) // 2
        medians = np.sort(times, axis=1)[:, middle]
        change = _kinds.likeliest_change(np.log(times / medians[:, None]))
        residuals = change.residuals
        products = np.sum(residuals[1:] * residuals[:-1], axis=0)
        correlations.extend(products / np.sum(residuals**2, axis=0))
    rounded = np.round(correlations, 1)
    assert np.mean((rounded >= 0.4) & (rounded <= 0.7)) > 0.75


@pytest.mark.parametrize("median", [0.01, 4.0])
def test_no_worker_of_a_trace_is_suspected(median):
    """The page of clusters says so, for medians from 10 milliseconds to 4 seconds."""
    traces = delays_of("pai_delays.npz") | delays_of("llm_training_delays.npz")
    for times in traces.values():
        limit = _response_limit.ResponseLimit(None, times.shape[1])
        for row in median / np.median(times) * times:
            for worker in np.argsort(row):
                assert row[worker] <= limit.of(worker) / 2
                limit.note(worker, row[worker])


def test_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].removeprefix(">=")
    [jax_version] = [
        name.removeprefix("jax>=")
        for name in project["dependencies"]
        if name.startswith("jax>=")
    ]
    text = prose_numbers.read("README.md")
    assert f"With Python {python} or newer" in text
    assert f"jax {jax_version} or newer" in text


PAGE = """# Title

<!-- times -->

*Seconds, with a caption of 4.44*

| code | seconds |
|:--|--:|
| `uncoded` | 1.23 |

<!-- end -->

{}
"""


def found_in(sentence):
    """Returns the numbers of a sentence that have no source, as they are printed."""
    lines = unexplained("page.md", PAGE.format(sentence))
    return [line.split()[1] for line in lines]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A step takes 1.23 seconds.", []),
        ("A step takes 1.2 seconds.", []),
        ("A step takes 1.24 seconds.", ["1.24"]),
        ("A step takes 4.44 seconds.", ["4.44"]),
        ("A step takes 1 s.", ["1"]),
        ("It takes 3 to 5 times as long.", ["3", "5"]),
        ("The error is $1.5 \\cdot 10^{-5}$.", ["1.5e-5"]),
        ("| by hand | 7% |", ["7"]),
        ("With `timeout=2.5`, [30](page.md#1.5) workers and $2.5$.", []),
        ("It took 30 seconds (November 2026).", ["30"]),
        ("It took 30 seconds (`python -m experiments time`, November 2026).", []),
    ],
)
def test_numbers_without_a_source_are_found(sentence, expected):
    assert found_in(sentence) == expected


def test_a_section_with_tables_uses_only_its_own():
    section = "\n# Other\n\n<!-- x -->\n| code | 9.87 |\n<!-- end -->\n\nIt takes 1.23."
    assert found_in(section) == ["1.23"]
