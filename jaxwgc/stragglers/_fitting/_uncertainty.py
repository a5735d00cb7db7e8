"""Named parameters of a fitted model, their standard errors, and bias correction."""

import numpy as np

from jaxwgc.stragglers._fitting._likelihood import Measured, Model
from jaxwgc.stragglers._fitting._most_likely import Kind

STATES = {1: ("",), 2: ("fast ", "slow ")}
CHAIN = ("become_slow", "become_fast")
LOAD = ("overhead", "slope", "time")
# Distance from a bound, as a share of the allowed interval, below which a parameter
# counts as being at the bound.
_AT_END = 1e-3
# Step of finite differences, relative to the scale of a parameter.
_STEP = 1e-4


def parameters_of(kind: Kind, model: Model) -> dict[str, float]:
    """Returns the constructor arguments of a fitted model by name, without speeds."""
    first = (3, 2, 0)[len(kind.form.bounds)]
    return _by_name(kind, model, LOAD[first:], lambda each: each.load[first:])


def standard_errors(measured: Measured, kind: Kind, model: Model) -> dict[str, float]:
    """Computes standard errors from the curvature of the likelihood at its maximum.

    The lower end of a distribution is estimated by the minimum time, in which the
    likelihood is not smooth. Its error is that of their distance, which has a nearly
    exponential distribution.
    """
    numbers = _by_name(kind, model, kind.form.names, kind.form.free)
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
    minima = _minima(kind, measured, model)
    # With speeds, each lower end is estimated by the mean of the minima of all workers.
    number = measured.times.shape[1] if kind.has_speeds else 1
    for (state, _), (*_, distance) in zip(_states(model), minima, strict=True):
        if kind.ends_at_least_time:
            errors[state + kind.parameters[0]] = distance / float(np.sqrt(number))
        if "share" in kind.form.names:
            errors[state + "overhead"] = errors[state + "share"]
            errors[state + "slope"] = errors[state + "share"] / kind.form.mean_load
    if kind.has_slow_state and not kind.in_order:
        errors["become_fast"] = errors["become_slow"]
    return {name: errors[name] for name in parameters_of(kind, model)}


def _states(model):
    """Pairs each component with the prefix of its parameter names."""
    return zip(STATES[len(model.components)], model.components, strict=True)


def _by_name(kind, model, names, values_of):
    """Returns the parameters of all components and of the Markov chain by name."""
    numbers: dict[str, float] = {}
    for state, component in _states(model):
        values = *component.parameters, *values_of(component)
        keys = (state + name for name in (*kind.parameters, *names))
        numbers |= zip(keys, map(float, values), strict=True)
    if kind.has_slow_state:
        numbers |= zip(CHAIN, model[1:3], strict=True)
    return numbers


def _scales(kind, numbers):
    """Returns the scale of each parameter in which the likelihood is smooth."""
    has_end = kind.family.has_least_time
    smooth = {*kind.parameters[has_end:], *CHAIN[: 1 + kind.in_order]}
    smooth |= set() if has_end else {*kind.form.names}
    bounds = dict(zip(kind.form.names, kind.form.bounds, strict=True))
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
    for state, component in _states(model):
        parameters, free = (
            tuple(numbers[state + name] for name in names)
            for names in (kind.parameters, kind.form.names)
        )
        load = kind.form.coefficients(free)
        components.append(component._replace(parameters=parameters, load=load))
    become_slow, become_fast = (
        numbers.get(name, value) for name, value in zip(CHAIN, model[1:3], strict=True)
    )
    if kind.has_slow_state and not kind.in_order:
        become_fast = 1 - become_slow
    return Model(tuple(components), become_slow, become_fast, model.speeds)


def _deviations(likelihood, values, scales):
    """Returns standard deviations from the inverse observed information matrix."""
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


def predictive(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns the model with uncertain lower ends of distributions, for predictions."""
    return model._replace(
        components=tuple(
            component._replace(before=(1 / (count + 1), distance))
            if kind.family.has_least_time or component.load[-1] > 0
            else component
            for component, count, distance in _minima(kind, measured, model)
        )
    )


def unbiased(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns the model with lower ends corrected for the bias of the minimum time."""
    if not kind.ends_at_least_time:
        return model
    components = []
    for component, _, distance in _minima(kind, measured, model):
        end, other = component.parameters
        # The end is at most halved, so that it stays positive.
        moved = max(end - distance, end / 2), other
        components.append(component._replace(parameters=moved))
    return model._replace(components=tuple(components))


def _minima(kind, measured, model):
    """Yields each component, its number of times, and the bias of their minimum.

    For independent times of any distribution, the next of m + 1 is the minimum with
    probability 1 / (m + 1). The minimum of m times is about as far from the end as the
    quantile of 1 / (m + 1). Workers with speeds have a minimum each.
    """
    number = measured.is_whole.sum()
    if kind.has_speeds:
        number = number / measured.times.shape[1]
    for component, share in zip(model.components, model.shares, strict=True):
        count = max(share * number, 1.0)
        end, least = component.law.isf(np.array([1.0, count / (count + 1)]))
        yield component, count, float(max(least - end, 1e-9 * least))
