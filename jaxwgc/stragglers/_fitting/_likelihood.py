"""Models of measured times, and their likelihood."""

from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers._independent_delay import IndependentDelay

# Constants of `affine`.
LOAD = ("overhead", "slope", "time")
# Relative distance between the minimum time and the upper bound of the fixed time.
_ROOM = 1e-3
# Smallest distance of a probability from 0 and 1, where EM would get stuck.
_SMALLEST = 1e-6
# Bound of log-likelihood ratios, so that their exponentials are finite.
_MOST_EVIDENCE = 700.0


class Measured(NamedTuple):
    """Measured times (rounds, workers), their loads, and which times are complete.

    The others are lower bounds (censored). Times are those at the given speeds of the
    workers.
    """

    times: np.ndarray
    loads: np.ndarray
    is_whole: np.ndarray
    speeds: np.ndarray

    def at_speed(self, speeds: Any) -> "Measured":
        """Returns the times with speeds of the workers multiplied by `speeds`."""
        return self._replace(speeds=self.speeds * speeds)


class Component(NamedTuple):
    """Distribution of load * time + (overhead + slope * load) * X, with X of a family.

    Times are divided by the speeds of the workers. `load` is (overhead, slope, time),
    the constants of `affine`. `parameters` are the fitted fields of the family, in
    their order. `before` is for an uncertain end of X: the probability of an X below
    it, and the mean distance of such X from it.
    """

    family: type[IndependentDelay]
    load: tuple[float, float, float]
    parameters: tuple[float, ...] = ()
    before: tuple[float, float] = (0.0, 1.0)

    @property
    def law(self) -> Any:
        """Returns the distribution of X, a delay model of the family."""
        names = self.family.fitted_fields()
        numbers = map(float, self.parameters)
        return self.family(**dict(zip(names, numbers, strict=True)))

    def log_likelihoods(self, measured: Measured) -> np.ndarray:
        """Returns the log-likelihood of each time, (rounds, workers)."""
        units, scale = self.units(measured)
        probability, distance = self.before
        is_before, early = self._before(units)
        with np.errstate(divide="ignore"):
            before = np.log(probability / distance) - early
        density = np.log1p(-probability) + self.law.logpdf(units)
        density = np.where(is_before, before, density) - np.log(scale)
        if measured.is_whole.all():
            return density
        return np.where(measured.is_whole, density, self.log_survivals(measured))

    def log_survivals(self, measured: Measured) -> np.ndarray:
        """Returns the log-probability of a longer time, for each time."""
        units, _ = self.units(measured)
        probability, _ = self.before
        is_before, early = self._before(units)
        before = np.log1p(-probability * np.exp(-early))
        survival = np.log1p(-probability) + self.law.logsf(units)
        return np.where(is_before, before, survival)

    def units(self, measured: Measured) -> tuple[np.ndarray, np.ndarray]:
        """Returns X for each time, and the factor of X in the time."""
        overhead, slope, time = self.load
        scale = overhead + slope * measured.loads
        units = (measured.times * measured.speeds - time * measured.loads) / scale
        return units, scale / measured.speeds

    def _before(self, units):
        """Returns which X are below the lower end, and by how many mean distances."""
        end = float(self.law.isf(1.0))
        is_before = (units < end) | (units <= 0)
        return is_before, np.maximum(end - units, 0) / self.before[1]


class Form(NamedTuple):
    """Form of the dependence of times on the load.

    Attributes:
      name: Name of the form.
      names: Names of the constants of `affine` that it has.
      bounds: Bounds of those that are free: slope and time, or only the time.
      mean_load: Load at which overhead + slope * load is 1.
    """

    name: str
    names: tuple[str, ...] = ()
    bounds: tuple[tuple[float, float], ...] = ()
    mean_load: float = 1.0

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names of the free constants."""
        return LOAD[3 - len(self.bounds) :]

    def load(self, free: tuple[float, ...]) -> tuple[float, float, float]:
        """Returns overhead, slope and time, given the free ones."""
        slope, time = (1.0, 0.0)[: 2 - len(free)] + free
        return 1 - slope * self.mean_load, slope, time


def forms(measured: Measured) -> tuple[Form, ...]:
    """Returns the forms to fit: proportional if no load is zero, and affine."""
    is_loaded = measured.loads > 0
    rates = measured.times[is_loaded] / measured.loads[is_loaded]
    time = (0.0, float(rates.min()) * (1 - _ROOM))
    proportional = Form("proportional to the load")
    if np.all(measured.loads == measured.loads.flat[0]):
        return proportional, Form("after a fixed time", ("time",), (time,))
    # If a load is zero, an overhead of zero is excluded, since it would predict a time
    # of zero.
    mean_load = float(measured.loads.mean())
    slope = (0.0, (1.0 if is_loaded.all() else 1 - _ROOM) / mean_load)
    affine = Form("affine in the load", LOAD, (slope, time), mean_load)
    return (proportional, affine) if is_loaded.all() else (affine,)


class Model(NamedTuple):
    """Model of times: one component, or two in a Markov chain, and optional speeds."""

    components: tuple[Component, ...]
    become_slow: float = 0.0
    become_fast: float = 1.0
    speeds: Any = 1.0

    @property
    def slow_share(self) -> float:
        """Returns the stationary probability of the slow state."""
        return self.become_slow / (self.become_slow + self.become_fast)

    def log_likelihoods(self, measured: Measured) -> np.ndarray:
        """Returns log-likelihoods of times, given earlier rounds, (rounds, workers)."""
        return self._predicted(measured)[1]

    def log_survivals(self, measured: Measured) -> np.ndarray:
        """Returns log-probabilities of longer times, given earlier rounds."""
        slow, _ = self._predicted(measured)
        measured = measured.at_speed(self.speeds)
        logs = [component.log_survivals(measured) for component in self.components]
        return mixed(slow, logs)

    def _predicted(self, measured):
        measured = measured.at_speed(self.speeds)
        logs = [component.log_likelihoods(measured) for component in self.components]
        if len(logs) == 1:
            return np.zeros_like(logs[0]), logs[0]
        return predictions(np.stack(logs), self.become_slow, self.become_fast)


def mixed(slow: np.ndarray | float, logs: Any) -> np.ndarray:
    """Returns the logarithm of a mixture, with the probability of its last part."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-slow) + logs[0], np.log(slow) + logs[-1])


def predictions(log_likelihoods, become_slow, become_fast):
    """Computes state probabilities of each round, given earlier rounds (filter).

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
    # A time that is impossible in both states gives no information.
    odds = np.exp(np.where(np.isnan(evidence), 0.0, evidence))
    before = np.empty_like(odds)
    slow = become_slow / (become_slow + become_fast)
    for number, odd in enumerate(odds):
        before[number] = slow
        known = slow * odd / (1 - slow + slow * odd)
        slow = known * (1 - become_fast) + (1 - known) * become_slow
    return before, mixed(before, log_likelihoods)


def responsibilities(log_likelihoods, become_slow, become_fast):
    """Computes state probabilities of each round, given all rounds (smoother).

    Args:
      log_likelihoods: See `predictions`.
      become_slow: See `predictions`.
      become_fast: See `predictions`.

    Returns:
      The probability of the slow state (rounds, workers), and the next estimates of
      `become_slow` and `become_fast`: frequencies of transitions.

    References:
      Baum, Petrie, Soules, Weiss, "A maximization technique occurring in the
      statistical analysis of probabilistic functions of Markov chains", 1970.
    """
    before, total = predictions(log_likelihoods, become_slow, become_fast)
    prior = np.stack([1 - before, before])
    is_finite = np.isfinite(total)
    given = np.exp(log_likelihoods - np.where(is_finite, total, 0)) * prior
    given = np.where(is_finite, given, prior)
    transition = np.array(
        [[1 - become_slow, become_slow], [become_fast, 1 - become_fast]]
    )
    smoothed = [given[:, -1]]
    moves = np.zeros((2, 2))
    for later in range(len(before) - 1, 0, -1):
        ratio = smoothed[-1] / np.maximum(prior[:, later], 1e-300)
        joint = given[:, later - 1, None] * transition[:, :, None] * ratio
        moves += joint.sum(-1)
        smoothed.append(joint.sum(1))
    slow = np.stack(smoothed[::-1])[:, 1]
    counts = np.maximum(moves.sum(1), 1e-300)
    # If no transitions were observed, the chain gets the observed shares of states as
    # stationary distribution.
    share = np.clip(slow.mean(), _SMALLEST, 1 - _SMALLEST)
    least = _SMALLEST * np.array([share, 1 - share])
    chances = np.clip([moves[0, 1], moves[1, 0]] / counts, least, 1 - least)
    return slow, float(chances[0]), float(chances[1])
