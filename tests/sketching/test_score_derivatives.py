"""Derivatives of scores against closed forms and finite differences in float64."""

import functools

import jax
import numpy as np
import pytest

from jaxwgc import sketching
from tests.sketching import scores

pytestmark = pytest.mark.usefixtures("with_x64")


def low_rank(random, num_rows, num_columns, rank=2):
    """A matrix, and a change of it that keeps its rank to first order."""
    left, left_change = random.standard_normal((2, num_rows, rank))
    right, right_change = random.standard_normal((2, rank, num_columns))
    return left @ right, left_change @ right + left @ right_change


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
        "rank 2 of 4": low_rank(random, 30, 4),
        "zero": (np.zeros((30, 4)), np.zeros((30, 4))),
        "wide": tuple(random.standard_normal((2, 6, 9))),
        "wide of rank 2": low_rank(random, 6, 9),
    }
    ill = np.linalg.qr(full)[0] * [1, 1, 1e-3, 1e-5] @ random.standard_normal((4, 4))
    pairs["condition 1e5"] = ill, random.standard_normal(ill.shape)
    return pairs


def expected_change(matrix, change):
    """2 diag((I - P) dX X⁺), the change of the diagonal of P = X X⁺."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    is_kept = values > 1e-9 * max(values[0], 1e-300)
    left = left[:, is_kept]
    moved = change @ (right[is_kept].T / values[is_kept])
    return 2 * np.sum((moved - left @ (left.T @ moved)) * left, axis=1)


@jax.jit
def precise_lewis_weights(matrix, p):
    return sketching.lewis_weights(matrix, p, tolerance=1e-13).weights


SCORES = {**scores.SCORES, "Lewis": precise_lewis_weights}


@functools.partial(jax.jit, static_argnums=0)
def forward_and_backward(function, primals, tangents, weights):
    """The change of what it gives, and the gradient of its weighted sum, at once."""
    _, linear = jax.linearize(function, *primals)
    return linear(*tangents), jax.linear_transpose(linear, *primals)(weights)


@functools.partial(jax.jit, static_argnums=0)
def jvp(function, primals, tangents):
    """The change of what a function gives; compiled once for arguments of one shape."""
    return jax.jvp(function, primals, tangents)[1]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in cases()
        # The ridge of zero has a test of its own.
        for way in (("gram", "qr", "sparse") if name.startswith("wide") else SCORES)
        if way not in ("svd", "no ridge")
    ],
)
def test_first_derivative(name, way):
    matrix, change = cases()[name]
    function = SCORES[way]
    expected = expected_change(matrix, change)
    tolerance = 1e-10 * (1 + np.abs(expected).max())
    if name == "condition 1e5":
        tolerance *= 1e5
    if way == "sparse":
        forward = jvp(function, (matrix,), (change,))
        np.testing.assert_allclose(forward, expected, rtol=0, atol=tolerance)
        return
    weights = np.linspace(1, 2, matrix.shape[0])
    primals, tangents = (matrix,), (change,)
    if way == "Lewis":
        primals, tangents = (matrix, np.float64(2)), (change, np.float64(0))
    forward, gradient = forward_and_backward(function, primals, tangents, weights)
    np.testing.assert_allclose(forward, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        np.sum(gradient[0] * change), expected @ weights, rtol=0, atol=100 * tolerance
    )


@pytest.mark.parametrize(("shape", "way"), [((30, 4), "gram"), ((6, 9), "svd")])
def test_second_derivative_along_matrices_of_one_rank(shape, way):
    random = np.random.default_rng(1)
    left, left_change = random.standard_normal((2, shape[0], 2))
    right, right_change = random.standard_normal((2, 2, shape[1]))

    def along(t):
        matrix = (left + t * left_change) @ (right + t * right_change)
        return SCORES[way](matrix)

    def reference(t):
        basis = np.linalg.qr(left + t * left_change)[0]
        return np.sum(basis**2, axis=1)

    step = 1e-3
    expected = reference(step) - 2 * reference(0) + reference(-step)
    result = jax.jit(jax.jacfwd(jax.jacfwd(along)))(0.0)
    np.testing.assert_allclose(result, expected / step**2, rtol=1e-3, atol=1e-4)


def check_by_differences(function, primals, tangents, reference):
    """Forward derivatives of all values, and the gradient of the first."""
    step = 1e-5
    pairs = list(zip(primals, tangents))
    change = np.subtract(
        reference(*(value + step * tangent for value, tangent in pairs)),
        reference(*(value - step * tangent for value, tangent in pairs)),
    ) / (2 * step)
    forward, gradients = forward_and_backward(
        function, primals, tangents, np.eye(len(change))[0]
    )
    np.testing.assert_allclose(forward, change, rtol=1e-5, atol=1e-5)
    total = sum(np.sum(part * tangent) for part, tangent in zip(gradients, tangents))
    np.testing.assert_allclose(total, change[0], rtol=1e-4, atol=1e-5)


def ridge_scores_of_bcoo(matrix, ridge):
    return sketching.ridge_leverage_scores(scores.bcoo_of(matrix), ridge)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("name", ["full rank", "one-hot", "wide", "wide of rank 2"])
def test_ridge(name, ridge):
    matrix, change = cases()[name]
    if name == "wide of rank 2" and not ridge:
        pytest.skip("documented")

    def reference(matrix, ridge):
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left**2 @ (values**2 / (values**2 + ridge))

    function, primals = sketching.ridge_leverage_scores, (matrix, np.float64(ridge))
    for tangents in ((change, np.float64(0)), (0 * change, np.float64(1))):
        check_by_differences(function, primals, tangents, reference)
    tangents = change, np.float64(1)
    expected = jvp(function, primals, tangents)
    found = jvp(ridge_scores_of_bcoo, primals, tangents)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("p", [1.0, 6.0])
@pytest.mark.parametrize("name", ["full rank", "column of zeros", "one-hot"])
def test_lewis_weights(name, p):
    matrix, change = cases()[name]
    function, primals = precise_lewis_weights, (matrix, np.float64(p))
    for tangents in ((change, np.float64(0)), (0 * change, np.float64(1))):
        check_by_differences(function, primals, tangents, function)


@jax.jit
def approximate_scores(matrix):
    return sketching.approximate_leverage_scores(jax.random.key(0), matrix)


@pytest.mark.parametrize("kind", ["one-hot", "column of zeros", "repeated column"])
def test_approximate_scores_for_one_key(kind):
    random = np.random.default_rng(2)
    matrix, change = random.standard_normal((2, 2000, 3))
    if kind == "one-hot":
        matrix = np.eye(3)[random.integers(0, 3, 2000)]
    elif kind == "column of zeros":
        matrix[:, 1] = change[:, 1] = 0
    else:
        matrix[:, 1], change[:, 1] = matrix[:, 0], change[:, 0]
    function, step = approximate_scores, 1e-6
    expected = np.subtract(
        function(matrix + step * change), function(matrix - step * change)
    )
    result = jvp(function, (matrix,), (change,))
    np.testing.assert_allclose(result, expected / (2 * step), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("bridge", [1.0, 1e-9])
def test_effective_resistances(bridge):
    edges = np.array([[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 3], [1, 1]])
    weights = np.array([1.0, 2, 3, bridge, 1, 2, 1, 1])
    change = weights * np.linspace(-1, 1, 8)
    # And a vertex without edges.
    function = functools.partial(sketching.effective_resistances, edges, num_vertices=7)
    step = 1e-6
    expected = function(weights + step * change) - function(weights - step * change)
    result = jvp(function, (weights,), (change,))
    np.testing.assert_allclose(result, expected / (2 * step), rtol=1e-6, atol=1e-8)
