"""Delay models and waiting rules as arguments of compiled programs.

Models of the library that differ only in numbers share a program. Any other object has
its own, since nothing tells what its methods compute with.
"""

import dataclasses
from typing import Any

import jax

from jaxwgc._common.pytrees import ByIdentity, Static, register
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike

# Compiler options for programs that run for milliseconds. Compilation takes half of the
# time.
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}


@register
@dataclasses.dataclass(frozen=True)
class _Numbers:
    """Delay model or rule of the library with traced numbers."""

    kind: Static[type]
    fields: dict[str, Any]


@register
@dataclasses.dataclass(frozen=True)
class _Constant:
    """Delay model or rule with its own program."""

    model: Static[ByIdentity[Any]]


def as_argument(model: Any) -> Any:
    """Returns a delay model or waiting rule as a pytree, for compiled functions."""
    # Classes of the user may inherit from those of the library, with other attributes.
    package, *_ = type(model).__module__.split(".")
    if package != "jaxwgc":
        return _Constant(ByIdentity(model))
    if model.shares_programs:
        fields = {}
        for field in dataclasses.fields(model):
            fields[field.name] = getattr(model, field.name)
        return _Numbers(type(model), fields)
    is_pytree = not jax.tree_util.all_leaves([model])
    return model if is_pytree else _Constant(ByIdentity(model))


def from_argument(argument: Any) -> Any:
    """Returns the delay model or waiting rule that was given to `as_argument`."""
    if isinstance(argument, _Numbers):
        return argument.kind(**argument.fields)
    if isinstance(argument, _Constant):
        return argument.model.value
    return argument


def with_one_decoder(code: GradientCode, decoder: DecoderLike = None) -> GradientCode:
    """Returns a code without the decoders that are not used.

    Codes of equal shapes with equal decoders share compiled programs.
    """
    return dataclasses.replace(code, decoders=(code.choose_decoder(decoder),))
