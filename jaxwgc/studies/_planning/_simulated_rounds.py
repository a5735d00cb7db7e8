"""Rounds of simulated workers: who has answered when, and what that decodes to."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._targets import rounding
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import DelayModel
from jaxwgc.studies._many_masks import decode_masks

# Numbers in a batch of masks that are decoded together, times the number of parts.
_BATCH_SIZE = 2**21


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
def _draw(sample, state, keys, loads):
    """Times (runs, rounds, num_workers), of keys (runs, rounds)."""

    def step(state, key):
        times, state = sample(key, state, loads)
        return state, times

    return jax.vmap(lambda own: jax.lax.scan(step, state, own)[1])(keys)


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
        self._draw = functools.partial(_draw, delay.sample, state, keys)
        self._drawn: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        ties = jax.random.bits(jax.random.fold_in(key, 1), (4,))
        self._generator = np.random.default_rng(np.asarray(ties))

    def times(self, loads: np.ndarray) -> np.ndarray:
        """Finish times (rounds, num_workers), those of all runs one after the other."""
        return self._ranked(loads)[0]

    def end(self, code: GradientCode, loads: np.ndarray, rule: str, value: float):
        """Where a waiting rule ends them: see `jaxwgc.stragglers`."""
        times, rank = self._ranked(loads)
        finite = np.isfinite(times)
        if rule == "until_decodable":
            return self._until_decodable(code, times, value)
        if rule == "deadline":
            elapsed = np.minimum(times.max(1), value)
            received = (times <= value) & finite
        else:
            elapsed = np.where(rank == value - 1, times, 0.0).max(1)
            received = (rank < value) & finite
        if code.messages_per_worker == 1:
            return Ended(elapsed, received)
        comes = _arrival_times(code, times)
        is_whole = received.repeat(code.messages_per_worker, axis=1)
        return Ended(elapsed, is_whole | (comes < elapsed[:, None]))

    def _until_decodable(self, code, times, tolerance):
        """The fewest messages, in their order, that decode; by bisection.

        More of them never decode worse, with the decoders that this is used for.
        """
        comes = _arrival_times(code, times)
        order = comes.argsort(axis=1)
        rank = order.argsort(axis=1)
        numbers = np.isfinite(comes).sum(axis=1)
        most = tolerance**2 + rounding(np.float32) ** 2
        low, high = np.zeros_like(numbers), numbers + 1
        while (low + 1 < high).any():
            middle = (low + high) // 2
            enough = decode(code, rank < middle[:, None]).errors <= most
            low = np.where(enough, low, middle)
            high = np.where(enough, middle, high)
        ordered = np.take_along_axis(comes, order, axis=1)
        last = np.minimum(high, comes.shape[1])[:, None] - 1
        elapsed = np.take_along_axis(ordered, last, axis=1)[:, 0]
        # Where those who ever answer do not decode, all are waited for.
        elapsed = np.where(high > numbers, times.max(1), elapsed)
        mask = (comes <= elapsed[:, None]) & np.isfinite(comes)
        return Ended(elapsed, mask)

    def _ranked(self, loads):
        """Times, and the rank of each in its round, ties in random order."""
        loads = np.asarray(loads, np.float64)
        if loads.tobytes() not in self._drawn:
            times = np.asarray(self._draw(loads), np.float64)
            times = times.reshape(-1, times.shape[-1])
            if times.shape[1:] != loads.shape or not np.all(times >= 0):
                raise ValueError(
                    f"delay must give times {loads.shape} of at least 0; got "
                    f"{times.shape[1:]} with {times.min()}"
                )
            order = np.lexsort((self._generator.random(times.shape), times))
            self._drawn[loads.tobytes()] = times, order.argsort(axis=1)
        return self._drawn[loads.tobytes()]


def _arrival_times(code: GradientCode, times: np.ndarray) -> np.ndarray:
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
    num_rounds, num_messages = masks.shape
    size = max(1, min(num_rounds, _BATCH_SIZE // (num_messages * code.num_parts)))
    decoded = decode_masks(code, masks, batch_size=size)
    errors = decoded.errors / np.sum(np.asarray(code.target, np.float64) ** 2)
    limit = rounding(jnp.result_type(float)) ** 2
    return Decoded(decoded.effective_weights, np.where(errors < limit, 0.0, errors))
