"""What all functions of sketching have in common: jit, vmap and dtypes."""

import jax
import numpy as np
import pytest

from tests.catalogue import embeddings
from tests.catalogue.row import every_row
from tests.catalogue.rows import SKETCHING

TRACEABLE_ROWS = [row for row in SKETCHING if row.traceable]
# An embedding has no dtype: its products have that of the other factor.
ROWS_WITH_DTYPE = [row for row in TRACEABLE_ROWS if row not in embeddings.ROWS]


def as_float32(value):
    """Converts float64 arrays, and leaves keys and integers as they are."""
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        return value.astype(np.float32)
    return value


def others_like(value):
    """Other values that the function takes: another key, rows in reverse order."""
    if isinstance(value, jax.Array):
        return jax.random.fold_in(value, 1)
    if np.ndim(value) == 0:
        return value
    return np.flip(value, axis=0)


def numbers_in(result):
    """The arrays of a result, with PRNG keys as numbers."""
    arrays = []
    for leaf in jax.tree.leaves(result):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        arrays.append(np.asarray(jax.random.key_data(leaf) if is_key else leaf))
    return arrays


def check_equal(result, expected):
    for array, expected_array in zip(
        numbers_in(result), numbers_in(expected), strict=True
    ):
        np.testing.assert_allclose(array, expected_array, rtol=1e-6, atol=1e-9)


def split_of(row):
    """The arguments that may be traced, and a function of them."""
    traced = {name: row.arguments[name] for name in row.traceable}

    def function(traced):
        return row.make(**{**row.arguments, **traced})

    return traced, function


@every_row(TRACEABLE_ROWS)
def test_jit_gives_the_same_result(row, with_x64):
    traced, function = split_of(row)
    check_equal(jax.jit(function)(traced), function(traced))


@every_row(TRACEABLE_ROWS)
def test_vmap_gives_the_results_one_by_one(row, with_x64):
    traced, function = split_of(row)
    others = jax.tree.map(others_like, traced)
    batch = jax.tree.map(lambda *values: jax.numpy.stack(values), traced, others)
    results = jax.vmap(function)(batch)
    check_equal(jax.tree.map(lambda leaf: leaf[0], results), function(traced))
    check_equal(jax.tree.map(lambda leaf: leaf[1], results), function(others))


@pytest.mark.parametrize("x64", [False, True], indirect=True, ids=["x64-off", "x64-on"])
@every_row(ROWS_WITH_DTYPE)
def test_results_have_the_dtype_of_the_arguments(row, x64):
    arguments = jax.tree.map(as_float32, row.arguments)
    for leaf in jax.tree.leaves(row.make(**arguments)):
        assert leaf.dtype != np.float64, leaf.dtype


@every_row(ROWS_WITH_DTYPE)
def test_float64_arguments_give_float64(row, with_x64):
    has_floats = any(
        isinstance(value, np.ndarray) and value.dtype == np.float64
        for value in jax.tree.leaves(dict(row.arguments))
    )
    for leaf in jax.tree.leaves(row.make(**row.arguments)):
        assert not has_floats or leaf.dtype != np.float32, leaf.dtype
