"""Traced arguments: results as of concrete ones, NaN for values that are rejected."""

import functools

import jax
import numpy as np
import pytest

from jaxwgc import sketching
from tests import oracles
from tests.sketching.zoo import KEY, SCORES

NAN, INF = np.nan, np.inf
MATRIX = np.random.default_rng(0).standard_normal((20, 4))
# Repeated columns, and zeros, so that both branches run under vmap.
DEFICIENT, WIDE = MATRIX[:, [0, 1, 0, 0]], MATRIX[:3]
TALL, CHANCES = np.tile(MATRIX, (40, 1)), np.array([0.5, 1, 0, 0.25])
EDGES = np.array([[0, 1], [1, 2], [2, 0], [2, 3]])


def spoilt(array, value, index=0):
    """An array with another value in its first row, or elsewhere."""
    array = np.array(array)
    array[index] = value
    return array


def with_cutoff(function):
    return lambda matrix, rcond: function(matrix, rcond=rcond)


MATRICES = [(MATRIX,), (DEFICIENT,), (0 * MATRIX,)]
NO_MATRICES = [(spoilt(MATRIX, value),) for value in (NAN, INF)]
CUTOFFS = [(matrix, 1e-6) for (matrix,) in MATRICES]
NO_CUTOFFS = [(matrix, 1e-6) for (matrix,) in NO_MATRICES]
NO_CUTOFFS += [(MATRIX, rcond) for rcond in (NAN, -1.0, 2.0)]
NO_CHANCES = [(spoilt(CHANCES, value),) for value in (NAN, -1, INF)]
NO_CHANCES += [(0 * CHANCES,)]
NO_WEIGHTS = [spoilt(np.ones(4), value) for value in (-1, NAN)]
# Functions, arguments that they take, and arguments that they do not take.
FUNCTIONS = {
    **{
        way: (with_cutoff(SCORES[way]), CUTOFFS, NO_CUTOFFS)
        for way in ("gram", "qr", "sparse", "no ridge")
    },
    "wide": (SCORES["qr"], [(WIDE,), (0 * WIDE,)], [(spoilt(WIDE, NAN),)]),
    "ridge": (
        sketching.ridge_leverage_scores,
        [(MATRIX, 0.1), (DEFICIENT, 3.0)],
        [(MATRIX, -1.0), (MATRIX, NAN), (spoilt(MATRIX, NAN), 0.1)],
    ),
    "approximate": (
        functools.partial(sketching.approximate_leverage_scores, KEY),
        [(TALL,), (-2 * TALL,)],
        [(spoilt(TALL, NAN),)],
    ),
    "Lewis": (
        lambda matrix, p: sketching.lewis_weights(matrix, p).weights,
        [(MATRIX, 1.0), (MATRIX, 6.0)],
        [(MATRIX, -1.0), (MATRIX, NAN), (spoilt(MATRIX, NAN), 1.0)],
    ),
    "Lewis, cut-off": (
        lambda *given: sketching.lewis_weights(given[0], 1.0, rcond=given[1]).weights,
        CUTOFFS,
        NO_CUTOFFS,
    ),
    "resistances": (
        functools.partial(sketching.effective_resistances, num_vertices=4),
        [(EDGES, np.ones(4)), (EDGES[::-1], CHANCES + 1)],
        [(spoilt(EDGES, 4), np.ones(4)), *((EDGES, one) for one in NO_WEIGHTS)],
    ),
    "partitions": (
        functools.partial(sketching.partition_probabilities, num_parts=2),
        [(CHANCES,), (CHANCES[::-1],)],
        NO_CHANCES,
    ),
    "rows": (
        lambda *given: sketching.row_probabilities(given[0], "slev", given[1]),
        [(CHANCES, 0.6), (CHANCES, 1.0)],
        [(CHANCES, 2.0), (CHANCES, -0.5), *((one, 0.6) for (one,) in NO_CHANCES)],
    ),
    "row sampling": (
        lambda chances: sketching.row_sampling(KEY, 3, 4, chances) @ MATRIX[:4],
        [(CHANCES,), (CHANCES[::-1],)],
        NO_CHANCES,
    ),
}


# Where NumPy has them. Others are compared with results of concrete arguments.
BY_SVD = "gram", "qr", "sparse", "no ridge", "wide"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_arguments(name):
    function, right, wrong = FUNCTIONS[name]
    batch = jax.tree.map(lambda *own: np.stack(own), *right, *wrong)
    results = np.asarray(jax.jit(jax.vmap(function))(*batch))
    reference = oracles.leverage_scores if name in BY_SVD else function
    for found, arguments in zip(results, right):
        np.testing.assert_allclose(found, reference(*arguments), rtol=1e-4, atol=1e-5)
    assert np.isnan(results[len(right) :]).all()
