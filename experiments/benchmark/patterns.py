"""Patterns of stragglers: random ones, structured ones, and the worst by search."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxwgc
from jaxwgc.decoders import Lagrange

# Climbs, which start from the worst masks of all kinds.
NUM_CLIMBS = 3
NUM_STEPS = 20
# Function of masks (number, num_workers) that returns an error per mask.
ErrorOf = Callable[[np.ndarray], np.ndarray]


def positions(code: jaxwgc.GradientCode) -> np.ndarray:
    """Returns the positions of workers on the circle of points."""
    [lagrange] = code.decoders_of(Lagrange)
    return lagrange.positions


def random_masks(
    seed: int, code: jaxwgc.GradientCode, number: int, num_lost: int | None = None
) -> np.ndarray:
    """Draws masks that lose `num_lost` workers, by default as many as tolerated."""
    if num_lost is None:
        num_lost = code.num_stragglers
    rng = np.random.default_rng(seed)
    order = rng.random((number, code.num_workers)).argsort(axis=1)
    ranks = order.argsort(axis=1)
    return ranks >= num_lost


def in_batches(function: Callable[..., Any], masks: np.ndarray, size: int = 256) -> Any:
    """Returns arrays of a function of masks, which runs on padded batches of one size.

    So one program serves any number of masks.
    """
    number, num_workers = masks.shape
    num_batches = math.ceil(number / size)
    padded = np.ones((num_batches * size, num_workers), bool)
    padded[:number] = masks
    results = [function(batch) for batch in np.split(padded, num_batches)]

    def joined(*leaves):
        return np.concatenate(leaves)[:number]

    return jax.tree.map(joined, *results)


def strides(code: jaxwgc.GradientCode) -> np.ndarray:
    """Returns masks that lose workers at equal distances, for every distance."""
    number = code.num_workers
    lost_sets = []
    for step in range(1, number):
        lost = step * np.arange(code.num_stragglers) % number
        is_distinct = len(np.unique(lost)) == len(lost)
        if is_distinct:
            lost_sets.append(lost)
    return _losing(number, lost_sets)


def neighbours(code: jaxwgc.GradientCode) -> np.ndarray:
    """Returns masks that lose one run or two runs of neighbours on the circle."""
    number = code.num_workers
    workers_around = np.argsort(positions(code))
    one_run = np.arange(code.num_stragglers)
    # The second half of the run is on the other side of the circle.
    two_runs = one_run.copy()
    two_runs[len(one_run) // 2 :] += number // 2
    lost_sets = []
    for shift in range(number):
        lost_sets.append(workers_around[(one_run + shift) % number])
        lost_sets.append(workers_around[(two_runs + shift) % number])
    return _losing(number, lost_sets)


def climb(
    seed: int,
    masks: np.ndarray,
    error_of: ErrorOf,
    num_steps: int,
    num_swaps: int = 256,
) -> np.ndarray:
    """Returns each mask after swaps of stragglers that increase the error most.

    Climbs end if no swap increases the error, or after `num_steps` swaps.
    """
    rng = np.random.default_rng(seed)
    climbed = masks.copy()
    for mask in climbed:
        largest = error_of(mask[None])[0]
        for _ in range(num_steps):
            swapped = np.tile(mask, (num_swaps, 1))
            rows = np.arange(num_swaps)
            newly_lost = rng.choice(np.flatnonzero(mask), num_swaps)
            swapped[rows, newly_lost] = False
            newly_received = rng.choice(np.flatnonzero(~mask), num_swaps)
            swapped[rows, newly_received] = True
            errors = error_of(swapped)
            index = errors.argmax()
            is_larger = errors[index] > largest
            if not is_larger:
                break
            largest = errors[index]
            mask[:] = swapped[index]
    return climbed


def search(
    seed: int,
    code: jaxwgc.GradientCode,
    masks: np.ndarray,
    error_of: ErrorOf,
    quick: bool,
) -> dict[str, np.ndarray]:
    """Returns the masks, those of other kinds, and climbs from the worst of all."""
    kinds = {"random": masks, "strides": strides(code), "neighbours": neighbours(code)}
    candidates = np.concatenate([*kinds.values()])
    worst_first = np.argsort(-error_of(candidates))
    num_climbs = 1 if quick else NUM_CLIMBS
    num_steps = 2 if quick else NUM_STEPS
    starts = candidates[worst_first[:num_climbs]]
    kinds["search"] = climb(seed, starts, error_of, num_steps)
    return kinds


def _losing(number: int, lost_sets: list[np.ndarray]) -> np.ndarray:
    """Returns masks (sets, number) that lose the workers of each set."""
    workers = np.arange(number)
    return np.array([~np.isin(workers, lost) for lost in lost_sets])
