"""Rounds of simulated workers: who has answered when, and what that decodes to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._targets import rounding
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import (
    DelayModel,
    StragglerModel,
    WaitingRule,
    busy_round,
    delayed,
    fastest,
)
from jaxwgc.studies._many_masks import decode_masks

# Numbers in a batch of masks that are decoded together, times the number of parts.
_BATCH_SIZE = 2**21
# Of the time at which a message comes.
_TIME_ROUNDING = 1e-6
# What late workers do.
CANCELLED, BUSY = "cancelled", "busy"
# That follow each other, where workers go on.
_FEWEST_ROUNDS = 50


@functools.partial(jax.jit, static_argnums=0)
def _draw(delay, state, keys, loads):
    """Times (runs, rounds, num_workers), of keys (runs, rounds)."""

    def step(state, key):
        times, state = delay.sample(key, state, loads)
        return state, times

    return jax.vmap(lambda keys: jax.lax.scan(step, state, keys)[1])(keys)


@jax.jit
def _arrivals(wait, keys, times):
    return jax.vmap(wait.arrivals)(keys, times)


class Rounds(NamedTuple):
    """Fields of `Arrivals`, (runs, rounds), and with an axis for the workers.

    Besides, for how much longer workers are busy after each round.
    """

    elapsed: np.ndarray
    received: np.ndarray
    joined: np.ndarray
    late: np.ndarray
    remaining: np.ndarray


class SimulatedRounds:
    """Finish times of `num_runs` clusters side by side, each for some rounds in a row.

    The same key gives every load the same draws, so that codes are compared in pairs.
    `num_measured` are the rounds of a trace that these are drawn from, if any, and
    `has_stalls` says whether they have what that trace does not rule out.
    """

    def __init__(
        self,
        delay: DelayModel,
        num_workers: int,
        key: jax.Array,
        num_runs: int,
        num_rounds: int,
        num_measured: float,
        has_stalls: bool = False,
    ):
        _validation.check_hashable("delay", delay)
        model = delayed(delay, fastest(num_workers))
        StragglerModel.check("delay", model, np.ones(num_workers))
        self.delay, self.num_runs, self.num_measured = delay, num_runs, num_measured
        self.has_stalls = has_stalls
        self.law = functools.cache(delay.law)
        state = delay.init(num_workers)
        self.has_state = bool(jax.tree.leaves(state))
        keys = jax.random.split(key, (num_runs, num_rounds))
        self._draw = functools.partial(_draw, delay, state, keys)
        self._drawn: dict[bytes, np.ndarray] = {}
        ties = jax.random.fold_in(key, 1)
        self._ties = jax.random.split(ties, num_runs * num_rounds)
        self._ties_of_runs = self._ties[:num_runs]

    def times(self, code: GradientCode) -> np.ndarray:
        """Returns times (rounds, num_workers), one run after the other."""
        loads = np.asarray(code.loads, np.float64)
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

    def in_a_row(
        self, code: GradientCode, wait: WaitingRule, late: str, at_least: int = 0
    ) -> Rounds:
        """Returns rounds that follow each other, as `delayed(late=late)` has them.

        Runs of fewer rounds than are to be are gone through several times.
        """
        times = self.times(code).reshape(self.num_runs, -1, code.num_workers)
        repeats = -(-max(at_least, _FEWEST_ROUNDS) // times.shape[1])
        times = np.tile(times, (1, repeats, 1))
        times = times.astype(jnp.result_type(float))
        # Who is first of those that are as fast is as random as what they draw.
        generator = np.random.default_rng(0)
        times *= 1 - _TIME_ROUNDING * generator.random(times.shape, times.dtype)
        remaining, rounds = np.zeros_like(times[:, 0]), []
        for new in times.swapaxes(0, 1):
            answered = remaining + new
            elapsed = self._ends(wait, answered)[:, None]
            received = (answered <= elapsed) & np.isfinite(answered)
            with np.errstate(invalid="ignore"):
                joined, come_late, after = busy_round(remaining, new, elapsed, received)
            remaining = np.zeros_like(after) if late == CANCELLED else after
            each = elapsed[:, 0], received, joined, come_late, remaining
            rounds.append(Rounds(*each))
        return Rounds(*(np.stack(leaves, axis=1) for leaves in zip(*rounds)))

    def _ends(self, wait, times):
        """Returns when a round of each run ends, (runs,)."""
        if jax.tree_util.all_leaves([wait]):
            return np.array([wait.ends(run) for run in times], times.dtype)
        return np.asarray(_arrivals(wait, self._ties_of_runs, times).elapsed)

    def end(
        self, code: GradientCode, wait: WaitingRule
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns when rounds end, (rounds,), and what came, (rounds, num_messages).

        Of workers that begin every round afresh.
        """
        times = self.times(code)
        # Rules that hold arrays share a program with others of their kind.
        if jax.tree_util.all_leaves([wait]):
            rounds = jax.device_get(jax.vmap(wait.arrivals)(self._ties, times))
        else:
            size = _batch_size(code, len(times))
            rows = np.arange(0, len(times), size)[:, None] + np.arange(size)
            # The last round stands for those that are missing at the end.
            rows = np.minimum(rows, len(times) - 1)
            batches = [_arrivals(wait, self._ties[row], times[row]) for row in rows]
            rounds = jax.tree.map(
                lambda *batch: np.concatenate(batch)[: len(times)], *batches
            )
        elapsed, received = rounds.elapsed.astype(np.float64), rounds.received
        if code.messages_per_worker > 1:
            received = received.repeat(code.messages_per_worker, axis=1)
            comes = _message_times(code, times)
            until = elapsed[:, None] * (1 + _TIME_ROUNDING)
            received |= (comes <= until) & np.isfinite(comes)
        return elapsed, received


def _message_times(code, times):
    """When each message comes, (rounds, num_messages), parts being done one by one."""
    if code.required_parts is None:
        return times
    parts = np.maximum(np.asarray(code.parts_per_worker), 1)[:, None]
    share = np.asarray(code.required_parts) / parts
    with np.errstate(invalid="ignore"):
        comes = np.where(share > 0, times[:, :, None] * share, 0.0)
    return comes.reshape(len(times), -1)


def decode(code: GradientCode, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns effective weights (rounds, num_parts), and squared errors (rounds,).

    Of the decoder that the code brings; errors are over the squared norm of the target.
    """
    decoded = decode_masks(code, masks, batch_size=_batch_size(code, len(masks)))
    errors = decoded.errors / np.sum(np.asarray(code.target, np.float64) ** 2)
    limit = rounding(jnp.result_type(float)) ** 2
    return decoded.effective_weights, np.where(errors < limit, 0.0, errors)


def _batch_size(code, number):
    return max(1, min(number, _BATCH_SIZE // (code.num_messages * code.num_parts)))
