"""Traced arguments: results as of concrete ones, NaN for values that are rejected."""

import functools

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import sketching
from tests import oracles
from tests.sketching.references import resistances_by_inverse
from tests.sketching.zoo import KEY, SCORES

NAN = np.nan
INF = np.inf
MATRIX = np.random.default_rng(0).standard_normal((20, 4))
# Repeated columns, and zeros, so that both branches run under vmap.
DEFICIENT = MATRIX[:, [0, 1, 0, 0]]
WIDE = MATRIX[:3]
CHANCES = np.array([0.5, 1, 0, 0.25])
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
        for way in ("gram", "qr", "sparse")
    },
    "wide": (SCORES["qr"], [(WIDE,), (0 * WIDE,)], [(spoilt(WIDE, NAN),)]),
    "ridge": (
        sketching.ridge_leverage_scores,
        [(MATRIX, 0.1, 1e-6), (DEFICIENT, 3.0, 1e-6)],
        [(MATRIX, ridge, 1e-6) for ridge in (-1.0, NAN)]
        + [(matrix, 0.1, rcond) for matrix, rcond in NO_CUTOFFS],
    ),
    "Lewis": (
        lambda matrix, p, rcond: (
            sketching.lewis_weights(matrix, p, rcond=rcond).weights
        ),
        [(MATRIX, 6.0, 1e-6), *((matrix, 1.0, 1e-6) for (matrix,) in MATRICES)],
        [(MATRIX, p, 1e-6) for p in (-1.0, NAN)]
        + [(matrix, 1.0, rcond) for matrix, rcond in NO_CUTOFFS],
    ),
    "resistances": (
        functools.partial(sketching.effective_resistances, num_vertices=4),
        [(EDGES, np.ones(4)), (EDGES[::-1], CHANCES + 1)],
        [(spoilt(EDGES, 4), np.ones(4)), *((EDGES, one) for one in NO_WEIGHTS)],
    ),
    "partitions": (
        functools.partial(jaxwgc.parts.partition_probabilities, num_parts=2),
        [(CHANCES,), (CHANCES[::-1],)],
        NO_CHANCES,
    ),
    "rows": (
        lambda scores, alpha: sketching.row_probabilities(scores, "slev", alpha),
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
REFERENCES = {
    **dict.fromkeys(("gram", "qr", "sparse", "wide"), oracles.leverage_scores),
    "ridge": lambda matrix, ridge, _: oracles.leverage_scores(matrix, 0, ridge),
    "resistances": functools.partial(resistances_by_inverse, num_vertices=4),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_arguments(name):
    function, right, wrong = FUNCTIONS[name]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *right, *wrong)
    results = np.asarray(jax.jit(jax.vmap(function))(*batch))
    reference = REFERENCES.get(name, function)
    for result, arguments in zip(results, right):
        np.testing.assert_allclose(result, reference(*arguments), rtol=1e-4, atol=1e-5)
    assert np.isnan(results[len(right) :]).all()
