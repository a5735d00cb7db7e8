"""Delay models with waiting rules: finished parts, and workers that are busy."""

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
    sample = jax.jit(model.sample)
    for before in (0.0, 10.0, 20.0):
        arrivals, state = sample(jax.random.key(7), state, np.arange(3.0))
        draws = np.asarray(arrivals.times) - np.arange(3) - before
        assert np.all((draws > -1e-5) & (draws < 1 + 1e-5))
        assert state == before + 10
        assert np.all(np.abs(draws - arrivals.elapsed) > 1e-3)


def finished_of(times_of_a_part, wait, parts):
    """Received workers and finished parts; all parts of a worker take equally long."""
    times = jnp.where(parts > 0, parts * jnp.asarray(times_of_a_part), 0)
    arrivals = wait.arrivals(jax.random.key(0), times)
    finished = arrivals.finished(parts)
    assert finished.dtype == np.int32
    return arrivals.received, finished


compiled = jax.jit(finished_of, static_argnums=1)


@jax.jit
def by_deadline(seconds, times_of_a_part, parts):
    return finished_of(times_of_a_part, stragglers.deadline(seconds), parts)


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
# A part is a load of a half.
PARTS = np.array([2, 4, 6, 10, 5, 1, 0])


@jax.jit
@jax.vmap
def rounds(key):
    """Rounds and finished parts of all models, by one program."""
    drawn = {
        name: model.sample(key, model.init(7), PARTS / 2)[0]
        for name, model in MODELS.items()
    }
    return {name: (values, values.finished(PARTS)) for name, values in drawn.items()}


class TestFinished:
    @settings(max_examples=150, deadline=None)
    @given(
        parts=st.lists(st.integers(0, 40), min_size=5, max_size=5),
        tenths=st.lists(st.integers(1, 60), min_size=5, max_size=5),
        limit=st.integers(1, 900),
        x64=st.booleans(),
    )
    @example(parts=[3] * 5, tenths=[10] * 5, limit=20, x64=False)
    @example(parts=[3, 9, 1, 1, 1], tenths=[10] * 5, limit=30, x64=True)
    @example(parts=[7, 7, 9, 11, 40], tenths=[1, 3, 7, 9, 11], limit=63, x64=True)
    def test_whole_parts_by_a_deadline(self, parts, tenths, limit, x64):
        """Against exact fractions: where a part ends at the deadline, it counts."""
        with jax.enable_x64(x64):
            dtype = np.float64 if x64 else np.float32
            seconds = np.array(tenths, dtype) / 10
            received, finished = by_deadline(
                np.asarray(limit / 10, dtype), seconds, np.array(parts)
            )
        done = [math.floor(fractions.Fraction(limit, tenth)) for tenth in tenths]
        # A last part that ends at the deadline may come a rounding too late.
        expected = np.where(received, parts, np.minimum(done, np.array(parts) - 1))
        np.testing.assert_array_equal(finished, expected)

    @pytest.mark.parametrize("name", MODELS)
    def test_all_parts_are_those_of_the_received(self, name, x64):
        keys = jax.random.split(jax.random.key(0), 300)
        arrivals, finished = jax.device_get(rounds(keys)[name])
        received = arrivals.received
        assert finished.dtype == np.int32
        assert np.all((finished >= 0) & (finished <= PARTS))
        is_done = (finished == PARTS) == received
        assert np.all(is_done[:, PARTS > 0])
        assert np.all(finished[np.isinf(arrivals.times)] == 0)

    def test_work_that_takes_no_time_is_finished(self, x64):
        """Workers that were left out finish no work; work may take no time."""
        received, finished = compiled(
            np.array([1.0, 1.0, 0.0, 0.0]),
            stragglers.fastest(1),
            np.array([0, 2, 2, 1]),
        )
        expected = np.where(received, [0, 2, 2, 1], [0, 0, 1, 0])
        np.testing.assert_array_equal(finished, expected)

    def test_a_round_without_responses_leaves_one_part_unfinished(self, x64):
        """If no worker is received, each one lacks its last part."""

        class NoResponse(stragglers.WaitingRule):
            def arrivals(self, key, times):
                received = jnp.zeros(len(times), bool)
                return stragglers.Arrivals(received, times, jnp.asarray(jnp.inf))

        _, finished = compiled(
            np.array([1.0, np.inf, 2.0, 0.0]), NoResponse(), np.array([3, 4, 0, 2])
        )
        np.testing.assert_array_equal(finished, [2, 0, 0, 1])


class Given(stragglers.DelayModel):
    """Times that are known: a row a round."""

    def __init__(self, rows):
        self.rows = jnp.asarray(rows)

    def init(self, num_workers):
        return jnp.zeros((), int)

    def sample(self, key, state, loads):
        return self.rows[state], state + 1


def by_hand(rows, awaited):
    """Simulates one event after the other, in Python."""
    free_at = np.zeros(rows.shape[1])
    now = 0.0
    for times in rows:
        begins = np.maximum(free_at, now)
        was_busy = free_at > now
        end = np.sort(begins + times)[awaited - 1]
        joined = begins <= end
        received = begins + times <= end
        yield end - now, joined, was_busy & joined, received
        free_at = np.where(joined, begins + times, free_at)
        # Who would never be done is replaced.
        free_at = np.where(np.isfinite(free_at), free_at, end)
        now = end


def test_busy_workers_join_when_they_are_free():
    rows = np.random.default_rng(1).exponential(size=(40, 5)).astype(np.float32)
    rows[3, 1] = rows[17, 4] = np.inf
    model = stragglers.delayed(Given(rows), stragglers.fastest(3), late="busy")

    def step(state, key):
        arrivals, state = model.sample(key, state, jnp.ones(5))
        return state, arrivals

    keys = jax.random.split(jax.random.key(0), len(rows))
    _, rounds = jax.jit(lambda: jax.lax.scan(step, model.init(5), keys))()
    elapsed, *masks = map(np.array, zip(*by_hand(rows, 3)))
    np.testing.assert_allclose(rounds.elapsed, elapsed, rtol=1e-4)
    for result, expected in zip((rounds.joined, rounds.late, rounds.received), masks):
        np.testing.assert_array_equal(result, expected)
    assert rounds.late.sum() > 20 and (~rounds.joined).sum() > 10


def test_late_workers_are_cancelled_by_default():
    model = stragglers.delayed(Given(np.ones((1, 3))), stragglers.fastest(2))
    assert model == stragglers.delayed(model.delay, model.wait, late="cancelled")
    arrivals, _ = jax.eval_shape(
        model.sample, jax.random.key(0), model.init(3), np.ones(3)
    )
    assert arrivals.joined is None and arrivals.late is None
