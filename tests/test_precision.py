"""Every product asks for `Precision.HIGHEST`, seen in the program before compilation.

On CPUs the default is as precise, so that results do not show it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import decoders, sketching
from tests.catalogue import decoders as decoder_rows
from tests.catalogue.codes import CODES
from tests.catalogue.row import every_row
from tests.zoo import KEY, every_code

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
# One of each decoder, alone, weighted and within another.
NAMES = (
    "reed_solomon",
    "reed_solomon, slack",
    "cyclic_mds, complex",
    "fractional_repetition",
    "binary",
    "communication_efficient",
    "clustered",
    "multi_message",
    "partially_coded",
    "bernoulli",
    "ldgm",
    "weighted",
)
ROWS = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
# From 64 columns on, Gram matrices are formed by halves.
WIDE = np.random.default_rng(1).normal(size=(80, 64)).astype(np.float32)
TARGET = ROWS.sum(1)


def products_in(jaxpr):
    """The precision of every product of a program, and of the programs within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.tree.leaves(equation.params):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products_in(inner)


def precisions(function, *arguments):
    """Precisions of the products of a function, which is traced and not compiled."""
    return set(products_in(jax.make_jaxpr(function)(*arguments).jaxpr))


def loss(params, part):
    return jnp.sum(params * part)


@every_code(NAMES)
def test_products_of_codes_have_the_highest_precision(name):
    """All that is done with weights, and the weights of each decoder."""
    code = CODES[name]
    masks = np.ones((2, code.num_workers), bool)
    params = np.ones(7, np.float32)
    gradients = np.ones((code.num_parts, 7), np.float32)

    def everything(mask):
        decoding = jaxwgc.decoding(code, mask)
        messages = jaxwgc.encode(code, gradients)
        updates = []
        for method in ("partials", "messages"):
            model = jaxwgc.stragglers.uniform(1)
            aggregate = jaxwgc.coded_aggregate(code, model, KEY, method=method)
            state = aggregate.init(params)
            updates += aggregate.update(gradients, state, params, received=decoding)
        step = jaxwgc.decoded_value_and_grad(loss, code)
        return (
            *(decoding.effective_weights, decoding.error, updates),
            *(decoding.combine(messages, params), decoding.collapse(gradients)),
            step(params, gradients, decoding),
        )

    assert precisions(everything, masks[0]) == {HIGHEST}
    # The code's arrays known on the host, and traced.
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], code)
    for kind in {decoders.LeastSquares, *map(type, code.decoders)}:

        def decode(code, masks, kind=kind):
            return jaxwgc.decoding(code, masks, kind).weights

        result = precisions(functools.partial(decode, code), masks)
        result |= precisions(jax.vmap(decode, in_axes=(0, None)), batch, masks)
        # The weights of one step are none of products.
        assert result == {HIGHEST} or (kind is decoders.OneStep and not result)


@every_row(decoder_rows.ROWS)
def test_products_of_decoders_have_the_highest_precision(row):
    """All products of a decoder that no code needs to have."""
    for name in row.codes:
        code = CODES[name]
        decoder = row.decoder_for(code)

        def decode(masks, code=code, decoder=decoder):
            return jaxwgc.decoding(code, masks, decoder).weights

        masks = np.ones((2, code.num_workers), bool)
        assert precisions(decode, masks) <= {HIGHEST}


def test_products_of_the_dual_code_have_the_highest_precision():
    """Which Lagrange decoding takes where there are few stragglers."""
    code = jaxwgc.codes.reed_solomon(8, 8, 3)

    def decode(masks):
        return jaxwgc.decoding(code, masks).weights

    assert precisions(decode, np.ones((2, 8), bool)) == {HIGHEST}


def test_products_of_sums_on_request_have_the_highest_precision():
    assert precisions(
        jaxwgc.coding.requested_sum,
        np.ones(2, np.float32),
        np.ones((2, 7), np.float32),
    ) == {HIGHEST}


def newton(rows, **options):
    return sketching.logistic_newton_sketch(
        KEY, rows, TARGET > 0, 40, ridge=0.1, **options
    )


GAUSSIAN = sketching.gaussian(KEY, 20, 80)
SKETCHING = {
    "leverage": sketching.leverage_scores,
    "leverage, gram": lambda rows: sketching.leverage_scores(rows, "gram"),
    "slope": jax.grad(lambda rows: sketching.leverage_scores(rows)[0]),
    "slope, gram": jax.grad(lambda rows: sketching.leverage_scores(rows, "gram")[0]),
    "ridge": lambda rows: sketching.ridge_leverage_scores(rows, 0.1),
    "approximate": lambda rows: sketching.approximate_leverage_scores(KEY, rows),
    "Lewis": lambda rows: sketching.lewis_weights(rows, 3.0),
    "gaussian": lambda rows: GAUSSIAN @ rows,
    "rademacher": lambda rows: sketching.rademacher(KEY, 20, 80) @ rows,
    "distortion": lambda rows: sketching.embedding_distortion(rows, GAUSSIAN),
    "sketch and solve": lambda rows: sketching.sketch_and_solve(KEY, rows, TARGET, 80),
    "preconditioned": lambda rows: sketching.preconditioned(KEY, rows, TARGET, 80),
    "gram": lambda rows: sketching.preconditioned(KEY, rows, TARGET, method="gram"),
    "Hessian": lambda rows: sketching.iterative_hessian_sketch(
        KEY, rows, TARGET, 80, num_iterations=2
    ),
    "Newton": newton,
    "Newton, refined": lambda rows: newton(rows, num_refinements=2),
}


@pytest.mark.parametrize("name", SKETCHING)
def test_products_of_sketching_have_the_highest_precision(name):
    for rows in (ROWS, WIDE) if "gram" in name else (ROWS,):
        assert precisions(SKETCHING[name], rows) == {HIGHEST}
