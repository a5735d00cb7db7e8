"""Samples of rows with unbiased scales, and row sampling as an embedding."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._validation import require
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import (
    Embedding,
    apply_to_leaves,
    bucket_entries,
    check_sizes,
    number_arrays,
)
from jaxwgc.sketching._samplers._partitions import draw_parts

RULES = ("lev", "unif", "slev")
METHODS = ("with_replacement", "without_replacement", "poisson", "top_k")

# Minus the log-probability that Poisson sampling selects more rows than slots.
_LOG_OVERFLOW = math.log(1e9)


# Probabilities are multiples of 2**-32, so that their sums are exact.
_UNIT = 2.0**32
_LARGEST = np.uint32(2**32 - 1)


class RowSample(NamedTuple):
    """Distinct rows of a sample, and the factors to multiply them with.

    Attributes:
      indices: int32 (num_slots,), distinct rows in the used slots.
      counts: int32 (num_slots,), how many times each was drawn; 0 marks an unused slot.
      probabilities: (num_slots,). With replacement, the probability of the row in one
        draw; otherwise the probability that the row is in the sample.
      scale: (num_slots,), the factor of each row, which includes its count; 0 in unused
        slots. The sum of scale² x xᵀ over the slots has the expectation XᵀX.
      num_lost: int32 scalar, the number of selected rows without a slot.
    """

    indices: Array
    counts: Array
    probabilities: Array
    scale: Array
    num_lost: Array

    def apply(self, tree: Any) -> Any:
        """Returns the sampled rows of every array of a pytree, times their scale.

        The Gram matrix of the result has the expectation XᵀX. For a sparse matrix, time
        and memory are proportional to its entries and the result.

        Args:
          tree: A pytree; leaves (N, ...), arrays of numbers or sparse matrices as in
            `Embedding.apply`. For least squares, pass both X and y. For other losses,
            multiply the loss of each row by scale² instead, and take
            `y[sample.indices]`.

        Returns:
          A pytree of the same structure, leaves (num_slots, ...), all dense.

        Raises:
          ValueError: If leaves differ in their leading axis, or (unless traced) a
            sampled row is beyond it.
          TypeError: If a leaf is neither an array of numbers nor a sparse matrix.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> from jaxwgc import sketching
          >>> matrix = jnp.arange(6.0).reshape(3, 2)
          >>> sample = sketching.sample_rows(None, jnp.arange(3), 2, "top_k")
          >>> print(sample.apply(matrix))
          [[4. 5.]
           [2. 3.]]
        """
        arrays, shapes = number_arrays(tree)
        num_rows = _validation.check_parts("tree", shapes, "N")
        _checks.check_drawn_from("tree", self.indices, num_rows, "rows")
        return apply_to_leaves(self, arrays)

    def _apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        return [self._scaled(array[self.indices]) for array in arrays]

    def _apply_to_entries(self, entries: Any, shape: tuple[int, ...]) -> Array:
        num_slots = self.indices.shape[0]
        # Unused slots belong to no row, and rows that were not drawn are dropped.
        indices = jnp.where(self.scale != 0, self.indices, shape[0])
        slots = jnp.arange(num_slots, dtype=jnp.int32)
        bucket = jnp.full((1, shape[0]), num_slots, jnp.int32)
        bucket = bucket.at[0, indices].set(slots, mode="drop")
        ones = jnp.ones_like(bucket)
        rows = bucket_entries(entries, bucket, ones, (num_slots, shape[1]))
        return self._scaled(rows)

    def _scaled(self, rows: Array) -> Array:
        return rows * self.scale.astype(rows.dtype)[:, None]


def row_probabilities(
    scores: ArrayLike, rule: str = "lev", alpha: ArrayLike = 0.9
) -> Array:
    """Computes sampling probabilities of rows by the rules LEV, UNIF and SLEV.

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
    _validation.check_choice("rule", rule, RULES)
    _validation.check_number("alpha", alpha, minimum=0, maximum=1)
    leverage, valid = _checks.distribution("scores", scores)
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


def sample_rows(
    key: Array,
    probabilities: ArrayLike,
    sample_size: int,
    method: str = "with_replacement",
    *,
    weighted: bool = True,
    num_slots: int | None = None,
) -> RowSample:
    """Samples distinct rows, with counts and the scales that make the sample unbiased.

    - `"with_replacement"`: sample_size independent draws. A row that is drawn c times
      has the scale √(c / (sample_size p)).
    - `"without_replacement"`: sample_size distinct rows, by systematic sampling in
      random order. Rows lie side by side on a line in random order, each as long as its
      inclusion probability. A comb with teeth at distance 1 and a random start selects
      rows. The inclusion probability π is min(1, c p), with c such that the sum is
      sample_size. It is known exactly, unlike for successive or Gumbel top-k draws, so
      that the scale 1 / √π is exactly unbiased (Horvitz-Thompson).
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
      method: One of the four above.
      weighted: False for an unweighted sample, as LEVUNW needs. The scale is the square
        root of the count, so that a row counts as often as it was drawn.
      num_slots: The length of the result for `"poisson"`, an int of at least 1. By
        default large enough for an overflow probability below 1e-9.

    Returns:
      A `RowSample`. It has min(sample_size, N) slots with replacement, num_slots with
      Poisson sampling and sample_size otherwise. If traced probabilities are negative,
      NaN, infinite or all zero, all counts are 0 and the scale is NaN. If fewer than
      sample_size probabilities are positive, methods that draw distinct rows leave the
      remaining slots at count 0.

    Raises:
      ValueError: If method is unknown, sample_size is out of range, or num_slots is
        given with a method other than `"poisson"`; if probabilities do not have one
        axis, or (unless traced) are negative, NaN, infinite or all zero.
      TypeError: If the key is no PRNG key, or a size is not an int.

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
      Statist. 33 (1962), for the random order; Papailiopoulos, Kyrillidis and
      Boutsidis, "Provable deterministic leverage score sampling", KDD 2014, for top-k.
    """
    _validation.check_choice("method", method, METHODS)
    _validation.check_bool("weighted", weighted)
    used_key = None if method == "top_k" else _validation.check_key(key)
    sample_size = _validation.check_int("sample_size", sample_size, minimum=1)
    probabilities = _checks.nonnegative_vector("probabilities", probabilities)
    is_right = num_slots is None or method == "poisson"
    require(is_right, "num_slots", "be for method 'poisson' only", repr(method))
    if method in ("without_replacement", "top_k"):
        _validation.check_up_to("sample_size", sample_size, num_rows=len(probabilities))
    if num_slots is None:
        num_slots = sample_size
        if method == "poisson":
            # Bernstein's inequality, for a sum of mean and variance at most
            # sample_size.
            third = _LOG_OVERFLOW / 3
            excess = third + math.sqrt(third**2 + 2 * _LOG_OVERFLOW * sample_size)
            num_slots += math.ceil(excess)
    num_slots = _validation.check_int("num_slots", num_slots, minimum=1)
    sizes = sample_size, min(num_slots, len(probabilities))
    return _sample(used_key, probabilities, sizes, method, weighted)


@functools.partial(jax.jit, static_argnames=("sizes", "method", "weighted"))
def _sample(
    key: Any, probabilities: Array, sizes: tuple[int, int], method: str, weighted: bool
) -> RowSample:
    """Runs `sample_rows` on checked arguments, in one compiled function."""
    sample_size, num_slots = sizes
    given = probabilities
    num_lost = jnp.zeros((), jnp.int32)
    probabilities, valid = _checks.normalised(given)
    probabilities = jnp.where(valid, probabilities, 0)
    if method == "with_replacement":
        drawn = draw_parts(key, given, sample_size, until_distinct=False)
        indices = drawn.indices
        counts = drawn.counts
        chances = drawn.probabilities
        scale = drawn.scale
    elif method == "top_k":
        chances, indices = lax.top_k(probabilities, sample_size)
        is_used = chances > 0
        counts = is_used.astype(jnp.int32)
        scale = is_used.astype(chances.dtype)
        chances = scale
    else:
        if method == "poisson":
            is_selected, inclusion = poisson_rows(key, probabilities, sample_size)
        else:
            is_selected, inclusion = systematic_rows(key, probabilities, sample_size)
        indices, counts, num_lost = _into_slots(is_selected, num_slots)
        chances = inclusion[indices]
        scale = counts / jnp.sqrt(jnp.where(counts > 0, chances, 1))
    if not weighted:
        scale = jnp.sqrt(counts).astype(chances.dtype)
    return RowSample(
        indices=indices.astype(jnp.int32),
        counts=counts,
        probabilities=chances,
        scale=jnp.where(valid, scale, jnp.nan),
        num_lost=num_lost,
    )


def _into_slots(is_selected: Array, num_slots: int) -> tuple[Array, Array, Array]:
    """Returns indices, counts and the number of selected rows without a slot."""
    (indices,) = jnp.nonzero(is_selected, size=num_slots, fill_value=0)
    num_selected = jnp.sum(is_selected, dtype=jnp.int32)
    counts = (jnp.arange(num_slots) < num_selected).astype(jnp.int32)
    return indices, counts, jnp.maximum(num_selected - num_slots, 0)


def _in_units(chances: Array) -> tuple[Array, Array]:
    """Returns which probabilities are 1, and the others in units of 2**-32 (uint32).

    A positive probability stays positive.
    """
    is_certain = chances >= 1
    units = jnp.round(chances * _UNIT)
    # The conversion of 2**32 to uint32 is undefined.
    units = jnp.where(units >= _UNIT, _LARGEST, units.astype(jnp.uint32))
    units = jnp.where(chances > 0, jnp.maximum(units, 1), 0).astype(jnp.uint32)
    return is_certain, jnp.where(is_certain, 0, units)


def _from_units(units: Array, is_certain: Array, dtype: Any) -> Array:
    return jnp.where(is_certain, 1, units.astype(dtype) / _UNIT).astype(dtype)


def poisson_rows(
    key: Array, probabilities: Array, sample_size: int
) -> tuple[Array, Array]:
    """Draws a Poisson sample: a mask of its rows, and all inclusion probabilities."""
    is_certain, units = _in_units(sample_size * probabilities)
    bits = jax.random.bits(key, probabilities.shape, jnp.uint32)
    inclusion = _from_units(units, is_certain, probabilities.dtype)
    return is_certain | (bits < units), inclusion


def systematic_rows(
    key: Array, probabilities: Array, sample_size: int
) -> tuple[Array, Array]:
    """Draws a systematic sample of shuffled rows: a mask, and inclusion probabilities.

    All sums are modulo 2**32 in integers: a row contains a tooth of the comb if adding
    its length overflows. So probabilities are exact, unlike sums of 1e5 floats.
    """
    order_key, start_key = jax.random.split(key)
    num_rows = probabilities.shape[0]
    order = jnp.arange(num_rows, dtype=jnp.int32)
    order = jax.random.permutation(order_key, order)
    shuffled = probabilities[order]
    chances, num_certain = _inclusion_chances(shuffled, sample_size)
    is_certain, units = _in_units(chances)
    units = _fit_total(units, sample_size - num_certain)
    start = jax.random.bits(start_key, (), jnp.uint32)
    ends = start + jnp.cumsum(units, dtype=jnp.uint32)
    is_selected = is_certain | (ends < units)
    inclusion = _from_units(units, is_certain, probabilities.dtype)
    unshuffled = jnp.zeros(num_rows, bool).at[order].set(is_selected)
    return unshuffled, jnp.zeros_like(probabilities).at[order].set(inclusion)


def _inclusion_chances(probabilities: Array, sample_size: int) -> tuple[Array, Array]:
    """Returns inclusion probabilities min(1, c p), and how many of them are 1."""
    descending = -jnp.sort(-probabilities)
    num_rows = descending.shape[0]
    tails = jnp.cumsum(descending[::-1])[::-1]
    remaining = sample_size - jnp.arange(num_rows)
    # Without the tolerance, rounding would leave equal probabilities just below 1.
    tolerance = 1 - 8 * jnp.finfo(descending.dtype).eps
    is_certain = (descending > 0) & (remaining > 0)
    is_certain &= remaining * descending >= tolerance * tails
    num_certain = jnp.sum(jnp.cumprod(is_certain), dtype=jnp.int32)
    last = jnp.maximum(num_certain - 1, 0)
    smallest_certain = jnp.where(num_certain > 0, descending[last], jnp.inf)
    # Rows with inclusion probability 1 are counted again, since rounding may separate
    # equal probabilities.
    num_certain = jnp.sum(descending >= smallest_certain, dtype=jnp.int32)
    last = jnp.minimum(num_certain, num_rows - 1)
    tail = jnp.where(num_certain < num_rows, tails[last], 0)
    factor = (sample_size - num_certain) / jnp.where(tail > 0, tail, 1)
    below_one = 1 - jnp.finfo(descending.dtype).epsneg
    chances = jnp.minimum(factor.astype(descending.dtype) * probabilities, below_one)
    return jnp.where(probabilities >= smallest_certain, 1, chances), num_certain


def _fit_total(units: Array, total: Array) -> Array:
    """Adjusts rounded probabilities so that they sum to the integer `total`."""

    def excess(units: Array) -> tuple[Array, Array]:
        """Returns the sum minus `total`: an integer, and a number of 2**-32 units."""
        ends = jnp.cumsum(units, dtype=jnp.uint32)
        num_overflows = jnp.sum(ends < units, dtype=jnp.int32)
        fraction = lax.bitcast_convert_type(ends[-1], jnp.int32)
        return num_overflows + (fraction < 0) - total, fraction

    def shift(units: Array, by: Array) -> Array:
        room_below = jnp.minimum(units, 2**31 - 1).astype(jnp.int32) - 1
        room_above = jnp.minimum(_LARGEST - units, 2**31 - 1).astype(jnp.int32)
        by = jnp.where(units > 0, jnp.clip(by, -room_below, room_above), 0)
        return units + lax.bitcast_convert_type(by, jnp.uint32)

    # First, all numbers are changed in proportion, rounded to units. Then one unit is
    # added to or taken from each of the first rows.
    for _ in range(2):
        whole, fraction = excess(units)
        share = (whole + fraction / _UNIT) / jnp.maximum(total, 1)
        by = -units.astype(jnp.float32) * share.astype(jnp.float32)
        bound = 2.0**31 - 128
        units = shift(units, jnp.round(jnp.clip(by, -bound, bound)).astype(jnp.int32))
    _, fraction = excess(units)
    is_free = (units > 1) & (units < _LARGEST)
    is_moved = is_free & (jnp.cumsum(is_free) <= jnp.abs(fraction))
    return shift(units, jnp.where(is_moved, -jnp.sign(fraction), 0))


def row_sampling(
    key: Array, sketch_size: int, num_rows: int, probabilities: ArrayLike | None = None
) -> Embedding:
    """Returns an embedding that keeps sampled rows, drawn with replacement.

    Every row of S has a single entry. It is accurate if the leverage scores of the
    matrix are nearly proportional to the probabilities. Otherwise it may miss important
    rows.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of draws, at least 1. A row that is drawn several times
        takes one row of the sketch; unused rows are zero.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.
      probabilities: (num_rows,), not negative; normalised to sum to 1. Leverage scores
        are allowed. Uniform by default. Rounded to float32, so that S does not depend
        on their precision.

    Returns:
      An `Embedding`. If traced probabilities are negative, NaN, infinite or all zero,
      its products are NaN.

    Raises:
      ValueError: If a size is less than 1, or probabilities have another shape or
        (unless traced) are negative, NaN, infinite or all zero.
      TypeError: If a size is not an int, the key is no PRNG key, or probabilities are
        not real.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> scores = jnp.array([1.0, 0.0, 1.0, 0.0])
      >>> embedding = sketching.row_sampling(jax.random.key(0), 1, 4, scores)
      >>> print(embedding.matrix().sum())
      1.4142135

    References:
      Drineas, Mahoney and Muthukrishnan, "Sampling algorithms for l2 regression and
      applications", SODA 2006.
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    if probabilities is None:
        chances = jnp.full(num_rows, 1 / num_rows, jnp.float32)
    else:
        values, valid = _checks.distribution("probabilities", probabilities)
        _validation.check_shape("probabilities", values, "(num_rows,)", (num_rows,))
        # Invalid probabilities become NaN, and so do all products.
        chances = jnp.where(valid, values, jnp.nan).astype(jnp.float32)
    return _RowEmbedding(key, sketch_size, num_rows, probabilities=chances)


class _RowEmbedding(Embedding):
    probabilities: Array

    def _drawn(self) -> RowSample:
        return sample_rows(self.key, self.probabilities, self.sketch_size)

    def _apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        return list(map(self._padded, self._drawn()._apply_to_columns(arrays)))

    def _apply_to_entries(self, entries: Any, shape: tuple[int, ...]) -> Array:
        return self._padded(self._drawn()._apply_to_entries(entries, shape))

    def _padded(self, rows: Array) -> Array:
        return jnp.pad(rows, [(0, self.sketch_size - rows.shape[0]), (0, 0)])

    def _matrix(self, dtype: Any) -> Array:
        sample = self._drawn()
        zeros = jnp.zeros((self.sketch_size, self.num_rows), dtype)
        slots = jnp.arange(sample.indices.shape[0])
        return zeros.at[slots, sample.indices].set(sample.scale.astype(dtype))
