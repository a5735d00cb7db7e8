"""Decoders that do not fit a code, and those of one's own that break the contract."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from tests.zoo import CODES, KEY

CODE = CODES["regular_graph"]
MASK = np.ones(6, bool)
LEAST_SQUARES = decoders.LeastSquares()


def peeling(num_messages, num_batches):
    return decoders.Peeling(np.ones((num_messages, num_batches), bool))


LAGRANGE = "Lagrange needs a code evaluated at roots of unity"
ONE_STEP = "OneStep needs a code with equal column sums"
PEELING = "Peeling needs a code of zeros and ones"
DUAL = "Dual needs a code with a known dual code"
GROUP = "Group needs a code of groups of workers with equal messages"
COMPONENTS = "Components needs a code with workers as edges of a graph"


@pytest.mark.parametrize(
    ("name", "decoder", "rule"),
    [
        # By class, where a code has none, and as an instance whose entries do not fit.
        ("cyclic_mds", decoders.Lagrange, LAGRANGE),
        ("communication_efficient", decoders.Lagrange, LAGRANGE),
        ("bernoulli", decoders.Lagrange, LAGRANGE),
        ("multi_message", decoders.Lagrange, LAGRANGE),
        ("reed_solomon", decoders.Lagrange(np.arange(6) * 5 % 6, 1), LAGRANGE),
        ("regular_graph", decoders.Lagrange(np.arange(6), 2), LAGRANGE),
        ("reed_solomon", decoders.OneStep, ONE_STEP),
        ("cyclic_repetition", decoders.OneStep, ONE_STEP),
        ("ldgm", decoders.OneStep, ONE_STEP),
        ("partial", decoders.OneStep, ONE_STEP),
        ("regular_graph", decoders.Peeling, PEELING),
        ("stochastic", decoders.Peeling, PEELING),
        ("multi_message", decoders.Peeling, PEELING),
        ("cyclic_mds, complex", peeling(6, 6), PEELING),
        ("uncoded", peeling(6, 2), PEELING),
        ("bernoulli", decoders.Group, GROUP),
        ("cyclic_mds", decoders.Group, GROUP),
        ("multi_message", decoders.Group, GROUP),
        ("partial", decoders.Group, GROUP),
        ("uncoded", decoders.Group(np.zeros((1, 6), int)), GROUP),
        ("cyclic_mds", decoders.Dual, DUAL),
        ("uncoded", decoders.Dual(np.eye(6), 1), DUAL),
        # Complex weights of a real code.
        ("uncoded", decoders.Dual(np.ones((1, 6), complex), 0), DUAL),
        ("uncoded", decoders.Components, COMPONENTS),
        # A message that holds one part, and one that no part names.
        ("uncoded", decoders.Components(np.arange(6)[:, None]), COMPONENTS),
        ("regular_graph", decoders.Components(np.zeros((6, 2), int)), COMPONENTS),
        ("uncoded", decoders.Components(np.full((6, 1), 6)), COMPONENTS),
        (
            "uncoded",
            decoders.Components(np.arange(6)[:, None].repeat(2, 1)),
            COMPONENTS,
        ),
        (
            "cyclic_mds",
            decoders.Clustered(LEAST_SQUARES, 2),
            "Clustered needs a code that is block-diagonal",
        ),
    ],
)
def test_decoders_of_other_codes(name, decoder, rule):
    code = CODES[name]
    shown = repr(code) if isinstance(decoder, type) else "an encoding matrix (6, 6)"
    with pytest.raises(ValueError, match=f"decoder {rule}.*; got {re.escape(shown)}"):
        jaxwgc.decoding_weights(code, np.ones(code.num_workers, bool), decoder)


@pytest.mark.parametrize(
    "call",
    [
        lambda own: jaxwgc.decoding_error(CODE, MASK, decoder=own),
        lambda own: jaxwgc.decoded_value_and_grad(sum, CODE, decoder=own),
        lambda own: jaxwgc.decode_aggregate(CODE, decoder=own),
        lambda own: jaxwgc.coded_aggregate(
            CODE, stragglers.uniform(0), KEY, decoder=own
        ),
        lambda own: jaxwgc.studies.diagnose(CODE, KEY, 1, decoder=own),
    ],
)
def test_everybody_who_takes_a_decoder(call):
    with pytest.raises(ValueError, match=LAGRANGE):
        call(decoders.Lagrange)
    for wrong in ("group", 3, dict):
        with pytest.raises(TypeError, match="decoder must be a jaxwgc.decoders.Decod"):
            call(wrong)


@pytest.mark.parametrize(
    ("decoder", "rule"),
    [
        (decoders.Group(np.zeros((1, 5), int)), r"num_workers\) = \(any, 6\) and"),
        (peeling(6, 4), "assignment must have shape .*; got \\(6, 4\\)"),
        (peeling(5, 6), "assignment must have shape .* num_messages = 6"),
        (decoders.Lagrange(np.arange(5), 2), "positions must be a permutation"),
        (decoders.Lagrange(np.zeros(6, int), 2), "positions must be a permutation"),
        (decoders.Lagrange(np.arange(6), 6), "num_stragglers must be less than"),
        (decoders.Dual(np.ones((2, 5)), 1), r"rows must have shape .* = \(any, 6\)"),
        (decoders.Dual(np.ones((2, 6)), 2), r"stragglers \+ 1 must be at most rows; "),
        (decoders.LeastSquares(-1), "num_missing must be at least 0; got -1"),
        (
            decoders.Clustered(LEAST_SQUARES, 4),
            "num_clusters must divide the messages .* got num_clusters = 4",
        ),
    ],
)
def test_fields_that_do_not_fit(decoder, rule):
    with pytest.raises(ValueError, match=rule):
        jaxwgc.decoding_weights(CODE, MASK, decoder)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Peeling(np.ones((6, 6))),
        decoders.OneStep("1"),
        decoders.Lagrange(np.ones(6), 2),
        decoders.Dual("rows", 1),
        decoders.LeastSquares(0.5),
        decoders.Clustered("x", 2),
        decoders.Clustered(decoders.LeastSquares, 2),
        decoders.Clustered(None, 2),
    ],
)
def test_fields_of_the_wrong_type(decoder):
    with pytest.raises(TypeError, match="must be"):
        jaxwgc.decoding_weights(CODE, MASK, decoder)


def test_one_wrong_entry():
    """Of all columns of the transform, one shows it."""
    code = CODES["reed_solomon"]
    decoder = code.choose_decoder(decoders.Lagrange)
    matrix = np.array(code.encoding_matrix)
    matrix[0, 0] += 1
    with pytest.raises(ValueError, match=LAGRANGE):
        decoder.check(matrix, code.segment_targets)


def test_a_code_without_decoders():
    code = dataclasses.replace(CODE, decoders=())
    with pytest.raises(ValueError, match="decoder must be given, since the code"):
        jaxwgc.decoding_weights(code, MASK)
    found = jaxwgc.decoding_weights(code, MASK, LEAST_SQUARES)
    np.testing.assert_allclose(found @ code.encoding_matrix, 1, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [["least_squares"], "least_squares", (decoders.LeastSquares,), None]
)
def test_decoders_of_a_code_that_are_none(wrong):
    code = dataclasses.replace(CODE, decoders=wrong)
    with pytest.raises(TypeError, match="code.decoders must be a tuple of"):
        jaxwgc.decoding_weights(code, MASK)


class Returning(decoders.Decoder):
    """Gives whatever it is told to."""

    result: decoders.Static[str]

    def weights(self, matrix, target, mask):
        return {
            "of the wrong shape": jnp.ones(mask.shape),
            "complex": 1j * jnp.ones((*mask.shape[:-1], 1, len(matrix))),
            "nothing": None,
        }[self.result]


def test_weights_that_are_none():
    wrong = Returning("of the wrong shape")
    rule = r"Returning.* num_messages\) = \(2, 1, 6\); got \(2, 6\)"
    with pytest.raises(ValueError, match=rule):
        jaxwgc.decoding_weights(CODE, np.stack([MASK, MASK]), wrong)
    with pytest.raises(ValueError, match=r"Returning.* = \(1, 6\); got \(6,\)"):
        jax.jit(jaxwgc.decoding_error)(CODE, MASK, wrong)
    code = codes.clustered(codes.uncoded(2), 2)
    with pytest.raises(ValueError, match=r"Returning.* = \(1, 2\); got \(2,\)"):
        jaxwgc.decoding_weights(code, MASK[:4], decoders.Clustered(wrong, 2))
    with pytest.raises(TypeError, match="must be real for .* from Returning"):
        jaxwgc.decoding_weights(CODE, MASK, Returning("complex"))
    with pytest.raises(TypeError, match="weights of Returning must be numbers"):
        jaxwgc.decoding_weights(CODE, MASK, Returning("nothing"))
