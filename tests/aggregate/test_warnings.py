"""Mistakes that would stay silent: the aggregator says so where it can."""

import warnings

import jax
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from tests.aggregate.problems import aggregate

CODE = codes.fractional_repetition(6, 2)
GRADIENTS = np.arange(12, dtype=np.float32).reshape(6, 2)
DELAY = stragglers.pareto(1.0, 2.0)


@pytest.fixture(autouse=True)
def no_other_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestExtraArguments:
    def test_misspelt(self):
        """From a chain, where other transformations ignore it."""
        optimizer = optax.chain(aggregate(CODE), optax.sgd(1.0))
        state = optimizer.init(GRADIENTS[0])
        match = "unknown extra arguments recieved: .*spelling"
        with pytest.warns(UserWarning, match=match) as caught:
            optimizer.update(GRADIENTS, state, recieved=np.ones(6, bool))
        assert caught[0].filename == __file__

    def test_those_of_optax_itself(self):
        optimizer = optax.chain(aggregate(CODE), optax.polyak_sgd())
        state = optimizer.init(GRADIENTS[0])
        optimizer.update(GRADIENTS, state, GRADIENTS[0], value=1.0)


class TestModelsThatNeverDecode:
    def make(self, code, wait):
        model = stragglers.delayed(DELAY, wait)
        return jaxwgc.coded_aggregate(code, model, jax.random.key(0))

    def test_fewer_than_needed(self):
        code = codes.cyclic_mds(6, num_stragglers=2)
        match = (
            "for the 3 fastest of 6 workers; code then decodes in [0-6] of 64 .* Any 4 "
            r"responses are enough: use stragglers.fastest\(4\)"
        )
        with pytest.warns(UserWarning, match=match) as caught:
            self.make(code, stragglers.fastest(3))
        assert caught[0].filename == __file__

    def test_a_rule_of_another_code(self):
        """Also where the aggregator is made inside of what is traced."""
        code = codes.reed_solomon(6, num_parts=6, replication=2)
        rule = stragglers.until_decodable(CODE)
        for wrap in (lambda own: own, jax.jit):
            with pytest.warns(UserWarning, match="until another code decodes, Gradie"):
                wrap(lambda: self.make(code, rule).init(None))()

    @pytest.mark.parametrize(
        ("code", "wait"),
        [
            (CODE, stragglers.fastest(4)),
            # Two answers are enough where they hold both halves.
            (CODE, stragglers.fastest(2)),
            (codes.projective_plane(2), stragglers.fastest(3)),
            (CODE, stragglers.until_decodable(CODE)),
            (jaxwgc.weighted(CODE, np.arange(6.0)), stragglers.until_decodable(CODE)),
            # It waits for more than is needed.
            (CODE, stragglers.until_decodable(codes.cyclic_mds(6, num_stragglers=1))),
            (codes.multi_message(CODE), stragglers.fastest(1)),
            (CODE, stragglers.deadline(1e-3)),
        ],
    )
    def test_models_that_may_decode(self, code, wait):
        self.make(code, wait)
