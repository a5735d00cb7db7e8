"""An order of rows in which neighbours are close in space."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common.arrays import next_power_of_two
from jaxwgc.sketching import _arguments


def spatial_order(points: ArrayLike) -> Array:
    """Orders rows by a k-d tree of points, for `sample_rows(..., "pivotal")`.

    The binary tree over the ordered rows, in which pivotal sampling lets rows compete,
    is the k-d tree: each node splits its rows along the coordinate with the largest
    range. So rows first compete with those nearby, and the sample spreads in space.

    Args:
      points: Real, (N, p), the place of each row: the inputs of a model, rather than
        its features. Coordinates should have comparable scales. Correlated coordinates
        can be rotated to their principal axes first.

    Returns:
      The rows in order, int32 (N,).

    Raises:
      ValueError: If points do not have two axes, are empty, or (unless traced) are not
        finite.
      TypeError: If points are not real.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> inputs = jax.random.uniform(jax.random.key(0), (1000, 2), minval=-1.0)
      >>> x, y = inputs.T
      >>> features = jnp.stack([jnp.ones_like(x), x, y, x * y, x**2, y**2], axis=1)
      >>> scores = sketching.leverage_scores(features)
      >>> order = sketching.spatial_order(inputs)
      >>> sample = sketching.sample_rows(
      ...     jax.random.key(1), scores, 20, "pivotal", order=order
      ... )
      >>> print(sample.apply(features).shape)
      (20, 6)

    References:
      Shimizu, Cheng, Musco and Weare, "Improved active learning via dependent leverage
      score sampling", ICLR 2024, algorithm 2, which splits along coordinates in turn or
      along principal directions.
    """
    points = _arguments.finite_matrix("points", points)
    return _order_of_tree(points)


@jax.jit
def _order_of_tree(points: Array) -> Array:
    num_rows = len(points)
    num_leaves = next_power_of_two(num_rows)
    num_levels = num_leaves.bit_length() - 1
    leaves = jnp.arange(num_leaves, dtype=jnp.int32)
    points = jnp.pad(points, [(0, num_leaves - num_rows), (0, 0)])

    def split(level: Array, rows: Array) -> Array:
        nodes = leaves >> (num_levels - level)
        is_padding = rows >= num_rows
        places = points[rows]
        highest = jax.ops.segment_max(
            jnp.where(is_padding[:, None], -jnp.inf, places), nodes, num_leaves
        )
        lowest = jax.ops.segment_min(
            jnp.where(is_padding[:, None], jnp.inf, places), nodes, num_leaves
        )
        widest = jnp.argmax(highest - lowest, axis=1)[nodes]
        coordinate = jnp.take_along_axis(places, widest[:, None], axis=1)[:, 0]
        # Sorting moves padding behind all rows.
        coordinate = jnp.where(is_padding, jnp.inf, coordinate)
        *_, rows = lax.sort((nodes, coordinate, rows), num_keys=2)
        return rows

    rows = lax.fori_loop(jnp.int32(0), jnp.int32(num_levels), split, leaves)
    return rows[:num_rows]
