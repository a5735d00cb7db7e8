"""Points of least squares along a line."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.refinement import moved_point


@pytest.mark.parametrize("is_required", [False, True])
def test_moved_point_has_the_residual_of_its_place(is_required):
    """The norm is that of b - Ax, also if its gradient should not be zero."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 3))
    target = rng.normal(size=9)
    x = rng.normal(size=3)
    direction = rng.normal(size=3)
    required = rng.normal(size=3) if is_required else None
    dense = Dense(jnp.asarray(matrix))
    products = dense.line_products(jnp.asarray(target), x, direction)
    point, is_lost = moved_point(jnp.asarray(x), products, direction, 0.5, required)
    residual = target - matrix @ (x + 0.5 * direction)
    gradient = matrix.T @ residual
    if is_required:
        gradient -= required
    np.testing.assert_allclose(point.x, x + 0.5 * direction, rtol=1e-4)
    np.testing.assert_allclose(point.gradient, gradient, rtol=1e-3)
    np.testing.assert_allclose(point.squared, residual @ residual, rtol=1e-4)
    assert not is_lost
