"""Result of a plan: choices with their times, as numbers and as a table."""

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers import Stalls, fastest
from jaxwgc.studies._planning._choice import BY_SPEED, UNCODED, Choice, short
from jaxwgc.studies._planning._ranking import ranked_choices
from jaxwgc.studies._planning._steps_to_target import Goal

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
        """First choice; if none reaches the target, the closest one."""
        return self.choices[0]

    @property
    def has_stalls(self) -> bool:
        """True if choices are also judged with stalls."""
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
        """Best choice with each part on one worker; None if none was judged."""
        return next((each for each in self.choices if not each.is_coded), None)

    @property
    def next_best(self) -> Choice | None:
        """Best choice that differs in code, replication factor or memory, or None."""
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
        """The recommended choice, and how much longer alternatives take."""
        lines = *_answer(self), *_unseen(self)
        return "\n".join(_filled(line) for line in lines)

    def __str__(self) -> str:
        return "\n".join([self.answer, "", *_table(self), "", _filled(_notes(self))])


def _filled(text):
    return textwrap.fill(text, _WIDTH)


def _answer(plan):
    """Yields sentences: the best choice and its advantage over alternatives."""
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
    others["Waiting for all"] = _waiting_for_all(plan)
    by_speed = _first(plan, lambda choice: choice.name == BY_SPEED)
    if by_speed is not None and math.isfinite(by_speed.step_time.value):
        yield _moved(by_speed, _waiting_for_all(plan))
    told = [best]
    yield f"{'Code' if best.is_coded else 'Do not code'}: {best}."
    for name, choice in others.items():
        if choice is not None and not any(choice is each for each in told):
            yield f"{name}: {choice}, {_behind(choice, best, plan)}."
            told.append(choice)


def _moved(by_speed, everyone):
    """Returns a sentence on the speedup by work in proportion to speed."""
    faster = everyone.step_time.value / by_speed.step_time.value
    loads = " ".join(f"{load:.2g}" for load in np.asarray(by_speed.code.loads))
    return (
        f"Work in proportion to speed makes steps {faster:.2g} times as fast without a "
        f"code: loads {loads}."
    )


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
    """Returns the baseline: uncoded workers, waiting for all."""
    everyone = fastest(plan.num_workers)
    return _first(
        plan, lambda choice: choice.name == UNCODED and choice.wait == everyone
    )


def _first(plan, is_meant):
    return next(filter(is_meant, plan.choices), None)


def _table(plan):
    second, last = ("stalls", "regret") if plan.has_stalls else ("90%", "±")
    names = ["code", "d", "waits for", "step", second, "error", "MB"]
    rows = [[*names, "steps", "time", last]]
    shown = list(plan.by_code[:_NUM_ROWS])
    all_awaited = _waiting_for_all(plan)
    if all_awaited is not None and not any(all_awaited is each for each in shown):
        shown.append(all_awaited)
    for choice in shown:
        stalled, quantile = choice.stalled_step_time, choice.step_quantile
        cells = [
            choice.name,
            f"{choice.replication:.2g}",
            choice.waits_for,
            short(choice.step_time.value),
            short((stalled if plan.has_stalls else quantile).value),
            f"{choice.decoding_error.value:.1%}",
            short(choice.num_bytes / 1e6, 3),
            short(choice.num_steps),
            short(choice.time.value),
            f"{choice.regret:.0%}"
            if plan.has_stalls
            else short(choice.time.standard_error, 2),
        ]
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        yield "  ".join([" ".join(cells[:3]), *cells[3:]]).rstrip()


def _notes(plan):
    """Returns the meaning of the columns and the goal."""
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
