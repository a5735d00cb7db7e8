"""Splitting into parts, their probabilities, and weighted parts that were drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from tests.catalogue.problems import SAMPLE


@pytest.mark.parametrize(
    ("num_rows", "num_parts"),
    [(1, 1), (7, 2), (7, 6), (7, 7), (12, 4)],
)
def test_rows_keep_their_order_and_sizes_differ_by_one(num_rows, num_parts):
    column = np.arange(1, num_rows + 1)
    rows = {"x": np.stack([column, -column], axis=1), "y": column}
    parts, row_weights = jaxwgc.parts.partition(rows, num_parts)
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
    partition = jax.make_jaxpr(lambda rows: jaxwgc.parts.partition(rows, 4)[0])
    operations = str(partition(np.ones((12, 2))))
    assert "reshape" in operations
    assert not any(name in operations for name in ("gather", "pad", "concatenate"))


def test_dtypes(x64):
    dtypes = np.float16, np.int8, np.bool_
    parts, row_weights = jaxwgc.parts.partition(
        [np.ones(6, dtype) for dtype in dtypes], 3
    )
    assert [part.dtype for part in parts] == [*dtypes]
    assert row_weights.dtype == np.float32
    default = np.float64 if x64 else np.float32
    for rows in (np.ones(5, np.int8), np.ones(5)):
        assert jaxwgc.parts.partition(rows, 2)[1].dtype == default
    for scale, label in (("row_weights", np.int8), ("rows", default)):
        small = jaxwgc.parts.weighted_parts(SAMPLE, parts, row_weights, scale=scale)
        assert [part.dtype for part in small.parts[:2]] == [np.float16, label]
        assert small.parts[1].shape == (2, 2)
        assert small.row_weights.dtype == small.weights.dtype == np.float32


@pytest.mark.parametrize("num_parts", [1, 3, 4, 11])
def test_probabilities_are_shares_of_the_same_parts(num_parts, x64):
    scores = np.random.default_rng(0).random(11)
    expected = np.array([p.sum() for p in np.array_split(scores, num_parts)])
    probabilities = jaxwgc.parts.partition_probabilities(scores, num_parts)
    assert probabilities.dtype == (np.float64 if x64 else np.float32)
    np.testing.assert_allclose(probabilities, expected / scores.sum(), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)


def test_probabilities_of_huge_scores():
    probabilities = jaxwgc.parts.partition_probabilities(jnp.full(4, 3e38), 2)
    np.testing.assert_allclose(probabilities, [0.5, 0.5])


NUM_PARTS = 6


def make_data(num_rows=24, num_columns=3):
    random = np.random.default_rng(0)
    x = random.standard_normal((num_rows, num_columns))
    x *= 1 + np.arange(num_rows)[:, None] % 7
    return {"x": x, "y": random.standard_normal(num_rows)}


def probabilities_of(data):
    scores = np.sum(np.linalg.qr(data["x"])[0] ** 2, axis=1)
    return jaxwgc.parts.partition_probabilities(scores, NUM_PARTS)


def squared_loss(theta, rows, row_weights):
    return jnp.sum(row_weights * (rows["x"] @ theta - rows["y"]) ** 2)


@jax.jit
@jax.value_and_grad
def weighted_value_and_grad(theta, small):
    losses_of = jax.vmap(squared_loss, in_axes=(None, 0, 0))
    losses = losses_of(theta, small.parts, small.row_weights)
    return jnp.sum(small.weights * losses)


def sketch_matrix(indices, factors, num_rows):
    """The paper's D S^T: for each slot its part's rows of the identity, rescaled."""
    size = num_rows // NUM_PARTS
    rows = np.eye(num_rows).reshape(NUM_PARTS, size, num_rows)[indices]
    return (rows * factors[:, None, None]).reshape(-1, num_rows)


@pytest.mark.parametrize(
    ("rule", "num_rows", "rescaling", "scale"),
    [
        ({"num_distinct": 4}, NUM_PARTS, "unbiased", "row_weights"),
        ({"num_distinct": 4}, 4 * NUM_PARTS, "paper", "rows"),
        ({"num_draws": 9}, NUM_PARTS, "paper", "rows"),
        ({"num_draws": 9}, 4 * NUM_PARTS, "unbiased", "row_weights"),
    ],
)
def test_theorem_5_1_and_corollary_5_2(rule, num_rows, rescaling, scale, with_x64):
    # One row a part is the theorem, more are the corollary.
    data = make_data(num_rows)
    probabilities = probabilities_of(data)
    sample = jaxwgc.parts.sample_partitions(jax.random.key(1), probabilities, **rule)
    indices = np.asarray(sample.indices)
    counts = np.asarray(sample.counts)
    size = num_rows // NUM_PARTS
    num = counts.sum() if rescaling == "unbiased" else (counts > 0).sum() * size

    def factors(parts):
        return 1 / np.sqrt(num * np.asarray(probabilities, np.float64)[parts])

    # One slot a draw, in any order, against each part once with its count.
    draws = np.random.default_rng(2).permutation(np.repeat(indices, counts))
    repeated = sketch_matrix(draws, factors(draws), num_rows)

    theta = np.array([0.5, -1.0, 2.0])

    def objective_and_gradient(sketch):
        residual = sketch @ (data["x"] @ theta - data["y"])
        return residual @ residual, 2 * (sketch @ data["x"]).T @ residual

    parts, row_weights = jaxwgc.parts.partition(data, NUM_PARTS)
    small = jaxwgc.parts.weighted_parts(sample, parts, row_weights, rescaling, scale)
    value, gradient = objective_and_gradient(repeated)
    result, found_gradient = weighted_value_and_grad(theta, small)
    np.testing.assert_allclose(result, value, rtol=1e-12)
    tolerance = 1e-12 * np.abs(gradient).max()
    np.testing.assert_allclose(found_gradient, gradient, rtol=0, atol=tolerance)


def test_uneven_parts_count_their_real_rows():
    # Sizes 3, 2, 2.
    parts, row_weights = jaxwgc.parts.partition(np.arange(1.0, 8.0), 3)
    sample = jaxwgc.parts.PartitionSample(
        indices=np.array([0, 2, 1]),
        counts=np.array([4, 1, 0]),
        probabilities=np.array([0.5, 0.25, 0.25], np.float32),
        num_draws=np.array(5),
    )
    small = jaxwgc.parts.weighted_parts(sample, parts, row_weights, "paper", "rows")
    factors = np.array([1 / np.sqrt(5 * 0.5), 1 / np.sqrt(5 * 0.25), 0])[:, None]
    expected = np.array([[1, 2, 3], [6, 7, 0], [4, 5, 0]])
    np.testing.assert_allclose(small.parts, expected * factors, rtol=1e-6)
    np.testing.assert_array_equal(small.row_weights, [[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(small.weights, [4, 1, 0])
    unscaled = jaxwgc.parts.weighted_parts(sample, parts, row_weights, "paper")
    np.testing.assert_array_equal(unscaled.parts, expected)
    weights = np.asarray(small.row_weights) * factors**2
    np.testing.assert_allclose(unscaled.row_weights, weights, rtol=1e-6)
