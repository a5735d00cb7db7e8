"""The nearest weights: conjugate gradients for many masks, the SVD for the rest."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc._some_masks import in_batches, masked_map
from jaxwgc._targets import rounding
from jaxwgc.decoders._accuracy import relative_miss, scaled_rows, squared_norm
from jaxwgc.decoders._decomposition import solve_by_svd

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


class Rows(NamedTuple):
    """Rows that masks choose from, and what their sums should come near.

    Attributes:
      mask: bool (..., num_messages).
      matrix: (num_messages, c), its rows of norm about one.
      norms: (num_messages,), by which they were divided, powers of two.
      target: (num_segments, c).
      is_plain: whether all parts count alike in it: True, or a traced bool.
    """

    mask: jax.Array
    matrix: jax.Array
    norms: jax.Array
    target: jax.Array
    is_plain: jax.Array | bool


def iterated_weights(
    rows: Rows, num_missing: int | jax.Array = 0
) -> tuple[jax.Array, jax.Array]:
    """Returns what conjugate gradients find.

    Args:
      rows: as they are.
      num_missing: how many messages may be missing for the others to decode exactly.
        Weights that stop short of that, as on nearly singular masks, are not the
        nearest ones.

    Returns:
      Weights (..., num_segments, num_messages), and bool (...), the masks for which
      they are not known to be the nearest ones.
    """
    received, matrix, norms, target, is_plain = rows
    iterate = functools.partial(_conjugate_gradients, matrix=matrix, target=target)
    weights, converged = in_batches(iterate, received, _BATCH)
    count = (~received).sum(-1)
    is_decodable = (count <= num_missing) & (num_missing > 0) & is_plain
    misses = relative_miss(weights, matrix, target) > rounding(matrix.dtype)
    return weights / norms, ~converged | (is_decodable & misses)


def nearest_weights(
    first: Callable[[Rows], tuple[jax.Array, jax.Array]],
    mask: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    is_plain: jax.Array | bool,
) -> jax.Array:
    """Returns the a of least norm among those that minimise the norm of aᵀB - target.

    The norm is that of the aᵢ times the norms of the rows of B, as powers of two, so
    that the scale of a message does not matter: it is about the noise in the sum of
    messages that carry noise in proportion to their size, as rounding is.

    Masks for which `first` has no good weights, such as those on which conjugate
    gradients do not pass the test that they are at a minimum, are decomposed one by one
    (`solve_by_svd`).

    Args:
      first: what finds weights without decomposing a mask, and tells which masks are to
        be decomposed; see `iterated_weights`.
      mask: bool (..., num_messages).
      matrix: (num_messages, c).
      target: (num_segments, c).
      is_plain: whether all parts count alike in the target.

    Returns:
      (..., num_segments, num_messages) in the dtype of `matrix`, zero at messages that
      were not received.
    """
    matrix, norms = scaled_rows(matrix)
    weights, is_poor = first(Rows(mask, matrix, norms, target, is_plain))

    def solve(weights, mask, matrix, target, norms):
        return solve_by_svd(weights * norms, mask, matrix, target) / norms

    return masked_map(is_poor, solve, weights, (weights, mask), (matrix, target, norms))


class _Problem(NamedTuple):
    """The least squares problems of some masks, and when they are solved.

    Attributes:
      mask: bool (masks, 1, num_messages).
      matrix: (num_messages, c).
      gram: (num_messages, num_messages), the products of its rows.
      target: (num_segments, c).
      matrix_norm: (masks, 1), squared, of the rows that have arrived.
      target_norm: (num_segments,), squared.
    """

    mask: jax.Array
    matrix: jax.Array
    gram: jax.Array
    target: jax.Array
    matrix_norm: jax.Array
    target_norm: jax.Array

    @property
    def tolerance(self) -> jax.Array:
        """The squared gradient of a minimum, over the squared miss."""
        return _GRADIENT[self._precision.bits] ** 2 * self.matrix_norm

    @property
    def floor(self) -> jax.Array:
        """The squared miss below which nothing is left to do."""
        return (_MISS * self._precision.eps) ** 2 * self.target_norm

    @property
    def noise(self) -> jax.Array:
        """The rounding of the squared gradient; iterating on would gather noise."""
        return (2 * self._precision.eps) ** 2 * self.matrix_norm * self.target_norm

    @property
    def _precision(self) -> Any:
        return jnp.finfo(self.matrix.dtype)

    def miss_and_gradient(self, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The squared miss, and half the gradient of what it is at the answers."""
        miss = self.target - product(weights, self.matrix)
        gradient = jnp.where(self.mask, product(miss, self.matrix.conj().T), 0)
        return squared_norm(miss), gradient

    def is_minimum(self, gradient_norm: jax.Array, miss_norm: jax.Array) -> jax.Array:
        """Returns whether weights of that squared gradient and miss are done."""
        is_flat = gradient_norm <= self.tolerance * miss_norm
        return is_flat | (miss_norm <= self.floor)


class _Iterate(NamedTuple):
    """The state of conjugate gradients; `longest` is the longest step so far."""

    step: jax.Array
    weights: jax.Array
    longest: jax.Array
    gradient: jax.Array
    direction: jax.Array
    gradient_norm: jax.Array
    miss_norm: jax.Array
    is_done: jax.Array


def _conjugate_gradients(masks, matrix, target):
    """Weights (T, num_segments, num_messages), and for which masks they are minima."""
    gram = product(matrix, matrix.conj().T)
    mask = masks[:, None, :]
    row_norms = squared_norm(matrix)
    matrix_norm = jnp.sum(jnp.where(mask, row_norms, 0), axis=-1)
    problem = _Problem(mask, matrix, gram, target, matrix_norm, squared_norm(target))
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
    is_accurate = excess <= _EXCESS[jnp.finfo(matrix.dtype).bits] * miss_norm
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
        return (state.step < max_steps) & ~state.is_done.all()

    def advance(state):
        direction, gradient_norm = state.direction, state.gradient_norm
        image = jnp.where(problem.mask, product(direction, problem.gram), 0)
        curvature = jnp.sum((direction.conj() * image).real, axis=-1)
        # Below that the direction is rounding in the null space.
        least = jnp.finfo(image.dtype).eps * problem.matrix_norm
        is_usable = ~state.is_done & (curvature > least * squared_norm(direction))
        length = jnp.where(
            is_usable, gradient_norm / jnp.where(is_usable, curvature, 1), 0
        )
        gradient = state.gradient - length[..., None] * image
        # The squared miss falls by that much in exact arithmetic.
        miss_norm = state.miss_norm - length * gradient_norm
        new_norm = squared_norm(gradient)
        ratio = new_norm / jnp.where(is_usable, gradient_norm, 1)
        ratio = jnp.where(is_usable, ratio, 0)
        enough = jnp.maximum(problem.tolerance * miss_norm, problem.noise)
        return _Iterate(
            step=state.step + 1,
            weights=state.weights + length[..., None] * direction,
            longest=jnp.maximum(state.longest, length),
            gradient=gradient,
            direction=gradient + ratio[..., None] * direction,
            gradient_norm=new_norm,
            miss_norm=miss_norm,
            is_done=state.is_done | (new_norm <= enough) | ~is_usable,
        )

    start = _Iterate(
        jnp.zeros((), jnp.int32),
        weights,
        longest,
        gradient,
        gradient,
        gradient_norm,
        miss_norm,
        is_done,
    )
    last = jax.lax.while_loop(is_unfinished, advance, start)
    return last.weights, last.longest
