"""What codes that are made of another code ask of it."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.codes._gradient_code import GradientCode


def check_inner_code(code: Any) -> GradientCode:
    """One gradient code, not a batch of them."""
    if not isinstance(code, GradientCode):
        raise TypeError(f"code must be a GradientCode; got {code!r}")
    if np.ndim(code.encoding_matrix) != 2:
        raise ValueError(
            "code must be one code, with an encoding matrix of two axes; got one of "
            f"shape {np.shape(code.encoding_matrix)} (use jax.vmap for a batch)"
        )
    return code


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
