"""The base class of waiting rules, which say when a round is over."""

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
    """For how long the server waits: simulations, `plan` and `RayCluster` ask it.

    A rule of one's own is a frozen dataclass of this class. It defines `is_over`, or
    `ends` where that has a formula, in jax.numpy; the rest follows. More answers and
    more time never make a round that is over go on again.

    Attributes:
      code: the gradient code whose messages it looks at; None where it counts workers.
      tolerance: how much of the target it lets them miss; None likewise.

    Example:
      A second more than the fastest worker takes:

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
          times: (num_workers,), when each worker has answered, from the start of the
            round; infinity for those that have not.
          now: how long the round has taken until now.
        """
        if type(self).ends is WaitingRule.ends:
            raise NotImplementedError(
                f"wait must define is_over(times, now) or ends(times); got {self!r}"
            )
        return self.ends(times) <= now

    def ends(self, times: Any) -> Any:
        """Returns when a round ends unless somebody else answers; infinity if never.

        By bisection, where a rule defines `is_over` alone. Of a simulated round, whose
        times are all known, it is when the round ends: later times have no influence.

        Args:
          times: as for `is_over`.
        """
        if _validation.is_traced(self, times):
            return self._end(times)
        return _compiled_end(self, times)

    def arrivals(self, key: jax.Array, times: Any) -> Arrivals:
        """Returns the arrivals of a simulated round.

        Args:
          key: PRNG key of either kind, for ties.
          times: (num_workers,), when each worker answers; infinity where never.
        """
        times = times_of(times)
        elapsed = self.ends(times)
        return Arrivals((times <= elapsed) & jnp.isfinite(times), times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns what is waited for, in few characters and as "for all 8 workers".

        Args:
          num_workers: n.
        """
        return str(self), f"by {self}"

    def expected_time(self, law: Distribution, num_workers: int) -> float | None:
        """Returns the mean time of rounds, or None where there is no closed form.

        Args:
          law: of the time of one of the workers, which are independent and equal.
          num_workers: n.
        """
        return None

    def time_quantile(
        self, law: Distribution, num_workers: int, level: float
    ) -> float | None:
        """Returns the time that rounds take at most, with probability `level`.

        Args:
          law: as for `expected_time`, as num_workers.
          num_workers: see there.
          level: between 0 and 1.
        """
        return None

    def _end(self, times):
        times = times_of(times)

        def is_over(now):
            over = self.is_over(jnp.where(times <= now, times, jnp.inf), now)
            if np.shape(over) != () or getattr(over, "dtype", None) != np.bool_:
                raise TypeError(f"is_over of {self!r} must give one bool; got {over}")
            return over

        last = times.max()
        # Where everyone has answered there is nobody to wait for.
        return jnp.minimum(first_time(is_over, last), last)


# The rule is a constant of what is compiled: its NumPy arrays keep their precision.
_compiled_end = jax.jit(lambda rule, times: rule._end(times), static_argnums=0)
