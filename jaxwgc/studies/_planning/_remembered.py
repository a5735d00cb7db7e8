"""Convergence of gradient descent with stale messages."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.aggregate import coded_aggregate
from jaxwgc.stragglers import delayed
from jaxwgc.studies._planning._choice import Choice
from jaxwgc.studies._planning._simulated_rounds import (
    Drawn,
    by_program,
    closed,
)
from jaxwgc.studies._planning._steps_to_target import Goal, quadratic

# Products of step size and curvature, between which log-losses are interpolated; log
# losses are proportional to small products.
_MOVES = np.concatenate([[0.0], 2.0 * np.geomspace(1e-2, 0.98, 60)])
# Number of simulated steps. Later, the residual shrinks at the rate of their last half,
# and a worker that has not responded yet never does.
_FOLLOWED = 200
# Maximum number of draws of orthogonal gradients of the parts at the optimum.
_MOST_DRAWS = 8
# Distance at which descent counts as diverged.
_DIVERGED = 1e3
_LEAST = 1e-300


class RememberedDescent(NamedTuple):
    """Descent of `coded_aggregate(memory=True)` on quadratics, step by step.

    It is linear in the initial distance and in the gradients of the parts at the
    optimum. The latter cancel once all workers are known, and matter until then.

    Attributes:
      left: Mean square of the remainder of an initial distance of one,
        (..., moves, 1 + steps).
      displaced: Mean square of the distance caused by a step of size one, of the shape
        of `left`. The mean over parts of the gradients at the optimum has mean square
        one.
      unknown: Mean square of these gradients in the last simulated step, from workers
        that have not responded by then, (...,).
    """

    left: np.ndarray
    displaced: np.ndarray
    unknown: np.ndarray

    def over_steps(self) -> "RememberedDescent":
        """Adds a trailing axis for step sizes."""
        left, displaced = (each[..., None, :, :] for each in self[:2])
        return RememberedDescent(left, displaced, self.unknown[..., None])

    def loss(
        self, step: Any, goal: Goal, num_steps: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """Computes the expected loss, as `Weights.loss` does."""
        # Imported here, since the import is slow.
        from scipy.interpolate import RegularGridInterpolator

        curvature, parts = quadratic(goal)
        step, steps = np.asarray(step)[..., None], np.asarray(num_steps)[..., None]
        last = self.left.shape[-1] - 1
        run = np.arange(self.unknown.size).reshape(*self.unknown.shape, 1)
        moved, steps, run = np.broadcast_arrays(step * curvature, steps, run)

        def logarithm(squares, time):
            """Interpolates in both directions, for each run."""
            values = np.log(np.maximum(squares, _LEAST))
            values = values.reshape(-1, *squares.shape[-2:])
            grid = tuple(map(np.arange, values.shape))
            at = RegularGridInterpolator((grid[0], _MOVES, grid[2]), values)
            return at(np.stack(np.broadcast_arrays(run, moved, time), axis=-1))

        end, middle = (logarithm(self.left, time) for time in (last, last // 2))
        is_gone = end <= np.log(_LEAST)
        pace = np.where(is_gone, end / last, (end - middle) / (last - last // 2))
        more = np.maximum(steps - last, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            later = np.where(more > 0, more * pace, 0)
            left, displaced = (
                np.exp(logarithm(squares, np.minimum(steps, last)) + later)
                for squares in self[:2]
            )
            unknown = self.unknown.reshape(-1)[run]
            biased = unknown / curvature**2 * (1 - np.exp(later / 2)) ** 2
            loss = left + parts * curvature * (step**2 * displaced + biased)
            return np.where((pace < 0).all(-1), loss.mean(-1), np.inf)


def follow(choices: Sequence[Choice], drawn: Drawn) -> list[RememberedDescent]:
    """Simulates descent with the memory of each choice, with a row per run."""
    delay, found = drawn.delay, [RememberedDescent(*np.zeros((3, 1)))] * len(choices)
    for kind, arrays, members in by_program(choices, are_whole=False):
        num_parts = choices[members[0]].code.num_parts
        shape = num_parts, min(num_parts, _MOST_DRAWS)
        draws = np.linalg.qr(np.random.default_rng(0).standard_normal(shape))[0]
        draws *= math.sqrt(num_parts)
        each = jax.device_get(
            _descend((delay, *kind), arrays, draws, drawn.key, drawn.num_runs)
        )
        for number, index in enumerate(members):
            own = (leaf[number].astype(np.float64) for leaf in each)
            found[index] = RememberedDescent(*own)
    return found


@functools.partial(jax.jit, static_argnums=(0, 4))
def _descend(kind, arrays, draws, key, num_runs):
    """Computes mean squares (choices, runs, moves, 1 + steps) of the descents."""
    delay, wait_kind, code_kind, late = kind
    moves = jnp.asarray(_MOVES, jnp.result_type(float))[:, None]

    def of_choice(choice):
        wait, code = choice
        wait, code = closed(wait_kind, wait), closed(code_kind, code)
        model = delayed(delay, wait, late)
        target = jnp.asarray(code.target, moves.dtype)
        parts = draws - target[:, None] * (target @ draws) / (target @ target)
        parts = jnp.pad(parts / jnp.linalg.norm(target), [(0, 0), (1, 0)])

        def run(key):
            aggregate = coded_aggregate(code, model, key, memory=True)
            # Two entries: a complex message packs two numbers, which leak.
            start = jnp.zeros((2, len(moves), 1 + draws.shape[1])).at[..., 0].set(1)

            def step(carry: Any, _: Any):
                place, state = carry
                change: Any
                gradients = moves * place / target.sum() + parts[:, None, None]
                change, state = aggregate.update(gradients, state, place)
                place = jnp.clip(place - change, -_DIVERGED, _DIVERGED)
                # The first entries are moved only by gradients at the optimum.
                return (place, state), (place**2, jnp.mean(change[:, 0, 1:] ** 2))

            carry = start, aggregate.init(start)
            squares, gradients = jax.lax.scan(step, carry, length=_FOLLOWED)[1]
            squares = jnp.concatenate([start[None] ** 2, squares]).mean(1)
            squares = squares.swapaxes(0, 1)
            return squares[..., 0], squares[..., 1:].mean(-1), gradients[-1]

        return jax.vmap(run)(jax.random.split(key, num_runs))

    return jax.lax.map(of_choice, arrays)
