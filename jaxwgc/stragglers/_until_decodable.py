"""Waiting until the answers decode."""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc._bisection import first_true
from jaxwgc._pytrees import register
from jaxwgc._targets import DECODES
from jaxwgc.stragglers._inputs import times_of
from jaxwgc.stragglers._types import Arrivals
from jaxwgc.stragglers._waiting_rule import WaitingRule


@runtime_checkable
class Decodable(Protocol):
    """The methods of a code that waiting asks for.

    Attributes:
      num_workers: the number of times in a round.
      messages_per_worker: how many messages each sends.
      parts_per_worker: (num_workers,), the parts that each goes through.
      required_parts: (num_workers, messages_per_worker), how many of them it must have
        finished before a message; None where it sends one at the end.
    """

    @property
    def num_workers(self) -> int: ...
    @property
    def messages_per_worker(self) -> int: ...
    @property
    def parts_per_worker(self) -> Any: ...
    @property
    def required_parts(self) -> Any: ...

    def decodes(self, mask: Any, tolerance: Any, decoder: Any) -> jax.Array:
        """Returns whether each mask (..., num_messages) of messages is enough."""
        ...

    def choose_decoder(self, decoder: Any) -> Any:
        """One that can decode the code."""
        ...


def until_decodable(
    code: Decodable, tolerance: float = 1e-3, decoder: Any = None
) -> WaitingRule:
    """Go on as soon as the answers so far decode.

    Repetition and binary codes often need fewer answers than the n - s that are always
    enough, and approximate codes come near enough with more than are lost: the rule
    looks at who has answered, not at how many. Where those who ever answer do not
    decode, it waits for all, so for ever if one of them never answers.

    Answers that come at the same time are taken together. For a code of several
    messages a worker, each message counts when it comes: workers go through their parts
    one by one, at constant speed.

    A simulated round costs the decoding of as many masks as n has binary digits, and a
    real one of one after each answer. That is by bisection, since more answers decode
    no worse; with a decoder of which that is not true (`OneStep`) a round may go on to
    a later answer than the first that decodes.

    Args:
      code: a gradient code.
      tolerance: the norm of aᵀB - target may be that share of the norm of the target.
      decoder: as for `jaxwgc.decoding_weights`.

    Returns:
      A waiting rule.

    Raises:
      ValueError: where tolerance is negative, the decoder does not fit, or (at the call
        of the rule) times are not as many as the workers of the code.
      TypeError: where an argument has the wrong type.

    Example:
      Workers 0 and 2 of four hold the same half of the parts, 1 and 3 the other one:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> wait = jaxwgc.stragglers.until_decodable(code)
      >>> times = jnp.array([1.0, 2.0, jnp.inf, 3.0])
      >>> arrivals = wait.arrivals(jax.random.key(0), times)
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([ True,  True, False, False], dtype=bool), 2.0)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017, for the decoding error as what answers are judged by.
    """
    _validation.check_instance("code", code, Decodable, ", such as a GradientCode")
    _validation.check_number("tolerance", tolerance, minimum=0)
    if decoder is not None:
        decoder = code.choose_decoder(decoder)
    return UntilDecodable(code, tolerance, decoder)


def coverage(code: Decodable, share: float) -> WaitingRule:
    """Go on as soon as that share of the parts has been finished by somebody.

    For codes whose messages are parts or groups of them, such as `codes.replicated` and
    `codes.fractional_repetition`: where all parts count alike, it is `until_decodable`
    with a tolerance of the root of what may be missing. Divide what is decoded by the
    share, with `debias="share"` of `jaxwgc.coded_aggregate`.

    Args:
      code: a gradient code.
      share: above 0 and up to 1.

    Returns:
      A waiting rule.

    Raises:
      ValueError: where share is not above 0 and up to 1.
      TypeError: where an argument has the wrong type.

    Example:
      Three of four parts, the last of which the slowest worker has not finished:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.replicated(2, num_parts=4, copies=1)
      >>> wait = jaxwgc.stragglers.coverage(code, 0.75)
      >>> arrivals = wait.arrivals(jax.random.key(0), jnp.array([2.0, 3.0]))
      >>> arrivals.finished(code.parts_per_worker), float(arrivals.elapsed)
      (Array([2, 1], dtype=int32), 2.0)

    References:
      Giladi et al., "DropCompute: simple and more robust distributed synchronous
      training via compute variance reduction", NeurIPS 2023.
    """
    _validation.check_number("share", share, positive=True, maximum=1)
    # A part that is missing to rounding passes.
    return until_decodable(code, math.sqrt(1 - share + DECODES**2))


@register
@dataclasses.dataclass(frozen=True, eq=False)
class UntilDecodable(WaitingRule):
    """The rule: a pytree, so that programs can be shared by codes of one shape."""

    code: Any = None
    tolerance: Any = DECODES
    decoder: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UntilDecodable) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self):
        # Decoders may hold arrays, which cannot be compared.
        return id(self.code), self.tolerance, id(self.decoder)

    def is_over(self, times, now):
        """Returns whether those with times until now are enough, or all there are.

        Times may also be those of each message, (num_messages,).
        """
        times = self._by_message(times)
        mask = (times <= now) & (times < jnp.inf)
        return mask.all() | self.code.decodes(mask, self.tolerance, self.decoder)

    def arrivals(self, key: jax.Array, times: jax.typing.ArrayLike) -> Arrivals:
        """Returns the arrivals, by the messages until each of them comes."""
        times = times_of(times)
        elapsed = self.ends(self._message_times(times))
        received = (times <= elapsed) & jnp.isfinite(times)
        return Arrivals(received, times, elapsed)

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns such as "decodable", "until the answers decode"."""
        if self.tolerance <= DECODES:
            return "decodable", "until the answers decode"
        error = f"{self.tolerance**2:.0%}"
        return f"error {error}", f"until the answers decode to an error of {error}"

    def _message_times(self, times):
        """When each message comes, (num_messages,)."""
        if self.code.required_parts is None:
            return times
        required = jnp.asarray(self.code.required_parts, times.dtype)
        parts = jnp.asarray(self.code.parts_per_worker, times.dtype)[:, None]
        share = jnp.where(parts > 0, required / jnp.maximum(parts, 1), 1)
        # What needs no part comes at once, from workers that never finish, too.
        return jnp.where(share > 0, times[:, None] * share, 0).ravel()

    def _end(self, times):
        times = self._by_message(times_of(times))
        ends, count = jnp.sort(times), jnp.isfinite(times).sum()
        # More messages decode no worse.
        first = first_true(lambda number: self.is_over(times, ends[number]), count)
        return jnp.where(first < count, ends[first], times.max())

    def _by_message(self, times):
        """Returns times of workers or of messages as those of messages."""
        num_workers, per_worker = self.code.num_workers, self.code.messages_per_worker
        is_right = len(times) in (num_workers, num_workers * per_worker)
        rule = f"have shape (num_workers,) = ({num_workers},), as the code awaited"
        _validation.require(is_right, "times", rule, times.shape)
        return times.repeat(num_workers * per_worker // len(times))
