"""Scale of the decoding target, and residuals that count as rounding."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray

# Largest residual, relative to the norm of the target, with which a round counts as
# decoded.
DECODES = 1e-3


def target_scale(target: Array) -> jax.Array:
    """Returns the largest absolute entry, or 1 if all entries are zero.

    The target is divided by this scale, because squares of tiny entries would
    underflow.
    """
    largest = jnp.max(jnp.abs(target))
    return jnp.where(largest > 0, largest, 1)


def rounding(dtype: jax.typing.DTypeLike) -> float:
    """Returns the relative residual that is attributed to rounding.

    In float32 it is a tenth of `DECODES`.
    """
    return {32: 1e-4, 64: 1e-10}[jnp.finfo(dtype).bits]
