"""Rounds of simulated workers: who has answered when, and what that decodes to."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._targets import mixing, rounding, squared_error
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Group
from jaxwgc.stragglers import DelayModel, WaitingRule

# Numbers in a batch of masks that are decoded together, times the number of parts.
_BATCH_SIZE = 2**21
# Of the time at which a message comes.
_TIME_ROUNDING = 1e-6


class Ended(NamedTuple):
    """Where rounds end: `elapsed` (rounds,), and the messages that have come by then.

    `mask` is bool (rounds, num_messages).
    """

    elapsed: np.ndarray
    mask: np.ndarray


class Decoded(NamedTuple):
    """Effective weights (rounds, num_parts), and squared errors (rounds,).

    Errors are over the squared norm of the target.
    """

    weights: np.ndarray
    errors: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _draw(delay, state, keys, loads):
    """Times (runs, rounds, num_workers), of keys (runs, rounds)."""

    def step(state, key):
        times, state = delay.sample(key, state, loads)
        return state, times

    return jax.vmap(lambda own: jax.lax.scan(step, state, own)[1])(keys)


@jax.jit
def _arrivals(wait, keys, times):
    return jax.vmap(wait.arrivals)(keys, times)


class SimulatedRounds:
    """Finish times of `num_runs` clusters side by side, each for some rounds in a row.

    The same key gives every load the same draws, so that codes are compared in pairs.
    `num_measured` are the rounds of a trace that these are drawn from, if any.
    """

    def __init__(
        self,
        delay: DelayModel,
        num_workers: int,
        key: jax.Array,
        num_runs: int,
        num_rounds: int,
        num_measured: float = math.inf,
    ):
        self.num_runs, self.num_rounds = num_runs, num_rounds
        self.num_measured = num_measured
        state = delay.init(num_workers)
        self.has_state = bool(jax.tree.leaves(state))
        keys = jax.random.split(key, (num_runs, num_rounds))
        self._draw = functools.partial(_draw, delay, state, keys)
        self._drawn: dict[bytes, np.ndarray] = {}
        ties = jax.random.fold_in(key, 1)
        self._ties = jax.random.split(ties, num_runs * num_rounds)

    def times(self, loads: np.ndarray) -> np.ndarray:
        """Finish times (rounds, num_workers), those of all runs one after the other."""
        loads = np.asarray(loads, np.float64)
        if loads.tobytes() not in self._drawn:
            times = np.asarray(self._draw(loads), np.float64)
            times = times.reshape(-1, times.shape[-1])
            if times.shape[1:] != loads.shape or not np.all(times >= 0):
                raise ValueError(
                    f"delay must give times {loads.shape} of at least 0; got "
                    f"{times.shape[1:]} with {times.min()}"
                )
            self._drawn[loads.tobytes()] = times
        return self._drawn[loads.tobytes()]

    def end(self, code: GradientCode, loads: np.ndarray, wait: WaitingRule) -> Ended:
        """Where a waiting rule ends them, and the messages that have come by then."""
        times = self.times(loads)
        # Rules that hold arrays share a program with others of their kind.
        is_plain = jax.tree_util.all_leaves([wait])
        if is_plain:
            rounds = jax.device_get(jax.vmap(wait.arrivals)(self._ties, times))
        else:
            ask = functools.partial(_arrivals, wait)
            rounds = _in_batches(ask, _batch_size(code), self._ties, times)
        elapsed, received = rounds.elapsed.astype(np.float64), rounds.received
        if code.messages_per_worker > 1:
            received = received.repeat(code.messages_per_worker, axis=1)
            comes = _message_times(code, times)
            until = elapsed[:, None] * (1 + _TIME_ROUNDING)
            received |= (comes <= until) & np.isfinite(comes)
        return Ended(elapsed, received)


def _message_times(code: GradientCode, times: np.ndarray) -> np.ndarray:
    """When each message comes, (rounds, num_messages), parts being done one by one."""
    if code.required_parts is None:
        return times
    loads = np.maximum(np.asarray(code.loads), 1)[:, None]
    share = np.asarray(code.required_parts) / loads
    with np.errstate(invalid="ignore"):
        comes = np.where(share > 0, times[:, :, None] * share, 0.0)
    return comes.reshape(len(times), -1)


def decode(code: GradientCode, masks: np.ndarray) -> Decoded:
    """With the decoder that the code brings, in batches of one shape."""
    decoder = code.choose_decoder()
    # What is not read is left out, so that codes share what is compiled for them.
    rest: dict[str, Any] = {"num_stragglers": 0} if decoder.is_a(Group) else {}
    code = dataclasses.replace(code, decoders=(), **rest)

    def decode_batch(masks):
        return _decode(code, masks, decoder)

    decoded = _in_batches(decode_batch, _batch_size(code), masks)
    weights, errors = (own.astype(np.float64) for own in decoded)
    limit = rounding(jnp.result_type(float)) ** 2
    return Decoded(weights, np.where(errors < limit, 0.0, errors))


def _batch_size(code):
    return _BATCH_SIZE // (code.num_messages * code.num_parts)


def _in_batches(function: Callable[..., Any], size: int, *arrays: Any) -> Any:
    """What it gives for rows of arrays, of one shape whatever their number."""
    total = len(arrays[0])
    size = max(1, min(total, size))
    batches = []
    for start in range(0, total, size):
        # The last row stands for those that are missing at the end.
        rows = np.minimum(np.arange(start, start + size), total - 1)
        batches.append(jax.device_get(function(*(own[rows] for own in arrays))))
    return jax.tree.map(lambda *own: np.concatenate(own)[:total], *batches)


@jax.jit
def _decode(code, masks, decoder):
    mixed = mixing(code, code.weights_of(masks, decoder))
    target = jnp.asarray(code.target, jnp.result_type(float))
    own = jnp.einsum("...uju->...j", mixed).real / code.num_segments
    errors = squared_error(code, mixed) / jnp.sum(target**2)
    return own, errors
