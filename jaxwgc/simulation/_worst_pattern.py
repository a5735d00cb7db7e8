"""Search for the straggler pattern with the largest decoding error."""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from jaxwgc._common import validation
from jaxwgc._common.arrays import working
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Decoder
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.simulation._masks import decode_packed
from jaxwgc.simulation._program_arguments import with_one_decoder
from jaxwgc.stragglers import StragglerModel, fixed

# Difference up to which errors count as equal, in machine epsilons, relative to the
# squared norm of the target.
_NOISE = 100
# Number of random patterns from which the search climbs by ridge errors. Then the
# number of patterns, the worst of all starts and ends of climbs, from which the search
# goes on by decoding errors.
_NUM_RANDOM = 30
_NUM_STARTS = 5
# Ridge parameter, relative to the mean squared row norm of the encoding matrix. It is
# small enough that ridge errors follow least-squares errors. It is large enough that
# the loss of one of several copies of a part increases the ridge error.
_RIDGE = 0.01
# Number of masks decoded per call.
BATCH = 128


def worst_pattern(
    code: GradientCode,
    num_stragglers: int,
    decoder: DecoderLike = None,
    *,
    max_patterns: int = 50_000,
) -> np.ndarray:
    """Searches for the set of stragglers with the largest decoding error.

    Patterns have exactly s stragglers. Tries all C(n, s) patterns if there are at
    most `max_patterns`. Otherwise a search starts from random patterns. It swaps
    stragglers for responders as long as a swap raises the error of ridge
    regression. For the worst patterns, it then goes on as long as a swap raises the
    decoding error. The true worst pattern may be worse. For 100 workers a search
    takes seconds if conjugate gradients converge, and minutes if every pattern is
    decomposed.

    If no swap changes the decoding error (a block of copies is lost only with its last
    copy), the error of ridge regression decides, which grows with every straggler.

    The same code gives the same pattern. Patterns with errors that differ only by
    rounding tie, and the lexicographically first set of stragglers wins. Errors are
    computed in JAX's working precision.

    Args:
      code: Gradient code. Not traced.
      num_stragglers: s, at least 0 and less than the number of workers.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
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
      >>> received = jaxwgc.simulation.worst_pattern(code, 2)
      >>> received
      array([False,  True,  True, False,  True,  True])
      >>> float(jaxwgc.decoding(code, received).error.round(3))
      2.0

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (adversarial stragglers); Kadhe, Koyluoglu, Ramchandran,
      "Gradient coding based on block designs for mitigating adversarial stragglers",
      2019.
    """
    GradientCode.check(code, concrete="patterns are tried on the host")
    decoder = code.choose_decoder(decoder)
    num_stragglers = validation.check_stragglers(num_stragglers, code.num_workers)
    adversary = _Adversary(code, decoder)
    if math.comb(code.num_workers, num_stragglers) <= max(max_patterns, 1):
        sets = every_set(code.num_workers, num_stragglers)
        errors = adversary.errors(sets)
        lost = sets[np.argmax(errors >= errors.max() - adversary.tolerance)]
    else:
        lost = _search(adversary, num_stragglers)
    return masks_without(np.array([lost], int), code.num_workers)[0]


def adversarial(
    code: GradientCode,
    num_stragglers: int,
    decoder: DecoderLike = None,
    *,
    max_patterns: int = 50_000,
) -> StragglerModel:
    """Straggler model with the worst-case set of stragglers in every round.

    These are s fixed workers. The pattern is found once by
    `jaxwgc.simulation.worst_pattern`: exactly if there are few patterns of s
    stragglers, otherwise by a search. These workers are lost in every round. A
    round takes one unit.

    Args:
      code: Gradient code to attack. Not traced.
      num_stragglers: s, at least 0 and less than the number of workers.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      max_patterns: Maximum number of patterns for an exhaustive search.

    Returns:
      A straggler model. Times are 1 for workers that respond and infinity for the
      others, which have finished no parts. Keys are not used.

    Raises:
      ValueError: If s is negative or not less than the number of workers, the decoder
        does not fit the code, or (in `init` or `sample`) the number of workers differs
        from the code's.
      TypeError: If code is not a GradientCode or is traced, or an integer is not an
        int.

    Example:
      >>> import jax, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(6, num_stragglers=1)
      >>> model = jaxwgc.simulation.adversarial(code, 2)
      >>> arrivals, _ = model.sample(jax.random.key(0), model.init(6), code.loads)
      >>> arrivals.received
      Array([False,  True,  True, False,  True,  True], dtype=bool)

    References:
      Kadhe, Koyluoglu, Ramchandran, "Gradient coding based on block designs for
      mitigating adversarial stragglers", 2019; Charles, Papailiopoulos, Ellenberg,
      "Approximate gradient coding via sparse random graphs", 2017.
    """
    received = worst_pattern(code, num_stragglers, decoder, max_patterns=max_patterns)
    return fixed(received)


class _Adversary:
    """Decoding errors of one code for sets of stragglers, computed in batches."""

    def __init__(self, code: GradientCode, decoder: Decoder):
        self.num_workers = code.num_workers
        self._code = with_one_decoder(code, decoder)
        # The error of an optimal decoder is the minimum over all weights, so it never
        # exceeds the ridge error.
        self.ridge_error_is_bound = decoder.is_optimal
        self.ridge_errors = RidgeErrors(code)
        dtype = working(code.encoding_matrix).dtype
        self._scale = np.sum(np.asarray(code.target, np.float64) ** 2)
        self.tolerance = _NOISE * float(jnp.finfo(dtype).eps) * float(self._scale)

    def errors(self, lost: np.ndarray) -> np.ndarray:
        """Computes the decoding error for each set; NaN becomes infinity."""
        packed = packed_messages(self._code, masks_without(lost, self.num_workers))
        residuals = decode_packed(self._code, packed, batch_size=BATCH).residual
        errors = self._scale * residuals**2
        return np.where(np.isnan(errors), np.inf, errors)


def _search(adversary: _Adversary, num_stragglers: int) -> tuple[int, ...]:
    """Searches for the worst set of stragglers, starting from random sets."""
    generator = np.random.default_rng(0)
    candidates = set()
    for _ in range(_NUM_RANDOM):
        drawn = generator.permutation(adversary.num_workers)[:num_stragglers]
        lost = tuple(sorted(drawn.tolist()))
        candidates |= {lost, adversary.ridge_errors.climb(lost)}
    starts = sorted(candidates)
    order = np.argsort(-adversary.errors(np.array(starts)), kind="stable")
    errors: dict[tuple[int, ...], float] = {}
    for place in order[:_NUM_STARTS]:
        _improve(adversary, starts[place], errors)
    worst = max(errors.values()) - adversary.tolerance
    return min(lost for lost, error in errors.items() if error >= worst)


def _improve(
    adversary: _Adversary,
    lost: tuple[int, ...],
    errors: dict[tuple[int, ...], float],
) -> None:
    """Swaps stragglers for other workers as long as a swap increases the error.

    Adds the errors of all sets on the way to `errors`, and stops at a known set.
    """
    [error] = adversary.errors(np.array([lost]))
    # Swaps are compared with the best error so far, not with the current error. A swap
    # that increases the ridge error may lower the current error by rounding. Several
    # such swaps could go in a circle.
    record = float(error)
    while lost not in errors:
        errors[lost] = float(error)
        better = _better_swap(adversary, lost, record)
        if better is None:
            return
        lost, error = better
        record = max(record, error)


def _better_swap(
    adversary: _Adversary, lost: tuple[int, ...], record: float
) -> tuple[tuple[int, ...], float] | None:
    """Returns the best set after one swap and its error, or None if no swap is better.

    Swaps are tried in descending order of ridge errors, since these mostly have the
    largest errors: usually one batch suffices. To show that no swap is better, all are
    tried, or all with a sufficiently large ridge error.
    """
    ridge = adversary.ridge_errors
    noise = adversary.tolerance
    swaps = all_swaps(lost, adversary.num_workers)
    ridge_errors = ridge.after_swaps(lost, swaps)
    order = np.argsort(-ridge_errors, kind="stable")
    if adversary.ridge_error_is_bound:
        order = order[ridge_errors[order] > record - noise]
    ridge_error = ridge.of(lost) + ridge.tolerance
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        sets = [swapped(lost, swap) for swap in swaps[batch]]
        errors = adversary.errors(np.array(sets))
        best = int(np.argmax(errors >= errors.max() - noise))
        has_larger_error = errors.max() > record + noise
        ties = errors[best] >= record - noise
        has_larger_ridge_error = ridge_errors[batch[best]] > ridge_error
        if has_larger_error or (ties and has_larger_ridge_error):
            return sets[best], float(errors[best])
    return None


class RidgeErrors:
    """Decoding errors of ridge regression for sets of stragglers, in NumPy float64.

    The error of a set of stragglers is the minimum of ‖aᵀB - target‖² + ridge ‖a‖² over
    weights a that are zero at the stragglers. It is an upper bound of the least-squares
    error, and grows with every straggler. The least-squares error may not: a block of
    copies is lost only with its last copy. A swap changes it by an update of rank two,
    so that all swaps together need one inverse.

    Attributes:
      num_workers: Number of workers, n.
      tolerance: Errors that differ by less count as equal.
    """

    def __init__(self, code: GradientCode):
        dtype = np.complex128 if code.is_complex else np.float64
        matrix = np.asarray(code.encoding_matrix, dtype)
        ridge = _RIDGE * np.mean(np.sum(np.abs(matrix) ** 2, axis=1))
        self.num_workers = code.num_workers
        self._rows = matrix / np.sqrt(ridge if ridge > 0 else 1)
        # The segments of a part have separate targets. Errors are means over segments.
        target = np.asarray(code.target, np.float64)[:, None]
        segments = np.eye(code.num_segments) / np.sqrt(code.num_segments)
        self._targets = np.kron(target, segments)
        self.tolerance = 1e-9 * np.sum(self._targets**2)

    def of(self, lost: tuple[int, ...]) -> float:
        """Computes the ridge error of a set of stragglers."""
        return float(np.sum(self._targets * (self._inverse(lost) @ self._targets)).real)

    def after_swaps(self, lost: tuple[int, ...], swaps: np.ndarray) -> np.ndarray:
        """Computes the ridge error of the stragglers after each of the given swaps.

        Uses the Woodbury identity. A swap p changes B^H B by U_p S U_p^H, with U_p the
        rows of its workers, and S = -1 for the rows of the lost one, otherwise 1.
        """
        rows = self._rows
        messages = self._messages_of(swaps)
        sides = np.concatenate([self._targets, rows.conj().T], axis=1)
        solved = self._inverse(lost) @ sides
        products = rows @ solved
        num_targets = self._targets.shape[1]
        error = np.sum(self._targets * solved[:, :num_targets]).real
        systems = products[messages[:, :, None], num_targets + messages[:, None, :]]
        signs = np.repeat([-1.0, 1.0], len(rows) // self.num_workers)
        reached = products[messages, :num_targets]
        solutions = np.linalg.solve(systems + np.diag(signs), reached)
        return error - (reached.conj() * solutions).sum((1, 2)).real

    def climb(self, lost: tuple[int, ...]) -> tuple[int, ...]:
        """Applies the best swap repeatedly, until none increases the ridge error."""
        error = self.of(lost)
        while True:
            swaps = all_swaps(lost, self.num_workers)
            errors = self.after_swaps(lost, swaps)
            best = int(np.argmax(errors))
            if not errors[best] > error + self.tolerance:
                return lost
            lost = swapped(lost, swaps[best])
            error = errors[best]

    def _inverse(self, lost: tuple[int, ...]) -> np.ndarray:
        """Computes (I + BᴴB)⁻¹, where B has the scaled rows of workers that respond."""
        kept = np.delete(self._rows, self._messages_of(np.array(lost, int)), axis=0)
        return np.linalg.inv(np.eye(kept.shape[1]) + kept.conj().T @ kept)

    def _messages_of(self, workers: np.ndarray) -> np.ndarray:
        """Returns the row indices of given workers in the encoding matrix."""
        rows = np.arange(len(self._rows)).reshape(self.num_workers, -1)[workers]
        return rows.reshape(*workers.shape[:-1], workers.shape[-1] * rows.shape[-1])


def all_swaps(lost: tuple[int, ...], num_workers: int) -> np.ndarray:
    """Returns all swaps as rows (new straggler, straggler that responds instead).

    Swaps are ordered by straggler, then by responder.
    """
    others = np.setdiff1d(np.arange(num_workers), lost)
    back, gone = np.meshgrid(lost, others, indexing="ij")
    return np.stack([gone.ravel(), back.ravel()], axis=1).astype(int)


def swapped(lost: tuple[int, ...], swap: np.ndarray) -> tuple[int, ...]:
    """Returns the sorted set of stragglers after a swap."""
    gone, back = swap.tolist()
    return tuple(sorted({*lost, gone} - {back}))


def every_set(num_workers: int, num_stragglers: int) -> np.ndarray:
    """Returns all sets of `num_stragglers` workers, one per row."""
    sets = list(itertools.combinations(range(num_workers), num_stragglers))
    return np.array(sets, int).reshape(len(sets), num_stragglers)


def packed_messages(code: GradientCode, received: np.ndarray) -> np.ndarray:
    """Converts masks of workers to masks of their messages, as packed bits."""
    return np.packbits(received.repeat(code.messages_per_worker, axis=1), axis=1)


def masks_without(lost: np.ndarray, num_workers: int) -> np.ndarray:
    """Returns a mask of workers for each set of stragglers: False at the stragglers."""
    masks = np.ones((len(lost), num_workers), bool)
    np.put_along_axis(masks, lost, False, axis=1)
    return masks
