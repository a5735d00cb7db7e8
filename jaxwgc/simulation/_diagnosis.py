"""Costs of a code and its decoding errors under stragglers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc._common.text import aligned
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.simulation import _worst_pattern
from jaxwgc.simulation._masks import decode_packed

# Default maximum number of rows of a diagnosis, one row per number of stragglers.
_NUM_ROWS = 8
# Levels of the quantiles of errors.
_LEVELS = (0.5, 0.9, 0.99)
_REASON = "patterns are enumerated on the host"


class Diagnosis(NamedTuple):
    """Costs and decoding errors of a code; `print` shows a table.

    Errors are `jaxwgc.Decoding.error` over the squared norm of the target: 0 for exact
    decoding, 1 for no gradient. Rows are numbers of stragglers.

    Attributes:
      parts_per_worker: Mean number of parts per worker.
      max_parts: Largest number of parts of a worker.
      copies: Mean number of copies per part.
      min_copies: Smallest number of copies of a part.
      message_length: Numbers that a worker sends per round, in all of its messages,
        relative to the number of parameters.
      num_stragglers: Number of stragglers, int (rows,).
      is_exhaustive: Whether all patterns were decoded, otherwise random ones, bool
        (rows,).
      mean_error: Mean over the patterns, (rows,).
      standard_error: Standard error of `mean_error`, (rows,); 0 if all patterns were
        decoded.
      error_quantiles: Quantiles of errors over the patterns, of levels 0.5, 0.9 and
        0.99, (rows, 3).
      worst_error: Error of the pattern found by `worst_pattern`, (rows,).
      worst_received: Mask of responses of that pattern, bool (rows, num_workers).
      noise_amplification: Noise in the decoded gradient, relative to that in the sum of
        the partial gradients, root mean square over the patterns, (rows,). Every
        message has noise in proportion to its size, as from rounding. 1 for uncoded
        workers without stragglers.

    Example:
      The worst two stragglers are the workers with both copies of a block:

      >>> import jax
      >>> from jaxwgc import codes, simulation
      >>> code = codes.fractional_repetition(6, num_stragglers=1)
      >>> diagnosis = simulation.diagnose(code, jax.random.key(0), [1, 2])
      >>> diagnosis.mean_error.round(3), diagnosis.worst_error.round(3)
      (array([0.   , 0.067]), array([0.   , 0.333]))
      >>> diagnosis.worst_received[1]
      array([False,  True,  True, False,  True,  True])
    """

    parts_per_worker: float
    max_parts: int
    copies: float
    min_copies: int
    message_length: float
    num_stragglers: np.ndarray
    is_exhaustive: np.ndarray
    mean_error: np.ndarray
    standard_error: np.ndarray
    error_quantiles: np.ndarray
    worst_error: np.ndarray
    worst_received: np.ndarray
    noise_amplification: np.ndarray

    def __str__(self) -> str:
        lines = [
            f"parts per worker {self.parts_per_worker:g} (max {self.max_parts}), "
            f"copies per part {self.copies:g} (min {self.min_copies}), "
            f"message length {self.message_length:.3g} gradients",
            "errors over the squared norm of the target, ± standard error; (all): all",
            "patterns decoded; worst: by search; noise: amplification of rounding",
        ]
        if self.min_copies == 0:
            lines.insert(1, "some parts are on no worker: they are lost in every round")
        levels = [f"{level:.0%}" for level in _LEVELS]
        rows = [["stragglers", "mean", "±", *levels, "worst", "noise"]]
        for row, number in enumerate(self.num_stragglers):
            suffix = " (all)" if self.is_exhaustive[row] else ""
            quantiles = [_number(quantile) for quantile in self.error_quantiles[row]]
            rows.append(
                [
                    f"{number}{suffix}",
                    _number(self.mean_error[row]),
                    _number(self.standard_error[row]),
                    *quantiles,
                    _number(self.worst_error[row]),
                    f"{self.noise_amplification[row]:.2f}",
                ]
            )
        return "\n".join([*lines, aligned(rows, to_right=True)])


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-4 else f"{value:.0e}"


def diagnose(
    code: GradientCode,
    key: jax.Array,
    num_stragglers: int | Sequence[int] | None = None,
    *,
    num_patterns: int = 1000,
    decoder: DecoderLike = None,
) -> Diagnosis:
    """Computes the costs of a code, and its decoding errors under stragglers.

    For each number of stragglers, all patterns are decoded if there are at most
    `num_patterns`, otherwise random ones. For codes with equal numbers of workers, the
    same key gives the same patterns.

    Args:
      code: Gradient code. Not traced.
      key: PRNG key of either kind.
      num_stragglers: Numbers of stragglers, from 0 to n - 1. None for up to eight
        numbers from 0 to n / 2.
      num_patterns: Number of random patterns for each, at least 2.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.

    Returns:
      A `Diagnosis`, in JAX's working precision.

    Raises:
      ValueError: If a number of stragglers is not from 0 to n - 1, if num_patterns is
        below 2, or if the decoder does not fit the code.
      TypeError: If an argument has the wrong type, or code is traced.

    Example:
      >>> import jax
      >>> from jaxwgc import codes, simulation
      >>> code = codes.fractional_repetition(6, num_stragglers=1)
      >>> print(simulation.diagnose(code, jax.random.key(0), [1, 2]))
      parts per worker 2 (max 2), copies per part 2 (min 2), message length 1 gradients
      errors over the squared norm of the target, ± standard error; (all): all
      patterns decoded; worst: by search; noise: amplification of rounding
      stragglers    mean       ±     50%     90%     99%   worst  noise
         1 (all)  0.0000  0.0000  0.0000  0.0000  0.0000  0.0000   1.00
         2 (all)  0.0667  0.0000  0.0000  0.3333  0.3333  0.3333   0.97

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 (decoding error, random and adversarial).
    """
    GradientCode.check(code, concrete=_REASON)
    code = dataclasses.replace(code, decoders=(code.choose_decoder(decoder),))
    num_patterns = validation.check_int("num_patterns", num_patterns, minimum=2)
    numbers = _numbers_of_stragglers(num_stragglers, code.num_workers)
    bits = jax.random.bits(key, (4,))
    array_validation.check_concrete("key", bits, _REASON)
    generator = np.random.default_rng(np.asarray(bits))
    draws = generator.random((num_patterns, code.num_workers))
    # Each pattern ranks the workers at random. The lowest ranks straggle.
    ranks = draws.argsort(axis=1).argsort(axis=1)
    rows = []
    for number in numbers:
        is_exhaustive = math.comb(code.num_workers, number) <= num_patterns
        if is_exhaustive:
            sets = _worst_pattern.every_set(code.num_workers, number)
            patterns = _worst_pattern.masks_without(sets, code.num_workers)
        else:
            patterns = ranks >= number
        worst = _worst_pattern.worst_pattern(code, number)
        rows.append(_row(code, patterns, worst, is_exhaustive))
    copies = np.asarray(code.assignment).sum(axis=0)
    return Diagnosis(
        parts_per_worker=float(np.mean(code.parts_per_worker)),
        max_parts=int(np.max(code.parts_per_worker)),
        copies=float(copies.mean()),
        min_copies=int(copies.min()),
        message_length=code.messages_per_worker / code.num_segments,
        num_stragglers=np.array(numbers),
        **{name: np.array([row[name] for row in rows]) for name in rows[0]},
    )


def _row(
    code: GradientCode, patterns: np.ndarray, worst: np.ndarray, is_exhaustive: bool
) -> dict[str, Any]:
    """Computes a row of the diagnosis: the errors for one number of stragglers.

    Args:
      code: Gradient code.
      patterns: Which workers respond, bool (patterns, num_workers).
      worst: Pattern found by `worst_pattern`, bool (num_workers,).
      is_exhaustive: Whether `patterns` are all patterns.
    """
    masks = np.concatenate([worst[None], patterns])
    packed = _worst_pattern.packed_messages(code, masks)
    decoded = decode_packed(code, packed, batch_size=_worst_pattern.BATCH)
    errors = decoded.residual**2
    errors_of_patterns = errors[1:]
    spread = 0.0 if is_exhaustive else errors_of_patterns.std(ddof=1)
    # The search may not be exhaustive, so a random pattern may be worse than `worst`.
    hardest = errors.argmax()
    return {
        "is_exhaustive": is_exhaustive,
        "mean_error": errors_of_patterns.mean(),
        "standard_error": spread / math.sqrt(len(patterns)),
        "error_quantiles": np.quantile(errors_of_patterns, _LEVELS),
        "worst_error": errors[hardest],
        "worst_received": masks[hardest],
        "noise_amplification": math.sqrt(decoded.noise[1:].mean()),
    }


def _numbers_of_stragglers(numbers: Any, num_workers: int) -> list[int]:
    """Checks the number of stragglers of each row, or chooses them if None."""
    if numbers is None:
        last = num_workers // 2
        evenly = np.linspace(0, last, min(last + 1, _NUM_ROWS))
        return np.unique(evenly.round().astype(int)).tolist()
    listed = [numbers] if np.ndim(numbers) == 0 else list(numbers)
    if not listed:
        raise ValueError(f"num_stragglers must have at least one number; got {listed}")
    return [validation.check_stragglers(number, num_workers) for number in listed]
