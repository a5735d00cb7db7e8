"""Location of corrupted messages, the largest errors first."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.arrays import Array, product
from jaxwgc._common.some_rows import compute_if, in_batches
from jaxwgc.coding._evidence import (
    UNCHECKED,
    Evidence,
    Findings,
    Sample,
    Signal,
    deviates,
    distances_from,
    estimate,
    explains,
    find_signal,
    nearest,
    normalized_columns,
    outside,
)
from jaxwgc.decoders import Decoder, Interpolation

# Number of assumptions for each number of windows: that 0, 1 or 2 error directions are
# hidden in the noise.
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
      check_norms: Norms of the checks of each message if none is left out.
      num_checks: Number of checks if none is left out, int scalar.
      floor: Singular value below which unexplained errors count as noise.
      attempt: Number of explanations tried for the current errors; -1 before the first
        evidence.
    """

    evidence: Evidence
    check_norms: jax.Array
    num_checks: jax.Array
    floor: jax.Array
    attempt: jax.Array

    @property
    def signal(self) -> Signal:
        evidence = self.evidence
        threshold = jnp.maximum(evidence.threshold, self.floor)
        return find_signal(evidence.left, evidence.singular, threshold)


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
    shapes = jax.eval_shape(estimate, checks, sample, no_suspects)
    evidence = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zero = jnp.zeros_like(evidence.threshold)
    start = _Search(
        evidence=evidence,
        check_norms=jnp.zeros_like(sample.norms),
        num_checks=evidence.num_left,
        floor=zero,
        attempt=jnp.array(-1),
    )

    def is_unfinished(search):
        return (search.attempt < 0) | (search.signal.rank > 0)

    step = functools.partial(_next, checks, sample, decoders)
    last = jax.lax.while_loop(is_unfinished, step, start)
    is_explained = last.floor == 0
    has_check = last.check_norms > UNCHECKED
    return Findings(
        # Suspects with messages that agree with the others are exonerated.
        wrong=last.evidence.suspects & deviates(checks, sample, last.evidence),
        disputed=sample.mask & has_check & ~is_explained,
        is_checked=has_check,
        is_explained=is_explained,
        num_checks=last.num_checks,
    )


def _next(
    checks: Array, sample: Sample, decoders: Sequence[Decoder], search: _Search
) -> _Search:
    """Tries one explanation of the errors, and excludes the messages that it names."""
    evidence = search.evidence
    check_norms = search.check_norms
    floor = search.floor
    signal = search.signal
    proposal = _propose(sample, decoders, search, signal)
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
    return _Search(
        evidence=jax.lax.cond(is_found, lambda: rest, lambda: evidence),
        check_norms=jnp.where(is_first, rest.check_norms, check_norms),
        num_checks=jnp.where(is_first, rest.num_left, search.num_checks),
        floor=jnp.where(is_found, 0, raised),
        attempt=jnp.where(is_next, search.attempt + 1, 0),
    )


def _propose(
    sample: Sample, decoders: Sequence[Decoder], search: _Search, signal: Signal
) -> _Proposal:
    """Proposes a set of corrupted messages.

    Errors in general position are tried first, then errors that agree.
    """
    evidence = search.evidence
    attempt = search.attempt

    def in_general_position():
        # The errors span the columns of the checks at the corrupted messages. If the
        # ranks agree, no other columns are in this space.
        columns, has_check = normalized_columns(evidence)
        distances = distances_from(signal.basis, columns)
        distances = jnp.where(has_check, distances, jnp.inf)
        wrong, stands_apart = nearest(distances, signal.rank)
        return _Proposal(wrong=wrong, fits=stands_apart, is_more=jnp.array(True))

    def agreeing():
        for decoder in decoders:
            interpolation = decoder.interpolation(evidence.is_used)
            if interpolation is not None:
                return _smoothed(sample, search, signal, interpolation)
        wrong, fits = _guessed(evidence, signal)
        return _Proposal(wrong=wrong, fits=fits, is_more=jnp.array(False))

    is_open = (signal.rank > 0) & (signal.rank < evidence.num_left)
    never = jnp.array(False)
    nothing = _Proposal(jnp.zeros_like(evidence.suspects), fits=never, is_more=never)
    proposal = compute_if(is_open & (attempt == 0), in_general_position, nothing)
    return compute_if(is_open & (attempt > 0), agreeing, proposal)


def _smoothed(
    sample: Sample, search: _Search, signal: Signal, interpolation: Interpolation
) -> _Proposal:
    """Proposes a set of corrupted messages by spatial smoothing.

    Returns a mask of the set, whether it explains the errors, and whether more attempts
    remain.

    Messages are values of polynomials at points αᵢ. With weights aᵢ that interpolate at
    0, the sums of aᵢ αᵢˡ⁺¹ times message i are zero for l below the number of checks.
    An error in message i adds a geometric sequence in αᵢ. Windows of these sequences,
    side by side, span as many dimensions as there are corrupted messages (spatial
    smoothing).

    Args:
      sample: Projected messages.
      search: State of the search. Each attempt, from 1, allows more windows and more
        corrupted messages.
      signal: Signal of the evidence.
      interpolation: From `Decoder.interpolation`.
    """
    weights, points, num_coefficients = interpolation
    is_there = search.evidence.is_used
    norms = sample.norms
    rows = jnp.where(is_there[:, None], sample.rows, 0)
    num_sums = len(points) - num_coefficients
    num_checks = is_there.sum() - num_coefficients
    weights = weights / jnp.max(jnp.abs(weights))
    # NumPy computes the powers of NumPy points, so that they are rounded only once.
    powers = points ** np.arange(num_sums + 1)[:, None]
    powers = jnp.asarray(powers, rows.dtype)
    sums = product(powers[1:], weights[:, None] * norms[:, None] * rows)
    places = jnp.arange(num_sums)
    sums = jnp.where((places < num_checks)[:, None], sums, 0)
    threshold = signal.threshold * jnp.linalg.norm(weights * norms)
    # The sums are reduced to one column for each dimension above the noise.
    left, singular, _ = jnp.linalg.svd(sums, full_matrices=False)
    directions = find_signal(left, singular, threshold)
    sums = (directions.basis * directions.singular)[:, : num_sums // 2]

    number, hidden = jnp.divmod(search.attempt - 1, _HIDDEN)
    number += 2
    size = num_checks - number + 1
    columns = places[: (num_sums + 1) // 2]
    shifted = places[:, None] + columns
    is_in = (places[:, None] < size) & (columns < number)
    windows = sums[jnp.clip(shifted, 0, num_sums - 1)]
    windows = jnp.where(is_in[:, :, None], windows, 0).reshape(num_sums, -1)
    left, singular, _ = jnp.linalg.svd(windows, full_matrices=False)
    number_wrong = jnp.sum(singular > threshold * jnp.sqrt(number)) + hidden
    steering = jnp.where(places[:, None] < size, powers[:-1], 0)
    steering /= jnp.sqrt(size.astype(threshold.dtype))
    # If there are few checks, there are fewer vectors than sums.
    basis = jnp.where(jnp.arange(left.shape[1]) < number_wrong, left, 0)
    distances = jnp.where(is_there, distances_from(basis, steering), jnp.inf)
    wrong, _ = nearest(distances, number_wrong)
    largest_number = (num_checks + 1) // 2
    fits = (number_wrong > signal.rank) & (number_wrong < size)
    fits &= 2 * number_wrong <= num_checks + signal.rank
    fits &= number <= largest_number
    is_last_of_number = hidden == _HIDDEN - 1
    next_number = number + is_last_of_number
    is_last = next_number > largest_number
    return _Proposal(wrong=wrong, fits=fits, is_more=~is_last)


def _guessed(evidence: Evidence, signal: Signal) -> tuple[jax.Array, jax.Array]:
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
        distances = jnp.where(has_check, distances_from(basis, columns), jnp.inf)
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
    return best, is_found & is_unique
