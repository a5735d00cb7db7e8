"""Simulated rounds of the choices of a plan: few programs, each for many choices."""

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._pytrees import register
from jaxwgc._targets import rounding
from jaxwgc.codes import GradientCode, uncoded
from jaxwgc.coding import decoding
from jaxwgc.decoders import Group, OneCopy
from jaxwgc.stragglers import (
    DelayModel,
    StragglerModel,
    WaitingRule,
    deadline,
    delayed,
    fastest,
    until_decodable,
)
from jaxwgc.studies._planning._choice import BUSY, Choice

# Of the time at which a message comes: which of two equal times is first is random.
_TIME_ROUNDING = 1e-6
# Families of uncoded and repetition codes, which are one, and of binary codes.
_NUM_FAMILIES = 2
# Copies of a part on request.
_MOST_COPIES = 4
# For what runs for milliseconds and compiles for seconds.
_UNOPTIMISED = {"xla_backend_optimization_level": 0}


class Drawn(NamedTuple):
    """Finish times of clusters side by side, each for some rounds in a row.

    All loads have the same draws, so that choices are compared in pairs.

    Attributes:
      delay: The delay model.
      num_measured: Rounds of the trace that times are drawn from, or infinity.
      has_stalls: Whether times have stalls that the trace does not rule out.
      keys: PRNG keys (runs,).
      loads: (loads, num_workers), the loads that times are drawn for.
      times: float32 (loads, runs, rounds, num_workers).
    """

    delay: DelayModel
    num_measured: float
    has_stalls: bool
    keys: jax.Array
    loads: np.ndarray
    times: np.ndarray

    @classmethod
    def of(
        cls,
        delay: DelayModel,
        codes: Sequence[GradientCode],
        keys: jax.Array,
        num_measured: float,
        has_stalls: bool,
    ) -> "Drawn":
        """Draws times for the loads of all codes, by keys (runs, rounds)."""
        _validation.check_hashable("delay", delay)
        loads = np.unique([np.asarray(code.loads) for code in codes], axis=0)
        model = delayed(delay, fastest(loads.shape[1]))
        StragglerModel.check("delay", model, loads[0])
        arrays, kind = _opened(delay)
        times = [_draw(kind, arrays, keys, own.astype(np.float32)) for own in loads]
        times = np.stack(jax.device_get(times))
        if not np.all(times >= 0):
            raise ValueError(f"delay must give times of at least 0; got {times.min()}")
        return cls(delay, num_measured, has_stalls, keys[:, 0], loads, times)

    @property
    def num_runs(self) -> int:
        """Returns the number of clusters."""
        return self.times.shape[1]

    @property
    def has_state(self) -> bool:
        """Returns whether the rounds of a cluster depend on each other."""
        return bool(jax.tree.leaves(self.delay.init(self.loads.shape[1])))

    def place(self, code: GradientCode) -> int:
        """Returns the place of the loads of a code among `loads`."""
        return int((self.loads == np.asarray(code.loads)).all(1).argmax())


class Rounds(NamedTuple):
    """Rounds of a choice, (runs, rounds), and some with one more axis.

    Attributes:
      elapsed: How long the round took.
      received: bool, num_workers more, the workers that responded.
      num_answers: Messages that came; on request sums of them at most.
      num_late: Messages for earlier rounds that came, too.
      effective_weights: num_parts more, of the parts in the gradient.
      error: Decoding error over the squared norm of the target.
    """

    elapsed: np.ndarray
    received: np.ndarray
    num_answers: np.ndarray
    num_late: np.ndarray
    effective_weights: np.ndarray
    error: np.ndarray


def simulate(choices: Sequence[Choice], drawn: Drawn) -> list[Rounds]:
    """Simulates rounds of choices.

    Args:
      choices: The choices; only what says what to do is looked at.
      drawn: Finish times for the loads of their codes.
    """
    rounds: list[Any] = [None] * len(choices)
    random = np.random.default_rng(0).random(drawn.times.shape[1:], np.float32)
    times = drawn.times * (1 - np.float32(_TIME_ROUNDING) * random)
    times = np.moveaxis(times, 2, 0)
    for kind, arrays, members in by_program(choices):
        places = np.array([drawn.place(choices[index].code) for index in members])
        found = jax.device_get(_simulate(kind, arrays, places, times))
        for number, index in enumerate(members):
            rounds[index] = Rounds(*(leaf[number] for leaf in found))
    return rounds


def by_program(
    choices: Sequence[Choice],
) -> Iterator[tuple[tuple[Any, Any, str], Any, list[int]]]:
    """Yields choices that share a program.

    Yields:
      What is static of their rule, code and late workers; arrays of rules and codes,
      each with an axis for the choices in front; and the places of the choices.
    """
    groups: dict[Any, list[tuple[Any, int]]] = {}
    for index, choice in enumerate(choices):
        code, num_workers = choice.code, choice.code.num_workers
        if choice.is_exact and code.messages_per_worker == 1:
            # Nobody looks at its weights.
            code = uncoded(num_workers)
        wait, wait_kind = _opened(_shared_rule(choice.wait, num_workers))
        code, code_kind = jax.tree.flatten(_shared_code(code))
        arrays = jax.tree.map(np.asarray, (list(wait), code))
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
        kind = wait_kind, code_kind, choice.late
        groups.setdefault((kind, shapes), []).append((arrays, index))
    for (kind, _), members in groups.items():
        each = [arrays for arrays, _ in members]
        arrays = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        yield kind, arrays, [index for _, index in members]


class _Given(DelayModel):
    """Times that are given as the state."""

    def sample(self, key, state, loads):
        return state, state


@register
@dataclasses.dataclass(frozen=True)
class _First(WaitingRule):
    """Waits for so many workers, so many seconds, or until a code decodes.

    Whatever comes first: `fastest`, `deadline` and `until_decodable` in one program.
    """

    number: Any
    seconds: Any
    until: Any

    def ends(self, times):
        counted = jnp.minimum(jnp.sort(times)[self.number - 1], self.seconds)
        return jnp.minimum(counted, self.until.ends(times))


def _shared_rule(wait: Any, num_workers: int) -> Any:
    """Returns a rule that shares its program with others."""
    if isinstance(wait, (fastest, deadline)):
        never: Any = until_decodable(_shared_code(uncoded(num_workers)))
        never = dataclasses.replace(never, tolerance=-1.0)
        if isinstance(wait, fastest):
            return _First(np.int32(wait.num_required), np.inf, never)
        return _First(np.int32(num_workers), wait.seconds, never)
    if wait.code is None or jax.tree_util.all_leaves([wait]):
        return wait
    code = _shared_code(wait.code)
    wait = dataclasses.replace(wait, code=code)
    if isinstance(code.decoders[0], Group) and code.messages_per_worker == 1:
        return _First(np.int32(num_workers), np.inf, wait)
    return wait


def _shared_code(code: GradientCode) -> GradientCode:
    """Returns a code with its own decoder alone, of a common number of families."""
    decoder = code.choose_decoder()
    if isinstance(decoder, Group):
        groups = np.asarray(decoder.groups)
        missing = max(_NUM_FAMILIES - len(groups), 0)
        # A family that is there twice changes nothing.
        decoder = Group(np.pad(groups, [(0, missing), (0, 0)], mode="edge"))
    elif isinstance(decoder, OneCopy):
        return _padded(code, decoder)
    return dataclasses.replace(code, decoders=(decoder,))


class _AnyCopy(OneCopy):
    """One copy of each part, the first that has arrived: the gradient is the same."""

    def weights(self, matrix, target, mask):
        is_there = mask[..., self.copies]
        first = is_there & (jnp.cumsum(is_there, axis=-1) == 1)
        weights = jnp.zeros(mask.shape).at[..., self.copies].set(first)
        return weights[..., None, :]


def _padded(code: GradientCode, decoder: OneCopy) -> GradientCode:
    """Returns a code of `_MOST_COPIES` copies, some of which never arrive."""
    num_workers, per_worker = code.num_workers, code.messages_per_worker
    copies = np.asarray(decoder.copies)
    more = max(_MOST_COPIES - copies.shape[1], 0)
    slots = per_worker + more * -(-len(copies) // num_workers)
    if slots == per_worker:
        return dataclasses.replace(code, decoders=(_AnyCopy(copies, num_workers),))
    matrix = np.reshape(code.encoding_matrix, (num_workers, per_worker, -1))
    unused = [(0, 0), (0, slots - per_worker)]
    # No worker finishes more parts than there are.
    required = np.pad(code.required_parts, unused, constant_values=len(copies) + 1)
    copies = copies // per_worker * slots + copies % per_worker
    copies = np.pad(copies, [(0, 0), (0, more)], constant_values=slots - 1)
    return dataclasses.replace(
        code,
        encoding_matrix=np.pad(matrix, [*unused, (0, 0)]).reshape(-1, len(copies)),
        required_parts=required,
        messages_per_worker=slots,
        decoders=(_AnyCopy(copies, num_workers),),
    )


def _opened(given: Any) -> tuple[Sequence[Any], Hashable]:
    """Returns the arrays of a delay model or waiting rule, and what is static."""
    if jax.tree_util.all_leaves([given]):
        return (), given
    return jax.tree.flatten(given)


def closed(kind: Any, arrays: Sequence[Any]) -> Any:
    """Returns what was opened."""
    is_tree = isinstance(kind, jax.tree_util.PyTreeDef)
    return kind.unflatten(arrays) if is_tree else kind


@functools.partial(jax.jit, static_argnums=0, compiler_options=_UNOPTIMISED)
def _draw(kind, arrays, keys, loads):
    """Times (runs, rounds, num_workers), of keys (runs, rounds)."""
    delay = closed(kind, arrays)

    def run(keys):
        def step(state, key):
            times, state = delay.sample(key, state, loads)
            return state, times

        return jax.lax.scan(step, delay.init(len(loads)), keys)[1]

    return jax.vmap(run)(keys)


@functools.partial(jax.jit, static_argnums=0)
def _simulate(kind, arrays, places, times):
    """Rounds (choices, runs, rounds) by times (rounds, loads, runs, num_workers)."""
    wait_kind, code_kind, late = kind
    key = jax.random.key(0)

    def of_choice(choice):
        (wait, code), place = choice
        wait, code = closed(wait_kind, wait), code_kind.unflatten(code)
        model = delayed(_Given(), wait, late)

        def round_of(times, remaining):
            state = (times, remaining) if late == BUSY else times
            arrivals, state = model.sample(key, state, jnp.ones_like(times))
            return state[1] if late == BUSY else remaining, arrivals

        def decoded(arrivals):
            decoded = decoding(code, arrivals)
            mask, target = decoded.mask, jnp.asarray(code.target, times.dtype)
            if code.allows_requests:
                mask = mask.reshape(code.num_workers, -1).any(1)
            error = decoded.error / jnp.sum(target**2)
            error = jnp.where(error < rounding(error.dtype) ** 2, 0, error)
            late = 0 if arrivals.late is None else arrivals.late.sum()
            return mask.sum(), late, decoded.effective_weights, error

        def step(remaining, times):
            return jax.vmap(round_of)(times, remaining)

        own = times[:, place]
        arrivals = jax.lax.scan(step, jnp.zeros_like(own[0]), own)[1]
        rounds = jax.vmap(jax.vmap(decoded))(arrivals)
        rounds = arrivals.elapsed, arrivals.received, *rounds
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), rounds)

    return jax.lax.map(of_choice, (arrays, places))
