"""Every path from messages or partial gradients, compiled once a code and dtype."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc import stragglers
from tests import oracles, zoo
from tests.conftest import arrivals
from tests.zoo import KEY

# One code of each decoder and each way to form messages.
REPRESENTATIVES = (
    "reed_solomon",
    "cyclic_mds, complex",
    "cyclic_repetition",
    "fractional_repetition",
    "binary",
    "communication_efficient",
    "clustered",
    "multi_message",
    "partially_coded, complex",
    "bernoulli",
    "ldgm",
    "from_matrix",
)
# Leaves in bfloat16 without the 64-bit mode, unless others are packed with them, to
# which rounding leaks in rounds that do not decode.
SMALL = "matrix", "number", "other"


def num_entries(code):
    """Seven or eight numbers a part, that no blocks divide."""
    return 7 if code.num_segments > 1 else 8


def as_tree(rows):
    """Converts partial gradients (k, 7 or 8) to a tree, one leaf being empty."""
    ends = np.cumsum([4, 1, rows.shape[1] - 7])
    matrix, number, other, vector = np.split(rows, ends, axis=1)
    tree = {
        "matrix": matrix.reshape(-1, 2, 2),
        "nothing": np.zeros((len(rows), 0, 3), rows.dtype),
        "number": number[:, 0],
        "vector": vector,
    }
    return tree | {"other": other[:, 0]} if other.size else tree


def gradients_of(code, generator):
    """Draws partial gradients."""
    return as_tree(generator.normal(size=(code.num_parts, num_entries(code))))


def in_float32(code, gradients):
    """Converts gradients as without the 64-bit mode, some leaves to bfloat16."""
    is_mixed = not (code.is_complex or code.num_segments > 1)
    return {
        name: leaf.astype(jnp.bfloat16 if is_mixed and name in SMALL else np.float32)
        for name, leaf in gradients.items()
    }


# Decoding is most of the compilation, and all paths take its weights.
@jax.jit
def decode(code, observed):
    decoding = jaxwgc.decoding(code, **arrivals(observed))
    return decoding.mask, decoding.weights


@jax.jit
def all_paths(code, masks, weights, gradients):
    """Computes messages, and the results of every path for rounds of known weights.

    The loss is linear: its partial gradients are `gradients` for any parameters.
    """
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[1:], leaf.dtype), gradients)
    messages = jaxwgc.encode(code, gradients)

    def loss(params, part):
        products = jax.tree.map(lambda leaf, row: jnp.sum(leaf * row), params, part)
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
        from_messages = jaxwgc.decode_aggregate(code)
        by_decode_aggregate, _ = from_messages.update(
            messages, from_messages.init(params), params, received=decoding
        )
        return {
            "weights": decoding.weights,
            "effective": decoding.effective_weights,
            "error": decoding.error,
            "states": [state._replace(key=()), other_state._replace(key=())],
            "failed": decoding.failed(),
            "value": value,
            "paths": {
                "decode": jaxwgc.decode(code, messages, decoding, params),
                "collapse": decoding.collapse(gradients),
                "collapsed": by_collapse,
                "partials": by_partials,
                "messages": by_messages,
                "decode_aggregate": by_decode_aggregate,
            },
        }

    return messages, jax.vmap(of_round)(masks, weights)


def wide(array):
    """Returns an array in double precision."""
    return np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64)


def in_working_precision(matrix):
    return matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype))


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape[1:]), tree)


class Checked(NamedTuple):
    """Results of all paths for some rounds, and NumPy's results for their weights."""

    results: dict
    weights: np.ndarray
    decoded: np.ndarray
    effective: np.ndarray
    missed: np.ndarray


def check_paths(code, observed, gradients, number=None, slack=0.0):
    """Compares the first rounds with NumPy to a few roundings of the working precision.

    Leaks between halves and segments below `slack` of the weights may be cut off.
    """
    masks, weights = decode(code, observed)
    messages, result = all_paths(code, masks, weights, gradients)
    for tree in result["paths"].values():
        assert kinds(tree) == kinds(gradients)
    result = jax.tree.map(lambda leaf: wide(leaf)[:number], result)
    observed = observed[:number]
    matrix = in_working_precision(np.asarray(code.encoding_matrix))
    precision = jnp.finfo(matrix.dtype)
    eps = float(precision.eps)
    tiny = 2 * float(precision.tiny)
    matrix = wide(matrix)
    flat = oracles.raveled(gradients)
    blocks = oracles.packed(code, flat)
    assert messages.shape == (code.num_messages, blocks.shape[1])
    amount = 1 + np.abs(matrix).sum(1).max()
    bound = 20 * eps * (np.abs(matrix) @ np.abs(blocks)) + amount * tiny
    assert np.all(np.abs(wide(messages) - matrix @ blocks) <= bound)

    weights = result["weights"]
    assert weights.shape == (len(observed), code.num_segments, code.num_messages)
    sent = zoo.messages_sent(code, observed)[:, None]
    assert not np.any(weights[np.broadcast_to(~sent, weights.shape)])
    reached = weights @ matrix
    scale = np.abs(np.asarray(code.target)).max()
    rounding = (np.abs(weights) @ np.abs(matrix)).max((1, 2)) + scale
    rounding = 30 * eps * rounding + tiny
    effective = oracles.effective(code, reached)
    assert np.all(np.abs(result["effective"] - effective) <= rounding[:, None])

    missed = np.linalg.norm(reached - oracles.targets(code), axis=(1, 2))
    missed /= np.sqrt(code.num_segments)
    off = np.sqrt(code.num_parts) * rounding
    if 1e-10 < scale < 1e15:  # Squares of others leave the range of float32.
        assert np.all(np.abs(np.sqrt(result["error"]) - missed) <= off)
    bar = 1e-3 * np.linalg.norm(code.target)
    clear = np.abs(missed - bar) > 2 * off
    np.testing.assert_array_equal(result["failed"][clear], (missed > bar)[clear])
    whole = observed if observed.dtype == bool else observed == code.parts_per_worker
    if not code.decoders[0].is_exact:
        # Rounds of a decoder that is inexact on purpose fail if nothing is gained.
        bar = 0.999 * np.linalg.norm(code.target)
        clear = np.abs(missed - bar) > 2 * off
    for state in result["states"]:
        assert np.all(np.abs(state.residual - missed) <= off)
        failed = state.num_undecodable[clear] == 1
        np.testing.assert_array_equal(failed, (missed > bar)[clear])
        np.testing.assert_array_equal(state.received, whole)

    decoded = oracles.unpacked(code, reached @ blocks, flat.shape[1])
    bound = ((rounding + slack * scale) * np.abs(flat).sum())[:, None]
    # What is smaller than the smallest float is flushed to zero.
    bound = bound + np.abs(weights).sum((1, 2)).max() * amount * tiny
    # Results of few bits are rounded to them, and so are cotangents of such losses.
    few_bits = {
        name: np.full(leaf.shape, jnp.finfo(leaf.dtype).eps)
        for name, leaf in gradients.items()
    }
    sizes = np.abs(decoded) + np.abs(effective) @ np.abs(flat)
    bound = bound + 4 * oracles.raveled(few_bits)[0] * sizes
    for path, tree in result["paths"].items():
        assert np.all(np.abs(oracles.raveled(tree) - decoded) <= bound), path
    return Checked(result, weights, decoded, effective, missed)
