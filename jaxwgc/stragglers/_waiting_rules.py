"""Waiting rules: when a round ends, by the number of responses or by time."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.bisection import first_time
from jaxwgc._common.pytrees import ByIdentity, register
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._models import Arrivals, times_of
from jaxwgc.stragglers._selection import fastest_workers

# Response times: JAX arrays in simulated rounds, NumPy arrays in real rounds.
Times = jax.Array | np.ndarray
# A point of time, and whether the round is over at this time.
Scalar = jax.Array | np.floating | float
Flag = jax.Array | np.ndarray | np.bool_ | bool


class WaitingRule:
    """Base class of waiting rules, which end rounds.

    To write your own, define a frozen dataclass with `is_over`, or with `ends` if there
    is a formula. A round that is over must stay over with more responses and more time.
    Simulations pass JAX arrays, and real rounds NumPy arrays. Functions of
    `times.__array_namespace__()` suit both; those of jax.numpy also do, but take a
    millisecond more after each real response.

    Attributes:
      code: Gradient code of the messages; None if the rule counts workers.
      tolerance: Allowed residual relative to the target; None if the rule counts
        workers.

    Example:
      One second longer than the fastest worker:

      >>> import dataclasses, jax, jax.numpy as jnp
      >>> from jaxwgc import stragglers
      >>> @dataclasses.dataclass(frozen=True)
      ... class SecondMore(stragglers.WaitingRule):
      ...     def is_over(self, times, now):
      ...         return now >= times.min() + 1
      >>> times = jnp.array([0.5, 1.25, 3.0])
      >>> arrivals = SecondMore().arrivals(jax.random.key(0), times)
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([ True,  True, False], dtype=bool), 1.5)
    """

    code: GradientCode | None = None
    tolerance: float | None = None

    def is_over(self, times: Times, now: Scalar) -> Flag:
        """Returns whether a round is over at a given time.

        Args:
          times: Response time of each worker from the start of the round,
            (num_workers,); infinity for workers that have not responded.
          now: Time since the start of the round.
        """
        if type(self).ends is WaitingRule.ends:
            raise NotImplementedError(
                f"wait must define is_over(times, now) or ends(times); got {self!r}"
            )
        return self.ends(times) <= now

    def ends(self, times: Times) -> Scalar:
        """Returns the time at which a round ends; infinity if never.

        The time is found by bisection if a rule only defines `is_over`. For a simulated
        round, with all times known, this is the end of the round: later times have no
        influence.

        Args:
          times: Response time of each worker from the start of the round,
            (num_workers,); infinity for workers that never respond.
        """
        if array_validation.is_traced(self, times):
            return self._end(times)
        return _compiled_end(ByIdentity(self), times)

    def arrivals(
        self, key: jax.Array, times: ArrayLike, part_times: ArrayLike | None = None
    ) -> Arrivals:
        """Returns the arrivals of a simulated round.

        Args:
          key: PRNG key of either kind, for ties.
          times: Response time of each worker, (num_workers,); infinity if never.
          part_times: When each worker has finished each of its parts, (num_workers,
            parts), for rules of codes with several messages per worker. Workers take
            equal times for their parts by default.
        """
        del part_times
        times = times_of(times)
        elapsed = jnp.asarray(self.ends(times))
        received = (times <= elapsed) & jnp.isfinite(times)
        return Arrivals(received=received, times=times, elapsed=elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a short label, and a phrase such as "for all 8 workers".

        Args:
          num_workers: Number of workers, n.
        """
        return str(self), f"by {self}"

    def expected_time(self, law: Distribution, num_workers: int) -> float | None:
        """Returns the mean duration of rounds, or None if there is no closed form.

        Args:
          law: Distribution of the time of one worker; workers are independent and
            identically distributed.
          num_workers: Number of workers, n.
        """
        return None

    def time_quantile(
        self, law: Distribution, num_workers: int, level: float
    ) -> float | None:
        """Returns a quantile of the duration of rounds, or None without a closed form.

        Args:
          law: Distribution of the time of a worker.
          num_workers: Number of workers, n.
          level: Probability of a duration that is at most the quantile.
        """
        return None

    def _end(self, times):
        times = times_of(times)

        def is_over(now):
            over = self.is_over(jnp.where(times <= now, times, jnp.inf), now)
            if np.shape(over) != () or getattr(over, "dtype", None) != np.bool_:
                raise TypeError(f"is_over of {self!r} must return one bool; got {over}")
            return over

        last = times.max()
        # The round is over when all workers have responded.
        return jnp.minimum(first_time(is_over, last), last)


# The rule is a static argument, so that its NumPy arrays keep their precision.
_compiled_end = jax.jit(lambda rule, times: rule.value._end(times), static_argnums=0)


@register
@dataclasses.dataclass(frozen=True)
class fastest(WaitingRule):
    """Waits for the f fastest workers.

    Exactly f workers respond in time. Times are at least zero; ties are resolved at
    random. A worker with an infinite time never responds. If fewer than f workers
    respond, the round never ends (`elapsed` is infinite).

    Args:
      num_required: f, from 1 to the number of workers. May be traced.

    Raises:
      ValueError: If num_required is below 1, or (when called) above the number of
        workers.
      TypeError: If num_required is not an int.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.fastest(2)
      >>> times = jax.numpy.array([3.0, 1.0, 2.0])
      >>> wait.arrivals(jax.random.key(0), times).received
      Array([False,  True,  True], dtype=bool)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.1 (the f fastest workers).
    """

    num_required: int

    def __post_init__(self):
        if not array_validation.is_traced(self.num_required):
            validation.check_int("num_required", self.num_required, minimum=1)

    def ends(self, times):
        """Returns the time of the last awaited worker, which ends the round."""
        self._check_number(len(times))
        return times.__array_namespace__().sort(times)[self.num_required - 1]

    def arrivals(
        self, key: jax.Array, times: ArrayLike, part_times: ArrayLike | None = None
    ) -> Arrivals:
        """Returns the arrivals of the f fastest workers; the key resolves ties."""
        del part_times
        times = times_of(times)
        self._check_number(len(times))
        first = fastest_workers(key, times, self.num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        received = first & jnp.isfinite(times)
        return Arrivals(received=received, times=times, elapsed=elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a label and a phrase, e.g. "first 7", "for the first 7 of 8"."""
        number = self.num_required
        if num_workers == 1:
            return "all", "for the only worker"
        if number == num_workers:
            return "all", f"for all {num_workers} workers"
        return f"first {number}", f"for the first {number} of {num_workers} workers"

    def expected_time(self, law: Distribution, num_workers: int) -> float:
        """Returns the mean time of the last awaited worker, which ends the round."""
        return law.fastest_mean(self.num_required, num_workers)

    def time_quantile(self, law: Distribution, num_workers: int, level: float) -> float:
        """Returns a quantile of the time of the last awaited worker."""
        return law.fastest_quantile(self.num_required, num_workers, level)

    def _check_number(self, num_workers: int) -> None:
        number = self.num_required
        if not array_validation.is_traced(number):
            validation.check_up_to("num_required", number, num_workers=num_workers)


@register
@dataclasses.dataclass(frozen=True)
class deadline(WaitingRule):
    """Waits until a deadline, or until all workers have responded.

    Args:
      seconds: Deadline from the start of the round, in seconds; positive.

    Raises:
      ValueError: If seconds is not positive.
      TypeError: If seconds is not a real number.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.deadline(2.5)
      >>> times = jax.numpy.array([3.0, 1.0, 2.0])
      >>> wait.arrivals(jax.random.key(0), times).received
      Array([False,  True,  True], dtype=bool)

    References:
      Wang, Charles, Papailiopoulos, "ErasureHead: distributed gradient descent without
      delays using approximate gradient coding", 2019.
    """

    seconds: float

    def __post_init__(self):
        array_validation.check_fields(self, seconds={"positive": True})

    def ends(self, times):
        """Returns the deadline, or the time of the last worker if that is smaller."""
        xp = times.__array_namespace__()
        seconds = xp.asarray(self.seconds, dtype=times.dtype)
        return xp.minimum(times.max(), seconds)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a label and a phrase, e.g. "1.35 s", "for 1.346 s"."""
        if math.isinf(self.seconds):
            return "all", "for all workers"
        decimals = max(2 - math.floor(math.log10(self.seconds)), 0)
        return f"{self.seconds:.{decimals}f} s", f"for {self.seconds:.4g} s"

    def expected_time(self, law: Distribution, num_workers: int) -> float:
        """Returns the mean duration of a round, which is at most the deadline."""
        return law.fastest_mean(num_workers, num_workers, at_most=self.seconds)

    def time_quantile(self, law: Distribution, num_workers: int, level: float) -> float:
        """Returns a quantile of the duration, which is at most the deadline."""
        last = law.fastest_quantile(num_workers, num_workers, level)
        return min(last, self.seconds)


@dataclasses.dataclass(frozen=True)
class relative_deadline(WaitingRule):
    """Waits `factor` times as long as the first `quorum` workers take.

    Fixed deadlines are often too short or too long; a relative deadline adapts to the
    workers.

    Args:
      factor: Multiple of the time of the quorum-th response; at least 1.
      quorum: Number of responses that set the deadline, from 1 to the number of
        workers.

    Raises:
      ValueError: If an argument is out of range, or (when called) there are fewer
        workers than the quorum.
      TypeError: If factor is not a number or quorum not an int.

    Example:
      >>> import jax, jaxwgc
      >>> wait = jaxwgc.stragglers.relative_deadline(factor=1.5, quorum=2)
      >>> times = jax.numpy.array([9.0, 1.0, 2.0, 2.75])
      >>> arrivals = wait.arrivals(jax.random.key(0), times)
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([False,  True,  True,  True], dtype=bool), 3.0)

    References:
      Krishnan, Ram, Sasidharan, Kumar, "Sequential gradient coding for straggler
      mitigation", ICLR 2023: (1 + mu) times the time of the fastest worker.
    """

    factor: float
    quorum: int

    def __post_init__(self):
        array_validation.check_fields(self, factor={"minimum": 1})
        validation.check_int("quorum", self.quorum, minimum=1)

    def ends(self, times):
        """Returns the deadline, or the time of the last worker if that is smaller."""
        validation.check_up_to("quorum", self.quorum, num_workers=len(times))
        xp = times.__array_namespace__()
        factor = xp.asarray(self.factor, dtype=times.dtype)
        quorum_time = xp.sort(times)[self.quorum - 1]
        return xp.minimum(times.max(), factor * quorum_time)
