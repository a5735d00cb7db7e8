"""Mistakes that would stay silent: the aggregator says so where it can."""

import dataclasses
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
ANY_FOUR = codes.cyclic_repetition(jax.random.key(0), 6, num_stragglers=2)
DELAY = stragglers.pareto(1.0, 2.0)
# Workers 0, 2 and 4 hold the first half of the parts.
TOO_FEW = np.arange(6) % 2 == 0


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
        match = "does not know recieved, .*misspelt"
        with pytest.warns(UserWarning, match=match) as caught:
            optimizer.update(GRADIENTS, state, recieved=np.ones(6, bool))
        assert caught[0].filename == __file__

    def test_those_of_optax_itself(self):
        optimizer = optax.chain(aggregate(CODE), optax.polyak_sgd())
        state = optimizer.init(GRADIENTS[0])
        optimizer.update(GRADIENTS, state, GRADIENTS[0], value=1.0)


class TestUndecodable:
    def update(self, undecodable, received, wrap=lambda own: own):
        transform = aggregate(CODE, undecodable=undecodable)
        state = transform.init(GRADIENTS[0])
        return wrap(transform.update)(GRADIENTS, state, received=received)

    def test_said_where_updates_run_eagerly(self):
        match = "cannot be decoded: 3 of 6 workers .* norm of aᵀB - target is 1.73"
        with pytest.warns(UserWarning, match=match):
            warned = self.update("warn", TOO_FEW)
        with pytest.raises(RuntimeError, match=match):
            self.update("raise", TOO_FEW)
        silent = self.update("least_squares", TOO_FEW)
        np.testing.assert_array_equal(warned[0], silent[0])
        assert warned[1].num_undecodable == 1

    @pytest.mark.parametrize("undecodable", ["warn", "raise"])
    def test_nothing_is_said_of_rounds_that_decode_or_are_traced(self, undecodable):
        self.update(undecodable, np.arange(6) < 2)
        _, state = self.update(undecodable, TOO_FEW, jax.jit)
        assert state.num_undecodable == 1


@dataclasses.dataclass(frozen=True)
class Longer(stragglers.WaitingRule):
    """Until the first worker is that many times overdue."""

    factor: float

    def is_over(self, times, now):
        return now >= self.factor * times.min()


class TestModelsThatNeverDecode:
    def make(self, code, wait):
        is_rule = isinstance(wait, stragglers.WaitingRule)
        model = stragglers.delayed(DELAY, wait) if is_rule else wait
        return jaxwgc.coded_aggregate(code, model, jax.random.key(0))

    @pytest.mark.parametrize("wrap", [lambda own: own, jax.jit])
    @pytest.mark.parametrize(
        ("code", "wait", "match"),
        [
            (
                ANY_FOUR,
                stragglers.fastest(3),
                "32 of 32 .*: 3 of 6 .* any 4 .*fastest.4",
            ),
            (
                ANY_FOUR,
                stragglers.uniform(3),
                "32 of 32 .*: 3 of 6 .* any 4 are enough",
            ),
            (
                codes.reed_solomon(6, num_parts=6, replication=2),
                stragglers.until_decodable(CODE),
                "of 6 workers answer, and any 5 are enough. The waiting rule",
            ),
            (ANY_FOUR, Longer(1.1), "1 to . of 6 workers answer, and any 4 are enough"),
            (
                ANY_FOUR,
                stragglers.fixed(np.arange(6) < 2),
                "same 2 of 6 .* is inverted",
            ),
            (codes.uncoded(6), stragglers.deadline(0.5), "nobody answers in .* 0.5"),
        ],
    )
    def test_said_at_once(self, code, wait, match, wrap):
        """Also where the aggregator is made inside of what is traced."""
        with pytest.warns(UserWarning, match=match) as caught:
            wrap(lambda: self.make(code, wait).init(None))()
        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("code", "wait"),
        [
            (CODE, stragglers.fastest(4)),
            # Two answers are enough where they hold both halves.
            (CODE, stragglers.fastest(2)),
            (codes.projective_plane(2), stragglers.fastest(3)),
            (CODE, stragglers.until_decodable(CODE)),
            (
                jaxwgc.weighted(CODE, np.arange(6.0)),
                stragglers.until_decodable(CODE),
            ),
            # It waits for more than is needed.
            (CODE, stragglers.until_decodable(codes.cyclic_mds(6, num_stragglers=1))),
            (codes.multi_message(CODE), stragglers.fastest(1)),
            # Approximate gradients are what is asked for.
            (codes.uncoded(6), stragglers.fastest(2)),
            (codes.uncoded(6), stragglers.uniform(2)),
        ],
    )
    def test_models_that_may_decode(self, code, wait):
        self.make(code, wait)
