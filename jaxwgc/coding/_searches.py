"""Searches for corrupted messages, largest errors first."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.arrays import Array, norms_along, one_norm, product
from jaxwgc._common.some_rows import compute_if, in_batches
from jaxwgc.coding._evidence import (
    UNCHECKED,
    Evidence,
    Findings,
    Sample,
    Signal,
    estimate,
    explains,
    find_signal,
    nearest,
    normalized_columns,
    outside,
)
from jaxwgc.decoders import Decoder, Interpolation

T = TypeVar("T")

# For each number of windows, 0, 1 or 2 directions of errors are assumed to be hidden in
# the noise.
_HIDDEN = 3
# Maximum number of guesses per round, and number of guesses tried at a time.
_MOST_GUESSES = 20_000
_AT_ONCE = 256
# Distance, as a multiple of the rounding error, below which a column lies in a space.
_ROUNDING = 10.0


class _Search(NamedTuple):
    """State of a search.

    Attributes:
      evidence: Evidence without the suspects so far.
      signal: Signal of the evidence, above the floor.
      check_norms: Norms of the checks of each message if none is left out.
      num_checks: Number of checks if none is left out, int scalar.
      floor: Singular value below which unexplained errors count as noise.
      attempt: Number of explanations tried for the current errors; -1 before the first
        evidence.
    """

    evidence: Evidence
    signal: Signal
    check_norms: jax.Array
    num_checks: jax.Array
    floor: jax.Array
    attempt: jax.Array


class _Proposal(NamedTuple):
    """A set of messages that may be corrupted.

    Attributes:
      wrong: Messages of the set, bool (num_messages,).
      fits: Whether the set explains the errors.
      is_more: Whether more attempts remain.
    """

    wrong: jax.Array
    fits: jax.Array
    is_more: jax.Array


class _ErrorSpace(NamedTuple):
    """The space that the columns of corrupted messages span.

    Attributes:
      basis: Orthonormal columns of which the first span the space, (num_checks,
        num_checks).
      columns: A column of each message, (num_checks, num_messages).
      is_candidate: Messages that may be corrupted, bool (num_messages,).
      number: Dimension of the space: the number of corrupted messages, int scalar.
      fits: Whether this number of messages may explain the errors.
      needs_gap: Whether the columns of other messages must be further away.
      is_more: Whether more attempts remain.
    """

    basis: jax.Array
    columns: jax.Array
    is_candidate: jax.Array
    number: jax.Array
    fits: jax.Array
    needs_gap: jax.Array
    is_more: jax.Array

    def proposal(self) -> _Proposal:
        """Proposes the messages whose columns are nearest to the space."""
        parts = product(self.basis.T.conj(), self.columns)
        is_outside = jnp.arange(len(parts)) >= self.number
        distances = norms_along(jnp.where(is_outside[:, None], parts, 0), axis=0)
        distances = jnp.where(self.is_candidate, distances, jnp.inf)
        wrong, stands_apart = nearest(distances, self.number)
        fits = self.fits & (stands_apart | ~self.needs_gap)
        return _Proposal(wrong=wrong, fits=fits, is_more=self.is_more)


def find_in_turn(
    checks: Array, sample: Sample, decoders: Sequence[Decoder]
) -> Findings:
    """Finds corrupted messages, the largest errors first.

    A message is noisy in proportion to its size, so large errors hide small ones. The
    messages that explain the largest errors are left out, and the others are judged
    again by their own size, until their checks are noise. If nothing explains the
    errors, the weakest of them count as noise, until something explains the others.

    Args:
      checks: Parity checks, (num_checks, num_messages).
      sample: Projected messages.
      decoders: Decoders of the code. One of them may interpolate polynomials.
    """
    no_suspects = jnp.zeros_like(sample.mask)
    # The loop starts with zeros in place of evidence. `estimate` is then compiled only
    # once, in the loop.
    evidence = _zeros_of(estimate, checks, sample, no_suspects)
    signal = _zeros_of(_signal_above, evidence, evidence.threshold)
    start = _Search(
        evidence=evidence,
        signal=signal,
        check_norms=jnp.zeros_like(sample.norms),
        num_checks=evidence.num_left,
        floor=evidence.threshold,
        attempt=jnp.array(-1),
    )

    def is_unfinished(search):
        return (search.attempt < 0) | (search.signal.rank > 0)

    step = functools.partial(_next, checks, sample, decoders)
    last = jax.lax.while_loop(is_unfinished, step, start)
    is_explained = last.floor == 0
    has_check = last.check_norms > UNCHECKED
    return Findings(
        # Suspected messages that agree with the others are found correct.
        wrong=last.evidence.suspects & last.evidence.deviates,
        disputed=sample.mask & has_check & ~is_explained,
        is_checked=has_check,
        is_explained=is_explained,
        num_checks=last.num_checks,
    )


def _zeros_of(function: Callable[..., T], *arguments: object) -> T:
    """Returns zeros like the result of a function."""
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _signal_above(evidence: Evidence, floor: jax.Array) -> Signal:
    """Returns the values of parity checks above a floor."""
    threshold = jnp.maximum(evidence.threshold, floor)
    return find_signal(evidence.left, evidence.singular, threshold)


def _next(
    checks: Array, sample: Sample, decoders: Sequence[Decoder], search: _Search
) -> _Search:
    """Tries one set of corrupted messages, and excludes it if it explains errors."""
    evidence = search.evidence
    signal = search.signal
    check_norms = search.check_norms
    floor = search.floor
    proposal = _propose(sample, decoders, search)
    is_first = search.attempt < 0
    suspects = evidence.suspects | proposal.wrong
    rest = compute_if(
        proposal.fits | is_first, lambda: estimate(checks, sample, suspects), evidence
    )
    explains_all = explains(rest, signal.threshold, check_norms)
    is_found = is_first | (proposal.fits & explains_all)
    goes_on = ~is_found & (signal.rank > 0)
    is_next = goes_on & proposal.is_more & (floor == 0)
    higher = jnp.where(floor < signal.rounding, signal.rounding, signal.weakest)
    raised = jnp.where(goes_on & ~is_next, higher, floor)
    floor = jnp.where(is_found, 0, raised)
    evidence = jax.lax.cond(is_found, lambda: rest, lambda: evidence)
    return _Search(
        evidence=evidence,
        signal=_signal_above(evidence, floor),
        check_norms=jnp.where(is_first, rest.check_norms, check_norms),
        num_checks=jnp.where(is_first, rest.num_left, search.num_checks),
        floor=floor,
        attempt=jnp.where(is_next, search.attempt + 1, 0),
    )


def _propose(sample: Sample, decoders: Sequence[Decoder], search: _Search) -> _Proposal:
    """Proposes a set of corrupted messages.

    Errors in general position are tried first, then errors that agree.
    """
    evidence = search.evidence
    signal = search.signal
    is_open = (signal.rank > 0) & (signal.rank < evidence.num_left)
    is_repeated = is_open & (search.attempt > 0)
    # The errors span the columns of the checks at the corrupted messages. If the ranks
    # agree, no other columns are in this space.
    columns, has_check = normalized_columns(evidence)
    always = jnp.array(True)
    space = _ErrorSpace(
        basis=evidence.left,
        columns=columns,
        is_candidate=has_check,
        number=signal.rank,
        fits=always,
        needs_gap=always,
        is_more=always,
    )
    interpolations = [decoder.interpolation(evidence.is_used) for decoder in decoders]
    known = [interpolation for interpolation in interpolations if interpolation]
    if known:
        space = compute_if(
            is_repeated, lambda: _smoothed(sample, search, known[0]), space
        )
        proposal = space.proposal()
    else:
        proposal = compute_if(
            is_repeated, lambda: _guessed(evidence, signal), space.proposal()
        )
    return _Proposal(
        wrong=proposal.wrong & is_open,
        fits=proposal.fits & is_open,
        is_more=proposal.is_more & is_open,
    )


def _smoothed(
    sample: Sample, search: _Search, interpolation: Interpolation
) -> _ErrorSpace:
    """Finds the space of errors by spatial smoothing.

    Messages are values of polynomials at points αᵢ. With weights aᵢ that interpolate at
    0, the sums of aᵢ αᵢˡ⁺¹ times message i are zero for l below the number of checks.
    An error in message i adds a geometric sequence in αᵢ. Windows of these sequences,
    side by side, span as many dimensions as there are corrupted messages (spatial
    smoothing).

    Args:
      sample: Projected messages.
      search: State of the search. Each attempt, from 1, allows more windows and more
        corrupted messages.
      interpolation: From `Decoder.interpolation`.
    """
    evidence = search.evidence
    signal = search.signal
    weights, powers = interpolation
    num_sums = len(powers) - 1
    num_checks = evidence.is_used.sum() - (len(weights) - num_sums)
    # Weights of order one neither overflow nor underflow.
    weights = weights * (sample.norms / jnp.max(one_norm(weights)))
    threshold = signal.threshold * norms_along(weights, axis=0)
    # The sums are linear combinations of the checks. So the signal gives one column of
    # sums for each dimension above the noise.
    combinations = product(powers[1:] * weights, evidence.checks.T.conj())
    num_directions = max(num_sums // 2, 1)
    directions = (signal.basis * signal.singular)[:, :num_directions]
    places = jnp.arange(num_sums)
    sums = product(combinations, directions)

    number = jax.lax.div(search.attempt - 1, _HIDDEN) + 2
    hidden = jax.lax.rem(search.attempt - 1, _HIDDEN)
    size = num_checks - number + 1
    # There are at least as many columns as sums, so that the SVD gives a full basis.
    columns = jnp.arange((num_sums + 3) // 2)
    shifted = jnp.minimum(places[:, None] + columns, num_sums - 1)
    is_in = (places[:, None] < size) & (columns < number)
    windows = jnp.where(is_in[:, :, None], sums[shifted], 0).reshape(num_sums, -1)
    left, singular, _ = jnp.linalg.svd(windows, full_matrices=False)
    number_wrong = jnp.sum(singular > threshold * jnp.sqrt(number)) + hidden
    largest_number = (num_checks + 1) // 2
    fits = (number_wrong > signal.rank) & (number_wrong < size)
    fits &= 2 * number_wrong <= num_checks + signal.rank
    fits &= number <= largest_number
    is_last_of_number = hidden == _HIDDEN - 1
    next_number = number + is_last_of_number
    steering = jnp.where(places[:, None] < size, powers[:-1], 0)
    # There may be more checks than sums.
    num_others = len(evidence.left) - num_sums
    return _ErrorSpace(
        basis=jnp.pad(left, [(0, num_others), (0, num_others)]),
        columns=jnp.pad(steering, [(0, num_others), (0, 0)]),
        is_candidate=evidence.is_used,
        number=number_wrong,
        fits=fits,
        needs_gap=jnp.array(False),
        is_more=next_number <= largest_number,
    )


def _guessed(evidence: Evidence, signal: Signal) -> _Proposal:
    """Finds the smallest set of messages that explains the errors, if it is unique.

    If b corrupted messages have errors of μ dimensions, b - μ of them are guessed.
    Together with the guessed columns, the error space then contains all others. All
    sets of a size are tried before larger ones, up to b = (checks + μ - 1) / 2.
    """
    columns, has_check = normalized_columns(evidence)
    num_checks, num_messages = columns.shape
    limit = _ROUNDING * signal.threshold / signal.weakest
    columns = outside(signal.basis, columns)

    def explained(guess):
        basis = jnp.zeros((num_checks, 0), columns.dtype)
        for index in range(len(guess)):
            column = outside(basis, columns[:, guess[index]])
            norm = jnp.linalg.norm(column)
            column = column / jnp.where(norm > 0, norm, 1)
            # A column that already lies in the space adds nothing to the basis.
            column = jnp.where(norm > limit, column, 0)
            basis = jnp.concatenate([basis, column[:, None]], 1)
        distances = norms_along(outside(basis, columns), axis=0)
        distances = jnp.where(has_check, distances, jnp.inf)
        distances = distances.at[guess].set(0)
        wrong, stands_apart = nearest(distances, signal.rank + len(guess))
        furthest = jnp.max(jnp.where(wrong, distances, 0))
        is_new = jnp.all(jnp.linalg.norm(basis, axis=0) > 0)
        is_checked = has_check[guess].all()
        return wrong, stands_apart & is_new & is_checked & (furthest < limit)

    best = jnp.zeros(num_messages, bool)
    is_found = jnp.zeros((), bool)
    is_unique = jnp.zeros((), bool)
    total = 0
    for size in range(1, num_checks // 2):
        total += math.comb(num_messages, size)
        if total > _MOST_GUESSES:
            break
        sets = np.array([*itertools.combinations(range(num_messages), size)])
        wrong, fits = in_batches(jax.vmap(explained), jnp.asarray(sets), _AT_ONCE)
        num_wrong = signal.rank + size
        in_bounds = 2 * num_wrong <= evidence.num_left + signal.rank - 1
        fits &= in_bounds & ~is_found
        first = wrong[jnp.argmax(fits)]
        best = jnp.where(fits.any(), first, best)
        same = jnp.all((wrong == first) | ~fits[:, None])
        is_unique = jnp.where(fits.any(), same, is_unique)
        is_found |= fits.any()
    return _Proposal(wrong=best, fits=is_found & is_unique, is_more=jnp.array(False))
