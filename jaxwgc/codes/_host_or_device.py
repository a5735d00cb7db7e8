"""Where the arrays of a code are: on the host in NumPy, or in JAX."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def array_module(array: Any) -> ModuleType:
    """jax.numpy for what JAX computes, NumPy for what stays on the host."""
    return jnp if isinstance(array, jax.Array) else np
