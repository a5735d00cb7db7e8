"""Timeouts that adapt to the responses of workers."""

import pathlib

import numpy as np
import pytest

from jaxwgc.distributed.ray._response_limit import ResponseLimit


def test_limit_follows_the_slowest_recent_response():
    limit = ResponseLimit(None, 2)
    assert limit.seconds == limit.of(0) == 60.0
    limit.note(0, 0.01)
    # A worker that has not responded yet has 60 seconds.
    assert (limit.of(0), limit.of(1)) == (2.0, 60.0)
    limit.note(1, 0.5)
    assert limit.of(0) == limit.of(1) == 5.0
    # The responses of the fast worker do not make the slow one forgotten.
    for _ in range(100):
        limit.note(0, 0.01)
    assert limit.seconds == 5.0
    for _ in range(20):
        limit.note(1, 0.6)
    assert limit.seconds == 6.0
    limit.note(0, 9.0)
    assert limit.seconds == 60.0


def test_silence_doubles_the_limit_of_a_worker_for_a_while():
    limit = ResponseLimit(None, 2)
    for worker in range(2):
        limit.note(worker, 0.01)
    for seconds in (4.0, 8.0, 16.0):
        limit.note_silence(0)
        assert limit.of(0) == pytest.approx(seconds)
        assert limit.of(1) == limit.seconds == 2.0
    for _ in range(20):
        limit.note(0, 0.01)
    assert limit.of(0) == 2.0


def test_a_fixed_limit_stays_fixed_and_a_resumed_run_keeps_its_limit():
    limit = ResponseLimit(5.0, 1)
    limit.note(0, 3.0)
    limit.note_silence(0)
    assert limit.seconds == limit.of(0) == 5.0
    earlier = ResponseLimit(None, 2)
    later = ResponseLimit(None, 3)
    earlier.note(0, 0.4)
    later.resume(earlier.slowest)
    np.testing.assert_allclose([later.of(worker) for worker in range(3)], 4.0)


@pytest.mark.parametrize("median", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("file", ["pai_delays", "llm_training_delays"])
def test_no_worker_of_a_trace_is_suspected(file, median):
    """The page of clusters says so, for medians from 10 milliseconds to 4 seconds."""
    path = pathlib.Path(__file__).parents[2] / f"experiments/data/{file}.npz"
    for times in np.load(path).values():
        delays = times.sum(-1) if times.ndim == 3 else times
        limit = ResponseLimit(None, delays.shape[1])
        for row in median / np.median(delays) * delays:
            for worker in np.argsort(row):
                assert row[worker] <= limit.of(worker) / 2
                limit.note(worker, row[worker])


def test_median_is_that_of_one_worker():
    """Of its 20 newest responses; a silence is no response."""
    limit = ResponseLimit(None, 2)
    assert limit.median(0) == np.inf
    limit.note(0, 4.0)
    for seconds in np.arange(20.0):
        limit.note(0, seconds)
        limit.note(1, 100.0)
    limit.note_silence(0)
    assert limit.median(0) == 9.5
    assert limit.median(1) == 100.0
