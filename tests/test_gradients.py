"""Partial and decoded gradients against jax.grad of the plain loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from tests.catalogue.codes import CODES
from tests.conftest import random_patterns


def logistic(params, part):
    """Nonlinear in its 4 or 5 parameters, so that part and whole differ in scale."""
    score = part["x"] @ params["w"]
    if "b" in params:
        score = score + params["b"]
    return jnp.sum(jax.nn.softplus(-part["y"] * score)) + jnp.sum(params["w"] ** 4)


def logistic_problem(num_parts, bias=False, dtype=np.float64):
    draw = np.random.default_rng(0)
    params = {"w": draw.normal(size=4).astype(dtype)}
    if bias:
        params["b"] = dtype(draw.normal())
    parts = {
        "x": draw.normal(size=(num_parts, 3, 4)).astype(dtype),
        "y": draw.choice([-1.0, 1.0], (num_parts, 3)).astype(dtype),
    }
    return params, parts


def one_by_one(loss, params, parts, has_aux):
    """A Python loop of jax.value_and_grad."""
    one = jax.jit(jax.value_and_grad(loss, has_aux=has_aux))
    every_part = [dict(zip(parts, leaves)) for leaves in zip(*parts.values())]
    outputs = [one(params, part) for part in every_part]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *outputs)


def test_partial_gradients_equal_a_loop_over_the_parts(x64):
    has_aux = not x64
    dtype = np.float64 if x64 else np.float32
    params, parts = logistic_problem(3, bias=True, dtype=dtype)

    def loss(params, part):
        value = logistic(params, part)
        return (value, {"rows": part["x"].sum(1)}) if has_aux else value

    step = jaxwgc.partial_value_and_grad(loss, has_aux=has_aux)
    result = jax.jit(step)(params, parts)
    expected = one_by_one(loss, params, parts, has_aux)
    chex.assert_trees_all_close(result, expected, rtol=1e-12 if x64 else 1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(result, expected)


class TestDecodedGradients:
    """A round takes one backward pass; every mask is in `test_every_path`."""

    def test_has_aux(self, with_x64):
        code = CODES["cyclic_repetition"]
        params, parts = logistic_problem(6)

        def loss(params, part):
            return logistic(params, part), (part["x"][0], params["w"] @ part["x"][1])

        mask = random_patterns(6, 2, 1)[0]
        step = jaxwgc.decoded_value_and_grad(loss, code, has_aux=True)
        (value, aux), gradient = jax.jit(step)(params, parts, mask)
        (values, expected), gradients = one_by_one(loss, params, parts, True)
        np.testing.assert_allclose(value, values.sum(), rtol=1e-10)
        np.testing.assert_allclose(gradient["w"], gradients["w"].sum(0), rtol=1e-10)
        chex.assert_trees_all_close(aux, expected, rtol=1e-12)

    @pytest.mark.parametrize(
        ("name", "passes"),
        # Of segments one for each pair, all in one pass over the data.
        [("reed_solomon", {3: 2}), ("communication_efficient", {2: 1, 3: 5})],
    )
    def test_number_of_backward_passes(self, name, passes):
        """A second one only for what leaks, though masks are mapped over."""
        calls = []

        @jax.custom_vjp
        def watched(params):
            return jnp.sum(params**2)

        def backward(params, cotangent):
            jax.debug.callback(lambda _: calls.append(1), cotangent)
            return (2 * cotangent * params,)

        watched.defvjp(lambda params: (watched(params), params), backward)
        code = CODES[name]
        step = jaxwgc.decoded_value_and_grad(
            lambda weights, part: watched(weights * part), code
        )
        step = jax.jit(jax.vmap(step, (None, None, 0)))
        for num_lost, num_passes in passes.items():
            masks = random_patterns(6, 2, 4)
            masks[3] = random_patterns(6, num_lost, 1)[0]
            calls.clear()
            step(np.ones(3, np.float32), np.ones(6), masks)
            jax.effects_barrier()
            assert len(calls) == num_passes * 4 * code.num_parts


class TestDifferentiation:
    """Through a few unrolled steps, against the decoding written out by hand."""

    def test_through_unrolled_steps(self, with_x64):
        code = CODES["reed_solomon"]
        params, parts = logistic_problem(6)
        # An exact round, and two that leak between the halves.
        masks = np.stack([random_patterns(6, lost, 3, 1)[0] for lost in (2, 4, 5)])
        rows = np.where(masks[:, :, None], code.encoding_matrix, 0)
        mixing = (code.target[None] @ np.linalg.pinv(rows, rcond=1e-10) @ rows)[:, 0]
        assert np.abs(mixing.imag).max() > 0.1
        step_size = 0.1
        row_weights = np.ones((6, 1))
        decodings = jaxwgc.decoding(code, masks)

        def decoding(index):
            """Found once: the solver is most of a program."""
            mask = jnp.asarray(masks)[index]
            return jaxwgc.Decoding(code, mask, decodings.weights[index])

        def loss(params, part):
            part_of_step, row_weight = part
            scaled = {"x": part_of_step["x"] * row_weight, "y": part_of_step["y"]}
            return logistic(params, scaled)

        def outer(gradient_of):
            def run(step_size, row_weights):
                def step(w, mask):
                    gradient = gradient_of(w, (parts, row_weights), mask)
                    return w - step_size * gradient, None

                w, _ = jax.lax.scan(step, params["w"], jnp.arange(3))
                return jnp.sum(w**3)

            return jax.jit(jax.value_and_grad(run, (0, 1)))(step_size, row_weights)

        def collapsed(w, parts, index):
            step = jaxwgc.decoded_value_and_grad(loss, code)
            return step({"w": w}, parts, decoding(index))[1]["w"]

        def messages(w, parts, index):
            partial = jaxwgc.partial_value_and_grad(loss)({"w": w}, parts)[1]
            sent = jaxwgc.encode(code, partial)
            return jaxwgc.decode(code, sent, decoding(index), {"w": w})["w"]

        def by_hand(w, parts, index):
            gradients = jax.vmap(jax.grad(loss), (None, 0))({"w": w}, parts)["w"]
            mixture = jnp.asarray(mixing)[index]
            packed = mixture @ (gradients[:, :2] + 1j * gradients[:, 2:])
            return jnp.concatenate([packed.real, packed.imag])

        expected = outer(by_hand)
        assert abs(expected[1][0]) > 0.1
        chex.assert_trees_all_close(outer(collapsed), expected, rtol=1e-8, atol=1e-8)
        chex.assert_trees_all_close(outer(messages), expected, rtol=1e-8, atol=1e-8)

    def test_hessian_vector_product(self, with_x64):
        code = CODES["reed_solomon"]
        params, parts = logistic_problem(6)
        direction = {"w": np.array([1.0, -2, 0.5, 3])}
        step = jaxwgc.decoded_value_and_grad(logistic, code)
        round_of = jaxwgc.decoding(code, random_patterns(6, 2, 1)[0])
        gradient = jax.jit(lambda values: step(values, parts, round_of)[1])
        product = jax.jit(lambda values: jax.jvp(gradient, (values,), (direction,))[1])(
            params
        )
        whole = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
        hessian = jax.jit(jax.hessian(logistic))(params, whole)["w"]["w"]
        # The whole has one regulariser where six parts have six.
        hessian = hessian + 5 * np.diag(12 * params["w"] ** 2)
        np.testing.assert_allclose(product["w"], hessian @ direction["w"], rtol=1e-9)


def summed_products(params, part):
    return jnp.sum(params * part)


SIX_PARTS = np.ones((6, 2), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"parts": {"x": np.ones((5, 2), np.float32)}},
            ValueError,
            r"parts\['x'\].*num_parts = 6; got .*5",
        ),
        ({"parts": {}}, ValueError, "parts must have at least one array"),
        ({"params": {}}, ValueError, "params must have at least one array"),
        (
            {"received": np.ones((1, 6), bool)},
            ValueError,
            "received must have (shape|a leading axis)",
        ),
        (
            {"parts": {"x": np.array(["a"] * 6)}},
            TypeError,
            r"parts\['x'\] must be numbers",
        ),
        (
            {"params": np.ones(2, int)},
            TypeError,
            "params must be real or complex floats",
        ),
    ],
)
def test_decoded_gradients_reject_what_does_not_fit_the_code(arguments, error, message):
    step = jaxwgc.decoded_value_and_grad(summed_products, CODES["reed_solomon"])
    accepted = {
        "params": np.zeros(2, np.float32),
        "parts": SIX_PARTS,
        "received": np.ones(6, bool),
    }
    arguments = {**accepted, **arguments}
    with pytest.raises(error, match=message):
        step(arguments["params"], arguments["parts"], arguments["received"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "parts must have (shape|a leading axis)"),
        ({}, "parts must have (shape|a leading axis)"),
        (3.0, "parts must have (shape|a leading axis)"),
        ([np.float32(1)], "parts must have (shape|a leading axis)"),
        ({"x": SIX_PARTS, "y": SIX_PARTS[1:]}, r"parts\['y'\] must have"),
    ],
)
def test_partial_gradients_reject_parts_without_a_common_axis(parts, message):
    gradients_of = jaxwgc.partial_value_and_grad(lambda params, part: jnp.sum(part))
    with pytest.raises(ValueError, match=message):
        gradients_of(1.0, parts)


def test_a_loss_that_is_a_number():
    with pytest.raises(TypeError, match="loss must be a function"):
        jaxwgc.partial_value_and_grad(3.0)
