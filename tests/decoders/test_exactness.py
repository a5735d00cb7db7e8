"""Which rounds count as decoded, with decoders that are exact or inexact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.aggregate import DecodingOptions
from tests.zoo import KEY

CODE = codes.replicated(4, copies=1)
BERNOULLI = codes.bernoulli(KEY, 12, 12, 4)
GRADIENTS = np.ones((4, 3), np.float32)


def num_undecodable(code, received, params, **options):
    """Number of undecodable rounds of the masks, one after the other."""
    aggregate = jaxwgc.coded_aggregate(code, stragglers.uniform(0), KEY, **options)
    gradients = np.ones((code.num_parts, *np.shape(params)), np.float32)

    def step(state, received):
        _, state = aggregate.update(gradients, state, params, received=received)
        return state, state.num_undecodable

    state = aggregate.init(params)
    counts = jax.jit(lambda state, masks: jax.lax.scan(step, state, masks)[1])
    return np.diff(counts(state, received), prepend=0).tolist()


PARAMS = np.zeros(3, np.float32)
SOME = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    "decoder",
    [decoders.Ridge(0.1), decoders.OneStep(1.0, shared=False)],
    ids=["ridge", "sum"],
)
def test_inexact_decoders_fail_only_if_nothing_is_gained(decoder):
    code = codes.uncoded(4)
    decoding = DecodingOptions(decoder=decoder)
    assert num_undecodable(code, SOME, PARAMS, decoding=decoding) == [0, 0, 0, 1]
    # A tolerance of the caller precedes that of the decoder.
    decoding = DecodingOptions(decoder=decoder, tolerance=0.1)
    strict = num_undecodable(code, SOME, PARAMS, decoding=decoding)
    assert strict == [0, 1, 1, 1]


def test_clusters_are_as_exact_as_their_decoder():
    assert decoders.Clustered(decoders.LeastSquares(), 2).is_exact
    assert not decoders.Clustered(decoders.Ridge(0.1), 2).is_exact


def test_exact_decoders_fail_if_a_part_is_lost():
    assert num_undecodable(codes.uncoded(4), SOME, PARAMS) == [0, 1, 1, 1]


@pytest.mark.parametrize("debias", ["share", 0.75])
def test_debiased_rounds_fail_only_if_nothing_is_gained(debias):
    code = codes.uncoded(4)
    assert num_undecodable(code, SOME, PARAMS, debias=debias) == [0, 0, 0, 1]


def test_debiased_rounds_are_not_skipped():
    code = codes.uncoded(4)
    aggregate = jaxwgc.coded_aggregate(
        code, stragglers.uniform(0), KEY, debias="share", undecodable="skip"
    )
    update, _ = jax.jit(aggregate.update)(
        GRADIENTS, aggregate.init(PARAMS), PARAMS, received=SOME[1]
    )
    np.testing.assert_allclose(update, [4, 4, 4], rtol=1e-5)


def test_codes_ask_the_decoder_for_its_tolerance():
    code = codes.uncoded(4)
    assert code.decodes(SOME).tolist() == [True, False, False, False]
    inexact = code.decodes(SOME, decoder=decoders.Ridge(0.1))
    assert inexact.tolist() == [True, True, True, False]
    strict = code.decodes(SOME, tolerance=0.1, decoder=decoders.Ridge(0.1))
    assert strict.tolist() == [True, False, False, False]


def test_one_step_decoder_of_a_code_is_not_counted_in_every_round():
    masks = np.random.default_rng(0).random((20, 12)) < 0.9
    decoding = DecodingOptions(decoder=decoders.OneStep)
    failed = num_undecodable(BERNOULLI, masks, PARAMS, decoding=decoding)
    error = jaxwgc.decoding(BERNOULLI, masks, decoders.OneStep).error
    relative = np.sqrt(error / 12)
    assert np.all(np.abs(relative - 0.999) > 0.01)
    assert failed == (relative > 0.999).astype(int).tolist()
    assert np.sum(failed) < 10


def test_rounds_until_decodable_are_exact_with_every_decoder():
    wait = stragglers.until_decodable(codes.uncoded(4), decoder=decoders.Ridge(0.01))
    times = jnp.array([3.0, 1.0, 2.0, 4.0])
    assert wait.arrivals(KEY, times).elapsed == 4


def test_a_decoder_class_without_its_arguments_raises_an_error_that_lists_them():
    message = r"the class Ridge decodes a code .* pass an instance, Ridge\(noise\)"
    with pytest.raises(ValueError, match=message):
        jaxwgc.decoding(CODE, np.ones(4, bool), decoders.Ridge)
