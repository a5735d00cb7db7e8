"""Waiting rules: arguments that are rejected beyond those of the catalogue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import codes, stragglers


def test_coverage_rejects_more_than_all_parts():
    with pytest.raises(ValueError, match="share must be"):
        stragglers.coverage(codes.uncoded(3, 9), 1.1)


def test_relative_deadline_rejects_a_factor_below_one():
    with pytest.raises(ValueError, match="factor must be at least 1"):
        stragglers.relative_deadline(0.5, 1)


def test_fastest_rejects_times_of_too_few_workers():
    with pytest.raises(ValueError, match="num_required must be at most"):
        stragglers.fastest(4).ends(np.ones(3))


@pytest.mark.parametrize(
    "code",
    [codes.fractional_repetition(4, 1), codes.replicated(2, num_parts=4, copies=2)],
)
def test_rules_of_a_code_reject_times_of_other_workers(code):
    """A single time would be taken for that of all workers."""
    n = code.num_workers
    wait = stragglers.until_decodable(code)
    match = rf"each of the {n} workers of the waiting rule's code, .*shape \({{}},"
    for number in (1, n + 1, 2 * n):
        times = jnp.ones(number)
        with pytest.raises(ValueError, match=match.format(number)):
            wait.arrivals(jax.random.key(0), times)
        if number < 2 * n:
            with pytest.raises(ValueError, match=match.format(number)):
                wait.is_over(times, 2.0)
    with pytest.raises(
        ValueError, match=r"got shape \(\)\. Pass the code of these workers"
    ):
        wait.is_over(jnp.ones(()), 2.0)
