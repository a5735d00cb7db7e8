"""What a plan gives: choices with their times, as numbers and as a table."""

import math
import textwrap
from typing import Any, NamedTuple

from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import WaitingRule, deadline, fastest, until_decodable
from jaxwgc.studies._candidates import EXACT

# In the table: of every code with every replication the best.
_NUM_ROWS = 12
_WIDTH = 80
# Differences above so many standard errors are clear ones.
_STANDARD_ERRORS = 2.0


class Estimate(NamedTuple):
    """A number and what is known of it.

    Attributes:
      value: the number.
      standard_error: by Monte Carlo; 0 where the value is a closed form, NaN where it
        is infinite.
    """

    value: float
    standard_error: float


class Choice(NamedTuple):
    """A code and how long to wait, with what it costs and what it gives.

    Times are in the unit of the delay model, seconds for those of the library.

    Attributes:
      name: the constructor of the code, or its name in `codes`.
      code: the gradient code.
      rule: "fastest", "deadline" or "until_decodable", of `jaxwgc.stragglers`.
      value: the parameter of the rule: workers, seconds, or the tolerance.
      replication: workers that hold a part, mean over the parts.
      step_time: expected time of a step, an `Estimate`.
      step_quantile: the time that 90% of the steps take at most, an `Estimate`.
      is_closed_form: whether both come from order statistics, not from Monte Carlo.
      decoding_error: mean of `jaxwgc.decoding_error` over the squared norm of the
        target, an `Estimate`.
      num_answers: messages that are waited for, mean over the rounds.
      num_bytes: through the coordinator in a step: parameters to all workers, and the
        messages that are waited for.
      num_steps: expected to the target; infinite where it is not reached.
      step_size: the constant step with the fewest, over the inverse of the largest
        curvature; where the target is not reached, the one that comes closest.
      lowest_loss: where the loss ends with that step, over that of the start.
      time: expected to the target, an `Estimate`.
      behind: by how much longer that is than with the best choice, an `Estimate` from
        the same rounds.
    """

    name: str
    code: GradientCode
    rule: str
    value: float
    replication: float
    step_time: Estimate
    step_quantile: Estimate
    is_closed_form: bool
    decoding_error: Estimate
    num_answers: float
    num_bytes: float
    num_steps: float
    step_size: float
    lowest_loss: float
    time: Estimate
    behind: Estimate

    @property
    def wait(self) -> WaitingRule:
        """The waiting rule, for `jaxwgc.stragglers.delayed` or a `RayCluster`."""
        if self.rule == "fastest":
            return fastest(int(self.value))
        if self.rule == "deadline":
            return deadline(self.value)
        return until_decodable(self.code, self.value)

    @property
    def is_coded(self) -> bool:
        """Whether there are parts on several workers."""
        return self.replication > 1

    @property
    def waits_for(self) -> str:
        """In few characters: "all", "first 29", "1.35 s", "decodable", "error 10%"."""
        if self.rule == "deadline":
            return f"{_short(self.value, 3)} s"
        if self.rule == "fastest":
            is_all = self.value == self.code.num_workers
            return "all" if is_all else f"first {self.value:.0f}"
        return "decodable" if self.value <= EXACT else f"error {self.value**2:.0%}"

    def __str__(self) -> str:
        """Such as "binary with 2 copies, waiting until the answers decode"."""
        copies = f" with {self.replication:.3g} copies" if self.is_coded else ""
        return f"{self.name}{copies}, waiting {self._waiting()}"

    def _waiting(self):
        workers = self.code.num_workers
        if self.rule == "deadline":
            return f"for {self.value:.4g} s"
        if self.rule == "fastest" and self.value == workers:
            return f"for all {workers} workers"
        if self.rule == "fastest":
            return f"for the first {self.value:.0f} of {workers} workers"
        error = "" if self.value <= EXACT else f" to an error of {self.value**2:.0%}"
        return f"until the answers decode{error}"


class Plan(NamedTuple):
    """What `plan` found; `print` shows the answer and a table.

    Attributes:
      choices: every `Choice`, the least expected time to the target first; those that
        do not reach it last, by the loss that they end at.
      num_workers: n.
      target: as given.
      condition: as given.
      heterogeneity: as given.
      num_rounds: that were simulated, where times or weights have no closed form.
      num_parameters: as given.
      bytes_per_number: as given.
    """

    choices: tuple[Choice, ...]
    num_workers: int
    target: float
    condition: float
    heterogeneity: float
    num_rounds: int
    num_parameters: int
    bytes_per_number: float

    @property
    def best(self) -> Choice:
        """The first choice; where none reaches the target, the closest one."""
        return self.choices[0]

    @property
    def is_reached(self) -> bool:
        """Whether the best choice reaches the target in finite time."""
        return math.isfinite(self.best.time.value)

    @property
    def by_code(self) -> tuple[Choice, ...]:
        """The best of every code and replication, in the order of `choices`."""
        found: dict[Any, Choice] = {}
        for own in self.choices:
            found.setdefault((own.name, own.replication), own)
        return tuple(found.values())

    @property
    def uncoded(self) -> Choice | None:
        """The best with each part on one worker; None where none was judged."""
        return next((own for own in self.choices if not own.is_coded), None)

    @property
    def next_best(self) -> Choice | None:
        """The best with another code or another replication; None where none was."""
        return next(iter(self.by_code[1:]), None)

    @property
    def answer(self) -> str:
        """What to do, and how much longer it takes to do something else."""
        return "\n".join(_filled(line) for line in _answer(self))

    def __str__(self) -> str:
        return "\n".join([self.answer, "", *_table(self), "", _filled(_notes(self))])


def _filled(text):
    return textwrap.fill(text, _WIDTH)


def _answer(plan):
    """What to do, and by how much it is better than what else could be done."""
    best = plan.best
    if not plan.is_reached:
        steps = _short(best.step_time.value)
        yield f"No choice reaches a loss of {plan.target:g} of the start."
        yield f"Closest comes {best}: {best.lowest_loss:.2g}, in steps of {steps} s."
        return
    others = {"Next best": plan.next_best, "Not coding": plan.uncoded}
    if not best.is_coded:
        coded = (own for own in plan.choices if own.is_coded)
        others = {"The best code": next(coded, None)}
    others["Waiting for all"] = _waiting_for_all(plan)
    told = [best]
    yield f"{'Code' if best.is_coded else 'Do not code'}: {best}."
    for name, own in others.items():
        if own is not None and own not in told:
            yield f"{name}: {own}, {_behind(own, best)}."
            told.append(own)


def _behind(own, best):
    if math.isinf(own.time.value):
        return "does not reach the target"
    longer, error = (100 * each / best.time.value for each in own.behind)
    is_clear = longer > _STANDARD_ERRORS * error
    clear = "" if is_clear else ", no clear difference"
    return f"takes {longer:.1f}% longer (± {error:.1f}){clear}"


def _waiting_for_all(plan):
    """What everyone knows: no code, and no one ignored."""
    found = (
        own
        for own in plan.choices
        if not own.is_coded and own.rule == "fastest" and own.value == plan.num_workers
    )
    return next(found, None)


def _table(plan):
    names = "code", "d", "waits for", "step", "90%", "error", "MB", "steps", "time", "±"
    rows: list[tuple[str, ...]] = [names]
    shown = list(plan.by_code[:_NUM_ROWS])
    all_awaited = _waiting_for_all(plan)
    if all_awaited is not None and all_awaited not in shown:
        shown.append(all_awaited)
    for own in shown:
        cells = (
            own.name,
            f"{own.replication:.2g}",
            own.waits_for,
            _short(own.step_time.value),
            _short(own.step_quantile.value),
            f"{own.decoding_error.value:.1%}",
            _short(own.num_bytes / 1e6, 3),
            _short(own.num_steps),
            _short(own.time.value),
            _short(own.time.standard_error, 2),
        )
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        yield "  ".join([" ".join(cells[:3]), *cells[3:]]).rstrip()


def _notes(plan):
    """What the columns are, and for what they hold."""
    goal = (
        f"a loss of {plan.target:g} of the start with condition {plan.condition:g} and "
        f"heterogeneity {plan.heterogeneity:g}"
    )
    return (
        "d: copies of a part; step, 90%: seconds, mean and quantile; error: squared, "
        "relative; MB: through the coordinator in a step; steps, time (± standard "
        f"error): to {goal}. Of each code the best waiting rule is shown, of "
        f"{len(plan.choices)} choices in all."
    )


def _short(value, digits=4):
    """A number to so many digits."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "never"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 6:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 2}g}"
