"""How good decoding weights are, and which of several are the best."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import power_below, product, squares
from jaxwgc._targets import target_scale

# Factor of the cost of the first of several candidates, which is kept unless another
# one is better by more than that.
ADVANTAGE = 0.9


class System(NamedTuple):
    """The system aᵀB = target that decoding weights a solve, or several systems.

    Attributes:
      matrix: (..., num_messages, c), rows of B divided by `norms`.
      norms: (..., num_messages), norms of these rows, as powers of two.
      target: (..., num_segments, c).
    """

    matrix: jax.Array
    norms: jax.Array
    target: jax.Array

    def at(self, index: Any) -> "System":
        """Returns one of several systems."""
        return System(*(array[index] for array in self))

    def miss(self, weights: jax.Array) -> jax.Array:
        """Computes the residual of weights, relative to the norm of the target."""
        return relative_miss(weights * self.norms, self.matrix, self.target)


def is_uniform(target: Any) -> bool:
    """Returns whether all parts are known to have the same weight."""
    known = isinstance(target, np.ndarray)
    return known and bool(np.ptp(np.abs(target).sum(0)) == 0)


def systems_of(matrix: jax.Array, target: jax.Array, is_uniform: bool) -> System:
    """Returns the systems of a code, in the order in which to try them.

    The first is that of the unweighted code: there, the error of each part is relative
    to the weight of the part, and no part is lost in the rounding of heavier parts (the
    paper's theorem 4.1). The second has the weights, unless all parts have the same. It
    is for masks on which the first leaves a residual above `DECODES`.
    """
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    target = target.astype(jnp.finfo(dtype).dtype)
    # Each column belongs to one segment. Dividing it in matrix and target leaves the
    # decoding weights as they are.
    scale, columns = target_scale(target), target.sum(0)
    columns = jnp.where(columns == 0, scale, columns)[None]
    if not is_uniform:
        columns = jnp.concatenate([columns, jnp.full_like(columns, scale)])
    columns = columns[:, None]
    # Division of complex numbers is a large program.
    matrix = matrix.astype(dtype) * (1 / columns)
    return System(*scaled_rows(matrix), target / columns)


def squared_norm(vectors: jax.Array) -> jax.Array:
    """Returns the squared norm over the last axis, real."""
    return jnp.sum(squares(vectors), axis=-1)


def relative_miss(
    weights: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The norm of aᵀB - target over that of the target, over all segments."""
    miss = product(weights, matrix) - target
    scale = jnp.sqrt(squared_norm(target).sum(-1))
    return jnp.sqrt(squared_norm(miss).sum(-1)) / jnp.where(scale > 0, scale, 1)


def best_weights(
    candidates: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The candidate of the least miss, that by rounding included.

    Weights are rounded by half an eps, and so are the messages that they multiply: what
    large weights gain in the miss they lose there. The first candidate is kept unless
    another one is better by more than a tenth.

    Args:
      candidates: (count, num_segments, num_messages).
      matrix: (num_messages, c), its rows of norm about one.
      target: (num_segments, c).

    Returns:
      (num_segments, num_messages).
    """
    rounding = jnp.finfo(candidates.dtype).eps / 2
    costs = squared_norm(product(candidates, matrix) - target)
    costs = (costs + rounding**2 * squared_norm(candidates)).sum(-1)
    costs = jnp.where(jnp.isfinite(costs), costs, jnp.inf)
    advantage = np.ones(len(candidates))
    advantage[0] = ADVANTAGE
    return candidates[jnp.argmin(costs * jnp.asarray(advantage, costs.dtype))]


def scaled_rows(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix with rows of norm about one, and the powers of two that scaled them.

    Powers of two, since other numbers would round the matrix: what decodes the rounded
    one misses the target of the other. Rows of zeros stay, with one.
    """
    parts = [matrix.real, matrix.imag] if jnp.iscomplexobj(matrix) else [matrix]
    largest = jnp.max(functools.reduce(jnp.maximum, map(jnp.abs, parts)), axis=-1)
    # First by the largest entry, so that squares neither under- nor overflow.
    coarse = 2 * power_below(jnp.where(largest > 0, largest, 0.5))
    norm = jnp.sqrt(squared_norm(matrix * (1 / coarse)[..., None]))
    # Codes of small integers have norms whose squares are integers: 1.44 times a power
    # of four is none of them, so that rounding does not decide between two powers.
    fine = 2 * power_below(jnp.where(norm > 0, norm / 1.2, 0.5))
    powers = coarse * fine
    return matrix * (1 / powers)[..., None], powers
