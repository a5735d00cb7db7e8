"""Trials of a delay model under many waiting rules, in batches."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc.simulation._masks import distinct_rows
from jaxwgc.simulation._program_arguments import as_argument
from jaxwgc.simulation._rounds import (
    Drawn,
    Loads,
    Rounds,
    Waiting,
    draw_times,
    end_rounds,
)
from jaxwgc.simulation._search import can_search
from jaxwgc.stragglers import DelayModel, check_part_times


class Schedule(NamedTuple):
    """Arrangement of trials: clusters, each with consecutive rounds.

    Trial i is round `i % num_rounds` of cluster `i // num_rounds`.

    Attributes:
      num_trials: Number of trials, a multiple of num_rounds.
      num_rounds: Consecutive rounds of a cluster; 1 if trials are independent.
      batch_size: Number of trials per call of a compiled program.
    """

    num_trials: int
    num_rounds: int
    batch_size: int

    @property
    def num_clusters(self) -> int:
        """Number of clusters per call of a compiled program."""
        return max(self.batch_size // self.num_rounds, 1)

    @property
    def num_batches(self) -> int:
        """Number of calls of a compiled program."""
        return -(-self.num_trials // (self.num_clusters * self.num_rounds))

    def batches(self) -> Iterator["Batch"]:
        """Yields the batches; the last is padded by trials that are not used."""
        size = self.num_clusters * self.num_rounds
        for start in range(0, self.num_trials, size):
            numbers = start + np.arange(size)
            yield Batch(
                numbers=numbers.reshape(self.num_clusters, self.num_rounds),
                num_clusters=min(size, self.num_trials - start) // self.num_rounds,
            )


class Batch(NamedTuple):
    """Trials of one call of a compiled program.

    Attributes:
      numbers: Trial numbers, (clusters, num_rounds).
      num_clusters: Number of clusters without the padding.
    """

    numbers: np.ndarray
    num_clusters: int


class Trials(NamedTuple):
    """Simulated rounds of all trials, on the host.

    Attributes:
      time: Duration of the round, (num_trials,).
      work: Work until the end of the round, in passes over the data, (num_trials,).
      masks: Distinct masks of the messages that arrived, packed bits, uint8
        (masks, bytes).
      places: Index of the mask of each trial, int (num_trials,).
    """

    time: np.ndarray
    work: np.ndarray
    masks: np.ndarray
    places: np.ndarray

    @classmethod
    def joined(cls, batches: list[Rounds], num_trials: int) -> "Trials":
        """Joins the rounds of all batches, without the trials of the padding."""
        time = np.concatenate([rounds.time for rounds in batches])
        work = np.concatenate([rounds.work for rounds in batches])
        packed = np.concatenate([rounds.masks for rounds in batches])
        masks, places = distinct_rows(packed[:num_trials])
        return cls(
            time=time[:num_trials], work=work[:num_trials], masks=masks, places=places
        )


class Draws(NamedTuple):
    """Delay model, key and arrangement of the trials to draw.

    Attributes:
      name: Name of the delay model in error messages.
      delay: Delay model.
      key: PRNG key.
      schedule: Arrangement of trials.
    """

    name: str
    delay: DelayModel
    key: jax.Array
    schedule: Schedule


def simulate(
    draws: Draws,
    loads: Loads,
    waiting: list[Waiting],
    advance: Callable[[], None],
) -> list[Trials]:
    """Simulates the rounds of all trials, with equal times for all rules.

    Args:
      draws: Delay model, key and arrangement of trials.
      loads: Loads and parts of the workers.
      waiting: Waiting rules.
      advance: Called after each batch.

    Returns:
      The trials of each rule.
    """
    rounds_of_rules: list[list[Rounds]] = [[] for _ in waiting]
    for batch in draws.schedule.batches():
        drawn = _draw(draws, batch.numbers, loads)
        times = np.asarray(drawn.times)[: batch.num_clusters]
        _check_times(draws.name, times)
        # Batches of equal size are for compiled programs. The host drops the padding.
        without_padding = drawn._replace(times=times)
        drawn_for_rules = [
            without_padding if can_search(one.rule, one.late) else drawn
            for one in waiting
        ]
        ended = end_rounds(waiting, drawn_for_rules)
        for batches, rounds in zip(rounds_of_rules, ended, strict=True):
            batches.append(rounds)
        advance()
    num_trials = draws.schedule.num_trials
    return [Trials.joined(batches, num_trials) for batches in rounds_of_rules]


def _draw(draws: Draws, numbers: np.ndarray, loads: Loads) -> Drawn:
    """Draws times; errors name the delay model of the study."""
    keys, delay_keys = _keys_of(draws.key, numbers)
    try:
        times, part_times = draw_times(as_argument(draws.delay), delay_keys, loads)
        check_part_times(
            type(draws.delay).__name__, np.asarray(part_times), np.asarray(times)
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"delays[{draws.name!r}] cannot be drawn: {error}") from error
    return Drawn(keys=keys, times=part_times, loads=loads.loads)


@jax.jit
def _keys_of(key: jax.Array, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of trials, and those by which `delayed` draws their times.

    Args:
      key: PRNG key.
      numbers: Trial numbers, (clusters, num_rounds).
    """
    keys_of_cluster = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(keys_of_cluster, in_axes=(None, 0))(key, numbers)
    delay_and_wait_keys = jax.vmap(jax.vmap(jax.random.split))(keys)
    return keys, delay_and_wait_keys[:, :, 0]


def _check_times(name: str, times: np.ndarray) -> None:
    if not times.min() >= 0:
        invalid = times[~(times >= 0)]
        raise ValueError(
            "delays must return times of at least 0, and infinity for a worker that "
            f"never responds; delays[{name!r}] returned {invalid[0]}. Check its "
            "parameters and the loads of the codes"
        )
