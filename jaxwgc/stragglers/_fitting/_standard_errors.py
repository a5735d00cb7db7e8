"""The parameters of a fitted model by name, and their standard errors."""

import numpy as np

from jaxwgc.stragglers._fitting._ends import end_errors
from jaxwgc.stragglers._fitting._likelihood import Measured, Model
from jaxwgc.stragglers._fitting._most_likely import Kind

STATES = {1: ("",), 2: ("fast ", "slow ")}
CHAIN = ("become_slow", "become_fast")
LOAD = ("overhead", "slope", "time")
# A probability or share nearer to an end than this is at it.
_AT_END = 1e-3
# Of differences, over the scale of a number.
_STEP = 1e-4


def parameters_of(kind: Kind, model: Model) -> dict[str, float]:
    """Those of the constructors that the model is made with, speeds aside."""
    found = {}
    for state, component in zip(
        STATES[len(model.components)], model.components, strict=True
    ):
        names = kind.parameters
        found |= {
            f"{state}{name}": float(value)
            for name, value in zip(names, component.parameters, strict=True)
        }
        names = (
            LOAD if len(kind.form.bounds) == 2 else LOAD[3 - len(kind.form.bounds) :]
        )
        found |= {f"{state}{name}": getattr(component, name) for name in names}
    if kind.has_slow_state:
        found |= dict(zip(CHAIN, model[1:3], strict=True))
    return found


def standard_errors(measured: Measured, kind: Kind, model: Model) -> dict[str, float]:
    """From the curvature of the likelihood at its maximum.

    The end of a law is estimated by the least time, in which the likelihood is not
    smooth: its error is that of the distance between them, of nearly exponential law.
    """
    names, values, scales = _free(kind, model)

    def likelihood(changed):
        moved = _moved(kind, model, dict(zip(names, changed, strict=True)))
        with np.errstate(all="ignore"):
            total = moved.log_likelihoods(measured).sum()
        return total if np.isfinite(total) else -np.inf

    deviations = _deviations(likelihood, values, scales) if names else np.zeros(0)
    found: dict[str, float] = dict(zip(names, map(float, deviations), strict=True))
    errors = {}
    ends = end_errors(kind, measured, model)
    for state, end in zip(STATES[len(ends)], ends, strict=True):
        for name in kind.parameters:
            errors[state + name] = found.get(state + name, np.nan)
        if kind.ends_at_least_time:
            errors[state + kind.parameters[0]] = end
        if len(kind.form.bounds) == 2:
            error = found.get(state + "share", np.nan)
            errors[state + "overhead"] = error
            errors[state + "slope"] = error / kind.form.mean_load
        if kind.form.bounds:
            errors[state + "time"] = found.get(state + "time", np.nan)
    if kind.has_slow_state:
        errors |= {name: found.get(name, np.nan) for name in CHAIN}
        if not kind.in_order:
            errors["become_fast"] = errors["become_slow"]
    return errors


def _free(kind, model):
    """Names, values and scales of the numbers that the likelihood is smooth in."""
    free = []
    for state, component in zip(
        STATES[len(model.components)], model.components, strict=True
    ):
        smooth = kind.parameters[kind.family.has_least_time :]
        own = component.parameters[kind.family.has_least_time :]
        free += [(state + name, value, value) for name, value in zip(smooth, own)]
        if kind.family.has_least_time:
            continue
        bounds = kind.form.bounds
        for name, value, (low, high) in zip(
            ("share", "time")[2 - len(bounds) :], kind.form.free(component), bounds
        ):
            room = _AT_END * (high - low)
            if low + room < value < high - room:
                free.append((state + name, value, high - low))
    chain = CHAIN if kind.in_order else CHAIN[:1]
    if kind.has_slow_state:
        free += [
            (name, value, value)
            for name, value in zip(chain, model[1:3])
            if _AT_END < value < 1 - _AT_END
        ]
    return tuple(zip(*free, strict=True)) if free else ((), (), ())


def _moved(kind, model, values):
    """The model with other numbers."""
    components = []
    for state, component in zip(
        STATES[len(model.components)], model.components, strict=True
    ):
        own = dict(
            zip(
                ("share", "time")[2 - len(kind.form.bounds) :],
                kind.form.free(component),
                strict=True,
            )
        )
        free = tuple(values.get(state + name, value) for name, value in own.items())
        parameters = tuple(
            values.get(state + name, value)
            for name, value in zip(kind.parameters, component.parameters, strict=True)
        )
        components.append(
            component._replace(
                **dict(zip(LOAD, kind.form.coefficients(free), strict=True)),
                parameters=parameters,
            )
        )
    become_slow = values.get("become_slow", model.become_slow)
    become_fast = values.get("become_fast", model.become_fast)
    if kind.has_slow_state and not kind.in_order:
        become_fast = 1 - become_slow
    return Model(tuple(components), become_slow, become_fast, model.speeds)


def _deviations(likelihood, values, scales):
    """Roots of the diagonal of the inverse of the negative second derivatives."""
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
