"""Partial and decoded gradients against jax.grad of the plain loss."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from tests.conftest import every_pattern, random_patterns

CODES = {
    "reed_solomon": jaxwgc.codes.reed_solomon(6, 3, 4),
    "no_slack": jaxwgc.codes.reed_solomon(6, 6, 3),
    "uncoded": jaxwgc.codes.uncoded(6),
    "fractional": jaxwgc.codes.fractional_repetition(6, 2),
    "cyclic": jaxwgc.codes.cyclic_repetition(jax.random.key(2), 6, 2),
    "weighted": jaxwgc.weighted(
        jaxwgc.codes.reed_solomon(6, 6, 3), np.array([2.0, 0, 1, 3, 0.5, 1])
    ),
}
every_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def logistic(params, part):
    """Nonlinear in its 4 or 5 parameters, so that part and whole differ in scale."""
    score = part["x"] @ params["w"]
    if "b" in params:
        score = score + params["b"]
    return jnp.sum(jax.nn.softplus(-part["y"] * score)) + jnp.sum(params["w"] ** 4)


def logistic_problem(num_parts, size=4, bias=False, dtype=np.float64, seed=0):
    draw = np.random.default_rng(seed)
    params = {"w": draw.normal(size=size).astype(dtype)}
    if bias:
        params["b"] = dtype(draw.normal())
    parts = {
        "x": draw.normal(size=(num_parts, 3, size)).astype(dtype),
        "y": draw.choice([-1.0, 1.0], (num_parts, 3)).astype(dtype),
    }
    return params, parts


def part_of(parts, index):
    return jax.tree.map(lambda leaf: leaf[index], parts)


@functools.cache
def compiled_value_and_grad(loss, has_aux):
    return jax.jit(jax.value_and_grad(loss, has_aux=has_aux))


def one_by_one(loss, params, parts, num_parts, has_aux=False):
    """A Python loop of jax.value_and_grad."""
    one = compiled_value_and_grad(loss, has_aux)
    outputs = [one(params, part_of(parts, index)) for index in range(num_parts)]
    return stacked(outputs)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def raveled(tree):
    """Leaves (number, ...) as rows of one array, as `ravel_pytree` lays them out."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], 1)


def decoded_by_hand(code, mask, flat):
    """The decoded gradient (P,) from NumPy's pseudoinverse, and its weights c."""
    rows = np.where(mask[:, None], code.encoding_matrix, 0)
    weights = code.target @ np.linalg.pinv(rows, rcond=1e-10)
    mixing = weights @ rows
    if not code.is_complex:
        return mixing @ flat, mixing
    size = flat.shape[1]
    flat = np.pad(flat, [(0, 0), (0, size % 2)])
    first, second = np.split(flat, 2, axis=1)
    packed = mixing @ (first + 1j * second)
    return np.concatenate([packed.real, packed.imag])[:size], mixing


class TestPartialGradients:
    @pytest.mark.parametrize("has_aux", [False, True])
    def test_equal_a_loop_over_the_parts(self, has_aux, x64):
        dtype = np.float64 if x64 else np.float32
        params, parts = logistic_problem(3, bias=True, dtype=dtype)

        def loss(params, part):
            value = logistic(params, part)
            return (value, {"rows": part["x"].sum(1)}) if has_aux else value

        found = jax.jit(jaxwgc.partial_value_and_grad(loss, has_aux=has_aux))(
            params, parts
        )
        expected = one_by_one(loss, params, parts, 3, has_aux)
        chex.assert_trees_all_close(found, expected, rtol=1e-12 if x64 else 1e-5)
        chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)

    def test_map_over_parameters_and_scan(self, with_x64):
        params, parts = logistic_problem(3)
        many = {"w": np.stack([params["w"], -params["w"]])}
        partial = jaxwgc.partial_value_and_grad(logistic)
        mapped = jax.jit(jax.vmap(partial, (0, None)))(many, parts)
        _, scanned = jax.lax.scan(
            lambda carry, own: (carry, partial(own, parts)), None, many
        )
        expected = [
            one_by_one(logistic, part_of(many, index), parts, 3) for index in range(2)
        ]
        expected = stacked(expected)
        chex.assert_trees_all_close(mapped, expected, rtol=1e-12)
        chex.assert_trees_all_close(scanned, expected, rtol=1e-12)

    @settings(max_examples=15, deadline=None)
    @given(
        num_parts=st.integers(1, 4),
        shapes=st.lists(
            st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=3
        ),
        dtype=st.sampled_from([np.float32, np.float16, jnp.bfloat16]),
    )
    def test_any_shapes_and_dtypes(self, num_parts, shapes, dtype):
        """The gradient of sum_i factor * sum(leaf_i) is factor, exactly."""
        params = [np.ones(shape, dtype) for shape in shapes]
        factors = np.arange(num_parts).astype(dtype)

        def loss(params, factor):
            return sum(jnp.sum(factor * leaf) for leaf in params)

        partial = jax.jit(jaxwgc.partial_value_and_grad(loss))
        values, gradients = partial(params, factors)
        assert values.shape == (num_parts,)
        assert values.dtype == dtype
        for leaf, gradient in zip(params, gradients, strict=True):
            assert gradient.dtype == dtype
            column = np.arange(num_parts).reshape(-1, *(1,) * leaf.ndim)
            np.testing.assert_array_equal(
                np.asarray(gradient).astype(np.float32),
                np.broadcast_to(column, (num_parts, *leaf.shape)),
            )


class TestDecodedGradients:
    """One backward pass, and messages, against the same decoding in NumPy."""

    def all_paths(self, code, masks, params, parts):
        gradients = jax.jit(jaxwgc.partial_value_and_grad(logistic))(params, parts)[1]
        messages = jaxwgc.encode(code, gradients)

        @jax.jit
        @jax.vmap
        def compute(mask):
            decoding = jaxwgc.decoding(code, mask)
            collapsed = jaxwgc.decoded_value_and_grad(logistic, code)
            by_messages = decoding.combine(messages, params)
            return *collapsed(params, parts, decoding), by_messages

        return compute(masks)

    def check(self, code, params, parts, tolerance):
        """Every mask of 6 workers, exact or not, the empty one included."""
        masks = every_pattern(6, 6)
        value, gradient, by_messages = self.all_paths(code, masks, params, parts)
        values, gradients = one_by_one(logistic, params, parts, code.num_parts)
        flat = raveled(gradients)
        expected = [decoded_by_hand(code, mask, np.float64(flat)) for mask in masks]
        expected_gradient = np.stack([own for own, _ in expected])
        expected_value = np.stack(
            [mix.real @ np.float64(values) for _, mix in expected]
        )
        scale = {"rtol": tolerance, "atol": tolerance * np.abs(flat).max()}
        np.testing.assert_allclose(raveled(gradient), expected_gradient, **scale)
        np.testing.assert_allclose(raveled(by_messages), expected_gradient, **scale)
        scale["atol"] = tolerance * np.abs(values).max()
        np.testing.assert_allclose(value, expected_value, **scale)
        exact = masks.sum(1) >= 6 - code.num_stragglers
        full = np.broadcast_to(code.target @ flat, expected_gradient[exact].shape)
        np.testing.assert_allclose(expected_gradient[exact], full, atol=1e-4)
        chex.assert_trees_all_equal_dtypes(gradient, by_messages, params)

    @every_code
    def test_even_number_of_parameters(self, code, with_x64):
        params, parts = logistic_problem(code.num_parts)
        self.check(code, params, parts, 1e-10)

    @pytest.mark.parametrize("name", ["no_slack", "cyclic"])
    def test_in_float32(self, name):
        params, parts = logistic_problem(6, dtype=np.float32)
        self.check(CODES[name], params, parts, 3e-4)

    @pytest.mark.parametrize("name", ["reed_solomon", "weighted", "cyclic"])
    def test_odd_number_of_parameters_in_two_leaves(self, name, with_x64):
        params, parts = logistic_problem(CODES[name].num_parts, bias=True)
        self.check(CODES[name], params, parts, 1e-10)

    def test_packed_halves_do_leak(self, with_x64):
        """The complex code mixes the halves where it cannot decode: worth testing."""
        code = CODES["no_slack"]
        mask = np.array([True, False, True, True, False, False])
        flat = np.random.default_rng(0).normal(size=(6, 4))
        packed, mixing = decoded_by_hand(code, mask, flat)
        assert np.abs(mixing.imag).max() > 0.1
        assert np.abs(packed - mixing.real @ flat).max() > 0.1

    def test_has_aux(self, with_x64):
        code = CODES["cyclic"]
        params, parts = logistic_problem(6)

        def loss(params, part):
            return logistic(params, part), (part["x"][0], params["w"] @ part["x"][1])

        mask = random_patterns(6, 2, 1)[0]
        step = jaxwgc.decoded_value_and_grad(loss, code, has_aux=True)
        (value, aux), gradient = jax.jit(step)(params, parts, mask)
        (values, expected), gradients = one_by_one(loss, params, parts, 6, has_aux=True)
        np.testing.assert_allclose(value, values.sum(), rtol=1e-10)
        np.testing.assert_allclose(gradient["w"], gradients["w"].sum(0), rtol=1e-10)
        chex.assert_trees_all_close(aux, expected, rtol=1e-12)

    def test_decoder_by_name(self, with_x64):
        """Min-norm weights differ from Lagrange's, the gradient does not."""
        code = CODES["reed_solomon"]
        params, parts = logistic_problem(3)
        mask = np.arange(6) > 0
        step = jaxwgc.decoded_value_and_grad(
            logistic, code, decoder=decoders.LeastSquares
        )
        _, gradient = step(params, parts, mask)
        _, gradients = one_by_one(logistic, params, parts, 3)
        np.testing.assert_allclose(gradient["w"], gradients["w"].sum(0), rtol=1e-10)
        with pytest.raises(TypeError, match="decoder must be a jaxwgc.decoders"):
            jaxwgc.decoded_value_and_grad(logistic, code, decoder="guess")(
                params, parts, mask
            )

    @pytest.mark.parametrize(
        ("name", "num_lost", "num_passes"),
        [
            ("no_slack", 2, 1),
            ("no_slack", 3, 2),
            ("cyclic", 3, 1),
            ("segments", 2, 1),
            # One for each pair of segments, all in one pass over the data.
            ("segments", 3, 5),
        ],
    )
    def test_number_of_backward_passes(self, name, num_lost, num_passes):
        """A second one only for what leaks, though masks are mapped over."""
        calls = []

        @jax.custom_vjp
        def watched(params):
            return jnp.sum(params**2)

        def backward(params, cotangent):
            jax.debug.callback(lambda _: calls.append(1), cotangent)
            return (2 * cotangent * params,)

        watched.defvjp(lambda params: (watched(params), params), backward)
        segments = jaxwgc.codes.communication_efficient(6, 2, 2)
        code = segments if name == "segments" else CODES[name]
        step = jaxwgc.decoded_value_and_grad(
            lambda own, part: watched(own * part), code
        )
        masks = random_patterns(6, 2, 4)
        masks[3] = random_patterns(6, num_lost, 1)[0]
        jax.jit(jax.vmap(step, (None, None, 0)))(jnp.ones(3), np.ones(6), masks)
        jax.effects_barrier()
        assert len(calls) == num_passes * 4 * code.num_parts


@pytest.mark.parametrize("name", ["no_slack", "fractional", "cyclic", "weighted"])
def test_bfloat16_parameters(name):
    """Gradients are halves up to 63, which bfloat16 holds: found exactly."""
    code = CODES[name]
    params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    parts = np.random.default_rng(0).integers(-3, 4, (code.num_parts, 2, 3))

    def loss(params, part):
        return jnp.sum(part.astype(jnp.bfloat16) @ params["w"]) + jnp.sum(params["b"])

    mask = random_patterns(6, code.num_stragglers, 1)[0]

    @jax.jit
    def both(params, mask):
        decoding = jaxwgc.decoding(code, mask)
        step = jaxwgc.decoded_value_and_grad(loss, code)
        partial = jaxwgc.partial_value_and_grad(loss)(params, parts)[1]
        decoded = decoding.combine(jaxwgc.encode(code, partial), params)
        return step(params, parts, decoding), decoded

    (value, gradient), decoded = both(params, mask)
    expected = {
        "w": np.einsum("k,kij->j", code.target, parts),
        "b": np.full(2, code.target.sum()),
    }
    for found in (gradient, decoded):
        chex.assert_trees_all_equal_shapes_and_dtypes(found, params)
        chex.assert_trees_all_close(
            jax.tree.map(np.float64, found), expected, rtol=0, atol=1e-3
        )
    assert value.dtype == jnp.bfloat16


class TestDifferentiation:
    """Through a few unrolled steps, against the decoding written out by hand."""

    @pytest.mark.parametrize("name", ["no_slack", "cyclic"])
    def test_through_unrolled_steps(self, name, with_x64):
        code = CODES[name]
        params, parts = logistic_problem(6)
        # An exact round, and two that leak between the halves of the complex code.
        masks = np.stack([random_patterns(6, lost, 3, 1)[0] for lost in (2, 4, 5)])
        mixing = np.stack([decoded_by_hand(code, own, np.eye(6))[1] for own in masks])
        assert (np.abs(mixing.imag).max() > 0.1) == code.is_complex
        step_size, row_weights = 0.1, np.ones((6, 1))

        def loss(params, part):
            own, row_weight = part
            scaled = {"x": own["x"] * row_weight, "y": own["y"]}
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
            return step({"w": w}, parts, jnp.asarray(masks)[index])[1]["w"]

        def messages(w, parts, index):
            partial = jaxwgc.partial_value_and_grad(loss)({"w": w}, parts)[1]
            mask = jnp.asarray(masks)[index]
            sent = jaxwgc.encode(code, partial)
            return jaxwgc.decode(code, sent, mask, {"w": w})["w"]

        def by_hand(w, parts, index):
            gradients = jnp.stack(
                [
                    jax.grad(loss)({"w": w}, part_of(parts, part))["w"]
                    for part in range(6)
                ]
            )
            own = jnp.asarray(mixing)[index]
            if not code.is_complex:
                return own @ gradients
            packed = own @ (gradients[:, :2] + 1j * gradients[:, 2:])
            return jnp.concatenate([packed.real, packed.imag])

        expected = outer(by_hand)
        assert abs(expected[1][0]) > 0.1
        chex.assert_trees_all_close(outer(collapsed), expected, rtol=1e-8, atol=1e-8)
        chex.assert_trees_all_close(outer(messages), expected, rtol=1e-8, atol=1e-8)

    def test_hessian_vector_product(self, with_x64):
        code = CODES["no_slack"]
        params, parts = logistic_problem(6)
        direction = {"w": np.array([1.0, -2, 0.5, 3])}
        step = jaxwgc.decoded_value_and_grad(logistic, code)
        mask = random_patterns(6, 2, 1)[0]
        gradient = jax.jit(lambda own: step(own, parts, mask)[1])
        product = jax.jit(lambda own: jax.jvp(gradient, (own,), (direction,))[1])(
            params
        )
        whole = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
        hessian = jax.jit(jax.hessian(logistic))(params, whole)["w"]["w"]
        # The whole has one regulariser where six parts have six.
        hessian = hessian + 5 * np.diag(12 * params["w"] ** 2)
        np.testing.assert_allclose(product["w"], hessian @ direction["w"], rtol=1e-9)


class TestBadInput:
    code = CODES["no_slack"]
    mask = np.ones(6, bool)

    def call(self, parts, mask=mask):
        params, _ = logistic_problem(6)
        return jaxwgc.decoded_value_and_grad(logistic, self.code)(params, parts, mask)

    def test_parts_of_different_lengths(self):
        params, parts = logistic_problem(3)
        parts["y"] = parts["y"][:2]
        with pytest.raises(ValueError, match=r"parts\['y'\] must have a leading axis"):
            jaxwgc.partial_value_and_grad(logistic)(params, parts)

    @pytest.mark.parametrize("parts", [None, {}, 3.0, [np.float32(1)]])
    def test_parts_without_an_axis(self, parts):
        with pytest.raises(ValueError, match="parts must have arrays with a leading"):
            jaxwgc.partial_value_and_grad(logistic)({"w": np.ones(4)}, parts)

    def test_parts_that_are_not_the_number_of_the_code(self):
        _, parts = logistic_problem(5)
        with pytest.raises(ValueError, match=r"parts\['x'\] .* num_parts = 6; got .*5"):
            self.call(parts)
        with pytest.raises(ValueError, match="parts must have at least one array"):
            self.call({})

    @pytest.mark.parametrize("shape", [(5,), (7,), (), (2, 6), (6, 1)])
    def test_mask_of_the_wrong_shape(self, shape):
        _, parts = logistic_problem(6)
        with pytest.raises(ValueError, match=r"received must have shape .*6"):
            self.call(parts, np.ones(shape, bool))

    @pytest.mark.parametrize("dtype", [int, np.float32])
    def test_mask_of_the_wrong_type(self, dtype):
        _, parts = logistic_problem(6)
        with pytest.raises(TypeError, match="received must be a bool mask"):
            self.call(parts, np.ones(6, dtype))

    def test_code_of_the_wrong_type(self):
        with pytest.raises(TypeError, match="code must be a GradientCode"):
            jaxwgc.decoded_value_and_grad(logistic, self.code.encoding_matrix)

    def test_loss_that_is_not_a_scalar(self):
        with pytest.raises(TypeError, match="scalar"):
            jaxwgc.partial_value_and_grad(lambda params, part: part @ params)(
                np.ones(2), np.ones((3, 2, 2))
            )
        with pytest.raises(TypeError, match="scalar"):
            jaxwgc.decoded_value_and_grad(
                lambda params, part: part @ params, self.code
            )(np.ones(2), np.ones((6, 2, 2)), self.mask)
