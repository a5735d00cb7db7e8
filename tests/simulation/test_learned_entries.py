"""Learned entries: better than those that they start from, on rounds not seen yet."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, simulation, stragglers
from tests.conftest import every_pattern
from tests.oracles import best_mixtures, squared_errors

KEY = jax.random.key(0)
OTHER_KEY = jax.random.key(1)
REGULAR = codes.regular_graph(jax.random.key(1), 10, copies=3)
# One object, one number of steps and one shape, so that it is compiled once, until
# there is another model: tests with others come last.
MODEL = stragglers.bernoulli(0.3)


def learn(code, model=MODEL, key=KEY, num_steps=100, batch_size=64, **options):
    """Learns in fewer and smaller steps than by default, which is enough here."""
    return simulation.learn_entries(
        code, model, key, num_steps=num_steps, batch_size=batch_size, **options
    )


@functools.cache
def learned_regular():
    return learn(REGULAR)


def errors(code, masks):
    """The least errors there are, by NumPy."""
    return squared_errors(best_mixtures(code, masks), code)


# Of ten workers every mask, and how likely it is where MODEL loses them.
EVERY_MASK = every_pattern(10, 10)
CHANCES = np.prod(np.where(EVERY_MASK, 0.7, 0.3), axis=1)


def mean_error(code):
    """Exactly, of ten workers and MODEL."""
    return errors(code, EVERY_MASK) @ CHANCES


class TestImproves:
    def test_on_all_rounds(self):
        assert mean_error(learned_regular()) < 0.85 * mean_error(REGULAR)

    def test_keeps_who_holds_what(self):
        """Fields are those of a code of any entries, in float64."""
        learned = learned_regular()
        matrix = learned.encoding_matrix
        assert isinstance(matrix, np.ndarray)
        assert matrix.dtype == np.float64
        np.testing.assert_array_equal(learned.assignment, REGULAR.assignment)
        np.testing.assert_array_equal(matrix[~np.asarray(REGULAR.assignment)], 0)
        np.testing.assert_array_equal(learned.target, REGULAR.target)
        assert learned.num_stragglers == 0
        assert learned.decoders == (decoders.LeastSquares(),)

    def test_does_not_depend_on_the_scale_of_the_entries(self):
        """Steps are relative to it, and the error does not know it."""
        plain = learned_regular()
        matrix = 1024.0 * np.asarray(REGULAR.encoding_matrix)
        scaled = learn(dataclasses.replace(REGULAR, encoding_matrix=matrix))
        # A power of two: the same digits, but for a step of rounding here and there.
        np.testing.assert_allclose(
            scaled.encoding_matrix / 1024, plain.encoding_matrix, atol=0.02
        )

    def test_weighted_codes(self):
        """Entries are learned for the target; a part without weight has none."""
        weights = np.array([1.0, 0, 1, 1, 2, 1, 1, 2, 1, 1])
        code = jaxwgc.weighted(REGULAR, weights)
        learned = learn(code)
        assert mean_error(learned) < 0.9 * mean_error(code)
        np.testing.assert_array_equal(learned.target, weights)

    def test_clusters(self):
        """They stay clusters: nothing outside of their blocks."""
        inner = codes.bernoulli(jax.random.key(0), 5, 5, copies=3)
        code = codes.clustered(inner, 2)
        learned = learn(code, key=jax.random.PRNGKey(0))
        assert learned.decoders[0].num_clusters == 2
        np.testing.assert_array_equal(learned.encoding_matrix[:5, 5:], 0)
        np.testing.assert_array_equal(learned.encoding_matrix[5:, :5], 0)
        assert mean_error(learned) < 0.95 * mean_error(code)

    def test_same_key_same_code(self):
        """Equal objects share one program, which would else stay in memory."""
        first = learned_regular().encoding_matrix
        client = jax.devices()[0].client
        # Programs of other tests may go at any time.
        gc.collect()
        before = len(client.live_executables())
        again = learn(REGULAR, stragglers.bernoulli(0.3)).encoding_matrix
        gc.collect()
        assert len(client.live_executables()) <= before
        np.testing.assert_array_equal(first, again)
        assert np.any(first != learn(REGULAR, key=OTHER_KEY).encoding_matrix)


class TestNeverWorse:
    def test_codes_that_cannot_improve_are_returned(self):
        """One response is enough for a block, or a lost part is lost."""
        for code in (codes.fractional_repetition(10, 4), codes.uncoded(10)):
            assert learn(code) is code

    def test_codes_of_zeros_are_returned(self):
        nothing = jaxwgc.weighted(REGULAR, np.zeros(10))
        assert learn(nothing, stragglers.uniform(2)) is nothing
        fields = {"assignment": np.eye(10) > 1, "encoding_matrix": np.zeros((10, 10))}
        empty = dataclasses.replace(REGULAR, **fields)
        assert learn(empty, stragglers.uniform(2)) is empty

    @pytest.mark.parametrize("learning_rate", [1e-9, 100.0])
    def test_no_learning_rate_makes_the_code_worse(self, learning_rate):
        """Tiny rates change nothing, and large ones ruin the code on the way."""
        learned = learn(REGULAR, learning_rate=learning_rate)
        assert mean_error(learned) <= mean_error(REGULAR) * (1 + 1e-6)


def test_a_model_with_a_state_that_sees_loads(with_x64):
    """Five neighbours on a ring are lost, one place further each round.

    So are the workers with more parts, in all rounds. A code without an error in such
    rounds comes back: its guarantee is worth keeping.
    """

    class Ring(stragglers.StragglerModel):
        def init(self, num_workers):
            return jnp.array(0)

        def sample(self, key, state, loads):
            num_workers = len(loads)
            place = (jnp.arange(num_workers) - state) % num_workers
            received = (place >= 5) & (loads == loads.min())
            times = jnp.ones(num_workers)
            elapsed = jnp.asarray(1.0)
            return stragglers.Arrivals(received, times, elapsed), state + 1

    assignment = np.asarray(REGULAR.assignment).copy()
    assignment[:2] = True
    entries = {"assignment": assignment, "encoding_matrix": assignment.astype(float)}
    code = dataclasses.replace(REGULAR, num_stragglers=0, **entries)
    model = Ring()
    learned = learn(code, model)
    ring = np.array([np.roll(np.arange(10) >= 5, turn) for turn in range(10)])
    ring &= np.arange(10) >= 2
    # Every place on the ring counts, so all of them have been seen.
    assert errors(learned, ring).mean() < 0.9 * errors(code, ring).mean()
    # The two workers that are always late have only jitter.
    np.testing.assert_allclose(learned.encoding_matrix[:2], 1, atol=0.15)
    exact = codes.cyclic_repetition(jax.random.key(0), 10, 5)
    exact = dataclasses.replace(exact, decoders=code.decoders, num_stragglers=0)
    assert learn(exact, model) is exact


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (codes.reed_solomon(6, 6, 3), "code must be real"),
        (codes.communication_efficient(4, 1, 2), "code.num_segments must be 1"),
        (
            codes.partially_coded(codes.cyclic_mds(4, 1), 1),
            "code.messages_per_worker must be 1",
        ),
    ],
)
def test_codes_whose_entries_cannot_be_learned(code, message):
    with pytest.raises(ValueError, match=message):
        simulation.learn_entries(code, stragglers.uniform(2), KEY)


class NoArrays(stragglers.StragglerModel):
    """Returns a mask instead of `Arrivals`."""

    def sample(self, key, state, loads):
        return loads > 0, state


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (stragglers.uniform(4), ValueError, "num_stragglers must be less"),
        (NoArrays(), TypeError, "model.sample must return .arrivals, state."),
    ],
)
def test_models_that_do_not_fit_the_code(model, error, message):
    code = codes.cyclic_repetition(KEY, 4, 1)
    with pytest.raises(error, match=message):
        simulation.learn_entries(code, model, KEY)


def test_traced_codes_are_rejected():
    code = codes.cyclic_repetition(KEY, 4, 1)
    with pytest.raises(TypeError, match="code must be concrete"):
        jax.eval_shape(
            lambda code: simulation.learn_entries(code, stragglers.uniform(2), KEY),
            code,
        )
