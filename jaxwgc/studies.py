"""Monte Carlo studies: many trials in bounded memory, and means with intervals."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation

__all__ = [
    "Summary",
    "monte_carlo",
    "summarize",
]

_DEFAULT_BATCH_SIZE = 256


def monte_carlo(
    trial: Callable[[jax.Array], Any],
    key: jax.Array,
    num_trials: int,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Any:
    """Runs a trial many times, vmapped in batches, compiled once.

    Trial i gets the key fold_in(key, i), so results depend neither on the batch size
    nor on how many trials follow: more trials extend a study. Results are collected on
    the host after each batch, so the device holds no more than one batch.

    Args:
      trial: `trial(key) -> pytree` of arrays; a pure function that can be vmapped.
      key: PRNG key of either kind.
      num_trials: how many, at least 1.
      batch_size: how many to run side by side, at least 1. None runs up to 256; take
        fewer where a trial needs much memory.
      progress: called as `progress(done, num_trials)` after each batch.

    Returns:
      The pytree that trial returns, leaves NumPy arrays (num_trials, ...). Inside a
      traced function JAX arrays, and no progress.

    Raises:
      ValueError: where num_trials or batch_size is less than 1.
      TypeError: where they are not ints, or key is no PRNG key.

    Example:
      >>> import jax, jaxwgc
      >>> draws = jaxwgc.monte_carlo(jax.random.normal, jax.random.key(0), 1000)
      >>> draws.shape
      (1000,)
    """
    key = jnp.asarray(_validation.check_key(key))
    num_trials = _validation.check_int("num_trials", num_trials, minimum=1)
    if batch_size is None:
        batch_size = _DEFAULT_BATCH_SIZE
    batch_size = _validation.check_int("batch_size", batch_size, minimum=1)
    # Batches of nearly equal size waste least on the last one, which is filled up.
    num_batches = -(-num_trials // batch_size)
    batch_size = -(-num_trials // num_batches)

    def numbered_trial(key, number):
        return trial(jax.random.fold_in(key, number))

    def run_traced():
        return jax.lax.map(
            lambda number: numbered_trial(key, number),
            jnp.arange(num_trials),
            batch_size=batch_size,
        )

    if _validation.is_traced(key):
        return run_traced()
    run_batch = jax.jit(jax.vmap(numbered_trial, in_axes=(None, 0)))
    collected = None
    for start in range(0, num_trials, batch_size):
        batch = run_batch(key, start + np.arange(batch_size))
        if _validation.is_traced(batch):
            # The trial reads something traced, or jit is around this call.
            return run_traced()
        batch = jax.device_get(batch)
        stop = min(start + batch_size, num_trials)
        if collected is None:
            collected = jax.tree.map(
                lambda leaf: np.empty((num_trials, *leaf.shape[1:]), leaf.dtype), batch
            )
        for whole, part in zip(
            jax.tree.leaves(collected), jax.tree.leaves(batch), strict=True
        ):
            whole[start:stop] = part[: stop - start]
        if progress is not None:
            progress(stop, num_trials)
    return collected


class Summary(NamedTuple):
    """The mean of repeated measurements and what is known of it.

    Attributes:
      mean: over the trials, like one trial's result.
      low: lower end of the confidence interval of the mean.
      high: upper end.
      standard_error: of the mean; NaN from one trial.
    """

    mean: Any
    low: Any
    high: Any
    standard_error: Any


def summarize(results: Any, confidence: float = 0.95) -> Any:
    """Means over the trials, with Student's confidence intervals.

    Args:
      results: a pytree, leaves (num_trials, ...), such as `monte_carlo` returns; real
        or bool (a mean of bools is a proportion). NumPy leaves are averaged in float64,
        JAX arrays in their own precision, also under `jit`.
      confidence: of the interval, between 0 and 1.

    Returns:
      The pytree with a `Summary` in the place of each leaf. From a single trial the
      interval is NaN.

    Raises:
      ValueError: where leaves are empty or differ in the number of trials, or
        confidence is not between 0 and 1.
      TypeError: where results are complex.

    Example:
      >>> import numpy as np, jaxwgc
      >>> summary = jaxwgc.summarize(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
      >>> float(summary.mean), float(summary.low.round(3)), float(summary.high.round(3))
      (3.0, 1.037, 4.963)
    """
    _validation.check_number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1; got {confidence}")
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(results)]
    if not shapes or not shapes[0] or shapes[0][0] < 1:
        raise ValueError(
            f"results must have arrays with a leading axis of trials; got {results!r}"
        )
    num_trials = shapes[0][0]
    _validation.check_leading_axis("results", results, num_trials, "num_trials")
    quantile = math.nan
    if num_trials > 1:
        quantile = _student_quantile((1 + confidence) / 2, num_trials - 1)

    def of_leaf(leaf):
        if np.iscomplexobj(leaf):
            raise TypeError(f"results must be real; got {leaf.dtype}")
        if isinstance(leaf, jax.Array):
            xp, leaf = jnp, leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        else:
            xp, leaf = np, np.asarray(leaf, np.float64)
        mean = xp.mean(leaf, axis=0)
        variance = xp.sum((leaf - mean) ** 2, axis=0) / max(num_trials - 1, 1)
        error = xp.sqrt(variance / num_trials)
        if num_trials == 1:
            error = xp.full_like(mean, math.nan)
        return Summary(mean, mean - quantile * error, mean + quantile * error, error)

    return jax.tree.map(of_leaf, results)


def _student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's distribution above the median, by bisection.

    The distribution function has a finite form for whole degrees of freedom
    (Abramowitz and Stegun 26.7.3 and 26.7.4); past a thousand degrees the expansion
    around the normal quantile (26.7.5) is exact to nine digits.
    """
    if degrees > 1000:
        z = NormalDist().inv_cdf(probability)
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / degrees + second / degrees**2 + third / degrees**3
    low, high = 0.0, 1.0
    while _student_within(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_within(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_within(bound: float, degrees: int) -> float:
    """P(|T| < bound) for a whole number of degrees of freedom."""
    angle = math.atan2(bound, math.sqrt(degrees))
    squared_cosine = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for index in range(degrees // 2):
        total += term
        step = 2 * index + 1 + odd
        term *= squared_cosine * step / (step + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
