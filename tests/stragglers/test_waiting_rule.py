"""Rules of one's own: all that follows from when a round is over."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxwgc import stragglers


@dataclasses.dataclass(frozen=True)
class OverAsBefore(stragglers.WaitingRule):
    """Over when another rule is, of which it knows nothing else."""

    rule: stragglers.WaitingRule

    def is_over(self, times, now):
        return self.rule.is_over(times, now)


@dataclasses.dataclass(frozen=True)
class SecondMore(stragglers.WaitingRule):
    """A second more than the fastest worker takes."""

    def is_over(self, times, now):
        return now >= times.min() + 1


RULES = {
    "fastest": stragglers.fastest(3),
    "deadline": stragglers.deadline(0.7),
    "relative_deadline": stragglers.relative_deadline(1.5, quorum=2),
}


@pytest.mark.parametrize(
    ("wait", "short", "long"),
    [
        (stragglers.fastest(7), "first 7", "for the first 7 of 8 workers"),
        (stragglers.fastest(8), "all", "for all 8 workers"),
        (stragglers.deadline(1.346), "1.35 s", "for 1.346 s"),
        (stragglers.deadline(0.01346), "0.0135 s", "for 0.01346 s"),
    ],
)
def test_words(wait, short, long):
    assert wait.describe(8) == (short, long)


def some_times(x64):
    dtype = np.float64 if x64 else np.float32
    times = np.random.default_rng(0).exponential(size=(40, 5)).astype(dtype)
    times[::4, 1:] = np.inf
    times[1] = np.inf
    return times


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rounds_by_is_over_alone(rule, x64):
    """Their end to the last bit, by bisection and by a formula."""
    times = some_times(x64)
    keys = jax.random.split(jax.random.key(0), len(times))
    arrivals = jax.jit(jax.vmap(rule.arrivals))(keys, times)
    derived = jax.jit(jax.vmap(OverAsBefore(rule).arrivals))(keys, times)
    for one, other in zip(arrivals[:3], derived[:3], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("rule", [*RULES.values(), SecondMore()], ids=repr)
def test_real_rounds_end_as_simulated_ones(rule):
    """What is known so far tells when a round ends, if nobody answers before."""
    for times in some_times(False)[:8]:
        elapsed = rule.ends(times)
        for now in [np.float32(0), *np.sort(times[np.isfinite(times)])]:
            so_far = np.where(times <= now, times, np.inf)
            following = np.min(times, where=times > now, initial=np.inf)
            assert rule.is_over(so_far, now) == (elapsed <= now)
            ends = rule.ends(so_far)
            assert ends == elapsed if elapsed < following else ends >= following


def test_fast_rules_stay_in_numpy():
    """A real round asks after each answer, for which JAX takes a millisecond."""
    times = np.array([0.5, np.inf, 1.0, 2.0])
    for rule in RULES.values():
        assert isinstance(rule.ends(times), np.floating)
        assert isinstance(rule.is_over(times, 1.0), np.bool_)
