"""Rescaling and weights of sampled parts, from their sampling probabilities."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc.parts._sample_partitions import PartitionSample, unbiased_factors

RESCALINGS = ("unbiased", "paper")
SCALES = ("row_weights", "rows")


class WeightedParts(NamedTuple):
    """Sampled parts, with a weight for each row and a weight for each part.

    Attributes:
      parts: The sampled parts; leaves (k, m, ...).
      row_weights: (k, m), factors for the loss of each row; 0 for padding.
      weights: (k,), the counts as floats, factors for the gradient of each part:
        `jaxwgc.weighted(code, weights)`.

    Example:
      Four of eight parts, and a code that applies their weights:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> parts, row_weights = jaxwgc.partition(jnp.ones((80, 2)), num_parts=8)
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), jnp.full(8, 1 / 8), num_distinct=4
      ... )
      >>> small = jaxwgc.parts.weighted_parts(sample, parts, row_weights)
      >>> small.parts.shape, small.row_weights.shape
      ((4, 10, 2), (4, 10))
      >>> code = jaxwgc.weighted(jaxwgc.codes.uncoded(4), small.weights)
    """

    parts: Any
    row_weights: Array
    weights: Array


def rescaling_factors(
    sample: PartitionSample,
    rescaling: str = "unbiased",
    num_rows: ArrayLike | None = None,
) -> Array:
    """Computes the factor that scales the rows of each sampled part.

    - `"unbiased"`: 1 / √(q Πⱼ) for q draws. Let the sketch Ŝ pick rows and multiply
      them by the factor and by √count. If q was fixed (`num_draws`), E[ŜᵀŜ] = I.
    - `"paper"`: 1 / √(r Πⱼ) for r sampled rows. This differs by the constant √(q/r),
      which changes the effect of a fixed step size.

    Args:
      sample: A `PartitionSample` from `sample_partitions`.
      rescaling: `"unbiased"` or `"paper"`.
      num_rows: r, a positive number, may be traced; for `"paper"` only.

    Returns:
      (k,), the factors. A slot of count 0 has the factor 0, so that a part of
      probability 0 does not become infinite.

    Raises:
      ValueError: If rescaling is unknown, or num_rows is missing with `"paper"`, given
        with `"unbiased"` or not positive.
      TypeError: If num_rows is not a real scalar.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), jnp.ones(4), num_draws=10
      ... )
      >>> print(jaxwgc.parts.rescaling_factors(sample)[0].round(3))
      0.632
      >>> print(jaxwgc.parts.rescaling_factors(sample, "paper", num_rows=100)[0])
      0.2

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, sections 3.1 and 3.2, step 3; Drineas, Mahoney and
      Muthukrishnan, "Sampling algorithms for l2 regression and applications", SODA
      2006, for q draws.
    """
    validation.check_choice("rescaling", rescaling, RESCALINGS)
    if (num_rows is not None) != (rescaling == "paper"):
        raise ValueError(
            "rescaling='paper' needs num_rows=, and 'unbiased' must not get it; got "
            f"rescaling={rescaling!r} and num_rows={num_rows}"
        )
    if num_rows is None:
        return unbiased_factors(sample, sample.num_draws)
    array_validation.check_number("num_rows", num_rows, positive=True)
    return unbiased_factors(sample, num_rows)


def scale_rows(rows: Any, factors: ArrayLike) -> Any:
    """Multiplies all rows of each part by the factor of the part.

    For least squares, the rows of X and the entries of y are both multiplied, as
    Charalambides, Pilanci and Hero do. For other losses, multiply row weights by the
    square of the factor instead, as `weighted_parts` does by default, and do not pass
    labels.

    Args:
      rows: A pytree, leaves (k, m, ...). Integers and bools become the default float
        dtype, other leaves keep their dtype.
      factors: (k,), such as `rescaling_factors`.

    Returns:
      A pytree like `rows`.

    Raises:
      ValueError: If factors do not have one axis, or a leaf's leading axis is not k.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> print(jaxwgc.parts.scale_rows(jnp.ones((2, 3)), jnp.array([1.0, 2.0])))
      [[1. 1. 1.]
       [2. 2. 2.]]

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.2, step 3.
    """
    factors = conversions.float_array("factors", factors)
    validation.check_shape("factors", factors, "(k,)", ("any",))
    array_validation.check_all_dense("rows", rows)
    array_validation.check_dtypes("rows", rows, "numbers or bools")
    array_validation.check_leading_axis("rows", rows, factors.shape[0], "len(factors)")

    def scale(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            leaf = leaf.astype(float)
        factors_of_rows = factors.reshape(-1, *[1] * (leaf.ndim - 1))
        return (leaf * factors_of_rows).astype(leaf.dtype)

    return jax.tree.map(scale, rows)


def weighted_parts(
    sample: PartitionSample,
    parts: Any,
    row_weights: ArrayLike,
    rescaling: str = "unbiased",
    scale: str = "row_weights",
) -> WeightedParts:
    """Returns the sampled parts, weighted to represent the whole data set.

    Let L̂ be the sum of weights_j * row_weights_ji * loss(row_ji) over the sampled
    parts j and their rows i. With the defaults and a fixed number of draws, L̂ is
    unbiased for any loss. Its expectation is the sum of row_weights * loss over all
    rows of all K parts. Its gradients are unbiased, too.

    Args:
      sample: A `PartitionSample` from `sample_partitions`.
      parts: A pytree, leaves (K, m, ...), from `partition`.
      row_weights: (K, m), from `partition`.
      rescaling: `"unbiased"` or `"paper"`. See `rescaling_factors`. For `"paper"`, the
        number of rows r is the sum of the row weights of the drawn parts.
      scale: The target of the rescaling.
        - `"row_weights"`: row weights are multiplied by the square of the factor, and
          the data are left as they are.
        - `"rows"`: all leaves of the parts are multiplied by the factor, as in the
          paper (see `scale_rows`), and row weights are left as they are. For least
          squares this is equivalent; other losses are not rescaled by it.

    Returns:
      A `WeightedParts`. Slots of count 0 have row weights of 0 (or rows of 0) and
      weight 0.

    Raises:
      ValueError: If rescaling or scale is unknown; if row_weights does not have two
        axes, or a leaf does not start with the axes (K, m); if (unless traced) the
        sample has an index beyond K.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> parts, row_weights = jaxwgc.partition(jnp.arange(8.0), num_parts=4)
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), jnp.ones(4), num_draws=10
      ... )
      >>> small = jaxwgc.parts.weighted_parts(sample, parts, row_weights)
      >>> print(small.parts.shape, small.row_weights[0], small.weights.sum())
      (4, 2) [0.4 0.4] 10.0

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.2 and, for the equality with a sketch of
      repeated rows, theorem 5.1 and corollary 5.2.
    """
    validation.check_choice("scale", scale, SCALES)
    row_weights = conversions.float_array("row_weights", row_weights)
    shape = row_weights.shape
    validation.check_shape("row_weights", row_weights, "(K, m)", ("any", "any"))
    array_validation.check_all_dense("parts", parts)
    array_validation.check_dtypes("parts", parts, "numbers, bools or keys")
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        if np.shape(leaf)[:2] != shape:
            raise ValueError(
                f"parts{jax.tree_util.keystr(path)} must have the axes {shape} of "
                f"row_weights as its first axes; got shape {np.shape(leaf)}"
            )
    array_validation.check_drawn_from("parts", sample.indices, shape[0], "parts")
    parts = jax.tree.map(lambda leaf: conversions.gathered(jnp.asarray(leaf)), parts)
    row_weights = conversions.gathered(row_weights)
    return _weighted(sample, parts, row_weights, rescaling, scale)


@functools.partial(jax.jit, static_argnames=("rescaling", "scale"))
def _weighted(
    sample: PartitionSample, parts: Any, row_weights: Array, rescaling: str, scale: str
) -> WeightedParts:
    """Computes `weighted_parts` for checked arguments, in one compiled program."""
    parts = jax.tree.map(lambda leaf: leaf[sample.indices], parts)
    row_weights = row_weights[sample.indices]
    num_rows = None
    if rescaling == "paper":
        num_rows = jnp.sum(jnp.where(sample.counts[:, None] > 0, row_weights, 0))
    factors = rescaling_factors(sample, rescaling, num_rows)
    if scale == "rows":
        parts = scale_rows(parts, factors)
    else:
        row_weights = row_weights * (factors**2).astype(row_weights.dtype)[:, None]
    return WeightedParts(parts, row_weights, sample.counts.astype(row_weights.dtype))
