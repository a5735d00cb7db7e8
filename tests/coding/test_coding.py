"""Messages and decodings: what does not depend on how the weights are found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.coding import Arrived, form_messages
from tests.catalogue.codes import CODES
from tests.conftest import arrivals, random_patterns
from tests.zoo import KEY, every_code, gradients_of, like, messages_sent

COMPLEX = CODES["reed_solomon"]
UNCODED = CODES["multi_message, uncoded"]
ALL = np.ones(6, bool)


@every_code(
    [
        "regular_graph",
        "cyclic_mds, complex",
        "communication_efficient, odd",
        "multi_message",
        "partially_coded, complex",
    ]
)
def test_a_worker_forms_its_messages_from_its_own_parts(name):
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    expected = np.asarray(jaxwgc.encode(code, gradients))
    for worker in range(code.num_workers):
        held = np.flatnonzero(code.assignment[worker])
        first = worker * code.messages_per_worker
        rows = code.encoding_matrix[first : first + code.messages_per_worker]
        columns = held[:, None] * code.num_segments + np.arange(code.num_segments)
        mine = {name: leaf[held] for name, leaf in gradients.items()}
        if len(held):
            formed = form_messages(rows[:, columns.ravel()], mine)
            sent = expected[first : first + code.messages_per_worker]
            np.testing.assert_allclose(formed, sent, rtol=1e-4, atol=1e-4)


@every_code(["uncoded", "reed_solomon", "communication_efficient"])
def test_parts_that_only_lost_workers_hold_may_hold_anything(name):
    """Derivatives do not depend on them either."""
    code = CODES[name]
    decoding = jaxwgc.decoding(code, ~code.assignment[:, 0])
    gradients = np.random.default_rng(0).normal(size=(code.num_parts, 3))
    spoiled = gradients.copy()
    spoiled[0] = np.nan
    collapse = jax.jit(
        jax.value_and_grad(lambda leaves: jnp.sum(decoding.collapse(leaves)))
    )
    for result, expected in zip(collapse(spoiled), collapse(gradients)):
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e38])
@every_code(["reed_solomon", "communication_efficient", "multi_message, uncoded"])
def test_messages_that_are_missing_never_reach_the_result(name, garbage):
    """Workers may be stragglers, or may have sent some of their messages."""
    code = CODES[name]
    observed = np.arange(code.num_workers)
    if code.messages_per_worker == 1:
        observed = observed > 1
    decoding = jaxwgc.decoding(code, **arrivals(observed))
    sent = messages_sent(code, observed)
    assert 0 < sent.sum() < code.num_messages
    gradients = gradients_of(code.num_parts)
    clean = jaxwgc.encode(code, gradients)
    spoiled = jnp.where(sent[:, None], clean, garbage)
    expected, decoded = (
        decoding.combine(messages, like(gradients)) for messages in (clean, spoiled)
    )
    for leaf, reference in zip(*map(jax.tree.leaves, (decoded, expected)), strict=True):
        np.testing.assert_array_equal(leaf, reference)
        assert np.all(np.isfinite(leaf))


def test_batch_axes_of_messages_and_masks_are_broadcast():
    """Weights of a code with segments have an axis of their own."""
    code = CODES["communication_efficient"]
    gradients = np.random.default_rng(0).normal(size=(3, 1, 6, 5)).astype(np.float32)
    messages = jax.vmap(jax.vmap(lambda tree: jaxwgc.encode(code, tree)))(gradients)
    received = random_patterns(6, 2, 4)
    decoded = jaxwgc.decode(code, messages, received, jnp.zeros(5))
    assert decoded.shape == (3, 4, 5)
    truth = np.broadcast_to(gradients.sum(2), (3, 4, 5))
    np.testing.assert_allclose(decoded, truth, atol=1e-4)
    assert jaxwgc.decoding(code, received[:0]).weights.shape == (0, 2, 6)


def test_code_passes_through_tree_map():
    copy = jax.tree.map(jnp.asarray, COMPLEX)
    assert copy.num_stragglers == COMPLEX.num_stragglers
    assert list(map(str, copy.decoders)) == list(map(str, COMPLEX.decoders))
    assert "num_workers=6" in repr(COMPLEX)


def test_decoding_weights_are_constants_for_reverse_mode():
    def total(target):
        return jaxwgc.decoding(
            jaxwgc.weighted(COMPLEX, target), ALL
        ).effective_weights.sum()

    np.testing.assert_allclose(jax.grad(total)(jnp.ones(6)), 1, atol=1e-4)


def test_leaks_of_undecodable_rounds_are_not_rounded_to_zero():
    """Three of six are lost, one too many; the leak is a thousandth of the weights."""
    weights = [15.20945, -33.69246, 5.970909, 15.95485, 217.9779, 756.6506]
    code = jaxwgc.weighted(CODES["cyclic_mds, complex"], np.array(weights))
    first = [-0.391852, -0.282485, 0.375778, 0.168904, 0.035375, 0.757748]
    second = [-0.821573, -0.741191, 0.323251, -0.401712, 2.312573, -0.620753]
    gradients = np.stack([first, second], axis=1).astype(np.float32)
    decoding = jaxwgc.decoding(code, np.array([False, False, False, True, True, False]))
    assert decoding.failed()
    weights = np.asarray(decoding.weights, complex)
    mixed = weights @ code.encoding_matrix @ (gradients @ [1, 1j])
    expected = [mixed[0].real, mixed[0].imag]
    messages = jaxwgc.encode(code, gradients)
    decoded = decoding.combine(messages, jnp.zeros(2))
    np.testing.assert_allclose(decoded, expected, rtol=1e-4)
    np.testing.assert_allclose(decoding.collapse(gradients), expected, rtol=1e-4)


def test_small_entries_of_weighted_codes_are_not_rounded_to_zero():
    """The weights of some of these rounds are large: rounding is near, but below."""
    code = codes.reed_solomon(200, 200, 20)
    draw = np.random.default_rng(0)
    code = jaxwgc.weighted(code, draw.integers(1, 6, 200))
    gradients = draw.normal(size=(200, 64)).astype(np.float32)
    expected = code.target @ gradients
    messages = jaxwgc.encode(code, gradients)
    masks = random_patterns(200, code.num_stragglers, 1000)
    decode = jax.jit(lambda mask: jaxwgc.decode(code, messages, mask, expected))
    errors = np.linalg.norm(decode(masks) - expected, axis=1)
    assert errors.max() < 1e-3 * np.linalg.norm(expected)


def test_the_recovered_share_of_a_target_of_zeros_is_zero():
    code = jaxwgc.weighted(codes.uncoded(3), np.zeros(3))
    assert jaxwgc.decoding(code, np.ones(3, bool)).share == 0


def test_decodings_of_another_target_are_rejected():
    matrix = np.eye(2)
    code = jaxwgc.GradientCode.from_matrix(matrix)
    other = jaxwgc.GradientCode.from_matrix(matrix, target=[2.0, 1.0])
    decoding = jaxwgc.decoding(code, np.ones(2, bool))
    with pytest.raises(ValueError, match="a decoding of the same code"):
        jaxwgc.decoding(other, decoding)


def test_weights_of_missing_messages_count_nowhere():
    decoding = jaxwgc.Decoding(codes.uncoded(3), [True, True, False], [[1, 1, 1]])
    gradients = np.ones((3, 1), np.float32)
    assert decoding.error == 1
    np.testing.assert_array_equal(decoding.collapse(gradients), [2])
    np.testing.assert_array_equal(decoding.combine(gradients, np.zeros(1)), [2])


def test_complex_weights_of_a_real_code_are_rejected():
    with pytest.raises(TypeError, match="weights must be real"):
        jaxwgc.Decoding(codes.uncoded(2), np.ones(2, bool), np.ones((1, 2), complex))


def test_integer_messages_of_packed_segments():
    code = codes.communication_efficient(6, 2, 2)
    messages = np.arange(12).reshape(6, 2)
    received = np.ones(6, bool)
    decoded = [
        jaxwgc.decode(code, wire_messages, received, np.zeros(4, np.float32))
        for wire_messages in (messages, messages.astype(np.float32))
    ]
    np.testing.assert_array_equal(*decoded)


def test_gradients_without_entries_collapse():
    decoding = jaxwgc.decoding(codes.reed_solomon(6, 3, 4), np.arange(6) < 2)
    assert decoding.collapse(np.ones((3, 0), np.float32)).shape == (0,)


def test_known_weights_need_no_decoder():
    """Another device may have found them."""
    code = codes.uncoded(3)
    weights = jnp.array([[2.0, 0.0, 1.0]])
    decoding = jaxwgc.Decoding(code, weights[0] > 0, weights)
    assert jaxwgc.decoding(code, decoding) is decoding
    gradients = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(decoding.collapse(gradients), [2, 0, 1])
    np.testing.assert_array_equal(
        jaxwgc.decode(code, jaxwgc.encode(code, gradients), decoding, jnp.zeros(3)),
        [2, 0, 1],
    )
    for wrong in ((weights[0] > 0, jnp.ones(5)), (jnp.ones(2, bool), weights)):
        with pytest.raises(ValueError, match=r"must have shape .* 3\); got"):
            jaxwgc.Decoding(code, *wrong).collapse(gradients)


@every_code(["reed_solomon", "cyclic_repetition"])
def test_complex_parameters(name):
    code = CODES[name]
    draw = np.random.default_rng(0).normal(size=(2, code.num_parts, 3))
    gradients = {"z": (draw[0] + 1j * draw[1]).astype(np.complex64)}
    messages = jaxwgc.encode(code, gradients)
    decoded = jaxwgc.decode(code, messages, ALL, like(gradients))
    assert decoded["z"].dtype == np.complex64
    np.testing.assert_allclose(decoded["z"], gradients["z"].sum(0), atol=1e-3)


def test_small_integers_do_not_wrap_around():
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
        np.testing.assert_array_equal(code.encoding_matrix, np.diag([200, 9]))


def test_python_numbers_are_taken_as_parameters_and_weights():
    code = jaxwgc.weighted(CODES["uncoded"], [1, 2, 3, 4, 5, 6])
    messages = jaxwgc.encode(code, {"b": np.ones(6, np.float32)})
    decoded = jaxwgc.decode(code, messages, ALL, {"b": np.float32(0)})
    np.testing.assert_allclose(decoded["b"], 21, rtol=1e-6)
    formed = form_messages([[1.0, 2.0]], np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(formed, [[3, 3, 3]])


def test_a_weighted_code_from_double_precision_works_without_it():
    with jax.enable_x64(True):
        weighted = [
            jaxwgc.weighted(CODES[name], jnp.arange(1.0, 7))
            for name in ("cyclic_mds, complex", "cyclic_repetition", "bernoulli")
        ]
    for code in weighted[:2]:
        effective = jaxwgc.decoding(code, ALL).effective_weights
        np.testing.assert_allclose(effective, np.arange(1.0, 7), rtol=1e-4)
        assert jaxwgc.encode(code, jnp.ones((6, 2))).dtype in (np.float32, np.complex64)
    assert jnp.isfinite(jaxwgc.decoding(weighted[2], ALL).error)


def test_weighted_codes_of_numpy_stay_in_numpy_and_others_in_float32():
    code = codes.uncoded(3)
    weights = np.array([1, 2, 1 / 3])
    on_host = jaxwgc.weighted(code, weights)
    np.testing.assert_array_equal(on_host.encoding_matrix, np.diag(weights))
    half = dataclasses.replace(code, target=jnp.ones(3, jnp.bfloat16))
    assert jaxwgc.weighted(half, weights).target.dtype == np.float32


def test_a_mask_of_messages_is_rejected():
    with pytest.raises(ValueError, match=r"3\); got"):
        jaxwgc.decoding(UNCODED, np.ones(9, bool))


def test_arrivals_of_a_model():
    """Finished parts count where a worker sends several messages."""
    delay = jaxwgc.stragglers.shifted_exponential(1.0, 1.0)
    model = jaxwgc.stragglers.delayed(delay, jaxwgc.stragglers.fastest(3))
    for code in (CODES["fractional_repetition"], CODES["multi_message"]):

        @jax.jit
        def observe(key, code=code):
            arrivals, _ = model.sample(key, model.init(code.num_workers), code.loads)
            observed = arrivals.received
            if code.messages_per_worker > 1:
                observed = arrivals.finished(code.parts_per_worker)
            return observed, jaxwgc.decoding(code, arrivals).mask

        observed, mask = observe(KEY)
        np.testing.assert_array_equal(mask, messages_sent(code, np.asarray(observed)))


def test_traced_counts_out_of_range_count_as_no_response():
    """Counts that wrap around do, too: the round cannot be decoded."""
    arrived = jax.jit(lambda counts: Arrived.of(UNCODED, finished=counts).mask)
    for count in (np.uint8(255), np.int32(99), np.int32(-3)):
        finished = np.array([3, count, 1], count.dtype)
        expected = [True] * 3 + [False] * 3 + [True, False, False]
        np.testing.assert_array_equal(arrived(finished), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either received or finished= must be given; got neither"),
        (
            {"received": np.ones(3, bool), "finished": np.ones(3, int)},
            "must be given; got both",
        ),
        ({"received": [[True], [True, False]]}, "inhomogeneous"),
        (
            {"received": np.ones((3, 1), bool)},
            "received must have (shape|a leading axis)",
        ),
        ({"received": np.bool_(True)}, "received must have (shape|a leading axis)"),
        ({"received": np.ones(4, bool)}, "received must have (shape|a leading axis)"),
        ({"finished": np.array([3, 0, -1])}, "finished must be from 0 to"),
        ({"finished": np.array([3, 0, 2**32 + 1])}, "finished must be from"),
    ],
)
def test_rounds_that_do_not_fit_the_code_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.decoding(codes.uncoded(3, 9), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"received": np.ones(3)}, "received must be a bool mask; got float"),
        ({"finished": np.ones(3)}, "finished must be integers; got float64"),
    ],
)
def test_rounds_of_another_type_are_rejected(arguments, message):
    with pytest.raises(TypeError, match=message):
        jaxwgc.decoding(codes.uncoded(3, 9), **arguments)


def test_decodings_of_another_code_are_rejected():
    other = jaxwgc.decoding(CODES["weighted"], ALL)
    with pytest.raises(ValueError, match="received must be a decoding of the same"):
        jaxwgc.decoding(CODES["uncoded"], other)


def test_counts_of_parts_are_required_where_late_workers_are_busy():
    arrivals = jaxwgc.stragglers.Arrivals(
        ALL, np.ones(6, np.float32), np.float32(1), joined=ALL
    )
    code = codes.multi_message(codes.uncoded(6, 12))
    with pytest.raises(ValueError, match='late must be "cancelled" for a code'):
        jaxwgc.decoding(code, arrivals)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([np.nan] * 6, ValueError, "weights must be finite"),
        (2.0, ValueError, "weights must have (shape|a leading axis)"),
        ([1] * 4, ValueError, "weights must have (shape|a leading axis)"),
        ([[1] * 6], ValueError, "weights must have (shape|a leading axis)"),
        (np.ones(6, complex), TypeError, "weights must be real numbers"),
    ],
)
def test_wrong_weights_of_parts_are_rejected(weights, error, message):
    with pytest.raises(error, match=message):
        jaxwgc.weighted(CODES["uncoded"], weights)


@pytest.mark.parametrize(
    ("messages", "params", "message"),
    [
        (np.ones((6, 4), complex), np.zeros(4), "messages.* 6, 2"),
        (np.ones((6, 2), complex), None, "params must be given"),
        (
            np.ones((5, 2), complex),
            np.zeros(4, np.float32),
            "messages must have (shape|a leading axis)",
        ),
    ],
)
def test_combine_rejects_messages_of_another_shape(messages, params, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.decoding(COMPLEX, ALL).combine(messages, params)


@pytest.mark.parametrize(
    ("messages", "params", "message"),
    [
        (np.ones((6, 2)), np.zeros(4), "messages must be complex"),
        (np.full((6, 2), "a"), np.zeros(4), "messages must be numbers or"),
        (
            np.zeros((6, 2), np.complex64),
            {"b": jax.ShapeDtypeStruct((4,), np.int32)},
            r"params\['b'\] must .* got int32",
        ),
        (np.ones((6, 2), complex), 12, "params must be real or complex"),
    ],
)
def test_combine_rejects_arrays_of_another_dtype(messages, params, message):
    with pytest.raises(TypeError, match=message):
        jaxwgc.decoding(COMPLEX, ALL).combine(messages, params)


@pytest.mark.parametrize(
    ("gradients", "mask", "message"),
    [
        (np.ones((3, 2)), ALL, "partial_gradients.* = 6"),
        (np.ones(6), ALL[None], "mask must be of one round"),
    ],
)
def test_collapse_rejects_other_parts_and_several_rounds(gradients, mask, message):
    with pytest.raises(ValueError, match=message):
        jaxwgc.decoding(CODES["uncoded"], mask).collapse(gradients)


def test_failed_rejects_a_tolerance_that_is_text():
    decoding = jaxwgc.decoding(CODES["uncoded"], ALL)
    with pytest.raises(TypeError, match="tolerance must be a real scalar"):
        decoding.failed("x")
