"""Codes that `jaxwgc.plan` compares by default."""

import numpy as np
import pytest

from jaxwgc.planning import Candidates
from jaxwgc.planning._candidates import codes_by_speed, speeds_of, standard_codes


@pytest.mark.parametrize(
    ("num_workers", "num_parts"),
    [(8, 64), (64, 512), (100, 400), (200, 400), (300, 300)],
)
def test_workers_have_up_to_eight_parts_while_all_are_at_most_512(
    num_workers, num_parts
):
    replicated = next(standard_codes(num_workers, numbers_of_copies=[2]))
    assert replicated.name == "replicated"
    assert replicated.code.num_parts == num_parts


@pytest.mark.parametrize("with_copies", [False, True])
def test_workers_of_unequal_speed_have_copies_only_if_they_are_compared(with_copies):
    speeds = np.array([1.0, 1.0, 0.5, 0.5])
    names = [code.name for code in codes_by_speed(speeds, with_copies)]
    assert "uncoded by speed" in names
    assert ("replicated by speed" in names) == with_copies


def test_parts_have_one_copy_or_more_by_default():
    assert list(Candidates().checked_copies(3)) == [1, 2, 3]


def test_workers_that_rarely_respond_have_no_speed():
    times = np.random.default_rng(0).uniform(1, 1.1, size=(20, 50, 4)) * [1, 1, 2, 2]
    np.testing.assert_allclose(speeds_of(times, 1000), [0.95, 0.95, 0.48, 0.48], 0.02)
    times[:, :30, 3] = np.inf
    assert speeds_of(times, 1000) is None
