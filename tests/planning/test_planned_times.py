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


# Times of each kind are (rounds, workers, parts), at (workers, parts) loads. Those of a
# trace are of each of its rounds once, and so have the mean of all that are drawn.


class Affine:
    model = stragglers.affine(
        stragglers.shifted_exponential(shift=0.5, rate=2.0), overhead=1.0, slope=0.5
    )

    @staticmethod
    def times(loads):
        random = np.random.default_rng(0)
        drawn = 0.5 + random.exponential(0.5, (NUM_ROUNDS, NUM_WORKERS, 1))
        return drawn * (1.0 + 0.5 * loads)


class MeasuredAt:
    model = stragglers.empirical(measured_table(), measured_at=MEASURED_AT)

    @staticmethod
    def times(loads):
        measured = measured_table()
        medians = np.median(measured, axis=1)
        times = np.empty((60, *loads.shape))
        for place, worker in np.ndindex(60, NUM_WORKERS):
            row = loads[worker]
            middle = medians[:, worker]
            first = max((middle[1] - middle[0]) / 0.5, 0)
            last = max((middle[2] - middle[1]) / 2.0, 0)
            at_zero = max(measured[0, place, worker] - 0.5 * first, 0)
            known = [at_zero, *measured[:, place, worker]]
            times[place, worker] = np.interp(row, [0.0, *MEASURED_AT], known)
            times[place, worker] += last * np.maximum(row - 3.0, 0)
        # A part is not later than the parts after it.
        return np.minimum.accumulate(times[..., ::-1], axis=-1)[..., ::-1]


class TimesOfParts:
    model = stragglers.empirical(table_of_parts())

    @staticmethod
    def times(loads):
        # Six passes over eight parts, load 1 each, suffice for all loads here.
        ends = np.tile(table_of_parts(), 6).cumsum(axis=-1)
        known = np.arange(49) / 8
        times = np.empty((60, *loads.shape))
        for place, worker in np.ndindex(60, NUM_WORKERS):
            end = [0, *ends[place, worker]]
            times[place, worker] = np.interp(loads[worker], known, end)
        return times


class OwnModel:
    model = LateStart()

    @staticmethod
    def times(loads):
        random = np.random.default_rng(0)
        starts = random.exponential(1.0, (NUM_ROUNDS, NUM_WORKERS, 1))
        return starts + np.sqrt(loads)


KINDS = [Affine, MeasuredAt, TimesOfParts, OwnModel]


def loads_of(code):
    """Returns the loads after each message of a worker, (workers, messages)."""
    parts = np.asarray(code.assignment).sum(axis=1)
    loads = parts[:, None] * NUM_WORKERS / code.num_parts
    if code.messages_per_worker == 1:
        return loads
    return loads * np.arange(1, parts.max() + 1) / parts[:, None]


def ends_of_rounds(choice, times):
    tolerance = choice.wait.tolerance
    ends = np.sort(times[..., -1], axis=1)
    if isinstance(choice.wait, stragglers.deadline):
        return np.minimum(ends[:, -1], choice.wait.seconds)
    if tolerance is None:
        return ends[:, choice.wait.num_required - 1]
    # Messages of these codes are sums of parts: a part is there with its first sum.
    holds = np.asarray(choice.code.encoding_matrix) != 0
    messages = times.reshape(len(times), -1)
    arrival = np.stack([messages[:, held].min(axis=1) for held in holds.T], axis=1)
    share_missing = np.arange(arrival.shape[1] - 1, -1, -1) / arrival.shape[1]
    return np.sort(arrival, axis=1)[:, np.argmax(share_missing <= tolerance**2 + 1e-9)]


@pytest.mark.parametrize("kind", KINDS)
def test_planned_steps_take_the_time_of_a_simulation_part_by_part(kind):
    """All choices of a plan; none is faster than the first part of any worker."""
    found = jaxwgc.plan(
        kind.model,
        NUM_WORKERS,
        jax.random.key(0),
        candidates=Candidates(copies=[1, 2, 3], late="cancelled"),
        tail=0.0,
        num_rounds=4000,
    )
    ratios = {}
    for choice in found.choices:
        is_of_sums = choice.name.startswith(("uncoded", "replicated", "fractional"))
        if choice.wait.tolerance is not None and not is_of_sums:
            continue
        times = kind.times(loads_of(choice.code))
        label = choice.name, choice.copies, choice.waits_for
        mean = ends_of_rounds(choice, times).mean()
        ratios[label] = choice.step_time.value / mean
        assert choice.step_time.value > times.min()
    assert len(ratios) > 20
    assert min(ratios.values()) > 0.98
    assert max(ratios.values()) < 1.02
