"""Estimation of the lower end of a distribution from the minimum of the fitted times.

For independent times of any distribution, the next of m + 1 is the minimum with
probability 1 / (m + 1). The minimum of m times is about as far from the end as the
quantile of 1 / (m + 1). Workers with speeds have a minimum each.
"""

import numpy as np

from jaxwgc.stragglers._fitting._likelihood import Component, Measured, Model
from jaxwgc.stragglers._fitting._most_likely import Kind


def predictive(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns the model with uncertain ends, for predictions."""

    def soft(component, count):
        if not (kind.family.has_least_time or component.time > 0):
            return component
        return component._replace(before=(1 / (count + 1), _distance(component, count)))

    return _changed(soft, kind, measured, model)


def unbiased(kind: Kind, measured: Measured, model: Model) -> Model:
    """Returns the model with ends corrected for the mean distance from the minimum."""

    def moved(component, count):
        end, other = component.parameters
        # At most halved, so that it stays positive.
        end = max(end - _distance(component, count), end / 2)
        return component._replace(parameters=(end, other))

    return _changed(moved, kind, measured, model) if kind.ends_at_least_time else model


def end_errors(kind: Kind, measured: Measured, model: Model) -> list[float]:
    """Returns standard errors of the ends per state; means over workers with speeds."""
    number = measured.times.shape[1] if kind.has_speeds else 1
    return [
        _distance(*pair) / float(np.sqrt(number))
        for pair in zip(model.components, _counts(kind, measured, model), strict=True)
    ]


def _changed(change, kind, measured, model):
    counts = _counts(kind, measured, model)
    return model._replace(components=tuple(map(change, model.components, counts)))


def _counts(kind, measured, model):
    """Returns the number of times of which each minimum is taken, per state."""
    number = measured.is_whole.sum()
    if kind.has_speeds:
        number = number / measured.times.shape[1]
    return [max(share * number, 1.0) for share in model.shares]


def _distance(component: Component, count: float) -> float:
    """Returns the distance from the end to the minimum, in units of the law."""
    end, least = component.law.isf(np.array([1.0, count / (count + 1)]))
    return float(max(least - end, 1e-9 * least))
