"""Waiting until the answers decode."""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc._pytrees import register
from jaxwgc.stragglers._delayed import finished_parts
from jaxwgc.stragglers._equal_models import equal_models
from jaxwgc.stragglers._inputs import times_of
from jaxwgc.stragglers._types import Arrivals, WaitingRule


@runtime_checkable
class Decodable(Protocol):
    """What is asked of a code, which this room knows nothing else of.

    Attributes:
      num_workers: the number of times in a round.
      messages_per_worker: how many messages each sends.
      loads: (num_workers,), the parts that each worker goes through.
      required_parts: (num_workers, messages_per_worker), how many of them it must have
        finished before a message; None where it sends one at the end.
    """

    @property
    def num_workers(self) -> int: ...
    @property
    def messages_per_worker(self) -> int: ...
    @property
    def loads(self) -> Any: ...
    @property
    def required_parts(self) -> Any: ...

    def decodes(self, mask: Any, tolerance: Any, decoder: Any) -> jax.Array:
        """Whether each mask (..., num_messages) of messages is enough."""
        ...

    def choose_decoder(self, decoder: Any) -> Any:
        """One that can decode the code."""
        ...


@equal_models
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

    A simulated round costs the decoding of n masks in one batch (n times the messages
    of a worker). A real one, asked through `is_over`, costs one mask after each answer.

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
      >>> arrivals = wait(jax.random.key(0), jnp.array([1.0, 2.0, jnp.inf, 3.0]))
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([ True,  True, False, False], dtype=bool), 2.0)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017, for the decoding error as what answers are judged by.
    """
    if not isinstance(code, Decodable):
        raise TypeError(f"code must be a GradientCode; got {code!r}")
    _validation.check_number("tolerance", tolerance, minimum=0)
    if decoder is not None:
        decoder = code.choose_decoder(decoder)
    return _UntilDecodable(code, tolerance, decoder)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _UntilDecodable:
    """The rule: a pytree, so that a traced code in it is seen."""

    code: Any
    tolerance: Any
    decoder: Any

    def __call__(self, key: jax.Array, times: jax.Array) -> Arrivals:
        """The arrivals, by the answers at the time of each answer."""
        _validation.check_key(key)
        times = self._checked(times)
        comes = self._arrival_times(times)
        is_finite = jnp.isfinite(comes)
        so_far = (comes <= comes[:, None]) & is_finite
        enough = is_finite & self._decodes(so_far)
        elapsed = jnp.where(
            enough.any(),
            jnp.min(comes, where=enough, initial=jnp.inf),
            jnp.max(times),
        )
        received = (times <= elapsed) & jnp.isfinite(times)
        arrivals = Arrivals(received, times, elapsed)
        if self.code.messages_per_worker == 1:
            return arrivals
        finished = finished_parts(jnp.asarray(self.code.loads), times, arrivals)
        return arrivals._replace(finished=finished)

    def is_over(self, times: jax.Array) -> bool:
        """Whether those with finite times are enough: one mask, compiled."""
        mask = jnp.isfinite(self._checked(times))
        return bool(self._compiled(mask.repeat(self.code.messages_per_worker)))

    def _decodes(self, masks):
        return self.code.decodes(masks, self.tolerance, self.decoder)

    # The code is a constant of what is compiled, so that NumPy's keeps its precision.
    _compiled = functools.partial(jax.jit, static_argnums=0)(_decodes)

    def _checked(self, times):
        times = times_of(times)
        if len(times) != self.code.num_workers:
            raise ValueError(
                "times must have shape (num_workers,) with num_workers = "
                f"{self.code.num_workers} for the code that is waited for; got "
                f"{times.shape}"
            )
        return times

    def _arrival_times(self, times):
        """When each message comes, (num_messages,)."""
        if self.code.required_parts is None:
            return times
        required = jnp.asarray(self.code.required_parts, times.dtype)
        loads = jnp.asarray(self.code.loads, times.dtype)[:, None]
        share = jnp.where(loads > 0, required / jnp.maximum(loads, 1), 1)
        # What needs no part comes at once, from workers that never finish, too.
        return jnp.where(share > 0, times[:, None] * share, 0).ravel()
