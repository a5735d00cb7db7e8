"""Parity checks: what messages must satisfy, whatever the gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc._pytrees import register

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


@register
@dataclasses.dataclass(frozen=True)
class Syndromes:
    """The checks of a round that remain without some of the messages.

    Attributes:
      checks: H (num_checks, num_messages), with the messages that are left out
        projected away: linear combinations in which they do not occur.
      values: (num_checks, num_columns), what the others make of these; zero but for
        rounding where they are right.
      num_left: int scalar, how many of the checks are independent.
      solve: (num_messages, num_checks), gives of values before the projection what has
        to be added to the messages that are left out. Zero rows for the others.
    """

    checks: jax.Array
    values: jax.Array
    num_left: jax.Array
    solve: jax.Array

    @classmethod
    def without(cls, checks: Any, left_out: jax.Array, rows: jax.Array) -> "Syndromes":
        """Those of messages `rows` (num_messages, num_columns), but for some of them.

        Rows that are left out may hold anything.
        """
        rows = jnp.where(left_out[:, None], 0, rows)
        checks = jnp.asarray(checks, rows.dtype)
        columns = jnp.where(left_out, checks, 0)
        left, singular, right = jnp.linalg.svd(columns, full_matrices=False)
        precision = jnp.finfo(singular.dtype).eps
        # Columns have a norm of one at most.
        is_used = singular > max(checks.shape) * precision
        basis = jnp.where(is_used, left, 0)
        values = product(checks, rows)
        inverse = jnp.where(is_used, 1 / jnp.where(is_used, singular, 1), 0)
        solve = -product(right.T.conj() * inverse, left.T.conj())

        def project(array):
            # Twice, so that rounding is relative to what is left.
            for _ in range(2):
                array = array - product(basis, product(basis.T.conj(), array))
            return array

        num_all = jnp.sum(jnp.linalg.norm(checks, axis=1) > 0.5)
        return cls(
            project(checks) * ~left_out,
            project(values),
            num_all - is_used.sum(),
            jnp.where(left_out[:, None], solve, 0),
        )
