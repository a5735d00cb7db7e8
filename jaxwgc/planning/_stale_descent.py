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
from jaxwgc.codes import GradientCode
from jaxwgc.planning._choice import Candidate
from jaxwgc.planning._convergence import MOVES, StaleDescent
from jaxwgc.planning._rounds import Clusters
from jaxwgc.simulation._program_arguments import as_argument, from_argument

# Number of simulated steps with stored messages. For later steps, the loss is
# extrapolated at the rate of the second half of these steps. Workers that have not
# responded by then are assumed never to respond.
_NUM_STEPS = 200
# Maximum number of random draws of the parts' gradients at the optimum. The draws are
# orthogonal to each other.
_MOST_DRAWS = 8
# Distances from the optimum are clipped at this bound, so that diverging descent does
# not overflow.
_DIVERGED = 1e3


def simulate_descents(
    candidates: Sequence[Candidate], clusters: Clusters
) -> list[StaleDescent]:
    """Simulates gradient descent with stored messages, for each candidate.

    Times are drawn by the delay model of the clusters.
    """
    if not candidates:
        return []
    delay = as_argument(clusters.delay)
    keys = jax.random.split(clusters.key, clusters.num_clusters)
    # Programs run asynchronously. All are started before the host waits for a result.
    started = []
    for candidate in candidates:
        wait = as_argument(candidate.wait)
        draws = _draws(candidate)
        started.append(
            _descend(candidate.late, delay, wait, candidate.code, draws, keys)
        )
    descents = jax.device_get(started)
    return [jax.tree.map(np.float64, descent) for descent in descents]


def _draws(candidate: Candidate) -> np.ndarray:
    """Draws random gradients of the parts at the optimum, (num_parts, draws)."""
    num_parts = candidate.code.num_parts
    num_draws = min(num_parts, _MOST_DRAWS)
    normal = np.random.default_rng(0).standard_normal((num_parts, num_draws))
    orthogonal, _ = np.linalg.qr(normal)
    return orthogonal * math.sqrt(num_parts)


@functools.partial(jax.jit, static_argnums=0)
def _descend(
    late: str,
    delay: Any,
    wait: Any,
    code: GradientCode,
    draws: jax.Array,
    keys: jax.Array,
) -> StaleDescent:
    """Simulates gradient descent with stored messages in each cluster.

    Args:
      late: What late workers do: `"cancelled"` or `"busy"`.
      delay: Delay model, from `as_argument`.
      wait: Waiting rule, from `as_argument`.
      code: Gradient code.
      draws: Draws of the parts' gradients at the optimum, (num_parts, draws).
      keys: PRNG key of each cluster.
    """
    moves = jnp.asarray(MOVES, jnp.result_type(float))[:, None]
    model = stragglers.delayed(from_argument(delay), from_argument(wait), late)
    target = jnp.asarray(code.target, moves.dtype)
    parts = draws - target[:, None] * (target @ draws) / (target @ target)
    parts = jnp.pad(parts / jnp.linalg.norm(target), [(0, 0), (1, 0)])

    def run(key):
        aggregate = coded_aggregate(code, model, key, memory=True)
        # A complex message carries two numbers, as its real and imaginary part. In
        # stale messages, an error of one number affects the other, so both are
        # simulated.
        num_numbers = 2 if code.is_complex else 1
        shape = (num_numbers, len(moves), 1 + draws.shape[1])
        # Column 0 of the parameters is the distance from the optimum, which starts at
        # one. The other columns start at zero, and are moved by the parts' gradients at
        # the optimum.
        start = jnp.zeros(shape).at[..., 0].set(1)

        def step(carry: Any, _: Any):
            place, state = carry
            change: Any
            gradients = moves * place / target.sum() + parts[:, None, None]
            change, state = aggregate.update(gradients, state, place)
            place = jnp.clip(place - change, -_DIVERGED, _DIVERGED)
            squares = jnp.mean(place**2, axis=0)
            descent = StaleDescent(
                left=squares[:, 0],
                displaced=squares[:, 1:].mean(1),
                unknown=jnp.mean(change[:, 0, 1:] ** 2),
            )
            return (place, state), descent

        carry = (start, aggregate.init(start))
        _, steps = jax.lax.scan(step, carry, length=_NUM_STEPS)
        return StaleDescent(
            left=jnp.pad(steps.left.T, [(0, 0), (1, 0)], constant_values=1),
            displaced=jnp.pad(steps.displaced.T, [(0, 0), (1, 0)]),
            unknown=steps.unknown[-1],
        )

    return jax.vmap(run)(keys)
