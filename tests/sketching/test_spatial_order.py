"""The order of rows by a k-d tree."""

import jax
import numpy as np
import pytest

from jaxwgc import sketching


def recursive_order(rows, points):
    """Splits rows along the widest coordinate, so that the left half is a full tree."""
    if len(rows) == 1:
        return [*rows]
    places = points[rows]
    widest = np.argmax(np.ptp(places, axis=0))
    ordered = rows[np.argsort(places[:, widest], kind="stable")]
    half = 2 ** ((len(rows) - 1).bit_length() - 1)
    left = recursive_order(ordered[:half], points)
    right = recursive_order(ordered[half:], points)
    return left + right


@pytest.mark.parametrize(
    ("num_rows", "num_columns"), [(1, 2), (2, 1), (37, 3), (64, 2), (65, 2)]
)
def test_order_is_that_of_a_recursive_tree(num_rows, num_columns):
    """Every rule of the tree, against a recursive program."""
    points = np.random.default_rng(0).normal(size=(num_rows, num_columns))
    points = points.astype(np.float32)
    order = sketching.spatial_order(points)
    assert order.dtype == np.int32
    assert order.tolist() == recursive_order(np.arange(num_rows), points)


def test_subtrees_of_a_grid_are_squares():
    side = np.arange(8.0)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    order = np.asarray(sketching.spatial_order(points))
    squares = points[order].reshape(4, 16, 2)
    np.testing.assert_array_equal(np.ptp(squares, axis=1), 3)


def test_pivotal_sample_of_a_grid_has_a_point_in_every_square():
    """Sixteen points of 64 are one in each square of four."""
    side = np.arange(8)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    order = sketching.spatial_order(points)
    for seed in range(5):
        sample = sketching.sample_rows(
            jax.random.key(seed), np.ones(64), 16, "pivotal", order=order
        )
        squares = points[sample.indices] // 2
        assert len(np.unique(squares, axis=0)) == 16
