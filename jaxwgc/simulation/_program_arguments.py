"""Delay models and waiting rules as arguments of compiled programs.

Pytrees of the library that differ only in numbers share a program. Any other object has
its own, since nothing tells what its methods compute with.
"""

import dataclasses
from typing import Any

import jax

from jaxwgc._common.pytrees import ByIdentity
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike

# Compiler options for programs that run for milliseconds: they halve the compile time.
QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
# Compiler options for programs that run for tenths of a second: they save a third of
# the compile time, and the programs run as fast.
LIGHTLY_OPTIMIZED = {"xla_backend_optimization_level": 1}


def as_argument(model: Any) -> Any:
    """Converts a delay model or waiting rule to an argument of a compiled program."""
    # Fields of a user's class are not traced, even if the class is a pytree: its
    # methods may branch on them in Python.
    package, *_ = type(model).__module__.split(".")
    is_pytree = not jax.tree_util.all_leaves([model])
    return model if package == "jaxwgc" and is_pytree else ByIdentity(model)


def from_argument(argument: Any) -> Any:
    """Returns the delay model or waiting rule that `as_argument` converted."""
    return argument.value if isinstance(argument, ByIdentity) else argument


def with_one_decoder(code: GradientCode, decoder: DecoderLike = None) -> GradientCode:
    """Returns the code with only the given decoder, or with only its default decoder.

    Codes of equal shapes with equal decoders share compiled programs.
    """
    return dataclasses.replace(code, decoders=(code.choose_decoder(decoder),))
