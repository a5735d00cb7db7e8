"""Named parameters of a fitted model, their standard errors, and bias correction."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.stragglers._fitting._likelihood import LOAD, Component, Measured, Model
from jaxwgc.stragglers._fitting._most_likely import Kind

STATES = {1: ("",), 2: ("fast ", "slow ")}
CHAIN = ("become_slow", "become_fast")
# Distance from a bound, as a share of the allowed interval, below which a parameter
# counts as at the bound, and has no standard error.
_AT_END = 1e-3
# Step of finite differences, relative to the scale of a parameter.
_STEP = 1e-4


def parameters_of(kind: Kind, model: Model) -> dict[str, float]:
    """Returns the constructor arguments of a fitted model by name, without speeds."""
    shown = {*kind.family.field_names(), *kind.form.names}
    if kind.has_slow_state:
        shown.update(CHAIN)
    parameters = {}
    for (state, name), value in _by_state(kind, model).items():
        if name in shown:
            parameters[state + name] = value
    return parameters


def standard_errors(measured: Measured, kind: Kind, model: Model) -> dict[str, float]:
    """Computes standard errors from the curvature of the likelihood at its maximum.

    The lower end of a distribution is estimated by the minimum time, where the
    likelihood is not smooth. Its standard error is the expected distance between lower
    end and minimum time, because this distance is nearly exponential.
    """
    numbers = _by_state(kind, model)
    scales = _scales(kind, numbers)

    def likelihood(changed):
        changed_numbers = dict(zip(scales, changed, strict=True))
        moved = _moved(kind, model, numbers | changed_numbers)
        return moved.log_likelihoods(measured).sum()

    values = np.array([numbers[name] for name in scales])
    steps = _STEP * np.abs(list(scales.values()))
    errors = dict.fromkeys(numbers, np.nan)
    deviations = _deviations(likelihood, values, steps)
    for name, deviation in zip(scales, deviations, strict=True):
        errors[name] = float(deviation)
    # With speeds, each worker has a minimum time, and their mean has a smaller error.
    num_minima = measured.times.shape[1] if kind.has_speeds else 1
    for minimum in _minima(kind, measured, model):
        if kind.ends_at_least_time:
            end = minimum.state, str(kind.family.least_time)
            errors[end] = minimum.distance / float(np.sqrt(num_minima))
        error_of_slope = errors[minimum.state, "slope"]
        errors[minimum.state, "overhead"] = error_of_slope * kind.form.mean_load
    by_name = {state + name: error for (state, name), error in errors.items()}
    return {name: by_name[name] for name in parameters_of(kind, model)}


def _by_state(kind: Kind, model: Model) -> dict[tuple[str, str], float]:
    """Returns the parameters of all states and of the chain, by state and name."""
    numbers = {}
    for state, component in zip(STATES[len(model.components)], model.components):
        for name, value in zip(
            kind.family.field_names(), component.parameters, strict=True
        ):
            numbers[state, name] = float(value)
        for name, value in zip(LOAD, component.load, strict=True):
            numbers[state, name] = float(value)
    numbers["", "become_slow"] = model.become_slow
    numbers["", "become_fast"] = model.become_fast
    return numbers


def _scales(
    kind: Kind, numbers: dict[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """Returns scales for finite differences in the parameters with a derivative."""
    end = kind.family.least_time
    bounds = {}
    if end is None:
        bounds = dict(zip(kind.form.free_names, kind.form.bounds, strict=True))
    smooth = {*kind.family.field_names(), *bounds, *CHAIN} - {end}
    limits = bounds | dict.fromkeys(CHAIN, (0.0, 1.0))
    scales = {}
    for (state, name), value in numbers.items():
        if name not in smooth:
            continue
        scale = value
        if name in limits:
            low, high = limits[name]
            margin = _AT_END * (high - low)
            if not low + margin < value < high - margin:
                continue
            if name in bounds:
                scale = high - low
        scales[state, name] = scale
    return scales


def _moved(kind: Kind, model: Model, numbers: dict[tuple[str, str], float]) -> Model:
    """Returns a copy of the model with new parameter values."""
    components = []
    for state, component in zip(STATES[len(model.components)], model.components):
        parameters = tuple(numbers[state, name] for name in kind.family.field_names())
        free = [numbers[state, name] for name in kind.form.free_names]
        load = kind.form.load(free)
        components.append(component._replace(parameters=parameters, load=load))
    return model._replace(
        components=tuple(components),
        become_slow=numbers["", "become_slow"],
        become_fast=numbers["", "become_fast"],
    )


def _deviations(
    likelihood: Callable[[np.ndarray], float], values: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Computes standard errors from the inverse information matrix."""

    def gradient(point):
        return scipy.optimize.approx_fprime(point, likelihood, steps)

    # Standard errors are NaN if the likelihood nearby is not finite.
    with np.errstate(all="ignore"):
        second = np.atleast_2d(scipy.optimize.approx_fprime(values, gradient, steps))
        try:
            variances = np.diag(np.linalg.inv(-(second + second.T) / 2))
        except np.linalg.LinAlgError:
            return np.full(len(values), np.nan)
        return np.sqrt(variances)


def predictive(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns a model in which times may be below the fitted lower end."""
    components = []
    for minimum in _minima(kind, measured, model):
        component = minimum.component
        _, _, time = component.load
        if component.law.isf(1.0) > 0 or time > 0:
            probability = 1 / (minimum.num_times + 1)
            component = component._replace(before=(probability, minimum.distance))
        components.append(component)
    return model._replace(components=tuple(components))


def unbiased(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns a model with the lower end of each distribution corrected for bias."""
    if not kind.ends_at_least_time:
        return model
    components = []
    for minimum in _minima(kind, measured, model):
        law = minimum.component.law
        name = str(kind.family.least_time)
        end = getattr(law, name)
        # The lower end is at most halved, so that it stays positive.
        corrected = max(end - minimum.distance, end / 2)
        law = dataclasses.replace(law, **{name: corrected})
        parameters = dataclasses.astuple(law)
        components.append(minimum.component._replace(parameters=parameters))
    return model._replace(components=tuple(components))


class _Minimum(NamedTuple):
    """Distance of the shortest time of a component from its lower end.

    Attributes:
      component: The component.
      state: Name of its state, as in `STATES`.
      num_times: Expected number of its times.
      distance: Expected distance of their minimum from the lower end of X.
    """

    component: Component
    state: str
    num_times: float
    distance: float


def _minima(kind: Kind, measured: Measured, model: Model) -> Iterator[_Minimum]:
    """Yields how far the shortest time of each component is from its lower end.

    For independent times of any distribution, the next of m + 1 is the minimum with
    probability 1 / (m + 1). The minimum of m times is about as far from the end as the
    quantile of 1 / (m + 1). Workers with speeds have a minimum each.
    """
    num_times = measured.is_whole.sum()
    if kind.has_speeds:
        num_times = num_times / measured.times.shape[1]
    shares = (1 - model.slow_share, model.slow_share)
    states = STATES[len(model.components)]
    for component, state, share in zip(model.components, states, shares):
        num_times_of_state = max(share * num_times, 1.0)
        probability = num_times_of_state / (num_times_of_state + 1)
        end, smallest = component.law.isf(np.array([1.0, probability]))
        yield _Minimum(
            component=component,
            state=state,
            num_times=num_times_of_state,
            distance=float(max(smallest - end, 1e-9 * smallest)),
        )
