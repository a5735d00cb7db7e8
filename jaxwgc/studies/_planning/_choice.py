"""One thing to do, with what it costs and what it gives."""

import math
from typing import Any, NamedTuple

from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import DelayModel, StragglerModel, WaitingRule, delayed
from jaxwgc.studies._planning._candidates import Candidate
from jaxwgc.studies._planning._judgement import ChoiceStatistics, Estimate


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
      replication: workers that hold a part, mean over the parts.
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
    late: str
    memory: bool
    replication: float
    step_time: Estimate
    step_quantile: Estimate
    stalled_step_time: Estimate
    is_closed_form: bool
    decoding_error: Estimate
    num_answers: float
    num_bytes: float
    num_steps: float
    step_size: float
    lowest_loss: float
    time: Estimate
    stalled_time: Estimate
    behind: Estimate
    regret: float
    rounds: tuple[ChoiceStatistics, ...]

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
        return {"code": self.code, "wait": self.wait, "tolerance": self.tolerance}

    @property
    def is_coded(self) -> bool:
        """Returns whether there are parts on several workers."""
        return self.replication > 1

    @property
    def candidate(self) -> Candidate:
        """Returns the candidate, to be judged by other rounds or for another goal."""
        return Candidate(*(getattr(self, name) for name in Candidate._fields))

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
