"""Delay models made of others, and the laws of one time and of the f-th fastest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxwgc import stragglers
from tests.catalogue.delay_laws import FAST, ROWS, WITH_LAW
from tests.catalogue.row import by_name, every_row
from tests.stragglers.laws import SIGNIFICANCE, consecutive_times
from tests.zoo import KEY

LOADS = np.array([1.0, 2.0, 0.5])
NUM_WORKERS = 600
NUM_ROUNDS = 40
BY_NAME = by_name(ROWS)
CHAIN = BY_NAME["markov"].example


def rounds(delay, num_workers, num_rounds=NUM_ROUNDS, loads=1.0, seed=0):
    """Times (rounds, workers) of consecutive rounds."""
    loads = np.broadcast_to(loads, num_workers)
    return consecutive_times(delay, loads, num_rounds, seed)


PARAMETERS = {
    row.name: {name: np.full(10, value) for name, value in row.arguments.items()}
    for row in ROWS
    if set(row.arguments) == set(row.rules)
}


@jax.jit
@jax.vmap
def every_time(key, parameters):
    """Times of 400 workers for all models, by one program."""
    loads = jnp.full(400, 3.0, float)
    mapped = {name: BY_NAME[name].make(**fields) for name, fields in parameters.items()}
    return {
        name: delay.sample(key, delay.init(400), loads)[0]
        for name, delay in {**WITH_LAW, **mapped}.items()
    }


@pytest.mark.parametrize("name", WITH_LAW)
def test_law_is_that_of_the_times(name, x64):
    times = every_time(jax.random.split(jax.random.key(1), 10), PARAMETERS)[name]
    assert times.dtype == (np.float64 if x64 else np.float32)
    times = np.sort(np.asarray(times, np.float64).ravel())
    law = WITH_LAW[name].law(3.0)
    # Jumps are rounded in float32.
    later = 1 - law.sf(times * (1 + 1e-6))
    before = 1 - law.sf(times * (1 - 1e-6))
    count = np.arange(len(times))
    distance = max(((count + 1) / 4000 - later).max() - (later - before).max(), 0)
    assert scipy.stats.kstwobign.sf(distance * np.sqrt(4000)) > SIGNIFICANCE


@pytest.mark.parametrize("delay", WITH_LAW.values(), ids=WITH_LAW)
def test_law_and_its_inverse(delay):
    """The least time that is exceeded with at most that probability."""
    law = delay.law(2.0)
    levels = np.array([0.9, 0.5, 0.31, 0.29, 0.1, 0.01])
    times = law.isf(levels)
    assert np.all(law.sf(times) <= levels + 1e-9)
    finite = np.isfinite(times)
    before = law.sf(times[finite] * (1 - 1e-6))
    assert np.all(before >= levels[finite] - 1e-4)


@every_row([row for row in ROWS if row.law is not None])
def test_fastest_workers_against_order_statistics(row):
    """SciPy's quantiles at uniform order statistics, which have beta distributions."""
    law = row.example.law(2.0)
    for num_required in (1, 6, 12):
        order = scipy.stats.beta(num_required, 13 - num_required)
        expected = 2 * order.expect(row.law.ppf, epsabs=1e-9)
        mean = law.fastest_mean(num_required, 12)
        assert mean == pytest.approx(expected, rel=1e-3)
        for level in (0.1, 0.9):
            quantile = law.fastest_quantile(num_required, 12, level)
            expected = 2 * row.law.ppf(order.ppf(level))
            assert quantile == pytest.approx(expected, rel=1e-3)


def test_markov_states_have_the_shares_and_spells_of_the_chain():
    """Shares and spells of a two-state Markov chain, from the first round on."""
    is_slow = rounds(CHAIN, NUM_WORKERS) > 1.7
    count = is_slow.size
    # A chain that forgets with 0.75 a round has that many independent rounds.
    error = 4 * np.sqrt(0.2 * 0.8 / (count * 0.25 / 1.75))
    assert abs(is_slow.mean() - 0.2) < error
    assert abs(is_slow[0].mean() - 0.2) < 4 * np.sqrt(0.16 / NUM_WORKERS)
    before = is_slow[:-1]
    after = is_slow[1:]
    for state, chance in ((False, 0.05), (True, 0.2)):
        moved = (before == state) & (after != state)
        number = (before == state).sum()
        test = scipy.stats.binomtest(int(moved.sum()), int(number), chance)
        assert test.pvalue > SIGNIFICANCE


class TestUnequalSpeeds:
    speeds = np.array([1.0, 0.5, 2.0])
    delay = stragglers.unequal_speeds(stragglers.bernoulli_slowdown(0.0, 1.0), speeds)

    def test_each_worker_keeps_its_speed(self):
        """Speeds are in their order, or drawn with repetition for more workers."""
        times = rounds(self.delay, 3, 2, LOADS)
        np.testing.assert_allclose(times, np.tile(LOADS / self.speeds, (2, 1)))
        times = rounds(self.delay, 50, 3)
        assert set(times[0]) == {0.5, 1.0, 2.0}
        np.testing.assert_array_equal(times, np.tile(times[0], (3, 1)))
        for seed in range(5):
            assert len(set(rounds(self.delay, 2, 1, seed=seed)[0])) == 2

    def test_has_no_law(self):
        assert self.delay.law(1.0) is None
        assert CHAIN.law(1.0) is None
        assert stragglers.affine(self.delay).law(1.0) is None


def test_combined_models_keep_the_states_of_their_parts():
    """Speeds, loads and spells go together, each with its own state."""
    inner = stragglers.unequal_speeds(CHAIN, [1.0, 100.0])
    times = rounds(stragglers.affine(inner, time=1000.0), 2)
    assert np.all(times[:, 1] - 1000 < 0.2) and np.all(times[:, 0] - 1000 > 0.5)
    assert (times[:, 0] > 1002).any() and (times[:, 0] < 1002).any()


def test_a_worker_without_parts_takes_the_overhead():
    """A worker without parts takes the overhead."""
    delay = stragglers.affine(stragglers.bernoulli_slowdown(0.0, 1.0, 2.0), 1.0)
    np.testing.assert_allclose(consecutive_times(delay, [0, 3], 1), [[2.0, 8.0]])


def test_parameters_may_be_mapped_over():
    """A study over rates, or over probabilities, in one compiled function."""

    def means(rate, probability):
        exponential = stragglers.shifted_exponential(1.0, rate)
        slowed = stragglers.bernoulli_slowdown(probability, 3.0)
        key = jax.random.key(0)
        loads = jnp.ones(4000)
        delays = exponential, slowed
        return [delay.sample(key, (), loads)[0].mean() for delay in delays]

    rates = np.array([0.5, 2.0, 8.0])
    probabilities = np.array([0.1, 0.5, 0.9])
    first, second = jax.jit(jax.vmap(means))(rates, probabilities)
    error = 4 / np.sqrt(4000)
    assert np.all(np.abs(first - (1 + 1 / rates)) < error / rates)
    spread = 2 * np.sqrt(probabilities * (1 - probabilities))
    assert np.all(np.abs(second - (1 + 2 * probabilities)) < error * spread)


@pytest.mark.parametrize("shape", [0.4, 1.0, 1.01, 3.0])
def test_order_statistics_of_pareto_times_have_a_closed_form(shape):
    law = stragglers.pareto(2.0, shape).law(1.0)
    for num_required in (1, 6, 11, 12):
        later = 12 - num_required + 1
        ends = np.array([13, later - 1 / shape, later, 13 - 1 / shape])
        logarithm = [1, 1, -1, -1] @ scipy.special.gammaln(ends)
        expected = 2 * np.exp(logarithm) if later * shape > 1 else np.inf
        mean = law.fastest_mean(num_required, 12)
        assert mean == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_workers", [10, 1000])
def test_order_statistics_of_a_discrete_law(num_workers):
    law = stragglers.bernoulli_slowdown(0.1, slowdown=5.0).law(2.0)
    np.testing.assert_array_equal(law.isf([0.09, 0.1]), [10, 2])
    for num_required in (int(0.85 * num_workers), int(0.9 * num_workers)):
        slow = scipy.stats.binom.sf(num_workers - num_required, num_workers, 0.1)
        mean = law.fastest_mean(num_required, num_workers)
        assert mean == pytest.approx(2 + 8 * slow, rel=1e-5)


def test_workers_that_never_answer():
    law = stragglers.bernoulli_slowdown(0.01, slowdown=np.inf).law(1.0)
    assert law.fastest_mean(30, 32) == np.inf
    # More than 22 of 32 dead: 1e-38.
    assert law.fastest_mean(10, 32) == pytest.approx(1, rel=1e-9)
    # To a deadline of three all times are finite.
    some_dead = 1 - 0.99**32
    result = stragglers.deadline(3.0).expected_time(law, 32)
    assert result == pytest.approx(1 + 2 * some_dead, rel=1e-4)
    assert law.fastest_quantile(32, 32, 0.5) == 1
    assert law.fastest_quantile(32, 32, 0.9) == np.inf


def test_quantiles_and_deadlines_against_simulation():
    deviation = 0.7
    at_most = 1.8
    law = stragglers.log_normal(1.0, deviation).law(1.0)
    draws = np.random.default_rng(0).normal(size=(40_000, 12))
    times = np.sort(np.exp(deviation * draws), axis=1)
    for num_required in (3, 9, 12):
        ends = times[:, num_required - 1]
        error = 4 * ends.std() / np.sqrt(len(ends))
        wait = stragglers.fastest(num_required)
        mean = wait.expected_time(law, 12)
        assert mean == pytest.approx(ends.mean(), abs=error)
        level = np.mean(ends <= wait.time_quantile(law, 12, 0.9))
        assert level == pytest.approx(0.9, abs=4 * 0.3 / np.sqrt(len(ends)))
        cut = np.minimum(ends, at_most)
        error = 4 * cut.std() / np.sqrt(len(ends)) + 1e-9
        result = law.fastest_mean(num_required, 12, at_most)
        assert result == pytest.approx(cut.mean(), abs=error)


@pytest.mark.parametrize(
    ("probability", "slowdown", "message"),
    [
        (1.1, 2, "probability must be at most 1"),
        (0.5, 0.9, "slowdown must be at least 1"),
    ],
)
def test_bernoulli_slowdown_rejects_wrong_numbers(probability, slowdown, message):
    with pytest.raises(ValueError, match=message):
        stragglers.bernoulli_slowdown(probability, slowdown)


@pytest.mark.parametrize(
    ("become_slow", "message"),
    [(1.1, "become_slow must be at most"), (0, "become_slow.*got 0")],
)
def test_markov_rejects_wrong_probabilities(become_slow, message):
    with pytest.raises(ValueError, match=message):
        stragglers.markov(FAST, FAST, become_slow, 0)


@pytest.mark.parametrize(
    ("speeds", "message"),
    [
        ([1, 0.0], r"speeds.*speeds\[1\] = 0"),
        ([], "speeds must have (shape|a leading axis)"),
        (1.0, "speeds must have (shape|a leading axis)"),
    ],
)
def test_unequal_speeds_rejects_wrong_speeds(speeds, message):
    with pytest.raises(ValueError, match=message):
        stragglers.unequal_speeds(FAST, speeds)


@pytest.mark.parametrize(
    "model",
    [
        stragglers.empirical(np.ones((3, 5))),
        stragglers.unequal_speeds(FAST, np.ones(5)),
        stragglers.markov(FAST, FAST, 0.1, 0.2),
    ],
    ids=["empirical", "unequal_speeds", "markov"],
)
def test_loads_of_another_number_of_workers_are_rejected(model):
    message = r"loads must have shape .* \(5,\); got \(3,\)"
    with pytest.raises(ValueError, match=message):
        model.sample(KEY, model.init(5), np.ones(3))
