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


def stacked(value, other):
    """Both in one array."""
    stack = jax.numpy.stack if isinstance(value, jax.Array) else np.stack
    return stack([value, other])


def numbers_in(result):
    """The arrays of a result, with PRNG keys as numbers."""
    arrays = []
    for leaf in jax.tree.leaves(result):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        arrays.append(np.asarray(jax.random.key_data(leaf) if is_key else leaf))
    return arrays


def split_of(row, arguments):
    """The arguments that may be traced, and a function of them."""
    traced = {name: arguments[name] for name in row.traceable}
    return traced, lambda traced: row.make(**{**arguments, **traced})


@every_row(TRACEABLE_ROWS)
def test_jit_and_vmap_give_the_results_one_by_one(row, with_x64):
    traced, function = split_of(row, row.arguments)
    others = jax.tree.map(others_like, traced)
    batch = jax.tree.map(stacked, traced, others)
    results = numbers_in(jax.jit(jax.vmap(function))(batch))
    for number, arguments in enumerate((traced, others)):
        expected = numbers_in(function(arguments))
        for array, expected_array in zip(results, expected, strict=True):
            np.testing.assert_allclose(
                array[number], expected_array, rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("x64", [False, True], indirect=True, ids=["x64-off", "x64-on"])
@every_row(ROWS_WITH_DTYPE)
def test_results_have_the_dtype_of_the_arguments(row, x64):
    """Shapes and dtypes tell, so that nothing is computed."""
    arguments = jax.tree.map(as_float32, dict(row.arguments))
    traced, function = split_of(row, arguments)
    for leaf in jax.tree.leaves(jax.eval_shape(function, traced)):
        assert leaf.dtype != np.float64, leaf.dtype


@every_row(ROWS_WITH_DTYPE)
def test_float64_arguments_give_float64(row, with_x64):
    has_floats = any(
        isinstance(value, np.ndarray) and value.dtype == np.float64
        for value in jax.tree.leaves(dict(row.arguments))
    )
    for leaf in jax.tree.leaves(row.make(**row.arguments)):
        assert not has_floats or leaf.dtype != np.float32, leaf.dtype
