"""Every code, and every path from messages or partial gradients, against NumPy.

`python -m pytest tests/coding/test_every_path.py --hypothesis-profile=thorough` draws
20,000 examples of `test_any_round` in each precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders, stragglers
from tests import oracles, zoo
from tests.catalogue.codes import CODES, NEVER_EXACT
from tests.conftest import arrivals
from tests.zoo import KEY, every_code

TINY = 1e-30


def gradients_of(code, generator):
    """Seven or eight numbers, that no blocks divide, one leaf being empty."""
    shapes = {"matrix": (2, 2), "nothing": (0, 3), "vector": (2,), "number": ()}
    if code.num_segments == 1:
        shapes["other"] = ()
    return {
        name: generator.normal(size=(code.num_parts, *shape))
        for name, shape in shapes.items()
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
    eps = float(jnp.finfo(matrix.dtype).eps)
    matrix = wide(matrix)
    flat = oracles.raveled(gradients)
    blocks = oracles.packed(code, flat)
    assert messages.shape == (code.num_messages, blocks.shape[1])
    bound = 20 * eps * (np.abs(matrix) @ np.abs(blocks)) + TINY
    assert np.all(np.abs(wide(messages) - matrix @ blocks) <= bound)

    weights = result["weights"]
    assert weights.shape == (len(observed), code.num_segments, code.num_messages)
    sent = zoo.messages_sent(code, observed)[:, None]
    assert not np.any(weights[np.broadcast_to(~sent, weights.shape)])
    reached = weights @ matrix
    scale = np.abs(np.asarray(code.target)).max()
    rounding = (np.abs(weights) @ np.abs(matrix)).max((1, 2)) + scale
    rounding = 30 * eps * rounding + TINY
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


@pytest.mark.parametrize("is_weighted", [False, True])
@every_code(CODES)
def test_every_path(name, is_weighted, with_x64):
    """Masks that decode, and those that do not, the empty one included."""
    code = CODES[name]
    observed = zoo.observed_rounds(name)
    if is_weighted:
        weights = np.random.default_rng(1).integers(0, 5, code.num_parts).astype(float)
        weights[0] = 0
        code = jaxwgc.weighted(code, weights)
    gradients = gradients_of(code, np.random.default_rng(0))
    tolerance = 1e-9 if is_weighted else 1e-10
    checked = check_paths(code, observed, gradients, slack=tolerance)
    effective = checked.effective @ oracles.raveled(gradients)
    value = checked.results["value"]
    error = checked.missed**2
    np.testing.assert_allclose(value, effective.sum(1), atol=20 * tolerance)
    if code.decoders[0].is_optimal:
        best = oracles.best_mixtures(code, zoo.messages_sent(code, observed))
        minimum = oracles.squared_errors(best, code)
        scale = np.sum(code.target**2)
        np.testing.assert_allclose(error, minimum, atol=tolerance * scale)
    if not is_weighted:
        assert np.any(error < 1e-10) or name in NEVER_EXACT
        assert np.any(error > 0.1)
        # Halves and segments leak into each other in rounds that do not decode, unless
        # the effective weights are real, as they always are with this code.
        leaks = np.abs(checked.decoded - effective).max(1) > 0.1
        has_halves = code.is_complex and name != "reed_solomon, slack"
        assert np.any(leaks) == (has_halves or code.num_segments > 1)
        assert not np.any(leaks & (error < 1e-10))


# Of `test_any_round`: one of each decoder and each way to form messages.
NAMES = (
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
NUM_ROUNDS = 4
# Leaves in bfloat16 without the 64-bit mode, unless others are packed with them, to
# which rounding leaks in rounds that do not decode.
SMALL = "matrix", "number", "other"


@st.composite
def rounds(draw):
    """Weights of every spread and scale; masks, or numbers of parts, of every kind."""
    name = draw(st.sampled_from(NAMES))
    code = CODES[name]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1.0, 3.0, 1e3, 1e6]))
    scale = draw(st.sampled_from([1.0, 1e-3, 1e-20, 1e15]))
    weights = scale * spread ** generator.random(code.num_parts)
    if draw(st.booleans()):
        weights *= generator.choice([-1, 0, 1], code.num_parts, p=[0.1, 0.1, 0.8])
    received = np.ones((NUM_ROUNDS, code.num_workers), bool)
    for mask in received:
        beyond = draw(st.integers(-2, 2))
        lost = np.clip(code.num_stragglers + beyond, 0, code.num_workers)
        mask[generator.permutation(code.num_workers)[:lost]] = False
    observed = received
    if code.messages_per_worker > 1:
        some = generator.integers(0, code.parts_per_worker, received.shape)
        observed = np.where(received, code.parts_per_worker, some)
    return name, weights, observed, gradients_of(code, generator)


@pytest.mark.parametrize("x64", [False, True], ids=["float32-bfloat16", "float64"])
@given(data=st.data())
def test_any_round(x64, data):
    name, weights, observed, gradients = data.draw(rounds())
    code = CODES[name]
    # As many as in `test_every_path`, and so one compilation with that.
    repeated = observed[np.arange(len(zoo.observed_rounds(name))) % NUM_ROUNDS]
    with jax.enable_x64(x64):
        weighted_code = jaxwgc.weighted(code, weights.astype(jnp.result_type(float)))
        is_mixed = not (x64 or code.is_complex or code.num_segments > 1)
        gradients = {
            leaf_name: leaf.astype(
                jnp.bfloat16
                if is_mixed and leaf_name in SMALL
                else jnp.result_type(float)
            )
            for leaf_name, leaf in gradients.items()
        }
        checked = check_paths(
            weighted_code, repeated, gradients, NUM_ROUNDS, slack=1e-4
        )
        matrix = in_working_precision(weighted_code.encoding_matrix)
        plain = wide(decode(code, repeated)[1])[:NUM_ROUNDS]
    check_misses(weighted_code, observed, matrix, checked.weights)
    if np.all(weights) and code.num_stragglers > 0:
        # Weights of an exact code do not depend on those of its parts.
        whole = 1 if observed.dtype == bool else np.asarray(code.parts_per_worker)
        within = (observed != whole).sum(-1) <= code.num_stragglers
        for one, other in zip(checked.weights[within], plain[within], strict=True):
            atol = 1e-3 * np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def check_misses(code, observed, matrix, weights):
    """Checks that errors are at most three times NumPy's."""
    columns = np.repeat(code.target, code.num_segments)
    counts = columns != 0
    columns = np.where(counts, columns, 1)
    target = oracles.targets(code)
    aim = target / columns
    norm = np.linalg.norm(aim)
    plain = (matrix / columns).astype(matrix.dtype)
    if code.decoders[0].is_a(decoders.Peeling):
        return  # It decodes less, and scales it up.
    for result, mask in zip(weights, zoo.messages_sent(code, observed), strict=True):
        minimum = oracles.least_miss(plain, aim, mask)
        if minimum < 1e-4 * norm:
            # Part by part, for any weights of the others.
            missed = np.linalg.norm((result @ wide(plain) - aim)[:, counts])
            assert missed <= max(3 * minimum, 1e-4 * norm)
        elif not code.decoders[0].is_a(decoders.Group):
            minimum = oracles.least_miss(matrix, target, mask)
            missed = np.linalg.norm(result @ wide(matrix) - target)
            assert missed <= 1.001 * minimum + 1e-5 * np.linalg.norm(target)


def test_gradients_that_blocks_do_not_divide(with_x64):
    """The last segments are filled up with zeros, and cut off again."""
    name = "clustered, segments"
    code = CODES[name]
    mask, weights = decode(code, zoo.observed_rounds(name))
    everyone = jaxwgc.Decoding(code, mask[-1], weights[-1])
    for size in (0, 1, 11):
        gradients = np.random.default_rng(0).normal(size=(code.num_parts, size))
        messages = jaxwgc.encode(code, gradients)
        # Three segments of complex numbers.
        assert messages.shape == (code.num_workers, -(-size // 6))
        decoded = everyone.combine(messages, jnp.zeros(size))
        np.testing.assert_allclose(decoded, gradients.sum(0), atol=1e-10)
