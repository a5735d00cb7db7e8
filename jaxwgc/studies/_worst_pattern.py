"""The stragglers that hurt a code most: exact where all can be tried, else searched."""

import dataclasses
import itertools
import math
from collections.abc import Container, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import working
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Decoder, DecoderLike
from jaxwgc.studies._many_masks import BATCH, decode_masks
from jaxwgc.studies._ridge_errors import RidgeErrors, all_swaps, swapped

# Errors that differ by less than that many eps of the target's squared norm are equal.
_NOISE = 100
# What the search starts from, besides the greedy pattern: random patterns as they are,
# which matter where the decoder is far from least squares, and the worst of those that
# were climbed to by ridge errors, which cost little.
_NUM_RANDOM = 2
_NUM_CLIMBED = 30
_NUM_WORST = 4


def worst_pattern(
    code: GradientCode,
    num_stragglers: int,
    decoder: DecoderLike = None,
    *,
    max_patterns: int = 50_000,
) -> np.ndarray:
    """The pattern of exactly s stragglers with the largest decoding error.

    Tries all C(n, s) patterns where there are at most `max_patterns`. Otherwise it
    searches: it adds straggler to straggler, the one that raises the error most each
    time, and then swaps stragglers for responders as long as a swap raises the error.
    Random patterns are improved in the same way, and the worst of all is taken. The
    true worst pattern may be worse. A search among 100 workers takes seconds where
    least squares converges, minutes where every pattern has to be decomposed.

    Where the error does not change (a block of copies is lost with the last of them
    only), the search goes by the error of ridge regression in the place of least
    squares, which grows with every straggler.

    The same code gives the same pattern. Patterns whose errors differ by rounding alone
    tie; of those that were found, the first is taken, in the lexicographic order of the
    sets of stragglers. Errors are computed in JAX's working precision.

    Args:
      code: a gradient code. Not traced.
      num_stragglers: s, at least 0 and less than the number of workers.
      decoder: as for `jaxwgc.decoding_weights`.
      max_patterns: the most patterns that are tried one and all.

    Returns:
      The mask `received` of that pattern, bool (num_workers,) in NumPy: False at the
      s stragglers.

    Raises:
      ValueError: where s is negative or not less than the number of workers, or the
        decoder does not fit the code.
      TypeError: where the code is none or is traced, or the integers are not ints.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(6, num_stragglers=1)
      >>> received = jaxwgc.studies.worst_pattern(code, 2)
      >>> received
      array([False,  True,  True, False,  True,  True])
      >>> float(jaxwgc.decoding_error(code, received).round(3))
      2.0

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (adversarial stragglers); Kadhe, Koyluoglu, Ramchandran,
      "Gradient coding based on block designs for mitigating adversarial stragglers",
      2019.
    """
    GradientCode.check(code, concrete="patterns are tried on the host")
    decoder = code.choose_decoder(decoder)
    num_stragglers = _validation.check_stragglers(num_stragglers, code.num_workers)
    adversary = _Adversary(code, decoder)
    if math.comb(code.num_workers, num_stragglers) <= max(max_patterns, 1):
        lost = _try_all(adversary, num_stragglers)
    else:
        lost = _search(adversary, num_stragglers)
    received = np.ones(code.num_workers, bool)
    received[list(lost)] = False
    return received


class _Found(NamedTuple):
    """A set of stragglers, sorted, with what it does to the code."""

    error: float
    ridge_error: float
    lost: tuple[int, ...]


class _Adversary:
    """Evaluates sets of stragglers of one code, in batches of one shape."""

    def __init__(self, code: GradientCode, decoder: Decoder):
        self.num_workers = code.num_workers
        self._code = dataclasses.replace(code, decoders=(decoder,))
        # The least error that any weights have is never above the ridge error.
        self.ridge_error_is_bound = decoder.is_optimal
        self.ridge_errors = RidgeErrors(code)
        dtype = working(code.encoding_matrix).dtype
        scale = float(np.sum(np.asarray(code.target, np.float64) ** 2))
        self.tolerance = _NOISE * float(jnp.finfo(dtype).eps) * scale

    def errors(self, lost: np.ndarray) -> np.ndarray:
        """Decoding errors (number,) of the sets (number, s); NaN counts as infinite."""
        masks = np.ones((len(lost), self.num_workers), bool)
        np.put_along_axis(masks, lost, False, axis=1)
        by_message = masks.repeat(self._code.messages_per_worker, axis=1)
        errors = decode_masks(self._code, by_message).errors
        return np.where(np.isnan(errors), np.inf, errors)


def _try_all(adversary: _Adversary, num_stragglers: int) -> tuple[int, ...]:
    workers = range(adversary.num_workers)
    sets = itertools.combinations(workers, num_stragglers)
    errors = [adversary.errors(batch) for batch in _arrays(sets, num_stragglers)]
    errors = np.concatenate(errors)
    first = int(np.argmax(errors >= errors.max() - adversary.tolerance))
    sets = itertools.combinations(workers, num_stragglers)
    return next(itertools.islice(sets, first, None))


def _arrays(sets: Iterator[tuple[int, ...]], size: int) -> Iterator[np.ndarray]:
    """The sets in arrays (BATCH, size), the last one shorter."""
    while batch := list(itertools.islice(sets, BATCH)):
        yield np.array(batch, int).reshape(len(batch), size)


def _search(adversary: _Adversary, num_stragglers: int) -> tuple[int, ...]:
    generator = np.random.default_rng(0)

    def draw():
        drawn = generator.permutation(adversary.num_workers)[:num_stragglers]
        return tuple(sorted(drawn.tolist()))

    climb = adversary.ridge_errors.climb
    climbed = sorted({climb(draw()) for _ in range(_NUM_CLIMBED)})
    order = np.argsort(-adversary.errors(np.array(climbed)), kind="stable")
    starts = [_greedy(adversary, num_stragglers)]
    starts += [draw() for _ in range(_NUM_RANDOM)]
    starts += [climbed[place] for place in order[:_NUM_WORST]]
    best = {}
    for start in starts:
        # Where a climb ended before, it would end again.
        if start not in best:
            candidate = _improve(adversary, start, best)
            best[candidate.lost] = candidate
    worst = max(candidate.error for candidate in best.values()) - adversary.tolerance
    return min(
        candidate.lost for candidate in best.values() if candidate.error >= worst
    )


def _greedy(adversary: _Adversary, num_stragglers: int) -> tuple[int, ...]:
    """Adds straggler to straggler, the most harmful one each time."""
    lost = ()
    for _ in range(num_stragglers):
        others = np.setdiff1d(np.arange(adversary.num_workers), lost).astype(int)
        errors = adversary.errors(np.array([(*lost, other) for other in others]))
        tied = errors >= errors.max() - adversary.tolerance
        ridge_errors = adversary.ridge_errors.after_losing(lost, others)
        ridge_errors = np.where(tied, ridge_errors, -np.inf)
        largest = ridge_errors >= ridge_errors.max() - adversary.ridge_errors.tolerance
        lost = tuple(sorted((*lost, int(others[np.argmax(largest)]))))
    return lost


def _improve(
    adversary: _Adversary, lost: tuple[int, ...], known: Container[tuple[int, ...]]
) -> _Found:
    """Swaps a straggler for a responder as long as that does more harm.

    Stops at a set that is known.
    """
    [error] = adversary.errors(np.array([lost]))
    best = _Found(error, adversary.ridge_errors.of(lost), lost)
    # Never below the largest error so far: a ridge error cannot win back what rounding
    # took, and the climb ends.
    record = error
    while best.lost not in known:
        better = _better_swap(adversary, best, record)
        if better is None:
            break
        best = better
        record = max(record, best.error)
    return best


def _better_swap(adversary: _Adversary, best: _Found, record: float) -> _Found | None:
    """The best swap of the first batch that has one better than `best`.

    Swaps are tried from the largest ridge error on, where the largest errors mostly
    are: a batch is enough then. To see that no swap is better, all are tried, or all
    whose ridge error allows a larger error.
    """
    swaps = all_swaps(best.lost, adversary.num_workers)
    ridge_errors = adversary.ridge_errors.after_swaps(best.lost, swaps)
    order = np.argsort(-ridge_errors, kind="stable")
    if adversary.ridge_error_is_bound:
        order = order[ridge_errors[order] > record - adversary.tolerance]
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        sets = [swapped(best.lost, swap) for swap in swaps[batch]]
        errors = adversary.errors(np.array(sets))
        candidate = int(np.argmax(errors >= errors.max() - adversary.tolerance))
        ridge_error = ridge_errors[batch[candidate]]
        more_error = errors.max() > record + adversary.tolerance
        as_much = errors[candidate] >= record - adversary.tolerance
        more_ridge_error = (
            ridge_error > best.ridge_error + adversary.ridge_errors.tolerance
        )
        if more_error or (as_much and more_ridge_error):
            return _Found(float(errors[candidate]), float(ridge_error), sets[candidate])
    return None
