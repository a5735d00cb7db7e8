"""Drawn times of rounds, and waiting rules that end the rounds."""

import dataclasses
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import validation
from jaxwgc._common.arrays import array_module, is_kind, promoted
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.decoders import Decoder
from jaxwgc.simulation._program_arguments import (
    QUICKLY_COMPILED,
    DrawnTimes,
    as_argument,
    from_argument,
    signature,
    with_one_decoder,
)
from jaxwgc.simulation._search import can_search, ends_of_rounds
from jaxwgc.stragglers import UntilDecodable, WaitingRule, delayed

# NumPy arrays on the host, JAX arrays in compiled programs.
Array: TypeAlias = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A waiting rule, with what late workers do, and the code of the messages.

    Attributes:
      rule: Waiting rule.
      late: What late workers do: `"cancelled"` or `"busy"`.
      code: Code of the rule, or code with several messages per worker. None for any
        other code: rounds are then equal for equal loads.
    """

    rule: WaitingRule
    late: str
    code: GradientCode | None

    @classmethod
    def of(cls, code: GradientCode, rule: WaitingRule, late: str) -> "Waiting":
        """Returns the waiting rule of a code."""
        if isinstance(rule, UntilDecodable):
            return cls(rule=rule, late=late, code=rule.code)
        has_several_messages = code.messages_per_worker > 1
        return cls(rule=rule, late=late, code=code if has_several_messages else None)

    @property
    def decoder(self) -> Decoder | None:
        """Decoder of `until_decodable`; None for the default, and for other rules."""
        if isinstance(self.rule, UntilDecodable):
            return self.rule.decoder
        return None

    @property
    def program(self) -> Hashable:
        """Value that is equal for rules that differ only in numbers."""
        rule_signature = signature(self.rule_without_code)
        return self.late, id(self.code), id(self.decoder), rule_signature

    @property
    def rule_without_code(self) -> Any:
        """The rule as an argument of compiled programs; its code is another one."""
        if isinstance(self.rule, UntilDecodable):
            return dataclasses.replace(self.rule, code=None, decoder=None)
        return as_argument(self.rule)

    @property
    def code_argument(self) -> GradientCode | None:
        """The code as an argument, with the decoder of the rule."""
        if self.code is None:
            return None
        return with_one_decoder(self.code, self.decoder)

    @property
    def identity(self) -> Hashable:
        """Value that is equal for the same rule and code, while both exist."""
        code = None if self.code is None else id(self.code)
        return id(self.rule), self.late, code


class Loads(NamedTuple):
    """Loads and parts of the workers of a code. Codes with equal ones share times.

    Attributes:
      loads: Load of each worker, (num_workers,).
      shares: Share of the load after each part, (num_workers, parts); one part if
        workers send one message.
    """

    loads: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, code: GradientCode, dtype: type[np.floating]) -> "Loads":
        """Returns the loads and parts of a code."""
        return cls(np.asarray(code.loads, dtype), np.asarray(code.part_shares, dtype))

    def with_overhead(self, share: float) -> "Loads":
        """Returns loads of which a share of an equal one does not depend on the load.

        If times are proportional to these loads, this share of the time at load 1 is an
        overhead, which comes before the parts.
        """
        loads = share + (1 - share) * self.loads
        parts = share + (1 - share) * self.loads[:, None] * self.shares
        whole = np.where(loads > 0, loads, 1)[:, None]
        return Loads(loads=loads, shares=np.where(loads[:, None] > 0, parts / whole, 1))

    @property
    def identity(self) -> Hashable:
        """Value that is equal for equal loads and parts."""
        return self.shares.shape, self.loads.tobytes(), self.shares.tobytes()


class Drawn(NamedTuple):
    """Drawn times of the rounds of several clusters.

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
    """Rounds of several clusters, one cluster after the other.

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


# Number of simulated times up to which quick compilation saves time. More times need
# faster programs.
FEW_TIMES = 100_000


def _draw(delay: Any, keys: jax.Array, loads: Loads) -> tuple[jax.Array, jax.Array]:
    """Draws finish times and times of parts of consecutive rounds.

    Args:
      delay: Delay model, from `as_argument`.
      keys: PRNG key of each round, (clusters, rounds).
      loads: Loads and parts of the workers.

    Returns:
      Finish times, (clusters, rounds, num_workers), and times of parts, with another
      axis of parts.

    Raises:
      TypeError: If the delay model does not return times of all workers and a state
        like that of `init`.
    """
    delay = from_argument(delay)
    num_workers, num_parts = loads.shares.shape

    def run(keys):
        def step(state, key):
            drawn = delay.sample(key, state, loads.loads)
            _check_drawn(drawn, state, num_workers)
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

    return jax.vmap(run)(keys)


# For times in batches of thousands of rounds.
draw_times = jax.jit(_draw)
# For at most `FEW_TIMES`.
draw_few_times = jax.jit(_draw, compiler_options=QUICKLY_COMPILED)


def _check_drawn(drawn: Any, state: Any, num_workers: int) -> None:
    """Raises TypeError unless `sample` returns times and a state like that before."""
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        raise TypeError(
            "sample must return a pair (times, state); got one value. A model without "
            "a state returns the state that it was given"
        )
    times, after = drawn
    shape = getattr(times, "shape", None)
    if shape != (num_workers,) or not is_kind(times, "real numbers"):
        shown = times if shape is None else f"{times.dtype} {shape}"
        raise TypeError(
            "sample must return times that are an array of real numbers of shape "
            f"(num_workers,) = ({num_workers},), one per worker; got {shown}"
        )
    if not _is_carried(state, after):
        raise TypeError(
            "sample must return a state with the structure, shapes and dtypes of the "
            f"state from init, {_types(state)}; got {_types(after)}"
        )


def _types(state: Any) -> Any:
    """Returns a state with the dtype and shape of each array, e.g. "int32[6]"."""
    return jax.tree.map(
        lambda leaf: f"{jax.typeof(leaf).dtype}{list(np.shape(leaf))}", state
    )


def _is_carried(state: Any, after: Any) -> bool:
    """Returns whether a loop over rounds may replace a state by the next one."""
    leaves, structure = jax.tree.flatten(state)
    leaves_after, structure_after = jax.tree.flatten(after)
    if structure != structure_after:
        return False
    for leaf, leaf_after in zip(leaves, leaves_after, strict=True):
        type_before = jax.typeof(leaf)
        type_after = jax.typeof(leaf_after)
        if type_before.shape != type_after.shape:
            return False
        # Python numbers take the dtype of the state after them.
        if type_before.dtype != type_after.dtype and not type_before.weak_type:
            return False
    return True


def end_rounds(
    waiting: Sequence[Waiting],
    drawn: Sequence[Drawn],
    program: Callable[..., Rounds] | None = None,
) -> list[Rounds]:
    """Applies waiting rules, and returns the rounds of each rule on the host.

    The rules of `until_decodable` are applied on the host if rounds are independent.
    The others are applied by compiled functions, with one call for all rules that
    differ only in numbers.

    Args:
      waiting: Waiting rules.
      drawn: Drawn times for each rule, equally many for all.
      program: `ENDS_OF_MANY` (default) or `ENDS_OF_FEW` rounds.
    """
    if program is None:
        program = ENDS_OF_MANY
    searched: list[int] = []
    groups: dict[Hashable, list[int]] = {}
    for place, one in enumerate(waiting):
        if can_search(one.rule, one.late):
            searched.append(place)
        else:
            groups.setdefault(one.program, []).append(place)
    # All programs are started before the host waits for the first.
    started = []
    for places in groups.values():
        waiting_of_group = [waiting[place] for place in places]
        drawn_of_group = [drawn[place] for place in places]
        started.append(_start(program, waiting_of_group, drawn_of_group))
    rounds: dict[int, Rounds] = {}
    for place in searched:
        rounds[place] = _searched_rounds(waiting[place].rule, drawn[place])
    for places, results in zip(groups.values(), started, strict=True):
        stacked = jax.device_get(results)
        for index, place in enumerate(places):
            rounds[place] = jax.tree.map(operator.itemgetter(index), stacked)
    return [rounds[place] for place in range(len(waiting))]


def _start(
    program: Callable[..., Rounds], waiting: Sequence[Waiting], drawn: Sequence[Drawn]
) -> Rounds:
    """Starts the rounds of rules that differ only in numbers, asynchronously."""
    # Rules with the same drawn times share one array.
    different: dict[int, Drawn] = {id(times): times for times in drawn}
    identities = list(different)
    rules = [one.rule_without_code for one in waiting]
    return program(
        waiting[0].late,
        waiting[0].code_argument,
        rules=jax.tree.map(lambda *leaves: np.stack(leaves), *rules),
        places=np.array([identities.index(id(times)) for times in drawn]),
        keys=drawn[0].keys,
        times=np.stack([times.times for times in different.values()]),
        loads=np.stack([times.loads for times in different.values()]),
    )


def _ends(
    late: str,
    code: GradientCode | None,
    rules: Any,
    places: jax.Array,
    keys: jax.Array,
    times: jax.Array,
    loads: jax.Array,
) -> Rounds:
    """Applies stacked rules to drawn times; results have axes of rules and rounds.

    Args:
      late: What late workers do: `"cancelled"` or `"busy"`.
      code: Code of the rules, or code with several messages per worker; else None.
      rules: Waiting rules without their codes, with an axis of rules.
      places: Index of the times and loads of each rule.
      keys: PRNG keys, (clusters, rounds).
      times: Times of parts, (number, clusters, rounds, num_workers, parts).
      loads: Loads, (number, num_workers).
    """
    is_busy = late == "busy"

    def of_rule(rule, place):
        rule = from_argument(rule)
        if isinstance(rule, UntilDecodable):
            rule = dataclasses.replace(rule, code=code)
        model = delayed(DrawnTimes(), rule, late)

        def of_round(remaining, this_round):
            key, part_times = this_round
            state = (part_times, remaining) if is_busy else part_times
            # The shares are those of the times, which are drawn.
            shares = jnp.ones_like(part_times)
            arrivals, state = model.sample_parts(key, state, loads[place], shares)
            if code is not None and code.messages_per_worker > 1:
                finished = arrivals.finished(code.parts_per_worker)
                mask = Arrived.of(code, finished=finished).mask
                work = _work_of_parts(code, finished, loads[place])
            else:
                mask = arrivals.received
                times = part_times[:, -1]
                work = _work(arrivals.elapsed, arrivals.joined, times, loads[place])
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
            idle = jnp.zeros(loads.shape[1], jnp.result_type(float))
            if is_busy:
                _, rounds = jax.lax.scan(of_round, idle, (keys, times))
            else:
                of_rounds = jax.vmap(of_round, in_axes=(None, 0))
                _, rounds = of_rounds(idle, (keys, times))
            return rounds

        rounds = jax.vmap(of_cluster)(keys, times[place])
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rounds)

    return jax.vmap(of_rule)(rules, places)


# For rounds in batches of thousands.
ENDS_OF_MANY = jax.jit(_ends, static_argnums=0)
# For few rounds of many codes and rules.
ENDS_OF_FEW = jax.jit(_ends, static_argnums=0, compiler_options=QUICKLY_COMPILED)


def _searched_rounds(rule: WaitingRule, drawn: Drawn) -> Rounds:
    """Returns the rounds of `until_decodable` on the host."""
    assert isinstance(rule, UntilDecodable)
    loads = np.asarray(drawn.loads)
    times = np.asarray(drawn.times).reshape(-1, len(loads))
    elapsed = ends_of_rounds(rule, times)
    received = (times <= elapsed[:, None]) & np.isfinite(times)
    # The share of work of a lost worker is NaN before it is replaced below.
    with np.errstate(invalid="ignore"):
        work = _work(elapsed[:, None], None, times, loads)
    return Rounds(
        time=elapsed,
        work=work,
        num_late=np.zeros(len(times)),
        masks=np.packbits(received, axis=1),
    )


def _work_of_parts(
    code: GradientCode, finished: jax.Array, loads: jax.Array
) -> jax.Array:
    """Returns the work of a round by its finished parts, in passes over the data."""
    share = finished / jnp.maximum(code.parts_per_worker, 1)
    return (loads * share).sum() / len(loads)


def _work(elapsed: Array, joined: Array | None, times: Array, loads: Array) -> Array:
    """Returns the work of rounds of whole loads, in passes over the data.

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
        share = xp.where(is_positive, elapsed / xp.where(is_positive, times, 1), 1)
        share = xp.minimum(share, 1)
    else:
        share = joined
    # A lost worker does no work. Its share above is NaN.
    share = xp.where(xp.isfinite(times), share, 0)
    return (loads * share).sum(axis=-1) / len(loads)
