"""Samples of rows, with scales that make weighted sums over the rows unbiased."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_sparse
from jaxwgc._common.probabilities import distribution, nonnegative_vector, normalised
from jaxwgc.parts._sample_partitions import draw_parts
from jaxwgc.sketching._embeddings._embedding import number_arrays
from jaxwgc.sketching._linalg.entries import sampled_bcoo
from jaxwgc.sketching._samplers._exact_inclusion import (
    is_permutation,
    permutation_of_rows,
    pivotal_rows,
    poisson_rows,
    systematic_rows,
)

METHODS = (
    "with_replacement",
    "without_replacement",
    "pivotal",
    "poisson",
    "top_k",
)

# Negative logarithm of the probability that a Poisson sample has more rows than the
# arrays of a `RowSample` hold.
_LOG_OVERFLOW = math.log(1e9)


class RowSample(NamedTuple):
    """A sample of distinct rows, and the factors by which they are multiplied.

    See `sample_rows`.
    """

    indices: Array
    counts: Array
    probabilities: Array
    scale: Array

    def apply(self, tree: Any) -> Any:
        """Returns the sampled rows of every array of a pytree, times their scale.

        Raises:
          ValueError: If leaves differ in their leading axis, or (unless traced) a
            sampled row is beyond it.
          TypeError: If a leaf is neither an array of numbers nor a sparse matrix.
        """
        arrays, shapes = number_arrays(tree)
        num_rows = array_validation.check_parts("tree", shapes, "N")
        array_validation.check_drawn_from("tree", self.indices, num_rows, "rows")
        return _apply(self, arrays)


@jax.jit
def _apply(sample: RowSample, tree: Any) -> Any:
    def sampled(leaf: Any) -> Any:
        if is_sparse(leaf):
            return sampled_bcoo(leaf, sample.indices, sample.scale)
        scale = sample.scale.astype(leaf.dtype)
        return leaf[sample.indices] * scale.reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree.map(sampled, tree, is_leaf=is_sparse)


def sample_rows(
    key: Array,
    probabilities: ArrayLike,
    sample_size: int,
    method: str = "with_replacement",
    *,
    weighted: bool = True,
    order: ArrayLike | None = None,
) -> RowSample:
    """Samples rows by given probabilities, and computes a scale for each distinct row.

    With the squared scales as weights, sums over the sampled rows are unbiased
    estimates of sums over all rows. The exceptions are `"top_k"` and `weighted=False`.

    - `"with_replacement"`: sample_size independent draws. A row that is drawn c times
      has the scale √(c / (sample_size p)).
    - `"without_replacement"`: sample_size distinct rows, by systematic sampling in
      random order. Rows lie side by side on a line in random order, each as long as its
      inclusion probability. A comb with teeth at distance 1 and a random start selects
      rows. The inclusion probability π is min(1, c p), with c such that the sum is
      sample_size. It is known exactly, unlike for successive or Gumbel top-k draws, so
      that the scale 1 / √π is exactly unbiased (Horvitz-Thompson).
    - `"pivotal"`: sample_size distinct rows with the same π, spread over `order`.
      Neighbours compete in a binary tree, and so are rarely both in the sample. If rows
      that are close in the order have similar labels, fewer rows give the same error.
      See `spatial_order`.
    - `"poisson"`: each row independently, with the probability π = min(1, sample_size
      p). The number of rows is random, with a mean of at most sample_size. The scale is
      1 / √π.
    - `"top_k"`: the sample_size rows with the largest probabilities, with the scale 1.
      This is deterministic and biased, since the other rows are left out.

    Args:
      key: PRNG key of either kind; not used by `"top_k"`.
      probabilities: p, (N,), not negative; normalised to sum to 1. Scores are allowed.
      sample_size: The number of rows, an int of at least 1; for methods that draw
        distinct rows, at most N.
      method: One of the five above.
      weighted: False for an unweighted sample, as LEVUNW needs. The scale is the square
        root of the count, so that a row counts as often as it was drawn.
      order: A permutation of the rows for `"pivotal"`, integers (N,), may be traced.
        By default, the order in which they are given.

    Returns:
      A named tuple:

      - `indices`: int32 (num_slots,), distinct rows in the used slots.
      - `counts`: int32 (num_slots,), how many times each was drawn; 0 marks an unused
        slot.
      - `probabilities`: (num_slots,). With replacement, the probability of the row in
        one draw; otherwise the probability that the row is in the sample.
      - `scale`: (num_slots,), the factor of each row, which includes its count; 0 in
        unused slots. The sum of scale² x xᵀ over the slots has the expectation XᵀX,
        except with `"top_k"` or `weighted=False`.

      Its method `apply(tree)` returns the sampled rows of every array of a pytree,
      times their scale. For least squares, pass both X and y. For other losses,
      multiply the loss of each row by scale² instead, and take `y[sample.indices]`.
      Leaves (N, ...) become (num_slots, ...). A sparse matrix, also one of SciPy,
      becomes a BCOO, and no array of size num_slots × p is made. Its number of stored
      entries cannot depend on the rows that were drawn: it is that of the matrix, and
      at most num_slots p if `unique_indices` is true. The rest is padding, out of
      bounds. Outside of `jax.jit`, `rows.sum_duplicates()` drops it; inside,
      `rows.sum_duplicates(nse=num_slots * k)` does if rows have at most k entries.

      The sample has min(sample_size, N) slots with replacement, and sample_size
      otherwise. With Poisson sampling, slots are enough for all rows of a sample, up to
      a probability of 1e-9. If traced probabilities are
      negative, NaN, infinite or all zero, or a traced order is no permutation, all
      counts are 0 and the scale is NaN. If
      fewer than sample_size probabilities are positive, methods that draw distinct rows
      leave the remaining slots at count 0.

    Raises:
      ValueError: If method is unknown, sample_size is out of range, or order is given
        with a method other than `"pivotal"`; if probabilities do not have one axis, or
        (unless traced) are negative, NaN, infinite or all zero; if order has another
        shape or (unless traced) is no permutation.
      TypeError: If the key is no PRNG key, a size is not an int, or order is not of
        integers.

    Note:
      Inclusion probabilities are rounded to multiples of 2⁻³²; positive ones stay
      positive. Rows are drawn with the rounded probabilities, which are returned.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.arange(12.0).reshape(6, 2)
      >>> probabilities = jnp.sum(matrix**2, axis=1)
      >>> sample = sketching.sample_rows(
      ...     jax.random.key(0), probabilities, 3, "without_replacement"
      ... )
      >>> print(sample.apply(matrix).shape)
      (3, 2)
      >>> print(sketching.sample_rows(None, probabilities, 3, "top_k").indices)
      [5 4 3]

    References:
      Drineas, Mahoney and Muthukrishnan, "Sampling algorithms for l2 regression and
      applications", SODA 2006, for draws with replacement and Poisson sampling; Madow,
      "On the theory of systematic sampling, II", Ann. Math. Statist. 20 (1949); Hartley
      and Rao, "Sampling with unequal probabilities and without replacement", Ann. Math.
      Statist. 33 (1962), for the random order; Deville and Tillé, "Unequal probability
      sampling without replacement through a splitting method", Biometrika 85 (1998),
      and Shimizu, Cheng, Musco and Weare, "Improved active learning via dependent
      leverage score sampling", ICLR 2024, algorithm 1, for pivotal sampling;
      Papailiopoulos, Kyrillidis and Boutsidis, "Provable deterministic leverage score
      sampling", KDD 2014, for top-k.
    """
    validation.check_choice("method", method, METHODS)
    validation.check_bool("weighted", weighted)
    if method != "top_k":
        array_validation.check_key(key)
    sample_size = validation.check_int("sample_size", sample_size, minimum=1)
    probabilities = nonnegative_vector("probabilities", probabilities)
    if order is not None and method != "pivotal":
        raise ValueError(f"order= is used only by method='pivotal'; got {method!r}")
    if method in ("without_replacement", "pivotal", "top_k"):
        validation.check_up_to("sample_size", sample_size, num_rows=len(probabilities))
    if order is not None:
        order = permutation_of_rows(order, len(probabilities))
    return _drawn_rows(
        key,
        probabilities,
        order,
        sample_size=sample_size,
        method=method,
        weighted=weighted,
    )


def _num_poisson_slots(sample_size: int) -> int:
    """Returns a size that a Poisson sample exceeds with probability below 1e-9.

    The number is from Bernstein's inequality. The number of selected rows has a mean
    and a variance of at most `sample_size`.
    """
    third = _LOG_OVERFLOW / 3
    excess = third + math.sqrt(third**2 + 2 * _LOG_OVERFLOW * sample_size)
    return sample_size + math.ceil(excess)


@functools.partial(jax.jit, static_argnames=("sample_size", "method", "weighted"))
def _drawn_rows(
    key: Array,
    scores: Array,
    order: Array | None,
    *,
    sample_size: int,
    method: str,
    weighted: bool,
) -> RowSample:
    """Computes `sample_rows` for checked arguments, in one compiled program."""
    probabilities, valid = normalised(scores)
    if order is not None:
        valid &= is_permutation(order)
    probabilities = jnp.where(valid, probabilities, 0)
    if method == "top_k":
        largest, indices = lax.top_k(probabilities, sample_size)
        counts = (largest > 0).astype(jnp.int32)
        chances = counts.astype(largest.dtype)
        scale = chances
    elif method == "with_replacement":
        drawn = draw_parts(key, scores, sample_size, until_distinct=False)
        indices = drawn.indices
        counts = drawn.counts
        chances = drawn.probabilities
        scale = drawn.scale
    else:
        num_slots = sample_size
        if method == "poisson":
            num_slots = _num_poisson_slots(sample_size)
            is_selected, inclusion = poisson_rows(key, probabilities, sample_size)
        elif method == "pivotal":
            if order is None:
                order = jnp.arange(len(probabilities), dtype=jnp.int32)
            is_selected, inclusion = pivotal_rows(
                key, probabilities, sample_size, order
            )
        else:
            is_selected, inclusion = systematic_rows(key, probabilities, sample_size)
        num_slots = min(num_slots, len(probabilities))
        (indices,) = jnp.nonzero(is_selected, size=num_slots, fill_value=0)
        num_selected = jnp.sum(is_selected, dtype=jnp.int32)
        counts = (jnp.arange(num_slots) < num_selected).astype(jnp.int32)
        chances = inclusion[indices]
        scale = counts / jnp.sqrt(jnp.where(counts > 0, chances, 1))
    if not weighted:
        scale = jnp.sqrt(counts).astype(chances.dtype)
    return RowSample(
        indices=indices.astype(jnp.int32),
        counts=counts,
        probabilities=chances,
        scale=jnp.where(valid, scale, jnp.nan),
    )


RULES = ("lev", "unif", "slev")


def row_probabilities(
    scores: ArrayLike, rule: str = "lev", alpha: ArrayLike = 0.9
) -> Array:
    """Computes sampling probabilities of rows from their leverage scores.

    Args:
      scores: (N,), one non-negative number per row, such as `leverage_scores`.
      rule: The map from scores to probabilities.
        - `"lev"`: in proportion to the scores.
        - `"unif"`: the same for all rows.
        - `"slev"`: alpha times the first plus 1 - alpha times the second. Rows of small
          scores, which have a large scale and so a large variance, become less rare.
      alpha: The share of the scores in `"slev"`, from 0 to 1, may be traced.

    Returns:
      (N,), sums to 1. If traced scores are negative, NaN, infinite or all zero, or a
      traced alpha is out of range, all are NaN.

    Raises:
      ValueError: If rule is unknown, alpha is outside [0, 1], or scores do not have one
        axis or (unless traced) are negative, NaN, infinite or all zero.
      TypeError: If alpha is not a real scalar, or scores are not real.

    Note:
      For LEVUNW, the leverage rule with an unweighted solve, combine `"lev"` with
      `sample_rows(..., weighted=False)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> scores = jnp.array([1.0, 0.5, 0.5])
      >>> print(sketching.row_probabilities(scores))
      [0.5  0.25 0.25]
      >>> scores = jnp.array([1.0, 0.0])
      >>> print(sketching.row_probabilities(scores, "slev", alpha=0.5))
      [0.75 0.25]

    References:
      Ma, Mahoney and Yu, "A statistical perspective on algorithmic leveraging", JMLR 16
      (2015), section 2.
    """
    validation.check_choice("rule", rule, RULES)
    array_validation.check_number("alpha", alpha, minimum=0, maximum=1)
    leverage, valid = distribution("scores", scores)
    uniform = jnp.full_like(leverage, 1 / leverage.shape[0])
    if rule == "lev":
        probabilities = leverage
    elif rule == "unif":
        probabilities = uniform
    else:
        alpha = jnp.asarray(alpha, leverage.dtype)
        alpha = jnp.where((alpha >= 0) & (alpha <= 1), alpha, jnp.nan)
        probabilities = alpha * leverage + (1 - alpha) * uniform
    return jnp.where(valid, probabilities, jnp.nan)
