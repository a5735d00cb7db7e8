"""Least squares: conjugate gradients for many masks at once, the SVD for the rest."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxwgc._decoders._accuracy import (
    best_weights,
    relative_miss,
    rounding,
    squared_norm,
)
from jaxwgc._decoders._product import product
from jaxwgc._decoders._some_masks import compute_where

# Singular values below this many sqrt(max(n, k)) eps of the largest count as zero.
_CUTOFF = 2
# Ridges that are tried beside the cut-off, in eps of the largest singular value.
_RIDGES = (0.5, 2, 8)
_STEPS = 8
# Masks that iterate side by side: few enough that their vectors stay in cache.
_BATCH = 128
# Weights are done where the gradient of the squared miss is below this share of the
# norms of matrix and miss. The excess of the squared miss is of second order in it.
_GRADIENT = {32: 3e-6, 64: 1e-10}
# The most by which the squared miss may be above the least one, relative to it. The
# longest step of conjugate gradients tells how: at most one over the least eigenvalue.
_EXCESS = {32: 5e-7, 64: 1e-12}
# ... or where the miss itself is below this many eps of the target.
_MISS = 64


@jax.jit
def least_squares(
    received: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    decodable: jax.Array | bool = False,
) -> jax.Array:
    """The a of least norm among those that minimise the norm of a^T B - target.

    The norm is that of the a_i times the norms of the rows of B, as powers of two, so
    that the scale of a message does not matter: it is about the noise in the sum of
    messages that carry noise in proportion to their size, as rounding is.

    All masks share their products with one Gram matrix in conjugate gradients, which
    take few steps on sparse random codes. A mask whose weights do not pass the test
    that they are a minimum, as on badly conditioned codes, is decomposed on its own
    (`solve_by_svd`).

    Args:
      received: bool (..., num_messages).
      matrix: (num_messages, c).
      target: (num_segments, c).
      decodable: bool (...), masks whose least miss is known to be zero. Conjugate
        gradients that stop short of it, as on nearly singular masks, have not found it.

    Returns:
      (..., num_segments, num_messages) in the dtype of `matrix`, zero at messages that
      were not received.
    """
    masks = received.reshape(-1, received.shape[-1])
    matrix, norms = scaled_rows(matrix)
    iterate = functools.partial(_conjugate_gradients, matrix=matrix, target=target)
    num_batches = -(-len(masks) // _BATCH)
    if num_batches > 1:
        padding = num_batches * _BATCH - len(masks)
        padded = jnp.pad(masks, [(0, padding), (0, 0)])
        weights, converged = jax.lax.map(
            iterate, padded.reshape(num_batches, _BATCH, masks.shape[-1])
        )
        weights = weights.reshape(-1, *weights.shape[2:])[: len(masks)]
        converged = converged.reshape(-1)[: len(masks)]
    else:
        weights, converged = iterate(masks)
    decodable = jnp.broadcast_to(decodable, received.shape[:-1]).reshape(-1)
    misses = relative_miss(weights, matrix, target) > rounding(matrix.dtype)
    poor = ~converged | (decodable & misses)
    weights = compute_where(
        poor, solve_by_svd, weights, (weights, masks), (matrix, target)
    )
    weights = weights / norms
    return weights.reshape(*received.shape[:-1], *weights.shape[1:])


def scaled_rows(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix with rows of norm about one, and the powers of two that scaled them.

    Powers of two, since other numbers would round the matrix: what decodes the rounded
    one misses the target of the other. Rows of zeros stay, with one.
    """
    largest = jnp.max(jnp.abs(matrix), axis=1)
    # First by the largest entry, so that squares neither under- nor overflow.
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1))
    matrix = matrix * jnp.ldexp(jnp.ones_like(largest), -exponent)[:, None]
    norm = jnp.sqrt(squared_norm(matrix))
    # Codes of small integers have norms whose squares are integers: 1.44 times a power
    # of four is none of them, so that rounding does not decide between two powers.
    _, finer = jnp.frexp(jnp.where(norm > 0, norm / 1.2, 0.5))
    matrix = matrix * jnp.ldexp(jnp.ones_like(norm), -finer)[:, None]
    return matrix, jnp.ldexp(jnp.ones_like(norm), exponent + finer)


def _conjugate_gradients(masks, matrix, target):
    """Weights (T, num_segments, num_messages), and for which masks they are minima."""
    precision = jnp.finfo(matrix.dtype)
    max_steps = 4 * min(matrix.shape) + 10
    adjoint = matrix.conj().T
    gram = product(matrix, adjoint)
    mask = masks[:, None, :]
    row_norms = jnp.diagonal(gram).real
    matrix_norm = jnp.sum(jnp.where(mask, row_norms, 0), axis=-1)
    target_norm = squared_norm(target)
    tolerance = _GRADIENT[precision.bits] ** 2 * matrix_norm
    floor = (_MISS * precision.eps) ** 2 * target_norm
    # What the gradient is rounded by; iterating on would only gather noise.
    noise = (2 * precision.eps) ** 2 * matrix_norm * target_norm

    def is_minimum(gradient_norm, miss_norm):
        return (gradient_norm <= tolerance * miss_norm) | (miss_norm <= floor)

    def miss_of(weights):
        miss = target - product(weights, matrix)
        gradient = jnp.where(mask, product(miss, adjoint), 0)
        return squared_norm(miss), gradient

    def improve(_, state):
        weights, longest = state
        miss_norm, gradient = miss_of(weights)
        gradient_norm = squared_norm(gradient)
        done = is_minimum(gradient_norm, miss_norm) | (gradient_norm == 0)

        def unfinished(state):
            step, *_, done = state
            return (step < max_steps) & ~done.all()

        def advance(state):
            step, weights, longest, gradient, direction, *norms, done = state
            gradient_norm, miss_norm = norms
            image = jnp.where(mask, product(direction, gram), 0)
            curvature = jnp.sum((direction.conj() * image).real, axis=-1)
            # Below that the direction is rounding in the null space.
            least = precision.eps * matrix_norm * squared_norm(direction)
            usable = ~done & (curvature > least)
            length = jnp.where(
                usable, gradient_norm / jnp.where(usable, curvature, 1), 0
            )
            longest = jnp.maximum(longest, length)
            weights = weights + length[..., None] * direction
            gradient = gradient - length[..., None] * image
            # The squared miss falls by that much in exact arithmetic.
            miss_norm = miss_norm - length * gradient_norm
            new_norm = squared_norm(gradient)
            ratio = jnp.where(usable, new_norm / jnp.where(usable, gradient_norm, 1), 0)
            direction = gradient + ratio[..., None] * direction
            reached = new_norm <= jnp.maximum(tolerance * miss_norm, noise)
            return (
                step + 1,
                weights,
                longest,
                gradient,
                direction,
                new_norm,
                miss_norm,
                done | reached | ~usable,
            )

        start = (
            jnp.zeros((), jnp.int32),
            weights,
            longest,
            gradient,
            gradient,
            gradient_norm,
            miss_norm,
            done,
        )
        return jax.lax.while_loop(unfinished, advance, start)[1:3]

    # Made of the mask, so that under shard_map they vary with the device as it does.
    weights = jnp.where(mask, jnp.zeros((len(target), 1), matrix.dtype), 0)
    longest = squared_norm(weights)
    # The second time starts from a miss that is computed anew, so without the rounding
    # that has gathered, and has nothing to do where the first was enough.
    weights, longest = jax.lax.fori_loop(0, 2, improve, (weights, longest))
    miss_norm, gradient = miss_of(weights)
    gradient_norm = squared_norm(gradient)
    excess = gradient_norm * longest
    accurate = (excess <= _EXCESS[precision.bits] * miss_norm) | (miss_norm <= floor)
    return weights, (is_minimum(gradient_norm / 4, miss_norm) & accurate).all(axis=-1)


def solve_by_svd(
    weights: jax.Array, received: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """Weights of one mask by a singular value decomposition, or those given.

    Directions below 2 sqrt(max(n, k)) eps of the largest singular value are left out.
    (NumPy leaves out those below max(n, k) eps, which in float32 would cost codes of
    condition 1e5 what they need. Rounding reached half a sqrt(n) eps, up to n = 400.)
    On nearly singular masks, ridges of a few eps are better: they trade the miss
    against the rounding of large weights. The best of these is taken.

    Args:
      weights: (num_segments, num_messages), with which to compare.
      received: bool (num_messages,).
      matrix: (num_messages, c), its rows of norm about one.
      target: (num_segments, c).

    Returns:
      (num_segments, num_messages), zero at messages that were not received.
    """
    eps = jnp.finfo(matrix.dtype).eps
    rows = jnp.where(received[:, None], matrix, 0)
    left, singular, right = jnp.linalg.svd(rows, full_matrices=False)
    cutoff = _CUTOFF * math.sqrt(max(matrix.shape)) * eps * singular[0]
    kept = singular > cutoff
    squared_ridges = (jnp.array(_RIDGES, singular.dtype) * eps * singular[0]) ** 2
    regularised = singular**2 + squared_ridges[:, None]
    inverses = jnp.concatenate(
        [
            jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)[None],
            singular / jnp.where(regularised > 0, regularised, 1),
        ]
    )

    def solve(target):
        coordinates = product(target, right.conj().T) * inverses[:, None]
        return jnp.where(received, product(coordinates, left.conj().T), 0)

    def refine(found, _):
        found = found + solve(target - product(found, matrix))
        return found, found

    # The decomposition is rounded more than its use is, which refinement takes back.
    # What is left of the miss is rounding, which differs from step to step.
    start = jnp.where(received, jnp.zeros((len(inverses), len(target), 1)), 0)
    _, found = jax.lax.scan(refine, start.astype(matrix.dtype), length=_STEPS)
    candidates = found[::-1].reshape(-1, *weights.shape)
    return best_weights(jnp.concatenate([candidates, weights[None]]), matrix, target)
