"""Waiting until the answers decode, against NumPy's least squares on every prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from tests.stragglers.laws import keys_of, rounds_of
from tests.zoo import least_miss, target_rows

# With the tolerance.
CODES = {
    "repetition": (codes.fractional_repetition(6, 2), 1e-3),
    "binary": (codes.binary(5, 2), 1e-3),
    "complex": (codes.cyclic_mds(5, 2), 1e-3),
    "approximate": (codes.regular_graph(jax.random.key(0), 6, 2), 0.5),
}
NUM_ROUNDS = 60
MASKS = np.tri(5, dtype=bool)


def enough(code, tolerance):
    """Whether each mask of messages, as a tuple, misses the target by little enough."""
    target = target_rows(code, np.ones(code.num_parts))
    limit = tolerance * np.linalg.norm(target)
    matrix = np.asarray(code.encoding_matrix)
    known = {}

    def check(mask):
        key = tuple(mask)
        if key not in known:
            known[key] = least_miss(matrix, target, mask) <= limit
        return known[key]

    return check


def first_time(times, check):
    """The first at which the messages so far are enough; infinity if they never are."""
    for time in np.unique(times[np.isfinite(times)]):
        if check(times <= time):
            return time
    return np.inf


def times_of_rounds(num_workers):
    """Some with ties, and with workers that never answer."""
    generator = np.random.default_rng(0)
    times = generator.exponential(size=(NUM_ROUNDS, num_workers)) + 0.1
    times[::3] = generator.integers(0, 4, times[::3].shape)
    times[generator.random(times.shape) < 0.15] = np.inf
    times[1] = np.inf
    return times.astype(np.float32)


@pytest.mark.parametrize("name", ["repetition", "complex", "approximate"])
def test_goes_on_at_the_first_prefix_that_decodes(name):
    """Simulated with all rounds side by side, and answer by answer."""
    code, tolerance = CODES[name]
    wait = stragglers.until_decodable(code, tolerance=tolerance)
    times = times_of_rounds(code.num_workers)
    keys = keys_of(jax.random.key, NUM_ROUNDS)
    arrivals = jax.tree.map(np.asarray, jax.jit(jax.vmap(wait.arrivals))(keys, times))
    check = enough(code, tolerance)
    numbers = []
    for own, received, elapsed in zip(times, arrivals.received, arrivals.elapsed):
        first = first_time(own, check)
        # Without enough answers all are waited for.
        expected = own.max() if np.isinf(first) else first
        assert elapsed == expected
        np.testing.assert_array_equal(received, (own <= elapsed) & np.isfinite(own))
        if np.isfinite(first):
            numbers.append(received.sum())
    if name != "complex":
        assert min(numbers) < code.num_workers - code.num_stragglers <= max(numbers)
    for own, elapsed in zip(times[:12], arrivals.elapsed):
        for now in np.unique(own[np.isfinite(own)]):
            so_far = np.where(own <= now, own, np.inf)
            # Of a real round: when it ends by what is known so far.
            assert (wait.ends(so_far) <= now) == (elapsed <= now)
        assert wait.ends(np.full_like(own, np.inf)) == np.inf


def test_messages_of_a_single_part_come_when_it_is_finished():
    """Of a worker that holds one part beside one that holds two."""
    matrix = np.array([[1.0, 0, 0], [0, 1, 1]])
    code = codes.multi_message(codes.GradientCode.from_matrix(matrix, num_stragglers=0))
    wait = stragglers.until_decodable(code)
    arrivals = wait.arrivals(jax.random.key(0), np.array([2.0, 1.9], np.float32))
    assert arrivals.elapsed == 2.0


def test_each_of_several_messages_counts_when_it_comes():
    inner = codes.regular_graph(jax.random.key(0), 4, 2)
    code, tolerance = codes.multi_message(inner), 0.6
    delay = stragglers.shifted_exponential(shift=0.1, rate=1.0)
    wait = stragglers.until_decodable(code, tolerance=tolerance)
    rounds = rounds_of(stragglers.delayed(delay, wait), code.loads, NUM_ROUNDS)
    check = enough(code, tolerance)
    parts = code.parts_per_worker
    share = code.required_parts / parts[:, None]
    finished_parts = np.asarray(rounds.finished(parts))
    unfinished = 0
    for number, times in enumerate(rounds.times):
        first = first_time((times[:, None] * share).ravel(), check)
        np.testing.assert_allclose(rounds.elapsed[number], first, rtol=1e-6)
        finished = finished_parts[number]
        sent = (finished[:, None] >= code.required_parts).ravel()
        assert check(sent)
        unfinished += np.any((finished > 0) & (finished < parts))
        np.testing.assert_array_equal(rounds.received[number], finished == parts)
    assert unfinished > 0


def test_with_another_decoder():
    """One-step decoding."""
    code = codes.bernoulli(jax.random.key(1), 5, 5, replication=3)
    errors = jax.jit(lambda: jaxwgc.decoding_error(code, MASKS, decoders.OneStep))()
    misses = np.sqrt(errors / 5)
    tolerance = float(np.sort(misses)[1] + misses.min()) / 2
    wait = stragglers.until_decodable(code, tolerance, decoders.OneStep)
    found = jax.jit(wait.arrivals)(jax.random.key(0), np.arange(1.0, 6))
    assert found.elapsed == 1 + np.argmax(misses <= tolerance)


def test_a_traced_code():
    """As in a study over the entries of a code."""
    code = CODES["binary"][0]
    times = jnp.array([3.0, 1.0, 2.0, 5.0, 4.0])

    def rounds(matrix):
        own = jaxwgc.GradientCode(
            encoding_matrix=matrix,
            assignment=code.assignment,
            target=code.target,
            num_stragglers=2,
        )
        wait = stragglers.until_decodable(own)
        return wait.arrivals(jax.random.key(0), times)

    with jax.check_tracer_leaks():
        found = jax.eval_shape(rounds, np.float32(code.encoding_matrix))
    assert found.received.shape == (5,)
