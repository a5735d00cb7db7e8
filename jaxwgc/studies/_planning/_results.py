"""Result of a plan: ranked choices with their times, as numbers and as a table."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers import Stalls
from jaxwgc.studies._planning import _convergence
from jaxwgc.studies._planning._choice import Choice, Estimate
from jaxwgc.studies._planning._convergence import Goal, StaleDescent, Weights

# Maximum number of rows in the table: the best choice per code and replication.
_NUM_ROWS = 12
_WIDTH = 80


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
            best.setdefault((id(choice.code), choice.memory), choice)
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
        given = target, condition, heterogeneity
        kept = self.target, self.condition, self.heterogeneity
        numbers = (old if new is None else new for new, old in zip(given, kept))
        goal = Goal.checked(*numbers, num_workers=self.num_workers)
        size = self.num_parameters * self.bytes_per_number
        choices = tuple(ranked_choices(self.choices, goal, size))
        return self._replace(choices=choices, **goal._asdict())

    @property
    def answer(self) -> str:
        """Text on the recommended choice, and how much longer alternatives take."""
        lines = *_answer(self), *_hidden(self)
        return "\n".join(textwrap.fill(line, _WIDTH) for line in lines)

    def __str__(self) -> str:
        notes = textwrap.fill(_notes(self), _WIDTH)
        return "\n".join([self.answer, "", *_table(self), "", notes])


def _answer(plan):
    """Yields sentences on the best choice and its advantage over alternatives."""
    best = plan.best
    if not plan.is_reached:
        yield f"No choice reaches a loss of {plan.target:g} of the start."
        steps = f"steps of {best.step_time.value:.4g} s"
        yield f"Closest comes {best}: {best.lowest_loss:.2g}, in {steps}."
        return
    everyone = _waiting_for_all(plan)
    uncoded = (choice for choice in plan.choices if not choice.is_coded)
    by_speed = next((choice for choice in uncoded if choice.by_speed), None)
    if by_speed and everyone and math.isfinite(by_speed.step_time.value):
        faster = everyone.step_time.value / by_speed.step_time.value
        loads = " ".join(f"{load:.2g}" for load in np.asarray(by_speed.code.loads))
        yield (
            f"Work in proportion to speed makes steps {faster:.2g} times as fast "
            f"without a code: loads {loads}."
        )
    yield f"{'Code' if best.is_coded else 'Do not code'}: {best}."
    others = {"Next best": plan.next_best, "Not coding": plan.uncoded}
    if not best.is_coded:
        coded = (choice for choice in plan.choices if choice.is_coded)
        others = {"The best code": next(coded, None)}
    told = [None, best]
    for name, choice in (others | {"Waiting for all": everyone}).items():
        if not any(choice is each for each in told):
            yield f"{name}: {choice}, {_behind(choice, best, plan)}."
            told.append(choice)


def _behind(choice, best, plan):
    if math.isinf(choice.step_time.value):
        return "has no finite mean time"
    if math.isinf(choice.time.value):
        return "does not reach the target"
    longer, error = (100 * each / best.time.value for each in choice.behind)
    calm = f"takes {_more(longer)} (± {error:.1f})"
    if not plan.has_stalls:
        return calm
    stalled = 100 * (choice.stalled_time.value / best.stalled_time.value - 1)
    one_in = f"{1 / plan.stalls.probability:.0f}"
    return f"{calm} without stalls, {_more(stalled)} if one time in {one_in} stalls"


def _more(percents):
    return f"{abs(percents):.1f}% {'less' if percents < 0 else 'longer'}"


def _hidden(plan):
    """Yields sentences on stalls that the trace may hide."""
    if plan.stalls and plan.has_stalls and math.isfinite(plan.best.regret):
        yield (
            f"A stall of {plan.stalls.time:.3g} s in one time of "
            f"{1 / plan.stalls.probability:.0f} is not in the trace, which does not "
            "rule it out, either. With and without stalls, the first choice is at most "
            f"{100 * plan.best.regret:.1f}% slower than the best: the least regret."
        )


def _waiting_for_all(plan):
    """Returns the baseline choice: uncoded, waiting for all workers."""
    return next((choice for choice in plan.choices if choice.is_baseline), None)


def _table(plan):
    second, last = ("stalls", "regret") if plan.has_stalls else ("90%", "±")
    names = ["code", "d", "waits for", "step", second, "error", "MB"]
    rows = [[*names, "steps", "time", last]]
    shown = list(plan.by_code[:_NUM_ROWS])
    everyone = _waiting_for_all(plan)
    if not any(everyone is each for each in (None, *shown)):
        shown.append(everyone)
    for choice in shown:
        second, last = choice.step_quantile, f"{choice.time.standard_error:.2g}"
        if plan.has_stalls:
            second, last = choice.stalled_step_time, f"{choice.regret:.0%}"
        row = [choice.name, f"{choice.replication:.2g}", choice.waits_for]
        row += [f"{choice.step_time.value:#.4g}", f"{second.value:#.4g}"]
        row += [f"{choice.decoding_error.value:.1%}", f"{choice.num_bytes / 1e6:#.3g}"]
        row += [f"{choice.num_steps:#.4g}", f"{choice.time.value:#.4g}", last]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        names = " ".join(map(str.ljust, row[:3], widths))
        yield "  ".join([names, *map(str.rjust, row[3:], widths[3:])]).rstrip()


def _notes(plan):
    """Returns the notes below the table, on its order, its columns and the goal."""
    second = "stalls: seconds, mean without and with stalls"
    order = "regret, the share of time above the best, without stalls or with them"
    if not plan.has_stalls:
        second = "90%: seconds, mean and quantile"
        order = "time"
    return (
        f"Sorted by {order}. d: copies of a part; step, {second}; error: squared, "
        "relative; MB: through the coordinator in a step; steps, time: to a loss of "
        f"{plan.target:g} of the start with condition {plan.condition:g} and "
        f"heterogeneity {plan.heterogeneity:g}. For each code, the best waiting rule "
        f"is shown, of {len(plan.choices)} choices in total. ±: one standard error."
    )


def ranked_choices(judged: Sequence[Choice], goal: Goal, size: float) -> list[Choice]:
    """Sorts choices by regret; without stalls this is the order of their times.

    Choices have statistics of their rounds without stalls and, if stalls are not ruled
    out, with them. A gradient has `size` bytes.
    """
    cases = zip(*(choice.rounds for choice in judged), strict=True)
    cases = [_to_target(statistics, goal) for statistics in cases]
    calm, stalled = cases[0], cases[-1]
    regret = np.max([case.regret for case in cases], axis=0)
    seconds, times = calm.seconds[:, 0], calm.times[:, 0]
    order = np.lexsort((seconds, calm.lowest, np.isinf(seconds), times, regret))
    best = calm.times[order[0]]

    def filled(index):
        choice, rounds = judged[index], judged[index].rounds[0]
        sent = choice.code.num_workers + rounds.num_answers / choice.code.num_segments
        return choice._replace(
            step_time=_jackknife(calm.seconds[index]),
            step_quantile=rounds.quantile,
            stalled_step_time=_jackknife(stalled.seconds[index]),
            is_closed_form=rounds.is_closed_form,
            decoding_error=_jackknife(rounds.error),
            num_answers=rounds.num_answers,
            num_bytes=sent * size,
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

    These are the step size, number of steps, time of one step and of all, final loss,
    and relative excess over the shortest time. Step size, loss and excess have one
    column. The excess is 0 if all times are infinite.
    """

    step: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray
    times: np.ndarray
    lowest: np.ndarray
    regret: np.ndarray


def _to_target(judged, goal):
    """Computes costs from all groups of rounds (column 0), and without one group.

    Standard errors follow by the jackknife.
    """
    seconds = np.stack([each.seconds for each in judged])
    weights = Weights(*map(np.stack, zip(*(each.weights for each in judged))))
    whole = Weights(*(column[:, 0] for column in weights))
    step = _convergence.best_step(whole, goal)
    steps = _convergence.num_steps(weights, step[:, None], goal)
    lowest = whole.loss(step, goal)(np.inf)
    for index, statistics in enumerate(judged):
        if (descent := statistics.descent) is not None:
            whole = StaleDescent(*(column[0] for column in descent))
            step[index] = _convergence.best_step(whole, goal)
            steps[index] = _convergence.num_steps(descent, step[index], goal)
            lowest[index] = whole.loss(step[index], goal)(np.inf)
    times = np.where(np.isfinite(steps), steps * seconds, np.inf)
    with np.errstate(invalid="ignore"):
        excess = times[:, 0] / times[:, 0].min() - 1
    regret = np.nan_to_num(excess, posinf=np.inf)
    return _ToTarget(step, steps, seconds, times, lowest, regret)


def _jackknife(values):
    """Returns an estimate with its jackknife error, NaN if a value is infinite."""
    variance = (len(values) - 2) * np.var(values[1:] - values[0])
    error = math.sqrt(variance) if np.isfinite(variance) else math.nan
    return Estimate(float(values[0]), error)
