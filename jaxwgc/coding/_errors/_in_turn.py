"""Location of corrupted messages, the largest errors first."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._some_masks import compute_if
from jaxwgc.coding._errors._evidence import (
    Evidence,
    Findings,
    Sample,
    Signal,
    deviates,
    distances_from,
    estimate,
    explains,
    find_signal,
    is_checked,
    nearest,
    normalized_columns,
)
from jaxwgc.coding._errors._searches import find_by_guessing, find_by_smoothing
from jaxwgc.decoders import Decoder


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

    @property
    def goes_on(self) -> jax.Array:
        return (self.attempt < 0) | (self.signal.rank > 0)


def find_in_turn(checks: Any, sample: Sample, decoders: Sequence[Decoder]) -> Findings:
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
    # The loop starts with zeros in place of evidence, so that the program of `estimate`
    # occurs only in the loop.
    shapes = jax.eval_shape(estimate, checks, sample, no_suspects)
    evidence = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zero = jnp.zeros_like(evidence.threshold)
    start = _Search(
        evidence, jnp.zeros_like(sample.norms), evidence.num_left, zero, jnp.array(-1)
    )
    step = functools.partial(_next, checks, sample, decoders)
    last = jax.lax.while_loop(lambda search: search.goes_on, step, start)
    is_explained = last.floor == 0
    has_check = is_checked(last.check_norms)
    return Findings(
        # Suspects with messages that agree with the others are exonerated.
        wrong=last.evidence.suspects & deviates(checks, sample, last.evidence),
        disputed=sample.mask & has_check & ~is_explained,
        is_checked=has_check,
        is_explained=is_explained,
        num_checks=last.num_checks,
    )


def _next(checks, sample, decoders, search):
    """Tries one explanation of the errors, and excludes the messages that it names."""
    evidence, check_norms, num_checks, floor, attempt = search
    signal = search.signal
    wrong, fits, is_more = _propose(sample, decoders, search, signal)
    is_first = attempt < 0
    suspects = evidence.suspects | wrong
    rest = compute_if(
        fits | is_first, lambda: estimate(checks, sample, suspects), evidence
    )
    is_found = is_first | (fits & explains(rest, signal.threshold, check_norms))
    goes_on = ~is_found & (signal.rank > 0)
    is_next = goes_on & is_more & (floor == 0)
    higher = jnp.where(floor < signal.rounding, signal.rounding, signal.weakest)
    evidence = jax.lax.cond(is_found, lambda: rest, lambda: evidence)
    return _Search(
        evidence,
        jnp.where(is_first, rest.check_norms, check_norms),
        jnp.where(is_first, rest.num_left, num_checks),
        jnp.where(is_found, 0, jnp.where(goes_on & ~is_next, higher, floor)),
        jnp.where(is_next, attempt + 1, 0),
    )


def _propose(sample, decoders, search, signal):
    """Proposes a set of corrupted messages.

    Returns a mask of the set, whether it explains the errors, and whether more attempts
    remain.

    Errors in general position are tried first, then errors that agree.
    """
    evidence, attempt = search.evidence, search.attempt

    def in_general_position():
        # Each corrupted message adds its column of the checks to the space that the
        # errors span. If the ranks agree, these are exactly the columns in that space.
        columns, has_check = normalized_columns(evidence)
        distances = distances_from(signal.basis, columns)
        distances = jnp.where(has_check, distances, jnp.inf)
        return *nearest(distances, signal.rank), jnp.array(True)

    def agreeing():
        for decoder in decoders:
            interpolation = decoder.interpolation(evidence.is_used)
            if interpolation is not None:
                return find_by_smoothing(
                    sample, evidence, signal, interpolation, attempt
                )
        return *find_by_guessing(evidence, signal), jnp.array(False)

    is_open = (signal.rank > 0) & (signal.rank < evidence.num_left)
    never = jnp.array(False)
    nothing = jnp.zeros_like(evidence.suspects), never, never
    found = compute_if(is_open & (attempt == 0), in_general_position, nothing)
    return compute_if(is_open & (attempt > 0), agreeing, found)
