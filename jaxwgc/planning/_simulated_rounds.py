"""Simulated rounds of candidates: durations, and decoded masks."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.tolerances import ROUNDING
from jaxwgc.codes import GradientCode
from jaxwgc.planning._candidates import Candidate
from jaxwgc.planning._clusters import Clusters
from jaxwgc.simulation import (
    ENDS_OF_FEW,
    ENDS_OF_MANY,
    FEW_TIMES,
    QUICKLY_COMPILED,
    Waiting,
    decode_bits,
    distinct_rows,
    end_rounds,
    in_batches,
    with_one_decoder,
)


class DecodedRounds(NamedTuple):
    """Decoded rounds of a candidate, one cluster after another.

    Attributes:
      error_of_masks: Decoding error over the squared norm of the target, by mask.
      weights_of_masks: Weights of the parts in the gradient, (masks, num_parts).
      masks: Index of the mask of each round, (rounds,).
    """

    error_of_masks: np.ndarray
    weights_of_masks: np.ndarray
    masks: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Decoding error of each round, (rounds,)."""
        return self.error_of_masks[self.masks]

    @property
    def effective_weights(self) -> np.ndarray:
        """Weights of the parts in the gradient of each round, (rounds, num_parts)."""
        return self.weights_of_masks[self.masks]


class SimulatedRounds(NamedTuple):
    """Simulated rounds of a candidate.

    Attributes:
      elapsed: Duration of each round, float64 (rounds,), of one cluster after another.
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
    candidates: Sequence[Candidate], clusters: Clusters
) -> list[SimulatedRounds]:
    """Simulates the rounds of candidates."""
    if not candidates:
        return []
    codes = {}
    places_of_codes: dict[int, list[int]] = {}
    for place, candidate in enumerate(candidates):
        if not candidate.is_exact:
            identity = id(candidate.code)
            codes[identity] = with_one_decoder(candidate.code)
            places_of_codes.setdefault(identity, []).append(place)
    decode = _DECODE_MANY
    end = ENDS_OF_MANY
    if clusters.num_simulated * candidates[0].code.num_workers <= FEW_TIMES:
        decode = _DECODE_FEW
        end = ENDS_OF_FEW
    ended = end_rounds(
        [Waiting.of(one.code, one.wait, one.late) for one in candidates],
        [clusters.drawn_for(one.code) for one in candidates],
        end,
    )
    for candidate, rounds in zip(candidates, ended, strict=True):
        if not np.all(rounds.time >= 0):
            raise ValueError(
                f"rules must end rounds at times of at least 0; {candidate.wait} for "
                f"code {candidate.name!r} ended a round at {rounds.time.min()}"
            )
    decoded: dict[int, DecodedRounds] = {}
    for identity, places in places_of_codes.items():
        call = functools.partial(decode, codes[identity])
        masks = [np.asarray(ended[place].masks) for place in places]
        decoded |= dict(zip(places, _decode_distinct(call, masks), strict=True))
    simulated = []
    for place, candidate in enumerate(candidates):
        rounds = ended[place]
        num_answers = _num_answers(candidate, np.asarray(rounds.masks))
        simulated.append(
            SimulatedRounds(
                elapsed=np.asarray(rounds.time, np.float64),
                num_answers=num_answers.mean(),
                num_late=float(np.mean(rounds.num_late)),
                decoded=decoded.get(place),
            )
        )
    return simulated


def _num_answers(candidate: Candidate, packed: np.ndarray) -> np.ndarray:
    """Returns the number of awaited messages of each packed mask, or of sums."""
    code = candidate.code
    if not code.allows_requests:
        return np.bitwise_count(packed).sum(axis=1)
    bits = np.unpackbits(packed, axis=1, count=code.num_messages)
    has_sum = bits.reshape(len(bits), code.num_workers, -1).any(axis=2)
    return has_sum.sum(axis=1)


def _decode_distinct(
    decode: Callable[[np.ndarray], tuple[jax.Array, jax.Array]],
    masks_of_candidates: Sequence[np.ndarray],
) -> Iterator[DecodedRounds]:
    """Yields the decoded rounds of each candidate of a code.

    Masks that occur in several rounds are decoded once.

    Args:
      decode: Maps a batch of packed masks to errors and effective weights.
      masks_of_candidates: Packed masks of the rounds of each candidate.
    """
    masks, places = distinct_rows(np.concatenate(masks_of_candidates))
    batches = jax.device_get([decode(batch) for batch in in_batches(masks)])
    errors, weights = zip(*batches, strict=True)
    error_of_masks = np.concatenate(errors, dtype=np.float64)
    weights_of_masks = np.concatenate(weights, dtype=np.float64)
    for places_of_candidate in np.split(places, len(masks_of_candidates)):
        yield DecodedRounds(
            error_of_masks=error_of_masks,
            weights_of_masks=weights_of_masks,
            masks=places_of_candidate,
        )


def _decode(code: GradientCode, packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns relative errors and effective weights of packed masks."""
    decoded = decode_bits(code, packed)
    residual = decoded.relative_residual
    is_rounding = residual <= ROUNDING[jnp.finfo(residual.dtype).bits]
    return jnp.where(is_rounding, 0, residual**2), decoded.effective_weights


_DECODE_MANY = jax.jit(_decode)
_DECODE_FEW = jax.jit(_decode, compiler_options=QUICKLY_COMPILED)
