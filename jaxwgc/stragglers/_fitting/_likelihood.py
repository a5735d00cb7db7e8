"""Models of measured times, and their likelihood."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers._independent_delay import IndependentDelay

# Names of the constants of `affine`, in the order of `Component.load`.
LOAD = ("overhead", "slope", "time")
# Relative distance of the upper bounds of fixed time and slope from their limits.
_ROOM = 1e-3
# Smallest distance of a probability from 0 and 1, which EM iterations cannot leave.
_SMALLEST = 1e-6
# Bound of log-likelihood ratios, so that their exponentials are finite.
_MOST_EVIDENCE = 700.0


class Measured(NamedTuple):
    """Measured times (rounds, workers), their loads, and which times are complete.

    Incomplete times are lower bounds (censored). Times are those at the given speeds of
    the workers. Speeds may have leading axes of candidates.
    """

    times: np.ndarray
    loads: np.ndarray
    is_whole: np.ndarray
    speeds: np.ndarray

    def at_speed(self, speeds: float | np.ndarray) -> "Measured":
        """Returns the measured times with speeds multiplied by the given factors."""
        return self._replace(speeds=self.speeds * speeds)

    def at(self, rounds: Any = slice(None), workers: Any = slice(None)) -> "Measured":
        """Returns the times of some rounds and workers, given as masks or slices."""
        return Measured(*(array[rounds][:, workers] for array in self))


class Component(NamedTuple):
    """Distribution of times at any load: affine in a random variable of a family.

    Times are load * time + (overhead + slope * load) * X, with X of a family. Times
    are divided by the speeds of the workers. `load` is (overhead, slope, time), the
    constants of `affine`. `parameters` are the fields of the family, in their
    order. `before` is for an uncertain end of X: the probability of an X below it,
    and the mean distance of such X from it.
    """

    family: type[IndependentDelay]
    load: tuple[float, float, float]
    parameters: tuple[float, ...] = ()
    before: tuple[float, float] = (0.0, 1.0)

    @property
    def law(self) -> IndependentDelay:
        """Returns the distribution of the random variable X, a law of the family."""
        return self.family(*map(float, self.parameters))

    def log_likelihoods(self, measured: Measured) -> np.ndarray:
        """Computes the log-likelihood of each time."""
        units, scale = self.units(measured)
        probability, distance = self.before
        is_before, num_distances = self._before(units)
        with np.errstate(divide="ignore"):
            density_before = np.log(probability / distance) - num_distances
        density_after = np.log1p(-probability) + self.law.logpdf(units)
        density = np.where(is_before, density_before, density_after) - np.log(scale)
        if measured.is_whole.all():
            return density
        return np.where(measured.is_whole, density, self.log_survivals(measured))

    def log_survivals(self, measured: Measured) -> np.ndarray:
        """Computes the log-probability of a longer time, for each time."""
        units, _ = self.units(measured)
        probability, _ = self.before
        is_before, num_distances = self._before(units)
        survival_before = np.log1p(-probability * np.exp(-num_distances))
        survival_after = np.log1p(-probability) + self.law.logsf(units)
        return np.where(is_before, survival_before, survival_after)

    def units(self, measured: Measured) -> tuple[np.ndarray, np.ndarray]:
        """Returns the value of X for each time, and the factor of X in the time."""
        overhead, slope, time = self.load
        scale = overhead + slope * measured.loads
        random_times = measured.times * measured.speeds - time * measured.loads
        return random_times / scale, scale / measured.speeds

    def _before(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which values are below the lower end, and their distances from it.

        Distances are multiples of the mean distance in `before`, 0 above the end.
        """
        end = float(self.law.isf(1.0))
        _, mean_distance = self.before
        is_before = (units < end) | (units <= 0)
        return is_before, np.maximum(end - units, 0) / mean_distance


class Form(NamedTuple):
    """Form of the dependence of times on the load.

    Attributes:
      name: Name of the form.
      names: Names of the constants of `affine` in models of this form.
      bounds: Bounds of the free constants: slope and time, or only the time.
      mean_load: Load at which overhead + slope * load is 1.
    """

    name: str
    names: tuple[str, ...] = ()
    bounds: tuple[tuple[float, float], ...] = ()
    mean_load: float = 1.0

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names of the constants that are fitted, in the order of `bounds`."""
        num_fixed = len(LOAD) - len(self.bounds)
        return LOAD[num_fixed:]

    def load(self, free: Sequence[float]) -> tuple[float, float, float]:
        """Returns overhead, slope and time, given the free constants."""
        slope = 1.0
        time = 0.0
        if len(free) == 1:
            (time,) = free
        elif len(free) == 2:
            slope, time = free
        return 1 - slope * self.mean_load, slope, time


def forms(measured: Measured) -> tuple[Form, ...]:
    """Returns the forms to fit: proportional if no load is zero, and affine.

    If all loads are equal, the affine form has only a fixed time.
    """
    is_loaded = measured.loads > 0
    rates = measured.times[is_loaded] / measured.loads[is_loaded]
    time_bounds = (0.0, float(rates.min()) * (1 - _ROOM))
    proportional = Form(name="proportional to the load")
    if np.all(measured.loads == measured.loads.flat[0]):
        fixed_time = Form(
            name="after a fixed time", names=("time",), bounds=(time_bounds,)
        )
        return proportional, fixed_time
    largest_slope = 1.0
    if not is_loaded.all():
        # An overhead of zero is excluded, since it would predict a time of zero for
        # load zero.
        largest_slope = 1 - _ROOM
    mean_load = float(measured.loads.mean())
    slope_bounds = (0.0, largest_slope / mean_load)
    affine = Form(
        name="affine in the load",
        names=LOAD,
        bounds=(slope_bounds, time_bounds),
        mean_load=mean_load,
    )
    if not is_loaded.all():
        return (affine,)
    return proportional, affine


class Model(NamedTuple):
    """Model of times: one component, or two states of a Markov chain, with speeds."""

    components: tuple[Component, ...]
    become_slow: float = 0.0
    become_fast: float = 1.0
    speeds: float | np.ndarray = 1.0

    @property
    def slow_share(self) -> float:
        """Returns the stationary probability of the slow state."""
        return self.become_slow / (self.become_slow + self.become_fast)

    def log_likelihoods(self, measured: Measured) -> np.ndarray:
        """Computes the log-likelihood of each time, given earlier rounds."""
        measured = measured.at_speed(self.speeds)
        logs = [component.log_likelihoods(measured) for component in self.components]
        if len(logs) == 1:
            return logs[0]
        _, mixture = predictions(np.stack(logs), self.become_slow, self.become_fast)
        return mixture


def mixed(
    slow: np.ndarray | float, logs: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """Computes the log-likelihood of a mixture of fast and slow times."""
    with np.errstate(divide="ignore"):
        fast_part = np.log1p(-slow) + logs[0]
        slow_part = np.log(slow) + logs[-1]
        return np.logaddexp(fast_part, slow_part)


def predictions(
    log_likelihoods: np.ndarray, become_slow: float, become_fast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes slow-state probabilities from earlier rounds, and log-likelihoods.

    Args:
      log_likelihoods: Log-likelihood of each time for fast and slow workers,
        (2, rounds, workers).
      become_slow: Probability that a fast worker is slow in the next round.
      become_fast: Probability that a slow worker is fast in the next round.

    Returns:
      The probability of the slow state before the time of the round is known, and the
      log-likelihood of that time, (rounds, workers) each.
    """
    fast_log, slow_log = log_likelihoods
    with np.errstate(invalid="ignore"):
        evidence = np.clip(slow_log - fast_log, -_MOST_EVIDENCE, _MOST_EVIDENCE)
    # A time that is impossible in both states says nothing about the state.
    odds = np.exp(np.where(np.isnan(evidence), 0.0, evidence))
    slow_before = np.empty_like(odds)
    slow = become_slow / (become_slow + become_fast)
    for this_round, odds_of_round in enumerate(odds):
        slow_before[this_round] = slow
        slow_after = slow * odds_of_round / (1 - slow + slow * odds_of_round)
        slow = slow_after * (1 - become_fast) + (1 - slow_after) * become_slow
    return slow_before, mixed(slow_before, log_likelihoods)


class Smoothed(NamedTuple):
    """Slow-state probabilities from all rounds, and new transition probabilities.

    Attributes:
      slow: Probability of the slow state, (rounds, workers).
      become_slow: Next estimate of `become_slow`: frequency of the transition.
      become_fast: Next estimate of `become_fast`.
    """

    slow: np.ndarray
    become_slow: float
    become_fast: float


def responsibilities(
    log_likelihoods: np.ndarray, become_slow: float, become_fast: float
) -> Smoothed:
    """Computes slow-state and new transition probabilities from all rounds.

    This is the forward-backward algorithm.

    Args:
      log_likelihoods: Log-likelihood of each time for fast and slow workers,
        (2, rounds, workers).
      become_slow: Probability that a fast worker is slow in the next round.
      become_fast: Probability that a slow worker is fast in the next round.

    References:
      Baum, Petrie, Soules, Weiss, "A maximization technique occurring in the
      statistical analysis of probabilistic functions of Markov chains", 1970.
    """
    slow_before, total = predictions(log_likelihoods, become_slow, become_fast)
    prior = np.stack([1 - slow_before, slow_before])
    is_finite = np.isfinite(total)
    posterior = np.exp(log_likelihoods - np.where(is_finite, total, 0)) * prior
    posterior = np.where(is_finite, posterior, prior)
    transition = np.array(
        [[1 - become_slow, become_slow], [become_fast, 1 - become_fast]]
    )
    # Backward pass of the forward-backward algorithm, from the last round to the first.
    smoothed = [posterior[:, -1]]
    num_moves = np.zeros((2, 2))
    for later in range(len(slow_before) - 1, 0, -1):
        ratio = smoothed[-1] / np.maximum(prior[:, later], 1e-300)
        joint = posterior[:, later - 1, None] * transition[:, :, None] * ratio
        num_moves += joint.sum(-1)
        smoothed.append(joint.sum(1))
    slow = np.stack(smoothed[::-1])[:, 1]
    num_rounds_in_state = np.maximum(num_moves.sum(1), 1e-300)
    changes = np.array([num_moves[0, 1], num_moves[1, 0]]) / num_rounds_in_state
    # Lower bounds of the transition probabilities. If both are at the bound, because no
    # transition was observed, the chain keeps the observed share of slow states.
    slow_share = np.clip(slow.mean(), _SMALLEST, 1 - _SMALLEST)
    smallest = _SMALLEST * np.array([slow_share, 1 - slow_share])
    changes = np.clip(changes, smallest, 1 - smallest)
    return Smoothed(
        slow=slow, become_slow=float(changes[0]), become_fast=float(changes[1])
    )
