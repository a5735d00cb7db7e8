"""What codes that are made of another code ask of it."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.codes._gradient_code import GradientCode


def check_plain_messages(code: GradientCode, constructor: str) -> None:
    """One message a worker, as long as the gradient."""
    for name in ("num_segments", "messages_per_worker"):
        if getattr(code, name) != 1:
            raise ValueError(
                f"{constructor} needs a code with {name} = 1; got {name} = "
                f"{getattr(code, name)} for {code}"
            )


def array_module(array: Any) -> ModuleType:
    """jax.numpy for what JAX computes, NumPy for what stays on the host."""
    return jnp if isinstance(array, jax.Array) else np
