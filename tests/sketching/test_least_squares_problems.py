"""The problems of two other test suites, against SciPy in float64.

The six dense problems are those of PARLA's tests of least squares, and the 21 sparse
matrices those of pylspack's tests of leverage scores, both after their description.
Tall dense problems have one shape, so that they share programs.
"""

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

from jaxwgc import sketching
from tests import oracles
from tests.conftest import weekly
from tests.sketching.zoo import KEY

EPS = np.finfo(float).eps
NUM_ROWS = 1000
NUM_COLUMNS = 100


def orthonormal(rng, num_rows, num_columns):
    basis, _ = np.linalg.qr(rng.standard_normal((num_rows, num_columns)))
    return basis


def with_singular_values(rng, num_rows, num_columns, values):
    left = orthonormal(rng, num_rows, len(values))
    right = orthonormal(rng, num_columns, len(values))
    return (left * values) @ right.T, left


def consistent(rng, num_rows, num_columns, rank):
    """A generic θ, and y = Xθ."""
    values = rng.random(rank) + 1e-4
    matrix, _ = with_singular_values(rng, num_rows, num_columns, values)
    return matrix, matrix @ rng.standard_normal(num_columns)


def orthogonal_target(rng):
    """y is orthogonal to the columns, and so θ = 0."""
    values = rng.random(NUM_COLUMNS) + 1e-4
    matrix, left = with_singular_values(rng, NUM_ROWS, NUM_COLUMNS, values)
    target = rng.standard_normal(NUM_ROWS)
    target -= left @ (left.T @ target)
    return matrix, 100 * target / np.linalg.norm(target)


def two_clusters(rng):
    """30 singular values near 1e5, and 70 between 1 and 2; a large residual."""
    high = 1e5 + rng.random(30)
    low = 1 + rng.random(70)
    values = np.concatenate([high, low])
    matrix, left = with_singular_values(rng, NUM_ROWS, NUM_COLUMNS, values)
    solution = rng.standard_normal(100)
    solution[:30] /= 1e5
    noise = 100 * rng.standard_normal(1000)
    return matrix, matrix @ solution + noise - left @ (left.T @ noise)


def stacked_identities(rng):
    """Ten identities, with rows in log-normal units: coherent."""
    matrix = np.tile(np.eye(100), (10, 1)) * rng.lognormal(size=(1000, 1))
    return matrix, matrix @ rng.standard_normal(100) + rng.standard_normal(1000)


DENSE_PROBLEMS = {
    "consistent, tall": lambda rng: consistent(rng, NUM_ROWS, NUM_COLUMNS, rank=100),
    "consistent, of low rank": lambda rng: consistent(
        rng, NUM_ROWS, NUM_COLUMNS, rank=50
    ),
    "consistent, square": lambda rng: consistent(rng, 10, 10, rank=10),
    "inconsistent, orthogonal": orthogonal_target,
    "inconsistent, two clusters": two_clusters,
    "inconsistent, stacked identities": stacked_identities,
}


@pytest.mark.parametrize("method", ["gram", "sketch", "factor"])
@pytest.mark.parametrize("name", DENSE_PROBLEMS)
def test_dense_problems(with_x64, name, method):
    """The minimum-norm θ and the residual are those of LAPACK, up to rounding."""
    matrix, target = DENSE_PROBLEMS[name](np.random.default_rng(7))
    exact, _, rank, values = scipy.linalg.lstsq(matrix, target, cond=1e-13)
    solved = sketching.preconditioned(KEY, matrix, target, method=method)
    assert solved.converged
    assert solved.rank.rank == rank
    assert oracles.backward_error(matrix, target, solved.solution) < 10 * EPS
    condition = values[0] / values[rank - 1]
    residual = np.linalg.norm(target - matrix @ exact)
    # First-order bound of the change of θ by changes of X of this size.
    slope = residual / values[rank - 1] + values[0] * np.linalg.norm(exact)
    bound = 10 * EPS * condition * slope / values[0] * len(exact)
    np.testing.assert_allclose(solved.solution, exact, rtol=0, atol=bound)


SHAPES = (
    (783, 2),
    (1284, 4),
    (4169, 17),
    (6077, 23),
    (9178, 31),
    (13171, 37),
    (17633, 49),
)
DENSITIES = (0.1, 0.3, 1.0)
OF_EVERY_DAY = [((783, 2), 0.3), ((4169, 17), 0.1)]
OTHERS = [
    case for case in itertools.product(SHAPES, DENSITIES) if case not in OF_EVERY_DAY
]


@pytest.mark.parametrize(
    ("shape", "density"),
    [
        *OF_EVERY_DAY,
        *(weekly(*case) for case in OTHERS),
    ],
    ids=str,
)
def test_sparse_matrices(with_x64, shape, density):
    """Uniform entries at random places: least squares, and leverage scores."""
    num_columns = shape[1]
    rng = np.random.default_rng(shape[0])
    matrix = scipy.sparse.random_array(shape, density=density, format="csr", rng=rng)
    dense = matrix.toarray()
    target = dense @ rng.standard_normal(num_columns)
    target += rng.standard_normal(shape[0])
    exact, *_ = scipy.linalg.lstsq(dense, target)
    solved = sketching.preconditioned(KEY, matrix, target)
    assert solved.converged
    np.testing.assert_allclose(solved.solution, exact, rtol=0, atol=1e-12)
    left, _, _ = np.linalg.svd(dense, full_matrices=False)
    scores = sketching.leverage_scores(matrix)
    expected = np.sum(left**2, axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-10, atol=1e-13)
