"""Derivatives of scores against closed forms and finite differences in float64."""

import functools

import jax
import numpy as np
import pytest

from jaxwgc import sketching
from tests import oracles
from tests.conftest import weekly
from tests.sketching import zoo
from tests.sketching.zoo import KEY, check_both_modes, jvp, path_of_rank, start_of

pytestmark = pytest.mark.usefixtures("with_x64")


@functools.cache
def cases():
    random = np.random.default_rng(0)
    full = random.standard_normal((30, 4))
    zero_column = full * [1, 0, 1, 1]
    groups = random.integers(0, 4, 30)
    pairs = {
        "full rank": (full, random.standard_normal(full.shape)),
        "column of zeros": (zero_column, full[::-1] * [1, 0, 1, 1]),
        "one-hot": (np.eye(4)[groups], random.standard_normal((30, 4))),
        "equal singular values": (np.eye(30)[:, :4], random.standard_normal((30, 4))),
        "rank 2 of 4": start_of(path_of_rank((30, 4), 2)),
        "zero": (np.zeros((30, 4)), np.zeros((30, 4))),
        "wide": tuple(random.standard_normal((2, 6, 9))),
        "wide of rank 2": start_of(path_of_rank((6, 9), 2)),
    }
    ill = np.linalg.qr(full)[0] * [1, 1, 1e-3, 1e-5] @ random.standard_normal((4, 4))
    pairs["condition 1e5"] = ill, random.standard_normal(ill.shape)
    return pairs


@jax.jit
def precise_lewis_weights(matrix, p):
    return sketching.lewis_weights(matrix, p, tolerance=1e-13).weights


SCORES = {**zoo.SCORES, "Lewis": precise_lewis_weights}


# For a wide matrix, "gram" does the same as "qr", and Lewis weights have none.
@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in cases()
        for way in ("gram", "qr", "sparse", "Lewis")
        if way in ("qr", "sparse") or "wide" not in name
    ],
)
def test_first_derivative(name, way):
    matrix, change = cases()[name]
    expected = oracles.change_of_scores(matrix, change)
    tolerance = 1e-10 * (1e5 if name == "condition 1e5" else 1)
    primals = (matrix,)
    tangents = (change,)
    if way == "sparse":
        zoo.check_forward(SCORES[way], primals, tangents, expected, tolerance)
        return
    if way == "Lewis":
        primals = (matrix, np.float64(2))
        tangents = (change, np.float64(0))
    weights = np.linspace(1, 2, matrix.shape[0])
    check_both_modes(SCORES[way], primals, tangents, weights, expected, tolerance)


@pytest.mark.parametrize(
    ("shape", "way"),
    [((30, 4), "gram"), weekly((6, 9), "qr")],
)
def test_second_derivative_along_matrices_of_one_rank(shape, way):
    path = path_of_rank(shape, 2)

    def reference(step):
        return oracles.leverage_scores(path(step))

    step = 1e-3
    expected = reference(step) - 2 * reference(0) + reference(-step)
    along = jax.jit(jax.jacfwd(jax.jacfwd(lambda step: SCORES[way](path(step)))))
    np.testing.assert_allclose(along(0.0), expected / step**2, rtol=1e-3, atol=1e-4)


def check_by_differences(function, primals, tangents, reference):
    def along(step):
        pairs = zip(primals, tangents)
        return reference(*(value + step * tangent for value, tangent in pairs))

    change = np.subtract(along(1e-5), along(-1e-5)) / 2e-5
    weights = np.eye(len(change))[0]
    return check_both_modes(function, primals, tangents, weights, change, 1e-5)


def ridge_scores_of_bcoo(matrix, ridge):
    return sketching.ridge_leverage_scores(zoo.bcoo_of(matrix), ridge)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("name", ["full rank", "one-hot", "wide", "wide of rank 2"])
def test_ridge(name, ridge):
    matrix, change = cases()[name]
    if name == "wide of rank 2" and not ridge:
        pytest.skip("documented")

    def reference(matrix, ridge):
        return oracles.leverage_scores(matrix, 0, ridge)

    function = sketching.ridge_leverage_scores
    primals = (matrix, np.float64(ridge))
    expected = 0
    for tangents in ((change, np.float64(0)), (0 * change, np.float64(1))):
        expected += check_by_differences(function, primals, tangents, reference)
    tangents = change, np.float64(1)
    zoo.check_forward(ridge_scores_of_bcoo, primals, tangents, expected, 1e-9)


@pytest.mark.parametrize("p", [1.0, 6.0])
@pytest.mark.parametrize("name", ["full rank", "column of zeros", "one-hot"])
def test_lewis_weights(name, p):
    matrix, change = cases()[name]
    function = precise_lewis_weights
    primals = (matrix, np.float64(p))
    for tangents in ((change, np.float64(0)), (0 * change, np.float64(1))):
        check_by_differences(function, primals, tangents, function)


def check_forward_mode(function, primal, change, rtol, step=1e-6):
    """Compares with differences of values of the same program."""
    _, result = jvp(function, (primal,), (change,))
    ends = [primal + step * change, primal - step * change]
    ends = [np.asarray(jvp(function, (end,), (change,))[0]) for end in ends]
    expected = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=1e-8)


def approximate_scores(matrix):
    return sketching.approximate_leverage_scores(KEY, matrix)


@pytest.mark.parametrize("kind", ["one-hot", "column of zeros", "repeated column"])
def test_approximate_scores_for_one_key(kind):
    random = np.random.default_rng(2)
    matrix, change = random.standard_normal((2, 2000, 3))
    if kind == "one-hot":
        matrix = np.eye(3)[random.integers(0, 3, 2000)]
    elif kind == "column of zeros":
        matrix[:, 1] = change[:, 1] = 0
    else:
        matrix[:, 1] = matrix[:, 0]
        change[:, 1] = change[:, 0]
    check_forward_mode(approximate_scores, matrix, change, rtol=1e-4)


EDGES = np.array([[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 3], [1, 1]])


def resistances(weights):
    # With a vertex without edges.
    return sketching.effective_resistances(EDGES, weights, num_vertices=7)


@pytest.mark.parametrize("bridge", [1.0, 1e-9])
def test_effective_resistances(bridge):
    weights = np.array([1.0, 2, 3, bridge, 1, 2, 1, 1])
    change = weights * np.linspace(-1, 1, 8)
    check_forward_mode(resistances, weights, change, rtol=1e-6)
