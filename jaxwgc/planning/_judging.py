"""Statistics of candidates: step times, decoding errors, noise and bias."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy

from jaxwgc import stragglers
from jaxwgc.codes import GradientCode
from jaxwgc.planning._choice import BUSY, Candidate, Estimate, RoundStatistics
from jaxwgc.planning._convergence import Weights, leave_one_out
from jaxwgc.planning._rounds import Clusters, SimulatedRounds, simulate
from jaxwgc.planning._stale_descent import simulate_descents

# Level of the quantile of step times.
_LEVEL = 0.9
# z-score above which a bias, or a correlation between rounds, is significant.
_DEVIATIONS = 3.0
# Accepted probability that chance in a short trace looks like a bias. It is small,
# because many choices of many plans are tested.
_CHANCE = 1e-6
# Probability that the bias hidden by a short trace is larger than the bias assumed with
# stalls.
_UNSEEN = 0.05
# Largest correlation of noise between successive rounds. Noise that persists longer
# acts like a bias.
_MOST_CORRELATED = 0.98
# Mean square of the noise, relative to that of the deviations, up to which the noise is
# rounding error.
_ROUNDING = 1e-12


def judge(
    candidates: Sequence[Candidate], clusters: Clusters, advance: Callable[[], None]
) -> list[RoundStatistics]:
    """Computes statistics of each candidate, by a closed form or by simulation.

    Calls `advance` after each candidate, for a progress bar.
    """
    forms = [_closed_form(candidate, clusters.delay) for candidate in candidates]
    places_of_simulated = []
    places_with_memory = []
    for place, candidate in enumerate(candidates):
        counts = isinstance(candidate.wait, stragglers.fastest)
        if forms[place] is None or not (counts and candidate.is_exact):
            places_of_simulated.append(place)
        if candidate.memory:
            places_with_memory.append(place)
    simulated = simulate([candidates[place] for place in places_of_simulated], clusters)
    rounds = dict(zip(places_of_simulated, simulated, strict=True))
    simulated_descents = simulate_descents(
        [candidates[place] for place in places_with_memory], clusters
    )
    descents = dict(zip(places_with_memory, simulated_descents, strict=True))
    all_statistics = []
    for place, candidate in enumerate(candidates):
        statistics = _statistics(candidate, forms[place], rounds.get(place), clusters)
        if place in descents:
            descent = jax.tree.map(leave_one_out, descents[place])
            statistics = statistics._replace(descent=descent)
        all_statistics.append(statistics)
        advance()
    return all_statistics


def _statistics(
    candidate: Candidate,
    form: "_ClosedForm | None",
    rounds: SimulatedRounds | None,
    clusters: Clusters,
) -> RoundStatistics:
    """Computes the statistics of a candidate from its closed form or simulated rounds.

    If `rounds` is None, every round is exact and waits for a known number of responses.
    """
    num_clusters = clusters.num_clusters
    num_settings = 1 + num_clusters
    error = np.zeros(num_settings)
    weights = Weights.equal(num_settings)
    if rounds is None:
        # `judge` simulates all candidates except exact ones with `fastest`, which waits
        # for a known number of responses.
        assert isinstance(candidate.wait, stragglers.fastest)
        num_messages = candidate.wait.num_required
        if not candidate.code.allows_requests:
            num_messages *= candidate.code.messages_per_worker
    else:
        num_messages = rounds.num_messages + (
            rounds.num_late if candidate.memory else 0
        )
    if rounds is not None and rounds.decoded is not None:
        assert rounds.decoded.weights is not None
        error_of_rounds = rounds.decoded.error[rounds.masks]
        error = leave_one_out(error_of_rounds.reshape(num_clusters, -1).mean(axis=1))
        effective = rounds.decoded.weights[rounds.masks]
        effective = effective.reshape(num_clusters, -1, effective.shape[-1])
        weights = moments_of_weights(candidate, effective, clusters)
    if form is not None:
        seconds = np.full(num_settings, form.mean)
        quantile = Estimate(value=form.quantile, standard_error=0.0)
    else:
        assert rounds is not None
        elapsed = rounds.elapsed.reshape(num_clusters, -1)
        seconds = leave_one_out(elapsed.mean(axis=1))
        quantile = _quantile(elapsed)
    return RoundStatistics(
        seconds=seconds,
        quantile=quantile,
        is_closed_form=form is not None,
        num_messages=float(num_messages),
        error=error,
        weights=weights,
    )


class _ClosedForm(NamedTuple):
    """Mean and 90% quantile of the duration of a round."""

    mean: float
    quantile: float


def _closed_form(
    candidate: Candidate, delay: stragglers.DelayModel
) -> _ClosedForm | None:
    """Computes mean and quantile of round durations in closed form; None if unknown."""
    wait = candidate.wait
    loads = np.asarray(candidate.code.loads, np.float64)
    is_busy = candidate.late == BUSY and wait != stragglers.fastest(len(loads))
    has_equal_loads = np.all(loads == loads[0])
    if is_busy or not has_equal_loads:
        return None
    law = delay.law(float(loads[0]))
    if law is None:
        return None
    mean = wait.expected_time(law, len(loads))
    quantile = wait.time_quantile(law, len(loads), _LEVEL)
    if mean is None or quantile is None:
        return None
    return _ClosedForm(mean=mean, quantile=quantile)


def _quantile(elapsed: np.ndarray) -> Estimate:
    """Estimates the 90% quantile of durations, with its standard error.

    Args:
      elapsed: Durations, (clusters, rounds).
    """
    quantile = np.quantile(elapsed, _LEVEL, method="inverted_cdf")
    of_clusters = np.quantile(elapsed, _LEVEL, axis=1, method="inverted_cdf")
    error = math.nan
    if np.isfinite(of_clusters).all():
        error = of_clusters.std(ddof=1) / math.sqrt(len(of_clusters))
    return Estimate(value=float(quantile), standard_error=float(error))


def moments_of_weights(
    candidate: Candidate, weights: np.ndarray, clusters: Clusters
) -> Weights:
    """Computes bias and noise of the weights that decoding gives to the parts."""
    target = np.asarray(candidate.code.target, np.float64)
    scale = weights @ target / (target @ target)
    deviations = weights - scale[..., None] * target
    deviations /= math.sqrt(np.mean(target**2))
    has_state = clusters.has_state(candidate.code.num_workers)
    num_runs = clusters.num_clusters if has_state else 1
    runs = deviations.reshape(num_runs, -1, len(target))
    noise = _persistent_noise(runs)
    bias = max(
        _mean_square_bias(runs, noise, clusters.num_measured),
        _bias_of_lost_parts(candidate.code, weights, noise, clusters),
    )
    lasting = noise.share
    # Lateness lasts for several rounds only if the delay has a state, or late workers
    # stay busy.
    if not has_state and candidate.late != BUSY:
        lasting = 0.0
    mean_scale = leave_one_out(scale.mean(axis=1))
    mean_squared_scale = leave_one_out(np.mean(scale**2, axis=1))
    squared_deviations = np.mean(deviations**2, axis=2)
    squared_deviation = leave_one_out(squared_deviations.mean(axis=1))
    if clusters.has_stalls:
        # A short trace may hide a bias. The largest bias that it may hide is added.
        hidden = scipy.special.chdtri(len(target), _UNSEEN) / len(target)
        bias += float(squared_deviation[0]) * hidden / clusters.num_measured
    # If no round decodes, the scale is 0 and the weights are NaN. The target is then
    # never reached.
    size = np.where(mean_scale > 0, mean_scale, np.nan) ** 2
    return Weights(
        noise=np.maximum(squared_deviation - bias, 0) / size,
        bias=np.minimum(bias, squared_deviation) / size,
        scale_variance=np.maximum(mean_squared_scale - mean_scale**2, 0) / size,
        lasting=np.full_like(mean_scale, lasting),
        correlation=np.full_like(mean_scale, noise.correlation),
    )


class _PersistentNoise(NamedTuple):
    """Noise of the parts' weights, and the share of it that persists between rounds.

    Attributes:
      square: Mean square of the deviations of weights around their means over rounds.
      share: Share of the noise that persists.
      correlation: Correlation of this share in successive rounds.
    """

    square: float
    share: float
    correlation: float

    @property
    def growth(self) -> float:
        """Factor by which persistent noise increases the variance of a mean."""
        return 1 + 2 * self.share * self.correlation / (1 - self.correlation)


def _persistent_noise(runs: np.ndarray) -> _PersistentNoise:
    """Estimates the noise of the parts' weights, and how it persists between rounds."""
    around = runs - runs.mean(1, keepdims=True)
    square = np.mean(around**2)
    if square <= _ROUNDING * np.mean(runs**2):
        return _PersistentNoise(square=0.0, share=0.0, correlation=0.0)
    lag_1 = np.mean(around[:, 1:] * around[:, :-1]) / square
    lag_2 = np.mean(around[:, 2:] * around[:, :-2]) / square
    # A smaller autocorrelation is consistent with independent rounds.
    if lag_1 < _DEVIATIONS / math.sqrt(runs.size):
        return _PersistentNoise(square=square, share=0.0, correlation=0.0)
    correlation = float(np.clip(lag_2 / lag_1, 0, _MOST_CORRELATED))
    share = float(lag_1 / max(correlation, lag_1))
    return _PersistentNoise(square=square, share=share, correlation=correlation)


def _mean_square_bias(
    runs: np.ndarray, noise: _PersistentNoise, num_measured: float
) -> float:
    """Estimates the mean square bias of the parts' weights.

    The estimate is the product of the means over the first and the second half of each
    run. It is unbiased if the noise in the two halves is independent. If few measured
    rounds were resampled, a bias that chance explains counts as 0.
    """
    if noise.square == 0:
        return float(np.mean(runs.mean(1) ** 2))
    num_rounds, num_parts = runs.shape[1:]
    first_half = runs[:, : num_rounds // 2].mean(1)
    second_half = runs[:, num_rounds // 2 :].mean(1)
    bias = float(np.mean(first_half * second_half))
    deviation = 2 * noise.square * noise.growth / num_rounds
    deviation /= math.sqrt(runs[:, 0].size)
    # Without bias, the sum over parts of squared means is chi-square distributed with
    # one degree of freedom per part.
    chance = noise.square / num_measured
    chance *= scipy.special.chdtri(num_parts, _CHANCE) / num_parts
    is_significant = bias > _DEVIATIONS * deviation + chance
    return bias if is_significant else 0.0


def _bias_of_lost_parts(
    code: GradientCode, weights: np.ndarray, noise: _PersistentNoise, clusters: Clusters
) -> float:
    """Computes the mean square bias from parts that never or hardly ever arrive.

    If few parts arrive, noise hides this bias from a test of all parts together. So
    each part is tested alone: by its weights, and by the responses of the workers that
    hold it.

    Args:
      code: Gradient code.
      weights: Effective weights, (runs, rounds, parts).
      noise: Noise of the weights, which reduces the number of independent rounds.
      clusters: Simulated clusters.
    """
    target = np.asarray(code.target, np.float64)
    is_used = target != 0
    relative = weights[..., is_used] / target[is_used]
    largest = relative.max()
    # Hoeffding's bound is for numbers between 0 and 1. Negative weights, or weights
    # that are all 0, cannot be scaled to this range.
    if largest <= 0 or relative.min() < 0:
        return 0.0
    means = relative.mean((0, 1)) / largest
    responses = np.isfinite(clusters.times(code)).mean((0, 1))
    is_there = ~_is_low(responses, clusters, growth=1.0)
    is_held = np.asarray(code.assignment)[is_there].any(0)[is_used]
    is_lost = _is_low(means, clusters, noise.growth) | ~is_held
    if not is_lost.any() or is_lost.all():
        return 0.0
    shares = target[is_used] ** 2 / np.sum(target**2)
    scale = shares @ means
    deviations = np.where(is_lost, means - scale, 0)
    # The other parts together have as much excess weight as the lost parts lack.
    excess = -(shares @ deviations)
    rest = 1 - shares[is_lost].sum()
    square = shares @ deviations**2 + excess**2 / rest
    return float(square * largest**2)


def _is_low(means: np.ndarray, clusters: Clusters, growth: float) -> np.ndarray:
    """Returns which means are significantly lower than the average of all means.

    The test is Hoeffding's bound for means of independent numbers, corrected for the
    number of means. It must hold for the simulated and for the measured rounds. For a
    mean of 0, the simulated rounds are enough.

    Args:
      means: Means over rounds of numbers between 0 and 1, (means,).
      clusters: Simulated clusters.
      growth: Factor by which rounds that depend on each other increase variances.
    """
    mean = means.mean()
    information = scipy.special.kl_div(means, mean)
    information += scipy.special.kl_div(1 - means, 1 - mean)
    needed = growth * math.log(len(means) / _CHANCE)
    num_simulated = clusters.num_clusters * clusters.num_rounds
    is_low_in_simulation = information > needed / num_simulated
    is_low_in_trace = information > needed / clusters.num_measured
    is_low = is_low_in_simulation & (is_low_in_trace | (means == 0))
    return (means < mean) & is_low
