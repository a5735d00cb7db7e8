"""The seams: messages of a worker from its own parts, and one round decoded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, coding
from tests.strategies import decoded_once

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
    """The round by messages, by partial gradients and by sums; and piece by piece."""
    params = like(gradients)
    messages = jaxwgc.encode(code, gradients)
    code = decoded_once(code, received=mask)

    def sums(weights):
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), gradients)

    rounds = (
        coding.decode_round(code, mask, messages=messages, params=params),
        coding.decode_round(code, mask, partial_gradients=gradients),
        coding.decode_round(code, mask, partial_gradients=sums),
    )
    return rounds, {
        "gradient": jaxwgc.decode(code, messages, mask, params),
        "error": jaxwgc.decoding_error(code, mask),
        "effective": jaxwgc.effective_weights(code, mask),
    }


@every_code
@pytest.mark.parametrize("num_lost", [1, 4])
def test_from_messages_and_from_partial_gradients(code, num_lost):
    """Alike in rounds that decode, and in those that do not."""
    gradients = gradients_of(code)
    mask = np.arange(code.num_workers) >= num_lost
    rounds, expected = one_round(code, mask, gradients)
    for found in rounds:
        for name, leaf in expected["gradient"].items():
            np.testing.assert_allclose(found.gradient[name], leaf, atol=1e-4)
        np.testing.assert_allclose(found.residual**2, expected["error"], atol=1e-4)
        assert found.failed == (num_lost > code.num_stragglers)
        np.testing.assert_array_equal(found.received, mask)
        np.testing.assert_allclose(
            found.effective_weights, expected["effective"], atol=1e-5
        )


def test_tolerance_and_batches():
    code = codes.uncoded(4)
    mask = np.array([True, True, True, False])
    gradients = np.ones((4, 2), np.float32)
    for tolerance, failed in ((0.49, True), (0.51, False)):
        found = coding.decode_round(
            code, mask, partial_gradients=gradients, tolerance=tolerance
        )
        assert bool(found.failed) is failed
    masks = np.stack([mask, ~mask])
    rounds = jax.jit(
        jax.vmap(
            lambda mask: coding.decode_round(code, mask, partial_gradients=gradients)
        )
    )(masks)
    np.testing.assert_array_equal(rounds.gradient, [[3, 3], [1, 1]])


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

    def test_messages_or_partial_gradients(self):
        mask = np.ones(4, bool)
        for given in (
            {},
            {"messages": np.ones((4, 2)), "partial_gradients": np.ones((4, 2))},
        ):
            with pytest.raises(ValueError, match="must be given, and not both"):
                coding.decode_round(self.code, mask, **given)
        with pytest.raises(ValueError, match="messages must have shape"):
            coding.decode_round(
                self.code, mask, messages=np.ones((4, 2)), params=np.ones(3)
            )
        with pytest.raises(ValueError, match="leading axis of num_parts = 4"):
            coding.decode_round(self.code, mask, partial_gradients=np.ones((3, 2)))

    def test_lists(self):
        found = coding.form_messages([[1.0, 2.0]], np.ones((2, 3), np.float32))
        np.testing.assert_array_equal(found, [[3, 3, 3]])

    def test_what_goes_with_messages(self):
        mask, messages = np.ones(4, bool), np.ones((4, 2))
        with pytest.raises(ValueError, match="params must be given with messages"):
            coding.decode_round(self.code, mask, messages=messages)
        with pytest.raises(ValueError, match="of one round; got"):
            coding.decode_round(
                self.code, mask, messages=messages[None], params=np.ones(2)
            )
        with pytest.raises(TypeError, match="tolerance must be a real scalar"):
            coding.decode_round(
                self.code, mask, messages=messages, params=np.ones(2), tolerance="x"
            )

    def test_one_round(self):
        with pytest.raises(ValueError, match=r"received must have shape \(num_workers"):
            coding.decode_round(
                self.code, np.ones((2, 4), bool), partial_gradients=np.ones((4, 2))
            )
