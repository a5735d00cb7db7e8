"""Monte Carlo studies: trials in batches, means and proportions with intervals."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxwgc._common import array_validation, arrays, validation
from jaxwgc._common.progress import Progress
from jaxwgc._common.some_rows import in_batches

_DEFAULT_BATCH_SIZE = 256
# Minimum number of trials for which intervals of nonnegative results are clipped at 0.
_NUM_OF_ONE_SIGN = 10
_EQUAL_TRIALS = (
    "trial ignores its key, so that all trials are equal and their intervals mean "
    "nothing. Draw all random numbers of the trial from its key, by jax.random: "
    "numbers from NumPy or from another key are drawn once"
)
_trial_keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def monte_carlo(
    trial: Callable[[jax.Array], Any],
    key: jax.Array,
    num_trials: int,
    batch_size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    """Runs a trial many times with different keys, in batches.

    A trial is traced once during its lifetime, as by `jax.jit`: later calls with the
    same function ignore changes of global variables that the function reads. Calls with
    other numbers of trials compile nothing, since the last batch is padded. (Fewer
    trials than a batch are padded to a power of two, which compiles once for each
    power.)

    Trial i uses the key fold_in(key, i), so that results do not depend on the batch
    size, and a larger num_trials extends a study. If no result can depend on the key,
    e.g. since the trial draws from NumPy or from a key of its own, all trials are equal
    and a warning says so. Results move to the host after each batch: the device holds
    at most one batch.

    Args:
      trial: `trial(key) -> pytree` of arrays; a pure function that supports vmap.
      key: PRNG key of either kind.
      num_trials: Number of trials, at least 1.
      batch_size: Number of trials per batch, at least 1. None for up to 256. Reduce it
        if a trial needs much memory.
      progress: Called as `progress(done, num_trials)` after each batch. By default, a
        bar appears after two seconds in a terminal, if rich is installed, and in a
        notebook, if rich and ipywidgets are.

    Returns:
      The pytree returned by trial, with NumPy leaves (num_trials, ...). Inside a traced
      function: JAX arrays, without progress.

    Raises:
      ValueError: If num_trials or batch_size is below 1.
      TypeError: If num_trials or batch_size is not an int, key is not a PRNG key, trial
        or progress is not a function, or trial returns anything but numbers and bools
        (for a key, return `jax.random.key_data(key)`).

    Example:
      Decoding errors if 3 random workers of 10 straggle:

      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(10, num_stragglers=1)
      >>> def trial(key):
      ...     model = jaxwgc.stragglers.uniform(3)
      ...     arrivals, _ = model.sample(key, model.init(10), code.loads)
      ...     return jaxwgc.decoding(code, arrivals).error
      >>> errors = jaxwgc.monte_carlo(trial, jax.random.key(0), num_trials=1000)
      >>> errors.shape, bool(abs(errors.mean() - 2 / 3) < 0.1)
      ((1000,), True)
    """
    key = jnp.asarray(array_validation.check_key(key))
    num_trials = validation.check_int("num_trials", num_trials, minimum=1)
    if batch_size is None:
        batch_size = _DEFAULT_BATCH_SIZE
    batch_size = validation.check_int("batch_size", batch_size, minimum=1)
    # Small batches are powers of two, so that studies with other numbers of trials
    # share compiled programs.
    batch_size = min(batch_size, arrays.next_power_of_two(num_trials))

    # jit inside vmap: JAX caches the program as long as the function `trial` exists.
    run = jax.vmap(jax.jit(trial))

    def batch_of(numbers):
        batch = run(_trial_keys(key, numbers))
        array_validation.check_dtypes("trial's result", batch, "numbers or bools")
        return batch

    def run_traced():
        if num_trials > 1 and _ignores_key(trial, key):
            warnings.warn(_EQUAL_TRIALS, stacklevel=3)
        numbers = jnp.arange(num_trials)[:, None]
        return in_batches(lambda some: batch_of(some[:, 0]), numbers, batch_size)

    if array_validation.is_traced(key):
        return run_traced()
    batches = []
    with Progress(progress, num_trials) as shown:
        for start in range(0, num_trials, batch_size):
            batch = batch_of(start + np.arange(batch_size))
            if array_validation.is_traced(batch):
                # This call is under jit, or the trial reads a traced value.
                return run_traced()
            batches.append(jax.device_get(batch))
            shown.update(min(start + batch_size, num_trials))
    results = jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[:num_trials], *batches
    )
    if num_trials > 1 and _begins_equal(results) and _ignores_key(trial, key):
        warnings.warn(_EQUAL_TRIALS, stacklevel=2)
    return results


def _begins_equal(results: Any) -> bool:
    """Returns whether the first two trials have equal results."""
    leaves = jax.tree.leaves(results)
    return all(np.array_equal(leaf[0], leaf[1]) for leaf in leaves)


def _ignores_key(trial: Callable[[jax.Array], Any], key: jax.Array) -> bool:
    """Returns whether no result of a trial can depend on its key."""
    keys = jax.ShapeDtypeStruct((2, *key.shape), key.dtype)
    # With out_axes=None, `jax.vmap` raises ValueError if a result depends on the key.
    with_one_result = jax.vmap(jax.jit(trial), out_axes=None)
    try:
        jax.eval_shape(with_one_result, keys)
    except ValueError:
        return False
    return True


class Summary(NamedTuple):
    """Mean of repeated measurements with its confidence interval.

    Attributes:
      mean: Mean over the trials, with the shape of one result.
      low: Lower end of the confidence interval of the mean.
      high: Upper end of the confidence interval of the mean.
      standard_error: Standard error of the mean; NaN for one trial.

    Example:
      >>> import numpy as np, jaxwgc
      >>> summary = jaxwgc.summarize(np.array([1.0, 2.0, 3.0, 2.0]))
      >>> print(f"{summary.mean:.2f}, from {summary.low:.2f} to {summary.high:.2f}")
      2.00, from 0.70 to 3.30
    """

    mean: Any
    low: Any
    high: Any
    standard_error: Any


def summarize(results: Any, confidence: float = 0.95) -> Any:
    """Computes means over trials, with confidence intervals.

    Intervals of numbers are Student's. They do not go below 0 if there are at least 10
    results, all nonnegative. The mean of bools, or of numbers that are all 0 or 1, is a
    proportion with Wilson's interval (continuity correction), at most 5 / m for 0 of m.
    Its coverage at 95% is 95.6 to 98.7% for p = 0.01, 0.1 and 0.5 with 10, 30 and 200
    trials. (For p = 0.01 with 10 trials it is 99.6%; no interval has 93 to 99% there.)

    Args:
      results: Pytree with leaves (num_trials, ...), real or bool, e.g. from
        `monte_carlo`. NumPy leaves are averaged in float64, JAX arrays in their own
        precision, also under `jit`.
      confidence: Level of the interval, between 0 and 1.

    Returns:
      The pytree with a `Summary` in place of each leaf. For a single trial, the
      interval of a number is NaN.

    Raises:
      ValueError: If leaves are empty or have different numbers of trials, or confidence
        is not between 0 and 1.
      TypeError: If results are not real numbers or bools.

    Example:
      >>> import numpy as np, jaxwgc
      >>> summary = jaxwgc.summarize(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
      >>> float(summary.mean), float(summary.low.round(3)), float(summary.high.round(3))
      (3.0, 1.037, 4.963)
      >>> both = jaxwgc.summarize({"size": np.ones(200), "failed": np.zeros(200, bool)})
      >>> never = both["failed"]
      >>> float(never.low), float(never.high.round(3))
      (0.0, 0.023)

    References:
      Newcombe, "Two-sided confidence intervals for the single proportion: comparison of
      seven methods", 1998 (method 4).
    """
    array_validation.check_share("confidence", confidence)
    num_trials = array_validation.check_parts("results", results, "num_trials")
    array_validation.check_dtypes("results", results, "real numbers or bools")

    def of_leaf(leaf):
        if isinstance(leaf, jax.Array):
            xp = jnp
            values = arrays.promoted(leaf)
        else:
            xp = np
            values = np.asarray(leaf, np.float64)
        summary = student_summary(values, confidence)
        low = summary.low
        high = summary.high
        if num_trials > 1 or arrays.dtype_of(leaf) == np.bool_:
            share_low, share_high = _wilson_interval(
                xp, values.sum(0), num_trials, confidence
            )
            is_share = ((values == 0) | (values == 1)).all(0)
            low = xp.where(is_share, share_low, low)
            high = xp.where(is_share, share_high, high)
        return summary._replace(low=low[()], high=high[()])

    return jax.tree.map(of_leaf, results)


def student_summary(trials: Any, confidence: float = 0.95) -> Summary:
    """Computes means over trials, with Student's intervals."""
    xp = arrays.array_module(trials)
    values = trials if xp is jnp else np.asarray(trials, np.float64)
    num_trials = len(values)
    mean = xp.mean(values, axis=0)
    degrees = num_trials - 1 or math.nan
    variance = xp.sum((values - mean) ** 2, axis=0) / degrees
    error = xp.sqrt(variance / num_trials)
    half = scipy.special.stdtrit(num_trials - 1, (1 + confidence) / 2) * error
    low = mean - half
    high = mean + half
    if num_trials >= _NUM_OF_ONE_SIGN:
        low = xp.where((values < 0).any(0), low, xp.maximum(low, 0))
    return Summary(mean=mean, low=low[()], high=high[()], standard_error=error)


def straggler_probabilities(received: Any, confidence: float = 0.95) -> Summary:
    """Estimates the straggler probability of each worker, with confidence intervals.

    Rounds may come from a trace with a waiting rule, from a straggler model, or from
    training (stacked `received` of `RayCluster.compute`). For x of N rounds without a
    response, the estimate is (x + ½) / (N + 1): x / N would be 0 for a worker that has
    always responded, and `codes.unequal` would give it all parts.

    Args:
      received: Which workers responded in each round, bool (rounds, num_workers).
      confidence: Level of the intervals, between 0 and 1.

    Returns:
      A `Summary` of (num_workers,), NumPy float64: the estimates as `mean`, with
      Wilson's intervals (continuity correction), as in `jaxwgc.summarize`. Rounds are
      assumed independent: for workers with slow spells, intervals are too narrow.

    Raises:
      ValueError: If received does not have two axes or is empty, or confidence is not
        between 0 and 1.
      TypeError: If received is not bool or is traced.

    Example:
      From a trace, with a deadline of two seconds:

      >>> import jax, numpy as np
      >>> from jaxwgc import codes, simulation, stragglers
      >>> times = np.random.default_rng(0).exponential([0.5, 1.0, 2.0], (500, 3))
      >>> wait, key = stragglers.deadline(2.0), jax.random.key(0)
      >>> arrivals = jax.vmap(lambda row: wait.arrivals(key, row))(times)
      >>> estimates = simulation.straggler_probabilities(arrivals.received)
      >>> estimates.mean.round(3)
      array([0.019, 0.149, 0.358])
      >>> estimates.low.round(3), estimates.high.round(3)
      (array([0.009, 0.119, 0.316]), array([0.035, 0.183, 0.402]))
      >>> code = codes.unequal(estimates.mean, num_parts=6)

    References:
      Krichevsky, Trofimov, "The performance of universal encoding", IEEE Transactions
      on Information Theory 27, 1981 (the added ½); Newcombe, "Two-sided
      confidence intervals for the single proportion", 1998.
    """
    responses = array_validation.host_array(
        "received", received, "bools", rounds="any", num_workers="any"
    )
    num_rounds = len(responses)
    lost = ~responses
    estimates = (lost.sum(0) + 0.5) / (num_rounds + 1)
    return summarize(lost, confidence)._replace(mean=estimates)


def _wilson_interval(
    xp: Any, hits: Any, num_trials: int, confidence: float
) -> tuple[Any, Any]:
    """Computes the lower and upper end of Wilson's interval of a proportion.

    Args:
      xp: Module `numpy` or `jax.numpy`.
      hits: Numbers of hits, arrays of this module.
      num_trials: Number of trials.
      confidence: Level of the interval.
    """
    # (1 + confidence) / 2 could round to one, so the lower quantile is used.
    z = -scipy.special.ndtri((1 - confidence) / 2)

    def low_end(count):
        # The argument of the root may be negative if there are no hits. The lower end
        # is then 0.
        spread = 4 * count * (num_trials - count + 1) / num_trials - 2 - 1 / num_trials
        root = xp.sqrt(xp.maximum(z**2 + spread, 0))
        low = (2 * count + z**2 - 1 - z * root) / (2 * (num_trials + z**2))
        return xp.where(count > 0, low, 0)

    return low_end(hits), 1 - low_end(num_trials - hits)
