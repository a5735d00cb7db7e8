"""Simulated rounds of candidates: durations, and decoded masks."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._targets import ROUNDING
from jaxwgc.studies._planning._candidates import Candidate
from jaxwgc.studies._planning._clusters import Clusters
from jaxwgc.studies._simulation._masks import decode_bits, distinct_rows, in_batches
from jaxwgc.studies._simulation._program_arguments import (
    QUICKLY_COMPILED,
    compile_together,
    with_one_decoder,
)
from jaxwgc.studies._simulation._rounds import (
    ENDS_OF_FEW,
    Rounds,
    Waiting,
    compile_rounds,
    end_rounds,
)


class SimulatedRounds(NamedTuple):
    """Simulated rounds of a candidate, float64.

    Attributes:
      elapsed: Duration of each round, (clusters, rounds).
      num_answers: Mean number of received messages; on request, the maximum number of
        sums.
      num_late: Mean number of messages of earlier rounds that arrived.
      error: Decoding error over the squared norm of the target, (clusters, rounds);
        None if the candidate is exact.
      effective_weights: Weights of the parts in the gradient, (clusters, rounds,
        num_parts); None if the candidate is exact.
    """

    elapsed: np.ndarray
    num_answers: float
    num_late: float
    error: np.ndarray | None
    effective_weights: np.ndarray | None


def simulate(
    candidates: Sequence[Candidate], clusters: Clusters, advance: Callable[[], Any]
) -> Iterator[SimulatedRounds]:
    """Yields the simulated rounds of each candidate; calls `advance` for each."""
    waiting = [Waiting.of(one.code, one.wait, one.late) for one in candidates]
    drawn = [clusters.in_random_order(one.code) for one in candidates]
    compile_rounds(waiting, drawn, ENDS_OF_FEW)
    ended = []
    for rounds in end_rounds(waiting, drawn, ENDS_OF_FEW):
        ended.append(rounds)
        advance()
    decoded = _decode_distinct(candidates, ended)
    shape = clusters.num_clusters, -1
    for place, (candidate, rounds) in enumerate(zip(candidates, ended, strict=True)):
        error = None
        weights = None
        if place in decoded:
            error = decoded[place].error.reshape(shape)
            weights = decoded[place].effective_weights
            weights = weights.reshape(*error.shape, -1)
        yield SimulatedRounds(
            elapsed=np.asarray(rounds.time, np.float64).reshape(shape),
            num_answers=_num_answers(candidate, rounds.masks).mean(),
            num_late=float(np.mean(rounds.num_late)),
            error=error,
            effective_weights=weights,
        )


def _num_answers(candidate: Candidate, packed: np.ndarray) -> np.ndarray:
    """Returns the number of awaited messages of each packed mask, or of sums."""
    code = candidate.code
    if not code.allows_requests:
        return np.bitwise_count(packed).sum(axis=1)
    bits = np.unpackbits(packed, axis=1, count=code.num_messages)
    return bits.reshape(len(bits), code.num_workers, -1).any(axis=2).sum(axis=1)


class _Decoded(NamedTuple):
    """Error (masks,) and effective weights (masks, num_parts) of masks, float64."""

    error: np.ndarray
    effective_weights: np.ndarray


def _decode_distinct(
    candidates: Sequence[Candidate], ended: Sequence[Rounds]
) -> dict[int, _Decoded]:
    """Decodes the rounds of candidates that are not exact, by their indices.

    Masks that occur in several rounds of a code are decoded once.
    """
    members: dict[int, list[int]] = {}
    for place, candidate in enumerate(candidates):
        if not candidate.is_exact:
            members.setdefault(id(candidate.code), []).append(place)
    calls = []
    places_of_rounds = []
    for places in members.values():
        masks, of_rounds = distinct_rows(
            np.concatenate([ended[place].masks for place in places])
        )
        code = with_one_decoder(candidates[places[0]].code)
        calls.append((code, masks))
        places_of_rounds.append(of_rounds)
    compile_together(_decode, [(code, in_batches(masks)[0]) for code, masks in calls])
    decoded = {}
    for places, of_rounds, (code, masks) in zip(
        members.values(), places_of_rounds, calls, strict=True
    ):
        batches = jax.device_get([_decode(code, batch) for batch in in_batches(masks)])
        error, weights = (np.concatenate(own) for own in zip(*batches, strict=True))
        for place, own in zip(places, np.split(of_rounds, len(places)), strict=True):
            decoded[place] = _Decoded(
                error=error[own].astype(np.float64),
                effective_weights=weights[own].astype(np.float64),
            )
    return decoded


@functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
def _decode(code, packed):
    """Returns relative errors and effective weights of packed masks."""
    decoded = decode_bits(code, packed)
    residual = decoded.relative_residual
    is_rounding = residual <= ROUNDING[jnp.finfo(residual.dtype).bits]
    return jnp.where(is_rounding, 0, residual**2), decoded.effective_weights
