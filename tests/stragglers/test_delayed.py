"""Delay models and waiting rules together, and the parts that they finish."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxwgc import stragglers


def test_state_and_keys_of_a_delay_of_the_user():
    """State is carried; the delay and the rule get different keys."""

    class Delay(stragglers.DelayModel):
        def init(self, num_workers):
            return jnp.zeros(())

        def sample(self, key, state, loads):
            draws = jax.random.uniform(key, loads.shape)
            return loads + state + draws, state + 10.0

    class Wait(stragglers.WaitingRule):
        def arrivals(self, key, times):
            return stragglers.Arrivals(times > 0, times, jax.random.uniform(key))

    model = stragglers.delayed(Delay(), Wait())
    state = model.init(3)
    for before in (0.0, 10.0, 20.0):
        arrivals, state = model.sample(jax.random.key(7), state, jnp.arange(3.0))
        draws = np.asarray(arrivals.times) - np.arange(3) - before
        assert np.all((draws > -1e-5) & (draws < 1 + 1e-5))
        assert state == before + 10
        assert np.all(np.abs(draws - arrivals.elapsed) > 1e-3)


class Steady(stragglers.DelayModel):
    """A delay model without chance: every part of a worker takes the same time."""

    def __init__(self, times_of_a_part):
        self.seconds = jnp.asarray(times_of_a_part)

    def sample(self, key, state, loads):
        return jnp.where(loads > 0, loads * self.seconds, 0), state


def finished_of(times_of_a_part, wait, loads):
    model = stragglers.delayed(Steady(times_of_a_part), wait)
    arrivals, _ = model.sample(jax.random.key(0), (), jnp.asarray(loads))
    assert arrivals.finished.dtype == np.int32
    return arrivals


compiled = jax.jit(finished_of, static_argnums=1)


@jax.jit
def by_deadline(seconds, times_of_a_part, loads):
    return finished_of(times_of_a_part, stragglers.deadline(seconds), loads)


SLOWED = stragglers.bernoulli_slowdown(0.5, 2.0)
DEAD = stragglers.bernoulli_slowdown(0.5, math.inf)
EXPONENTIAL = stragglers.shifted_exponential(0.5, 2.0)
MODELS = {
    "exponential": stragglers.delayed(EXPONENTIAL, stragglers.fastest(3)),
    "pareto": stragglers.delayed(stragglers.pareto(1.0, 1.1), stragglers.deadline(6.0)),
    "dead": stragglers.delayed(DEAD, stragglers.fastest(3)),
    "dead at a deadline": stragglers.delayed(DEAD, stragglers.deadline(1.5)),
    "ties": stragglers.delayed(SLOWED, stragglers.fastest(2)),
}
LOADS = 1.0, 2.0, 3.0, 5.0, 2.5, 0.25, 0.0


@jax.jit
@jax.vmap
def rounds(key):
    """Of all models, in one program."""
    loads = jnp.array(LOADS)
    return {
        name: model.sample(key, model.init(7), loads)[0]
        for name, model in MODELS.items()
    }


class TestFinished:
    @settings(max_examples=150, deadline=None)
    @given(
        loads=st.lists(st.integers(0, 40), min_size=5, max_size=5),
        tenths=st.lists(st.integers(1, 60), min_size=5, max_size=5),
        limit=st.integers(1, 900),
        x64=st.booleans(),
    )
    @example(loads=[3] * 5, tenths=[10] * 5, limit=20, x64=False)
    @example(loads=[3, 9, 1, 1, 1], tenths=[10] * 5, limit=30, x64=True)
    @example(loads=[7, 7, 9, 11, 40], tenths=[1, 3, 7, 9, 11], limit=63, x64=True)
    def test_whole_parts_by_a_deadline(self, loads, tenths, limit, x64):
        """Against exact fractions: where a part ends at the deadline, it counts."""
        with jax.enable_x64(x64):
            dtype = np.float64 if x64 else np.float32
            seconds = np.array(tenths, dtype) / 10
            arrivals = by_deadline(
                np.asarray(limit / 10, dtype), seconds, np.array(loads, dtype)
            )
        for load, tenth, received, finished in zip(
            loads, tenths, arrivals.received, arrivals.finished, strict=True
        ):
            if received:
                assert finished == load
            else:
                # A last part that ends at the deadline may come a rounding too late.
                done = math.floor(fractions.Fraction(limit, tenth))
                assert finished == min(done, load - 1)

    @pytest.mark.parametrize("name", MODELS)
    def test_all_parts_are_those_of_the_received(self, name, x64):
        loads = np.array(LOADS)
        arrivals = rounds(jax.random.split(jax.random.key(0), 300))[name]
        finished = np.asarray(arrivals.finished)
        received = np.asarray(arrivals.received)
        assert finished.dtype == np.int32
        assert np.all(finished >= 0)
        working = loads > 0
        np.testing.assert_array_equal(
            (finished >= loads)[:, working], received[:, working]
        )
        assert np.all(finished <= np.ceil(loads))
        never = np.isinf(arrivals.times)
        assert np.all(finished[never] == 0)

    def test_no_work_and_no_time(self, x64):
        """No work is finished by nobody who was left out; work may take no time."""
        arrivals = compiled(
            np.array([1.0, 1.0, 0.0, 0.0]),
            stragglers.fastest(1),
            np.array([0.0, 2.0, 2.0, 1.0]),
        )
        assert arrivals.elapsed == 0
        expected = np.where(arrivals.received, [0, 2, 2, 1], [0, 0, 1, 0])
        np.testing.assert_array_equal(arrivals.finished, expected)

    def test_a_round_without_end(self, x64):
        """Whoever works is but a part from done if the server takes nobody."""

        class Nobody(stragglers.WaitingRule):
            def arrivals(self, key, times):
                received = jnp.zeros(len(times), bool)
                return stragglers.Arrivals(received, times, jnp.asarray(jnp.inf))

        arrivals = compiled(
            np.array([1.0, np.inf, 2.0, 0.0]), Nobody(), np.array([3, 4, 0, 2])
        )
        np.testing.assert_array_equal(arrivals.finished, [2, 0, 0, 1])

    def test_a_rule_may_report_it_itself(self):
        class Wait(stragglers.WaitingRule):
            def arrivals(self, key, times):
                parts = jnp.arange(3, dtype=jnp.int32)
                return stragglers.Arrivals(times > 0, times, times.max(), parts)

        arrivals = compiled(1.0, Wait(), np.ones(3))
        np.testing.assert_array_equal(arrivals.finished, [0, 1, 2])

    def test_times_in_half_precision(self):
        """Their rounding is coarser, and so is what counts as a whole part."""
        seconds = np.array(0.1, jnp.bfloat16)
        model = stragglers.delayed(Steady(seconds), stragglers.deadline(0.5))
        loads = jnp.full(2, 9, jnp.bfloat16)
        arrivals, _ = model.sample(jax.random.key(0), (), loads)
        np.testing.assert_array_equal(arrivals.finished, 5)

    def test_waiting_rules_alone_do_not_report_it(self):
        times = jnp.array([1.0, 2.0])
        for wait in (stragglers.fastest(1), stragglers.deadline(1.5)):
            assert wait.arrivals(jax.random.key(0), times).finished is None
