"""Parity checks of a code: combinations of messages that are zero without errors."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.arrays import Array, norms_along, product, squares

# Norm of a message's column of the parity checks, below which no check contains the
# message.
UNCHECKED = 1e-3
# Singular values of the checks' values up to this multiple of their expectation count
# as noise. It is twice the maximum over 10,000 rounds of exact codes.
ROUNDINGS = 2.0
# Fraction of the initial norm of a message's checks, below which no check of the
# message is left.
_AMBIGUOUS = 2e-6
# Largest amplification of noise with which a suspected message can be found correct.
_REACH = 10.0
# Error bound of computed singular values, in machine epsilons times the largest one.
_SVD_ROUNDINGS = 16.0
# Ratio of the first rejected to the last accepted distance, above which the choice is
# clear.
_CONTRAST = 2.0


def parity_checks(matrix: Array) -> tuple[Array, Array]:
    """Returns combinations of messages that are zero for every gradient.

    Returns the checks, (num_checks, num_messages), and the norms of the rows of B.
    The checks are orthonormal rows H with H D⁻¹ B = 0, where D holds the norms of
    the rows of B: messages divided by these norms are equally noisy. A NumPy matrix
    gives NumPy arrays. A traced matrix gives as many rows as messages, padded with
    zeros.
    """
    # NumPy processes a NumPy matrix, so that it keeps its precision.
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


class Sample(NamedTuple):
    """Projected messages of a round, scaled to similar size.

    Attributes:
      rows: Projections over the norms of the rows of the encoding matrix,
        (num_messages, num_columns).
      mask: Which messages arrived, bool (num_messages,).
      noise: Difference of honest copies of a message, relative to its norm.
      norms: Norms of the rows of the encoding matrix, (num_messages,).
    """

    rows: jax.Array
    mask: jax.Array
    noise: jax.Array
    norms: jax.Array


class Findings(NamedTuple):
    """Corrupted and disputed messages of a round.

    Attributes:
      wrong: Corrupted messages, bool (num_messages,).
      disputed: Messages of failed checks without explanation, bool (num_messages,).
      is_checked: Messages that take part in a check, bool (num_messages,).
      is_explained: Whether all failed checks are explained, bool scalar.
      num_checks: Number of independent checks, int scalar.
    """

    wrong: jax.Array
    disputed: jax.Array
    is_checked: jax.Array
    is_explained: jax.Array
    num_checks: jax.Array


class Signal(NamedTuple):
    """Values of parity checks above the noise.

    Attributes:
      basis: Orthonormal columns, (num_checks, num_checks), zero beyond the rank.
      singular: Singular values, (num_checks,), zero beyond the rank.
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
        """Smallest singular value of the signal."""
        return jnp.min(jnp.where(self.singular > 0, self.singular, jnp.inf))


def find_signal(left: jax.Array, singular: jax.Array, threshold: jax.Array) -> Signal:
    """Separates signal from noise, given left singular vectors and singular values."""
    rounding = _SVD_ROUNDINGS * jnp.finfo(singular.dtype).eps * singular[0]
    is_signal = singular > jnp.maximum(threshold, rounding)
    basis = jnp.where(is_signal, left, 0)
    return Signal(
        basis=basis,
        singular=singular * is_signal,
        rank=is_signal.sum(),
        threshold=threshold,
        rounding=rounding,
    )


class Evidence(NamedTuple):
    """Values of the parity checks of a round without its suspected messages.

    Attributes:
      suspects: Messages that are left out, bool (num_messages,).
      is_used: Messages that arrived, without suspects, bool (num_messages,).
      checks: (num_checks, num_messages), linear combinations of the parity checks that
        contain only used messages.
      left: Left singular vectors of the check values, (num_checks, num_checks).
      singular: Their singular values, (num_checks,), zero up to rounding if the
        messages are correct.
      num_left: Number of independent checks, int scalar.
      deviates: Which of the messages that are left out differ from the values that the
        used messages imply, bool (num_messages,). Of no meaning for the others.
      threshold: Singular value up to which check values are noise.
    """

    suspects: jax.Array
    is_used: jax.Array
    checks: jax.Array
    left: jax.Array
    singular: jax.Array
    num_left: jax.Array
    deviates: jax.Array
    threshold: jax.Array

    @property
    def check_norms(self) -> jax.Array:
        """Norms of the checks of each message, (num_messages,)."""
        return norms_along(self.checks, axis=0)


def estimate(checks: Array, sample: Sample, suspects: jax.Array) -> Evidence:
    """Computes the values of parity checks without some messages.

    Rows that are left out may hold anything.
    """
    is_used = sample.mask & ~suspects
    rows = jnp.where(is_used[:, None], sample.rows, 0)
    checks = jnp.asarray(checks, rows.dtype)
    columns = jnp.where(is_used, 0, checks)
    left, singular, right = jnp.linalg.svd(columns, full_matrices=False)
    # Columns have norm at most one, so the bound needs no scale.
    is_lost = singular > max(checks.shape) * jnp.finfo(singular.dtype).eps
    inverse = jnp.where(is_lost, 1 / jnp.where(is_lost, singular, 1), 0)
    values = product(checks, rows)
    num_used = jnp.maximum(is_used.sum(), 1)
    size = jnp.sqrt(jnp.sum(squares(rows)) / num_used)
    # Left singular vectors give combinations of the checks. Those of singular value 0
    # contain only used messages. The others give corrections of the messages that are
    # left out.
    combinations = left.T.conj()
    values = product(combinations, values)
    solve = right.T.conj() * inverse
    corrections = product(solve, values)
    reach = jnp.minimum(norms_along(solve, axis=1), _REACH)
    largest = jnp.maximum(norms_along(sample.rows, axis=1), reach * size)
    allowed = ROUNDINGS * sample.noise * math.sqrt(len(rows)) * largest
    deviates = norms_along(sample.rows + corrections, axis=1) > allowed
    is_lost = is_lost[:, None]
    values = jnp.where(is_lost, 0, values)
    left, singular, _ = jnp.linalg.svd(values, full_matrices=False)
    # Rows of checks have norm one, or norm zero if they pad a traced matrix.
    num_checks = jnp.rint(jnp.sum(squares(checks))).astype(int)
    num_left = num_checks - is_lost.sum()
    spread = jnp.sqrt(jnp.maximum(num_left, 0) / rows.shape[1]).astype(size.dtype)
    return Evidence(
        suspects=suspects,
        is_used=is_used,
        checks=jnp.where(is_used & ~is_lost, product(combinations, checks), 0),
        left=left,
        singular=singular,
        num_left=num_left,
        deviates=deviates,
        threshold=ROUNDINGS * sample.noise * size * (spread + 1),
    )


def outside(basis: jax.Array, columns: jax.Array) -> jax.Array:
    """Projects columns onto the orthogonal complement of a subspace."""
    # Projecting twice makes the rounding error relative to the result.
    for _ in range(2):
        columns = columns - product(basis, product(basis.T.conj(), columns))
    return columns


def explains(
    evidence: Evidence, threshold: jax.Array, check_norms: jax.Array
) -> jax.Array:
    """Returns whether the suspected messages are the only explanation of all errors.

    Args:
      evidence: Without the suspects.
      threshold: Singular value up to which checks with the suspects are noise.
      check_norms: Norms of the checks of each message if none is left out.
    """
    # Another message may be the corrupted one if each of its checks contains a suspect.
    is_unique = evidence.check_norms > _AMBIGUOUS * check_norms
    is_unique |= ~(evidence.is_used & (check_norms > UNCHECKED))
    is_noise = evidence.singular[0] <= 2 * threshold
    return is_noise & (evidence.num_left > 0) & jnp.all(is_unique)


def normalized_columns(evidence: Evidence) -> tuple[jax.Array, jax.Array]:
    """Returns columns of the checks with unit norm, and which messages have a check."""
    lengths = evidence.check_norms
    has_check = lengths > UNCHECKED
    # A product of complex numbers compiles to a smaller program than a quotient.
    scales = jnp.where(has_check, 1 / jnp.maximum(lengths, UNCHECKED), 0)
    return evidence.checks * scales, has_check


def nearest(distances: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Selects the columns at the least distances, and tells if the choice is clear."""
    # Counting ranks compiles to a smaller program than sorting. Ties go to the first
    # column.
    places = jnp.arange(len(distances))
    is_nearer = distances < distances[:, None]
    is_nearer |= (distances == distances[:, None]) & (places < places[:, None])
    ranks = is_nearer.sum(1)
    chosen = ranks < number
    last = jnp.max(jnp.where(chosen, distances, 0))
    following = jnp.min(jnp.where(chosen, jnp.inf, distances))
    return chosen, _CONTRAST * last < following
