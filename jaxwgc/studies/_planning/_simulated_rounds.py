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


class DecodedRounds(NamedTuple):
    """Decoded rounds of a candidate, float64.

    Attributes:
      error: Decoding error over the squared norm of the target, (clusters, rounds).
      effective_weights: Weights of the parts in the gradient,
        (clusters, rounds, num_parts).
    """

    error: np.ndarray
    effective_weights: np.ndarray


class SimulatedRounds(NamedTuple):
    """Simulated rounds of a candidate.

    Attributes:
      elapsed: Duration of each round, float64 (clusters, rounds).
      num_answers: Mean number of received messages; on request, the maximum number of
        sums.
      num_late: Mean number of messages of earlier rounds that arrived.
      decoded: Decoded rounds; None if the candidate is exact.
    """

    elapsed: np.ndarray
    num_answers: float
    num_late: float
    decoded: DecodedRounds | None


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
    decoded = _decode_distinct(candidates, ended, clusters.num_clusters)
    for place, (candidate, rounds) in enumerate(zip(candidates, ended, strict=True)):
        elapsed = np.asarray(rounds.time, np.float64)
        yield SimulatedRounds(
            elapsed=elapsed.reshape(clusters.num_clusters, -1),
            num_answers=_num_answers(candidate, rounds.masks).mean(),
            num_late=float(np.mean(rounds.num_late)),
            decoded=decoded.get(place),
        )


def _num_answers(candidate: Candidate, packed: np.ndarray) -> np.ndarray:
    """Returns the number of awaited messages of each packed mask, or of sums."""
    code = candidate.code
    if not code.allows_requests:
        return np.bitwise_count(packed).sum(axis=1)
    bits = np.unpackbits(packed, axis=1, count=code.num_messages)
    return bits.reshape(len(bits), code.num_workers, -1).any(axis=2).sum(axis=1)


def _decode_distinct(
    candidates: Sequence[Candidate], ended: Sequence[Rounds], num_clusters: int
) -> dict[int, DecodedRounds]:
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
        error, weights = (
            np.concatenate(own, dtype=np.float64) for own in zip(*batches, strict=True)
        )
        for place, own in zip(places, np.split(of_rounds, len(places)), strict=True):
            decoded[place] = DecodedRounds(
                error=error[own.reshape(num_clusters, -1)],
                effective_weights=weights[own.reshape(num_clusters, -1)],
            )
    return decoded


@functools.partial(jax.jit, compiler_options=QUICKLY_COMPILED)
def _decode(code, packed):
    """Returns relative errors and effective weights of packed masks."""
    decoded = decode_bits(code, packed)
    residual = decoded.relative_residual
    is_rounding = residual <= ROUNDING[jnp.finfo(residual.dtype).bits]
    return jnp.where(is_rounding, 0, residual**2), decoded.effective_weights
