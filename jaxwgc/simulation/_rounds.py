"""Draws the times of simulated rounds, and ends the rounds by waiting rules."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import validation
from jaxwgc._common.arrays import array_module, is_kind, promoted
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.simulation._masks import decode_packed, distinct_rows
from jaxwgc.simulation._program_arguments import (
    LIGHTLY_OPTIMIZED,
    QUICKLY_COMPILED,
    as_argument,
    from_argument,
    with_one_decoder,
)
from jaxwgc.stragglers import DelayModel, WaitingRule, delayed
from jaxwgc.stragglers._models import DelayOfParts
from jaxwgc.stragglers._part_times import check_part_times
from jaxwgc.stragglers._until_decodable import UntilDecodable, message_times

# NumPy arrays on the host, JAX arrays in compiled programs.
Array: TypeAlias = jax.Array | np.ndarray


class Loads(NamedTuple):
    """Loads of the workers of a code, and their division into parts.

    Attributes:
      loads: Load of each worker, (num_workers,).
      shares: Share of the load after each part, (num_workers, parts); one part if
        workers send one message.
    """

    loads: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, code: GradientCode, dtype: type[np.floating]) -> "Loads":
        """Returns the loads of a code's workers, and their division into parts."""
        return cls(np.asarray(code.loads, dtype), np.asarray(code.part_shares, dtype))

    def with_overhead(self, share: float) -> "Loads":
        """Returns the loads plus a fixed overhead: share + (1 - share) * loads.

        If times are proportional to these loads, this share of the time at load 1 is an
        overhead, which comes before the parts.
        """
        loads = share + (1 - share) * self.loads
        parts = share + (1 - share) * self.loads[:, None] * self.shares
        whole = np.where(loads > 0, loads, 1)[:, None]
        return Loads(loads=loads, shares=np.where(loads[:, None] > 0, parts / whole, 1))

    @property
    def is_whole(self) -> bool:
        """True if loads are not divided into parts."""
        return self.shares.shape[1] == 1

    @property
    def whole(self) -> "Loads":
        """The loads without a division into parts."""
        return self._replace(shares=np.ones_like(self.shares[:, :1]))

    @property
    def identity(self) -> Hashable:
        """Key for dicts, equal for equal loads and parts."""
        return self.shares.shape, self.loads.tobytes(), self.shares.tobytes()


class Drawn(NamedTuple):
    """Times drawn for the rounds of several clusters, before a rule ends the rounds.

    Attributes:
      keys: PRNG keys of the rounds, (clusters, rounds).
      times: When each worker has finished each of its parts, (clusters, rounds,
        num_workers, parts). The last time is its finish time.
      loads: Load of each worker, (num_workers,).
    """

    keys: jax.Array
    times: Array
    loads: Array


class Rounds(NamedTuple):
    """Results of rounds that a waiting rule has ended: times, work and masks.

    The rounds of several clusters follow each other on the first axis.

    Attributes:
      time: Duration of the round, (rounds,).
      work: Work until the end of the round, in passes over the data, (rounds,).
      num_late: Number of responses to earlier rounds that arrived, (rounds,).
      masks: Mask of the messages that arrived, packed bits, uint8 (rounds, bytes).
    """

    time: Array
    work: Array
    num_late: Array | int
    masks: Array


def draw_rounds(
    delay: DelayModel,
    keys: jax.Array,
    all_loads: Sequence[Loads],
    *,
    delay_keys: jax.Array | None = None,
    is_few: bool = False,
) -> list[Drawn]:
    """Draws the times of successive rounds for several vectors of loads.

    The times of all vectors are drawn with the same keys, by one program.

    Args:
      delay: Delay model.
      keys: PRNG key of each round, (clusters, rounds).
      all_loads: Loads and parts of the workers, one or several times.
      delay_keys: PRNG keys by which the times are drawn; by default `keys`.
      is_few: Whether to compile quickly, for few rounds.

    Returns:
      The drawn times for each of the loads.

    Raises:
      TypeError: If the delay model does not return times of all workers and a state
        like that of `init`.
      ValueError: If times of parts decrease, or do not end with the finish times.
    """
    draw = _DRAW_FEW if is_few else _DRAW_MANY
    delay_keys = keys if delay_keys is None else delay_keys
    most_parts = max(loads.shares.shape[1] for loads in all_loads)
    stacked = Loads(
        loads=np.stack([loads.loads for loads in all_loads]),
        shares=np.stack([_padded(loads.shares, most_parts) for loads in all_loads]),
    )
    drawn_times = draw(as_argument(delay), delay_keys, stacked)
    all_times, all_part_times = jax.device_get(drawn_times)
    name = type(delay).__name__
    drawn = []
    for loads, times, padded in zip(all_loads, all_times, all_part_times, strict=True):
        num_parts = loads.shares.shape[1]
        part_times = padded[..., :num_parts]
        check_part_times(name, part_times, times)
        drawn.append(Drawn(keys=keys, times=part_times, loads=loads.loads))
    return drawn


def _padded(shares: np.ndarray, num_parts: int) -> np.ndarray:
    """Pads shares to `num_parts` columns, with parts that take no time."""
    padding = [(0, 0), (0, num_parts - shares.shape[1])]
    return np.pad(shares, padding, constant_values=1)


def _draw(delay: Any, keys: jax.Array, all_loads: Loads) -> tuple[jax.Array, jax.Array]:
    """Draws finish times and times of parts for several vectors of loads.

    Args:
      delay: Delay model, from `as_argument`.
      keys: PRNG key of each round, (clusters, rounds).
      all_loads: Loads (number, num_workers) and shares (number, num_workers, parts).

    Returns:
      Finish times (number, clusters, rounds, num_workers), and times of parts with one
      more axis.
    """
    delay = from_argument(delay)

    def run(loads, keys):
        num_workers, num_parts = loads.shares.shape

        def step(state, key):
            if isinstance(delay, DelayOfParts):
                # This model draws times of parts only. A worker finishes when its last
                # part is done.
                part_times, next_state = delay.part_times(key, state, *loads)
                times = part_times[:, -1]
            else:
                drawn = delay.sample(key, state, loads.loads)
                _check_drawn(drawn, num_workers)
                times, next_state = drawn
                part_times = times[:, None]
                if num_parts > 1:
                    part_times, _ = delay.part_times(key, state, *loads)
            validation.check_shape(
                f"part_times of {type(delay).__name__}",
                part_times,
                "(num_workers, parts)",
                loads.shares.shape,
            )
            return next_state, (promoted(times), promoted(part_times))

        _, times = jax.lax.scan(step, delay.init(num_workers), keys)
        return times

    of_clusters = jax.vmap(run, in_axes=(None, 0))
    return jax.vmap(of_clusters, in_axes=(0, None))(all_loads, keys)


_DRAW_MANY = jax.jit(_draw)
_DRAW_FEW = jax.jit(_draw, compiler_options=LIGHTLY_OPTIMIZED)


def _check_drawn(drawn: Any, num_workers: int) -> None:
    """Raises TypeError unless `sample` returned one time per worker, and a state."""
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        raise TypeError(
            "sample must return a pair (times, state); got "
            f"{validation.in_short(drawn)}. A model without a state returns the state "
            "that it was given"
        )
    times, _ = drawn
    shape = getattr(times, "shape", None)
    if shape != (num_workers,) or not is_kind(times, "real numbers"):
        shown = times if shape is None else f"{times.dtype} {shape}"
        raise TypeError(
            "sample must return times as an array of real numbers of shape "
            f"(num_workers,) = ({num_workers},); got {shown}"
        )


def code_of_ends(rule: WaitingRule, code: GradientCode) -> GradientCode | None:
    """Returns the code that determines when rounds end, or None if no code does.

    It is the code of the rule, or a code with several messages per worker. With any
    other code, rounds are equal for equal loads, and the result is None.
    """
    if isinstance(rule, UntilDecodable):
        return rule.code
    return code if code.messages_per_worker > 1 else None


def end_rounds(
    rule: WaitingRule,
    late: str,
    code: GradientCode,
    drawn: Drawn,
    *,
    num_clusters: int | None = None,
    is_few: bool = False,
) -> Rounds:
    """Ends rounds by applying a waiting rule to drawn times.

    The host finds the ends of rounds of `until_decodable` if rounds are independent: by
    `decoding_time` if the decoder runs on the host, otherwise by a search over distinct
    masks if workers send one message. In all other cases a compiled program returns the
    rounds without waiting for their values.

    One program is for one value of `late`, one kind of rule and one shape of the times.
    It is also for one shape and decoder of the code, if the ends of rounds depend on
    it. Numbers of the rule, the entries of the code, the times and the loads are its
    arguments.

    Args:
      rule: Waiting rule.
      late: What late workers do: `"cancelled"` or `"busy"`.
      code: Code of the messages.
      drawn: Drawn times.
      num_clusters: Number of clusters that count; the host leaves out the others.
      is_few: Whether to compile quickly, for few rounds of many codes and rules.
    """
    code_argument = code_of_ends(rule, code)
    rule_argument = as_argument(rule)
    decoder = None
    if isinstance(rule, UntilDecodable):
        on_host = _rounds_on_host(rule) if late == "cancelled" else None
        if on_host is not None:
            times = np.asarray(drawn.times)[:num_clusters]
            return on_host(rule, drawn._replace(times=times))
        rule_argument = dataclasses.replace(rule, code=None, decoder=None)
        decoder = rule.decoder
    if code_argument is not None:
        code_argument = with_one_decoder(code_argument, decoder)
    end = _END_FEW if is_few else _END_MANY
    return end(late, code_argument, rule_argument, drawn)


class _DrawnTimes(DelayModel):
    """Delay model that returns times drawn before, which are its state.

    With this model, `delayed` applies a waiting rule to these times.
    """

    def sample(self, key, state, loads):
        """Returns the finish times of the round, and the unchanged state."""
        return state[:, -1], state

    def part_times(self, key, state, loads, shares):
        """Returns the times of parts of the round, and the unchanged state."""
        return state, state


def _ends(late: str, code: GradientCode | None, rule: Any, drawn: Drawn) -> Rounds:
    """Ends rounds by applying a waiting rule to drawn times, under `jax.jit`.

    Args:
      late: What late workers do: `"cancelled"` or `"busy"`.
      code: Code of the rule, or code with several messages per worker; else None.
      rule: Waiting rule, from `as_argument` or without its code.
      drawn: Drawn times.
    """
    is_busy = late == "busy"
    rule = from_argument(rule)
    if isinstance(rule, UntilDecodable):
        rule = dataclasses.replace(rule, code=code)
    model = delayed(_DrawnTimes(), rule, late)
    loads = jnp.asarray(drawn.loads)

    def of_round(remaining, this_round):
        key, part_times = this_round
        state = (part_times, remaining) if is_busy else part_times
        # Only the shape of the shares is used: the times are drawn already.
        shares = jnp.ones_like(part_times)
        arrivals, state = model.sample_parts(key, state, loads, shares)
        if code is not None and code.messages_per_worker > 1:
            finished = arrivals.finished(code.parts_per_worker)
            mask = Arrived.of(code, finished=finished).mask
            share = finished / jnp.maximum(code.parts_per_worker, 1)
            work = (loads * share).sum() / len(loads)
        else:
            mask = arrivals.received
            times = part_times[:, -1]
            work = _work(arrivals.elapsed, arrivals.joined, times, loads)
        rounds = Rounds(
            time=arrivals.elapsed,
            work=work,
            num_late=0 if arrivals.late is None else arrivals.late.sum(),
            masks=jnp.packbits(mask),
        )
        if is_busy:
            _, remaining = state
        return remaining, rounds

    def of_cluster(keys, times):
        idle = jnp.zeros(len(loads), jnp.result_type(float))
        if is_busy:
            _, rounds = jax.lax.scan(of_round, idle, (keys, times))
        else:
            _, rounds = jax.vmap(of_round, in_axes=(None, 0))(idle, (keys, times))
        return rounds

    rounds = jax.vmap(of_cluster)(drawn.keys, drawn.times)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rounds)


_END_MANY = jax.jit(_ends, static_argnums=0)
_END_FEW = jax.jit(_ends, static_argnums=0, compiler_options=QUICKLY_COMPILED)


def _rounds_on_host(
    rule: UntilDecodable,
) -> Callable[[UntilDecodable, Drawn], Rounds] | None:
    """Returns the function that ends rounds of a rule on the host, or None."""
    if rule.code.choose_decoder(rule.decoder).runs_on_host:
        return _timed_rounds
    if rule.code.messages_per_worker == 1:
        return _searched_rounds
    return None


def _searched_rounds(rule: UntilDecodable, drawn: Drawn) -> Rounds:
    """Ends rounds of `until_decodable` on the host, by a search over masks."""
    loads = np.asarray(drawn.loads)
    times = np.asarray(drawn.times).reshape(-1, len(loads))
    elapsed = _searched_ends(rule, times)
    received = (times <= elapsed[:, None]) & np.isfinite(times)
    return Rounds(
        time=elapsed,
        work=_work(elapsed[:, None], None, times, loads),
        num_late=np.zeros(len(times)),
        masks=np.packbits(received, axis=1),
    )


def _timed_rounds(rule: UntilDecodable, drawn: Drawn) -> Rounds:
    """Ends rounds of `until_decodable` with the `decoding_time` of the decoder."""
    code = rule.code
    decoder = code.choose_decoder(rule.decoder)
    loads = np.asarray(drawn.loads)
    part_times = np.asarray(drawn.times)
    part_times = part_times.reshape(-1, *part_times.shape[2:])
    times = message_times(code, part_times)
    elapsed = decoder.decoding_time(
        np.asarray(code.encoding_matrix),
        np.asarray(code.segment_targets),
        times,
        rule.tolerance,
    )
    # A round that never decodes ends when all messages have arrived.
    elapsed = np.where(np.isfinite(elapsed), elapsed, times.max(axis=1))
    has_arrived = (times <= elapsed[:, None]) & np.isfinite(times)
    if code.messages_per_worker > 1:
        num_parts = np.asarray(code.parts_per_worker)
        is_done = (part_times <= elapsed[:, None, None]) & np.isfinite(part_times)
        is_own = np.arange(part_times.shape[2]) < num_parts[:, None]
        finished = np.sum(is_done & is_own, axis=2)
        work = finished / np.maximum(num_parts, 1) @ loads / len(loads)
    else:
        work = _work(elapsed[:, None], None, times, loads)
    return Rounds(
        time=elapsed,
        work=work,
        num_late=np.zeros(len(times)),
        masks=np.packbits(has_arrived, axis=1),
    )


def _searched_ends(rule: UntilDecodable, times: np.ndarray) -> np.ndarray:
    """Searches for the times at which rounds of `until_decodable` end.

    Responses are counted in the order of their times. The smallest number of responses
    that decodes is found for all trials together, by bisection: each step decodes the
    distinct masks of one number per trial.

    Args:
      rule: Waiting rule for a code with one message per worker.
      times: Finish times, (trials, num_workers).
    """
    code = with_one_decoder(rule.code, rule.decoder)
    num_trials, num_workers = times.shape
    in_order = np.sort(times, axis=1)
    trials = np.arange(num_trials)
    # Bounds of the bisection: `low` responses do not decode, `high` responses decode.
    # num_workers + 1 means that the round never decodes.
    low = np.zeros(num_trials, int)
    high = np.full(num_trials, num_workers + 1)
    # Exact codes decode with this number of responses, and most of them not with fewer.
    # So the bisection first tries this number and the one below.
    num_enough = num_workers - int(np.asarray(code.num_stragglers))
    first_guesses = [num_enough, num_enough - 1]
    while np.any(high - low > 1):
        middle = (low + high) // 2
        if first_guesses:
            guess = first_guesses.pop(0)
            middle = np.where((low < guess) & (guess < high), guess, middle)
        open_trials = trials[high - low > 1]
        now = in_order[open_trials, middle[open_trials] - 1]
        received = (times[open_trials] <= now[:, None]) & np.isfinite(
            times[open_trials]
        )
        masks, places = distinct_rows(np.packbits(received, axis=1))
        decodes = (decode_packed(code, masks).residual <= rule.tolerance)[places]
        decoded = open_trials[decodes]
        undecoded = open_trials[~decodes]
        high[decoded] = middle[decoded]
        low[undecoded] = middle[undecoded]
    # A round that never decodes lasts until all workers have responded.
    num_awaited = np.minimum(high, num_workers)
    return in_order[trials, num_awaited - 1]


def _work(elapsed: Array, joined: Array | None, times: Array, loads: Array) -> Array:
    """Computes the work of rounds, in passes over the data.

    Workers that are cancelled have done a share of the work that is their share of the
    time, since nothing tells when the work of one message begins. Busy workers that
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
        # In a round that never ends, the share of a lost worker is inf / inf = NaN. The
        # last `where` below replaces this NaN by 0.
        with np.errstate(invalid="ignore"):
            share = elapsed / xp.where(is_positive, times, 1)
        share = xp.minimum(xp.where(is_positive, share, 1), 1)
    else:
        share = joined
    # A lost worker does no work.
    share = xp.where(xp.isfinite(times), share, 0)
    return (loads * share).sum(axis=-1) / len(loads)
