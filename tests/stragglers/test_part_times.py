"""Times of parts: of every delay model, of models of the user, and in rounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from tests.catalogue import delay_laws
from tests.catalogue.row import examples_of

MODELS = examples_of(delay_laws.ROWS)
PARTS = np.array([4, 2, 3])
LOADS = np.array([2.0, 1.0, 1.5])
SHARES = np.minimum(np.arange(1, 5) / PARTS[:, None], 1)
CODE = codes.replicated(3, num_parts=6, copies=2)


@jax.jit
def drawn(keys, loads):
    """Times, times of parts, and the states after both, of all models."""

    def both(model, key):
        state = model.init(3)
        times = model.sample(key, state, loads)
        part_times = model.part_times(key, state, loads, SHARES)
        return times, part_times

    def of_round(key):
        return {name: both(model, key) for name, model in MODELS.items()}

    return jax.vmap(of_round)(keys)


def test_parts_end_in_order_and_with_the_load(x64):
    keys = jax.random.split(jax.random.key(0), 200)
    results = jax.device_get(drawn(keys, jnp.asarray(LOADS)))
    for name, (whole, parts) in results.items():
        times, state = whole
        part_times, state_of_parts = parts
        assert part_times.shape == (200, 3, 4), name
        assert part_times.dtype == times.dtype == (np.float64 if x64 else np.float32)
        # Two formulas of one time may differ in the last bits: a compiler may fuse
        # multiplications and additions in one of them alone.
        rtol = 100 * np.finfo(times.dtype).eps
        np.testing.assert_allclose(part_times[..., -1], times, rtol, err_msg=name)
        jax.tree.map(np.testing.assert_array_equal, state, state_of_parts)
        earlier = np.where(np.isfinite(part_times), part_times, 1e9)
        rounding = rtol * earlier[..., 1:]
        assert np.all(np.diff(earlier, axis=2) >= -rounding), name
        # From its last part on, a worker is at its finish time.
        np.testing.assert_allclose(part_times[:, 1, 1], times[:, 1], rtol, err_msg=name)


def test_proportional_laws_divide_evenly():
    law = stragglers.shifted_exponential(1.0, 2.0)
    times, _ = law.sample(jax.random.key(1), (), LOADS)
    part_times, _ = law.part_times(jax.random.key(1), (), LOADS, SHARES)
    np.testing.assert_allclose(part_times, times[:, None] * SHARES, rtol=1e-6)


def test_an_overhead_comes_first():
    """0.5 s for the response of any load, then 2 s of work at load 1."""
    response = stragglers.bernoulli_slowdown(0.0, 1.0, 0.5)
    delay = stragglers.affine(response, overhead=1.0, slope=0.0, time=2.0)
    part_times, _ = delay.part_times(jax.random.key(0), (), LOADS, SHARES)
    expected = 0.5 + 2 * LOADS[:, None] * SHARES
    np.testing.assert_allclose(part_times, expected, rtol=1e-6)


def test_measured_parts_have_their_own_times():
    """A load of 1 is three parts here; a load of 2 begins with the first part again."""
    table = np.array([[[1.0, 2.0, 4.0], [3.0, 1.0, 1.0]]])
    delay = stragglers.empirical(table)
    loads = np.array([1.0, 2.0])
    shares = np.arange(1, 7) / 6 * np.array([[2.0], [1.0]])
    part_times, _ = delay.part_times(
        jax.random.key(0), delay.init(2), loads, np.minimum(shares, 1)
    )
    expected = [[1, 3, 7, 7, 7, 7], [3, 4, 5, 8, 9, 10]]
    np.testing.assert_allclose(part_times, expected, rtol=1e-6)


@dataclasses.dataclass(frozen=True)
class SlowStart(stragglers.DelayModel):
    """A model of the user: it inherits the times of parts."""

    def sample(self, key, state, loads):
        return jax.random.uniform(key, loads.shape) + jnp.sqrt(loads), state


def test_own_models_inherit_times_at_the_loads_of_parts():
    part_times, _ = SlowStart().part_times(jax.random.key(0), (), LOADS, SHARES)
    start = jax.random.uniform(jax.random.key(0), (3,))
    expected = start[:, None] + np.sqrt(LOADS[:, None] * SHARES)
    np.testing.assert_allclose(part_times, expected, rtol=1e-6)


def test_rounds_count_parts_by_their_own_times():
    """A worker with an overhead has finished less than its share of the time."""
    response = stragglers.bernoulli_slowdown(0.0, 1.0, 3.0)
    delay = stragglers.affine(response, overhead=1.0, slope=0.0, time=1.0)
    model = stragglers.delayed(delay, stragglers.deadline(4.0))
    loads = jnp.asarray(CODE.loads)
    draw = jax.jit(model.sample_parts)
    arrivals, _ = draw(jax.random.key(0), (), loads, CODE.part_shares)
    # All four parts take 3 + 2 seconds: two of them are finished after 4.
    assert arrivals.finished(CODE.parts_per_worker).tolist() == [2, 2, 2]
    # A round without times of parts is no answer.
    arrivals, _ = model.sample(jax.random.key(0), (), loads)
    with pytest.raises(ValueError, match="Draw the round with model.sample_parts"):
        arrivals.finished(CODE.parts_per_worker)
    # The rule of a code knows its parts: each worker has its own two after 4 seconds.
    model = stragglers.delayed(delay, stragglers.until_decodable(CODE))
    arrivals, _ = jax.jit(model.sample)(jax.random.key(0), (), loads)
    assert float(arrivals.elapsed) == 4.0
    assert arrivals.finished(CODE.parts_per_worker).tolist() == [2, 2, 2]


class Falls(SlowStart):
    def part_times(self, key, state, loads, shares):
        times, state = self.sample(key, state, loads)
        return times[:, None] * jnp.asarray(shares)[:, ::-1], state


class EndsElsewhere(SlowStart):
    def part_times(self, key, state, loads, shares):
        times, state = self.sample(key, state, loads)
        return 2 * times[:, None] * jnp.asarray(shares), state


class HasOnePart(SlowStart):
    def part_times(self, key, state, loads, shares):
        times, state = self.sample(key, state, loads)
        return times[:, None], state


class TakesLessForMore(SlowStart):
    def sample(self, key, state, loads):
        return 5.0 - loads, state


@pytest.mark.parametrize(
    ("delay", "words"),
    [
        (Falls(), "part_times of Falls must never decrease"),
        (TakesLessForMore(), "part_times of TakesLessForMore must never decrease"),
        (HasOnePart(), r"part_times of HasOnePart must have shape .*; got \(3, 1\)"),
        (EndsElsewhere(), "part_times of EndsElsewhere must end with the time that"),
    ],
)
@pytest.mark.parametrize("study", ["plan", "compare"])
def test_wrong_times_of_parts_are_named(delay, words, study):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=words):
        if study == "plan":
            candidates = jaxwgc.planning.Candidates(
                codes={"ours": CODE}, waiting=[stragglers.until_decodable]
            )
            jaxwgc.plan(delay, 3, key, candidates=candidates)
        else:
            jaxwgc.compare([CODE], [delay], [stragglers.until_decodable(CODE)], key, 99)


def test_lost_workers_have_finished_no_more_parts_in_a_round_that_never_ends():
    """It lasts until infinity, which is also the time of the lost parts."""
    code = codes.replicated(3, num_parts=12, copies=1)
    part_times = jnp.array(
        [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, jnp.inf, jnp.inf], 4 * [jnp.inf]]
    )
    wait = stragglers.until_decodable(code)
    arrivals = wait.arrivals(jax.random.key(0), part_times[:, -1], part_times)
    assert np.isinf(arrivals.elapsed)
    assert arrivals.finished(code.parts_per_worker).tolist() == [4, 2, 0]
    np.testing.assert_allclose(jaxwgc.decoding(code, arrivals).share, 0.5, rtol=1e-6)
