"""Matrices, ways to leverage scores and derivatives that tests of sketching share."""

import functools

import jax
import numpy as np
from jax.experimental import sparse

from jaxwgc import sketching
from tests import oracles

KEY = jax.random.key(0)
# One shape for most tests of scores, so that they share compiled functions.
NUM_ROWS = 150
NUM_COLUMNS = 12


def of_singular_values(values, shape, seed=0):
    """A random matrix with these singular values."""
    draw = np.random.default_rng(seed).standard_normal
    left = np.linalg.qr(draw((shape[0], min(shape))))[0]
    right = np.linalg.qr(draw((shape[1], shape[1])))[0][: min(shape)]
    return left * values @ right


def conditioned(condition, shape=(NUM_ROWS, NUM_COLUMNS), seed=0):
    return of_singular_values(np.geomspace(1, 1 / condition, min(shape)), shape, seed)


def path_of_rank(shape, rank, seed=1):
    """A path of matrices of one rank: a function of the step."""
    random = np.random.default_rng(seed)
    left, left_change = random.standard_normal((2, shape[0], rank))
    right, right_change = random.standard_normal((2, rank, shape[1]))
    return lambda step: (left + step * left_change) @ (right + step * right_change)


def start_of(path):
    """Start of a path that is quadratic in the step, and its change there."""
    return path(0), (path(1) - path(-1)) / 2


def bcoo_of(matrix):
    """All entries, zeros too, the last one first; the matrix may be traced."""
    indices = np.indices(matrix.shape).reshape(2, -1).T[::-1]
    return sparse.BCOO((matrix.reshape(-1)[::-1], indices), shape=matrix.shape)


def of_sparse(matrix, **options):
    return sketching.leverage_scores(bcoo_of(matrix), **options)


def of_blocks(matrix, **options):
    blocks = sketching.Blocks(np.array_split(matrix, 4))
    return sketching.leverage_scores(blocks, **options)


SCORES = {
    "gram": functools.partial(sketching.leverage_scores, method="gram"),
    "qr": functools.partial(sketching.leverage_scores, method="qr"),
    "sparse": of_sparse,
    "blocks": of_blocks,
    "no ridge": functools.partial(sketching.ridge_leverage_scores, ridge=0.0),
}


def check_scores(way, matrix, rcond=None, rank=None):
    """Scores are as accurate as the condition of the kept directions allows.

    Gives False where rounding decides the rank, so that there is nothing to compare.
    """
    dtype = np.result_type(matrix, np.float32)
    eps = float(np.finfo(dtype).eps)
    if rcond is None:
        options = {}
        rcond = 10 * min(matrix.shape) ** 0.5 * eps
    else:
        options = {"rcond": rcond}
    scaled = oracles.equilibrated(matrix)
    values = np.linalg.svd(scaled, compute_uv=False)
    cut = rcond * values[0]
    if np.any((values > cut / 3) & (values < 3 * cut)):
        return False
    kept = values[values > cut]
    assert rank is None or len(kept) == rank
    condition = kept[0] / kept[-1] if len(kept) else 1
    scores = np.asarray(SCORES[way](matrix, **options))
    assert scores.dtype == dtype and scores.min() >= 0 and scores.max() <= 1
    expected = oracles.leverage_scores(scaled, rcond)
    tolerance = 100 * eps * max(condition, 10)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance, err_msg=way)
    return True


@functools.partial(jax.jit, static_argnums=0)
def jvp(function, primals, tangents):
    """A value and its change; compiled once for arguments of one shape."""
    return jax.jvp(function, primals, tangents)


def check_forward(function, primals, tangents, expected, tolerance):
    """Checks the change of a value along tangents."""
    _, result = jvp(function, primals, tangents)
    tolerance = tolerance * (1 + np.abs(expected).max())
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@functools.partial(jax.jit, static_argnums=0)
def forward_and_backward(function, primals, tangents, weights):
    """The change of what it gives, and the gradient of its weighted sum."""
    _, linear = jax.linearize(function, *primals)
    return linear(*tangents), jax.linear_transpose(linear, *primals)(weights)


def check_both_modes(function, primals, tangents, weights, expected, tolerance):
    """Derivatives along tangents are as expected, forward and back.

    Gives the forward one.
    """
    change, gradients = forward_and_backward(function, primals, tangents, weights)
    tolerance = tolerance * (1 + np.abs(expected).max())
    np.testing.assert_allclose(change, expected, rtol=0, atol=tolerance)
    pairs = zip(gradients, tangents, strict=True)
    total = sum(np.sum(gradient * tangent) for gradient, tangent in pairs)
    expected = np.sum(weights * expected)
    np.testing.assert_allclose(total, expected, rtol=0, atol=50 * tolerance)
    return np.asarray(change)
