"""Named parameters of a fitted model, their standard errors, and bias correction."""

import numpy as np

from jaxwgc.stragglers._fitting._likelihood import LOAD, Measured, Model
from jaxwgc.stragglers._fitting._most_likely import Kind

STATES = {1: ("",), 2: ("fast ", "slow ")}
CHAIN = ("become_slow", "become_fast")
# Distance from a bound, as a share of the allowed interval, below which a parameter
# counts as being at the bound.
_AT_END = 1e-3
# Step of finite differences, relative to the scale of a parameter.
_STEP = 1e-4


def parameters_of(kind: Kind, model: Model) -> dict[str, float]:
    """Returns the constructor arguments of a fitted model by name, without speeds."""
    shown = {*kind.parameters, *kind.form.names, *(CHAIN * kind.has_slow_state)}
    numbers = _by_name(kind, model).items()
    return {name: value for name, value in numbers if name.split()[-1] in shown}


def standard_errors(measured: Measured, kind: Kind, model: Model) -> dict[str, float]:
    """Computes standard errors from the curvature of the likelihood at its maximum.

    The lower end of a distribution is estimated by the minimum time, in which the
    likelihood is not smooth. Its error is that of their distance, which has a nearly
    exponential distribution.
    """
    numbers = _by_name(kind, model)
    scales = _scales(kind, numbers)

    def likelihood(changed):
        moved = _moved(kind, model, numbers | dict(zip(scales, changed, strict=True)))
        return moved.log_likelihoods(measured).sum()

    values = np.array([numbers[name] for name in scales])
    steps = _STEP * np.abs([*scales.values()])
    deviations = map(float, _deviations(likelihood, values, steps))
    errors = dict.fromkeys(numbers, np.nan) | dict(zip(scales, deviations, strict=True))
    # With speeds, each lower end is estimated by the mean of the minima of all workers.
    number = measured.times.shape[1] if kind.has_speeds else 1
    minima = _minima(kind, measured, model)
    for state, (*_, distance) in zip(STATES[len(model.components)], minima):
        if kind.ends_at_least_time:
            end = state + str(kind.family.least_time)
            errors[end] = distance / float(np.sqrt(number))
        errors[state + "overhead"] = errors[state + "slope"] * kind.form.mean_load
    if not kind.in_order:
        errors["become_fast"] = errors["become_slow"]
    return {name: errors[name] for name in parameters_of(kind, model)}


def _by_name(kind, model):
    """Returns the numbers of all components and of the Markov chain by name."""
    numbers = {}
    for state, component in zip(STATES[len(model.components)], model.components):
        values = *component.parameters, *component.load
        for name, value in zip((*kind.parameters, *LOAD), values, strict=True):
            numbers[state + name] = float(value)
    return numbers | dict(zip(CHAIN, model[1:3], strict=True))


def _scales(kind, numbers):
    """Returns the scale of each parameter in which the likelihood is smooth."""
    end = kind.family.least_time
    bounds = dict(zip(kind.form.free_names, kind.form.bounds)) if end is None else {}
    smooth = {*kind.parameters, *CHAIN[: 1 + kind.in_order], *bounds} - {end}
    limits = bounds | dict.fromkeys(CHAIN, (0.0, 1.0))
    scales = {}
    for name, value in numbers.items():
        last = name.split()[-1]
        low, high = limits.get(last, (value - 1, value + 1))
        room = _AT_END * (high - low)
        if last in smooth and low + room < value < high - room:
            scales[name] = high - low if last in bounds else value
    return scales


def _moved(kind, model, numbers):
    """Returns a copy of the model with new parameter values."""
    components = []
    for state, component in zip(STATES[len(model.components)], model.components):
        parameters, free = (
            tuple(numbers[state + name] for name in names)
            for names in (kind.parameters, kind.form.free_names)
        )
        load = kind.form.load(free)
        components.append(component._replace(parameters=parameters, load=load))
    become_slow, become_fast = (numbers[name] for name in CHAIN)
    if not kind.in_order:
        become_fast = 1 - become_slow
    return Model(tuple(components), become_slow, become_fast, model.speeds)


def _deviations(likelihood, values, steps):
    """Returns standard deviations from the inverse observed information matrix."""
    from scipy import optimize

    def gradient(point):
        return optimize.approx_fprime(point, likelihood, steps)

    # If the likelihood is not finite nearby, deviations are NaN.
    with np.errstate(all="ignore"):
        second = np.atleast_2d(optimize.approx_fprime(values, gradient, steps))
        try:
            variances = np.diag(np.linalg.inv(-(second + second.T) / 2))
        except np.linalg.LinAlgError:
            return np.full(len(values), np.nan)
        return np.sqrt(variances)


def predictive(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns the model with uncertain lower ends of distributions, for predictions."""
    components = []
    for component, count, distance in _minima(kind, measured, model):
        if component.law.isf(1.0) > 0 or component.load[-1] > 0:
            component = component._replace(before=(1 / (count + 1), distance))
        components.append(component)
    return model._replace(components=tuple(components))


def unbiased(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns the model with lower ends corrected for the bias of the minimum time."""
    if not kind.ends_at_least_time:
        return model
    components = []
    for component, _, distance in _minima(kind, measured, model):
        numbers = dict(zip(kind.parameters, component.parameters, strict=True))
        end = numbers[str(kind.family.least_time)]
        # The end is at most halved, so that it stays positive.
        numbers[str(kind.family.least_time)] = max(end - distance, end / 2)
        components.append(component._replace(parameters=tuple(numbers.values())))
    return model._replace(components=tuple(components))


def _minima(kind, measured, model):
    """Yields each component, its number of times, and the bias of their minimum.

    For independent times of any distribution, the next of m + 1 is the minimum with
    probability 1 / (m + 1). The minimum of m times is about as far from the end as the
    quantile of 1 / (m + 1). Workers with speeds have a minimum each.
    """
    number = measured.is_whole.sum()
    slow = model.slow_share
    if kind.has_speeds:
        number = number / measured.times.shape[1]
    for component, share in zip(model.components, (1 - slow, slow)):
        count = max(share * number, 1.0)
        end, least = component.law.isf(np.array([1.0, count / (count + 1)]))
        yield component, count, float(max(least - end, 1e-9 * least))
