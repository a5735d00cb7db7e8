"""Majority voting among messages that are copies of each other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.arrays import Array
from jaxwgc.coding._errors._evidence import Findings, Sample

# Length of projections of copies. An error of twice the bound of honest differences is
# missed with probability 1 / 7e9.
PROJECTION_DIM = 64
# Bound of the difference of honest copies, as a multiple of the noise.
_NOISE = 4.0


class Copies(NamedTuple):
    """Messages that are copies of each other, up to their signs.

    Attributes:
      labels: Group of copies of each message, int (num_messages,).
      signs: Factor of each message relative to its group, of modulus 1,
        (num_messages,).
    """

    labels: Array
    signs: Array


def find_copies(matrix: np.ndarray) -> Copies | None:
    """Returns group and sign of each message among its copies.

    None unless the only relation between messages is that some are multiples of others.
    """
    norms = np.linalg.norm(matrix, axis=1)
    rows = matrix / np.where(norms > 0, norms, 1)[:, None]
    is_large = np.abs(rows) > 0.5 / np.sqrt(rows.shape[1])
    large_entries = rows[np.arange(len(rows)), is_large.argmax(axis=1)]
    sizes = np.where(large_entries == 0, 1, np.abs(large_entries))
    signs = np.where(norms > 0, large_entries / sizes, 1)
    aligned = np.round(rows / signs[:, None], 6)
    _, first, labels = np.unique(
        aligned, axis=0, return_index=True, return_inverse=True
    )
    if np.linalg.matrix_rank(rows[first]) < len(first):
        return None
    return Copies(labels=labels.reshape(-1), signs=signs)


def find_minorities(sample: Sample, copies: Copies, largest: float) -> Findings:
    """Finds the messages that are outvoted by their copies.

    Args:
      sample: Projected messages.
      copies: Labels and signs from `find_copies`.
      largest: Norm above which messages are corrupted, even if copies agree.
    """
    labels = jnp.asarray(copies.labels)
    is_there = sample.mask
    noise = sample.noise
    rows = sample.rows / jnp.asarray(copies.signs, sample.rows.dtype)[:, None]
    rows = jnp.where(is_there[:, None], rows, 0)
    norms = jnp.linalg.norm(rows, axis=1)
    can_be_right = norms < 0.99 * largest
    differences = jax.lax.map(
        lambda row: jnp.linalg.norm(rows - row, axis=1), rows, batch_size=32
    )
    smaller = jnp.minimum(norms[:, None], norms)
    # Messages have norm about one. Smaller ones result from cancellation, and are
    # equally noisy.
    agrees = differences <= _NOISE * noise * jnp.maximum(smaller, 1)
    agrees &= can_be_right[:, None] & can_be_right
    pairs = is_there[:, None] & is_there & (labels[:, None] == labels)
    votes = jnp.sum(agrees & pairs, axis=1)
    most_votes = jnp.max(jnp.where(pairs, votes, 0), axis=1)
    is_winner = (votes == most_votes) & (votes >= 2) & is_there
    # A group has a tie if two majorities are of equal size, or if no two messages
    # agree.
    is_tied = jnp.any(pairs & is_winner[:, None] & is_winner & ~agrees, axis=1)
    num_copies = jnp.sum(pairs, axis=1)
    has_no_majority = (most_votes < 2) & (num_copies > 1)
    disputed = jnp.any(pairs & is_tied, axis=1) | has_no_majority
    # All messages of a group with a tie are disputed.
    disputed = jnp.any(pairs & disputed, axis=1) & is_there
    has_winner = jnp.any(pairs & is_winner, axis=1)
    outvoted = is_there & has_winner & ~is_winner & ~disputed
    groups = jnp.zeros(len(labels), int).at[labels].add(is_there)
    num_checks = jnp.sum(jnp.maximum(groups - 1, 0))
    return Findings(
        wrong=outvoted,
        disputed=disputed,
        is_checked=is_there & (num_copies > 1),
        is_explained=~disputed.any(),
        num_checks=num_checks,
    )
