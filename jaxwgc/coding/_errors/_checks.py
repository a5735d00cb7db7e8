"""Parity checks: linear relations that messages satisfy for all gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Norm of a message's column of the checks below which it counts as unchecked.
UNCHECKED = 1e-3


def parity_checks(matrix: Any) -> tuple[Any, Any]:
    """Returns parity checks (num_checks, num_messages), and norms of rows of B.

    The checks are orthonormal rows H with H D⁻¹ B = 0, where D holds the norms of the
    rows of B: messages divided by these norms are equally noisy. A NumPy matrix gives
    NumPy arrays. A traced matrix gives as many rows as messages, padded with zeros.
    """
    # A NumPy matrix keeps its precision.
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
