"""Copies of messages, which corrupted ones do not equal."""

import numpy as np

from jaxwgc.coding._errors._majority import find_copies


def test_copies_are_rows_that_are_equal_up_to_scale():
    matrix = np.array([[1, 2, 0], [0, 0, 3], [-2, -4, 0], [0, 0, 1.5]])
    labels, signs = find_copies(matrix)
    assert labels[0] == labels[2] != labels[1] == labels[3]
    np.testing.assert_array_equal(signs, [1, 1, -1, 1])
    assert find_copies(np.array([[1.0, 0], [0, 1], [1, 1]])) is None
