"""The fast Walsh-Hadamard transform against SciPy's Hadamard matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwgc.sketching import hadamard_transform
from jaxwgc.sketching._embeddings._hadamard import next_power_of_two


def expected(array):
    """By the matrix, with columns for the rows that there are."""
    size = 1
    while size < len(array):
        size *= 2
    matrix = scipy.linalg.hadamard(size)[:, : len(array)]
    return np.tensordot(matrix, array, axes=1)


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-9, 10, size=shape)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 9, 33, 1024, 1025, 4096])
def test_every_size(num_rows):
    """Exact for integers; the last two take several blocks."""
    array = integers(num_rows, 2)
    found = hadamard_transform(array.astype(np.float32))
    np.testing.assert_array_equal(found, expected(array))


@settings(deadline=None, max_examples=15)
@given(
    num_rows=st.integers(1, 70),
    trailing=st.sampled_from([(), (1,), (3,), (2, 2), (0,)]),
    seed=st.integers(0, 99),
)
def test_any_shape(num_rows, trailing, seed):
    array = integers(num_rows, *trailing, seed=seed)
    found = hadamard_transform(array)
    assert found.shape == (next_power_of_two(num_rows), *trailing)
    np.testing.assert_array_equal(found, expected(array))


@pytest.mark.parametrize("num_rows", [8, 2048])
def test_twice_is_a_multiple(num_rows, x64):
    array = np.random.default_rng(0).normal(size=(num_rows, 3))
    twice = hadamard_transform(hadamard_transform(array)) / num_rows
    eps = np.finfo(np.float64 if x64 else np.float32).eps
    assert twice.dtype == (np.float64 if x64 else np.float32)
    np.testing.assert_allclose(twice, array, atol=20 * eps * np.abs(array).max())


def test_complex():
    array = integers(5, 2) + 1j * integers(5, 2, seed=1)
    found = hadamard_transform(array.astype(np.complex64))
    np.testing.assert_array_equal(found, expected(array))


def test_half_precision_stays():
    assert hadamard_transform(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("num_rows", [6, 1500])
def test_transformations(num_rows):
    """jit, vmap, and a gradient, which is the transposed matrix."""
    arrays = integers(2, num_rows, 2).astype(np.float32)
    batch = jax.jit(jax.vmap(hadamard_transform))(arrays)
    np.testing.assert_array_equal(batch[1], expected(arrays[1]))
    weights = integers(next_power_of_two(num_rows), 2, seed=1).astype(np.float32)
    gradient = jax.grad(lambda array: jnp.vdot(weights, hadamard_transform(array)))
    np.testing.assert_array_equal(gradient(arrays[0]), expected(weights)[:num_rows])


@pytest.mark.parametrize("array", [np.float32(1), np.zeros((0, 2))])
def test_wrong_arguments(array):
    with pytest.raises(ValueError, match="array must have at least one row"):
        hadamard_transform(array)
