"""Result of a plan: ranked choices with their times, as numbers and as a table."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers import Stalls, fastest
from jaxwgc.studies._planning import _convergence
from jaxwgc.studies._planning._choice import (
    BY_SPEED,
    UNCODED,
    Choice,
    Estimate,
    RoundStatistics,
)
from jaxwgc.studies._planning._convergence import (
    Goal,
    StaleDescent,
    Weights,
    leave_one_out,
)

# Maximum number of rows in the table: the best choice per code and replication.
_NUM_ROWS = 12
_WIDTH = 80
# Number of standard errors above which a difference is clear.
_STANDARD_ERRORS = 2.0


class Plan(NamedTuple):
    """Result of `plan`; `print` shows the advice and a table.

    Attributes:
      choices: Every `Choice`, by increasing `regret`; without stalls this is the order
        of expected times to the target. Choices that do not reach the target are last,
        ordered by their final loss.
      num_workers: n.
      target: Argument of `plan`.
      condition: Argument of `plan`.
      heterogeneity: Argument of `plan`.
      num_rounds: Number of simulated rounds, for times or weights without a closed
        form.
      num_parameters: Argument of `plan`.
      bytes_per_number: Argument of `plan`.
      stalls: Stalls that the trace does not rule out; None for parametric delay models.
    """

    choices: tuple[Choice, ...]
    num_workers: int
    target: float
    condition: float
    heterogeneity: float
    num_rounds: int
    num_parameters: int
    bytes_per_number: float
    stalls: Stalls | None = None

    @property
    def best(self) -> Choice:
        """Best choice; if none reaches the target, the one that comes closest."""
        return self.choices[0]

    @property
    def has_stalls(self) -> bool:
        """True if choices are also compared with hypothetical stalls of workers."""
        return self.stalls is not None and self.stalls.time > 0

    @property
    def is_reached(self) -> bool:
        """True if the best choice reaches the target in finite time."""
        return math.isfinite(self.best.time.value)

    @property
    def by_code(self) -> tuple[Choice, ...]:
        """Best choice of every code and replication factor, in the order of `choices`.

        Choices with memory are listed separately.
        """
        best: dict[Any, Choice] = {}
        for choice in self.choices:
            kind = choice.name, choice.replication, choice.memory
            best.setdefault(kind, choice)
        return tuple(best.values())

    @property
    def uncoded(self) -> Choice | None:
        """Best choice with each part on one worker; None if there is none."""
        return next((each for each in self.choices if not each.is_coded), None)

    @property
    def next_best(self) -> Choice | None:
        """Best choice unlike `best` in code, replication factor or memory, or None."""
        return next(iter(self.by_code[1:]), None)

    def replan(
        self,
        *,
        target: float | None = None,
        condition: float | None = None,
        heterogeneity: float | None = None,
    ) -> "Plan":
        """Returns the plan for another goal, without new simulations.

        Args:
          target: See `plan`. None keeps the value.
          condition: See `plan`. None keeps the value.
          heterogeneity: See `plan`. None keeps the value.

        Returns:
          A `Plan` with the same choices in another order.

        Raises:
          ValueError, TypeError: See `plan`.
        """
        goal = Goal.checked(
            self.target if target is None else target,
            self.condition if condition is None else condition,
            self.heterogeneity if heterogeneity is None else heterogeneity,
            self.num_workers,
        )
        size = self.num_parameters * self.bytes_per_number
        choices = tuple(ranked_choices(self.choices, goal, size))
        return self._replace(choices=choices, **goal._asdict())

    @property
    def answer(self) -> str:
        """Text on the recommended choice, and how much longer alternatives take."""
        lines = *_answer(self), *_unseen(self)
        return "\n".join(textwrap.fill(line, _WIDTH) for line in lines)

    def __str__(self) -> str:
        notes = textwrap.fill(_notes(self), _WIDTH)
        return "\n".join([self.answer, "", *_table(self), "", notes])


def _answer(plan):
    """Yields sentences on the best choice and its advantage over alternatives."""
    best = plan.best
    if math.isinf(best.step_time.value):
        yield "No choice has steps that end: too few workers ever respond, or the mean"
        yield "time of the awaited workers is infinite."
        return
    if not plan.is_reached:
        steps = short(best.step_time.value)
        yield f"No choice reaches a loss of {plan.target:g} of the start."
        yield f"Closest comes {best}: {best.lowest_loss:.2g}, in steps of {steps} s."
        return
    others = {"Next best": plan.next_best, "Not coding": plan.uncoded}
    if not best.is_coded:
        coded = (choice for choice in plan.choices if choice.is_coded)
        others = {"The best code": next(coded, None)}
    others["Waiting for all"] = everyone = _waiting_for_all(plan)
    by_speed = next((each for each in plan.choices if each.name == BY_SPEED), None)
    if by_speed and everyone and math.isfinite(by_speed.step_time.value):
        faster = everyone.step_time.value / by_speed.step_time.value
        loads = " ".join(f"{load:.2g}" for load in np.asarray(by_speed.code.loads))
        yield (
            f"Work in proportion to speed makes steps {faster:.2g} times as fast "
            f"without a code: loads {loads}."
        )
    told = [best]
    yield f"{'Code' if best.is_coded else 'Do not code'}: {best}."
    for name, choice in others.items():
        if choice is not None and not any(choice is each for each in told):
            yield f"{name}: {choice}, {_behind(choice, best, plan)}."
            told.append(choice)


def _behind(choice, best, plan):
    if math.isinf(choice.time.value):
        is_endless = math.isinf(choice.step_time.value)
        return "has no finite mean time" if is_endless else "does not reach the target"
    longer, error = (100 * each / best.time.value for each in choice.behind)
    is_clear = abs(longer) > _STANDARD_ERRORS * error
    clear = "" if is_clear else ", no clear difference"
    calm = f"takes {_more(longer)} (± {error:.1f}{clear})"
    if not plan.has_stalls:
        return calm
    stalled = 100 * (choice.stalled_time.value / best.stalled_time.value - 1)
    one_in = f"{1 / plan.stalls.probability:.0f}"
    return f"{calm} without stalls, {_more(stalled)} if one time in {one_in} stalls"


def _more(percents):
    if not math.isfinite(percents):
        return "forever"
    return f"{abs(percents):.1f}% {'longer' if percents >= 0 else 'less'}"


def _unseen(plan):
    """Yields sentences on events that the trace may hide."""
    if plan.stalls is None:
        return
    if plan.stalls.num_rounds == 1:
        yield (
            "The trace has one round, in which permanently slow workers look like "
            "temporarily slow ones: measure more rounds."
        )
    if plan.has_stalls and math.isfinite(plan.best.regret):
        yield (
            f"A stall of {short(plan.stalls.time, 3)} s in one time of "
            f"{1 / plan.stalls.probability:.0f} is not in the trace, which does not "
            "rule it out, either. With and without stalls, the first choice is at most "
            f"{100 * plan.best.regret:.1f}% slower than the best: the least regret."
        )


def _waiting_for_all(plan):
    """Returns the baseline choice: uncoded, waiting for all workers."""
    named = (choice for choice in plan.choices if choice.name == UNCODED)
    everyone = fastest(plan.num_workers)
    return next((choice for choice in named if choice.wait == everyone), None)


def _table(plan):
    second, last = ("stalls", "regret") if plan.has_stalls else ("90%", "±")
    names = ["code", "d", "waits for", "step", second, "error", "MB"]
    rows = [[*names, "steps", "time", last]]
    shown = list(plan.by_code[:_NUM_ROWS])
    all_awaited = _waiting_for_all(plan)
    if all_awaited is not None and not any(all_awaited is each for each in shown):
        shown.append(all_awaited)
    for choice in shown:
        second, last = choice.step_quantile, short(choice.time.standard_error, 2)
        if plan.has_stalls:
            second, last = choice.stalled_step_time, f"{choice.regret:.0%}"
        name = choice.name, f"{choice.replication:.2g}", choice.waits_for
        numbers = choice.step_time.value, second.value, choice.num_steps
        step, second, steps = map(short, numbers)
        error = f"{choice.decoding_error.value:.1%}"
        megabytes, time = short(choice.num_bytes / 1e6, 3), short(choice.time.value)
        rows.append([*name, step, second, error, megabytes, steps, time, last])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        names = " ".join(map(str.ljust, row[:3], widths))
        yield "  ".join([names, *map(str.rjust, row[3:], widths[3:])]).rstrip()


def _notes(plan):
    """Returns the notes below the table, on its order, its columns and the goal."""
    goal = (
        f"a loss of {plan.target:g} of the start with condition {plan.condition:g} and "
        f"heterogeneity {plan.heterogeneity:g}"
    )
    second = "stalls: seconds, mean without and with stalls"
    order = "regret, the share of time above the best, without stalls or with them"
    if not plan.has_stalls:
        second = "90%: seconds, mean and quantile"
        order = "time (± standard error)"
    return (
        f"Sorted by {order}. d: copies of a part; step, {second}; error: squared, "
        "relative; MB: through the coordinator in a step; steps, time: to "
        f"{goal}. For each code, the best waiting rule is shown, of "
        f"{len(plan.choices)} choices in total."
    )


def ranked_choices(
    judged: Sequence[Choice], goal: Goal, gradient_bytes: float
) -> list[Choice]:
    """Sorts choices by regret; without stalls this is the order of their times.

    Choices have statistics of their rounds without stalls and, if stalls are not ruled
    out, with them.
    """
    cases = zip(*(choice.rounds for choice in judged), strict=True)
    each = [_to_target(statistics, goal) for statistics in cases]
    calm, stalled = each[0], each[-1]
    regret = np.max([needed.regret for needed in each], axis=0)
    is_endless = np.isinf(calm.seconds[:, 0])
    order = np.lexsort(
        (calm.seconds[:, 0], calm.lowest, is_endless, calm.times[:, 0], regret)
    )
    best = calm.times[order[0]]

    def filled(index):
        choice, rounds = judged[index], judged[index].rounds
        answers = rounds[0].num_answers
        length = 1 / choice.code.num_segments
        return choice._replace(
            step_time=_jackknife(calm.seconds[index]),
            step_quantile=rounds[0].quantile,
            stalled_step_time=_jackknife(stalled.seconds[index]),
            is_closed_form=rounds[0].is_closed_form,
            decoding_error=_jackknife(leave_one_out(rounds[0].error)),
            num_answers=answers,
            num_bytes=(choice.code.num_workers + answers * length) * gradient_bytes,
            num_steps=float(calm.steps[index, 0]),
            step_size=float(calm.step[index]),
            lowest_loss=float(calm.lowest[index]),
            time=_jackknife(calm.times[index]),
            stalled_time=_jackknife(stalled.times[index]),
            behind=_jackknife(calm.times[index] - best),
            regret=float(regret[index]),
        )

    # Differences of infinite times are NaN, which is no reason to warn.
    with np.errstate(invalid="ignore"):
        return [filled(index) for index in order]


class _ToTarget(NamedTuple):
    """Costs of reaching the target: a row per choice, and columns of `leave_one_out`.

    These are the step size (one column), number of steps, time of one step and of all,
    and the final loss (one column).
    """

    step: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray
    times: np.ndarray
    lowest: np.ndarray

    @property
    def regret(self) -> np.ndarray:
        """Returns the relative excess over the shortest time; 0 if all are infinite."""
        least = self.times[:, 0].min()
        if np.isinf(least):
            return np.zeros(len(self.times))
        return self.times[:, 0] / least - 1


def _to_target(judged: Sequence[RoundStatistics], goal: Goal) -> _ToTarget:
    """Computes costs from all groups of rounds (column 0), and without one group.

    Standard errors follow by the jackknife.
    """
    seconds = np.stack([leave_one_out(each.seconds) for each in judged])
    weights = Weights(*map(np.stack, zip(*(each.weights for each in judged))))
    whole = Weights(*(column[:, 0] for column in weights))
    step = _convergence.best_step(whole, goal)
    steps = _convergence.num_steps(weights, step[:, None], goal)
    lowest = whole.loss(step, goal)(np.inf)
    for index, statistics in enumerate(judged):
        if statistics.descent is not None:
            groups = StaleDescent(*map(leave_one_out, statistics.descent))
            all_groups = StaleDescent(*(column[0] for column in groups))
            step[index] = _convergence.best_step(all_groups, goal)
            steps[index] = _convergence.num_steps(groups, step[index], goal)
            lowest[index] = all_groups.loss(step[index], goal)(np.inf)
    times = np.where(np.isfinite(steps), steps * seconds, np.inf)
    return _ToTarget(step, steps, seconds, times, lowest)


def _jackknife(values: np.ndarray) -> Estimate:
    """Returns an estimate from all groups, with its jackknife error."""
    if not np.isfinite(values).all():
        return Estimate(float(values[0]), math.nan)
    number = len(values) - 1
    spread = math.sqrt((number - 1) * np.var(values[1:]))
    # A spread at the level of rounding counts as 0.
    is_noise = spread > 1e-12 * abs(values[0])
    return Estimate(float(values[0]), spread if is_noise else 0.0)


def short(value, digits=4):
    """Formats a number with a given number of significant digits."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "never"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 6:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 2}g}"
