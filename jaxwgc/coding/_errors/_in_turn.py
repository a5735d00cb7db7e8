"""Location of corrupted messages, the largest errors first."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product, squares
from jaxwgc._some_masks import any_under_vmap
from jaxwgc.coding._errors._checks import UNCHECKED, Syndromes
from jaxwgc.coding._errors._general_position import (
    find_in_general_position,
    find_signal,
)

# Singular values of checks that are noise, over what is expected of noise: twice what
# any of 10,000 rounds of exact codes had.
_ROUNDINGS = 2.0
# Share of the checks of a message below which nothing of them is left.
_AMBIGUOUS = 2e-6
# Amplification of noise beyond which a suspect stays one.
_REACH = 10.0


class Evidence(NamedTuple):
    """The checks of a round without its suspects.

    Attributes:
      suspects: bool (num_messages,), the messages that are left out.
      is_used: bool (num_messages,), the messages that are there, without suspects.
      syndromes: Checks of the messages that are used.
      size: Root mean square of their norms.
      threshold: Singular value of their syndromes up to which it is noise.
    """

    suspects: jax.Array
    is_used: jax.Array
    syndromes: Syndromes
    size: jax.Array
    threshold: jax.Array

    @classmethod
    def without(
        cls,
        checks: Any,
        rows: jax.Array,
        mask: jax.Array,
        noise: jax.Array,
        suspects: jax.Array,
    ) -> "Evidence":
        """Computes the evidence of a round without some of its messages."""
        is_used = mask & ~suspects
        syndromes = Syndromes.without(checks, ~is_used, rows)
        squared_norms = jnp.sum(jnp.where(is_used[:, None], squares(rows), 0))
        size = jnp.sqrt(squared_norms / jnp.maximum(is_used.sum(), 1))
        columns = math.sqrt(rows.shape[1])
        num_left = jnp.maximum(syndromes.num_left, 0).astype(size.dtype)
        threshold = _ROUNDINGS * noise * size * (jnp.sqrt(num_left) / columns + 1)
        return cls(suspects, is_used, syndromes, size, threshold)


def find_in_turn(
    checks: Any,
    rows: jax.Array,
    mask: jax.Array,
    noise: jax.Array,
    find_agreeing: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Finds corrupted messages, the largest errors first.

    A message is noisy in proportion to its size, so large errors hide smaller ones.
    What explains the largest errors is left out, and the other messages are judged
    again by their own size, until their checks are noise. If nothing explains the
    errors, the weakest of them count as noise, until something explains the others.

    Args:
      checks: Parity checks, (num_checks, num_messages).
      rows: Projections of the messages over their norms, (num_messages, num_columns).
      mask: Which messages are there, bool (num_messages,).
      noise: Difference of honest copies of a message, relative to its norm.
      find_agreeing: Finds errors that are not in general position: from evidence, its
        signal and a test of explanations, the corrupted messages and if they explain.

    Returns:
      Which messages are corrupted, are disputed and are checked at all, bool
      (num_messages,); whether the errors are explained; and the number of checks.
    """
    nobody = jnp.zeros(len(rows), bool)

    def without(suspects):
        return Evidence.without(checks, rows, mask, noise, suspects)

    everything = without(nobody)
    sizes = jnp.linalg.norm(everything.syndromes.checks, axis=0)
    is_checked = sizes > UNCHECKED

    def explains(evidence, threshold, wrong):
        rest = without(evidence.suspects | wrong)
        # A message whose every check takes in a suspect could as well be corrupted.
        left = jnp.linalg.norm(rest.syndromes.checks, axis=0)
        is_unique = (left > _AMBIGUOUS * sizes) | ~(rest.is_used & is_checked)
        largest = jnp.linalg.norm(rest.syndromes.values, 2)
        is_left = rest.syndromes.num_left > 0
        return (largest <= 2 * threshold) & is_left & jnp.all(is_unique)

    def find(state):
        evidence, floor, _ = state
        threshold = jnp.maximum(evidence.threshold, floor)
        signal = find_signal(evidence.syndromes.values, threshold)
        explained = functools.partial(explains, evidence, signal.threshold)

        def in_general_position():
            wrong, stands_apart = find_in_general_position(evidence.syndromes, signal)
            return wrong, stands_apart & explained(wrong)

        def agreeing():
            return find_agreeing(evidence, signal, explained)

        is_open = (signal.rank > 0) & (signal.rank < evidence.syndromes.num_left)
        nothing = nobody, jnp.zeros_like(is_open)
        found = _compute_if(is_open, in_general_position, nothing)
        is_open &= ~found[1] & (floor == 0)
        wrong, is_found = _compute_if(is_open, agreeing, found)
        suspects = evidence.suspects | (wrong & is_found)
        weakest = jnp.min(jnp.where(signal.singular > 0, signal.singular, jnp.inf))
        higher = jnp.where(floor < signal.rounding, signal.rounding, weakest)
        floor = jnp.where(is_found, 0, jnp.where(signal.rank > 0, higher, floor))
        return without(suspects), floor, signal.rank > 0

    start = everything, jnp.zeros_like(everything.threshold), jnp.array(True)
    evidence, floor, _ = jax.lax.while_loop(lambda state: state[-1], find, start)
    is_explained = floor == 0
    # Some suspects may have sent what the other messages say they should have.
    wrong = evidence.suspects & _deviates(checks, rows, noise, evidence)
    disputed = mask & is_checked & ~is_explained
    return wrong, disputed, is_checked, is_explained, everything.syndromes.num_left


def _deviates(checks, rows, noise, evidence):
    """Returns which messages are not what the used ones make of them, up to noise."""
    kept = jnp.where(evidence.is_used[:, None], rows, 0)
    solve = evidence.syndromes.solve
    expected = product(solve, product(jnp.asarray(checks, rows.dtype), kept))
    reach = jnp.minimum(jnp.linalg.norm(solve, axis=1), _REACH)
    largest = jnp.maximum(jnp.linalg.norm(rows, axis=1), reach * evidence.size)
    allowed = _ROUNDINGS * noise * math.sqrt(len(rows)) * largest
    return jnp.linalg.norm(rows - expected, axis=1) > allowed


def _compute_if(condition, function, default):
    """Returns `default` unless `condition`, and under vmap if all conditions fail."""
    computed = jax.lax.cond(any_under_vmap(condition), function, lambda: default)
    return jax.tree.map(
        lambda one, other: jnp.where(condition, one, other), computed, default
    )
