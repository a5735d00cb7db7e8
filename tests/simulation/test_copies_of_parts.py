"""Rounds of copies of parts, which the host ends, are those of the waiting rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.coding import Arrived
from jaxwgc.simulation._rounds import Drawn, Loads, end_rounds

CODES = {
    "two copies": codes.replicated(6, 24, copies=2),
    "weights": jaxwgc.weighted(codes.replicated(6, 24, copies=2), np.arange(24.0)),
    "unequal loads": codes.replicated(5, 20, copies=2, loads=[1, 2, 3, 4, 5]),
    "one copy": codes.replicated(5, 20, copies=1),
}


def drawn_times(code):
    """Times of 200 rounds; workers are lost before, or in the middle of their work."""
    loads = Loads.of(code, np.float32)
    keys = jax.random.split(jax.random.key(0), (2, 100))
    draw = np.random.default_rng(0)
    num_workers = code.num_workers
    num_parts = np.asarray(code.parts_per_worker)[:, None]
    speeds = draw.uniform(0.5, 2.0, (2, 100, num_workers, 1))
    times = np.array(loads.shares * loads.loads[:, None] * speeds, np.float32)
    places = np.arange(times.shape[-1])
    is_lost = draw.random((2, 100, num_workers, 1)) < 0.1
    stops = draw.random((2, 100, num_workers, 1)) < 0.1
    times[is_lost | (stops & (places >= num_parts - 1))] = np.inf
    return Drawn(keys=keys, times=jnp.asarray(times), loads=loads.loads)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.7])
@pytest.mark.parametrize("name", CODES)
def test_rounds_on_the_host_are_those_of_the_rule(name, share):
    code = CODES[name]
    rule = stragglers.coverage(code, share)
    drawn = drawn_times(code)
    rounds = end_rounds(rule, "cancelled", code, drawn)
    assert isinstance(rounds.time, np.ndarray)

    @jax.jit
    @jax.vmap
    def arrive(part_times):
        arrivals = rule.arrivals(drawn.keys[0, 0], part_times[:, -1], part_times)
        finished = arrivals.finished(code.parts_per_worker)
        mask = Arrived.of(code, finished=finished).mask
        return arrivals.elapsed, finished, mask

    times = drawn.times.reshape(-1, *drawn.times.shape[2:])
    elapsed, finished, masks = arrive(times)
    np.testing.assert_array_equal(rounds.time, elapsed)
    np.testing.assert_array_equal(rounds.masks, np.packbits(masks, axis=1))
    done = finished / np.asarray(code.parts_per_worker)
    work = done @ np.asarray(code.loads) / code.num_workers
    np.testing.assert_allclose(rounds.work, work, rtol=1e-5)
    assert 0 < np.isinf(elapsed).sum() < 200 or share < 0.8
