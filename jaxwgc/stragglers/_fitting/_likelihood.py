"""Models of measured times, and their likelihood."""

from typing import Any, NamedTuple

import numpy as np

from jaxwgc.stragglers._fitting import _chains
from jaxwgc.stragglers._independent_delay import IndependentDelay

# Relative distance kept between the minimum time and the bound of a fixed time.
_ROOM = 1e-3


class Measured(NamedTuple):
    """Times (rounds, workers), loads of that shape, and which times are complete.

    The others are lower bounds (censored).
    """

    times: np.ndarray
    loads: np.ndarray
    is_whole: np.ndarray

    def at_speed(self, speeds: np.ndarray) -> "Measured":
        """Returns the times scaled to workers of speed one."""
        return self._replace(times=self.times * speeds)


class Component(NamedTuple):
    """Times load * time + (overhead + slope * load) * X, with X of a family.

    `before` is for an uncertain end of X: the probability of an X below it, and the
    mean distance of such X from it.
    """

    family: type[IndependentDelay]
    overhead: float
    slope: float
    time: float
    parameters: tuple[float, float]
    before: tuple[float, float] = (0.0, 1.0)

    @property
    def law(self) -> Any:
        """Returns the distribution of X, a delay model of the family."""
        return self.family(*map(float, self.parameters))

    def log_likelihoods(self, measured: Measured) -> np.ndarray:
        """Returns the log-likelihood of each time, (rounds, workers)."""
        units, scale = units_of(measured, self.overhead, self.slope, self.time)
        possible = np.where(units > 0, units, 1)
        density = self.law.logpdf(possible)
        probability, distance = self.before
        is_before, early = self._before(units)
        with np.errstate(divide="ignore"):
            before = np.log(probability / distance) - early
        density = np.where(is_before, before, np.log1p(-probability) + density)
        density = density - np.log(scale)
        if measured.is_whole.all():
            return density
        return np.where(measured.is_whole, density, self.log_survivals(measured))

    def log_survivals(self, measured: Measured) -> np.ndarray:
        """Returns the log-probability of a longer time, for each time."""
        units, _ = units_of(measured, self.overhead, self.slope, self.time)
        possible = np.where(units > 0, units, 1)
        survival = self.law.logsf(possible)
        probability, _ = self.before
        is_before, early = self._before(units)
        before = np.log1p(-probability * np.exp(-early))
        return np.where(is_before, before, np.log1p(-probability) + survival)

    def _before(self, units):
        """Returns whether times are before the end, and their relative distance."""
        end = self.parameters[0] if self.family.has_least_time else 0.0
        is_before = (units < end) | (units <= 0)
        return is_before, np.maximum(end - units, 0) / self.before[1]


class Form(NamedTuple):
    """Dependence of times on the load.

    Attributes:
      name: Name of the form.
      bounds: Bounds of its free numbers.
      start: Initial values of its free numbers.
      mean_load: Mean load of the times, or zero for proportional times.
    """

    name: str
    bounds: tuple[tuple[float, float], ...]
    start: tuple[float, ...]
    mean_load: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the free numbers."""
        return ("share", "time")[2 - len(self.bounds) :]

    def coefficients(self, free: tuple[float, ...]) -> tuple[float, float, float]:
        """Returns overhead, slope and time."""
        match free:
            case ():
                return 0.0, 1.0, 0.0
            case (time,):
                return 0.0, 1.0, time
            case (share, time):
                return 1 - share, share / self.mean_load, time
        raise AssertionError(free)

    def free(self, component: Component) -> tuple[float, ...]:
        """Returns the free numbers of a component."""
        both = component.slope * self.mean_load, component.time
        return both[2 - len(self.bounds) :]


def forms(measured: Measured) -> tuple[Form, ...]:
    """Returns the forms: proportional to the load if it is not zero, and affine."""
    is_loaded = measured.loads > 0
    rates = measured.times[is_loaded] / measured.loads[is_loaded]
    time = (0.0, float(rates.min()) * (1 - _ROOM))
    proportional = Form("proportional to the load", (), (), 0.0)
    mean = float(measured.loads.mean())
    if np.all(measured.loads == measured.loads.flat[0]):
        return proportional, Form("after a fixed time", (time,), (time[1] / 2,), mean)
    # Times of zero load are zero if they are proportional.
    share = (0.0, 1.0 if is_loaded.all() else 1 - _ROOM)
    affine = Form("affine in the load", (share, time), (0.5, time[1] / 2), mean)
    return (proportional, affine) if is_loaded.all() else (affine,)


class Model(NamedTuple):
    """One component, or two components of a two-state chain; possibly with speeds."""

    components: tuple[Component, ...]
    become_slow: float = 0.0
    become_fast: float = 1.0
    speeds: np.ndarray | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Returns the stationary probability of each component."""
        if len(self.components) == 1:
            return (1.0,)
        slow = self.become_slow / (self.become_slow + self.become_fast)
        return 1 - slow, slow

    def log_likelihoods(self, measured: Measured) -> np.ndarray:
        """Returns log-likelihoods of times, given earlier rounds, (rounds, workers)."""
        return self._predicted(measured)[1]

    def log_survivals(self, measured: Measured) -> np.ndarray:
        """Returns log-probabilities of longer times, given earlier rounds."""
        slow, _ = self._predicted(measured)
        if self.speeds is not None:
            measured = measured.at_speed(self.speeds)
        logs = [component.log_survivals(measured) for component in self.components]
        with np.errstate(divide="ignore"):
            return np.logaddexp(np.log1p(-slow) + logs[0], np.log(slow) + logs[-1])

    def _predicted(self, measured):
        jacobian = 0.0
        if self.speeds is not None:
            measured = measured.at_speed(self.speeds)
            jacobian = np.where(measured.is_whole, np.log(self.speeds), 0)
        logs = [component.log_likelihoods(measured) for component in self.components]
        if len(logs) == 1:
            return np.zeros_like(logs[0]), logs[0] + jacobian
        chain = self.become_slow, self.become_fast
        slow, total = _chains.predictions(np.stack(logs), *chain)
        return slow, total + jacobian


def units_of(
    measured: Measured, overhead: float, slope: float, time: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the family's part of each time, and its scale."""
    scale = overhead + slope * measured.loads
    return (measured.times - time * measured.loads) / scale, scale
