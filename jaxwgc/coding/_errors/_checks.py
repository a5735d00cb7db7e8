"""Parity checks: what messages must satisfy, whatever the gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Columns of the checks that are shorter than this are of messages without a check.
UNCHECKED = 1e-3


def parity_checks(matrix: Any) -> tuple[Any, Any]:
    """Returns the checks (num_checks, num_messages) of an encoding matrix, and norms.

    Orthonormal rows H with H D⁻¹ B = 0, D the norms of the rows of B: messages over
    norms are equally noisy. In NumPy, for a matrix of NumPy; of a traced one, there are
    as many rows as messages, and those that are no checks are zero.
    """
    # NumPy's keeps its precision.
    xp = jnp if isinstance(matrix, jax.Array) else np
    norms = xp.linalg.norm(matrix, axis=1)
    norms = xp.where(norms > 0, norms, 1)
    left, singular, _ = xp.linalg.svd(matrix / norms[:, None], full_matrices=True)
    limit = max(matrix.shape) * xp.finfo(singular.dtype).eps * singular[0]
    is_check = xp.arange(len(matrix)) >= (singular > limit).sum()
    checks = left.T.conj()
    if xp is np:
        return checks[is_check], norms
    return jnp.where(is_check[:, None], checks, 0), norms
