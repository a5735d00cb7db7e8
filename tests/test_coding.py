"""Encoding and decoding against NumPy in float64, for every code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxwgc
from jaxwgc import _flat_vectors, decoders
from jaxwgc.decoders._interpolation import interpolate as lagrange
from tests.conftest import arrivals, random_patterns, row_scales

KEY = jax.random.key(0)
NUM_MASKS = 10


@functools.partial(jax.jit, static_argnames="decoder")
def weights_and_errors(code, received, decoder=None):
    """Of NUM_MASKS masks, weights or not: one program for each kind of code."""
    received = jaxwgc.decoding(code, received, decoder)
    return {
        "weights": jaxwgc.decoding_weights(code, received),
        "effective": jaxwgc.effective_weights(code, received),
        "error": jaxwgc.decoding_error(code, received),
    }


CODES = {
    "reed_solomon": jaxwgc.codes.reed_solomon(10, 5, 6),
    "no_slack": jaxwgc.codes.reed_solomon(8, 8, 3),
    "uncoded": jaxwgc.codes.uncoded(6),
    "fractional": jaxwgc.codes.fractional_repetition(6, 2),
    "cyclic": jaxwgc.codes.cyclic_repetition(jax.random.key(2), 7, 2),
}
every_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)
every_decoder = pytest.mark.parametrize("name", ["no_slack", "fractional", "cyclic"])


def gradients_of(code, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed).normal
    return {
        "matrix": draw(size=(code.num_parts, 3, 2)).astype(dtype),
        "scalar": draw(size=code.num_parts).astype(dtype),
    }


def like(gradients):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), gradients
    )


@every_code
def test_round_trip(code, x64):
    dtype = np.float64 if x64 else np.float32
    gradients = gradients_of(code, dtype=dtype)
    messages = jaxwgc.encode(code, gradients)
    length = 4 if code.is_complex else 7
    assert messages.shape == (code.num_workers, length)
    assert messages.dtype == (np.result_type(dtype, 1j) if code.is_complex else dtype)
    received = random_patterns(code.num_workers, code.num_stragglers, 4)
    batched = jaxwgc.decode(code, messages, received, like(gradients))
    tolerance = 1e-10 if x64 else 2e-4
    for name, leaf in gradients.items():
        truth = np.broadcast_to(leaf.sum(0), batched[name].shape)
        assert batched[name].dtype == dtype
        np.testing.assert_allclose(batched[name], truth, atol=tolerance)


@every_decoder
def test_one_mask_and_masks_that_are_mapped_over(name):
    code = CODES[name]
    gradients = gradients_of(code)
    messages = jaxwgc.encode(code, gradients)
    received = random_patterns(code.num_workers, code.num_stragglers, 4)
    decode = jax.jit(lambda mask: jaxwgc.decode(code, messages, mask, like(gradients)))
    alone, mapped = decode(received[1]), jax.vmap(decode)(received)
    for name, leaf in gradients.items():
        truth = np.broadcast_to(leaf.sum(0), mapped[name].shape)
        np.testing.assert_allclose(mapped[name], truth, atol=2e-4)
        np.testing.assert_allclose(alone[name], mapped[name][1], atol=2e-4)


@every_code
def test_messages_are_rows_of_the_matrix_times_the_gradients(code):
    gradients = gradients_of(code)
    flat = np.concatenate(
        [gradients["matrix"].reshape(code.num_parts, -1), gradients["scalar"][:, None]],
        axis=1,
    )
    if code.is_complex:
        padded = np.pad(flat, [(0, 0), (0, 1)])
        flat = padded[:, :4] + 1j * padded[:, 4:]
    np.testing.assert_allclose(
        jaxwgc.encode(code, gradients),
        code.encoding_matrix @ flat,
        rtol=2e-4,
        atol=1e-3,
    )


@every_code
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e38])
def test_messages_of_stragglers_never_reach_the_result(code, garbage):
    gradients = gradients_of(code)
    received = random_patterns(code.num_workers, code.num_stragglers, 1)[0]
    clean = jaxwgc.encode(code, gradients)
    spoiled = jnp.where(received[:, None], clean, garbage)
    np.testing.assert_array_equal(
        jaxwgc.decode(code, spoiled, received, like(gradients))["matrix"],
        jaxwgc.decode(code, clean, received, like(gradients))["matrix"],
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["multi_message", "partial", "segments"])
def test_messages_not_yet_sent_never_reach_the_result(name, garbage):
    """Of a worker that has sent some of its messages, those that are to come."""
    code = {
        "multi_message": jaxwgc.codes.multi_message(jaxwgc.codes.uncoded(3, 6)),
        "partial": jaxwgc.codes.partial(jaxwgc.codes.cyclic_repetition(KEY, 4, 1), 1),
        "segments": jaxwgc.codes.communication_efficient(6, 2, 2),
    }[name]
    received = np.arange(code.num_workers)
    if code.messages_per_worker == 1:
        received = received > 1
        sent = received
    else:
        sent = (received[:, None] >= code.required_parts).ravel()
    gradients = gradients_of(code)
    clean = jaxwgc.encode(code, gradients)
    spoiled = jnp.where(sent[:, None], clean, garbage)
    assert 0 < sent.sum() < len(clean)
    params, observed = like(gradients), arrivals(received)
    expected = jaxwgc.decode(code, clean, params=params, **observed)
    decoded = jaxwgc.decode(code, spoiled, params=params, **observed)
    for name, leaf in decoded.items():
        np.testing.assert_array_equal(leaf, expected[name])
        assert np.all(np.isfinite(leaf))


def test_batch_axes_of_messages_and_masks_are_broadcast():
    """Of a code with segments, whose weights have an axis of their own."""
    code = jaxwgc.codes.communication_efficient(6, 2, 2)
    gradients = np.random.default_rng(0).normal(size=(3, 1, 6, 5)).astype(np.float32)
    messages = jax.vmap(jax.vmap(lambda own: jaxwgc.encode(code, own)))(gradients)
    received = random_patterns(6, 2, 4)
    decoded = jaxwgc.decode(code, messages, received, jnp.zeros(5))
    assert decoded.shape == (3, 4, 5)
    truth = np.broadcast_to(gradients.sum(2), (3, 4, 5))
    np.testing.assert_allclose(decoded, truth, atol=1e-4)
    one = jaxwgc.decode(code, messages[1, 0], received[2], jnp.zeros(5))
    np.testing.assert_allclose(one, decoded[1, 2], atol=1e-5)


@every_code
def test_more_than_enough_answers_decode_exactly(code):
    received = np.ones((NUM_MASKS, code.num_workers), bool)
    for row in range(NUM_MASKS):
        received[row, : min(row, code.num_stragglers)] = False
    weights = weights_and_errors(code, received)["effective"]
    np.testing.assert_allclose(weights, 1, atol=2e-4)


@every_code
def test_too_few_answers_decode_as_least_squares(code, with_x64):
    lost = min(code.num_stragglers + 2, code.num_workers - 1)
    received = random_patterns(code.num_workers, lost, NUM_MASKS)
    error = weights_and_errors(code, received)["error"]
    # Fractional repetition's own decoder has other weights of no more error.
    is_own = code.decoders[0].is_a(decoders.LeastSquares)
    decoder = None if is_own else decoders.LeastSquares
    weights = weights_and_errors(code, received, decoder)["weights"]
    for mask, own, own_error in zip(received, weights, error, strict=True):
        rows = np.where(mask[:, None], code.encoding_matrix, 0)
        best = np.linalg.pinv(rows.T) @ np.ones(code.num_parts)
        least = np.linalg.norm(best @ rows - 1) ** 2
        np.testing.assert_allclose(own_error, least, atol=1e-12)
        np.testing.assert_allclose(own, best, atol=1e-8)


def test_no_answer_at_all():
    code = CODES["no_slack"]
    received = np.zeros(8, bool)
    np.testing.assert_array_equal(jaxwgc.decoding_weights(code, received), 0)
    np.testing.assert_allclose(jaxwgc.decoding_error(code, received), 8)
    decoded = jaxwgc.decode(code, np.full((8, 2), np.nan + 0j), received, jnp.zeros(3))
    np.testing.assert_array_equal(decoded, 0)


@every_code
def test_weighted(code, x64):
    """Theorem 4.1, which holds for every linear code."""
    target = np.random.default_rng(1).normal(size=code.num_parts)
    received = random_patterns(code.num_workers, code.num_stragglers, NUM_MASKS)
    weighted = jaxwgc.weighted(code, target)
    reached = weights_and_errors(weighted, received)["effective"]
    tolerance = 1e-10 if x64 else 2e-4
    np.testing.assert_allclose(
        reached, np.broadcast_to(target, reached.shape), atol=tolerance
    )
    np.testing.assert_allclose(
        weighted.encoding_matrix, code.encoding_matrix * target, rtol=1e-12
    )
    twice = jaxwgc.weighted(weighted, 1 / target)
    np.testing.assert_allclose(twice.target, 1, rtol=1e-6)


@every_decoder
def test_weights_that_are_mapped_over(name):
    code = CODES[name]
    targets = np.random.default_rng(2).integers(0, 4, (6, code.num_parts))
    received = random_patterns(code.num_workers, code.num_stragglers, 6)

    def reach(mask, target):
        return jaxwgc.effective_weights(jaxwgc.weighted(code, target), mask)

    targets = targets.astype(np.float32)
    grid = jax.jit(jax.vmap(jax.vmap(reach, (None, 0)), (0, None)))(received, targets)
    np.testing.assert_allclose(grid, np.broadcast_to(targets, grid.shape), atol=1e-3)
    if name != "fractional":
        # A mask and a target each, by both decoders that have to solve something.
        reached = jax.jit(jax.vmap(reach))(received, targets)
        np.testing.assert_allclose(reached, targets, atol=1e-3)


def test_undecodable_masks_in_a_batch_leave_the_others_alone():
    """Least squares for the masks that need it, under nested vmaps and weights."""
    code = CODES["no_slack"]
    received = random_patterns(8, 2, 6).reshape(2, 3, 8)
    received[0, 1, :6] = False
    targets = np.random.default_rng(3).uniform(1, 2, (2, 8)).astype(np.float32)

    @jax.jit
    def error(mask, target):
        return jaxwgc.decoding_error(jaxwgc.weighted(code, target), mask)

    mapped = jax.jit(jax.vmap(jax.vmap(error, (0, None))))(received, targets)
    for row in range(2):
        for column in range(3):
            alone = error(received[row, column], targets[row])
            np.testing.assert_allclose(mapped[row, column], alone, atol=1e-4)
    assert mapped[0, 1] > 1
    assert np.sort(mapped.ravel())[-2] < 1e-6


def test_masks_where_lagrange_amplifies_are_rescued():
    """A few of the masks of the paper's code, in float32, the worst among them."""
    code = jaxwgc.codes.reed_solomon(50, 20, 30)
    received = random_patterns(50, 29, 1000, seed=1)
    # The matrix that encodes in float32; products in float64.
    matrix = code.encoding_matrix.astype(np.complex64).astype(np.complex128)

    def miss(weights):
        return np.abs(np.asarray(weights) @ matrix - 1).max(axis=1)

    alone = miss(lagrange(jnp.asarray(received), code.decoders[0].positions)[:, 0])
    rescued = miss(jaxwgc.decoding_weights(code, received))
    assert rescued.max() < alone.max() / 2
    # A system that is solved instead has rounding of its own.
    assert np.all(rescued <= np.maximum(1.1 * alone, 2e-4))
    changed = np.abs(rescued / alone - 1) > 0.5
    assert 1 <= changed.sum() <= 20


def test_least_squares_by_name_has_least_norm(with_x64):
    code = CODES["reed_solomon"]
    received = random_patterns(10, 3, 5)
    lagrange = jaxwgc.decoding_weights(code, received)
    least = jaxwgc.decoding_weights(code, received, decoder=decoders.LeastSquares)
    for weights in (lagrange, least):
        np.testing.assert_allclose(weights @ code.encoding_matrix, 1, atol=1e-10)
    scales = row_scales(code.encoding_matrix)
    norms, of_lagrange = (
        np.linalg.norm(own * scales, axis=1) for own in (least, lagrange)
    )
    assert np.all(norms <= of_lagrange + 1e-12)
    for mask, found in zip(received, least, strict=True):
        rows = np.where(mask[:, None], code.encoding_matrix / scales[:, None], 0)
        expected = np.linalg.pinv(rows.T) @ np.ones(5) / scales
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_code_passes_through_jit_and_tree_map():
    code = CODES["reed_solomon"]
    received = random_patterns(10, 5, 3)
    inside = jax.jit(jaxwgc.decoding_weights)(code, received)
    np.testing.assert_allclose(
        inside, jaxwgc.decoding_weights(code, received), atol=1e-5
    )
    copy = jax.tree.map(jnp.asarray, code)
    assert copy.num_stragglers == code.num_stragglers
    assert list(map(str, copy.decoders)) == list(map(str, code.decoders))
    assert "num_workers=10" in repr(code)


def test_decoding_error_is_differentiable_in_the_entries(with_x64):
    code = CODES["cyclic"]
    received = random_patterns(7, 4, 1)[0]

    def error(matrix):
        return jaxwgc.decoding_error(
            dataclasses.replace(code, encoding_matrix=matrix), received
        )

    matrix = jnp.asarray(code.encoding_matrix)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)))
    slope = jnp.vdot(jax.grad(error)(matrix), direction)
    step = 1e-6
    difference = error(matrix + step * direction) - error(matrix - step * direction)
    np.testing.assert_allclose(slope, difference / (2 * step), rtol=1e-5)


def test_reverse_mode_passes_by_decoding_weights():
    code = CODES["reed_solomon"]
    received = random_patterns(10, 5, 1)[0]
    gradient = jax.grad(
        lambda target: jaxwgc.effective_weights(
            jaxwgc.weighted(code, target), received
        ).sum()
    )(jnp.ones(5))
    np.testing.assert_allclose(gradient, 1, atol=1e-4)


class TestPytrees:
    def test_half_precision_is_coded_in_float32_and_cast_back(self):
        code = CODES["reed_solomon"]
        gradients = {
            "half": jnp.ones((5, 3), jnp.bfloat16),
            "single": jnp.full((5, 2), 1 / 3, jnp.float32),
        }
        messages = jaxwgc.encode(code, gradients)
        assert messages.dtype == jnp.complex64
        received = random_patterns(10, 5, 1)[0]
        decoded = jaxwgc.decode(code, messages, received, like(gradients))
        assert decoded["half"].dtype == jnp.bfloat16
        np.testing.assert_allclose(decoded["single"], 5 / 3, rtol=1e-4)
        np.testing.assert_array_equal(decoded["half"].astype(np.float32), 5)

    @every_code
    def test_complex_parameters(self, code):
        draw = np.random.default_rng(0).normal(size=(2, code.num_parts, 3))
        gradients = {"z": (draw[0] + 1j * draw[1]).astype(np.complex64)}
        messages = jaxwgc.encode(code, gradients)
        received = random_patterns(code.num_workers, code.num_stragglers, 1)[0]
        decoded = jaxwgc.decode(code, messages, received, like(gradients))
        assert decoded["z"].dtype == np.complex64
        np.testing.assert_allclose(decoded["z"], gradients["z"].sum(0), atol=1e-3)

    @settings(max_examples=50, deadline=None)
    @given(
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        st.integers(1, 3),
    )
    def test_ravel_and_halves_are_undone(self, shape, num_rows):
        tree = [
            np.random.default_rng(0).normal(size=(num_rows, *shape)).astype(np.float32),
            np.arange(num_rows, dtype=np.float32),
        ]

        @jax.jit
        def there_and_back(tree):
            flat = _flat_vectors.ravel(tree, num_batch_axes=1)
            again = _flat_vectors.blocks(flat, 2).reshape(num_rows, -1)
            return flat, again, _flat_vectors.unravel(again, like(tree))

        flat, again, restored = there_and_back(tree)
        size = flat.shape[-1]
        np.testing.assert_array_equal(flat, again[:, :size])
        np.testing.assert_array_equal(again[:, size:], 0)
        for leaf, own in zip(tree, restored, strict=True):
            np.testing.assert_array_equal(leaf, own)


class TestBadInput:
    code = CODES["reed_solomon"]

    @pytest.mark.parametrize("shape", [(9,), (11,), (10, 1), ()])
    def test_mask_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"received must have shape .* 10"):
            jaxwgc.decoding_weights(self.code, np.ones(shape, bool))

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_mask_of_the_wrong_type(self, dtype):
        with pytest.raises(TypeError, match="received must be a bool mask"):
            jaxwgc.decoding_weights(self.code, np.ones(10, dtype))

    def test_decoder(self):
        mask = np.ones(7, bool)
        with pytest.raises(
            ValueError, match="needs a code evaluated at roots of unity"
        ):
            jaxwgc.decoding_weights(CODES["cyclic"], mask, decoder=decoders.Lagrange)
        with pytest.raises(TypeError, match="decoder must be a jaxwgc.decoders"):
            jaxwgc.decoding_weights(CODES["cyclic"], mask, decoder="guess")

    @pytest.mark.parametrize("shape", [(), (4,), (6,), (1, 5)])
    def test_weights_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"weights must have shape \(num_parts,\)"):
            jaxwgc.weighted(self.code, np.ones(shape))

    def test_rows_of_unequal_length(self):
        mask = np.ones(self.code.num_workers, bool)
        for name, call in {
            "weights": lambda own: jaxwgc.weighted(self.code, own),
            "received": lambda own: jaxwgc.decoding_weights(self.code, own),
            "messages": lambda own: jaxwgc.decode(self.code, own, mask, np.zeros(1)),
        }.items():
            with pytest.raises(ValueError, match=f"{name} must be an array, or rows"):
                call([[1], [1, 2]])

    def test_small_integers_do_not_wrap_around(self):
        """Neither those of the code nor those of the weights."""
        for dtype in (np.int8, np.uint8, bool):
            code = jaxwgc.GradientCode(
                encoding_matrix=np.eye(2, dtype=dtype),
                assignment=np.eye(2, dtype=bool),
                target=np.ones(2, dtype),
                num_stragglers=0,
            )
            for factors in ([100, 3], [2, 3]):
                code = jaxwgc.weighted(code, np.array(factors, np.int8))
            found = jaxwgc.effective_weights(code, np.ones(2, bool))
            np.testing.assert_allclose(found, [200, 9], rtol=1e-6)

    @pytest.mark.parametrize("code", CODES.values(), ids=CODES)
    def test_no_masks_at_all(self, code):
        masks = np.ones((0, code.num_workers), bool)
        weights = jaxwgc.decoding_weights(code, masks)
        assert weights.shape[0] == 0
        assert jaxwgc.decoding_error(code, masks).shape == (0,)

    def test_complex_weights(self):
        with pytest.raises(TypeError, match="weights must be real"):
            jaxwgc.weighted(self.code, np.ones(5, complex))

    def test_partial_gradients_of_the_wrong_shape(self):
        with pytest.raises(ValueError, match=r"partial_gradients\['w'\] .* = 5"):
            jaxwgc.encode(self.code, {"w": np.ones((4, 2))})
        with pytest.raises(ValueError, match="at least one array"):
            jaxwgc.encode(self.code, {})

    def test_messages_of_the_wrong_shape_or_type(self):
        mask = np.ones(10, bool)
        with pytest.raises(ValueError, match=r"messages must have shape .* 10, 2"):
            jaxwgc.decode(self.code, np.ones((10, 4), complex), mask, np.zeros(4))
        with pytest.raises(TypeError, match="messages must be complex"):
            jaxwgc.decode(self.code, np.ones((10, 2)), mask, np.zeros(4))

    @pytest.mark.parametrize("wrong", [None, "code", np.eye(3)])
    def test_code_of_the_wrong_type(self, wrong):
        mask = np.ones(3, bool)
        for call in (
            lambda: jaxwgc.encode(wrong, np.ones((3, 2))),
            lambda: jaxwgc.decoding_weights(wrong, mask),
            lambda: jaxwgc.decode(wrong, np.ones((3, 2)), mask, np.zeros(2)),
            lambda: jaxwgc.weighted(wrong, np.ones(3)),
        ):
            with pytest.raises(TypeError, match="code must be a GradientCode"):
                call()

    def test_python_numbers_are_taken_as_parameters_and_weights(self):
        code = jaxwgc.weighted(CODES["uncoded"], [1, 2, 3, 4, 5, 6])
        messages = jaxwgc.encode(code, {"b": np.ones(6, np.float32)})
        decoded = jaxwgc.decode(code, messages, np.ones(6, bool), {"b": np.float32(0)})
        np.testing.assert_allclose(decoded["b"], 21, rtol=1e-6)
