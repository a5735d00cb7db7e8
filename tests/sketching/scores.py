"""Every way to leverage scores of a dense matrix, for the tests that compare them."""

import functools

import numpy as np
from jax.experimental import sparse

from jaxwgc import sketching


def bcoo_of(matrix):
    # All entries, so that none is left out where it is zero.
    indices = np.indices(matrix.shape).reshape(2, -1).T
    return sparse.BCOO((matrix.reshape(-1), indices), shape=matrix.shape)


def of_sparse(matrix, **options):
    return sketching.leverage_scores(bcoo_of(matrix), **options)


# One shape for most tests of scores, so that they share compiled functions.
NUM_ROWS, NUM_COLUMNS = 150, 12

SCORES = {
    "gram": functools.partial(sketching.leverage_scores, method="gram"),
    "qr": functools.partial(sketching.leverage_scores, method="qr"),
    "svd": functools.partial(sketching.leverage_scores, method="svd"),
    "sparse": of_sparse,
    "no ridge": functools.partial(sketching.ridge_leverage_scores, ridge=0.0),
}
