"""Planned times of a step against a simulation in NumPy, part by part.

The simulation shares no code with the library but the matrices of the codes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from jaxwgc.planning import Candidates

NUM_WORKERS = 6
NUM_ROUNDS = 4000
SPREAD = 0.25
# Seconds at loads of 0.5, 1 and 3: those of all rounds rise, but not those of each.
MEASURED_AT = (0.5, 1.0, 3.0)
BASE = np.array([1.0, 1.1, 1.9])


def measured_table():
    random = np.random.default_rng(1)
    factors = np.exp(SPREAD * random.standard_normal((3, 60, NUM_WORKERS)))
    return BASE[:, None, None] * factors


def table_of_parts():
    """Later parts of a worker take longer: (rounds, workers, parts)."""
    random = np.random.default_rng(2)
    factors = np.exp(SPREAD * random.standard_normal((60, NUM_WORKERS, 8)))
    return np.linspace(0.5, 1.5, 8) / 8 * factors


@dataclasses.dataclass(frozen=True)
class LateStart(stragglers.DelayModel):
    """A model of the user: a start of random length, then work without spread."""

    def sample(self, key, state, loads):
        return jax.random.exponential(key, loads.shape) + jnp.sqrt(loads), state


class Affine:
    model = stragglers.affine(
        stragglers.shifted_exponential(shift=0.5, rate=2.0), overhead=1.0, slope=0.5
    )

    @staticmethod
    def times(random, loads):
        """Returns times at (workers, parts) loads of one round."""
        drawn = 0.5 + random.exponential(0.5, NUM_WORKERS)
        return drawn[:, None] * (1.0 + 0.5 * loads)


class MeasuredAt:
    model = stragglers.empirical(measured_table(), measured_at=MEASURED_AT)
    table = measured_table()

    @classmethod
    def times(cls, random, loads):
        table = cls.table[:, random.integers(60)]
        medians = np.median(cls.table, axis=1)
        times = np.empty_like(loads)
        for worker, row in enumerate(loads):
            middle = medians[:, worker]
            first = max((middle[1] - middle[0]) / 0.5, 0)
            last = max((middle[2] - middle[1]) / 2.0, 0)
            at_zero = max(table[0, worker] - 0.5 * first, 0)
            known = [at_zero, *table[:, worker]]
            times[worker] = np.interp(row, [0.0, *MEASURED_AT], known)
            times[worker] += last * np.maximum(row - 3.0, 0)
        for part in reversed(range(loads.shape[1] - 1)):
            times[:, part] = np.minimum(times[:, part], times[:, part + 1])
        return times


class TimesOfParts:
    model = stragglers.empirical(table_of_parts())
    table = table_of_parts()

    @classmethod
    def times(cls, random, loads):
        seconds = cls.table[random.integers(60)]
        # Three passes over eight parts, load 1 each, suffice for all loads here.
        ends = np.tile(seconds, 6).cumsum(axis=1)
        known = np.arange(49) / 8
        rows = zip(loads, ends, strict=True)
        return np.array([np.interp(row, known, [0, *end]) for row, end in rows])


class OwnModel:
    model = LateStart()

    @staticmethod
    def times(random, loads):
        return random.exponential(1.0, NUM_WORKERS)[:, None] + np.sqrt(loads)


KINDS = [Affine, MeasuredAt, TimesOfParts, OwnModel]


def simulated_step(kind, choice, random):
    """Returns the mean time of a step, and the least time of any part."""
    code = choice.code
    parts = np.asarray(code.assignment).sum(axis=1)
    loads = parts * NUM_WORKERS / code.num_parts
    matrix = np.asarray(code.encoding_matrix)
    if code.messages_per_worker == 1:
        loads = loads[:, None]
    else:
        loads = loads[:, None] * np.arange(1, parts.max() + 1) / parts[:, None]
    total = 0.0
    least = np.inf
    for _ in range(NUM_ROUNDS):
        times = kind.times(random, loads)
        least = min(least, times.min())
        total += end_of_round(choice, matrix, times)
    return total / NUM_ROUNDS, least


def end_of_round(choice, matrix, times):
    tolerance = choice.wait.tolerance
    ends = np.sort(times[:, -1])
    if isinstance(choice.wait, stragglers.deadline):
        return min(ends[-1], choice.wait.seconds)
    if tolerance is None:
        return ends[choice.wait.num_required - 1]
    # Messages of these codes are sums of parts: a part is there with its first sum.
    arrival = np.where(matrix != 0, times.reshape(-1, 1), np.inf).min(axis=0)
    share_missing = np.arange(len(arrival) - 1, -1, -1) / len(arrival)
    return np.sort(arrival)[np.argmax(share_missing <= tolerance**2 + 1e-9)]


@pytest.mark.parametrize("kind", KINDS)
def test_planned_steps_take_the_time_of_a_simulation_part_by_part(kind):
    """All choices of a plan; none is faster than the first part of any worker."""
    found = jaxwgc.plan(
        kind.model,
        NUM_WORKERS,
        jax.random.key(0),
        candidates=Candidates(replications=[1, 2, 3], late="cancelled"),
        tail=0.0,
        num_rounds=4000,
    )
    ratios = {}
    for choice in found.choices:
        is_of_sums = choice.name.startswith(("uncoded", "replicated", "fractional"))
        if choice.wait.tolerance is not None and not is_of_sums:
            continue
        random = np.random.default_rng(0)
        simulated, least = simulated_step(kind, choice, random)
        label = choice.name, choice.replication, choice.waits_for
        ratios[label] = choice.step_time.value / simulated
        assert choice.step_time.value > least
    assert len(ratios) > 20
    assert min(ratios.values()) > 0.98
    assert max(ratios.values()) < 1.02
