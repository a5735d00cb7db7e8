"""Approximate leverage scores: within 1 ± epsilon of the exact ones."""

import functools

import jax
import numpy as np
import pytest
import sklearn.datasets

from jaxwgc.sketching import LinearOperator, approximate_leverage_scores
from jaxwgc.sketching._scores import _approximate_scores
from tests import oracles
from tests.conftest import weekly
from tests.sketching.zoo import KEY

NUM_ROWS = 4000
NUM_COLUMNS = 100


@functools.cache
def cases():
    random = np.random.default_rng(0)
    gaussian = random.standard_normal((NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    # Half of the leverage is on single rows, neighbours and far apart, the worst case
    # for sparse sketches: two of them in one place leave a direction out.
    spikes = 1e-2 * gaussian
    spikes[random.permutation(NUM_ROWS)[:50], np.arange(50)] += 10
    spikes[1000:1050, np.arange(50, 100)] += 10
    groups = np.zeros_like(gaussian)
    column = (NUM_COLUMNS * random.random(NUM_ROWS) ** 2).astype(int)
    groups[np.arange(NUM_ROWS), column] = random.lognormal(size=NUM_ROWS)
    ill_conditioned = gaussian @ random.standard_normal((NUM_COLUMNS, NUM_COLUMNS))
    ill_conditioned = ill_conditioned * np.geomspace(1, 1e-3, NUM_COLUMNS)
    mixed = ill_conditioned @ np.linalg.qr(gaussian[:NUM_COLUMNS])[0]
    deficient = np.hstack([gaussian[:, :40]] * 2 + [np.zeros((NUM_ROWS, 20))])
    return {
        "gaussian": gaussian,
        "heavy tails": gaussian / random.standard_normal((NUM_ROWS, 1)),
        "spikes": spikes,
        "groups": groups,
        "ill-conditioned": mixed.astype(np.float32),
        "rank-deficient": deficient,
        "repeated rows": np.tile(gaussian[:1000], (4, 1)),
    }


def exact_scores(matrix):
    return oracles.leverage_scores(oracles.equilibrated(matrix), 1e-6)


@functools.partial(jax.jit, static_argnums=(2, 3))
def scores_of_keys(key, matrix, num_keys=200, epsilon=0.5):
    keys = jax.random.split(key, num_keys)
    return jax.vmap(lambda key: approximate_leverage_scores(key, matrix, epsilon))(keys)


@pytest.mark.parametrize(
    ("case", "epsilon"), [("gaussian", 0.3), *((case, 0.5) for case in cases())]
)
def test_within_epsilon_with_a_probability_of_99_percent(case, epsilon):
    exact = exact_scores(cases()[case])
    # Rows of one group miss together, so that the mean needs more draws.
    num_draws = 8 if case == "groups" else 1
    shares = []
    for key in jax.random.split(KEY, num_draws):
        scores = np.asarray(scores_of_keys(key, cases()[case], 10, epsilon))
        assert np.isfinite(scores).all() and np.all((scores >= 0) & (scores <= 1))
        shares.append(np.mean(np.abs(scores - exact) <= epsilon * exact + 1e-6))
    assert np.mean(shares) >= 0.99


def test_projections_for_many_columns():
    # Here there are a few projections to many columns, as where it pays.
    random = np.random.default_rng(1)
    matrix = (random.standard_normal((3000, 300)) ** 3).astype(np.float32)
    size, number = _approximate_scores._sizes(300, 0.5)
    assert size == 1200 and 70 <= number <= 80
    exact = exact_scores(matrix)
    scores = np.asarray(approximate_leverage_scores(KEY, matrix))
    assert np.mean(np.abs(scores - exact) <= 0.5 * exact) >= 0.99
    assert np.mean((scores < 2 * exact) & (scores > exact / 2)) >= 0.99
    np.testing.assert_allclose(scores.sum(), 300, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "wine", "a direction of its own"])
def test_draws_of_few_columns_stay_within_epsilon(kind):
    """If rows have few directions, a missed one is a large share of their scores."""
    matrix = np.random.default_rng(3).standard_normal((712, 13))
    if kind == "wine":
        matrix = np.tile(sklearn.datasets.load_wine().data, (4, 1))
    elif kind == "a direction of its own":
        matrix[:356, 12] = matrix[356:, :12] = 0
    matrix = matrix.astype(np.float32)
    exact = exact_scores(matrix)
    scores = scores_of_keys(KEY, matrix)
    close = np.abs(np.asarray(scores) - exact) <= 0.5 * exact + 1e-6
    assert np.mean(np.mean(close, axis=1) < 0.99) <= 0.01


def test_small_matrices():
    # A sketch of the first one would not be smaller.
    small = np.random.default_rng(2).standard_normal((30, 5))
    for matrix in (small, np.arange(1000.0)[:, None]):
        scores = approximate_leverage_scores(KEY, matrix)
        np.testing.assert_allclose(scores, exact_scores(matrix), atol=1e-6)


def test_scores_do_not_depend_on_the_units_of_columns():
    matrix = cases()["gaussian"]
    units = 2 ** np.round(np.log2(10.0 ** np.linspace(-34, 34, NUM_COLUMNS)))
    scaled = (matrix.astype(float) * units).astype(np.float32)
    expected = scores_of_keys(KEY, matrix, 10, 0.5)
    scores = scores_of_keys(KEY, scaled, 10, 0.5)
    np.testing.assert_allclose(scores, expected, rtol=0.02)
    assert not np.any(scores_of_keys(KEY, 0 * matrix, 10, 0.5))


def test_jit_vmap_keys_and_x64():
    matrix = np.random.default_rng(3).standard_normal((712, 13))
    key = jax.random.key(3)
    mapped = np.asarray(scores_of_keys(key, matrix))
    assert not np.allclose(mapped[0], mapped[1], rtol=1e-4)
    raw_key = jax.random.key_data(jax.random.split(key, 200))[0]
    with jax.enable_x64(True):
        scores = approximate_leverage_scores(raw_key, matrix)
    assert scores.dtype == np.float64 and mapped.dtype == np.float32
    np.testing.assert_allclose(mapped[0], scores, rtol=1e-4)
    matrix[3, 4] = np.nan
    assert np.isnan(scores_of_keys(key, matrix)).all()


def times(matrix, vector):
    return matrix @ vector


def operator_of(matrix, sketch=None):
    matvec = jax.tree_util.Partial(times, matrix)
    return LinearOperator(matvec, shape=matrix.shape, dtype=matrix.dtype, sketch=sketch)


# Projected scores, and others.
@pytest.mark.parametrize(
    ("has_sketch", "epsilon"),
    [
        (False, 0.5),
        (True, 0.2),
        weekly(False, 0.2),
        weekly(True, 0.5),
    ],
)
def test_operators_have_the_scores_of_their_arrays(has_sketch, epsilon, with_x64):
    """Of one key, up to rounding: sketch and Gaussian matrix are equal."""
    matrix = cases()["gaussian"].astype(float)
    sketch = (lambda embedding: embedding @ matrix) if has_sketch else None
    result = approximate_leverage_scores(KEY, operator_of(matrix, sketch), epsilon)
    expected = approximate_leverage_scores(KEY, matrix, epsilon)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_operators_of_few_rows_have_exact_scores(with_x64):
    matrix = np.random.default_rng(2).standard_normal((30, 5))
    scores = approximate_leverage_scores(KEY, operator_of(matrix))
    np.testing.assert_allclose(scores, exact_scores(matrix), rtol=1e-9)


def test_traced_operators(with_x64):
    matrix = np.random.default_rng(3).standard_normal((712, 13))
    change = np.random.default_rng(4).standard_normal((712, 13))

    @functools.partial(jax.jit, static_argnums=0)
    def scores_and_change(make, matrix, rcond):
        def scores(matrix):
            return approximate_leverage_scores(KEY, make(matrix), rcond=rcond)

        return jax.jvp(scores, (matrix,), (change,))

    result, tangent = scores_and_change(operator_of, matrix, 1e-3)
    expected = scores_and_change(jax.numpy.asarray, matrix, 1e-3)
    np.testing.assert_allclose(result, expected[0], rtol=1e-9)
    np.testing.assert_allclose(tangent, expected[1], atol=1e-9)
    assert np.isnan(scores_and_change(operator_of, matrix, -1.0)[0]).all()
    matrix[3, 4] = np.nan
    assert np.isnan(scores_and_change(operator_of, matrix, 1e-3)[0]).all()


def test_operators_that_are_not_adjoint():
    matrix = np.random.default_rng(3).standard_normal((712, 13)).astype(np.float32)
    wrong = LinearOperator(
        jax.tree_util.Partial(times, matrix),
        jax.tree_util.Partial(times, 2 * matrix.T),
        shape=matrix.shape,
    )
    with pytest.raises(ValueError, match="operator.matvec and operator.rmatvec must"):
        approximate_leverage_scores(KEY, wrong)
    assert np.isnan(jax.jit(approximate_leverage_scores)(KEY, wrong)).all()
