"""The codes whose accuracy and speed are measured, and masks for them."""

import numpy as np

import jaxwgc

CODES = ((50, 20, 30), (100, 100, 10), (200, 200, 20))


def random_masks(seed: int, code: jaxwgc.GradientCode, number: int) -> np.ndarray:
    """Masks that lose exactly as many workers as the code tolerates."""
    rng = np.random.default_rng(seed)
    order = rng.random((number, code.num_workers)).argsort(axis=1).argsort(axis=1)
    return order >= code.num_stragglers
