"""Simulated rounds of the choices of a plan: few programs, each for many choices."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._bisection import first_time
from jaxwgc._pytrees import register
from jaxwgc._targets import rounding
from jaxwgc.codes import GradientCode, uncoded
from jaxwgc.coding import decoding
from jaxwgc.decoders import Group, OneCopy
from jaxwgc.stragglers import (
    Arrivals,
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
# Families of the groups of uncoded and repetition codes, which are one, and of binary
# codes; copies of a part. With more of them, a code has a program of its own.
_NUM_FAMILIES, _NUM_COPIES = 2, 4
# For what runs for milliseconds and compiles for seconds.
_UNOPTIMISED = {"xla_backend_optimization_level": 0}


class Drawn(NamedTuple):
    """Finish times of clusters side by side, each for some rounds in a row.

    All loads have the same draws, so that choices are compared in pairs.

    Attributes:
      delay: The delay model.
      num_measured: Rounds of the trace that times are drawn from, or infinity.
      has_stalls: Whether times have stalls that the trace does not rule out.
      has_state: Whether the rounds of a cluster depend on each other.
      key: PRNG key.
      loads: (loads, num_workers), the loads that times are drawn for.
      times: float32 (loads, runs, rounds, num_workers).
    """

    delay: DelayModel
    num_measured: float
    has_stalls: bool
    has_state: bool
    key: jax.Array
    loads: np.ndarray
    times: np.ndarray

    @classmethod
    def of(
        cls,
        delay: DelayModel,
        codes: Sequence[GradientCode],
        key: jax.Array,
        shape: tuple[int, int],
        num_measured: float,
        has_stalls: bool,
    ) -> "Drawn":
        """Draws times of `shape` (runs, rounds) for the loads of all codes."""
        loads = np.unique([np.asarray(code.loads) for code in codes], axis=0)
        num_workers = loads.shape[1]
        model = delayed(delay, fastest(num_workers))
        StragglerModel.check("delay", model, loads[0])
        arrays, kind = _opened(delay)
        each = loads.astype(np.float32)
        times = [_draw(kind, shape, arrays, key, own) for own in each]
        times = np.stack(jax.device_get(times))
        is_right, rule = np.all(times >= 0), "give times of at least 0"
        _validation.require(is_right, "delay", rule, times.min())
        has_state = bool(jax.tree.leaves(delay.init(num_workers)))
        return cls(delay, num_measured, has_stalls, has_state, key, loads, times)

    @property
    def num_runs(self) -> int:
        """Returns the number of clusters."""
        return self.times.shape[1]

    def place(self, code: GradientCode) -> int:
        """Returns the place of the loads of a code among `loads`."""
        return int((self.loads == np.asarray(code.loads)).all(1).argmax())


class Rounds(NamedTuple):
    """Rounds of a choice, (runs, rounds), and some with one more axis.

    Attributes:
      elapsed: How long the round took.
      num_answers: Messages that came; on request sums of them at most.
      num_late: Messages for earlier rounds that came, too.
      effective_weights: num_parts more, of the parts in the gradient.
      error: Decoding error over the squared norm of the target.
    """

    elapsed: np.ndarray
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
    random = np.random.default_rng(0).random(drawn.times.shape[1:], np.float32)
    times = drawn.times * (1 - np.float32(_TIME_ROUNDING) * random)
    times = np.moveaxis(times, 2, 0)
    programs = list(by_program(choices))
    given: list[Any] = [
        (kind, arrays, np.array([drawn.place(choices[i].code) for i in members]), times)
        for kind, arrays, members in programs
    ]
    # They compile side by side, and calls find what is compiled.
    lowered = [_simulate.lower(*each) for each in given]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each.compile(), lowered))
    rounds: list[Any] = [None] * len(choices)
    for (_, _, members), each in zip(programs, given):
        found = jax.device_get(_simulate(*each))
        for number, index in enumerate(members):
            rounds[index] = Rounds(*(leaf[:, number].swapaxes(0, 1) for leaf in found))
    return rounds


def by_program(
    choices: Sequence[Choice], are_whole: bool = True
) -> Iterator[tuple[tuple[Any, Any, str], Any, list[int]]]:
    """Yields choices that share a program.

    Args:
      choices: The choices.
      are_whole: Whether `_WholeParts` may stand for codes.

    Yields:
      What is static of their rule, code and late workers; arrays of rules and codes,
      each with an axis for the choices in front; and the places of the choices.
    """
    shared, plain = map(functools.cache, (_shared_code, uncoded))
    groups: dict[Any, list[tuple[Any, int]]] = {}
    for index, choice in enumerate(choices):
        code, no_code = choice.code, plain(choice.code.num_workers)
        if choice.is_exact and code.messages_per_worker == 1 and are_whole:
            # Nobody looks at its weights.
            code = no_code
        wait, wait_kind = _opened(_shared_rule(choice.wait, no_code, shared))
        code, code_kind = _opened(shared(code) if are_whole else code)
        arrays = jax.tree.map(np.asarray, (list(wait), list(code)))
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
@dataclasses.dataclass(frozen=True, eq=False)
class _WholeParts:
    """The copies of each part in a code that decodes the parts that have arrived.

    Attributes:
      workers: int (families, parts, copies), the worker of each copy.
      shares: (families, parts, copies), of its time until the copy is there.
      least: (num_workers,), the share of its time until a worker has an answer.
      target: (parts,).
    """

    workers: Any
    shares: Any
    least: Any
    target: Any

    @classmethod
    def of(cls, code: GradientCode, decoder: Group | OneCopy) -> "_WholeParts":
        """Returns those of a code, with as many families and copies as others have."""
        per_worker = code.messages_per_worker
        held = np.asarray(code.encoding_matrix) != 0
        if isinstance(decoder, OneCopy):
            families, fewest = [held], 1
            shares = code.required_parts / np.asarray(code.parts_per_worker)[:, None]
        else:
            groups, fewest = np.asarray(decoder.groups), _NUM_FAMILIES
            families = [held & (family >= 0)[:, None] for family in groups]
            shares = np.ones((code.num_workers, 1))
        most = max(_NUM_COPIES, *(int(family.sum(0).max()) for family in families))
        # A family or copy that is there twice changes nothing.
        copies = [
            [np.resize(np.flatnonzero(part), most) for part in family.T]
            for family in families
        ]
        missing = max(fewest - len(copies), 0)
        copies = np.pad(np.array(copies, int), [(0, missing), (0, 0), (0, 0)], "edge")
        target = np.asarray(code.target)
        return cls(copies // per_worker, shares.ravel()[copies], shares.min(1), target)

    def ends(self, times: jax.Array) -> jax.Array:
        """Returns when the first copy of each part is there, (families, parts)."""
        return (times[self.workers] * self.shares).min(-1)

    def errors(self, is_there: jax.Array) -> jax.Array:
        """Returns the relative errors (families,) without some of the parts."""
        target = jnp.asarray(self.target, jnp.float32)
        sizes = (target / jnp.linalg.norm(target)) ** 2
        return jnp.sum(jnp.where(is_there, 0, sizes), axis=1)

    def decoded(self, arrivals: Arrivals) -> tuple[jax.Array, ...]:
        """Returns answers, weights and error of the family that loses least."""
        first, ends = arrivals.times * self.least, self.ends(arrivals.times)
        is_first, is_there = (
            (each <= arrivals.elapsed) & jnp.isfinite(each) for each in (first, ends)
        )
        errors = self.errors(is_there)
        best = jnp.argmin(errors)
        weights = jnp.where(is_there[best], jnp.asarray(self.target, ends.dtype), 0)
        return is_first.sum(), weights, errors[best]


@register
@dataclasses.dataclass(frozen=True)
class _First(WaitingRule):
    """Waits for so many workers, so many seconds, or until parts decode.

    Whatever comes first: `fastest`, `deadline` and `until_decodable` in one program.
    """

    number: Any
    seconds: Any
    error: Any
    parts: Any

    def ends(self, times):
        ends = self.parts.ends(times)

        def is_over(now):
            is_enough = jnp.any(self.parts.errors(ends <= now) <= self.error)
            is_enough |= jnp.sum(times <= now) >= self.number
            return is_enough | (now >= self.seconds)

        last = times.max()
        return jnp.minimum(first_time(is_over, last), last)


def _shared_rule(wait: Any, no_code: GradientCode, shared: Callable[..., Any]) -> Any:
    """Returns a rule that shares its program with others."""
    if isinstance(wait, (fastest, deadline)):
        # No error is at most NaN.
        rule = _First(no_code.num_workers, np.inf, np.nan, shared(no_code))
        if isinstance(wait, fastest):
            return dataclasses.replace(rule, number=wait.num_required)
        return dataclasses.replace(rule, seconds=wait.seconds)
    until: Any = until_decodable
    if type(wait) is not type(until(no_code)) or wait.decoder is not None:
        return wait
    code = shared(wait.code)
    if isinstance(code, _WholeParts):
        return _First(no_code.num_workers, np.inf, wait.tolerance**2, code)
    return dataclasses.replace(wait, code=code)


def _shared_code(code: GradientCode) -> Any:
    """Returns a code as copies of whole parts, or else with its own decoder alone."""
    decoder = code.choose_decoder()
    if isinstance(decoder, Group | OneCopy):
        return _WholeParts.of(code, decoder)
    return dataclasses.replace(code, decoders=(decoder,))


def _opened(given: Any) -> tuple[Sequence[Any], Hashable]:
    """Returns the arrays of a delay model, rule or code, and what is static."""
    if jax.tree_util.all_leaves([given]):
        return (), given
    return jax.tree.flatten(given)


def closed(kind: Any, arrays: Sequence[Any]) -> Any:
    """Returns what was opened."""
    is_tree = isinstance(kind, jax.tree_util.PyTreeDef)
    return kind.unflatten(arrays) if is_tree else kind


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=_UNOPTIMISED)
def _draw(kind, shape, arrays, key, loads):
    """Times (*shape, num_workers)."""
    delay = closed(kind, arrays)

    def run(keys):
        def step(state, key):
            times, state = delay.sample(key, state, loads)
            return state, times

        return jax.lax.scan(step, delay.init(len(loads)), keys)[1]

    return jax.vmap(run)(jax.random.split(key, shape))


@functools.partial(jax.jit, static_argnums=0)
def _simulate(kind, arrays, places, times):
    """Rounds (rounds, choices, runs) by times (rounds, loads, runs, num_workers)."""
    wait_kind, code_kind, late = kind
    key = jax.random.key(0)

    def round_of(choice, remaining, times):
        wait, code = closed(wait_kind, choice[0]), closed(code_kind, choice[1])
        model = delayed(_Given(), wait, late)
        state = (times, remaining) if late == BUSY else times
        arrivals, state = model.sample(key, state, jnp.ones_like(times))
        remaining = state[1] if late == BUSY else remaining
        num_late = 0 if arrivals.late is None else arrivals.late.sum()
        if isinstance(code, _WholeParts):
            answers, weights, error = code.decoded(arrivals)
        else:
            decoded = decoding(code, arrivals)
            answers = decoded.mask
            if code.allows_requests:
                answers = answers.reshape(code.num_workers, -1).any(1)
            answers, weights = answers.sum(), decoded.effective_weights
            target = jnp.asarray(code.target, times.dtype)
            error = decoded.error / jnp.sum(target**2)
        error = jnp.where(error < rounding(error.dtype) ** 2, 0, error)
        return remaining, (arrivals.elapsed, answers, num_late, weights, error)

    def step(remaining, times):
        of_runs = jax.vmap(round_of, (None, 0, 0))
        return jax.vmap(of_runs)(arrays, remaining, times[places])

    return jax.lax.scan(step, jnp.zeros_like(times[0][places]), times)[1]
