"""Text of a plan: sentences on the recommended choice, and a table of choices."""

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxwgc.studies._planning._choice import Choice
from jaxwgc.studies._reports._text import workers_named

if TYPE_CHECKING:
    from jaxwgc.studies._planning._results import Plan

# Maximum number of rows in the table: the best choice per code and replication.
_NUM_ROWS = 12
# Characters of a line.
_WIDTH = 80
# Maximum number of workers for which all loads are printed.
_NUM_LOADS = 16
# Number of standard errors above which a shorter step is no chance.
_DEVIATIONS = 2.0
# Regret that counts as none, because it is printed as 0.0%.
_NO_REGRET = 5e-4


def answer(plan: "Plan") -> str:
    """Returns sentences on the recommended choice, and on alternatives."""
    sentences = []
    if plan.never_respond:
        sentences.append(_lost_workers(plan))
    if plan.is_reached:
        sentences += [_recommendation(plan)]
        sentences += _alternatives(plan)
        sentences += _work_by_speed(plan)
        sentences += _hidden_stalls(plan)
    else:
        sentences.append(_closest(plan))
    return "\n".join(textwrap.fill(sentence, _WIDTH) for sentence in sentences)


def answer_and_table(plan: "Plan") -> str:
    """Returns the sentences, a table of the best choice per code, and notes on it."""
    notes = textwrap.fill(_notes(plan), _WIDTH)
    return "\n".join([answer(plan), "", *_table(plan), "", notes])


def _lost_workers(plan: "Plan") -> str:
    """Names workers that never respond, and the best choice without them."""
    names = np.array([str(worker) for worker in plan.never_respond])
    are_many = len(names) > 1
    respond = "never respond" if are_many else "never responds"
    lost = f"{workers_named(names)} {respond}"
    without = plan.without
    if without is None or not without.is_reached:
        return f"{lost.capitalize()}."
    remaining = without.num_workers
    others = f"the other {remaining} workers" if remaining > 1 else "the other worker"
    best = without.best
    return (
        f"{lost.capitalize()}. Leave {'them' if are_many else 'it'} out: all work on "
        f"{others} reaches a loss of {plan.target:g} of the start in "
        f"{best.time.value:.3g}. {_coding(best)}: {best}."
    )


def _coding(choice: Choice) -> str:
    return "Code" if choice.is_coded else "Do not code"


def _closest(plan: "Plan") -> str:
    """Describes the choice that comes closest to the target."""
    best = plan.best
    sentence = f"No choice reaches a loss of {plan.target:g} of the start"
    if plan.never_respond:
        sentence += f" with all {plan.num_workers} workers"
    if math.isinf(best.step_time.value):
        return f"{sentence}: with each of them, some rounds never end."
    return (
        f"{sentence}. Closest comes {best}: a loss of {best.lowest_loss:.2g}, in steps "
        f"of {best.step_time.value:.4g}."
    )


def _recommendation(plan: "Plan") -> str:
    """Names the best choice, and the loads if they are proportional to speed."""
    best = plan.best
    if plan.without is not None and plan.without.is_reached:
        return f"With all {plan.num_workers} workers: {best}, in {best.time.value:.3g}."
    return f"{_coding(best)}: {best}.{_gain_and_loads(best, plan)}"


def _alternatives(plan: "Plan") -> Iterator[str]:
    """Yields sentences on how much longer other choices take."""
    best = plan.best
    if best.is_coded:
        others = {"Next best": plan.next_best, "Not coding": plan.uncoded}
    else:
        coded = (choice for choice in plan.choices if choice.is_coded)
        others = {"The best code": next(coded, None)}
    others["Waiting for all"] = plan.baseline
    told = [best]
    for name, choice in others.items():
        if choice is not None and not any(choice is each for each in told):
            yield f"{name}: {choice}, {_comparison(choice, plan)}."
            told.append(choice)


def _comparison(choice: Choice, plan: "Plan") -> str:
    """Says how much longer a choice takes than the best one."""
    best = plan.best
    if math.isinf(choice.step_time.value):
        return "has no finite mean time"
    if math.isinf(choice.time.value):
        return "does not reach the target"
    ratio = choice.time.value / best.time.value
    error = choice.behind.standard_error / best.time.value
    calm = f"takes {_excess(ratio)} (± {_error(ratio, error)})"
    if not plan.has_stalls or plan.stalls is None:
        return calm
    one_in = f"if one time in {1 / plan.stalls.probability:.0f} stalls"
    if math.isinf(choice.stalled_time.value):
        return f"{calm} without stalls, and does not reach the target {one_in}"
    stalled = choice.stalled_time.value / best.stalled_time.value
    return f"{calm} without stalls, {_excess(stalled)} {one_in}"


def _excess(ratio: float) -> str:
    """Returns e.g. "12.3% longer", or "71 times as long" from twice as long on."""
    if ratio >= 2:
        return f"{float(f'{ratio:.2g}'):g} times as long"
    percents = 100 * (ratio - 1)
    return f"{abs(percents):.1f}% {'less' if percents < 0 else 'longer'}"


def _error(ratio: float, error: float) -> str:
    """Returns the standard error of a ratio in the unit of `_excess`."""
    return f"{error:.2g}" if ratio >= 2 else f"{100 * error:.1f}"


def _work_by_speed(plan: "Plan") -> Iterator[str]:
    """Yields a sentence on work in proportion to speed without a code.

    Nothing is said if it does not shorten steps, or if it is the best choice.
    """
    by_speed = next(
        (each for each in plan.choices if each.by_speed and not each.is_coded), None
    )
    if by_speed is None or by_speed.code is plan.best.code:
        return
    gain_and_loads = _gain_and_loads(by_speed, plan)
    if gain_and_loads:
        comparison = _comparison(by_speed, plan)
        yield f"Work in proportion to speed: {by_speed}, {comparison}.{gain_and_loads}"


def _gain_and_loads(choice: Choice, plan: "Plan") -> str:
    """Returns sentences on loads in proportion to speed, and on what they gain.

    They are empty if the choice has other loads, if the gain may be due to chance, or
    if the loads are equal as printed.
    """
    baseline = plan.baseline
    if not choice.by_speed or baseline is None:
        return ""
    if not math.isfinite(choice.step_time.value + baseline.step_time.value):
        return ""
    gains = baseline.rounds[0].seconds - choice.rounds[0].seconds
    # Jackknife: entry 0 is from all groups of rounds, the others from all but one.
    error = math.sqrt((len(gains) - 2) * np.var(gains[1:] - gains[0]))
    if gains[0] <= _DEVIATIONS * error or len(set(_printed_loads(choice))) == 1:
        return ""
    ratio = baseline.step_time.value / choice.step_time.value
    return (
        f" Its steps are {ratio:.3g} times as fast as those of equal work without a "
        f"code. {_loads(choice)}"
    )


def _printed_loads(choice: Choice) -> list[str]:
    return [f"{load:.2g}" for load in np.asarray(choice.code.loads)]


def _loads(choice: Choice) -> str:
    """Returns a sentence on the loads of workers."""
    printed = _printed_loads(choice)
    if len(printed) <= _NUM_LOADS:
        return f"The loads of the workers are {' '.join(printed)}."
    loads = np.asarray(choice.code.loads)
    least = int(loads.argmin())
    most = int(loads.argmax())
    return (
        f"The loads are from {printed[least]} (worker {least}) to {printed[most]} "
        f"(worker {most}), see `code.loads`."
    )


def _hidden_stalls(plan: "Plan") -> Iterator[str]:
    """Yields a sentence on stalls that the trace may hide."""
    if plan.stalls is None or not plan.has_stalls:
        return
    if not math.isfinite(plan.best.regret):
        return
    if plan.best.regret < _NO_REGRET:
        judgement = "The first choice is the fastest with such stalls and without."
    else:
        judgement = (
            "With such stalls or without, the first choice takes at most "
            f"{_excess(1 + plan.best.regret)}, compared with the fastest choice (the "
            "least regret)."
        )
    yield (
        f"A stall of {plan.stalls.time:.3g} in one time of "
        f"{1 / plan.stalls.probability:.0f} is not in the trace, which does not rule "
        f"it out, either. {judgement}"
    )


def _table(plan: "Plan") -> Iterator[str]:
    """Yields the lines of a table with the best choice per code."""
    second, last = ("stalls", "regret") if plan.has_stalls else ("90%", "±")
    header = ["code", "d", "waits for", "step", second, "error", "MB"]
    rows = [[*header, "steps", "time", last]]
    shown = list(plan.by_code[:_NUM_ROWS])
    baseline = plan.baseline
    if baseline is not None and not any(baseline is each for each in shown):
        shown.append(baseline)
    rows += [_row(choice, plan) for choice in shown]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        names = " ".join(map(str.ljust, row[:3], widths))
        yield "  ".join([names, *map(str.rjust, row[3:], widths[3:])]).rstrip()


def _row(choice: Choice, plan: "Plan") -> list[str]:
    """Returns the cells of a choice; "-" for what does not end or is not reached."""
    second = choice.step_quantile.value
    last = _cell(choice.time.standard_error, ".2g")
    if plan.has_stalls:
        second = choice.stalled_step_time.value
        last = _cell(choice.regret if plan.is_reached else math.nan, ".0%")
    ends = math.isfinite(choice.step_time.value)
    return [
        choice.name,
        f"{choice.replication:.2g}",
        choice.waits_for,
        _cell(choice.step_time.value, "#.4g"),
        _cell(second, "#.4g"),
        _cell(choice.decoding_error.value, ".1%"),
        f"{choice.num_bytes / 1e6:#.3g}",
        _cell(choice.num_steps if ends else math.nan, "#.4g"),
        _cell(choice.time.value, "#.4g"),
        last,
    ]


def _cell(value: Any, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "-"


def _notes(plan: "Plan") -> str:
    """Returns the notes below the table, on its order, its columns and the goal."""
    second = "stalls: mean without and with stalls"
    order = "regret, the share of time above the best, without stalls or with them"
    if not plan.has_stalls:
        second = "90%: mean and quantile"
        order = "time"
    return (
        f"Sorted by {order}. d: copies of a part; step, {second}, in the unit of the "
        "delay model; error: squared, relative, mean over rounds; MB: through the "
        f"coordinator in a step; steps, time: to a loss of {plan.target:g} of the "
        f"start with condition {plan.condition:g} and heterogeneity "
        f"{plan.heterogeneity:g}; -: never. For each code, the best waiting rule is "
        f"shown, of {len(plan.choices)} choices in total. ±: one standard error."
    )
