"""Evidence: what the parity checks of a round say without some of its messages."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product, squares
from jaxwgc.coding._errors._checks import UNCHECKED

# Singular values of checks that are noise, over what is expected of noise: twice what
# any of 10,000 rounds of exact codes had.
ROUNDINGS = 2.0
# Share of the checks of a message below which nothing of them is left.
_AMBIGUOUS = 2e-6
# Amplification of noise beyond which a suspect stays one.
_REACH = 10.0
# Singular values are at most that many times the rounding of the largest one from the
# true ones.
_SVD_ROUNDINGS = 16.0


class Sample(NamedTuple):
    """Messages of a round, short and of about the same size.

    Attributes:
      rows: Projections over the norms of the rows of the encoding matrix,
        (num_messages, num_columns).
      mask: Which messages are there, bool (num_messages,).
      noise: Difference of honest copies of a message, relative to its norm.
      norms: Norms of the rows of the encoding matrix, (num_messages,).
      key: PRNG key for further projections.
    """

    rows: jax.Array
    mask: jax.Array
    noise: jax.Array
    norms: jax.Array
    key: jax.Array


class Findings(NamedTuple):
    """What the messages of a round say of each other.

    Attributes:
      wrong: bool (num_messages,), the messages that are corrupted.
      disputed: bool (num_messages,), the messages of checks that nothing explains.
      is_checked: bool (num_messages,), the messages that others say something of.
      is_explained: bool scalar.
      num_checks: int scalar, the number of independent checks.
    """

    wrong: jax.Array
    disputed: jax.Array
    is_checked: jax.Array
    is_explained: jax.Array
    num_checks: jax.Array


class Signal(NamedTuple):
    """The part of checks that is no rounding.

    Attributes:
      basis: (num_checks, num_checks), orthonormal columns, zero beyond the rank.
      singular: (num_checks,), singular values, zero beyond the rank.
      rank: int scalar.
      threshold: Singular value up to which values are noise.
      rounding: Rounding error of the singular values.
    """

    basis: jax.Array
    singular: jax.Array
    rank: jax.Array
    threshold: jax.Array
    rounding: jax.Array

    @property
    def weakest(self) -> jax.Array:
        """The least singular value of the signal."""
        return jnp.min(jnp.where(self.singular > 0, self.singular, jnp.inf))


def find_signal(left: jax.Array, singular: jax.Array, threshold: jax.Array) -> Signal:
    """Returns what stands out of values, by singular vectors and values of these."""
    rounding = _SVD_ROUNDINGS * jnp.finfo(singular.dtype).eps * singular[0]
    is_signal = singular > jnp.maximum(threshold, rounding)
    basis = jnp.where(is_signal, left, 0)
    return Signal(basis, singular * is_signal, is_signal.sum(), threshold, rounding)


class Evidence(NamedTuple):
    """The checks of a round without its suspects.

    Attributes:
      suspects: bool (num_messages,), the messages that are left out.
      is_used: bool (num_messages,), the messages that are there, without suspects.
      checks: (num_checks, num_messages), linear combinations of the parity checks in
        which only messages that are used occur.
      left: (num_checks, num_checks), left singular vectors of what the messages make
        of the checks.
      singular: (num_checks,), singular values, zero but for rounding if the messages
        are right.
      num_left: int scalar, the number of independent checks.
      solve: (num_messages, num_checks), computes from values of all checks what has to
        be added to the messages that are left out. Zero rows for the others.
      size: Root mean square of the norms of the messages that are used.
      threshold: Singular value up to which it is noise.
    """

    suspects: jax.Array
    is_used: jax.Array
    checks: jax.Array
    left: jax.Array
    singular: jax.Array
    num_left: jax.Array
    solve: jax.Array
    size: jax.Array
    threshold: jax.Array

    @property
    def check_norms(self) -> jax.Array:
        """The norms of the checks of each message, (num_messages,)."""
        return jnp.linalg.norm(self.checks, axis=0)


def estimate(checks: Any, sample: Sample, suspects: jax.Array) -> Evidence:
    """Computes the evidence of a round without some of its messages.

    Rows that are left out may hold anything.
    """
    is_used = sample.mask & ~suspects
    rows = jnp.where(is_used[:, None], sample.rows, 0)
    checks = jnp.asarray(checks, rows.dtype)
    columns = jnp.where(is_used, 0, checks)
    left, singular, right = jnp.linalg.svd(columns, full_matrices=False)
    # Columns have a norm of one at most.
    is_lost = singular > max(checks.shape) * jnp.finfo(singular.dtype).eps
    inverse = jnp.where(is_lost, 1 / jnp.where(is_lost, singular, 1), 0)
    solve = -product(right.T.conj() * inverse, left.T.conj())
    basis = jnp.where(is_lost, left, 0)
    remaining = outside(basis, jnp.concatenate([checks, product(checks, rows)], axis=1))
    left, singular, _ = jnp.linalg.svd(remaining[:, len(rows) :], full_matrices=False)
    num_left = jnp.sum(jnp.linalg.norm(checks, axis=1) > 0.5) - is_lost.sum()
    size = jnp.sqrt(jnp.sum(squares(rows)) / jnp.maximum(is_used.sum(), 1))
    spread = jnp.sqrt(jnp.maximum(num_left, 0) / rows.shape[1]).astype(size.dtype)
    return Evidence(
        suspects=suspects,
        is_used=is_used,
        checks=remaining[:, : len(rows)] * is_used,
        left=left,
        singular=singular,
        num_left=num_left,
        solve=jnp.where(is_used[:, None], 0, solve),
        size=size,
        threshold=ROUNDINGS * sample.noise * size * (spread + 1),
    )


def outside(basis: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns what is left of columns outside of a subspace."""
    # Twice, so that rounding is relative to what is left.
    for _ in range(2):
        columns = columns - product(basis, product(basis.T.conj(), columns))
    return columns


def explains(
    evidence: Evidence, threshold: jax.Array, check_norms: jax.Array
) -> jax.Array:
    """Returns whether the suspects explain all errors, and no other messages could.

    Args:
      evidence: Without the suspects.
      threshold: Singular value up to which checks were noise with them.
      check_norms: Norms of the checks of each message if none is left out.
    """
    # A message whose every check takes in a suspect could as well be corrupted.
    is_unique = evidence.check_norms > _AMBIGUOUS * check_norms
    is_unique |= ~(evidence.is_used & is_checked(check_norms))
    is_noise = evidence.singular[0] <= 2 * threshold
    return is_noise & (evidence.num_left > 0) & jnp.all(is_unique)


def is_checked(check_norms: jax.Array) -> jax.Array:
    """Returns which messages have a check at all."""
    return check_norms > UNCHECKED


def deviates(checks: Any, sample: Sample, evidence: Evidence) -> jax.Array:
    """Returns which messages are not what the used ones make of them, up to noise."""
    rows = sample.rows
    kept = jnp.where(evidence.is_used[:, None], rows, 0)
    solve = evidence.solve
    expected = product(solve, product(jnp.asarray(checks, rows.dtype), kept))
    reach = jnp.minimum(jnp.linalg.norm(solve, axis=1), _REACH)
    largest = jnp.maximum(jnp.linalg.norm(rows, axis=1), reach * evidence.size)
    allowed = ROUNDINGS * sample.noise * math.sqrt(len(rows)) * largest
    return jnp.linalg.norm(rows - expected, axis=1) > allowed
