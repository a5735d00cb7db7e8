"""Base class of waiting rules, which decide when a round ends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._bisection import first_time
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._inputs import times_of
from jaxwgc.stragglers._types import Arrivals


class WaitingRule:
    """Base class of waiting rules, used by simulations, `plan` and `RayCluster`.

    To write your own, define a frozen dataclass with `is_over`, or with `ends` if there
    is a formula, in jax.numpy. A round that is over must stay over with more responses
    and more time.

    Attributes:
      code: Gradient code of the messages; None if it counts workers.
      tolerance: Allowed residual relative to the target; None if it counts workers.

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

    code: Any = None
    tolerance: Any = None

    def is_over(self, times: Any, now: Any) -> Any:
        """Returns whether a round is over, a bool.

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

    def ends(self, times: Any) -> Any:
        """Returns when a round ends if there are no more responses; infinity if never.

        Found by bisection if a rule only defines `is_over`. For a simulated round, with
        all times known, this is the end of the round: later times have no influence.

        Args:
          times: See `is_over`.
        """
        if _validation.is_traced(self, times):
            return self._end(times)
        return _compiled_end(self, times)

    def arrivals(self, key: jax.Array, times: Any) -> Arrivals:
        """Returns the arrivals of a simulated round.

        Args:
          key: PRNG key of either kind, for ties.
          times: Response time of each worker, (num_workers,); infinity if never.
        """
        times = times_of(times)
        elapsed = self.ends(times)
        return Arrivals((times <= elapsed) & jnp.isfinite(times), times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a short label, and a phrase such as "for all 8 workers".

        Args:
          num_workers: n.
        """
        return str(self), f"by {self}"

    def expected_time(self, law: Distribution, num_workers: int) -> float | None:
        """Returns the mean duration of rounds, or None if there is no closed form.

        Args:
          law: Distribution of the time of one worker; workers are independent and
            identically distributed.
          num_workers: n.
        """
        return None

    def time_quantile(
        self, law: Distribution, num_workers: int, level: float
    ) -> float | None:
        """Returns a quantile of the duration of rounds, or None.

        Args:
          law: See `expected_time`.
          num_workers: n.
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
        # If all workers have responded, the round is over.
        return jnp.minimum(first_time(is_over, last), last)


# Rules are static arguments: their NumPy arrays keep their precision.
_compiled_end = jax.jit(lambda rule, times: rule._end(times), static_argnums=0)
