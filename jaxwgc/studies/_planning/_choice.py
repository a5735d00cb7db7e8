"""One thing to do, with what it costs and what it gives."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxwgc._targets import DECODES
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import (
    DelayModel,
    StragglerModel,
    WaitingRule,
    delayed,
    fastest,
)

# Without a code, and with work in proportion to the speeds of the workers.
UNCODED, BY_SPEED = "uncoded", "uncoded by speed"
CANCELLED, BUSY = "cancelled", "busy"


class Estimate(NamedTuple):
    """A number and what is known of it.

    Attributes:
      value: the number.
      standard_error: by Monte Carlo; 0 where the value is a closed form, NaN where it
        is infinite.
    """

    value: float
    standard_error: float


class RoundStatistics(NamedTuple):
    """Statistics of the rounds of a choice; arrays are means of groups, (groups,).

    Attributes:
      seconds: of a step.
      quantile: of these, 90%.
      is_closed_form: whether both are.
      answers: messages that are waited for; on request, sums of them at most.
      error: squared, over the squared norm of the target.
      scale: of the effective weights, along the target.
      scale_square: its square.
      deviation: mean square of the effective weights around their scale.
      bias: mean square, over the parts, of the mean deviation of each. A scalar.
      lasting: the share of the other deviations that does not pass at once. A scalar.
      correlation: of that share in a round with that in the next. A scalar.
      remembered: how descent goes with late answers, a row a group; None without.
    """

    seconds: np.ndarray
    quantile: Estimate
    is_closed_form: bool
    answers: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    scale_square: np.ndarray
    deviation: np.ndarray
    bias: float = 0.0
    lasting: float = 0.0
    correlation: float = 0.0
    remembered: Any = None


_UNKNOWN = Estimate(math.nan, math.nan)


class Choice(NamedTuple):
    """A code and how long to wait, with what it costs and what it gives.

    Times are in the unit of the delay model, seconds for those of the library.
    `jaxwgc.coded_aggregate(choice.code, choice.model(delay), key)` simulates the
    choice, and `RayCluster(loss, parts=parts, **choice.cluster_options())` runs it.

    Attributes:
      name: the constructor of the code, or its name in `codes`.
      code: the gradient code.
      wait: the waiting rule.
      late: what late workers do, as for `delayed`: `"cancelled"` or `"busy"`.
      memory: whether late answers are remembered, for `jaxwgc.coded_aggregate` or
        `RayCluster.train`.
      step_time: expected time of a step, an `Estimate`.
      step_quantile: the time that 90% of the steps take at most, an `Estimate`.
      stalled_step_time: expected time of a step where workers stall now and then, as
        `Plan.stalls` says; without them that of a step.
      is_closed_form: whether both come from order statistics, not from Monte Carlo.
      decoding_error: mean of `jaxwgc.decoding_error` over the squared norm of the
        target, an `Estimate`.
      num_answers: messages that are waited for, mean over the rounds; of a code that
        allows requests one sum of each worker that has finished a part, at most.
      num_bytes: through the coordinator in a step: parameters to all workers, and the
        messages that are waited for.
      num_steps: expected to the target; infinite where it is not reached.
      step_size: the constant step with the fewest, over the inverse of the largest
        curvature; where the target is not reached, the one that comes closest.
      lowest_loss: where the loss ends with that step, over that of the start.
      time: expected to the target, an `Estimate`.
      stalled_time: the same where workers stall.
      behind: by how much longer `time` is than with the best choice, an `Estimate` from
        the same rounds. Negative where another is the best because of stalls.
      regret: by which share it takes longer than what is the fastest, without stalls or
        with them, whichever is more.
      rounds: what they gave without stalls, and with them; from these plans for other
        goals are made.
    """

    name: str
    code: GradientCode
    wait: WaitingRule
    late: str = CANCELLED
    memory: bool = False
    step_time: Estimate = _UNKNOWN
    step_quantile: Estimate = _UNKNOWN
    stalled_step_time: Estimate = _UNKNOWN
    is_closed_form: bool = False
    decoding_error: Estimate = _UNKNOWN
    num_answers: float = math.nan
    num_bytes: float = math.nan
    num_steps: float = math.nan
    step_size: float = math.nan
    lowest_loss: float = math.nan
    time: Estimate = _UNKNOWN
    stalled_time: Estimate = _UNKNOWN
    behind: Estimate = _UNKNOWN
    regret: float = math.nan
    rounds: tuple[RoundStatistics, ...] = ()

    def model(self, delay: DelayModel) -> StragglerModel:
        """Returns the straggler model of this choice, for `jaxwgc.coded_aggregate`.

        Args:
          delay: the delay model of the plan, or another one for the same workers.

        Raises:
          ValueError: If the delay model is not for `code.num_workers` workers.
          TypeError: If `delay` is no delay model.
        """
        model = delayed(delay, self.wait, self.late)
        StragglerModel.check("delay", model, self.code.loads)
        return model

    @property
    def tolerance(self) -> float:
        """Returns the largest decoding error of a round that is as planned.

        Pass it as `tolerance` to `jaxwgc.coded_aggregate` or `RayCluster`, so that a
        round counts as undecodable if it is worse than planned. If `memory`, stored
        messages complete every round that is not exact. If `wait` counts workers or
        seconds and the planned error is not 0, a round decodes from any response.
        """
        if self.wait.tolerance is not None and not self.memory:
            return max(self.wait.tolerance, DECODES)
        is_exact = self.memory or self.decoding_error.value <= DECODES**2
        return DECODES if is_exact else 1 - DECODES

    def cluster_options(self) -> dict[str, Any]:
        """Returns the arguments by which `RayCluster` works as this choice.

        `memory` is an argument of `RayCluster.train`. There, workers that send one
        message are always busy when late, as in a plan with `late="busy"`.
        """
        decoding = DecodingOptions(tolerance=self.tolerance)
        return {"code": self.code, "wait": self.wait, "decoding": decoding}

    @property
    def replication(self) -> float:
        """Returns the number of workers that hold a part, mean over the parts."""
        return float(np.asarray(self.code.assignment).sum(0).mean())

    @property
    def is_coded(self) -> bool:
        """Returns whether there are parts on several workers."""
        return self.replication > 1

    @property
    def is_exact(self) -> bool:
        """Returns whether the code guarantees that every round decodes, if it ends."""
        stragglers = int(np.asarray(self.code.num_stragglers))
        is_exact = stragglers > 0 or self.name in (UNCODED, BY_SPEED)
        if isinstance(self.wait, fastest):
            is_exact &= self.wait.num_required >= self.code.num_workers - stragglers
        else:
            tolerance = self.wait.tolerance
            is_exact &= tolerance is not None and tolerance <= DECODES
        return bool(is_exact)

    @property
    def waits_for(self) -> str:
        """In few characters: "all", "first 29", "1.35 s", "decodable", "error 10%".

        With "+ late" where late answers are remembered.
        """
        waiting = self.wait.describe(self.code.num_workers)[0]
        return f"{waiting} + late" if self.memory else waiting

    def __str__(self) -> str:
        """Such as "binary with 2 copies, waiting until the answers decode"."""
        copies = f" with {self.replication:.3g} copies" if self.is_coded else ""
        _, waiting = self.wait.describe(self.code.num_workers)
        remembering = ", late answers remembered" if self.memory else ""
        return f"{self.name}{copies}, waiting {waiting}{remembering}"


def short(value, digits=4):
    """A number to so many digits."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "never"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 6:
        return f"{value:.{max(digits - 1 - exponent, 0)}f}"
    return f"{value:.{digits - 2}g}"
