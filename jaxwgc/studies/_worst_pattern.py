"""Search for the straggler pattern with the largest decoding error."""

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

# Errors count as equal below this many eps of the target's squared norm.
_NOISE = 100
# Number of starting points of the search besides the greedy pattern: random patterns,
# for decoders far from least squares, and the worst of cheap climbs by ridge errors.
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
    """Returns the pattern of exactly s stragglers with the largest decoding error.

    Tries all C(n, s) patterns if there are at most `max_patterns`. Otherwise a search
    adds one straggler at a time, always the one that raises the error most. It then
    swaps stragglers for responders as long as a swap raises the error. Random patterns
    are improved in this way, too, and the worst of all patterns is returned. The true
    worst pattern may be worse. For 100 workers a search takes seconds if conjugate
    gradients converge, and minutes if every pattern is decomposed.

    If the error does not change (a block of copies is lost only with its last copy),
    the search uses the error of ridge regression, which grows with every straggler.

    The same code gives the same pattern. Patterns with errors that differ only by
    rounding tie, and the lexicographically first set of stragglers wins. Errors are
    computed in JAX's working precision.

    Args:
      code: Gradient code. Not traced.
      num_stragglers: s, at least 0 and less than the number of workers.
      decoder: See `jaxwgc.decoding_weights`.
      max_patterns: Maximum number of patterns for an exhaustive search.

    Returns:
      The mask `received` of that pattern, bool (num_workers,) in NumPy: False at the s
      stragglers.

    Raises:
      ValueError: If s is negative or not less than the number of workers, or the
        decoder does not fit the code.
      TypeError: If code is not a GradientCode or is traced, or an integer is not an
        int.

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
    """A sorted set of stragglers and its error."""

    error: float
    ridge_error: float
    lost: tuple[int, ...]


class _Adversary:
    """Evaluates sets of stragglers of one code, in batches of equal shape."""

    def __init__(self, code: GradientCode, decoder: Decoder):
        self.num_workers = code.num_workers
        self._code = dataclasses.replace(code, decoders=(decoder,))
        # The minimum error over all weights never exceeds the ridge error.
        self.ridge_error_is_bound = decoder.is_optimal
        self.ridge_errors = RidgeErrors(code)
        dtype = working(code.encoding_matrix).dtype
        scale = float(np.sum(np.asarray(code.target, np.float64) ** 2))
        self.tolerance = _NOISE * float(jnp.finfo(dtype).eps) * scale

    def errors(self, lost: np.ndarray) -> np.ndarray:
        """Computes errors (number,) of the sets (number, s); NaN counts as infinite."""
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
    """Yields the sets in arrays (BATCH, size), the last one shorter."""
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
        # A climb that starts where one has ended would end there again.
        if start not in best:
            candidate = _improve(adversary, start, best)
            best[candidate.lost] = candidate
    worst = max(candidate.error for candidate in best.values()) - adversary.tolerance
    return min(
        candidate.lost for candidate in best.values() if candidate.error >= worst
    )


def _greedy(adversary: _Adversary, num_stragglers: int) -> tuple[int, ...]:
    """Adds one straggler at a time, always the one that raises the error most."""
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
    """Swaps stragglers for responders as long as this increases the error.

    Stops at a known set.
    """
    [error] = adversary.errors(np.array([lost]))
    best = _Found(error, adversary.ridge_errors.of(lost), lost)
    # Never below the largest error so far: a ridge error cannot regain what rounding
    # lost, so that the climb ends.
    record = error
    while best.lost not in known:
        better = _better_swap(adversary, best, record)
        if better is None:
            break
        best = better
        record = max(record, best.error)
    return best


def _better_swap(adversary: _Adversary, best: _Found, record: float) -> _Found | None:
    """Returns the best swap of the first batch with a better one than `best`.

    Swaps are tried in descending order of ridge errors, since these mostly have the
    largest errors: usually one batch suffices. To show that no swap is better, all are
    tried, or all with a sufficiently large ridge error.
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
