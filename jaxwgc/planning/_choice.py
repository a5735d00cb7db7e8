"""Choices of a plan: candidates with their costs."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxwgc._common.tolerances import APPROXIMATES, DECODES
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.planning._candidates import Candidate
from jaxwgc.planning._convergence import StaleDescent, Weights


class Estimate(NamedTuple):
    """A number and its standard error.

    Attributes:
      value: The number.
      standard_error: Monte Carlo error; 0 for a closed form, NaN for an infinite value.

    Example:
      A mean from order statistics has no Monte Carlo error:

      >>> import jax, jaxwgc
      >>> from jaxwgc import stragglers
      >>> delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
      >>> plan = jaxwgc.plan(delay, 4, jax.random.key(0), replications=[1], exact=True)
      >>> step_time = plan.best.step_time
      >>> round(step_time.value, 3), step_time.standard_error
      (3.083, 0.0)
    """

    value: float
    standard_error: float


class RoundStatistics(NamedTuple):
    """Statistics of the rounds of a candidate; arrays have entries of `leave_one_out`.

    Attributes:
      seconds: Mean duration of a step.
      quantile: 90% quantile of the duration.
      is_closed_form: Whether both have a closed form.
      num_answers: Mean number of awaited messages; on request, the maximum number of
        sums.
      error: Mean squared decoding error, over the squared norm of the target.
      weights: Moments of the effective weights.
      descent: Descent with stored messages; None without memory.
    """

    seconds: np.ndarray
    quantile: Estimate
    is_closed_form: bool
    num_answers: float
    error: np.ndarray
    weights: Weights
    descent: StaleDescent | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a candidate: expected times and errors, until a goal is reached.

    Times are in the unit of the delay model, seconds for those of the library.

    Attributes:
      step_time: Expected time of a step, an `Estimate`.
      step_quantile: 90% quantile of the time of a step, an `Estimate`.
      stalled_step_time: Expected time of a step if workers stall as in `Plan.stalls`;
        equal to `step_time` if there are no stalls.
      is_closed_form: Whether both come from order statistics, not from Monte Carlo.
      decoding_error: Mean of `jaxwgc.Decoding.error` over the squared norm of the
        target, an `Estimate`; NaN if a round does not end.
      num_answers: Mean number of awaited messages; for a code that allows requests, at
        most one sum of each worker that has finished a part.
      num_bytes: Bytes through the coordinator in a step: parameters to all workers, and
        the awaited messages.
      num_steps: Expected number of steps to the target; infinite if it is not reached.
      step_size: Constant step size with the fewest steps, over the inverse of the
        largest curvature; if the target is not reached, the one that comes closest.
      lowest_loss: Final loss with that step size, relative to the initial loss; 1 if a
        round does not end.
      time: Expected time to the target, an `Estimate`.
      stalled_time: Expected time to the target if workers stall, an `Estimate`.
      behind: `time` minus that of the best choice, as an `Estimate` (common random
        numbers). Negative if another choice is the best because of stalls.
      regret: Relative excess of its time over the fastest choice, the larger one of the
        two cases without and with stalls.
      rounds: Statistics without and with stalls, from which plans for other goals are
        computed.

    Example:
      Every `Choice` of a plan has these attributes:

      >>> import jax, jaxwgc
      >>> from jaxwgc import stragglers
      >>> delay = stragglers.shifted_exponential(shift=1.0, rate=1.0)
      >>> plan = jaxwgc.plan(delay, 4, jax.random.key(0), replications=[1], exact=True)
      >>> costs = plan.best
      >>> round(costs.step_time.value, 2), round(costs.num_steps), costs.num_bytes / 1e6
      (3.08, 67, 32.0)
      >>> round(costs.time.value)
      207
    """

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
    rounds: tuple[RoundStatistics, ...] = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Choice(Candidate, Costs):
    """A candidate of a plan and its costs.

    It has the attributes of `Candidate` and of `Costs`.
    `jaxwgc.coded_aggregate(choice.code, choice.model(delay), key)` simulates the
    choice, and `RayCluster(loss, parts=parts, **choice.cluster_options())` runs it.

    Example:
      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.shifted_exponential(shift=1.0, rate=1.0)
      >>> key = jax.random.key(0)
      >>> choice = jaxwgc.plan(delay, 4, key, replications=[1], exact=True).best
      >>> choice.name, choice.waits_for, round(choice.step_time.value, 2)
      ('uncoded', 'all', 3.08)
      >>> choice.cluster_options()["decoding"].tolerance
      0.001
    """

    @classmethod
    def of(cls, candidate: Candidate, costs: Costs) -> "Choice":
        """Joins a candidate and its costs."""
        fields_of_candidate = _fields_of(candidate, Candidate)
        fields_of_costs = _fields_of(costs, Costs)
        return cls(**fields_of_candidate, **fields_of_costs)

    @property
    def tolerance(self) -> float:
        """Largest decoding error that the plan expects of a round.

        Pass it in `jaxwgc.aggregate.DecodingOptions` to `jaxwgc.coded_aggregate` or
        `RayCluster`, so that rounds with larger errors count as undecodable. If
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
        """Returns the arguments of `RayCluster` for this choice.

        `memory` is an argument of `RayCluster.train`. There, workers that send one
        message are always busy when late, as in a plan with `late="busy"`.
        """
        decoding = DecodingOptions(tolerance=self.tolerance)
        return {"code": self.code, "wait": self.wait, "decoding": decoding}


def _fields_of(
    record: Candidate | Costs, dataclass: type[Candidate] | type[Costs]
) -> dict[str, Any]:
    """Returns the fields of a record that a dataclass has, by name."""
    fields = {}
    for field in dataclasses.fields(dataclass):
        fields[field.name] = getattr(record, field.name)
    return fields
