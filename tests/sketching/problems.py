"""Losses of the Newton sketch, and square roots of their Hessians."""

import jax.numpy as jnp


def squares(params, matrix, target):
    return jnp.sum((matrix @ params - target) ** 2) / 2


def root_of_squares(params, matrix, target):
    return matrix


def poisson(params, features, counts):
    logits = features @ params["slope"] + params["constant"]
    return jnp.sum(jnp.exp(logits) - counts * logits)


def root_of_poisson(params, features, counts):
    root = jnp.exp((features @ params["slope"] + params["constant"]) / 2)
    return {"constant": root, "slope": root[:, None] * features}
