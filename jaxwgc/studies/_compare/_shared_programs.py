"""Delay models and waiting rules as pytrees, so that compiled programs are shared."""

import dataclasses
from typing import Any

import jax

from jaxwgc import stragglers
from jaxwgc._pytrees import Static, register

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


@register
@dataclasses.dataclass(frozen=True)
class _Constant:
    """Delay model or rule that is not a pytree: each has its own program."""

    model: Static[Any]


def shared(model: Any) -> Any:
    """Returns a delay model or waiting rule as a pytree, for compiled functions."""
    if kind_of(model) is not None:
        names = [field.name for field in dataclasses.fields(model)]
        return _Numbers(type(model), {name: getattr(model, name) for name in names})
    if jax.tree_util.all_leaves([model]):
        return _Constant(model)
    return model


def restored(model: Any) -> Any:
    """Returns the delay model or waiting rule of `shared`."""
    if isinstance(model, _Numbers):
        return model.kind(**model.fields)
    if isinstance(model, _Constant):
        return model.model
    return model


def kind_of(model: Any) -> type | None:
    """Returns the class of a model that `shared` traces, None for other models."""
    return type(model) if type(model) in _OF_NUMBERS else None
