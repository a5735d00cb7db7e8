"""Rounds that are over before all is done: coverage, and workers that are busy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 1.0])
def test_coverage_against_the_times_of_parts(share):
    """A round ends with the part that makes up the share, first copies alone."""
    code = codes.replicated(4, 20, 2)
    times = np.random.default_rng(0).exponential(size=(50, 4)) + 0.1
    wait = stragglers.coverage(code, share)
    keys = jax.random.split(jax.random.key(0), 50)
    arrivals = jax.vmap(wait.arrivals)(keys, jnp.asarray(times, jnp.float32))
    copies = np.asarray(code.decoders[0].copies)
    ready = times[:, copies // 10] * (copies % 10 + 1) / 10
    ends = np.sort(ready.min(-1), axis=1)[:, int(np.ceil(20 * share)) - 1]
    np.testing.assert_allclose(arrivals.elapsed, ends, rtol=1e-5)
    decoded = jaxwgc.decoding(code, arrivals)
    assert np.all(decoded.share >= share - 1e-6)


class Given(stragglers.DelayModel):
    """Times that are known: a row a round."""

    def __init__(self, rows):
        self.rows = jnp.asarray(rows)

    def init(self, num_workers):
        return jnp.zeros((), int)

    def sample(self, key, state, loads):
        return self.rows[state], state + 1


def by_hand(rows, awaited):
    """One event after the other, in Python."""
    free_at, now = np.zeros(rows.shape[1]), 0.0
    for times in rows:
        begins = np.maximum(free_at, now)
        was_busy = free_at > now
        end = np.sort(begins + times)[awaited - 1]
        joined = begins <= end
        received = begins + times <= end
        yield end - now, joined, was_busy & joined, received
        free_at = np.where(joined, begins + times, free_at)
        # Who would never be done is replaced.
        free_at, now = np.where(np.isfinite(free_at), free_at, end), end


def test_busy_workers_join_when_they_are_free():
    rows = np.random.default_rng(1).exponential(size=(40, 5)).astype(np.float32)
    rows[3, 1] = rows[17, 4] = np.inf
    model = stragglers.delayed(Given(rows), stragglers.fastest(3), late="busy")

    def step(state, key):
        arrivals, state = model.sample(key, state, jnp.ones(5))
        return state, arrivals

    keys = jax.random.split(jax.random.key(0), len(rows))
    _, rounds = jax.jit(lambda: jax.lax.scan(step, model.init(5), keys))()
    by_number = enumerate(by_hand(rows, 3))
    for number, (elapsed, joined, late, received) in by_number:
        np.testing.assert_allclose(rounds.elapsed[number], elapsed, rtol=1e-4)
        np.testing.assert_array_equal(rounds.joined[number], joined)
        np.testing.assert_array_equal(rounds.late[number], late)
        np.testing.assert_array_equal(rounds.received[number], received)
    assert rounds.late.sum() > 20 and (~rounds.joined).sum() > 10
    with pytest.raises(ValueError, match='late must be "cancelled" for a code of sev'):
        jaxwgc.decoding(codes.multi_message(codes.uncoded(5, 10)), rounds)


def test_cancelled_is_what_it_was():
    """And late is one of two words; parts of a code are not finished while busy."""
    model = stragglers.delayed(Given(np.ones((1, 3))), stragglers.fastest(2))
    assert model == stragglers.delayed(model.delay, model.wait, late="cancelled")
    arrivals, _ = model.sample(jax.random.key(0), model.init(3), jnp.ones(3))
    assert arrivals.joined is None and arrivals.late is None
    with pytest.raises(ValueError, match="late must be one of"):
        stragglers.delayed(model.delay, model.wait, late="gone")
    wait = stragglers.until_decodable(codes.replicated(3))
    with pytest.raises(ValueError, match='late must be "cancelled" for'):
        stragglers.delayed(model.delay, wait, late="busy")
