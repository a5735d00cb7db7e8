"""Straggler models: rounds of one unit against their laws, inputs of every kind."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc import codes, decoders, simulation, stragglers
from tests.catalogue.row import examples_of
from tests.catalogue.straggler_models import ROWS
from tests.oracles import check_counts
from tests.stragglers.laws import SIGNIFICANCE, binary, rounds_of
from tests.zoo import KEY

PARETO = stragglers.pareto(1.0, 2.0)
CODE = codes.reed_solomon(5, 5, 3)
ONE_UNIT = examples_of(row for row in ROWS if row.takes_one_unit)


class TestUniform:
    @pytest.mark.parametrize(
        ("num_stragglers", "x64", "kind"),
        [(1, False, "key"), (3, True, "PRNGKey"), (4, False, "PRNGKey")],
    )
    def test_every_subset_is_as_likely(self, num_stragglers, x64, kind):
        """Exactly s of 6 workers; chi-square over all C(6, s) subsets."""
        model = stragglers.uniform(num_stragglers)
        with jax.enable_x64(x64):
            arrivals = rounds_of(model, np.ones(6), 6000, getattr(jax.random, kind))
        assert np.all(arrivals.received.sum(1) == 6 - num_stragglers)
        _, counts = np.unique(binary(arrivals.received), return_counts=True)
        assert len(counts) == math.comb(6, num_stragglers)
        check_counts(counts)

    @pytest.mark.parametrize(("num_workers", "lost"), [(1, 0), (7, 6), (130, 65)])
    def test_every_round_has_the_number_of_stragglers(self, num_workers, lost):
        arrivals = rounds_of(stragglers.uniform(lost), np.ones(num_workers), 20)
        assert np.all(arrivals.received.sum(1) == num_workers - lost)

    def test_rounds_are_independent(self):
        """Which of 3 workers is lost, against the round before."""
        lost = rounds_of(stragglers.uniform(1), np.ones(3), 2000).received.argmin(1)
        table = np.zeros((3, 3))
        np.add.at(table, (lost[:-1], lost[1:]), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > SIGNIFICANCE


class TestBernoulli:
    @pytest.mark.parametrize(
        ("probability", "x64", "kind"),
        [(0.2, True, "PRNGKey"), ((0.1, 0.5, 0.8, 0.6), False, "key")],
    )
    def test_stragglers_are_independent(self, probability, x64, kind):
        """Chi-square over all 16 subsets of four workers."""
        number = 4000
        model = stragglers.bernoulli(probability)
        with jax.enable_x64(x64):
            arrivals = rounds_of(model, np.ones(4), number, getattr(jax.random, kind))
        subsets = (np.arange(16)[:, None] >> np.arange(4)) & 1
        lost = np.broadcast_to(probability, 4)
        expected = np.prod(np.where(subsets, 1 - lost, lost), 1)
        counts = np.bincount(binary(arrivals.received), minlength=16)
        check_counts(counts, number * expected)

    def test_probability_may_be_mapped_over(self):
        """Probabilities of 0 and 1 have a certain outcome."""

        def responses(probability):
            model = stragglers.bernoulli(probability)
            return model.sample(KEY, model.init(2000), jnp.ones(2000))[0].received

        probabilities = np.array([0.0, 0.1, 0.5, 1.0], np.float32)
        share = np.asarray(jax.jit(jax.vmap(responses))(probabilities)).mean(1)
        error = 4 * np.sqrt(probabilities * (1 - probabilities) / 2000)
        assert np.all(np.abs(share - (1 - probabilities)) <= error)

    def test_same_key_same_round_in_both_precisions(self):
        model = stragglers.bernoulli(0.4)
        rounds = []
        for mode in (False, True):
            with jax.enable_x64(mode):
                rounds.append(rounds_of(model, np.ones(300), 4))
        np.testing.assert_array_equal(rounds[0].received, rounds[1].received)


@pytest.mark.parametrize("model", ONE_UNIT.values(), ids=ONE_UNIT)
def test_rounds_of_one_unit(model):
    """All parts of a worker are finished at the time 1, or none ever."""
    parts = np.array([3, 0, 1, 12])
    arrivals = rounds_of(model, parts / 4, 40)
    times = np.where(arrivals.received, 1.0, np.inf)
    np.testing.assert_array_equal(arrivals.times, times)
    np.testing.assert_array_equal(arrivals.elapsed, 1.0)
    expected = np.where(arrivals.received, parts, 0)
    finished = jax.jit(lambda arrivals: arrivals.finished(parts))(arrivals)
    np.testing.assert_array_equal(finished, expected)
    if isinstance(model, stragglers.fixed):
        assert np.all(arrivals.received == [True, False, True, True])


MAKERS = {
    "uniform": lambda: stragglers.uniform(num_stragglers=2),
    "bernoulli": lambda: stragglers.bernoulli(np.array(0.25)),
    "bernoulli, unequal": lambda: stragglers.bernoulli(np.array([0.25, 1])),
    "combined": lambda: stragglers.markov(
        stragglers.affine(stragglers.pareto(1, shape=2), 1.0),
        stragglers.unequal_speeds(stragglers.weibull(1, 2), np.array([1.0, 2.0])),
        0.1,
        0.2,
    ),
    "until_decodable": lambda: stragglers.until_decodable(CODE, 0.1, decoders.Lagrange),
    "delayed": lambda: stragglers.delayed(
        stragglers.pareto(1.0, 2.0), stragglers.fastest(np.int32(3))
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_arguments_give_equal_models(make):
    assert make() == make() and hash(make()) == hash(make())
    assert make() != stragglers.uniform(1)


def test_rule_whose_decoder_holds_arrays():
    times = np.array([3.0, 1.0, np.inf, 2.0, np.inf])
    assert MAKERS["until_decodable"]().ends(times) == 3


def test_one_program_serves_equal_models():
    traced = []

    def sample(model, key):
        traced.append(model)
        return model.sample(key, (), np.ones(5))[0].elapsed

    compiled = jax.jit(sample, static_argnums=0)
    for _ in range(2):
        compiled(MAKERS["delayed"](), KEY)
    assert len(traced) == 1


@pytest.mark.parametrize(
    "model",
    [
        stragglers.uniform(1),
        stragglers.bernoulli(0.5),
        simulation.adversarial(codes.fractional_repetition(4, 1), 1),
        PARETO,
        stragglers.delayed(PARETO, stragglers.fastest(2)),
    ],
    ids=repr,
)
def test_loads_may_be_lists_or_integers(model):
    expected = jax.tree.leaves(model.sample(KEY, (), jnp.array([2.0, 1, 0, 3])))
    for loads in ([2, 1, 0, 3], np.array([2, 1, 0, 3], np.int8)):
        drawn = jax.tree.leaves(model.sample(KEY, (), loads))
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)


def test_wrong_traced_loads_give_nan_times():
    """A worker with such a time is not received."""

    @jax.jit
    @jax.vmap
    def rounds(load):
        waits = stragglers.fastest(4), stragglers.deadline(1e6)
        models = [stragglers.delayed(PARETO, wait) for wait in waits]
        loads = jnp.ones(4).at[1].set(load)
        return [model.sample(KEY, (), loads)[0] for model in models]

    for arrivals in jax.device_get(rounds(np.array([-1.0, np.nan, np.inf]))):
        assert np.isnan(arrivals.times[:, 1]).all() and np.isnan(arrivals.elapsed).all()
        assert not arrivals.received[:, 1].any()


def test_waiting_rules_without_an_end():
    wait = type("Made", (stragglers.WaitingRule,), {})()
    with pytest.raises(NotImplementedError, match="wait must define is_over"):
        jax.jit(stragglers.delayed(PARETO, wait).sample)(KEY, (), np.ones(4))


@pytest.mark.parametrize(
    ("probability", "error", "message"),
    [
        (1.5, ValueError, "probability must be at most 1; got 1.5"),
        ([0.5, 1.5], ValueError, r"from 0 to 1; got probability\[1\]"),
        (["0.5"], TypeError, "probability must be real numbers"),
    ],
)
def test_bernoulli_rejects_wrong_probabilities(probability, error, message):
    with pytest.raises(error, match=message):
        stragglers.bernoulli(probability)


def test_fixed_rejects_masks_of_several_rounds():
    with pytest.raises(ValueError, match="received must have (shape|a leading axis)"):
        stragglers.fixed(np.ones((2, 3), bool))


def test_late_workers_cannot_be_busy_with_several_messages():
    wait = stragglers.until_decodable(codes.replicated(3))
    with pytest.raises(ValueError, match='late must be "cancelled" for'):
        stragglers.delayed(PARETO, wait, "busy")


@pytest.mark.parametrize(
    ("model", "num_workers", "message"),
    [
        (stragglers.uniform(4), 4, "num_stragglers must"),
        (stragglers.bernoulli([0.5, 0.1]), 3, "probability must have one entry"),
        (stragglers.fixed(np.ones(6, bool)), 3, "received must have one entry"),
    ],
)
def test_samples_of_another_number_of_workers_are_rejected(model, num_workers, message):
    with pytest.raises(ValueError, match=message):
        model.sample(KEY, (), np.ones(num_workers))


def test_a_traced_number_of_stragglers_is_rejected():
    with pytest.raises(TypeError, match="num_stragglers must"):
        jax.eval_shape(lambda number: stragglers.uniform(number).init(3), 1)
