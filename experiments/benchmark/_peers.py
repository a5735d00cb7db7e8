"""Decoding in NumPy, one mask at a time."""

import numpy as np

import jaxwgc
from experiments.benchmark._reed_solomon import positions


def numpy_lstsq(code: jaxwgc.GradientCode, mask: np.ndarray) -> np.ndarray:
    """Returns the weights of one mask by least squares, as without a closed form."""
    rows = code.encoding_matrix[mask]
    return np.linalg.lstsq(rows.T, np.ones(code.num_parts), rcond=None)[0]


def numpy_lagrange(code: jaxwgc.GradientCode, mask: np.ndarray) -> np.ndarray:
    """The products of Lagrange's formula for one mask."""
    points = np.exp(2j * np.pi * positions(code)[mask] / code.num_workers)
    differences = points - points[:, None]
    np.fill_diagonal(differences, 1)
    factors = points / differences
    np.fill_diagonal(factors, 1)
    return factors.prod(axis=1)
