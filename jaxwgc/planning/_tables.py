"""Text of a plan: sentences of advice, and a table."""

import math
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxwgc._common.text import workers_named
from jaxwgc.planning._choice import NUM_PARAMETERS, Choice
from jaxwgc.planning._ranking import jackknife
from jaxwgc.planning._results import PlanData
from jaxwgc.stragglers._models import Stalls

# Maximum number of characters per line.
_WIDTH = 80
# Maximum number of workers for which all loads are printed.
_NUM_LOADS = 16
# Number of standard errors above which a difference of step times is not chance.
_DEVIATIONS = 2.0
# Probability of stalls above which the text gives a percentage, not "one in n".
_FREQUENT = 0.2
# Smallest standard error that is printed for a ratio of times of at least 2.
_SMALL_ERROR = 0.01
# Relative difference below which times count as equal. It would be printed as 0.0%.
_SAME_TIME = 5e-4


def advice(plan: PlanData) -> str:
    """Returns the advice on a plan as text, with wrapped lines."""
    paragraphs = [textwrap.fill(sentence, _WIDTH) for sentence in _sentences(plan)]
    return "\n".join(paragraphs)


def advice_and_table(plan: PlanData) -> str:
    """Returns the advice, a table of the best choice per code, and notes.

    If the advice is to leave out lost workers, the table is for the other workers.
    """
    notes = textwrap.fill(_notes(plan.followed), _WIDTH)
    return "\n".join([advice(plan), "", *_table(plan.followed), "", notes])


def _sentences(plan: PlanData) -> Iterator[str]:
    """Yields the sentences of the advice on a plan."""
    yield from _about_lost_workers(plan)
    if plan.followed is not plan:
        yield from _sentences(plan.followed)
        yield _with_all(plan, plan.followed)
    elif plan.is_reached:
        advice = "Code" if plan.best.is_coded else "Do not code"
        yield f"{advice}: {plan.best}.{_gain_and_loads(plan.best, plan)}"
        yield from _alternatives(plan)
        yield from _work_by_speed(plan)
        yield from _hidden_stalls(plan)
        yield from _times_and_loads(plan)
        yield from _without_waiting(plan)
    else:
        yield _closest(plan)


def _about_lost_workers(plan: PlanData) -> Iterator[str]:
    """Yields a sentence on the workers that no longer respond, if there are any."""
    by_start: dict[int, list[str]] = {}
    for worker, start in plan.lost.items():
        by_start.setdefault(start, []).append(plan.names[worker])
    clauses = []
    for start, names in by_start.items():
        workers = workers_named(np.array(names))
        if start:
            has = "have" if len(names) > 1 else "has"
            clauses.append(f"{workers} {has} not responded since round {start}")
        else:
            respond = "never respond" if len(names) > 1 else "never responds"
            clauses.append(f"{workers} {respond}")
    if not clauses:
        return
    sentence = f"{'; '.join(clauses)}."
    sentence = f"{sentence[0].upper()}{sentence[1:]}"
    if plan.followed is not plan:
        remaining = plan.num_workers - len(plan.lost)
        them = "them" if len(plan.lost) > 1 else "it"
        others = f"{remaining} workers do" if remaining > 1 else "worker does"
        sentence += f" Leave {them} out, so that the other {others} all of the work:"
    yield sentence


def _with_all(plan: PlanData, without: PlanData) -> str:
    """Returns a sentence on the best choice if lost workers are not left out."""
    if not plan.is_reached:
        return _closest(plan)
    ratio = plan.best.time.value / without.best.time.value
    return f"With all {plan.num_workers} workers: {plan.best}, takes {_excess(ratio)}."


def _closest(plan: PlanData) -> str:
    """Returns a sentence on the choice that comes closest to the target."""
    best = plan.best
    sentence = f"No choice reaches a loss of {plan.goal.target:g} of the start"
    if plan.lost:
        sentence += f" with all {plan.num_workers} workers"
    if math.isinf(best.step_time.value):
        return f"{sentence}: with each of them, some rounds never end."
    return (
        f"{sentence}. Closest comes {best}: a loss of {best.lowest_loss:.2g}, in steps "
        f"of {best.step_time.value:.4g}."
    )


def _alternatives(plan: PlanData) -> Iterator[str]:
    """Yields sentences on how much longer other choices take."""
    best = plan.best
    if best.is_coded:
        others = {"Next best": plan.next_best, "Not coding": plan.uncoded}
    else:
        coded = (choice for choice in plan.choices if choice.is_coded)
        others = {"The best code": next(coded, None)}
    others["Waiting for all"] = plan.baseline
    identities_told = {id(best)}
    for name, choice in others.items():
        if choice is not None and id(choice) not in identities_told:
            yield f"{name}: {choice}, {_comparison(choice, plan)}."
            identities_told.add(id(choice))


def _comparison(choice: Choice, plan: PlanData) -> str:
    """Returns text on how much longer a choice takes than the best choice."""
    best = plan.best
    if math.isinf(choice.step_time.value):
        return "has no finite mean time"
    if math.isinf(choice.time.value):
        return "does not reach the target"
    ratio = choice.time.value / best.time.value
    error = choice.behind.standard_error / best.time.value
    calm = f"takes {_excess(ratio)}{_error(ratio, error)}"
    if plan.stalls is None:
        return calm
    one_in = f"if {_stalled_times(plan.stalls)}"
    if math.isinf(choice.stalled_time.value):
        return f"{calm} without stalls, and does not reach the target {one_in}"
    stalled = choice.stalled_time.value / best.stalled_time.value
    return f"{calm} without stalls, {_excess(stalled)} {one_in}"


def _excess(ratio: float) -> str:
    """Returns a ratio of times as text, e.g. "12.3% longer"."""
    if abs(ratio - 1) < _SAME_TIME:
        return "as long"
    if ratio >= 2:
        return f"{float(f'{ratio:.2g}'):g} times as long"
    percents = 100 * (ratio - 1)
    return f"{abs(percents):.1f}% {'less' if percents < 0 else 'longer'}"


def _error(ratio: float, error: float) -> str:
    """Returns the standard error of a ratio of times as text, e.g. " (± 0.3)"."""
    if not math.isfinite(error):
        return ""
    if ratio < 2:
        return f" (± {100 * error:.1f})"
    return f" (± {float(f'{error:.1g}'):g})" if error >= _SMALL_ERROR else ""


def _stalled_times(stalls: Stalls) -> str:
    """Returns the probability of stalls as text, e.g. "one time in 107 stalls"."""
    if stalls.probability > _FREQUENT:
        return f"{stalls.probability:.0%} of the times stall"
    return f"one time in {1 / stalls.probability:.0f} stalls"


def _work_by_speed(plan: PlanData) -> Iterator[str]:
    """Yields a sentence on uncoded workers with work in proportion to speed.

    Yields nothing if steps do not become shorter, or if the best choice has this code.
    """
    uncoded_by_speed = (
        choice for choice in plan.choices if choice.by_speed and not choice.is_coded
    )
    by_speed = next(uncoded_by_speed, None)
    if by_speed is None or by_speed.code is plan.best.code:
        return
    gain_and_loads = _gain_and_loads(by_speed, plan)
    if not gain_and_loads:
        return
    if by_speed is plan.uncoded and plan.best.is_coded:
        # `_alternatives` has already compared this choice with the best choice.
        yield f"Work in proportion to speed helps.{gain_and_loads}"
        return
    comparison = _comparison(by_speed, plan)
    yield f"Work in proportion to speed: {by_speed}, {comparison}.{gain_and_loads}"


def _gain_and_loads(choice: Choice, plan: PlanData) -> str:
    """Returns sentences on loads in proportion to speed, and on the time they save.

    The text is empty if the choice has other loads, if the gain may be due to chance,
    or if the loads are equal as printed.
    """
    baseline = plan.baseline
    if not choice.by_speed or baseline is None:
        return ""
    if not math.isfinite(choice.time.value + baseline.step_time.value):
        return ""
    gain = jackknife(baseline.rounds[0].seconds - choice.rounds[0].seconds)
    is_chance = gain.value <= _DEVIATIONS * gain.standard_error
    if is_chance or len(set(_printed_loads(choice))) == 1:
        return ""
    ratio = baseline.step_time.value / choice.step_time.value
    return (
        f" Its steps are {ratio:.3g} times as fast as those of equal work without a "
        f"code. {_loads(choice, plan)}"
    )


def _printed_loads(choice: Choice) -> list[str]:
    return [f"{load:.2g}" for load in np.asarray(choice.code.loads)]


def _loads(choice: Choice, plan: PlanData) -> str:
    """Returns a sentence that lists the loads of workers, or their range."""
    printed = []
    for load, name in zip(_printed_loads(choice), plan.names):
        printed.append(f"{load} (worker {name})")
    # With sums on request, workers compute further copies only if necessary.
    noun = "Loads with all copies" if choice.sends_several_messages else "Loads"
    if len(printed) <= _NUM_LOADS:
        return f"{noun}: {', '.join(printed)}."
    loads = np.asarray(choice.code.loads)
    smallest = printed[int(loads.argmin())]
    largest = printed[int(loads.argmax())]
    return f"{noun}: from {smallest} to {largest}, see `code.loads`."


def _hidden_stalls(plan: PlanData) -> Iterator[str]:
    """Yields text on stalls that the trace does not rule out, if there are any."""
    if plan.stalls is None:
        return
    if not math.isfinite(plan.best.regret):
        return
    if plan.best.regret < _SAME_TIME:
        judgement = "This choice is the fastest with such stalls and without."
    else:
        judgement = (
            "With such stalls or without, this choice takes at most "
            f"{_excess(1 + plan.best.regret)}, compared with the fastest choice (the "
            "least regret)."
        )
    yield (
        f"The trace does not rule out that {_stalled_times(plan.stalls)}, for a "
        f"time of {plan.stalls.time:.3g}. {judgement}"
    )


def _times_and_loads(plan: PlanData) -> Iterator[str]:
    """Yields sentences on times at loads that were not measured."""
    loads = plan.delay.measured_loads()
    if len(loads) == 1:
        assumption = (
            "Times were measured at one load, and are taken to be proportional to it."
        )
        cases = []
        for share, choices in plan.overheads.items():
            amount = "all" if share == 1 else f"{share:.0%}"
            outcome = _choice_with_overhead(plan.best, choices)
            cases.append(
                f"If {amount} of each time did not depend on the load, {outcome}."
            )
        yield " ".join([assumption, *cases])
    elif loads:
        yield from _extrapolated(plan, loads)


def _choice_with_overhead(best: Choice, choices: tuple[Choice, ...]) -> str:
    """Returns a clause on the best choice if times depended less on the load."""
    first = choices[0]
    if not math.isfinite(first.time.value):
        return "no choice would reach the target"
    if first.code is best.code and first.memory == best.memory:
        _, phrase = first.wait.describe(first.code.num_workers)
        return f"this code would still be the best, waiting {phrase}"
    this_code = next(
        choice
        for choice in choices
        if choice.code is best.code and choice.memory == best.memory
    )
    if math.isfinite(this_code.time.value):
        time = f"take {_excess(this_code.time.value / first.time.value)}"
    else:
        time = "not reach the target"
    return f"the best would be {first}, and this code would {time}"


def _extrapolated(plan: PlanData, loads: tuple[float, ...]) -> Iterator[str]:
    """Yields a sentence on choices with loads beyond the largest measured load."""
    names = []
    for choice in plan.shown:
        if np.max(np.asarray(choice.code.loads)) > loads[-1] * (1 + _SAME_TIME):
            names.append(f"{choice.name} with {choice.copies:.2g} copies")
    if names:
        yield (
            f"Extrapolated beyond the largest measured load, {loads[-1]:.3g}, on the "
            f"line of the two largest loads: {', '.join(names)}."
        )


def _without_waiting(plan: PlanData) -> Iterator[str]:
    """Yields sentences on workers that never wait for each other.

    Yields nothing for a single worker, or if a mean time is 0 or infinite.
    """
    num_gradients = plan.gradients_without_waiting
    if plan.num_workers == 1 or not 0 < num_gradients < math.inf:
        return
    num_steps = plan.best.num_steps
    ratio = num_gradients / (num_steps * plan.num_workers)
    yield (
        "In the time of the best choice, workers that never wait would deliver "
        f"{num_gradients:,.0f} gradients of 1/{plan.num_workers} of the data, "
        f"{ratio:.1f} times as many as its {num_steps:,.0f} steps use at most. More "
        "gradients help if workers have alike data and noisy gradients; if their data "
        "differ and the target is accurate, stored messages (`memory=True`) were "
        'faster. `jaxwgc.race` compares both, see the page "Wait, code, or go '
        'asynchronous?".'
    )


def _table(plan: PlanData) -> Iterator[str]:
    """Yields the lines of a table with the best choice per code."""
    header = [
        "code",
        "d",
        "waits for",
        "step",
        "90%" if plan.stalls is None else "stalls",
        "error",
        "MB",
        "steps",
        "time",
        "±" if plan.stalls is None else "regret",
    ]
    rows = [header, *(_row(choice, plan) for choice in plan.shown)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3])]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:])]
        yield "  ".join([" ".join(texts), *numbers]).rstrip()


def _row(choice: Choice, plan: PlanData) -> list[str]:
    """Returns the cells of a choice as text; "-" is for infinite numbers and NaN."""
    second = choice.step_quantile.value
    last = _cell(choice.time.standard_error, ".2g")
    if plan.stalls is not None:
        second = choice.stalled_step_time.value
        last = _cell(choice.regret if plan.is_reached else math.nan, ".0%")
    ends = math.isfinite(choice.step_time.value)
    return [
        choice.name,
        f"{choice.copies:.2g}",
        choice.waits_for,
        _cell(choice.step_time.value, "#.4g"),
        _cell(second, "#.4g"),
        _cell(choice.decoding_error.value, ".1%"),
        f"{choice.num_bytes / 1e6:#.3g}",
        _cell(choice.num_steps if ends else math.nan, "#.4g"),
        _cell(choice.time.value, "#.4g"),
        last,
    ]


def _cell(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "-"


def _notes(plan: PlanData) -> str:
    """Returns the notes below the table, on its columns, the goal and the order."""
    step = "step, 90%: mean and quantile of the time of a step"
    last = "±: one standard error. Sorted by time"
    goal = plan.goal
    if plan.stalls is not None:
        step = "step, stalls: mean time of a step without and with stalls"
        last = (
            "regret: how much longer it takes than the fastest choice, without stalls "
            "or with them, whichever is more; ±: one standard error. Sorted by regret"
        )
    return (
        f"d: copies of a part; {step}, in the unit of the delay model; error: squared, "
        "relative, mean over rounds; MB: through the coordinator in a step, for "
        f"{NUM_PARAMETERS:,} parameters; steps, time: to a loss of "
        f"{goal.target:g} of the start with condition {goal.condition:g} and "
        f"heterogeneity {goal.heterogeneity:g}; -: never; {last}. For each code, the "
        f"best waiting rule is shown, of {len(plan.choices)} choices in total."
    )


def to_dict(plan: PlanData) -> dict[str, Any]:
    """Converts a plan to a dict for JSON."""
    followed = plan.followed
    fields = {
        "advice": advice(plan),
        "lost": {plan.names[worker]: since for worker, since in plan.lost.items()},
        "num_workers": followed.num_workers,
        "names": list(followed.names),
        "target": plan.goal.target,
        "condition": plan.goal.condition,
        "heterogeneity": plan.goal.heterogeneity,
        "stalls": None,
        "choices": [_to_dict(choice) for choice in followed.shown],
    }
    stalls = followed.stalls
    if stalls is not None:
        fields["stalls"] = {"time": stalls.time, "probability": stalls.probability}
    if followed is not plan:
        with_lost_workers = [_to_dict(choice) for choice in plan.shown]
        fields["choices_with_lost_workers"] = with_lost_workers
    return fields


def _to_dict(choice: Choice) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "code": choice.name,
        "copies": choice.copies,
        "by_speed": choice.by_speed,
        "loads": np.asarray(choice.code.loads).tolist(),
        "waits_for": choice.waits_for,
        "late": choice.late,
        "memory": choice.memory,
    }
    for name in ("num_bytes", "num_steps", "regret", "tolerance"):
        fields[name] = _finite(getattr(choice, name))
    for name in (
        "step_time",
        "stalled_step_time",
        "decoding_error",
        "time",
        "stalled_time",
    ):
        estimate = getattr(choice, name)
        fields[name] = {
            "value": _finite(estimate.value),
            "standard_error": _finite(estimate.standard_error),
        }
    return fields


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
