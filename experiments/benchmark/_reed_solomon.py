"""The codes whose accuracy and speed are measured, and masks for them."""

from collections.abc import Callable

import numpy as np

import jaxwgc
from jaxwgc.decoders import Lagrange

# Climbs start from the worst masks of all kinds.
NUM_CLIMBS = 3
NUM_STEPS = 20
# Of each of several masks.
Error = Callable[[np.ndarray], np.ndarray]
CODES = ((50, 20, 30), (100, 100, 10), (200, 200, 20))


def positions(code: jaxwgc.GradientCode) -> np.ndarray:
    """Where workers sit on the circle of points."""
    return code.decoders_of(Lagrange)[0].positions


def random_masks(seed: int, code: jaxwgc.GradientCode, number: int) -> np.ndarray:
    """Masks that lose exactly as many workers as the code tolerates."""
    rng = np.random.default_rng(seed)
    order = rng.random((number, code.num_workers)).argsort(axis=1).argsort(axis=1)
    return order >= code.num_stragglers


def batches(masks: np.ndarray, size: int = 256) -> np.ndarray:
    """In batches of one size, filled up: one program serves any number of masks."""
    padded = np.ones((-(-len(masks) // size) * size, masks.shape[1]), bool)
    padded[: len(masks)] = masks
    return padded.reshape(-1, size, masks.shape[1])


def strides(code: jaxwgc.GradientCode) -> np.ndarray:
    """Masks that lose workers at equal distances, for every distance."""
    number, lost = code.num_workers, np.arange(code.num_stragglers)
    sets = [step * lost % number for step in range(1, number)]
    return _losing(number, [group for group in sets if len(set(group)) == len(group)])


def neighbours(code: jaxwgc.GradientCode) -> np.ndarray:
    """Masks that lose neighbours on the circle of points, in one run and in two."""
    number, lost = code.num_workers, np.arange(code.num_stragglers)
    around = np.argsort(positions(code))
    halves = lost + (lost >= len(lost) // 2) * (number // 2)
    places = [(place + at) % number for at in range(number) for place in (lost, halves)]
    return _losing(number, [around[place] for place in places])


def climb(seed, masks, error, num_steps, num_swaps=256) -> np.ndarray:
    """Each mask after swaps of a straggler for another, the worst of many each time.

    As long as a swap does more harm, and at most `num_steps` of them.
    """
    rng = np.random.default_rng(seed)
    climbed = masks.copy()
    for mask in climbed:
        worst = error(mask[None])[0]
        for _ in range(num_steps):
            swapped = np.tile(mask, (num_swaps, 1))
            places = np.arange(num_swaps)
            swapped[places, rng.choice(np.flatnonzero(mask), num_swaps)] = False
            swapped[places, rng.choice(np.flatnonzero(~mask), num_swaps)] = True
            errors = error(swapped)
            best = errors.argmax()
            if not errors[best] > worst:
                break
            worst = errors[best]
            mask[:] = swapped[best]
    return climbed


def search(seed, code, masks, error, quick) -> dict[str, np.ndarray]:
    """The masks, those of the other kinds, and what climbs from the worst reach."""
    kinds = {"random": masks, "strides": strides(code), "neighbours": neighbours(code)}
    every = np.concatenate([*kinds.values()])
    starts = every[np.argsort(-error(every))[: 1 if quick else NUM_CLIMBS]]
    steps = 2 if quick else NUM_STEPS
    return kinds | {"search": climb(seed, starts, error, steps)}


def _losing(number: int, sets: list[np.ndarray]) -> np.ndarray:
    masks = np.ones((len(sets), number), bool)
    for mask, lost in zip(masks, sets, strict=True):
        mask[lost] = False
    return masks
