"""Candidates of a plan, and choices, which are candidates with expected costs."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from jaxwgc import stragglers
from jaxwgc._common.tolerances import APPROXIMATES, DECODES
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.codes import GradientCode
from jaxwgc.planning._convergence import StaleDescent, Weights
from jaxwgc.simulation._masks import decode_packed

CANCELLED = "cancelled"
BUSY = "busy"
# Number of parameters for which bytes are counted, and bytes per float32 number.
NUM_PARAMETERS = 1_000_000
_BYTES_PER_NUMBER = 4


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A code and a waiting rule, for the argument `candidates` of `jaxwgc.plan`.

    Attributes:
      name: Constructor of the code, or its name in `codes`. It is only printed.
      code: Gradient code.
      wait: Waiting rule.
      late: What late workers do: `"cancelled"` (they stop when the round ends) or
        `"busy"` (they continue, and join the round in which they respond).
      memory: Whether late messages are stored, for `jaxwgc.coded_aggregate` or
        `RayCluster.train`.
      by_speed: Whether `plan` has made the loads proportional to the speeds of the
        workers.

    Example:
      >>> import jaxwgc
      >>> from jaxwgc import codes, planning, stragglers
      >>> binary = codes.binary(6, num_stragglers=2)
      >>> candidate = planning.Candidate("binary", binary, stragglers.fastest(4))
      >>> candidate.is_exact, candidate.copies, candidate.waits_for
      (True, 3.0, 'first 4')
    """

    name: str
    code: GradientCode
    wait: stragglers.WaitingRule
    late: str = CANCELLED
    memory: bool = False
    by_speed: bool = False

    def model(self, delay: stragglers.DelayModel) -> stragglers.StragglerModel:
        """Returns the straggler model of this candidate, for `jaxwgc.coded_aggregate`.

        Args:
          delay: Delay model of the plan, or another one for the same workers.

        Raises:
          TypeError: If `delay` is not a delay model.
        """
        return stragglers.delayed(delay, self.wait, self.late)

    @functools.cached_property
    def copies(self) -> float:
        """Mean number of copies per part."""
        return float(np.asarray(self.code.assignment).sum(0).mean())

    @property
    def is_coded(self) -> bool:
        """True if parts have more than one copy on average."""
        return self.copies > 1

    @property
    def sends_several_messages(self) -> bool:
        """True if workers send several messages, or sums on request."""
        return self.code.messages_per_worker > 1

    @functools.cached_property
    def is_exact(self) -> bool:
        """True if every round that ends recovers the exact gradient.

        A code with `num_stragglers` above 0 guarantees this for up to `num_stragglers`
        stragglers. Any other code is decoded once, with the messages of all workers.
        """
        num_stragglers = int(np.asarray(self.code.num_stragglers))
        if isinstance(self.wait, stragglers.fastest):
            num_enough = self.code.num_workers - num_stragglers
            waits_long_enough = self.wait.num_required >= num_enough
        else:
            tolerance = self.wait.tolerance
            waits_long_enough = tolerance is not None and tolerance <= DECODES
        if not waits_long_enough or num_stragglers > 0:
            return waits_long_enough
        everything = np.ones((1, self.code.num_messages), bool)
        decoded = decode_packed(self.code, np.packbits(everything, axis=1))
        return bool(decoded.residual[0] <= DECODES)

    @property
    def is_baseline(self) -> bool:
        """True for uncoded workers with equal loads and a rule that waits for all."""
        loads = np.asarray(self.code.loads)
        is_plain = not self.is_coded and not self.sends_several_messages
        waits_for_all = self.wait == stragglers.fastest(self.code.num_workers)
        has_equal_loads = bool(np.all(loads == loads[0]))
        return is_plain and has_equal_loads and waits_for_all and self.is_exact

    @property
    def waits_for(self) -> str:
        """Short name of the waiting rule, e.g. "all", "first 29", "1.35 s".

        "+ memory" is added if late messages are stored.
        """
        label, _ = self.wait.describe(self.code.num_workers)
        return f"{label} + memory" if self.memory else label

    def __str__(self) -> str:
        """Describes the choice, e.g. "binary with 2 copies, waiting for all 8"."""
        copies = f" with {self.copies:.3g} copies" if self.is_coded else ""
        _, phrase = self.wait.describe(self.code.num_workers)
        remembering = ", late messages stored" if self.memory else ""
        return f"{self.name}{copies}, waiting {phrase}{remembering}"


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


class RoundStatistics(NamedTuple):
    """Statistics of the simulated rounds of a candidate.

    Attributes:
      seconds: Mean duration of a step.
      quantile: 90% quantile of the duration.
      is_closed_form: Whether mean and quantile have a closed form.
      num_messages: Mean number of awaited messages; on request, the maximum number of
        sums.
      error: Mean squared decoding error, over the squared norm of the target.
      weights: Moments of the effective weights.
      descent: Descent with stored messages; None without memory.
    """

    seconds: np.ndarray
    quantile: Estimate
    is_closed_form: bool
    num_messages: float
    error: np.ndarray
    weights: Weights
    descent: StaleDescent | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Candidate):
    """A candidate of a plan, with expected time, error and costs.

    `jaxwgc.coded_aggregate(choice.code, choice.model(delay), key)` simulates the
    choice, and `RayCluster(loss, parts=parts, **choice.cluster_options())` runs it. It
    also has the attributes of `Candidate`.

    Times are in the unit of the delay model, seconds for those of the library. An
    estimate has a `value` and a `standard_error`: its Monte Carlo error, 0 for a closed
    form and NaN for an infinite value.

    Attributes:
      step_time: Expected time of a step, an estimate.
      step_quantile: 90% quantile of the time of a step, an estimate.
      stalled_step_time: Expected time of a step if workers stall as in `Plan.stalls`;
        equal to `step_time` if there are no stalls.
      is_closed_form: Whether `step_time` and `step_quantile` come from order
        statistics, not from Monte Carlo.
      decoding_error: Mean of `jaxwgc.Decoding.error` over the squared norm of the
        target, an estimate; NaN if a round does not end.
      num_messages: Mean number of awaited messages; for a code that allows requests, at
        most one sum of each worker that has finished a part.
      num_steps: Expected number of steps to the target; infinite if it is not reached.
      step_size: Constant step size with the fewest steps, over the inverse of the
        largest curvature; if the target is not reached, the one that comes closest.
      lowest_loss: Final loss with that step size, relative to the initial loss; 1 if a
        round does not end.
      time: Expected time to the target, an estimate.
      stalled_time: Expected time to the target if workers stall, an estimate.
      behind: `time` minus that of the best choice, an estimate (common random numbers).
        Negative if another choice is the best because of stalls.
      regret: Relative excess of its time over the fastest choice, the larger one of the
        two cases without and with stalls.
      rounds: Statistics without and with stalls, from which plans for other goals are
        computed.

    Example:
      >>> import jax, jaxwgc
      >>> from jaxwgc import planning, stragglers
      >>> delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
      >>> exact = planning.Candidates(copies=[1], exact=True)
      >>> choice = jaxwgc.plan(delay, 4, jax.random.key(0), candidates=exact).best
      >>> choice.name, choice.waits_for, round(choice.step_time.value, 2)
      ('uncoded', 'all', 3.08)
      >>> choice.step_time.standard_error
      0.0
      >>> round(choice.num_steps), round(choice.time.value), choice.num_bytes / 1e6
      (67, 207, 32.0)
      >>> choice.cluster_options()["decoding"].tolerance
      0.001
    """

    step_time: Estimate
    step_quantile: Estimate
    stalled_step_time: Estimate
    is_closed_form: bool
    decoding_error: Estimate
    num_messages: float
    num_steps: float
    step_size: float
    lowest_loss: float
    time: Estimate
    stalled_time: Estimate
    behind: Estimate
    regret: float
    rounds: tuple[RoundStatistics, ...] = dataclasses.field(compare=False, repr=False)

    @property
    def num_bytes(self) -> float:
        """Number of bytes through the coordinator per step, for a million parameters.

        Parameters go to all workers, and the awaited messages come back.
        """
        num_gradients = (
            self.code.num_workers + self.num_messages / self.code.num_segments
        )
        return num_gradients * NUM_PARAMETERS * _BYTES_PER_NUMBER

    @property
    def tolerance(self) -> float:
        """Largest relative residual with which a round of this choice decodes.

        Pass it in `jaxwgc.aggregate.DecodingOptions` to `jaxwgc.coded_aggregate` or
        `RayCluster`, so that rounds with larger residuals count as undecodable. If
        `memory`, stored messages complete every round that is not exact. If `wait`
        counts workers or seconds and the planned error is not 0, a round decodes from
        any response.
        """
        if self.wait.tolerance is not None and not self.memory:
            return max(self.wait.tolerance, DECODES)
        has_no_error = self.decoding_error.value <= DECODES**2
        if self.memory or self.is_exact or has_no_error:
            return DECODES
        return APPROXIMATES

    def cluster_options(self) -> dict[str, Any]:
        """Returns keyword arguments of `RayCluster` for this choice.

        `memory` is not among them: pass it to `RayCluster.train`. In a `RayCluster`,
        late workers that send one message always continue, as with `late="busy"`.
        """
        decoding = DecodingOptions(tolerance=self.tolerance)
        return {"code": self.code, "wait": self.wait, "decoding": decoding}
