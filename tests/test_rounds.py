"""The seams: messages of a worker from its own parts, and one round decoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, coding

KEY = jax.random.key(0)
CODES = {
    "real": codes.cyclic_repetition(KEY, 5, 2),
    "complex": codes.reed_solomon(6, 3, 4),
    "segments": codes.communication_efficient(6, 1, 2),
    "messages": codes.multi_message(codes.cyclic_mds(5, 2)),
    "weighted": jaxwgc.weighted(codes.cyclic_mds(5, 1), np.arange(1.0, 6)),
}
every_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def gradients_of(code, dtype=np.float32):
    draw = np.random.default_rng(0).normal
    tree = {"w": draw(size=(code.num_parts, 3)), "b": draw(size=code.num_parts)}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def like(gradients):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), gradients)


@every_code
def test_a_worker_forms_its_messages_from_its_own_parts(code):
    gradients = gradients_of(code)
    expected = jaxwgc.encode(code, gradients)
    for worker in range(code.num_workers):
        held = np.flatnonzero(code.assignment[worker])
        first = worker * code.messages_per_worker
        rows = code.encoding_matrix[first : first + code.messages_per_worker]
        columns = held[:, None] * code.num_segments + np.arange(code.num_segments)
        mine = {name: leaf[held] for name, leaf in gradients.items()}
        own = coding.form_messages(rows[:, columns.ravel()], mine)
        sent = expected[first : first + code.messages_per_worker]
        np.testing.assert_allclose(own, sent, atol=1e-5)


@jax.jit
def one_round(code, mask, gradients):
    """The decoding, and the gradient by messages, partial gradients and sums."""
    params = like(gradients)
    messages = jaxwgc.encode(code, gradients)
    decoding = jaxwgc.decoding(code, mask)

    def sums(weights):
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), gradients)

    decoded = (
        decoding.combine(messages, params),
        decoding.collapse(gradients),
        decoding.collapse(sums),
    )
    return decoding, decoding.failed(), decoded


@every_code
@pytest.mark.parametrize("num_lost", [1, 4])
def test_from_messages_and_from_partial_gradients(code, num_lost):
    """Alike in rounds that decode, and in those that do not; a decoding is a pytree."""
    gradients = gradients_of(code)
    mask = np.arange(code.num_workers) >= num_lost
    decoding, failed, decoded = one_round(code, mask, gradients)
    assert failed == (num_lost > code.num_stragglers)
    np.testing.assert_allclose(decoding.residual**2, decoding.error, atol=1e-4)
    np.testing.assert_array_equal(decoding.received, mask)
    first = decoding.weights @ code.encoding_matrix
    own = np.trace(
        first.reshape(code.num_segments, -1, code.num_segments).real, axis1=0, axis2=2
    )
    np.testing.assert_allclose(
        decoding.effective_weights, own / code.num_segments, atol=1e-5
    )
    for name, leaf in gradients.items():
        expected = np.tensordot(decoding.effective_weights, np.float64(leaf), 1)
        for gradient in decoded:
            np.testing.assert_allclose(gradient[name], decoded[0][name], atol=1e-4)
            if num_lost == 1:
                np.testing.assert_allclose(gradient[name], expected, atol=1e-4)


def test_known_weights_need_no_decoder():
    """As where another device has found them."""
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


def test_tolerance_and_batches():
    code = codes.uncoded(4)
    mask = np.array([True, True, True, False])
    gradients = np.ones((4, 2), np.float32)
    for tolerance, failed in ((0.49, True), (0.51, False)):
        assert bool(jaxwgc.decoding(code, mask).failed(tolerance)) is failed
    masks = np.stack([mask, ~mask])
    decode = jax.jit(
        jax.vmap(lambda mask: jaxwgc.decoding(code, mask).collapse(gradients))
    )
    np.testing.assert_array_equal(decode(masks), [[3, 3], [1, 1]])


def test_arrivals():
    """Finished parts count where a worker sends several messages."""
    delay = jaxwgc.stragglers.shifted_exponential(1.0, 1.0)
    model = jaxwgc.stragglers.delayed(delay, jaxwgc.stragglers.fastest(3))
    for code in (CODES["real"], CODES["messages"]):
        loads = jnp.asarray(code.loads, jnp.float32)
        arrivals, _ = model.sample(KEY, model.init(code.num_workers), loads)
        several = code.messages_per_worker > 1
        expected = (
            jaxwgc.decoding(code, finished=arrivals.finished)
            if several
            else jaxwgc.decoding(code, arrivals.received)
        )
        decoding = jaxwgc.decoding(code, arrivals)
        np.testing.assert_array_equal(decoding.mask, expected.mask)
        np.testing.assert_array_equal(decoding.weights, expected.weights)


class TestBadInput:
    code = codes.cyclic_mds(4, 1)

    @pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 1, 2)])
    def test_rows_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"matrix_rows must have shape \(num_rows"):
            coding.form_messages(np.ones(shape), np.ones((2, 5)))

    def test_gradients_of_no_parts(self):
        with pytest.raises(ValueError, match="partial_gradients"):
            coding.form_messages(np.ones((1, 2)), np.float32(1))
        with pytest.raises(ValueError, match="num_held = 2; got shape"):
            coding.form_messages(np.ones((1, 2)), [np.ones((2, 1)), np.ones((3, 1))])
        with pytest.raises(TypeError, match="matrix_rows must be numbers"):
            coding.form_messages(np.array([["a", "b"]]), np.ones((2, 1)))

    def test_gradients_and_messages_of_the_wrong_shape(self):
        decoding = jaxwgc.decoding(self.code, np.ones(4, bool))
        messages = np.ones((4, 2), np.complex64)
        with pytest.raises(ValueError, match="messages must have shape"):
            decoding.combine(messages, np.ones(5))
        with pytest.raises(ValueError, match="params must be given with messages"):
            decoding.combine(messages, None)
        with pytest.raises(ValueError, match="leading axis of num_parts = 4"):
            decoding.collapse(np.ones((3, 2)))
        with pytest.raises(TypeError, match="tolerance must be a real scalar"):
            decoding.failed("x")

    def test_lists(self):
        formed = coding.form_messages([[1.0, 2.0]], np.ones((2, 3), np.float32))
        np.testing.assert_array_equal(formed, [[3, 3, 3]])

    def test_decodings_of_another_code(self):
        mask = np.ones(4, bool)
        for other in (codes.cyclic_mds(5, 1), jaxwgc.weighted(self.code, mask * 2.0)):
            decoding = jaxwgc.decoding(other, np.ones(other.num_workers, bool))
            with pytest.raises(ValueError, match="must be a decoding of the same code"):
                jaxwgc.decode(self.code, np.ones((4, 2)), decoding, np.ones(4))

    def test_one_round(self):
        decoding = jaxwgc.decoding(self.code, np.ones((2, 4), bool))
        with pytest.raises(ValueError, match="collapse is for one round"):
            decoding.collapse(np.ones((4, 2)))
