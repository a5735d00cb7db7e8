"""Every path from messages or partial gradients to the decoded one, compiled once."""

import dataclasses

import jax
import jax.numpy as jnp

import jaxwgc
from jaxwgc import decoders, stragglers
from tests.conftest import arrivals
from tests.zoo import KEY


def gradients_of(code, dtype, generator):
    """Seven or eight numbers, that no blocks divide, one leaf being empty."""
    shapes = {"matrix": (2, 2), "nothing": (0, 3), "vector": (2,), "number": ()}
    if code.num_segments == 1:
        shapes["other"] = ()
    return {
        name: generator.normal(size=(code.num_parts, *shape)).astype(dtype)
        for name, shape in shapes.items()
    }


# The solver is most of a program's compilation: it stands in this one alone.
@jax.jit
def decode(code, observed):
    return jaxwgc.decoding(code, **arrivals(observed))


def all_paths(decodings, gradients):
    """Messages, and what every path makes of rounds and of gradients.

    Weights are known: codes of one shape share what comes after.
    """
    solver = (decoders.LeastSquares(),)
    code = dataclasses.replace(decodings.code, decoders=solver)
    return _all_paths(dataclasses.replace(decodings, code=code), gradients)


@jax.jit
def _all_paths(decodings, gradients):
    """A linear loss, whose partial gradients are `gradients` wherever params are."""
    code = decodings.code
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[1:], leaf.dtype), gradients)
    messages = jaxwgc.encode(code, gradients)

    def loss(params, part):
        products = jax.tree.map(lambda leaf, own: jnp.sum(leaf * own), params, part)
        return sum(jax.tree.leaves(products))

    def of_round(mask, weights):
        decoding = jaxwgc.Decoding(code, mask, weights)

        def aggregated(method):
            transform = jaxwgc.coded_aggregate(
                code, stragglers.uniform(0), KEY, method=method
            )
            state = transform.init(None)
            return transform.update(gradients, state, received=decoding)

        collapsed = jaxwgc.decoded_value_and_grad(loss, code)
        value, by_collapse = collapsed(params, gradients, decoding)
        by_partials, state = aggregated("partials")
        by_messages, other_state = aggregated("messages")
        return {
            "weights": jaxwgc.decoding_weights(code, decoding),
            "effective": jaxwgc.effective_weights(code, decoding),
            "error": jaxwgc.decoding_error(code, decoding),
            "states": [state._replace(key=()), other_state._replace(key=())],
            "failed": decoding.failed(),
            "value": value,
            "paths": {
                "decode": jaxwgc.decode(code, messages, decoding, params),
                "collapse": decoding.collapse(gradients),
                "collapsed": by_collapse,
                "partials": by_partials,
                "messages": by_messages,
            },
        }

    return messages, jax.vmap(of_round)(decodings.mask, decodings.weights)
