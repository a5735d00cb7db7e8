"""Every code, weighting, mask, dtype and method, against NumPy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import jaxwgc
from tests import strategies
from tests.strategies import CODES, NUM_PARAMETERS, rounds

METHODS = "messages", "partials"
KEY = jax.random.key(0)


def everything(code, weights, received, gradients):
    """Whatever can be computed from rounds; what costs compilation is jitted inside."""
    own = jaxwgc.weighted(code, weights)
    params = jnp.zeros(NUM_PARAMETERS, gradients.dtype)
    messages = jaxwgc.encode(own, gradients)
    results = {
        "weights": jaxwgc.decoding_weights(own, received),
        "effective": jaxwgc.effective_weights(own, received),
        "error": jaxwgc.decoding_error(own, received),
        "encoded": messages,
        "decoded": jaxwgc.decode(own, messages, received, params),
    }
    model = jaxwgc.stragglers.uniform(0)
    step = jaxwgc.decoded_value_and_grad(lambda params, part: params @ part, own)
    by_mask = {method: [] for method in (*METHODS, "collapsed", "residual", "failed")}
    for mask in received:
        for method in METHODS:
            aggregate = jaxwgc.coded_aggregate(own, model, KEY, method=method)
            state = aggregate.init(params)
            update, state = aggregate.update(gradients, state, params, received=mask)
            by_mask[method].append(update)
        by_mask["collapsed"].append(step(params, gradients, mask)[1])
        by_mask["residual"].append(state.residual)
        by_mask["failed"].append(state.num_undecodable)
    return results | {name: jnp.stack(rows) for name, rows in by_mask.items()}


def computed(drawn, dtype):
    """Results in double precision, and the matrix that was computed with."""
    code = CODES[drawn.name]
    weights, gradients = drawn.weights, drawn.gradients
    weights = weights.astype(jnp.result_type(float))
    gradients = jnp.asarray(gradients, dtype)
    results = everything(code, weights, drawn.received, gradients)
    wide = np.result_type(code.encoding_matrix, float)
    results = jax.tree.map(
        lambda leaf: np.asarray(leaf, wide if jnp.iscomplexobj(leaf) else np.float64),
        results,
    )
    if code.num_segments == 1:
        results["weights"] = results["weights"][:, None]
    matrix = np.asarray(code.encoding_matrix, wide)
    matrix = matrix.astype(jax.dtypes.canonicalize_dtype(wide))
    return code, results, matrix * np.repeat(weights, code.num_segments)


DTYPES = [
    pytest.param(jnp.float32, False, id="float32"),
    pytest.param(jnp.bfloat16, False, id="bfloat16"),
    pytest.param(jnp.float64, True, id="float64"),
]


@pytest.mark.parametrize(("dtype", "wide"), DTYPES)
class TestAnyRound:
    @given(drawn=rounds())
    def test_misses_by_no_more_than_numpy_does(self, dtype, wide, drawn):
        """Parts that count at all are decoded as if they counted alike, or fitted."""
        with jax.enable_x64(wide):
            code, results, matrix = computed(drawn, dtype)
        # Of weights that do not depend on a decoder's purpose.
        if code.decoder == "peeling":
            return
        columns = np.repeat(drawn.weights, code.num_segments)
        columns = np.where(columns == 0, 1, columns)
        kept = np.repeat(drawn.weights != 0, code.num_segments)
        target = strategies.target_rows(code, drawn.weights)
        masks = strategies.message_masks(code, drawn.received)
        for own, mask in zip(results["weights"], masks, strict=True):
            assert np.all(own[:, ~mask] == 0)
            plain = matrix / columns
            aim = target / columns
            least = strategies.least_miss(plain.astype(matrix.dtype), aim, mask)
            norm = np.linalg.norm(aim)
            if least < 1e-5 * norm:
                # Part by part, whatever the others weigh.
                missed = np.abs(own @ plain - aim)[:, kept]
                assert np.all(missed <= 2e-5 * np.sqrt(norm**2 + 1))
                continue
            scale = np.linalg.norm(target)
            least = strategies.least_miss(matrix, target, mask)
            if code.decoder != "group":
                missed = np.linalg.norm(own @ matrix - target)
                assert missed <= 1.001 * least + 1e-5 * scale

    @given(drawn=rounds())
    def test_applies_what_it_decodes(self, dtype, wide, drawn):
        """Messages, decoded gradients and errors are those of the weights."""
        with jax.enable_x64(wide):
            code, results, matrix = computed(drawn, dtype)
            gradients = np.asarray(jnp.asarray(drawn.gradients, dtype), np.float64)
        eps = float(jnp.finfo(dtype).eps)
        sums = float(jnp.finfo(matrix.dtype).eps)
        blocks = strategies.packed(code, gradients)
        messages = matrix @ blocks
        bound = 20 * sums * (np.abs(matrix) @ np.abs(blocks))
        assert np.all(np.abs(results["encoded"] - messages) <= bound + 1e-30)

        weights = results["weights"]
        target = strategies.target_rows(code, drawn.weights)
        reached = weights @ matrix
        scale = np.abs(drawn.weights).max()
        rounding = 30 * sums * (np.abs(weights) @ np.abs(matrix)).max((1, 2))
        shape = (len(weights), code.num_segments, code.num_parts, code.num_segments)
        effective = np.einsum("tuku->tk", reached.reshape(shape).real)
        missed = np.abs(results["effective"] - effective / code.num_segments)
        assert np.all(missed <= rounding[:, None] + 1e-30)
        missed = np.linalg.norm(reached - target, axis=(1, 2))
        missed /= np.sqrt(code.num_segments)
        size = np.sqrt(code.num_parts)
        rounding = rounding + sums * scale
        if scale > 1e-10:  # Squares of less underflow.
            assert np.all(np.abs(np.sqrt(results["error"]) - missed) <= size * rounding)
        assert np.all(np.abs(results["residual"] - missed) <= size * rounding + 1e-30)
        bar = 1e-3 * np.linalg.norm(drawn.weights)
        clear = np.abs(missed - bar) > 2 * size * rounding
        failed = results["failed"] == 1
        np.testing.assert_array_equal(failed[clear], (missed > bar)[clear])

        decoded = strategies.unpacked(code, reached @ blocks)
        size = np.abs(gradients).sum()
        bound = (rounding + 1e-5 * scale) * size
        bound = bound[:, None] + 2 * eps * np.abs(decoded) + 1e-30
        for path in ("decoded", *METHODS, "collapsed"):
            assert np.all(np.abs(results[path] - decoded) <= bound), path

    @given(drawn=rounds())
    def test_weights_of_an_exact_code_are_those_of_the_code(self, dtype, wide, drawn):
        plain = drawn._replace(weights=np.ones_like(drawn.weights))
        with jax.enable_x64(wide):
            code, results, _ = computed(drawn, dtype)
            _, expected, _ = computed(plain, dtype)
        lost = (~drawn.received).sum(-1)
        if not np.all(drawn.weights):
            return
        for within, own, other in zip(
            lost <= code.num_stragglers,
            results["weights"],
            expected["weights"],
            strict=True,
        ):
            if within and code.num_stragglers:
                np.testing.assert_allclose(
                    own, other, rtol=0, atol=1e-3 * np.abs(other).max()
                )
