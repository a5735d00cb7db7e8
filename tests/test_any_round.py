"""Every weighting, mask, dtype and method, against NumPy in double precision.

`python -m pytest tests/test_any_round.py --hypothesis-profile=thorough` draws 20,000
examples for each property.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from tests import zoo
from tests.paths import all_paths, decode, gradients_of
from tests.zoo import CODES, messages_sent, target_rows

NUM_ROUNDS = 4
TINY = 1e-30
# Leaves in bfloat16 without the 64-bit mode, unless others are packed with them, to
# which rounding leaks in rounds that do not decode.
SMALL = "matrix", "number", "other"


# One of each decoder and each way to form messages.
NAMES = [
    "reed_solomon",
    "reed_solomon, slack",
    "cyclic_mds, complex",
    "cyclic_repetition",
    "fractional_repetition",
    "binary",
    "communication_efficient",
    "communication_efficient, odd",
    "clustered",
    "multi_message",
    "partial, complex",
    "bernoulli",
    "ldgm",
    "from_matrix",
]


class Rounds(NamedTuple):
    """A code with weights, who answers in some rounds, and partial gradients."""

    name: str
    weights: np.ndarray
    observed: np.ndarray
    gradients: dict[str, np.ndarray]


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
    return Rounds(name, weights, observed, gradients_of(code, np.float64, generator))


def prepared(drawn):
    """The code, the code with weights, and its matrix as it is computed with."""
    code = CODES[drawn.name]
    weights = drawn.weights.astype(jnp.result_type(float))
    own = jaxwgc.weighted(code, weights)
    columns = np.repeat(weights, code.num_segments)
    matrix = np.asarray(code.encoding_matrix) * columns
    return code, own, matrix.astype(jax.dtypes.canonicalize_dtype(matrix.dtype))


def wide(array):
    """In double precision."""
    return np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64)


def first_rounds(found):
    """Those that were drawn, wide."""
    return jax.tree.map(lambda leaf: wide(leaf)[:NUM_ROUNDS], found)


@pytest.mark.parametrize("x64", [False, True], ids=["float32-bfloat16", "float64"])
@given(drawn=rounds())
def test_any_round(x64, drawn):
    # As many as in `test_every_path`, and so one compilation with that.
    repeated = np.arange(len(zoo.observed_rounds(drawn.name))) % NUM_ROUNDS
    with jax.enable_x64(x64):
        code, own, matrix = prepared(drawn)
        plain = decode(code, drawn.observed[repeated]).weights
        decodings = decode(own, drawn.observed[repeated])
        is_mixed = not (x64 or code.is_complex or code.num_segments > 1)
        gradients = {
            name: leaf.astype(
                jnp.bfloat16 if is_mixed and name in SMALL else jnp.result_type(float)
            )
            for name, leaf in drawn.gradients.items()
        }
        messages, found = all_paths(decodings, gradients)
    check_path(code, drawn, gradients, matrix, wide(messages), first_rounds(found))
    weights, plain = first_rounds((decodings.weights, plain))
    check_misses(code, drawn, matrix, weights)
    if np.all(drawn.weights) and code.num_stragglers > 0:
        check_as_without_weights(code, drawn, weights, plain)


def check_misses(code, drawn, matrix, weights):
    """At most three times NumPy's: as if all parts that count did alike, or fitted."""
    columns = np.repeat(drawn.weights, code.num_segments)
    counts = columns != 0
    columns = np.where(counts, columns, 1)
    target = target_rows(code, drawn.weights)
    aim = target / columns
    plain = (matrix / columns).astype(matrix.dtype)
    masks = messages_sent(code, drawn.observed)
    for found, mask in zip(weights, masks, strict=True):
        assert np.all(found[:, ~mask] == 0)
        if code.decoders[0].is_a(decoders.Peeling):
            continue  # It decodes less, and scales it up.
        norm = np.linalg.norm(aim)
        least = zoo.least_miss(plain, aim, mask)
        if least < 1e-4 * norm:
            # Part by part, whatever the others weigh.
            missed = np.linalg.norm((found @ wide(plain) - aim)[:, counts])
            assert missed <= max(3 * least, 1e-4 * norm)
        elif not code.decoders[0].is_a(decoders.Group):
            least = zoo.least_miss(matrix, target, mask)
            missed = np.linalg.norm(found @ wide(matrix) - target)
            assert missed <= 1.001 * least + 1e-5 * np.linalg.norm(target)


def check_as_without_weights(code, drawn, weights, plain):
    """Weights of an exact code do not depend on those of its parts."""
    whole = 1 if drawn.observed.dtype == bool else np.asarray(code.parts_per_worker)
    within = (drawn.observed != whole).sum(-1) <= code.num_stragglers
    for one, other in zip(weights[within], plain[within], strict=True):
        atol = 1e-3 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def check_path(code, drawn, partial_gradients, matrix, messages, found):
    """Every path of one dtype."""
    effective, error = found["effective"], found["error"]
    weights = found["weights"].reshape(NUM_ROUNDS, code.num_segments, -1)
    gradients = zoo.raveled(partial_gradients)
    eps = float(jnp.finfo(matrix.dtype).eps)
    matrix, blocks = wide(matrix), zoo.packed(code, gradients)
    bound = 20 * eps * (np.abs(matrix) @ np.abs(blocks)) + TINY
    assert np.all(np.abs(messages - matrix @ blocks) <= bound)

    reached = weights @ matrix
    scale = np.abs(drawn.weights).max()
    rounding = (np.abs(weights) @ np.abs(matrix)).max((1, 2)) + scale
    rounding = 30 * eps * rounding + TINY
    assert np.all(np.abs(effective - zoo.effective(code, reached)) <= rounding[:, None])

    target = target_rows(code, drawn.weights)
    missed = np.linalg.norm(reached - target, axis=(1, 2)) / np.sqrt(code.num_segments)
    size = np.sqrt(code.num_parts)
    for state in found["states"]:
        assert np.all(np.abs(state.residual - missed) <= size * rounding)
    if 1e-10 < scale < 1e15:  # Squares of others leave the range of float32.
        assert np.all(np.abs(np.sqrt(error) - missed) <= size * rounding)
    bar = 1e-3 * np.linalg.norm(drawn.weights)
    clear = np.abs(missed - bar) > 2 * size * rounding
    for state in found["states"]:
        failed = state.num_undecodable[clear] == 1
        np.testing.assert_array_equal(failed, (missed > bar)[clear])

    decoded = zoo.unpacked(code, reached @ blocks, gradients.shape[1])
    bound = ((rounding + 1e-4 * scale) * np.abs(gradients).sum())[:, None]
    # Results of few bits are rounded to them, and so are cotangents of such losses.
    sizes = np.abs(decoded) + np.abs(effective) @ np.abs(gradients)
    few_bits = {
        name: np.full(leaf.shape, jnp.finfo(leaf.dtype).eps)
        for name, leaf in partial_gradients.items()
    }
    bound = bound + 4 * zoo.raveled(few_bits)[0] * sizes
    for path, tree in found["paths"].items():
        assert np.all(np.abs(zoo.raveled(tree) - decoded) <= bound), path
