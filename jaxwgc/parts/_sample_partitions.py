"""Samples of the parts of a data set, drawn with replacement."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.probabilities import nonnegative_vector, normalised
from jaxwgc.parts._draws_of_parts import draw_counts, draw_until_distinct


class PartitionSample(NamedTuple):
    """A sample of parts: the distinct parts, their counts and their probabilities.

    Attributes:
      indices: int32 (k,), the distinct parts.
      counts: int32 (k,), how many times each part was drawn; 0 marks an unused slot.
      probabilities: (k,), the probability of each of these parts in one draw from all K
        parts. They do not sum to 1.
      num_draws: int32 scalar q, the sum of the counts.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> probabilities = jnp.array([0.4, 0.3, 0.2, 0.1])
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), probabilities, num_draws=4
      ... )
      >>> int(sample.counts.sum()), int(sample.num_draws)
      (4, 4)
    """

    indices: Array
    counts: Array
    probabilities: Array
    num_draws: Array

    @property
    def scale(self) -> Array:
        """Computes the factor that scales the rows of each part; 0 for unused slots.

        The factor is √count times the default of `rescaling_factors`. If q was fixed,
        the sketch is unbiased, like that of `sample_rows`. See the note of
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
      stays 1. In the experiments of the reference, the measured bias is within 3%. For
      20 out of 40 parts with probabilities spread over a factor of 100, it is from -2%
      to +14%.
      For 3 out of 4 parts with probabilities 0.5, 0.3, 0.15 and 0.05, it is from -10%
      to +35%. `drop_last_distinct` removes the bias.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> probabilities = jnp.array([0.7, 0.1, 0.1, 0.1])
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), probabilities, num_draws=10
      ... )
      >>> print(sample.counts.sum(), sample.indices[0])
      10 0
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), probabilities, num_distinct=3
      ... )
      >>> print(len(set(sample.indices.tolist())), sample.counts[-1])
      3 1

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.2. Its text draws until k distinct parts
      are found (`num_distinct`). Its first step, read literally, is k draws
      (`num_draws`).
    """
    key = array_validation.check_key(key)
    unconverted = probabilities
    probabilities = nonnegative_vector("probabilities", probabilities)
    if (num_distinct is None) == (num_draws is None):
        raise ValueError(
            "exactly one of num_distinct and num_draws must be given; got num_distinct "
            f"= {num_distinct} and num_draws = {num_draws}"
        )
    if num_distinct is not None:
        num_distinct = validation.check_up_to(
            "num_distinct", num_distinct, num_probabilities=len(probabilities)
        )
        host_values = conversions.concrete(unconverted, probabilities.dtype)
        if host_values is not None:
            _check_num_positive(host_values, num_distinct)
        return draw_parts(key, probabilities, num_distinct, until_distinct=True)
    num_draws = validation.check_int("num_draws", num_draws, minimum=1)
    return draw_parts(key, probabilities, num_draws, until_distinct=False)


def _check_num_positive(values: np.ndarray, num_distinct: int) -> None:
    """Raises ValueError if fewer than `num_distinct` probabilities are positive."""
    relative = values / values.max()
    # Subnormal numbers count as zero, since many JAX operations flush them to zero.
    is_positive = relative / relative.sum() >= np.finfo(values.dtype).tiny
    num_positive = np.count_nonzero(is_positive)
    if num_positive < num_distinct:
        raise ValueError(
            f"num_distinct must be at most the number of positive probabilities, "
            f"{num_positive} of {len(values)}; got {num_distinct}. Draw fewer parts, "
            "or give more parts a positive probability"
        )


@functools.partial(jax.jit, static_argnames=("number", "until_distinct"))
def draw_parts(
    key: Array, probabilities: Array, number: int, until_distinct: bool
) -> PartitionSample:
    """Computes `sample_partitions` for checked arguments, in one compiled program."""
    probabilities, valid = normalised(probabilities)
    probabilities = jnp.where(valid, probabilities, 0)
    if until_distinct:
        indices, counts = draw_until_distinct(key, probabilities, number)
    else:
        drawn = draw_counts(key, probabilities, number)
        counts, indices = lax.top_k(drawn, min(number, drawn.shape[0]))
    counts = jnp.where(valid, counts, 0).astype(jnp.int32)
    return PartitionSample(
        indices=indices.astype(jnp.int32),
        counts=counts,
        probabilities=probabilities[indices],
        num_draws=jnp.sum(counts, dtype=jnp.int32),
    )


def unbiased_factors(sample: PartitionSample, size: ArrayLike) -> Array:
    """Computes factors 1 / √(size Πⱼ) that make a sample unbiased; 0 for unused slots.

    Πⱼ is the probability of part j in one draw.
    """
    dtype = sample.probabilities.dtype
    is_drawn = sample.counts > 0
    # Two roots are multiplied, since the product under a single root may overflow or
    # underflow in float32.
    roots = jnp.sqrt(jnp.where(is_drawn, sample.probabilities, 1))
    roots *= jnp.sqrt(jnp.maximum(jnp.asarray(size, dtype), jnp.finfo(dtype).tiny))
    return jnp.where(is_drawn, 1 / roots, 0)


def drop_last_distinct(sample: PartitionSample) -> PartitionSample:
    """Drops the last distinct part of a sample, to remove the bias of `num_distinct`.

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
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> sample = jaxwgc.parts.sample_partitions(
      ...     jax.random.key(0), jnp.ones(4), num_distinct=3
      ... )
      >>> print(jaxwgc.parts.drop_last_distinct(sample).indices.shape)
      (2,)

    References:
      Haldane, "On a method of estimating frequencies", Biometrika 33 (1945), for a
      single part.
    """
    num_slots = sample.counts.shape[-1]
    if num_slots < 2:
        raise ValueError(f"sample must have at least 2 parts; got {num_slots}")
    counts = sample.counts[..., :-1]
    return PartitionSample(
        indices=sample.indices[..., :-1],
        counts=counts,
        probabilities=sample.probabilities[..., :-1],
        num_draws=jnp.sum(counts, axis=-1, dtype=jnp.int32),
    )
