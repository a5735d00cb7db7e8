"""Coded gradient descent on sampled parts of a least-squares problem."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import jaxwgc
from jaxwgc import sketching

# n workers hold k sampled parts of K, each on d of them.
CODE = jaxwgc.codes.reed_solomon(num_workers=20, num_parts=10, replication=8)
NUM_PARTS, ROWS_PER_PART, NUM_COLUMNS = 80, 10, 10
# The step at iteration t is 1 / (t + delay); each method gets its best of these.
DELAYS = (2, 8, 32, 128)
SAMPLINGS = ("leverage", "uniform")


def draw_data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X with orthonormal columns and few heavy parts, and y = Xθ + noise.

    All that slows gradient descent is then the sampling.
    """
    size_key, matrix_key, params_key, noise_key = jax.random.split(key, 4)
    shape = (NUM_PARTS, ROWS_PER_PART, NUM_COLUMNS)
    sizes = jnp.exp(1.5 * jax.random.normal(size_key, (NUM_PARTS, 1, 1)))
    matrix = sizes * jax.random.normal(matrix_key, shape)
    matrix = jnp.linalg.qr(matrix.reshape(-1, NUM_COLUMNS))[0]
    image = matrix @ jax.random.normal(params_key, (NUM_COLUMNS,))
    noise = jax.random.normal(noise_key, image.shape)
    return matrix, image + noise * jnp.linalg.norm(image) / jnp.linalg.norm(noise)


def loss(params: jax.Array, part: Any) -> jax.Array:
    """Half the sum of squares."""
    rows, targets, weights = part
    return jnp.sum(weights * (rows @ params - targets) ** 2) / 2


def one_run(key: jax.Array, num_steps: int) -> dict[str, Any]:
    """One data set, one sample for all steps of each one-shot method."""
    data_key, *keys = jax.random.split(key, 1 + len(SAMPLINGS))
    matrix, target = draw_data(data_key)
    parts, row_weights = jaxwgc.partition((matrix, target), NUM_PARTS)
    # Columns are orthonormal.
    optimum = target @ matrix
    scores = jnp.sum(matrix**2, axis=1)
    probabilities = jnp.stack(
        [
            sketching.partition_probabilities(scores, NUM_PARTS),
            jnp.full(NUM_PARTS, 1 / NUM_PARTS),
        ]
    )
    compare = functools.partial(one_sampling, parts, row_weights, optimum, num_steps)
    found = jax.vmap(compare)(jnp.stack(keys), probabilities)
    return {
        quantity: {
            f"{kind}, {sampling}": own[index]
            for kind, own in by_kind.items()
            for index, sampling in enumerate(SAMPLINGS)
        }
        for quantity, by_kind in found.items()
    }


def one_sampling(
    parts: Any,
    row_weights: jax.Array,
    optimum: jax.Array,
    num_steps: int,
    key: jax.Array,
    probabilities: jax.Array,
) -> dict[str, Any]:
    """Errors of both kinds at every step, and where the one-shot kind ends."""
    sample_key, steps_key = jax.random.split(key)
    number = CODE.num_parts
    sample = sketching.sample_partitions(sample_key, probabilities, num_draws=number)
    small = sketching.weighted_parts(sample, parts, row_weights)
    weights = small.row_weights * small.weights[:, None]
    rows = (small.parts[0] * jnp.sqrt(weights)[..., None]).reshape(-1, NUM_COLUMNS)
    responses = (small.parts[1] * jnp.sqrt(weights)).reshape(-1)
    one_shot = jaxwgc.decoded_value_and_grad(loss, CODE)
    iterative = jaxwgc.sampled_value_and_grad(
        loss, CODE, probabilities, num_draws=number
    )

    def fixed(params, key, received):
        return one_shot(params, (*small.parts, weights), received)[1]

    def fresh(params, key, received):
        return iterative(params, (*parts, row_weights), key, received)[1]

    def error(params):
        return jnp.sum((params - optimum) ** 2, axis=-1) / jnp.sum(optimum**2)

    # The best fixed step of a problem that stays the same.
    curvatures = jnp.linalg.eigvalsh(rows.T @ rows)
    fixed_sizes = jnp.full(num_steps, 2 / (curvatures[0] + curvatures[-1]))
    fresh_sizes = 1 / (jnp.arange(num_steps) + jnp.array(DELAYS, float)[:, None])
    return {
        "errors": {
            "one-shot": error(descend(steps_key, fixed, fixed_sizes)),
            "iterative": error(
                jax.vmap(lambda sizes: descend(steps_key, fresh, sizes))(fresh_sizes)
            ),
        },
        "limits": {"one-shot": error(jnp.linalg.lstsq(rows, responses)[0])},
    }


def descend(key: jax.Array, gradient, sizes: jax.Array) -> jax.Array:
    """Every θ from 0 on, (steps + 1, p), with random stragglers at every step."""

    def step(params, carry):
        key, size = carry
        sample_key, straggler_key = jax.random.split(key)
        order = jax.random.permutation(straggler_key, CODE.num_workers)
        received = order >= CODE.num_stragglers
        params = params - size * gradient(params, sample_key, received)
        return params, params

    start = jnp.zeros(NUM_COLUMNS, sizes.dtype)
    keys = jax.random.split(key, len(sizes))
    _, path = jax.lax.scan(step, start, (keys, sizes))
    return jnp.concatenate([start[None], path])
