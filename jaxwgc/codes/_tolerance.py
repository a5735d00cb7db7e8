"""Checks that an encoding matrix tolerates its number of stragglers."""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

# Residual in float64 up to which decoding is exact, relative to the norm of the target.
_EXACT = 1e-6


def patterns_lost(
    num_workers: int, num_stragglers: int, num_patterns: int
) -> Iterable[Sequence[int]]:
    """Yields sets of stragglers to check: all of them, or random ones if too many."""
    if math.comb(num_workers, num_stragglers) <= num_patterns:
        return itertools.combinations(range(num_workers), num_stragglers)
    draw = np.random.default_rng(0)
    return (
        sorted(draw.permutation(num_workers)[:num_stragglers].tolist())
        for _ in range(num_patterns)
    )


def check_tolerance(
    matrix: np.ndarray, target: np.ndarray, num_stragglers: int, num_patterns: int
) -> None:
    """Raises ValueError if a code does not decode without `num_stragglers` workers."""
    # Rows are scaled, because small rows would be lost in the rounding of large ones.
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    rows = matrix / np.where(largest > 0, largest, 1)
    for lost in patterns_lost(len(matrix), num_stragglers, num_patterns):
        responses = np.delete(rows, list(lost), axis=0).T
        weights = np.linalg.lstsq(responses, target, rcond=None)[0]
        residual = np.linalg.norm(responses @ weights - target)
        if not residual <= _EXACT * np.linalg.norm(target):
            raise ValueError(
                "num_stragglers must be a number that encoding_matrix tolerates; got "
                f"{num_stragglers}, and residual {residual:.2g} without workers "
                f"{list(lost)}"
            )
