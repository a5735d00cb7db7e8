"""Delay laws that can be fitted."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxwgc._common import validation
from jaxwgc.stragglers import _laws
from jaxwgc.stragglers._independent_delay import IndependentDelay

# Probabilities of longer times. Their quantiles bound the cells in which the density is
# integrated. Then the largest error of this integral.
_LEVELS = np.linspace(0.9, 0.1, 1001)
_LARGEST_ERROR = 0.05
# Relative spread of times below which a fit would be one of rounding errors.
_SMALLEST_SPREAD = 1e-6


def default_families() -> list[type[IndependentDelay]]:
    """Returns the delay laws of the library that can be fitted."""
    laws = [getattr(_laws, name) for name in _laws.__all__]
    return [law for law in laws if _can_be_fitted(law)]


def checked_families(families: object) -> list[type[IndependentDelay]]:
    """Returns the delay laws of the caller as a list, after checks."""
    if isinstance(families, type) or not isinstance(families, Iterable):
        raise TypeError(
            "families must be a list of delay laws, e.g. [stragglers.weibull]; got "
            f"{validation.in_short(families)}"
        )
    listed = list(families)
    if not listed:
        raise ValueError("families must have at least one delay law; got none")
    for family in listed:
        if not isinstance(family, type) or not issubclass(family, IndependentDelay):
            raise TypeError(
                "families must be classes with base class "
                "jaxwgc.stragglers.IndependentDelay, e.g. stragglers.weibull; got "
                f"{validation.in_short(family)}"
            )
        if not _can_be_fitted(family):
            raise ValueError(
                "families must define logpdf and logsf to be fitted; got "
                f"{family.__name__}"
            )
        _check_fields(family)
    return listed


def _can_be_fitted(family: type[IndependentDelay]) -> bool:
    """Returns whether a delay law defines its log-density and log-survival."""
    return (
        family.logpdf is not IndependentDelay.logpdf
        and family.logsf is not IndependentDelay.logsf
    )


def _check_fields(family: type[IndependentDelay]) -> None:
    """Checks the names of the fitted fields, and that the others have defaults."""
    name = family.__name__
    fitted = family.fitted_fields()
    known = {field.name for field in dataclasses.fields(family)}
    if not isinstance(fitted, tuple) or not fitted or set(fitted) - known:
        raise ValueError(
            f"fitted of {name} must be a tuple of names of its fields, "
            f"{tuple(sorted(known))}; got {fitted!r}"
        )
    if family.least_time is not None and family.least_time not in fitted:
        raise ValueError(
            f"least_time of {name} must be one of the fitted fields, {fitted}; got "
            f"{family.least_time!r}"
        )
    for field in dataclasses.fields(family):
        has_default = field.default is not dataclasses.MISSING
        if field.name not in fitted and not has_default:
            raise ValueError(
                f"field {field.name} of {name} must have a default, since it is not "
                "fitted; got none"
            )


def check_density(law: IndependentDelay) -> None:
    """Raises ValueError unless the density of a fitted law is that of its quantiles."""
    with np.errstate(all="ignore"):
        cells = np.asarray(law.isf(_LEVELS), np.float64)
        first = cells[0]
        last = cells[-1]
        if last - first <= _SMALLEST_SPREAD * abs(last):
            return
        density = np.exp(law.logpdf((cells[1:] + cells[:-1]) / 2))
        integral = np.sum(density * np.diff(cells))
    expected = _LEVELS[0] - _LEVELS[-1]
    if not abs(integral - expected) <= _LARGEST_ERROR:
        raise ValueError(
            f"logpdf of {type(law).__name__} must be the log-density of its times: "
            f"between {first:.3g} and {last:.3g}, which isf gives for probabilities "
            f"{_LEVELS[0]} and {_LEVELS[-1]} of a longer time, the density must "
            f"integrate to {expected:.1f}; got {integral:.3g} for {law}"
        )
