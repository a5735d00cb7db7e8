"""Partitions of a data set, and samples of their parts."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import is_kind
from jaxwgc._validation import require
from jaxwgc.sketching import _conversions
from jaxwgc.sketching._samplers._normalisation import (
    distribution,
    nonnegative_vector,
    normalised,
)

_MAX_COUNT = 2**31 - 1

# `jax.random.poisson` computes in float32 for any dtype of its argument. Its acceptance
# test is a difference of numbers of size mean * log(mean), so that its samples are
# visibly wrong for means above 1e5. Above _LARGE_MEAN, a Cornish-Fisher expansion
# replaces it. The expansion is at a total variation distance of 5e-6 from the Poisson
# law at _LARGE_MEAN, and closer for larger means.
_LARGE_MEAN = 4096.0

# Branch probabilities at nodes of the tree are multiples of 1 / _UNITS.
_UNITS = np.uint32(2**31)


def partition(data: Any, num_parts: int) -> tuple[Any, Array]:
    """Splits a data set into contiguous parts of equal shape.

    Part sizes differ by at most one. The first N mod K parts have one row more than the
    others, which are padded with a row of zeros. If K divides N, there is no padding,
    and the parts are a reshape of the data. Rows keep their order: shuffle them first
    if neighbours are similar.

    Args:
      data: A pytree of arrays of any dtype that share a leading axis of N rows.
      num_parts: K, an int from 1 to N.

    Returns:
      A pair `(parts, row_weights)`. The leaves of `parts` have shape (K, ceil(N / K),
      ...) and the dtypes of `data`. `row_weights` has shape (K, ceil(N / K)): 1 for a
      row of the data, 0 for padding. It has the widest float dtype of the leaves (at
      least float32), or the default float dtype if no leaf is a float.

    Raises:
      ValueError: If there is no leaf, a leaf has no leading axis, leaves disagree on N,
        or num_parts is not from 1 to N.
      TypeError: If num_parts is not an int.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> parts, row_weights = jaxwgc.partition({"x": jnp.arange(1, 6)}, num_parts=2)
      >>> print(parts["x"])
      [[1 2 3]
       [4 5 0]]
      >>> print(row_weights)
      [[1. 1. 1.]
       [1. 1. 0.]]

    References:
      The paper's section 3.2, for K that divides N.
    """
    _validation.check_all_dense("data", data)
    data = jax.tree.map(jnp.asarray, data)
    num_rows = _validation.check_parts("data", data, "N")
    num_parts = _validation.check_up_to("num_parts", num_parts, num_rows=num_rows)
    leaves = jax.tree.leaves(data)
    dtypes = [leaf.dtype for leaf in leaves if is_kind(leaf, "real floats")]
    dtype = jnp.result_type(*([jnp.float32, *dtypes] if dtypes else [float]))
    parts = jax.tree.map(lambda leaf: _split(leaf, num_parts), data)
    return parts, _split(np.ones(num_rows, dtype), num_parts)


@functools.partial(jax.jit, static_argnames="num_parts")
def _split(rows: Array, num_parts: int) -> Array:
    """Splits rows into parts (num_parts, ceil(N / num_parts), ...), zero-padded."""
    size, num_longer = divmod(rows.shape[0], num_parts)
    if num_longer == 0:
        return rows.reshape(num_parts, size, *rows.shape[1:])
    boundary = num_longer * (size + 1)
    longer = rows[:boundary].reshape(num_longer, size + 1, *rows.shape[1:])
    shorter = rows[boundary:].reshape(num_parts - num_longer, size, *rows.shape[1:])
    padding = [(0, 0), (0, 1)] + [(0, 0)] * (rows.ndim - 1)
    return jnp.concatenate([longer, jnp.pad(shorter, padding)])


def partition_probabilities(scores: ArrayLike, num_parts: int) -> Array:
    """Computes the sampling probability of every part: its share of all scores.

    Πⱼ is the sum of the scores of the rows in part j over the sum of all scores, with
    the parts of `partition`. Any non-negative scores are allowed. With scores of 1,
    probabilities are in proportion to the sizes of the parts.

    Args:
      scores: (N,), one number per row, such as `leverage_scores`. Integers are
        converted to the default float dtype.
      num_parts: K, an int from 1 to N.

    Returns:
      (K,), sums to 1. If traced scores are invalid, all are NaN.

    Raises:
      ValueError: If scores do not have one axis, num_parts is not from 1 to N, or
        (unless traced) a score is negative, NaN or infinite, or all are zero.
      TypeError: If num_parts is not an int, or scores are not real.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> scores = jnp.array([0.5, 0.5, 0.25, 0.25, 0.5])
      >>> print(sketching.partition_probabilities(scores, num_parts=2))
      [0.625 0.375]

    References:
      The paper's section 3.2, Πᵢ.
    """
    shares, valid = distribution("scores", scores)
    parts, _ = partition(shares, num_parts)
    return jnp.where(valid, jnp.sum(parts, axis=1), jnp.nan)


class PartitionSample(NamedTuple):
    """Distinct parts of a sample, and their numbers of draws.

    Attributes:
      indices: int32 (k,), the distinct parts.
      counts: int32 (k,), how many times each was drawn; 0 marks an unused slot.
      probabilities: (k,), the probability of each of these parts in one draw from all K
        parts. They do not sum to 1.
      num_draws: int32 scalar q, the sum of the counts.
    """

    indices: Array
    counts: Array
    probabilities: Array
    num_draws: Array

    @property
    def scale(self) -> Array:
        """Computes the scale of each part's rows, √(count / (q Π)); 0 for unused slots.

        The factor is √count times the default of `rescaling_factors`. If q was fixed,
        the sketch is unbiased, like that of a `RowSample`. See the note of
        `sample_partitions`.
        """
        roots = jnp.sqrt(self.counts).astype(self.probabilities.dtype)
        return roots * unbiased_factors(self, self.num_draws)


def sample_partitions(
    key: Array,
    probabilities: ArrayLike,
    *,
    num_distinct: int | None = None,
    num_draws: int | None = None,
) -> PartitionSample:
    """Draws parts with replacement; keeps each distinct part once, with its count.

    Drawing stops by exactly one of two rules:

    - `num_distinct=k`: when k distinct parts have been drawn. They come in the order of
      their first draws, so that the last one has count 1. The draws are simulated as a
      Poisson process in which part j arrives at rate Πⱼ. First arrivals are then
      independent exponential times, and drawing stops at the k-th of them. Further
      arrivals before it are Poisson counts. This is exactly the law of sequential
      draws. Work and memory are of the order of K, for any number of draws.
    - `num_draws=q`: after q draws. Drawn parts come first, by falling count; the slots
      after them have count 0. Memory is of the order of K + q. Expected counts are
      exact also in float32, at any position, for probabilities down to 1e-16, far below
      machine epsilon.

    Args:
      key: One PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      probabilities: Π, (K,), not negative; normalised to sum to 1.
      num_distinct: k, an int from 1 to K.
      num_draws: q, an int of at least 1.

    Returns:
      A `PartitionSample` with k, or min(q, K), slots. If fewer than k traced
      probabilities are positive, drawing stops when these parts have been drawn, and
      the remaining slots have count 0. If traced probabilities are negative, NaN,
      infinite or all zero, all counts are 0. With `num_distinct`, counts saturate at
      2³¹ / k, for probabilities that differ by as large a factor.

    Raises:
      ValueError: If not exactly one of num_distinct and num_draws is given, or it is
        out of range; if probabilities do not have one axis, or (unless traced) are
        negative, NaN, infinite or all zero, or fewer than num_distinct are positive.
      TypeError: If the key is no PRNG key, or num_distinct or num_draws is not an int.

    Note:
      With `num_draws`, count / (q Πⱼ) has the expectation 1 for every part: the
      rescaling of `weighted_parts` is unbiased. With `num_distinct`, q is random and
      the last draw is always a new part, most likely a rare one. So rare parts count
      too much and likely parts too little. The mean over all parts, weighted by Π,
      stays 1. In the paper's experiments, the measured bias is within 3%. For 20 out of
      40 parts with probabilities spread over a factor of 100, it is from -2% to +14%.
      For 3 out of 4 parts with probabilities 0.5, 0.3, 0.15 and 0.05, it is from -10%
      to +35%. `drop_last_distinct` removes the bias.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> probabilities = jnp.array([0.7, 0.1, 0.1, 0.1])
      >>> sample = sketching.sample_partitions(
      ...     jax.random.key(0), probabilities, num_draws=10
      ... )
      >>> print(sample.counts.sum(), sample.indices[0])
      10 0
      >>> sample = sketching.sample_partitions(
      ...     jax.random.key(0), probabilities, num_distinct=3
      ... )
      >>> print(len(set(sample.indices.tolist())), sample.counts[-1])
      3 1

    References:
      The paper's section 3.2. Its text draws until k distinct parts are found
      (`num_distinct`). Its first step, read literally, is k draws (`num_draws`).
    """
    key = _validation.check_key(key)
    unconverted = probabilities
    probabilities = nonnegative_vector("probabilities", probabilities)
    is_one = (num_distinct is None) != (num_draws is None)
    given = f"num_distinct = {num_distinct} and num_draws = {num_draws}"
    require(is_one, "exactly one of num_distinct and num_draws", "be given", given)
    if num_distinct is not None:
        limit = {"num_probabilities": len(probabilities)}
        num_distinct = _validation.check_up_to("num_distinct", num_distinct, **limit)
        host_values = _conversions.concrete(unconverted, probabilities.dtype)
        if host_values is not None:
            _check_num_positive(host_values, num_distinct)
        return draw_parts(key, probabilities, num_distinct, until_distinct=True)
    num_draws = _validation.check_int("num_draws", num_draws, minimum=1)
    return draw_parts(key, probabilities, num_draws, until_distinct=False)


def _check_num_positive(values: np.ndarray, num_distinct: int) -> None:
    """Checks that enough probabilities are positive after they are normalised."""
    relative = values / values.max()
    # Subnormal numbers count as zero, since many JAX operations flush them to zero.
    is_positive = relative / relative.sum() >= np.finfo(values.dtype).tiny
    num_positive = np.count_nonzero(is_positive)
    if num_positive < num_distinct:
        raise ValueError(
            f"num_distinct must be at most the number of positive probabilities, "
            f"{num_positive} of {len(values)}; got {num_distinct}: draw fewer parts, "
            "or give more parts a positive probability"
        )


@functools.partial(jax.jit, static_argnames=("number", "until_distinct"))
def draw_parts(
    key: Array, probabilities: Array, number: int, until_distinct: bool
) -> PartitionSample:
    """Runs `sample_partitions` on checked arguments, in one compiled function."""
    probabilities, valid = normalised(probabilities)
    probabilities = jnp.where(valid, probabilities, 0)
    if until_distinct:
        indices, counts = _until_distinct(key, probabilities, number)
    else:
        drawn = _count_draws(key, probabilities, number)
        counts, indices = lax.top_k(drawn, min(number, drawn.shape[0]))
    counts = jnp.where(valid, counts, 0).astype(jnp.int32)
    return PartitionSample(
        indices=indices.astype(jnp.int32),
        counts=counts,
        probabilities=probabilities[indices],
        num_draws=jnp.sum(counts, dtype=jnp.int32),
    )


def unbiased_factors(sample: PartitionSample, size: ArrayLike) -> Array:
    """Returns 1 / √(size Πⱼ), or 0 if the count is 0."""
    dtype = sample.probabilities.dtype
    is_drawn = sample.counts > 0
    # Two roots are multiplied, since the product below a single root may leave the
    # range of float32.
    roots = jnp.sqrt(jnp.where(is_drawn, sample.probabilities, 1))
    roots *= jnp.sqrt(jnp.maximum(jnp.asarray(size, dtype), jnp.finfo(dtype).tiny))
    return jnp.where(is_drawn, 1 / roots, 0)


def drop_last_distinct(sample: PartitionSample) -> PartitionSample:
    """Returns a sample without its last draw, which removes the bias of `num_distinct`.

    Drawing until k distinct parts are found stops at a draw that is always a new part.
    Without this draw and its part, the other q - 1 draws are exchangeable. Given their
    counts, count / (q - 1) is the probability that the first draw was that part. So
    count / ((q - 1) Πⱼ) has the expectation 1 for every part, unlike count / (q Πⱼ).
    Sample one part more than needed, and drop it.

    Args:
      sample: A `PartitionSample` of k >= 2 slots, from `sample_partitions` with
        `num_distinct`. With `num_draws`, no draw is special.

    Returns:
      A `PartitionSample` with k - 1 slots and num_draws = q - 1.

    Raises:
      ValueError: If the sample has one slot.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> sample = sketching.sample_partitions(
      ...     jax.random.key(0), jnp.ones(4), num_distinct=3
      ... )
      >>> print(sketching.drop_last_distinct(sample).indices.shape)
      (2,)

    References:
      Haldane, "On a method of estimating frequencies", Biometrika 33 (1945), for a
      single part.
    """
    num_slots = sample.counts.shape[-1]
    require(num_slots >= 2, "sample", "have at least 2 slots", num_slots)
    counts = sample.counts[..., :-1]
    return PartitionSample(
        sample.indices[..., :-1],
        counts,
        sample.probabilities[..., :-1],
        jnp.sum(counts, axis=-1, dtype=jnp.int32),
    )


def _until_distinct(
    key: Array, probabilities: Array, num_distinct: int
) -> tuple[Array, Array]:
    """Draws until num_distinct parts are found, and returns indices and counts."""
    arrival_key, count_key = jax.random.split(key)
    units = _exponential(arrival_key, probabilities.shape, probabilities.dtype)
    # Logarithms keep their precision over all ratios of probabilities.
    log_arrivals = jnp.log(units) - jnp.log(probabilities)
    negated, indices = lax.top_k(-log_arrivals, num_distinct)
    log_arrivals = -negated
    is_drawn = jnp.isfinite(log_arrivals)
    # Slot of the last part to arrive. Unused slots never arrive, and come after it.
    last = jnp.sum(is_drawn) - 1
    # Expected numbers of further arrivals, Πⱼ (stop - arrival_j), without a difference
    # of large numbers.
    means = units[indices] * jnp.expm1(log_arrivals[last] - log_arrivals)
    later = _poisson(count_key, jnp.where(is_drawn, jnp.maximum(means, 0), 0))
    # Counts are bounded such that their sum also fits in int32.
    counts = 1 + jnp.minimum(later, _MAX_COUNT // num_distinct - 1)
    return indices, jnp.where(is_drawn, counts, 0)


def _poisson(key: Array, mean: Array) -> Array:
    """Draws a Poisson variable for every mean, int32; saturates at 2³¹ - 128."""
    small_key, large_key = jax.random.split(key)
    is_large = mean >= _LARGE_MEAN
    small = jax.random.poisson(small_key, jnp.where(is_large, 1, mean), dtype=jnp.int32)
    safe = jnp.clip(mean, _LARGE_MEAN, 2.0**31)
    normal = jax.random.normal(large_key, mean.shape, mean.dtype)
    root = jnp.sqrt(safe)
    skewness = (normal**2 - 1) / 6
    excess = (normal - normal**3) / (72 * root)
    large = jnp.round(safe + root * normal + skewness + excess)
    # The largest float32 below 2**31.
    large = jnp.minimum(large, 2.0**31 - 128).astype(jnp.int32)
    return jnp.where(is_large, large, small)


def _exponential(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Draws positive exponential variables that are precise near zero.

    Only the earliest of many arrivals count. They come from uniform variables near
    zero, which `jax.random.uniform` draws from a grid with steps of machine epsilon. A
    second variable fills the gaps of the grid, so that arrivals do not tie or vanish.
    """
    info = jnp.finfo(dtype)
    coarse, fine = jax.random.uniform(key, (2, *shape), dtype)
    filled = coarse + info.eps * fine + info.smallest_normal
    return -jnp.log1p(-jnp.where(coarse >= 0.5, coarse, filled))


def _with_sums(tree: Array) -> Array:
    """Replaces every inner node of a binary tree by the sum of its children."""
    return jnp.concatenate([tree.reshape(-1, 2).sum(axis=1), tree[len(tree) // 2 :]])


def _count_draws(key: Array, probabilities: Array, num_draws: int) -> Array:
    """Draws num_draws parts, and returns how often each part was drawn, int32 (K,).

    Every draw walks down a binary tree of sums of probabilities, with fresh bits at
    each level. A search in one cumulative sum would be shorter. But in float32 its
    rounding errors are as large as the probabilities of 1e5 parts.

    The probability of the rarer side of a node is rounded to a multiple of 2⁻³¹. It is
    rounded up or down at random once per call, so that its expectation is exact. On the
    grid of `jax.random.uniform`, parts rarer than 1e-7 would come too often or never.
    """
    num_parts = probabilities.shape[0]
    depth = (num_parts - 1).bit_length()
    # The root is at index 1, and the children of node i are at 2i and 2i + 1. Each step
    # adds a level.
    tree = jnp.pad(probabilities, (2**depth, 2**depth - num_parts))
    tree = lax.fori_loop(0, depth, lambda _, tree: _with_sums(tree), tree)
    sides = tree.reshape(-1, 2)
    total = jnp.sum(sides, axis=1)
    share = jnp.min(sides, axis=1) / jnp.where(total > 0, total, 1)
    keys = jax.random.split(key, depth + 1)
    rounding = jax.random.uniform(keys[depth], share.shape, share.dtype)
    # A side of probability zero is never taken.
    units = jnp.floor(share * _UNITS + rounding).astype(jnp.uint32)
    units = jnp.where(sides[:, 0] <= sides[:, 1], units, _UNITS - units)

    def descend(nodes, level_key):
        bits = jax.random.bits(level_key, (num_draws,), jnp.uint32) >> 1
        return 2 * nodes + (bits >= units[nodes]), None

    # Under `shard_map`, the root has to vary with the device as the tree and the key
    # do. So it is computed from both.
    root = jnp.where((tree[0] >= 0) | (jax.random.key_data(key)[0] >= 0), 1, 1)
    nodes = jnp.broadcast_to(root.astype(jnp.int32), (num_draws,))
    nodes, _ = lax.scan(descend, nodes, keys[:depth])
    return jnp.zeros(num_parts, jnp.int32).at[nodes - 2**depth].add(1)
