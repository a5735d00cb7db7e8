"""Asynchronous rules against an event simulation in NumPy, and against laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwgc import asynchronous, stragglers
from jaxwgc.asynchronous import Problem, train
from tests.asynchronous import event_simulation

NUM_WORKERS = 5
NUM_ARRIVALS = 1000
NUM_LAWS = 20
STEP = 0.02
KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
# Two parts for each worker: sums of curvatures times squared distances.
CENTERS = RANDOM.normal(size=(10, 3))
CURVATURES = RANDOM.uniform(0.05, 0.2, size=(10, 3))
START = np.array([2.0, -1.0, 0.5])


@dataclasses.dataclass(frozen=True)
class Measured(stragglers.DelayModel):
    """The times of a table, one row after the other."""

    table: jax.Array

    def init(self, num_workers):
        return jnp.int32(0)

    def sample(self, key, state, loads):
        return self.table[state % len(self.table)] * loads, state + 1


def tables():
    """Times of laws that differ in kind, and workers that differ in speed."""
    draws = []
    for law in range(NUM_LAWS):
        random = np.random.default_rng(law)
        speeds = random.uniform(0.2, 3.0, size=NUM_WORKERS)
        shape = (NUM_ARRIVALS, NUM_WORKERS)
        kinds = [
            random.exponential(size=shape),
            1 + random.pareto(1.5, size=shape),
            random.lognormal(size=shape),
            np.where(random.random(shape) < 0.1, 30.0, 1.0)
            * random.uniform(1, 2, shape),
        ]
        draws.append((0.01 + kinds[law % len(kinds)]) / speeds)
    return np.stack(draws)


def loss(params, part):
    return jnp.sum(part["curvature"] * (params - part["center"]) ** 2) / 2


def problem(dtype, draws="own"):
    parts = {"center": CENTERS.astype(dtype), "curvature": CURVATURES.astype(dtype)}
    return Problem(loss, parts, START.astype(dtype), NUM_WORKERS, draws)


def gradient(params, worker):
    """Five times the gradient of the worker's two parts."""
    own = slice(2 * worker, 2 * worker + 2)
    return 5 * np.sum(CURVATURES[own] * (params - CENTERS[own]), axis=0)


RULES = {
    "every arrival": (
        asynchronous.every_arrival(),
        lambda: event_simulation.every_arrival,
    ),
    "delay-adaptive": (
        asynchronous.delay_adaptive(),
        lambda: event_simulation.delay_adaptive,
    ),
    "rescaled": (asynchronous.rescaled(), event_simulation.rescaled),
    "ringmaster": (
        asynchronous.ringmaster(3),
        functools.partial(event_simulation.ringmaster, 3, False),
    ),
    "ringmaster, stops": (
        asynchronous.ringmaster(3, stops=True),
        functools.partial(event_simulation.ringmaster, 3, True),
    ),
    "rennala": (
        asynchronous.rennala(4),
        functools.partial(event_simulation.rennala, 4),
    ),
    "fedbuff": (
        asynchronous.fedbuff(3),
        functools.partial(event_simulation.fedbuff, 3),
    ),
    "ringleader": (asynchronous.ringleader(), event_simulation.ringleader),
}


@functools.partial(jax.jit, static_argnums=0)
def trained(rule, tables, problem):
    """States and events of all laws at once."""

    def of_table(table):
        delay = Measured(table)
        optimizer = optax.sgd(STEP)
        return train(rule, problem, delay, optimizer, KEY, NUM_ARRIVALS)

    return jax.vmap(of_table)(tables)


@functools.cache
def simulated(name):
    """The event simulation of all laws in float64."""
    _, make = RULES[name]
    return [
        event_simulation.Run(make(), table, gradient, START, STEP, NUM_ARRIVALS)
        for table in tables()
    ]


@pytest.mark.parametrize("name", RULES)
def test_parameters_and_staleness_are_those_of_an_event_simulation(name, with_x64):
    rule, _ = RULES[name]
    state, events = jax.device_get(trained(rule, tables(), problem(np.float64)))
    for law, run in enumerate(simulated(name)):
        np.testing.assert_allclose(state.params[law], run.params, rtol=0, atol=1e-12)
        assert state.num_updates[law] == run.num_updates
        np.testing.assert_array_equal(events.staleness[law], run.staleness)
        times = events.time[law][events.is_update[law]]
        np.testing.assert_allclose(times, run.update_times, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_parameters_in_float32_are_those_of_an_event_simulation(name):
    rule, make = RULES[name]
    table = tables()[:1].astype(np.float32)
    state, _ = jax.device_get(trained(rule, table, problem(np.float32)))
    run = event_simulation.Run(make(), table[0], gradient, START, STEP, NUM_ARRIVALS)
    np.testing.assert_allclose(state.params[0], run.params, rtol=0, atol=1e-6)
    assert state.num_updates[0] == run.num_updates


@pytest.mark.parametrize("name", ["every arrival", "ringleader"])
def test_throughput_of_workers_that_never_wait_is_the_sum_of_their_rates(name):
    """Of fixed times: the workers' numbers of computations are exact."""
    rule, _ = RULES[name]
    times = np.array([1.0, 2.0, 0.5, 4.0, 1.0], np.float32)
    table = np.broadcast_to(times, (1, NUM_ARRIVALS, NUM_WORKERS))
    _, events = jax.device_get(trained(rule, table, problem(np.float32)))
    rate = NUM_ARRIVALS / events.time[0, -1]
    assert rate == pytest.approx(np.sum(1 / times), rel=0.01)


def test_time_per_step_of_rennala_is_that_of_the_last_gradient_it_collects():
    """Of fixed times: the fourth of their multiples, since all workers begin anew."""
    times = np.array([1.0, 2.0, 0.5, 4.0, 1.25], np.float32)
    table = np.broadcast_to(times, (1, NUM_ARRIVALS, NUM_WORKERS))
    rule, _ = RULES["rennala"]
    _, events = jax.device_get(trained(rule, table, problem(np.float32)))
    ends = events.time[0][events.is_update[0]]
    fourth = np.sort(np.outer(times, [1, 2, 3, 4]).ravel())[3]
    np.testing.assert_allclose(np.diff(ends, prepend=0), fourth, rtol=1e-4)
    assert np.all(events.staleness[0] == 0)


def test_staleness_of_ringleader_is_below_twice_the_workers():
    rule, _ = RULES["ringleader"]
    _, events = jax.device_get(
        trained(rule, tables().astype(np.float32), problem(np.float32))
    )
    assert events.staleness.max() <= 2 * NUM_WORKERS - 2
    assert events.staleness.max() > NUM_WORKERS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: asynchronous.ringmaster(0), "threshold must be at least 1; got 0"),
        (lambda: asynchronous.rennala(0), "size must be at least 1; got 0"),
        (lambda: asynchronous.fedbuff(-1), "size must be at least 1; got -1"),
        (
            lambda: Problem(loss, np.ones((3, 2)), START, 5),
            "the number of parts must be a multiple of num_workers; got 3 parts",
        ),
        (
            lambda: Problem(loss, np.ones((5, 2)), START, 5, draws="some"),
            "draws must be one of 'own', 'one of own', 'one of all'; got 'some'",
        ),
    ],
)
def test_values_out_of_range_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_workers_that_never_respond_do_not_stop_rules_that_need_few():
    table = tables()[:1].astype(np.float32)
    table[..., 2] = np.inf
    for name, needs_all in (("every arrival", False), ("ringleader", True)):
        state, _ = trained(RULES[name][0], table, problem(np.float32))
        assert (state.num_updates[0] == 0) == needs_all


@pytest.mark.parametrize(
    ("draws", "places"), [("one of all", range(10)), ("one of own", (4, 5))]
)
def test_drawn_gradients_are_those_of_single_parts(draws, places):
    """Each part is drawn as often; their mean is the gradient of a worker's parts."""
    keys = jax.random.split(KEY, 400)
    gradient_of = jax.jit(jax.vmap(Problem.gradient, (None, None, None, 0)))
    start = START.astype(np.float32)
    gradients = gradient_of(problem(np.float32, draws), start, jnp.int32(2), keys)
    of_parts = 10 * CURVATURES * (START - CENTERS)
    distances = np.abs(np.asarray(gradients)[:, None] - of_parts).max(axis=2)
    assert np.all(distances.min(axis=1) < 1e-5)
    drawn, counts = np.unique(distances.argmin(axis=1), return_counts=True)
    assert drawn.tolist() == [*places]
    # Standard deviations are 6 and 10.
    assert np.all(np.abs(counts - 400 / len(places)) < 60)


def test_training_stands_still_if_no_worker_responds_any_more():
    table = np.full((1, NUM_ARRIVALS, NUM_WORKERS), np.inf, np.float32)
    state, events = trained(RULES["every arrival"][0], table, problem(np.float32))
    assert not events.is_update.any() and np.isinf(events.time).all()
    np.testing.assert_array_equal(state.params[0], START.astype(np.float32))
