"""Copies of messages, which corrupted ones do not equal."""

import numpy as np

from jaxwgc.codes import GradientCode
from jaxwgc.coding import ErrorLocator


def copies_in(matrix):
    return ErrorLocator.of(GradientCode.from_matrix(np.array(matrix))).copies


def test_copies_are_rows_that_are_equal_up_to_scale():
    labels, signs = copies_in([[1, 2, 0], [0, 0, 3], [-2, -4, 0], [0, 0, 1.5]])
    assert labels[0] == labels[2] != labels[1] == labels[3]
    np.testing.assert_array_equal(signs, [1, 1, -1, 1])
    assert copies_in([[1.0, 0], [0, 1], [1, 1]]) is None
