"""Simulated rounds of a delay model under many waiting rules."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import array_module
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.stragglers import DelayModel, WaitingRule, delayed
from jaxwgc.studies._compare._masks import distinct_rows
from jaxwgc.studies._compare._search import can_search, ends_of_rounds
from jaxwgc.studies._compare._shared_programs import kind_of, restored, shared
from jaxwgc.studies._program_arguments import DrawnTimes


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

    def batches(self) -> Iterator[np.ndarray]:
        """Yields trial numbers (num_clusters, num_rounds); the last may be too many."""
        size = self.num_clusters * self.num_rounds
        for start in range(0, self.num_trials, size):
            numbers = start + np.arange(size)
            yield numbers.reshape(self.num_clusters, self.num_rounds)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A waiting rule, and the code of the messages.

    Attributes:
      rule: Waiting rule.
      code: Code with several messages per worker. None for any code with one message
        per worker: rounds are then equal for equal loads.
    """

    rule: WaitingRule
    code: GradientCode | None

    @property
    def identity(self) -> Any:
        """Hashable value that is equal for equal rounds."""
        code = None if self.code is None else id(self.code)
        try:
            hash(self.rule)
        except TypeError:
            return id(self.rule), code
        return self.rule, code


class Rounds(NamedTuple):
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


class Draws(NamedTuple):
    """Delay model, key and arrangement of the trials that are drawn.

    Attributes:
      name: Name of the delay model in error messages.
      delay: Delay model.
      late: See `stragglers.delayed`.
      key: PRNG key.
      schedule: Arrangement of trials.
    """

    name: str
    delay: DelayModel
    late: str
    key: jax.Array
    schedule: Schedule


def simulate(
    draws: Draws,
    loads: np.ndarray,
    waiting: list[Waiting],
    advance: Callable[[], Any],
) -> list[Rounds]:
    """Simulates the rounds of all trials, with equal times for all rules.

    The rules of `until_decodable` are applied on the host. The others are applied by
    compiled functions.

    Args:
      draws: Delay model, key and arrangement of trials.
      loads: Load of each worker, (num_workers,).
      waiting: Rules, with their codes.
      advance: Called after each batch.

    Returns:
      The rounds of each rule.
    """
    delay = shared(draws.delay)
    searched = [
        place for place, one in enumerate(waiting) if can_search(one.rule, draws.late)
    ]
    stacks = _stacked(waiting, skipped=searched)
    batches: list[list[Any]] = [[] for _ in waiting]
    for numbers in draws.schedule.batches():
        drawn = _draw(delay, draws.key, numbers, loads)
        # The programs of all rules are started before the host waits for the first.
        simulated = [
            _end_rounds(draws.late, stack.rules, stack.code, loads, drawn)
            for stack in stacks
        ]
        host_times = np.asarray(drawn.times).reshape(-1, len(loads))
        _check_times(draws.name, host_times)
        for place in searched:
            rounds = _searched_rounds(waiting[place].rule, loads, host_times)
            batches[place].append(rounds)
        for rounds, stack in zip(simulated, stacks, strict=True):
            leaves = jax.device_get(rounds)
            for index, place in enumerate(stack.places):
                batches[place].append(tuple(leaf[index] for leaf in leaves))
        advance()
    return [_joined(batch, draws.schedule.num_trials) for batch in batches]


class _Stack(NamedTuple):
    """Rules that differ only in numbers, so that one call applies them.

    Attributes:
      rules: Pytree from `shared`, with a leading axis of rules.
      code: Code of these rules, see `Waiting`.
      places: Indices of these rules.
    """

    rules: Any
    code: GradientCode | None
    places: list[int]


def _stacked(waiting: list[Waiting], skipped: list[int]) -> list[_Stack]:
    """Stacks the rules of each kind and code."""
    members: dict[Any, list[int]] = {}
    for place, one in enumerate(waiting):
        if place in skipped:
            continue
        kind = kind_of(one.rule) or place
        members.setdefault((kind, id(one.code)), []).append(place)
    stacks = []
    for places in members.values():
        rules = [shared(waiting[place].rule) for place in places]
        stack = jax.tree.map(lambda *leaves: np.stack(leaves), *rules)
        stacks.append(_Stack(stack, waiting[places[0]].code, places))
    return stacks


def _check_times(name: str, times: np.ndarray) -> None:
    if not times.min() >= 0:
        wrong = times[~(times >= 0)][0]
        raise ValueError(
            "delays must return times of at least 0, and infinity for a worker that "
            f"never responds; delays[{name!r}] returned {wrong}. Check its parameters "
            "and the loads of the codes"
        )


def _joined(batches: list[Any], num_trials: int) -> Rounds:
    """Returns the rounds of all batches, without the trials of the padding."""
    time, work, packed = (
        np.concatenate(leaves)[:num_trials] for leaves in zip(*batches, strict=True)
    )
    masks, places = distinct_rows(packed)
    return Rounds(time=time, work=work, masks=masks, places=places)


class _Drawn(NamedTuple):
    """Keys (clusters, rounds) and finish times (clusters, rounds, num_workers)."""

    keys: jax.Array
    times: jax.Array


@jax.jit
def _draw(delay, key, numbers, loads):
    """Draws keys and finish times of the trials."""
    delay = restored(delay)
    keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, numbers)

    def run(keys):
        def step(state, key):
            # `delayed` draws times by the first of these keys.
            delay_key, _ = jax.random.split(key)
            times, state = delay.sample(delay_key, state, loads)
            return state, times

        return jax.lax.scan(step, delay.init(len(loads)), keys)[1]

    return _Drawn(keys, jax.vmap(run)(keys))


@functools.partial(jax.jit, static_argnums=0)
def _end_rounds(late, rules, code, loads, drawn):
    """Applies stacked waiting rules to drawn times.

    Returns:
      Times, work and packed masks, with axes of rules and trials.
    """
    is_busy = late == "busy"

    def run(rule, cluster):
        model = delayed(DrawnTimes(), restored(rule), late)

        def step(remaining, this_round):
            key, times = this_round
            state = (times, remaining) if is_busy else times
            arrivals, state = model.sample(key, state, loads)
            work = _work(arrivals.elapsed, arrivals.joined, times, loads)
            if code is None:
                mask = arrivals.received
            else:
                mask = Arrived.of(code, arrivals).mask
            remaining = state[1] if is_busy else remaining
            return remaining, (arrivals.elapsed, work, jnp.packbits(mask))

        idle = jnp.zeros(len(loads), jnp.result_type(float))
        return jax.lax.scan(step, idle, cluster)[1]

    of_clusters = jax.vmap(run, (None, 0))
    leaves = jax.tree.leaves(rules)
    # A rule without arrays is alone.
    num_rules = len(leaves[0]) if leaves else 1
    of_rules = jax.vmap(of_clusters, (0, None), axis_size=num_rules)
    rounds = of_rules(rules, drawn)
    num_clusters, num_rounds, _ = drawn.times.shape
    size = num_clusters * num_rounds
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf), size, *leaf.shape[3:]), rounds
    )


def _searched_rounds(
    rule: Any, loads: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns times, work and packed masks of the trials of `until_decodable`."""
    elapsed = ends_of_rounds(rule, times)
    received = (times <= elapsed[:, None]) & np.isfinite(times)
    # The share of work of a lost worker is not a number before it is replaced.
    with np.errstate(invalid="ignore"):
        work = _work(elapsed[:, None], None, times, loads)
    return elapsed, work, np.packbits(received, axis=1)


def _work(elapsed: Any, joined: Any, times: Any, loads: Any) -> Any:
    """Returns the work of rounds, in passes over the data.

    Workers that are cancelled have done the work of the elapsed time. Busy workers that
    join the round complete its work, unless they are lost.

    Args:
      elapsed: Durations, (..., 1), or a scalar.
      joined: Which workers join the round, (..., num_workers). None if all do, and late
        workers are cancelled.
      times: Finish times, (..., num_workers).
      loads: Load of each worker, (num_workers,).
    """
    xp = array_module(times)
    if joined is None:
        is_positive = times > 0
        share = xp.where(is_positive, elapsed / xp.where(is_positive, times, 1), 1)
        share = xp.minimum(share, 1)
    else:
        share = joined
    # A lost worker does no work. For it, the share above is not a number.
    share = xp.where(xp.isfinite(times), share, 0)
    return (loads * share).sum(axis=-1) / len(loads)
