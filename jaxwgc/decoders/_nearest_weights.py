"""The nearest weights: conjugate gradients for many masks, the SVD for the rest."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc._some_masks import any_under_vmap, in_batches
from jaxwgc._targets import DECODES, rounding
from jaxwgc.decoders._accuracy import System, relative_miss, squared_norm, systems_of

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


@functools.partial(jax.jit, static_argnames="is_uniform")
def least_squares_weights(
    mask: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    num_missing: int | jax.Array,
    is_uniform: bool,
) -> tuple[jax.Array, jax.Array, System]:
    """Computes weights of least norm among those with the least residual.

    The norm is that of the weights times the norms of the rows of B, as powers of two,
    so that the scale of a message does not matter: it bounds the noise in the sum of
    messages that carry noise in proportion to their size, as rounding is.

    Masks on which conjugate gradients do not pass the test that they are at a minimum
    are left to a decomposition. So are masks that decode exactly, but not with these
    weights, such as nearly singular masks.

    Args:
      mask: bool (..., num_messages).
      matrix: (num_messages, c).
      target: (num_segments, c).
      num_missing: See `LeastSquares`.
      is_uniform: Whether all parts are known to have the same weight.

    Returns:
      Weights (..., num_segments, num_messages), zero at messages that were not
      received; bool (...), the masks to decompose; and `systems_of` the code.
    """
    systems = systems_of(matrix, target, is_uniform)
    count = (~mask).sum(-1)
    is_decodable = (count <= num_missing) & (num_missing > 0)
    if is_uniform:
        weights, is_poor = nearest_weights(mask, systems.at(0), is_decodable)
        return weights, is_poor, systems
    sizes = jnp.abs(systems.target[1]).sum(0)

    def fit(state):
        index, is_lost, _, weights, was_poor = state
        promised = is_decodable & (index == 0)
        fitted, is_poor = nearest_weights(mask, systems.at(index), promised)
        weights = jnp.where(is_lost[..., None, None], fitted, weights)
        is_poor = jnp.where(is_lost, is_poor, was_poor)
        is_lost = ~is_poor & ~(systems.at(0).miss(weights) <= DECODES)
        is_lost &= (index == 0) & (sizes.max() > sizes.min())
        return index + 1, is_lost, any_under_vmap(is_lost.any()), weights, is_poor

    # A loop of one step or two, since two copies of all this are a program of twice the
    # size. Made of the mask, what it starts from varies with the device as that does
    # under shard_map.
    every = mask[..., 0] | True
    zeros = jnp.zeros((len(target), 1), systems.matrix.dtype)
    weights = jnp.where(mask[..., None, :], zeros, 0)
    start = 0, every, any_under_vmap(every.any()), weights, every
    *_, weights, is_poor = jax.lax.while_loop(lambda state: state[2], fit, start)
    return weights, is_poor, systems


def nearest_weights(
    mask: jax.Array, system: System, is_decodable: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes weights by conjugate gradients, and which masks need another method.

    Args:
      mask: bool (..., num_messages).
      system: Matrix and target.
      is_decodable: bool (...), the masks that are known to decode exactly.
    """
    matrix, norms, target = system
    iterate = functools.partial(_conjugate_gradients, matrix=matrix, target=target)
    weights, converged = in_batches(iterate, mask, _BATCH)
    misses = relative_miss(weights, matrix, target) > rounding(matrix.dtype)
    return weights / norms, ~converged | (is_decodable & misses)


class _Problem(NamedTuple):
    """The least squares problems of some masks, and when they are solved.

    Attributes:
      mask: bool (masks, 1, num_messages).
      matrix: (num_messages, c).
      gram: (num_messages, num_messages), the products of its rows.
      target: (num_segments, c).
      matrix_norm: (masks, 1), squared, of the rows that have arrived.
      tolerance: (masks, 1), the squared gradient of a minimum, over the squared miss.
      floor: (num_segments,), the squared miss below which nothing is left to do.
      noise: (masks, num_segments), the rounding of the squared gradient; iterating on
        would gather noise.
    """

    mask: jax.Array
    matrix: jax.Array
    gram: jax.Array
    target: jax.Array
    matrix_norm: jax.Array
    tolerance: jax.Array
    floor: jax.Array
    noise: jax.Array

    def miss_and_gradient(self, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The squared miss, and half the gradient of what it is at the answers."""
        miss = self.target - product(weights, self.matrix)
        gradient = jnp.where(self.mask, product(miss, self.matrix.conj().T), 0)
        return squared_norm(miss), gradient

    def is_minimum(self, gradient_norm: jax.Array, miss_norm: jax.Array) -> jax.Array:
        """Returns whether weights of that squared gradient and miss are done."""
        is_flat = gradient_norm <= self.tolerance * miss_norm
        return is_flat | (miss_norm <= self.floor)


def _conjugate_gradients(masks, matrix, target):
    """Weights (T, num_segments, num_messages), and for which masks they are minima."""
    mask, precision = masks[:, None, :], jnp.finfo(matrix.dtype)
    matrix_norm = jnp.sum(jnp.where(mask, squared_norm(matrix), 0), axis=-1)
    target_norm = squared_norm(target)
    problem = _Problem(
        mask,
        matrix,
        product(matrix, matrix.conj().T),
        target,
        matrix_norm,
        tolerance=_GRADIENT[precision.bits] ** 2 * matrix_norm,
        floor=(_MISS * precision.eps) ** 2 * target_norm,
        noise=(2 * precision.eps) ** 2 * matrix_norm * target_norm,
    )
    # Made of the mask, so that under shard_map they vary with the device as it does.
    weights = jnp.where(mask, jnp.zeros((len(target), 1), matrix.dtype), 0)
    longest = squared_norm(weights)
    # The second time starts from a miss that is computed anew, so without the rounding
    # that has gathered, and has nothing to do where the first was enough.
    weights, longest = jax.lax.fori_loop(
        0, 2, lambda _, last: _descend(problem, *last), (weights, longest)
    )
    miss_norm, gradient = problem.miss_and_gradient(weights)
    gradient_norm = squared_norm(gradient)
    excess = gradient_norm * longest
    is_accurate = excess <= _EXCESS[precision.bits] * miss_norm
    is_accurate |= miss_norm <= problem.floor
    is_minimum = problem.is_minimum(gradient_norm / 4, miss_norm)
    return weights, (is_minimum & is_accurate).all(axis=-1)


def _descend(problem, weights, longest):
    """Conjugate gradients from given weights on; gives weights and the longest step."""
    max_steps = 4 * min(problem.matrix.shape) + 10
    miss_norm, gradient = problem.miss_and_gradient(weights)
    gradient_norm = squared_norm(gradient)
    is_done = problem.is_minimum(gradient_norm, miss_norm) | (gradient_norm == 0)

    def is_unfinished(state):
        *_, is_done, step = state
        return (step < max_steps) & ~is_done.all()

    def advance(state):
        weights, longest, gradient, direction, norm, miss_norm, is_done, step = state
        image = jnp.where(problem.mask, product(direction, problem.gram), 0)
        curvature = jnp.sum((direction.conj() * image).real, axis=-1)
        # Below that the direction is rounding in the null space.
        least = jnp.finfo(image.dtype).eps * problem.matrix_norm
        is_usable = ~is_done & (curvature > least * squared_norm(direction))
        length = jnp.where(is_usable, norm / jnp.where(is_usable, curvature, 1), 0)
        gradient = gradient - length[..., None] * image
        # The squared miss falls by that much in exact arithmetic.
        miss_norm = miss_norm - length * norm
        new_norm = squared_norm(gradient)
        ratio = jnp.where(is_usable, new_norm / jnp.where(is_usable, norm, 1), 0)
        enough = jnp.maximum(problem.tolerance * miss_norm, problem.noise)
        weights = weights + length[..., None] * direction
        longest = jnp.maximum(longest, length)
        direction = gradient + ratio[..., None] * direction
        is_done = is_done | (new_norm <= enough) | ~is_usable
        return (
            weights,
            longest,
            gradient,
            direction,
            new_norm,
            miss_norm,
            is_done,
            step + 1,
        )

    start = weights, longest, gradient, gradient, gradient_norm, miss_norm, is_done, 0
    return jax.lax.while_loop(is_unfinished, advance, start)[:2]
