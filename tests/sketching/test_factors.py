"""Factors of small matrices."""

import numpy as np

from jaxwgc.sketching._linalg.factors import factors_of_small


def test_a_matrix_with_one_nan_is_not_decomposed():
    """What a decomposition of NaN returns is undefined, and may be finite."""
    small = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    assert factors_of_small(small, 1e-6).rank == (3, False)
    small[2, 1] = np.nan
    factors = factors_of_small(small, 1e-6)
    assert not factors.finite
    assert factors.rank == (0, True)
    assert not factors.singular_values.any()
