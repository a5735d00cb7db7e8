"""Waiting rule that ends a round as soon as the responses decode."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import array_module
from jaxwgc._common.pytrees import register
from jaxwgc._common.tolerances import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Decoder
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.stragglers._models import Arrivals, times_of
from jaxwgc.stragglers._part_times import at_constant_speed
from jaxwgc.stragglers._waiting_rules import WaitingRule


def until_decodable(
    code: GradientCode, tolerance: float = DECODES, decoder: DecoderLike = None
) -> WaitingRule:
    """Returns a waiting rule that ends a round as soon as the responses decode.

    Repetition and binary codes often need fewer responses
    than n - s, which always suffice, and approximate codes are often accurate with
    more stragglers. This rule considers which workers responded, not how many. If
    the responding workers do not decode, it waits for all workers, forever if one
    of them never responds.

    Simultaneous responses are taken together. For a code with several messages per
    worker, each message counts when the worker has finished the parts that it needs.

    A simulated round decodes as many masks as n has binary digits; a real round decodes
    one mask per response. This is a bisection, valid because more responses never
    increase the residual. With `OneStep` and `Ridge`, which violate this, a round may
    last longer than necessary.

    Args:
      code: Gradient code.
      tolerance: Bound of the norm of aᵀB - target, relative to the norm of the target.
        With the default, rounds last until the gradient is exact, also with a decoder
        that is inexact on purpose, such as `OneStep`. With `Ridge`, set a tolerance
        above noise²: its residual is of this order, also if all workers respond.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.

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
    array_validation.check_number("tolerance", tolerance, minimum=0)
    if decoder is not None:
        decoder = code.choose_decoder(decoder)
    return UntilDecodable(code, tolerance, decoder)


def coverage(code: GradientCode, share: float) -> WaitingRule:
    """Returns a waiting rule that ends a round once a share of parts is finished.

    This is for codes with messages that are parts or groups of
    parts, such as `codes.replicated` and `codes.fractional_repetition`. If all
    parts have equal weights, it is `until_decodable` with tolerance √(1 - share).
    To correct for lost parts, use `debias="share"` of `jaxwgc.coded_aggregate`.

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
    array_validation.check_number("share", share, positive=True, maximum=1)
    # `DECODES` allows for rounding errors, which may reduce the finished share.
    return until_decodable(code, math.sqrt(1 - share + DECODES**2))


@register
@dataclasses.dataclass(frozen=True, eq=False)
class UntilDecodable(WaitingRule):
    """Waiting rule of `until_decodable` and `coverage`."""

    code: Any
    tolerance: Any = DECODES
    decoder: Decoder | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UntilDecodable) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self):
        # Codes and decoders are compared by identity, because they may hold arrays.
        return id(self.code), self.tolerance, id(self.decoder)

    def is_over(self, times, now):
        """Returns whether the responses decode, or all messages have arrived.

        Times are per worker or per message, (num_messages,).
        """
        times = self._by_message(times)
        mask = (times <= now) & (times < jnp.inf)
        return mask.all() | self.code.decodes(mask, self.tolerance, self.decoder)

    def arrivals(
        self, key: jax.Array, times: ArrayLike, part_times: ArrayLike | None = None
    ) -> Arrivals:
        """Returns the arrivals of a round that ends once its messages decode."""
        times = times_of(times)
        self._check_one_per_worker(times)
        if self.code.required_parts is None:
            part_times = None
            elapsed = jnp.asarray(self.ends(times))
        else:
            if part_times is None:
                shares = jnp.asarray(self.code.part_shares, times.dtype)
                part_times = at_constant_speed(times, shares)
            part_times = jnp.asarray(part_times)
            elapsed = jnp.asarray(self.ends(message_times(self.code, part_times)))
        received = (times <= elapsed) & jnp.isfinite(times)
        return Arrivals(
            received=received, times=times, elapsed=elapsed, part_times=part_times
        )

    def describe(self, num_workers: int) -> tuple[str, str]:
        """Returns label and phrase, e.g. "decodable", "until the responses decode"."""
        if self.tolerance <= DECODES:
            return "decodable", "until the responses decode"
        tolerance = f"{self.tolerance:.3g}"
        phrase = f"until the relative residual is at most {tolerance}"
        return f"tolerance {tolerance}", phrase

    def _end(self, times):
        times = self._by_message(times_of(times))
        decoder = self.code.choose_decoder(self.decoder)
        end = decoder.decoding_time(
            self.code.encoding_matrix, self.code.segment_targets, times, self.tolerance
        )
        # A round that never decodes ends when all messages have arrived.
        return jnp.where(jnp.isfinite(end), end, times.max())

    def _by_message(self, times):
        """Converts times per worker to times per message; keeps times per message."""
        num_messages = self.code.num_workers * self.code.messages_per_worker
        if np.shape(times) == (num_messages,):
            return times
        self._check_one_per_worker(times)
        return times.repeat(self.code.messages_per_worker)

    def _check_one_per_worker(self, times):
        """Raises ValueError unless there is one time per worker of the code."""
        num_workers = self.code.num_workers
        if np.shape(times) != (num_workers,):
            raise ValueError(
                f"times must have one entry for each of the {num_workers} workers of "
                f"the waiting rule's code, or one entry per message; got shape "
                f"{np.shape(times)}. Pass the code of these workers to until_decodable "
                "or coverage"
            )


def message_times(code: GradientCode, part_times: Any) -> Any:
    """Returns the arrival time of each message.

    Args:
      code: Gradient code.
      part_times: When each worker has finished each of its parts, (..., num_workers,
        parts).
    """
    if code.required_parts is None:
        return part_times[..., -1]
    xp: Any = array_module(part_times)
    required = xp.asarray(code.required_parts)
    last_parts = xp.clip(required - 1, 0, part_times.shape[-1] - 1)
    new_axes = (1,) * (part_times.ndim - required.ndim)
    last_parts = last_parts.reshape(*new_axes, *required.shape)
    times = xp.take_along_axis(part_times, last_parts, axis=-1)
    # A message without required parts arrives at once, even from a lost worker.
    times = xp.where(required > 0, times, 0)
    return times.reshape(*part_times.shape[:-2], code.num_messages)
