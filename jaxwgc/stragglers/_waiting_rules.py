"""Waiting rules: when a round ends, by responses, time or decodability."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._bisection import first_time
from jaxwgc._pytrees import register
from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._models import Arrivals, times_of
from jaxwgc.stragglers._selection import fastest_workers


class WaitingRule:
    """Base class of waiting rules, used by simulations, `plan` and `RayCluster`.

    To write your own, define a frozen dataclass with `is_over`, or with `ends` if there
    is a formula. A round that is over must stay over with more responses and more time.
    Simulations pass JAX arrays, and real rounds NumPy arrays. Functions of
    `times.__array_namespace__()` suit both; those of jax.numpy also do, but take a
    millisecond more after each real response.

    Attributes:
      code: Gradient code of the messages; None if it counts workers.
      tolerance: Allowed residual relative to the target; None if it counts workers.
      shares_programs: Whether the methods compute with the fields without branching on
        them, so that studies may compile one program for all values. False by default.

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
    shares_programs: ClassVar[bool] = False

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
        """Returns a quantile of the duration of rounds, or None without a closed form.

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


# The rule is a static argument, so that its NumPy arrays keep their precision.
_compiled_end = jax.jit(lambda rule, times: rule._end(times), static_argnums=0)


@dataclasses.dataclass(frozen=True)
class fastest(WaitingRule):
    """Waits for exactly f workers, the fastest ones.

    Times are at least zero; ties are resolved at random. A worker with an infinite time
    never responds. If fewer than f workers respond, the round never ends (`elapsed` is
    infinite).

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
      The paper's section 2.1: the f fastest workers.
    """

    num_required: int
    shares_programs: ClassVar[bool] = True

    def __post_init__(self):
        if not _validation.is_traced(self.num_required):
            _validation.check_int("num_required", self.num_required, minimum=1)

    def ends(self, times):
        """Returns the f-th smallest time."""
        self._check_number(len(times))
        return times.__array_namespace__().sort(times)[self.num_required - 1]

    def arrivals(self, key: jax.Array, times: jax.typing.ArrayLike) -> Arrivals:
        """Returns the arrivals of exactly f workers; the key resolves ties."""
        times = times_of(times)
        self._check_number(len(times))
        first = fastest_workers(key, times, self.num_required)
        elapsed = jnp.max(times, where=first, initial=-jnp.inf)
        return Arrivals(first & jnp.isfinite(times), times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a label and a phrase, e.g. "first 7", "for the first 7 of 8"."""
        number = self.num_required
        if num_workers == 1:
            return "all", "for the only worker"
        if number == num_workers:
            return "all", f"for all {num_workers} workers"
        return f"first {number}", f"for the first {number} of {num_workers} workers"

    def expected_time(self, law: Distribution, num_workers: int) -> float:
        """Returns the mean of the f-th fastest time."""
        return law.fastest_mean(self.num_required, num_workers)

    def time_quantile(self, law: Distribution, num_workers: int, level: float) -> float:
        """Returns the quantile of the f-th fastest time."""
        return law.fastest_quantile(self.num_required, num_workers, level)

    def _check_number(self, num_workers: int) -> None:
        number = self.num_required
        if not _validation.is_traced(number):
            _validation.check_up_to("num_required", number, num_workers=num_workers)


@dataclasses.dataclass(frozen=True)
class deadline(WaitingRule):
    """Waits until a deadline, or until all workers have responded.

    Args:
      seconds: Deadline from the start of the round; positive.

    Raises:
      ValueError, TypeError: If seconds is invalid.

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

    seconds: Any
    shares_programs: ClassVar[bool] = True

    def __post_init__(self):
        _validation.check_fields(self, seconds={"positive": True})

    def ends(self, times):
        """Returns the smaller of the deadline and the last time."""
        xp = times.__array_namespace__()
        return xp.minimum(times.max(), xp.asarray(self.seconds, dtype=times.dtype))

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a label and a phrase, e.g. "1.35 s", "for 1.346 s"."""
        if math.isinf(self.seconds):
            return "all", "for all workers"
        decimals = max(2 - math.floor(math.log10(self.seconds)), 0)
        return f"{self.seconds:.{decimals}f} s", f"for {self.seconds:.4g} s"

    def expected_time(self, law: Distribution, num_workers: int) -> float:
        """Returns the mean of the smaller of the deadline and the last time."""
        return law.fastest_mean(num_workers, num_workers, at_most=self.seconds)

    def time_quantile(self, law: Distribution, num_workers: int, level: float) -> float:
        """Returns the quantile of the smaller of the deadline and the last time."""
        last = law.fastest_quantile(num_workers, num_workers, level)
        return min(last, self.seconds)


@dataclasses.dataclass(frozen=True)
class relative_deadline(WaitingRule):
    """Waits `factor` times as long as the first `quorum` workers take.

    Fixed deadlines are often too short or too long; this one adapts to the workers.

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

    factor: Any
    quorum: int

    def __post_init__(self):
        _validation.check_fields(self, factor={"minimum": 1})
        _validation.check_int("quorum", self.quorum, minimum=1)

    def ends(self, times):
        """Returns the smaller of the deadline and the last time."""
        _validation.check_up_to("quorum", self.quorum, num_workers=len(times))
        xp = times.__array_namespace__()
        factor = xp.asarray(self.factor, dtype=times.dtype)
        return xp.minimum(times.max(), factor * xp.sort(times)[self.quorum - 1])


def until_decodable(
    code: GradientCode, tolerance: float = DECODES, decoder: Any = None
) -> WaitingRule:
    """Returns a waiting rule that ends a round as soon as the responses decode.

    Repetition and binary codes often need fewer responses than n - s, which always
    suffice, and approximate codes are often accurate with more stragglers. This rule
    considers which workers responded, not how many. If the responding workers do not
    decode, it waits for all workers, forever if one of them never responds.

    Simultaneous responses are taken together. For a code with several messages per
    worker, each message counts when it arrives: workers compute their parts one by one,
    at constant speed.

    A simulated round decodes as many masks as n has binary digits; a real round decodes
    one mask per response. This is a bisection, valid because more responses never
    increase the residual. With `OneStep`, which violates this, a round may last longer
    than necessary.

    Args:
      code: Gradient code.
      tolerance: Bound of the norm of aᵀB - target, relative to the norm of the target.
        With the default, rounds last until the gradient is exact, also with a decoder
        that is inexact on purpose, such as `OneStep`.
      decoder: See `jaxwgc.decoding_weights`.

    Returns:
      A waiting rule.

    Raises:
      ValueError: If tolerance is negative, the decoder does not fit, or (when called)
        the number of times differs from the number of workers.
      TypeError: If an argument has the wrong type.

    Example:
      Workers 0 and 2 of four hold one half of the parts, 1 and 3 the other half:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> wait = jaxwgc.stragglers.until_decodable(code)
      >>> times = jnp.array([1.0, 2.0, jnp.inf, 3.0])
      >>> arrivals = wait.arrivals(jax.random.key(0), times)
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([ True,  True, False, False], dtype=bool), 2.0)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017, for the decoding error as a criterion.
    """
    GradientCode.check(code)
    _validation.check_number("tolerance", tolerance, minimum=0)
    if decoder is not None:
        decoder = code.choose_decoder(decoder)
    return UntilDecodable(code, tolerance, decoder)


def coverage(code: GradientCode, share: float) -> WaitingRule:
    """Returns a waiting rule that ends a round once a share of the parts is finished.

    For codes with messages that are parts or groups of parts, such as
    `codes.replicated` and `codes.fractional_repetition`. If all parts have equal
    weights, it is `until_decodable` with tolerance √(1 - share). To correct for lost
    parts, use `debias="share"` of `jaxwgc.coded_aggregate`.

    Args:
      code: Gradient code.
      share: Fraction of the parts, above 0 and at most 1.

    Returns:
      A waiting rule.

    Raises:
      ValueError: If share is not above 0 and at most 1.
      TypeError: If an argument has the wrong type.

    Example:
      Three of four parts; the slowest worker has not finished the last one:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.replicated(2, num_parts=4, copies=1)
      >>> wait = jaxwgc.stragglers.coverage(code, 0.75)
      >>> arrivals = jax.jit(wait.arrivals)(jax.random.key(0), jnp.array([2.0, 3.0]))
      >>> arrivals.finished(code.parts_per_worker), float(arrivals.elapsed)
      (Array([2, 1], dtype=int32), 2.0)

    References:
      Giladi et al., "DropCompute: simple and more robust distributed synchronous
      training via compute variance reduction", NeurIPS 2023.
    """
    _validation.check_number("share", share, positive=True, maximum=1)
    # The tolerance also accepts shares that are too small by rounding.
    return until_decodable(code, math.sqrt(1 - share + DECODES**2))


@register
@dataclasses.dataclass(frozen=True, eq=False)
class UntilDecodable(WaitingRule):
    """Rule of `until_decodable`; a pytree, so that equal shapes share programs."""

    code: Any = None
    tolerance: Any = DECODES
    decoder: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UntilDecodable) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self):
        # Decoders may hold arrays, which are not comparable.
        return id(self.code), self.tolerance, id(self.decoder)

    def is_over(self, times, now):
        """Returns whether the responses until now decode, or all have arrived.

        Times are per worker or per message, (num_messages,).
        """
        times = self._by_message(times)
        mask = (times <= now) & (times < jnp.inf)
        return mask.all() | self.code.decodes(mask, self.tolerance, self.decoder)

    def arrivals(self, key: jax.Array, times: jax.typing.ArrayLike) -> Arrivals:
        """Returns the arrivals of a round that ends once its messages decode."""
        times = times_of(times)
        elapsed = self.ends(self._message_times(times))
        received = (times <= elapsed) & jnp.isfinite(times)
        return Arrivals(received, times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns a label and phrase: "decodable", "until the responses decode"."""
        if self.tolerance <= DECODES:
            return "decodable", "until the responses decode"
        error = f"{self.tolerance**2:.0%}"
        return f"error {error}", f"until the decoding error is at most {error}"

    def _message_times(self, times):
        """Returns the arrival time of each message, (num_messages,)."""
        if self.code.required_parts is None:
            return times
        required = jnp.asarray(self.code.required_parts, times.dtype)
        parts = jnp.asarray(self.code.parts_per_worker, times.dtype)[:, None]
        share = jnp.where(parts > 0, required / jnp.maximum(parts, 1), 1)
        # Messages without required parts arrive at once, even from lost workers.
        return jnp.where(share > 0, times[:, None] * share, 0).ravel()

    def _end(self, times):
        times = self._by_message(times_of(times))
        decoder = self.code.choose_decoder(self.decoder)
        end = decoder.decoding_time(
            self.code.encoding_matrix, self.code.segment_targets, times, self.tolerance
        )
        # A round that never decodes is over when all messages have arrived.
        return jnp.where(jnp.isfinite(end), end, times.max())

    def _by_message(self, times):
        """Converts times per worker to times per message; keeps times per message."""
        num_workers = self.code.num_workers
        per_worker = self.code.messages_per_worker
        is_right = len(times) in (num_workers, num_workers * per_worker)
        rule = f"have shape (num_workers,) = ({num_workers},) to match the code"
        _validation.require(is_right, "times", rule, times.shape)
        return times.repeat(num_workers * per_worker // len(times))
