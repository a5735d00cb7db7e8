"""The adversary as a straggler model; its pattern is tested with `worst_pattern`."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc import codes, decoders, studies


def fractional(num_workers=8):
    return codes.fractional_repetition(num_workers, 1)


def test_every_round_loses_the_worst_pattern(make_key, with_x64):
    """Workers 0 and 4 are the copies of the first block."""
    model = studies.adversarial(fractional(), 2)
    state = model.init(8)
    sample = jax.jit(jax.vmap(lambda key: model.sample(key, state, jnp.ones(8))[0]))
    arrivals = sample(jax.random.split(make_key(0), 3))
    received = np.ones((3, 8), bool)
    received[:, [0, 4]] = False
    np.testing.assert_array_equal(arrivals.received, received)
    np.testing.assert_array_equal(arrivals.times, np.where(received, 1.0, np.inf))
    np.testing.assert_array_equal(arrivals.elapsed, 1.0)


def test_pattern_is_that_of_the_decoder():
    """Least squares needs the last worker; the plain sum needs the first one more."""
    matrix = np.array([[1.0, 0.0], [-5.0, 0.0], [0.0, 1.0]])
    code = codes.GradientCode(
        encoding_matrix=matrix,
        assignment=matrix != 0,
        target=np.ones(2),
        num_stragglers=0,
        decoders=(decoders.LeastSquares(), decoders.OneStep(1.0, shared=False)),
    )
    for decoder, lost in ((None, 2), (decoders.LeastSquares, 2), (decoders.OneStep, 0)):
        model = studies.adversarial(code, 1, decoder)
        received = model.sample(jax.random.key(0), (), jnp.ones(3))[0].received
        np.testing.assert_array_equal(np.flatnonzero(~received), lost)


def test_search_can_be_asked_for():
    model = studies.adversarial(fractional(), 4, max_patterns=0)
    arrivals, _ = model.sample(jax.random.key(0), model.init(8), jnp.ones(8))
    assert jaxwgc.decoding_error(fractional(), arrivals.received) == 4


def test_made_inside_of_jit():
    """The code is concrete there, though nothing that is computed is."""

    @jax.jit
    def received(key):
        model = studies.adversarial(fractional(), 2)
        return model.sample(key, model.init(8), jnp.ones(8))[0].received

    np.testing.assert_array_equal(np.flatnonzero(~received(jax.random.key(0))), [0, 4])
