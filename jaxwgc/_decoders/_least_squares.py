"""Least squares: conjugate gradients for many masks at once, the SVD for the rest."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxwgc._decoders._product import product

# Singular values below this many sqrt(max(n, k)) eps of the largest count as zero.
_CUTOFF = 2
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
    received: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The a of least norm among those that minimise the norm of a^T B - target.

    All masks share their products with one Gram matrix in conjugate gradients, which
    take few steps on sparse random codes. A mask whose weights do not pass the test
    that they are a minimum, as on badly conditioned codes, is decomposed on its own
    (`singular_values`).

    Args:
      received: bool (..., num_messages).
      matrix: (num_messages, c).
      target: (num_segments, c).

    Returns:
      (..., num_segments, num_messages) in the dtype of `matrix`, zero at messages that
      were not received.
    """
    masks = received.reshape(-1, received.shape[-1])
    # So that squares neither under- nor overflow.
    largest = jnp.max(jnp.abs(matrix))
    largest = jnp.where(largest > 0, largest, 1)
    matrix = matrix / largest
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
    weights = replace_poor_weights(weights, masks, ~converged, matrix, target)
    weights = weights / largest
    return weights.reshape(*received.shape[:-1], *weights.shape[1:])


def _conjugate_gradients(masks, matrix, target):
    """Weights (T, num_segments, num_messages), and for which masks they are minima."""
    precision = jnp.finfo(matrix.dtype)
    num_messages = masks.shape[-1]
    max_steps = 4 * min(matrix.shape) + 10
    adjoint = matrix.conj().T
    gram = product(matrix, adjoint)
    mask = masks[:, None, :]
    row_norms = jnp.diagonal(gram).real
    matrix_norm = jnp.sum(jnp.where(mask, row_norms, 0), axis=-1)
    target_norm = _squared_norm(target)
    tolerance = _GRADIENT[precision.bits] ** 2 * matrix_norm
    floor = (_MISS * precision.eps) ** 2 * target_norm
    # What the gradient is rounded by; iterating on would only gather noise.
    rounding = (2 * precision.eps) ** 2 * matrix_norm * target_norm

    def is_minimum(gradient_norm, miss_norm):
        return (gradient_norm <= tolerance * miss_norm) | (miss_norm <= floor)

    def miss_of(weights):
        miss = target - product(weights, matrix)
        gradient = jnp.where(mask, product(miss, adjoint), 0)
        return _squared_norm(miss), gradient

    def improve(_, state):
        weights, longest = state
        miss_norm, gradient = miss_of(weights)
        gradient_norm = _squared_norm(gradient)
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
            least = precision.eps * matrix_norm * _squared_norm(direction)
            usable = ~done & (curvature > least)
            length = jnp.where(
                usable, gradient_norm / jnp.where(usable, curvature, 1), 0
            )
            longest = jnp.maximum(longest, length)
            weights = weights + length[..., None] * direction
            gradient = gradient - length[..., None] * image
            # The squared miss falls by that much in exact arithmetic.
            miss_norm = miss_norm - length * gradient_norm
            new_norm = _squared_norm(gradient)
            ratio = jnp.where(usable, new_norm / jnp.where(usable, gradient_norm, 1), 0)
            direction = gradient + ratio[..., None] * direction
            reached = new_norm <= jnp.maximum(tolerance * miss_norm, rounding)
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

    weights = jnp.zeros((len(masks), len(target), num_messages), matrix.dtype)
    longest = jnp.zeros(weights.shape[:-1], row_norms.dtype)
    # The second time starts from a miss that is computed anew, so without the rounding
    # that has gathered, and has nothing to do where the first was enough.
    weights, longest = jax.lax.fori_loop(0, 2, improve, (weights, longest))
    miss_norm, gradient = miss_of(weights)
    gradient_norm = _squared_norm(gradient)
    excess = gradient_norm * longest
    accurate = (excess <= _EXCESS[precision.bits] * miss_norm) | (miss_norm <= floor)
    return weights, (is_minimum(gradient_norm / 4, miss_norm) & accurate).all(axis=-1)


def _squared_norm(vectors):
    return jnp.sum(vectors.real**2 + vectors.imag**2, axis=-1)


def singular_values(
    received: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The same for one mask, by a singular value decomposition, so rank-revealing.

    Directions below 2 sqrt(max(n, k)) eps of the largest singular value are left out.
    NumPy leaves out those below max(n, k) eps, which in float32 would cost codes of
    condition 1e5 what they need. Rounding reached half a sqrt(n) eps, up to n = 400.

    Args:
      received: bool (num_messages,).
      matrix: (num_messages, c).
      target: (num_segments, c).

    Returns:
      (num_segments, num_messages).
    """
    eps = jnp.finfo(matrix.dtype).eps
    rows = jnp.where(received[:, None], matrix, 0)
    left, singular, right = jnp.linalg.svd(rows, full_matrices=False)
    cutoff = _CUTOFF * math.sqrt(max(matrix.shape)) * eps * singular[0]
    kept = singular > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, singular, 1), 0)

    def solve(target):
        coordinates = product(target, right.conj().T) * inverse
        return jnp.where(received, product(coordinates, left.conj().T), 0)

    weights = solve(target)
    # One step of refinement: the decomposition is rounded more than its use is.
    return weights + solve(target - product(weights, matrix))


def relative_miss(
    weights: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The norm of a^T B - target over that of the target, over all segments."""
    miss = product(weights, matrix) - target
    scale = jnp.sqrt(_squared_norm(target).sum(-1))
    return jnp.sqrt(_squared_norm(miss).sum(-1)) / jnp.where(scale > 0, scale, 1)


# A rule of its own for vmap: plain vmap would turn the conditions into selects and
# decompose every mask of a study when a handful need it, or none.
@custom_vmap
def replace_poor_weights(weights, received, poor, matrix, target):
    """Those of `singular_values` in the place of poor weights, mask by mask.

    Args:
      weights: (..., num_segments, num_messages).
      received: bool (..., num_messages).
      poor: bool (...).
      matrix: (num_messages, c); batch axes may stand in front.
      target: (num_segments, c); batch axes may stand in front.
    """
    batch = received.shape[:-1]

    def replace_one(operands):
        weights, received, poor, *own = operands
        own_matrix, own_target = own if own else (matrix, target)

        def solve():
            solved = singular_values(received, own_matrix, own_target)
            better = relative_miss(solved, own_matrix, own_target) <= relative_miss(
                weights, own_matrix, own_target
            )
            return jnp.where(better, solved, weights)

        return jax.lax.cond(poor, solve, lambda: weights)

    def replace_all():
        operands = [
            weights.reshape(-1, *weights.shape[-2:]),
            received.reshape(-1, received.shape[-1]),
            poor.reshape(-1),
        ]
        if matrix.ndim > 2 or target.ndim > 2:
            matrices = jnp.broadcast_to(matrix, (*batch, *matrix.shape[-2:]))
            targets = jnp.broadcast_to(target, (*batch, *target.shape[-2:]))
            operands += [
                matrices.reshape(-1, *matrix.shape[-2:]),
                targets.reshape(-1, *target.shape[-2:]),
            ]
        return jax.lax.map(replace_one, tuple(operands)).reshape(weights.shape)

    return jax.lax.cond(poor.any(), replace_all, lambda: weights)


@replace_poor_weights.def_vmap
def _replace_poor_weights_vmap(axis_size, in_batched, *operands):
    *mapped, matrix, target = operands
    *mapped_batched, matrix_batched, target_batched = in_batched
    mapped = [
        operand if batched else jnp.broadcast_to(operand, (axis_size, *operand.shape))
        for operand, batched in zip(mapped, mapped_batched, strict=True)
    ]
    num_axes = mapped[1].ndim + 1
    if matrix_batched:
        matrix = _insert_axes(matrix, num_axes)
    if target_batched:
        target = _insert_axes(target, num_axes)
    return replace_poor_weights(*mapped, matrix, target), True


def _insert_axes(operand, ndim):
    """Axes of length one behind the mapped axis, up to `ndim` axes."""
    own = operand.shape[1:]
    return operand.reshape(operand.shape[:1] + (1,) * (ndim - operand.ndim) + own)
