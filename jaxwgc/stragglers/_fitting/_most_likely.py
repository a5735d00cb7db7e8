"""Kinds of models, and the search for the maximum-likelihood model."""

from typing import NamedTuple

import numpy as np

from jaxwgc.stragglers._fitting._likelihood import (
    Component,
    Form,
    Measured,
    Model,
    mixed,
    predictions,
    responsibilities,
)
from jaxwgc.stragglers._fitting._maximum_likelihood import (
    IMPOSSIBLE,
    maximum_likelihood,
    minimum,
)
from jaxwgc.stragglers._independent_delay import NO_WEIGHT, IndependentDelay, Sample

# Maximum number of EM iterations from scratch and from a nearby model, and the gain in
# mean log-likelihood below which iterations stop.
_ITERATIONS = 40
_MORE_ITERATIONS = 15
_GAIN = 1e-4
# Maximum number of measured times in the first, coarse search.
_ENOUGH = 4000
# Fractions of the times that count as slow at the start of the search.
_SLOW_SHARES = (0.05, 0.2)
_SPEED_ITERATIONS = 4
# Logarithms of factors tried on each worker's speed, first coarse, then fine.
_SPEED_GRIDS = (np.linspace(-0.3, 0.3, 31), np.linspace(-0.02, 0.02, 21))
# Smallest log-likelihood of a time in comparisons of speeds, so that sums are finite.
_LOWEST_LOG_LIKELIHOOD = -1e6
# Distance of the first Nelder-Mead simplex from the bounds, and its size from scratch
# and from a nearby model. All are shares of the interval between the bounds.
_MARGIN = 1e-3
_STEP = 0.3
_SMALL_STEP = 0.05
# Maximum number of cost evaluations, from scratch and from a nearby model.
_EVALUATIONS = 150
_FEW_EVALUATIONS = 20


class Kind(NamedTuple):
    """Kind of model to fit: family, dependence on the load, states and speeds.

    Attributes:
      family: Family of delay models.
      form: Dependence of times on the load.
      has_slow_state: Whether workers have two states.
      has_speeds: Whether workers have different speeds.
    """

    family: type[IndependentDelay]
    form: Form
    has_slow_state: bool = False
    has_speeds: bool = False

    @property
    def name(self) -> str:
        """Name of the kind, e.g. "weibull, proportional to the load, speeds"."""
        words = [self.family.__name__, self.form.name]
        if self.has_slow_state:
            words.append("two states")
        if self.has_speeds:
            words.append("speeds")
        return ", ".join(words)

    @property
    def ends_at_least_time(self) -> bool:
        """Returns whether the minimum time estimates the distribution's lower end."""
        return self.family.least_time is not None and not self.form.bounds

    def num_parameters(self, num_workers: int) -> int:
        """Returns the number of free parameters, including all speeds but one."""
        number = len(self.family.field_names()) + len(self.form.bounds)
        if self.has_slow_state:
            # Two states have twice the parameters, and two transition probabilities.
            number = 2 * number + 2
        if self.has_speeds:
            number += num_workers - 1
        return number

    def most_likely(self, measured: Measured, start: Model | None = None) -> Model:
        """Searches for the maximum-likelihood model, from `start` if it is given."""
        step = -(-measured.times.size // _ENOUGH)
        if start is None and step > 1:
            coarse = self._replace(has_speeds=False)
            start = coarse._search(measured.at(workers=slice(None, None, step)), None)
        return self._search(measured, start)

    def _search(self, measured: Measured, start: Model | None) -> Model:
        if not self.has_speeds:
            return _at_one_speed(measured, self, start)
        if start is None or np.ndim(start.speeds) == 0:
            speeds = _rough_speeds(measured)
        else:
            speeds = np.asarray(start.speeds)
        model = start
        for _ in range(_SPEED_ITERATIONS):
            model = _at_one_speed(measured.at_speed(speeds), self, model)
            speeds = _better_speeds(measured, model, speeds)
        assert model is not None
        return model._replace(speeds=speeds)


def _rough_speeds(measured: Measured) -> np.ndarray:
    """Estimates each worker's speed relative to the median time of each round."""
    logs = np.log(measured.times)
    relative_logs = logs - np.median(logs, axis=1, keepdims=True)
    return np.exp(-np.median(relative_logs, axis=0))


def _at_one_speed(measured: Measured, kind: Kind, start: Model | None) -> Model:
    """Searches for the most likely model with fixed speeds of the workers."""
    full_weights = np.ones(measured.times.shape)
    if not kind.has_slow_state:
        first = None if start is None else start.components[0]
        return Model((_component(measured, full_weights, kind, first),))
    if start is not None:
        return _two_states(measured, kind, start, _MORE_ITERATIONS)
    single = _component(measured, full_weights, kind, None)
    tails = single.log_survivals(measured)
    models = []
    for share in _SLOW_SHARES:
        is_slow = tails < np.quantile(tails, share)
        fast_weights = np.where(is_slow, 0.0, 1.0)
        fast = _component(measured, fast_weights, kind, single)
        slow = _component(measured, 1 - fast_weights, kind, single)
        slow_share = float(is_slow.mean())
        first_model = Model(
            components=(fast, slow),
            become_slow=slow_share,
            become_fast=1 - slow_share,
        )
        models.append(_two_states(measured, kind, first_model, _ITERATIONS))
    return max(models, key=lambda model: model.log_likelihoods(measured).sum())


def _two_states(
    measured: Measured, kind: Kind, model: Model, num_iterations: int
) -> Model:
    """Fits a model with two states by expectation maximisation."""
    last_mean = -np.inf
    for _ in range(num_iterations):
        fast, slow = model.components
        logs = np.stack(
            [fast.log_likelihoods(measured), slow.log_likelihoods(measured)]
        )
        _, log_likelihoods = predictions(logs, model.become_slow, model.become_fast)
        mean = log_likelihoods.mean()
        if mean < last_mean + _GAIN:
            break
        last_mean = mean
        states = responsibilities(logs, model.become_slow, model.become_fast)
        model = Model(
            components=(
                _component(measured, 1 - states.slow, kind, fast),
                _component(measured, states.slow, kind, slow),
            ),
            become_slow=states.become_slow,
            become_fast=states.become_fast,
        )
    return model


def _component(
    measured: Measured, weights: np.ndarray, kind: Kind, start: Component | None
) -> Component:
    """Fits one component to weighted times."""
    whole_weight = float(np.sum(weights * measured.is_whole))
    num_rounds, num_workers = measured.times.shape
    num_parameters = kind.num_parameters(num_workers)
    if kind.has_slow_state and start is not None and whole_weight < num_parameters:
        # With few times the likelihood is unbounded: a state may shrink to one time, or
        # speeds may make one time of each worker equal.
        return start

    def component_at(free, near):
        """Fits the parameters of the family, given the free constants of the load."""
        load = kind.form.load([float(constant) for constant in free])
        component = Component(kind.family, load)
        units, _ = component.units(measured)
        sample = Sample(
            times=np.maximum(units, 1e-300).ravel(),
            weights=weights.ravel(),
            is_whole=measured.is_whole.ravel(),
            kept=1 - 1 / max(num_rounds, 2) if kind.has_speeds else 1.0,
        )
        parameters = maximum_likelihood(kind.family, sample, near)
        return component._replace(parameters=parameters)

    near = None if start is None else start.parameters
    if not kind.form.bounds:
        return component_at([], near)
    low, high = np.array(kind.form.bounds).T
    width = high - low
    if start is None:
        step = _STEP
        num_evaluations = _EVALUATIONS
        first = (low + high) / 2
    else:
        step = _SMALL_STEP
        num_evaluations = _FEW_EVALUATIONS
        first = np.array(start.load[-len(kind.form.bounds) :])
    first = np.clip(first, low + _MARGIN * width, high - _MARGIN * width)
    near = component_at(first, near).parameters

    def cost(free):
        """Computes the negative mean log-likelihood."""
        component = component_at(free, near)
        if not all(np.isfinite(component.parameters)):
            return IMPOSSIBLE
        logs = component.log_likelihoods(measured)
        total = np.sum(weights * np.where(weights > NO_WEIGHT, logs, 0))
        return -total / whole_weight if np.isfinite(total) else IMPOSSIBLE

    # Steps point to the middle of the bounds, so that the simplex stays inside.
    steps = step * np.where(first < (low + high) / 2, width, -width)
    bounds = kind.form.bounds
    return component_at(minimum(cost, first, steps, num_evaluations, bounds), near)


def _better_speeds(measured: Measured, model: Model, speeds: np.ndarray) -> np.ndarray:
    """Returns the speeds at which the times of each worker are most likely."""
    for grid in _SPEED_GRIDS:
        factors = np.exp(grid)
        # Candidates for the speeds are on the leading axis.
        times = measured.at_speed(speeds * factors[:, None, None])
        logs = [component.log_likelihoods(times) for component in model.components]
        log_likelihoods = mixed(model.slow_share, logs)
        totals = np.maximum(log_likelihoods, _LOWEST_LOG_LIKELIHOOD).sum(axis=1)
        speeds = speeds * factors[totals.argmax(axis=0)]
    return speeds / np.exp(np.mean(np.log(speeds)))
