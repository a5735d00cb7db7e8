"""Delay models and waiting rules as pytrees, so that compiled programs are shared."""

import dataclasses
from typing import Any

from jaxwgc import stragglers
from jaxwgc._pytrees import Static, register
from jaxwgc.studies._program_arguments import as_pytree, from_pytree

# Models of independent times. `sample` computes with their fields, and never branches
# on them, so that the fields may be traced.
_OF_NUMBERS = (
    stragglers.bernoulli_slowdown,
    stragglers.deadline,
    stragglers.fastest,
    stragglers.log_normal,
    stragglers.pareto,
    stragglers.shifted_exponential,
    stragglers.weibull,
)


@register
@dataclasses.dataclass(frozen=True)
class _Numbers:
    """Delay model or rule of the library with traced numbers."""

    kind: Static[type]
    fields: dict[str, Any]


def shared(model: Any) -> Any:
    """Returns a delay model or waiting rule as a pytree, for compiled functions."""
    if kind_of(model) is not None:
        names = [field.name for field in dataclasses.fields(model)]
        return _Numbers(type(model), {name: getattr(model, name) for name in names})
    return as_pytree(model)


def restored(model: Any) -> Any:
    """Returns the delay model or waiting rule of `shared`."""
    if isinstance(model, _Numbers):
        return model.kind(**model.fields)
    return from_pytree(model)


def kind_of(model: Any) -> type | None:
    """Returns the class of a model that `shared` traces, None for other models."""
    return type(model) if type(model) in _OF_NUMBERS else None
