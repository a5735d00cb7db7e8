"""Times that were measured, drawn again."""

import functools

import jax
import numpy as np
import pytest

from jaxwgc import stragglers
from tests.stragglers.laws import consecutive_times

KEYS = jax.random.split(jax.random.key(0), 400)


@jax.jit
def first_rounds(delay, keys, loads):
    """Times (keys, loads, workers) of first rounds, at each row of loads."""

    def at(key, loads):
        return delay.sample(key, delay.init(len(loads)), loads)[0]

    return jax.vmap(lambda key: jax.vmap(lambda load: at(key, load))(loads))(keys)


# No two are equal, so that a time tells where it is from.
TIMES = 1 + np.arange(35.0).reshape(7, 5)
TIMES[2, 3] = np.nan
NUM_ROUNDS = 60


@functools.cache
def history(resample, num_workers, replace=False):
    """Rounds and workers (rounds, num_workers) that simulated times are from."""
    delay = stragglers.empirical(TIMES, resample, replace=replace)
    times = consecutive_times(delay, np.full(num_workers, 2.0), NUM_ROUNDS)
    places = np.where(np.isinf(times), 2 * 5 + 3, times / 2 - 1)
    np.testing.assert_array_equal(places, places.round())
    return np.divmod(places.astype(int), 5)


def test_the_repr_is_short():
    expected = "empirical(7 rounds of 5 workers)"
    assert repr(stragglers.empirical(TIMES, loads=2.0)) == expected


def test_whole_rounds():
    rounds, workers = history("rounds", 5)
    assert np.all(rounds == rounds[:, :1])
    np.testing.assert_array_equal(workers, np.tile(np.arange(5), (NUM_ROUNDS, 1)))
    assert set(rounds[:, 0]) == set(range(7))


def test_histories_of_workers():
    """Each goes on from round to round, the first after the last."""
    rounds, workers = history("workers", 5)
    np.testing.assert_array_equal(rounds[1:], (rounds[:-1] + 1) % 7)
    np.testing.assert_array_equal(workers, np.tile(np.arange(5), (NUM_ROUNDS, 1)))
    assert len(set(rounds[0])) > 1


def test_cells_are_drawn_equally_often():
    """All of them, about as often."""
    rounds, workers = history("cells", 40)
    counts = np.bincount((5 * rounds + workers).ravel(), minlength=35)
    expected = NUM_ROUNDS * 40 / 35
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize(("resample", "num_workers"), [("rounds", 3), ("workers", 8)])
def test_fewer_and_more_workers_than_measured(resample, num_workers):
    """They stay who they are, no two the same unless there are too many."""
    _, workers = history(resample, num_workers, num_workers > 5)
    assert np.all(workers == workers[0])
    assert len(set(workers[0])) == 3 or num_workers == 8


def test_parts_are_gone_through_in_their_order(x64):
    parts = np.array([[[1.0, 2.0, 4.0], [3.0, np.inf, 1.0]]])
    delay = stragglers.empirical(parts, loads=[3.0, 2.0])
    # One after the other, then from the first again; half a part takes half as long.
    loads = np.array([0, 0.5, 1, 2, 3, 4, 6, 7.5])
    half = np.minimum(loads, 1)
    loads = np.stack([[*loads, 0], [*half, 2]], axis=1)
    [result] = np.asarray(first_rounds(delay, KEYS[:1], loads))
    assert result.dtype == (np.float64 if x64 else np.float32)
    expected = [0, 0.5, 1, 3, 7, 8, 14, 16]
    expected = np.stack([[*expected, 0], [*(3 * half), np.inf]], axis=1)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    # Without a code all three of them are a load of 1.
    result = first_rounds(stragglers.empirical(parts), KEYS[:1], np.ones_like(loads))
    np.testing.assert_allclose(result, np.tile([7, np.inf], (1, 9, 1)), rtol=1e-6)


def test_loads_of_the_measurement():
    delay = stragglers.empirical([[2.0, 3.0]], loads=[2.0, 1.0])
    np.testing.assert_allclose(consecutive_times(delay, [4, 4], 1), [[4, 12]])


class TestMeasuredAtLoads:
    loads = np.array([0.0, 0.5, 1.0])
    # Seconds tell the round and the worker, and are below one.
    unit = 2**-7
    seconds = (1 + loads)[:, None, None] * unit * (1 + np.arange(24.0).reshape(8, 3))

    def rounds(self, loads, seconds=seconds, measured_at=loads):
        delay = stragglers.empirical(seconds, measured_at=measured_at)
        return np.asarray(first_rounds(delay, KEYS, np.array([loads])))[:, 0]

    def test_lines_through_loads(self):
        """Lines of the nearest two loads continue, by the medians of a worker."""
        base = self.rounds([0.0] * 3)
        assert np.all(np.diff(base) == self.unit)
        slope = np.median(self.seconds[0], axis=0)
        for load in (0.0, 0.25, 0.75, 1.0):
            times = self.rounds([load] * 3)
            np.testing.assert_allclose(times, (1 + load) * base, rtol=1e-6)
        for load in (1.5, 3.0):
            times = self.rounds([load] * 3)
            np.testing.assert_allclose(times, 2 * base + (load - 1) * slope, rtol=1e-6)
        for load in (0.0, 0.1, 0.4):
            times = self.rounds([load] * 3, self.seconds[1:], self.loads[1:])
            at_no_load = np.maximum(1.5 * base - 0.5 * slope, 0)
            expected = at_no_load + load / 0.5 * (1.5 * base - at_no_load)
            np.testing.assert_allclose(times, expected, rtol=1e-5)

    def test_times_at_one_load_are_proportional(self):
        base = self.rounds([1.0] * 3, self.seconds[:1], [1.0])
        for load in (0.0, 0.4):
            times = self.rounds([load] * 3, self.seconds[:1], [1.0])
            np.testing.assert_allclose(times, load * base, rtol=1e-6)

    def test_lost_answers(self):
        """NaN is a worker that never responds."""
        seconds = self.seconds.copy()
        seconds[1, :, 2] = np.nan
        lost = np.isinf(self.rounds([0.0, 0.3, 0.3], seconds))
        np.testing.assert_array_equal(lost, np.tile([False, False, True], (400, 1)))
        seconds[2, :, 1] = np.nan
        lost = np.isinf(self.rounds([2.0, 0.7, 0.0], seconds))
        np.testing.assert_array_equal(lost, np.tile([False, True, False], (400, 1)))
        times = self.rounds([0.0, 1.0, 2.0], np.full((1, 8, 3), np.nan), [1.0])
        np.testing.assert_array_equal(times, np.tile([0, np.inf, np.inf], (400, 1)))

    def test_stalls_are_multiples_of_the_longest_time_at_each_load(self):
        delay = stragglers.empirical(self.seconds, measured_at=self.loads)
        stalls = delay.stalls(3.0)
        assert stalls[1:] == (3 / 24, 3 * 24 * self.unit * 2, 8)
        loads = np.array([0.0, 0.5, 0.75])
        calm = self.rounds(loads)
        stalled = np.asarray(first_rounds(stalls.delay, KEYS, loads[None]))[:, 0]
        is_stalled = calm != stalled
        assert abs(is_stalled.mean() - 3 / 24) < 4 * np.sqrt(3 / 24 / 1200)
        longest = 24 * self.unit * (1 + loads)
        expected = np.broadcast_to(3 * longest, calm.shape)[is_stalled]
        np.testing.assert_allclose(stalled[is_stalled], expected)


def test_times_that_fall_with_the_load_are_told():
    """Parts then end no later than the whole load."""
    times = np.array([[[1.0, 2.0]], [[4.0, 8.0]], [[3.0, 6.0]]])
    medians = r"medians at the loads \[1.0, 2.0, 4.0\] are \[1.5, 6.0, 4.5\]"
    with pytest.warns(UserWarning, match=medians):
        delay = stragglers.empirical(times, measured_at=[1.0, 2.0, 4.0])
    shares = np.array([[0.25, 0.5, 1.0]] * 2)
    state = delay.init(2)
    ends, _ = delay.part_times(jax.random.key(0), state, 4 * np.ones(2), shares)
    np.testing.assert_allclose(ends, [[1.0, 3.0, 3.0], [2.0, 6.0, 6.0]])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([[1.0, 0.0]], "times must be positive"),
        (np.ones((0, 3)), "times must have shape .* 1 rounds"),
        (np.ones(3), "times must have (shape|a leading axis)"),
    ],
)
def test_wrong_times_are_rejected(times, message):
    with pytest.raises(ValueError, match=message):
        stragglers.empirical(times)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loads": 0.0}, "loads must be positive"),
        ({"measured_at": 1.0}, "measured_at must have"),
    ],
)
def test_wrong_loads_of_measured_times_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        stragglers.empirical(np.ones((2, 3)), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measured_at": [1.0, 2.0]}, "measured_at must be increasing"),
        ({"measured_at": [0, -1, 0]}, "measured_at must be increasing"),
        ({"measured_at": [2.0, 1.0, 3.0]}, "measured_at must be increasing"),
        ({"measured_at": [1.0, 1.0, 2.0]}, "measured_at must be increasing"),
        ({"measured_at": [1.0, np.nan, 2.0]}, "measured_at must be finite"),
        (
            {"measured_at": [1.0, 2.0, 3.0], "loads": 2.0},
            "loads must not be given together with measured_at",
        ),
    ],
)
def test_wrong_loads_at_which_times_were_measured_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        stragglers.empirical(np.ones((3, 1, 3)), **options)


def test_times_at_no_load_alone_are_rejected():
    with pytest.raises(ValueError, match=r"the last above 0, .* got \[0\.\]"):
        stragglers.empirical(np.ones((1, 5, 3)), measured_at=[0.0])


def test_a_trace_of_too_few_workers_is_rejected():
    with pytest.raises(ValueError, match="the trace must have at least 4"):
        stragglers.empirical(np.ones((2, 3))).init(4)


def test_traced_times_are_rejected():
    with pytest.raises(TypeError, match="times must be"):
        jax.eval_shape(
            lambda times: stragglers.empirical(times).init(3), np.ones((2, 3))
        )
