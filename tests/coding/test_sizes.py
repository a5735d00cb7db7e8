"""Gradients of any size decode alike: no square leaves the range of floats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import corruptions, stragglers
from tests import oracles, zoo
from tests.catalogue.codes import CODES
from tests.paths import (
    REPRESENTATIVES,
    all_paths,
    as_tree,
    check_paths,
    decode,
    in_float32,
    num_entries,
    wide,
)
from tests.zoo import KEY, every_code, weekly_unless

SIZES = {
    32: 10.0 ** np.array([-37, -34, -28, -20, -12, 0, 12, 18, 28, 34, 36, 37]),
    64: 10.0 ** np.array([-307, -300, -160, 0, 160, 300, 306]),
}
# Messages of rows of norm 1e3 overflow at the largest sizes, and others lose digits.
OUT_OF_RANGE = {"from_matrix"}
NAMES = sorted(CODES.keys() - OUT_OF_RANGE)
NUM_ROUNDS = 3


def sizes_of(dtype):
    return SIZES[jnp.finfo(dtype).bits]


def rows_of(code, size, seed=0):
    """Entries from 1/2 to 2 in magnitude, and which of the entries are always zero."""
    draw = np.random.default_rng(seed)
    shape = code.num_parts, size
    rows = np.exp2(draw.uniform(-1, 1, shape)) * draw.choice([-1, 1], shape)
    is_dead = draw.random(size) < 0.4
    rows[:, is_dead] = 0
    return rows, is_dead


def observed_of(code, number):
    """Rounds without stragglers, with those that are tolerated, and with too many.

    They are repeated, to as many rounds.
    """
    lost = [0, code.num_stragglers, min(code.num_stragglers + 2, code.num_workers - 1)]
    received = np.arange(code.num_workers) >= np.array(lost)[:, None]
    if code.messages_per_worker > 1:
        received = received * np.asarray(code.parts_per_worker)
    return np.resize(received, (number, code.num_workers))


def check_every_size(code, observed, sizes, convert):
    """Compares all paths with NumPy; zeros stay zero in rounds that decode."""
    rows, is_dead = rows_of(code, num_entries(code))
    for size in sizes:
        gradients = convert(as_tree(size * rows))
        checked = check_paths(code, observed, gradients, NUM_ROUNDS)
        for path, tree in checked.results["paths"].items():
            assert not np.any(oracles.raveled(tree)[:2, is_dead]), path


@every_code(NAMES)
def test_every_size(name, with_x64):
    observed = observed_of(CODES[name], len(zoo.observed_rounds(name)))
    check_every_size(CODES[name], observed, SIZES[64], lambda gradients: gradients)


@every_code(weekly_unless(NAMES, REPRESENTATIVES))
def test_every_size_in_float32(name):
    """Leaves in bfloat16 are coded in float32, and have its range."""
    code = CODES[name]
    observed = observed_of(code, len(zoo.observed_rounds(name)))
    sizes = SIZES[32]
    check_every_size(code, observed, sizes, functools.partial(in_float32, code))


@pytest.mark.parametrize(
    "make",
    [
        lambda: jaxwgc.codes.reed_solomon(50, 20, 30),
        lambda: jaxwgc.codes.cyclic_mds(20, 6),
    ],
)
def test_more_workers(make):
    """Messages in more than one block."""
    code = make()
    observed = np.array(
        [
            np.arange(code.num_workers) % 3 != 0,
            np.arange(code.num_workers) >= 0,
            np.arange(code.num_workers) >= code.num_workers - 3,
        ]
    )
    observed[0, code.num_stragglers * 3 :] = True

    def convert(gradients):
        return jax.tree.map(np.float32, gradients)

    # At the smallest size, sums of twenty terms lose digits.
    check_every_size(code, observed, SIZES[32][1:-1], convert)


@st.composite
def powers(draw):
    """Powers of ten by part, and by entry of a message."""
    exponents = st.integers(-34, 34)
    by_part = draw(st.lists(exponents, min_size=6, max_size=6))
    by_entry = draw(st.lists(exponents, min_size=4, max_size=4))
    return np.array(by_part), np.array(by_entry)


@pytest.mark.parametrize(
    "name", ["reed_solomon", "cyclic_mds, complex", "communication_efficient"]
)
@settings(max_examples=100)
@given(exponents=powers(), seed=st.integers(0, 99))
def test_any_size_of_each_part_and_entry(name, exponents, seed):
    """Small entries are not lost because others of the gradient are large."""
    code = CODES[name]
    rows, is_dead = rows_of(code, num_entries(code), seed)
    by_part, by_entry = exponents
    # Each entry is rounded like the largest that is packed with it.
    num_packed = code.num_segments * (2 if code.is_complex else 1)
    place = np.arange(len(is_dead)) % -(-len(is_dead) // num_packed)
    exponent = np.clip(by_part[:, None] + by_entry[place], -34, 36)
    rows = (rows * 10.0**exponent).astype(np.float32)
    is_together = place[:, None] == place
    sizes = np.max(np.abs(rows)[:, :, None] * is_together, axis=1)
    observed = observed_of(code, len(zoo.observed_rounds(name)))
    masks, weights = decode(code, observed)
    amounts = np.abs(wide(weights)[:2]) @ np.abs(wide(code.encoding_matrix))
    amounts = amounts.reshape(2, -1, code.num_parts, code.num_segments)
    scale = amounts.max((1, 3)) @ sizes
    expected = rows.astype(float).sum(0)
    _, results = all_paths(code, masks, weights, in_float32(code, as_tree(rows)))
    for path, tree in results["paths"].items():
        result = oracles.raveled(tree)[:2]
        assert np.all(np.abs(result - expected) <= 1e-4 * scale), path
        # Parts of different size may cancel in messages, and hide how they are rounded.
        rounding = 30 * np.finfo(np.float32).eps * scale
        dead = np.where(is_dead, result, 0)
        assert np.all(np.abs(dead) <= rounding), path
        assert not np.any(dead) or np.any(by_part != by_part[0]), path


@jax.jit
def locate(code, messages, received):
    def of_size(messages):
        return jaxwgc.locate_errors(code, messages, received, KEY)

    return jax.vmap(of_size)(messages)


@every_code(
    weekly_unless(
        [
            "cyclic_mds, complex",
            "fractional_repetition",
            "cyclic_repetition",
            "reed_solomon",
        ],
        daily=["cyclic_mds, complex", "fractional_repetition"],
    )
)
def test_errors_are_located_at_every_size(name):
    code = CODES[name]
    # Messages near the smallest float lose digits, which may not count as errors.
    sizes = sizes_of(np.float32)[1:]
    gradients, _ = rows_of(code, 6)
    gradients = np.tile(gradients, 400)
    messages = jax.vmap(lambda rows: jaxwgc.encode(code, rows))(
        (sizes[:, None, None] * gradients).astype(np.float32)
    )
    received = np.ones(code.num_workers, bool)
    for factor in (-1.0, 1.02):
        wrong = messages.at[:, 1].multiply(factor)
        located = locate(code, wrong, received)
        expected = np.arange(code.num_workers) == 1
        np.testing.assert_array_equal(located.wrong, np.tile(expected, (len(sizes), 1)))
        assert not np.any(located.rejected)
        assert np.all(located.mask == ~expected)
    # One message is 1e30 times as large as the others.
    spoilt = messages.at[:, 1].multiply(1e30)
    located = locate(code, spoilt, received)
    assert not np.any(located.mask[:, 1])
    assert np.all(located.mask[:, [0, *range(2, code.num_workers)]])


MODELS = {
    "additive_noise": lambda who, code: corruptions.additive_noise(who),
    "same_vector": lambda who, code: corruptions.same_vector(who),
    "codeword_part": lambda who, code: corruptions.codeword_part(who, code),
    "quantization": lambda who, code: corruptions.quantization(who, bits=6),
}


@pytest.mark.parametrize("kind", MODELS)
@every_code(["fractional_repetition", "reed_solomon"])
def test_corruptions_are_relative(name, kind):
    code = CODES[name]
    model = MODELS[kind](stragglers.bernoulli(1.0), code)
    sizes = sizes_of(np.float32)[1:-1]
    messages, _ = rows_of(code, 6)
    messages = messages[:, :5] * (1 + 1j if code.is_complex else 1)
    dtype = np.complex64 if code.is_complex else np.float32
    scaled = (sizes[:, None, None] * messages).astype(dtype)
    corrupt = jax.jit(jax.vmap(lambda rows: model.corrupted(KEY, rows)))
    result = np.asarray(corrupt(scaled)).astype(complex) / sizes[:, None, None]
    [one] = result[sizes == 1]
    assert np.abs(one - messages).max() > 1e-3
    np.testing.assert_allclose(
        result, np.broadcast_to(one, result.shape), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "options",
    [
        {"memory": True},
        {"correct_errors": True, "corrupt": True},
        {"debias": "share", "method": "partials"},
    ],
    ids=str,
)
@every_code(
    weekly_unless(
        ["cyclic_mds, complex", "cyclic_repetition"], daily=["cyclic_mds, complex"]
    )
)
def test_options_of_coded_aggregate(name, options):
    """Three rounds at each size give the gradients and states of size 1."""
    code = CODES[name]
    num_lost = code.num_stragglers + 1
    options = {"method": "messages", **options}
    if options.get("corrupt"):
        is_right = np.arange(code.num_workers) != 3
        options["corrupt"] = corruptions.sign_flip(stragglers.fixed(is_right))
        num_lost = 0
    model = stragglers.uniform(num_lost)
    transform = jaxwgc.coded_aggregate(code, model, KEY, **options)
    sizes = sizes_of(np.float32)[1:-1]
    gradients, _ = rows_of(code, 6)
    params = np.zeros(gradients.shape[1], np.float32)

    @jax.jit
    @jax.vmap
    def run(gradients):
        def step(state, factor):
            updates, state = transform.update(gradients * factor, state, params)
            return state, updates

        factors = jnp.array([1.0, 0.5, 0.25], gradients.dtype)
        state, updates = jax.lax.scan(step, transform.init(params), factors)
        return updates, state.num_undecodable, state.residual, state.errors

    by_size = (sizes[:, None, None] * gradients).astype(np.float32)
    updates, *state = run(by_size)
    [one] = np.flatnonzero(sizes == 1)
    scaled = np.asarray(updates, np.float64) / sizes[:, None, None]
    scale = np.abs(scaled[one]).max()
    assert scale > 0.1
    expected = np.broadcast_to(scaled[one], scaled.shape)
    np.testing.assert_allclose(scaled, expected, rtol=0, atol=1e-3 * scale)
    assert np.all((scaled == 0) == (expected == 0))
    for leaf in jax.tree.leaves(state):
        assert np.all(leaf == leaf[one])
