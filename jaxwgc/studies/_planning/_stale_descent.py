"""Simulated gradient descent with stored messages."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import stragglers
from jaxwgc.aggregate import coded_aggregate
from jaxwgc.studies._planning._candidates import Candidate
from jaxwgc.studies._planning._clusters import Clusters
from jaxwgc.studies._planning._convergence import MOVES, StaleDescent
from jaxwgc.studies._simulation._program_arguments import as_argument, from_argument

# Number of simulated steps with memory. Later steps shrink the residual at the rate of
# the last half of the simulated steps. Workers that have not responded by then are
# assumed never to respond.
_NUM_STEPS = 200
# Maximum number of random draws of the parts' gradients at the optimum, which are
# orthogonal to each other.
_MOST_DRAWS = 8
# Distance at which descent counts as diverged.
_DIVERGED = 1e3


def simulate_descents(
    candidates: Sequence[Candidate], clusters: Clusters
) -> list[StaleDescent]:
    """Simulates the descent of candidates with memory; results have a row per cluster.

    Times are drawn by the delay model of the clusters.
    """
    if not candidates:
        return []
    delay = as_argument(clusters.delay)
    keys = jax.random.split(clusters.key, clusters.num_clusters)
    descents = jax.device_get(
        [
            _descend(
                one.late, delay, as_argument(one.wait), one.code, _draws(one), keys
            )
            for one in candidates
        ]
    )
    return [jax.tree.map(np.float64, descent) for descent in descents]


def _draws(candidate: Candidate) -> np.ndarray:
    """Returns draws of the parts' gradients at the optimum, (num_parts, draws)."""
    num_parts = candidate.code.num_parts
    shape = num_parts, min(num_parts, _MOST_DRAWS)
    random = np.random.default_rng(0).standard_normal(shape)
    return np.linalg.qr(random)[0] * math.sqrt(num_parts)


@functools.partial(jax.jit, static_argnums=0)
def _descend(late, delay, wait, code, draws, keys):
    """Simulates descent with memory; the `StaleDescent` has an axis of keys."""
    moves = jnp.asarray(MOVES, jnp.result_type(float))[:, None]
    model = stragglers.delayed(from_argument(delay), from_argument(wait), late)
    target = jnp.asarray(code.target, moves.dtype)
    parts = draws - target[:, None] * (target @ draws) / (target @ target)
    parts = jnp.pad(parts / jnp.linalg.norm(target), [(0, 0), (1, 0)])

    def run(key):
        aggregate = coded_aggregate(code, model, key, memory=True)
        # A complex message packs two numbers. With stored messages, errors of one
        # number affect the other, so that both are simulated.
        shape = 1 + code.is_complex, len(moves), 1 + draws.shape[1]
        # Column 0 is a distance that starts at one. The other columns start at zero,
        # and are moved by gradients at the optimum.
        start = jnp.zeros(shape).at[..., 0].set(1)

        def step(carry: Any, _: Any):
            place, state = carry
            change: Any
            gradients = moves * place / target.sum() + parts[:, None, None]
            change, state = aggregate.update(gradients, state, place)
            place = jnp.clip(place - change, -_DIVERGED, _DIVERGED)
            squares = jnp.mean(place**2, axis=0)
            unknown = jnp.mean(change[:, 0, 1:] ** 2)
            return (place, state), (squares[:, 0], squares[:, 1:].mean(1), unknown)

        carry = start, aggregate.init(start)
        left, displaced, unknown = jax.lax.scan(step, carry, length=_NUM_STEPS)[1]
        left = jnp.pad(left.T, [(0, 0), (1, 0)], constant_values=1)
        displaced = jnp.pad(displaced.T, [(0, 0), (1, 0)])
        return StaleDescent(left, displaced, unknown[-1])

    return jax.vmap(run)(keys)
