"""Weighted parts: unbiased sums, and equality with sketches of repeated rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import sketching

NUM_PARTS = 6


def make_data(num_rows=24, num_columns=3):
    random = np.random.default_rng(0)
    x = random.standard_normal((num_rows, num_columns)) * (
        1 + np.arange(num_rows)[:, None] % 7
    )
    return {"x": x, "y": random.standard_normal(num_rows)}


def probabilities_of(data):
    scores = np.sum(np.linalg.qr(data["x"])[0] ** 2, axis=1)
    return sketching.partition_probabilities(scores, NUM_PARTS)


def squared_loss(theta, rows, row_weights):
    return jnp.sum(row_weights * (rows["x"] @ theta - rows["y"]) ** 2)


@jax.jit
def weighted_value_and_grad(theta, small):
    return jax.value_and_grad(weighted_loss)(theta, small)


def weighted_loss(theta, small):
    losses = jax.vmap(squared_loss, in_axes=(None, 0, 0))(
        theta, small.parts, small.row_weights
    )
    return jnp.sum(small.weights * losses)


def sketch_matrix(indices, factors, num_rows):
    """The paper's D S^T: for each slot its part's rows of the identity, rescaled."""
    size = num_rows // NUM_PARTS
    rows = np.eye(num_rows).reshape(NUM_PARTS, size, num_rows)[indices]
    return (rows * factors[:, None, None]).reshape(-1, num_rows)


@pytest.mark.parametrize(
    ("rescaling", "scale"), [("unbiased", "row_weights"), ("paper", "rows")]
)
@pytest.mark.parametrize("num_rows", [NUM_PARTS, 4 * NUM_PARTS])
@pytest.mark.parametrize("rule", [{"num_distinct": 4}, {"num_draws": 9}])
def test_theorem_5_1_and_corollary_5_2(rule, num_rows, rescaling, scale, with_x64):
    # One row a part is the theorem, more are the corollary.
    data = make_data(num_rows)
    probabilities = probabilities_of(data)
    sample = sketching.sample_partitions(jax.random.key(1), probabilities, **rule)
    indices, counts = np.asarray(sample.indices), np.asarray(sample.counts)
    size = num_rows // NUM_PARTS
    num = counts.sum() if rescaling == "unbiased" else (counts > 0).sum() * size

    def factors(parts):
        return 1 / np.sqrt(num * np.asarray(probabilities, np.float64)[parts])

    # One slot a draw, in any order, against each part once with its count.
    draws = np.random.default_rng(2).permutation(np.repeat(indices, counts))
    repeated = sketch_matrix(draws, factors(draws), num_rows)
    counted = sketch_matrix(indices, np.sqrt(counts) * factors(indices), num_rows)

    theta = np.array([0.5, -1.0, 2.0])

    def objective_and_gradient(sketch):
        residual = sketch @ (data["x"] @ theta - data["y"])
        return residual @ residual, 2 * (sketch @ data["x"]).T @ residual

    parts, row_weights = sketching.partition(data, NUM_PARTS)
    small = sketching.weighted_parts(
        sample, parts, row_weights, rescaling=rescaling, scale=scale
    )
    rtol = 1e-12
    value, gradient = objective_and_gradient(repeated)
    for other, other_gradient in [
        objective_and_gradient(counted),
        weighted_value_and_grad(theta, small),
    ]:
        np.testing.assert_allclose(other, value, rtol=rtol)
        np.testing.assert_allclose(
            other_gradient, gradient, rtol=rtol, atol=rtol * np.abs(gradient).max()
        )


def test_sketch_is_the_identity_on_average(with_x64):
    # Seven rows in three parts: sizes 3, 2, 2 and filled-up rows. Rows of the identity
    # make the weighted sum of squares the diagonal of S^T S.
    probabilities = np.array([0.6, 0.3, 0.1])
    parts, row_weights = sketching.partition(np.eye(7), 3)

    def gram(key):
        sample = sketching.sample_partitions(key, probabilities, num_draws=5)
        small = sketching.weighted_parts(sample, parts, row_weights)
        return jnp.einsum(
            "j,ji,jia,jib->ab",
            small.weights,
            small.row_weights,
            small.parts,
            small.parts,
        )

    num = 20_000
    grams = np.asarray(
        jax.jit(jax.vmap(gram))(jax.random.split(jax.random.key(3), num))
    )
    diagonal = np.einsum("taa->ta", grams)
    np.testing.assert_array_equal(grams.sum((1, 2)), grams.trace(axis1=1, axis2=2))
    error = diagonal.std(0) / np.sqrt(num)
    assert np.all(np.abs(diagonal.mean(0) - 1) < 4 * error)
    assert np.all(error < 0.03)


def test_uneven_parts_count_their_real_rows():
    # Sizes 3, 2, 2.
    parts, row_weights = sketching.partition(np.arange(1.0, 8.0), 3)
    sample = sketching.PartitionSample(
        indices=np.array([0, 2, 1]),
        counts=np.array([4, 1, 0]),
        probabilities=np.array([0.5, 0.25, 0.25], np.float32),
        num_draws=np.array(5),
    )
    small = sketching.weighted_parts(sample, parts, row_weights, "paper", "rows")
    factors = np.array([1 / np.sqrt(5 * 0.5), 1 / np.sqrt(5 * 0.25), 0])
    np.testing.assert_allclose(
        small.parts,
        np.array([[1, 2, 3], [6, 7, 0], [4, 5, 0]]) * factors[:, None],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(small.row_weights, [[1, 1, 1], [1, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(small.weights, [4, 1, 0])
    unscaled = sketching.weighted_parts(sample, parts, row_weights, "paper")
    np.testing.assert_array_equal(unscaled.parts, [[1, 2, 3], [6, 7, 0], [4, 5, 0]])
    np.testing.assert_allclose(
        unscaled.row_weights,
        np.asarray(small.row_weights) * factors[:, None] ** 2,
        rtol=1e-6,
    )


def test_dtypes_of_weighted_parts(x64):
    rows = {"x": np.ones((6, 2), np.float16), "label": np.arange(6, dtype=np.int8)}
    parts, row_weights = sketching.partition(rows, 3)
    small = sketching.weighted_parts(SAMPLE, parts, row_weights)
    assert small.parts["x"].dtype == np.float16
    assert small.parts["label"].dtype == np.int8
    assert small.row_weights.dtype == small.weights.dtype == np.float32
    scaled = sketching.weighted_parts(SAMPLE, parts, row_weights, scale="rows")
    assert scaled.parts["x"].dtype == np.float16
    assert scaled.parts["label"].dtype == (np.float64 if x64 else np.float32)
    assert scaled.parts["label"].shape == (2, 2)


SAMPLE = sketching.PartitionSample(
    indices=np.array([0, 1]),
    counts=np.array([1, 1]),
    probabilities=np.array([0.5, 0.5]),
    num_draws=np.array(2),
)


def test_scale_rows():
    rows = {"x": np.ones((2, 3, 4)), "y": np.array([[1, 2, 3], [4, 5, 6]])}
    scaled = sketching.scale_rows(rows, np.array([2.0, 0.5]))
    np.testing.assert_array_equal(scaled["y"], [[2, 4, 6], [2, 2.5, 3]])
    np.testing.assert_array_equal(scaled["x"][:, 0, 0], [2, 0.5])
