"""Draws of parts with replacement, up to a number of draws or of distinct parts."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_MAX_COUNT = 2**31 - 1

# Mean above which a Cornish-Fisher expansion replaces `jax.random.poisson`. The latter
# computes in float32 for any dtype of its argument. Its acceptance test subtracts
# numbers of size mean * log(mean), so that samples are visibly wrong for means above
# 1e5. At _LARGE_MEAN, the expansion has a total variation distance of 5e-6 from the
# Poisson distribution. For larger means, the distance is less.
_LARGE_MEAN = 4096.0

# Number of units in a probability of 1. In the tree of `draw_counts`, the probability
# of each branch is a multiple of 1 / _UNITS.
_UNITS = np.uint32(2**31)


def draw_until_distinct(
    key: Array, probabilities: Array, num_distinct: int
) -> tuple[Array, Array]:
    """Draws parts until `num_distinct` parts differ; returns these and their counts.

    See `sample_partitions`.
    """
    arrival_key, count_key = jax.random.split(key)
    units = _exponential(arrival_key, probabilities.shape, probabilities.dtype)
    # Arrival times are stored as logarithms, since times of rare parts may overflow.
    log_arrivals = jnp.log(units) - jnp.log(probabilities)
    negated, indices = lax.top_k(-log_arrivals, num_distinct)
    log_arrivals = -negated
    is_drawn = jnp.isfinite(log_arrivals)
    # Index of the latest arrival. Parts of probability 0, which never arrive, follow.
    last = jnp.sum(is_drawn) - 1
    # Expected number of later arrivals of each part, Πⱼ (stop - arrivalⱼ). `expm1`
    # avoids a difference of nearly equal numbers.
    means = units[indices] * jnp.expm1(log_arrivals[last] - log_arrivals)
    means = jnp.where(is_drawn, jnp.maximum(means, 0), 0)
    later = _poisson(count_key, means)
    # Counts are bounded, so that their sum fits in int32.
    max_later = _MAX_COUNT // num_distinct - 1
    counts = 1 + jnp.minimum(later, max_later)
    return indices, jnp.where(is_drawn, counts, 0)


def _poisson(key: Array, mean: Array) -> Array:
    """Draws one int32 Poisson variable per mean; means may be small or large."""
    small_key, large_key = jax.random.split(key)
    is_large = mean >= _LARGE_MEAN
    small_mean = jnp.where(is_large, 1, mean)
    small = jax.random.poisson(small_key, small_mean, dtype=jnp.int32)
    large_mean = jnp.clip(mean, _LARGE_MEAN, 2.0**31)
    normal = jax.random.normal(large_key, mean.shape, mean.dtype)
    root = jnp.sqrt(large_mean)
    skewness = (normal**2 - 1) / 6
    excess = (normal - normal**3) / (72 * root)
    large = jnp.round(large_mean + root * normal + skewness + excess)
    # 2**31 - 128 is the largest float32 below 2**31, the limit of int32.
    large = jnp.minimum(large, 2.0**31 - 128).astype(jnp.int32)
    return jnp.where(is_large, large, small)


def _exponential(key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
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
    """Replaces inner nodes of a binary tree by the sums of their children."""
    sums = tree.reshape(-1, 2).sum(axis=1)
    return jnp.concatenate([sums, tree[len(tree) // 2 :]])


def draw_counts(key: Array, probabilities: Array, num_draws: int) -> Array:
    """Draws parts, and returns how often each part was drawn.

    Every draw walks down a binary tree of sums of probabilities, with fresh bits at
    each level. A search in one cumulative sum would be shorter. But in float32 its
    rounding errors are as large as the probabilities of 1e5 parts.

    The probability of the rarer side of a node is rounded to a multiple of 2⁻³¹. It is
    rounded up or down at random once per call, so that its expectation is exact. On the
    grid of `jax.random.uniform`, parts rarer than 1e-7 would come too often or never.
    """
    num_parts = probabilities.shape[0]
    depth = (num_parts - 1).bit_length()
    num_leaves = 2**depth
    # The tree is an array: the root is at index 1, and the children of node i are at 2i
    # and 2i + 1. Each step of the loop computes the sums of one more level.
    tree = jnp.pad(probabilities, (num_leaves, num_leaves - num_parts))
    tree = lax.fori_loop(0, depth, lambda _, tree: _with_sums(tree), tree)
    sides = tree.reshape(-1, 2)
    total = jnp.sum(sides, axis=1)
    share = jnp.min(sides, axis=1) / jnp.where(total > 0, total, 1)
    keys = jax.random.split(key, depth + 1)
    rounding = jax.random.uniform(keys[depth], share.shape, share.dtype)
    # A side of probability 0 stays at 0 units, since `rounding` is less than 1.
    units = jnp.floor(share * _UNITS + rounding).astype(jnp.uint32)
    is_left_rarer = sides[:, 0] <= sides[:, 1]
    left_units = jnp.where(is_left_rarer, units, _UNITS - units)

    def descend(nodes: Array, level_key: Array) -> tuple[Array, None]:
        bits = jax.random.bits(level_key, (num_draws,), jnp.uint32) >> 1
        goes_right = bits >= left_units[nodes]
        return 2 * nodes + goes_right, None

    # Under `shard_map`, the nodes in a scan must vary over the same mesh axes from the
    # start. So the root is computed from the tree and the key.
    depends_on_both = (tree[0] >= 0) | (jax.random.key_data(key)[0] >= 0)
    root = jnp.where(depends_on_both, 1, 1)
    nodes = jnp.broadcast_to(root.astype(jnp.int32), (num_draws,))
    nodes, _ = lax.scan(descend, nodes, keys[:depth])
    parts = nodes - num_leaves
    return jnp.zeros(num_parts, jnp.int32).at[parts].add(1)
