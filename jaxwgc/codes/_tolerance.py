"""Checks that an encoding matrix survives as many stragglers as it is said to."""

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jaxwgc._validation import require

# What an exact code may miss of the norm of its target in float64.
_EXACT = 1e-6


def patterns_lost(
    num_workers: int, num_stragglers: int, num_patterns: int
) -> Iterable[Sequence[int]]:
    """Every set of s stragglers, or that many random ones if these are fewer."""
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
    """Every pattern of s stragglers decodes, or that many random ones if fewer."""
    # Rows of very different scale would be lost as rounding of the largest.
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    rows = matrix / np.where(largest > 0, largest, 1)
    for lost in patterns_lost(len(matrix), num_stragglers, num_patterns):
        answers = np.delete(rows, list(lost), axis=0).T
        weights = np.linalg.lstsq(answers, target, rcond=None)[0]
        miss = np.linalg.norm(answers @ weights - target)
        is_right = miss <= _EXACT * np.linalg.norm(target)
        given = f"{num_stragglers}, and a residual of {miss:.2g} without {list(lost)}"
        require(is_right, "num_stragglers", "be tolerated", given)
