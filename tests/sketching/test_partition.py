"""Splitting into parts, and the probabilities of parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwgc import sketching


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(1, 1), (7, 1), (7, 2), (7, 3), (7, 6), (7, 7), (12, 5)]))
def test_rows_keep_their_order_and_sizes_differ_by_one(sizes):
    num_rows, num_parts = sizes
    rows = {
        "x": np.arange(1, 2 * num_rows + 1, dtype=np.float32).reshape(num_rows, 2),
        "y": np.arange(1, num_rows + 1),
    }
    parts, row_weights = sketching.partition(rows, num_parts)
    size = -(-num_rows // num_parts)
    assert parts["x"].shape == (num_parts, size, 2)
    assert parts["y"].shape == row_weights.shape == (num_parts, size)
    real = np.asarray(row_weights) == 1
    assert np.all(real | (np.asarray(row_weights) == 0))
    # Real rows first, longer parts first: the sizes of numpy.array_split.
    sizes = [len(part) for part in np.array_split(rows["y"], num_parts)]
    np.testing.assert_array_equal(real, np.arange(size) < np.array(sizes)[:, None])
    for name in rows:
        np.testing.assert_array_equal(np.asarray(parts[name])[real], rows[name])
        assert not np.asarray(parts[name])[~real].any()


def test_whole_parts_are_a_reshape():
    rows = jnp.arange(24.0).reshape(12, 2)
    parts, row_weights = sketching.partition(rows, 4)
    np.testing.assert_array_equal(parts, rows.reshape(4, 3, 2))
    np.testing.assert_array_equal(row_weights, np.ones((4, 3)))
    operations = str(jax.make_jaxpr(lambda x: sketching.partition(x, 4)[0])(rows))
    assert "reshape" in operations
    assert not any(name in operations for name in ("gather", "pad", "concatenate"))


def test_dtypes(x64):
    rows = {
        "half": np.ones(5, np.float16),
        "label": np.ones(5, np.int8),
        "flag": np.ones(5, bool),
    }
    parts, row_weights = sketching.partition(rows, 2)
    assert {name: leaf.dtype for name, leaf in parts.items()} == {
        "half": np.float16,
        "label": np.int8,
        "flag": np.bool_,
    }
    assert row_weights.dtype == np.float32
    default = np.float64 if x64 else np.float32
    assert sketching.partition(rows["label"], 2)[1].dtype == default
    assert sketching.partition(np.ones(5), 2)[1].dtype == default


@pytest.mark.parametrize("num_parts", [1, 3, 4, 11])
def test_probabilities_are_shares_of_the_same_parts(num_parts, x64):
    scores = np.random.default_rng(0).random(11)
    expected = np.array([p.sum() for p in np.array_split(scores, num_parts)])
    probabilities = sketching.partition_probabilities(scores, num_parts)
    assert probabilities.dtype == (np.float64 if x64 else np.float32)
    np.testing.assert_allclose(probabilities, expected / scores.sum(), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)


def test_probabilities_of_huge_scores():
    probabilities = sketching.partition_probabilities(jnp.full(4, 3e38), 2)
    np.testing.assert_allclose(probabilities, [0.5, 0.5])


def test_traced_scores():
    scores = np.array(
        [[1.0, 2, 3, 4], [1, -0.5, 1, 1], [0, 0, 0, 0], [1, np.inf, 1, 1]]
    )
    shares = jax.vmap(lambda row: sketching.partition_probabilities(row, 2))
    probabilities = jax.jit(shares)(scores)
    np.testing.assert_allclose(probabilities[0], [0.3, 0.7], rtol=1e-6)
    assert np.isnan(probabilities[1:]).all()
