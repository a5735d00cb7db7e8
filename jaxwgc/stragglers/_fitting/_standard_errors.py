"""Parameters of a fitted model by name, and their standard errors."""

import numpy as np

from jaxwgc.stragglers._fitting._ends import end_errors
from jaxwgc.stragglers._fitting._likelihood import Measured, Model
from jaxwgc.stragglers._fitting._most_likely import Kind

STATES = {1: ("",), 2: ("fast ", "slow ")}
CHAIN = ("become_slow", "become_fast")
LOAD = ("overhead", "slope", "time")
# Distance from 0 or 1 below which a probability counts as being at its bound.
_AT_END = 1e-3
# Step of finite differences, relative to the scale of a number.
_STEP = 1e-4


def parameters_of(kind: Kind, model: Model) -> dict[str, float]:
    """Returns the parameters of the constructors of a model, without speeds."""
    load = LOAD[(3, 2, 0)[len(kind.form.bounds)] :]
    parameters = {}
    for state, component in _states(model):
        values = *component.parameters, *(getattr(component, name) for name in load)
        names = (state + name for name in (*kind.parameters, *load))
        parameters |= zip(names, map(float, values), strict=True)
    if kind.has_slow_state:
        parameters |= zip(CHAIN, model[1:3], strict=True)
    return parameters


def standard_errors(measured: Measured, kind: Kind, model: Model) -> dict[str, float]:
    """Computes standard errors from the curvature of the likelihood at its maximum.

    The lower end of a distribution is estimated by the minimum time, in which the
    likelihood is not smooth. Its error is that of their distance, which has a nearly
    exponential distribution.
    """
    numbers = _numbers(kind, model)
    scales = _scales(kind, numbers)

    def likelihood(changed):
        moved = _moved(kind, model, numbers | dict(zip(scales, changed, strict=True)))
        with np.errstate(all="ignore"):
            total = moved.log_likelihoods(measured).sum()
        return total if np.isfinite(total) else -np.inf

    errors = dict.fromkeys(numbers, np.nan)
    if scales:
        values = [numbers[name] for name in scales]
        deviations = _deviations(likelihood, values, [*scales.values()])
        errors |= zip(scales, map(float, deviations), strict=True)
    ends = end_errors(kind, measured, model)
    for (state, _), end in zip(_states(model), ends, strict=True):
        if kind.ends_at_least_time:
            errors[state + kind.parameters[0]] = end
        if "share" in kind.form.names:
            errors[state + "overhead"] = errors[state + "share"]
            errors[state + "slope"] = errors[state + "share"] / kind.form.mean_load
    if kind.has_slow_state and not kind.in_order:
        errors["become_fast"] = errors["become_slow"]
    return {name: errors[name] for name in parameters_of(kind, model)}


def _states(model):
    """Returns each component and the prefix of its parameters' names."""
    return zip(STATES[len(model.components)], model.components, strict=True)


def _numbers(kind, model):
    """Returns the numbers of a model by name: of its family, form and chain."""
    numbers = {}
    for state, component in _states(model):
        values = *component.parameters, *kind.form.free(component)
        names = (state + name for name in (*kind.parameters, *kind.form.names))
        numbers |= zip(names, values, strict=True)
    return numbers | dict(zip(CHAIN, model[1:3])) if kind.has_slow_state else numbers


def _scales(kind, numbers):
    """Returns scales of the numbers in which the likelihood is smooth."""
    has_end = kind.family.has_least_time
    bounds = dict(zip(kind.form.names, kind.form.bounds, strict=True))
    scales = {}
    for name, value in numbers.items():
        last = name.split()[-1]
        if last in bounds:
            low, high = bounds[last]
            room = _AT_END * (high - low)
            if not has_end and low + room < value < high - room:
                scales[name] = high - low
        elif last in CHAIN:
            is_free = kind.in_order or last == CHAIN[0]
            if is_free and _AT_END < value < 1 - _AT_END:
                scales[name] = value
        elif last in kind.parameters[has_end:]:
            scales[name] = value
    return scales


def _moved(kind, model, numbers):
    """Returns the model with other numbers."""
    components = []
    for state, component in _states(model):
        parameters, free = (
            tuple(numbers[state + name] for name in names)
            for names in (kind.parameters, kind.form.names)
        )
        load = dict(zip(LOAD, kind.form.coefficients(free), strict=True))
        components.append(component._replace(parameters=parameters, **load))
    become_slow, become_fast = (
        numbers.get(name, value) for name, value in zip(CHAIN, model[1:3], strict=True)
    )
    if kind.has_slow_state and not kind.in_order:
        become_fast = 1 - become_slow
    return Model(tuple(components), become_slow, become_fast, model.speeds)


def _deviations(likelihood, values, scales):
    """Returns roots of the diagonal of the inverse observed information."""
    from scipy import optimize

    steps = _STEP * np.abs(np.array(scales, float))

    def gradient(point):
        return optimize.approx_fprime(point, likelihood, steps)

    with np.errstate(invalid="ignore"):
        second = optimize.approx_fprime(np.array(values, float), gradient, steps)
    second = np.atleast_2d(second)
    if not np.isfinite(second).all():
        return np.full(len(values), np.nan)
    try:
        inverse = np.diag(np.linalg.inv(-(second + second.T) / 2))
    except np.linalg.LinAlgError:
        return np.full(len(values), np.nan)
    return np.sqrt(np.where(inverse > 0, inverse, np.nan))
