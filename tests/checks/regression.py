"""A regression, its parts, and optimizers with an aggregator."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc
from jaxwgc import codes, stragglers

# Its decoder compiles in no time.
CODE = codes.fractional_repetition(6, 2)
# 20 rows in six parts of four: as many as a part has are padding, one shape less.
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = X @ np.arange(3, dtype=np.float32) + 1
DATA = X, Y
PARTS = jaxwgc.partition(DATA, 6)
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def errors(params, rows):
    x, y = rows
    return (x @ params["w"] + params["b"] - y) ** 2


def loss(params, part):
    rows, row_weights = part
    return jnp.sum(row_weights * errors(params, rows))


PARTIAL = jax.jit(jaxwgc.partial_value_and_grad(loss))


def chain(*behind, model=None, code=CODE, before=()):
    model = stragglers.uniform(2) if model is None else model
    with warnings.catch_warnings():
        # What is said when the aggregator is made has tests of its own.
        warnings.simplefilter("ignore")
        aggregate = jaxwgc.coded_aggregate(code, model, jax.random.key(0))
    return optax.chain(*before, aggregate, *(behind or [optax.sgd(0.01)]))
