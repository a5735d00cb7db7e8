"""Simulations of the choices of a plan, with few compiled programs."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import stragglers
from jaxwgc._bisection import first_time
from jaxwgc._pytrees import register
from jaxwgc._targets import ROUNDING
from jaxwgc.aggregate import coded_aggregate
from jaxwgc.codes import GradientCode, uncoded
from jaxwgc.coding import decoding
from jaxwgc.decoders import Group, OneCopy
from jaxwgc.studies._planning._choice import BUSY, Choice
from jaxwgc.studies._planning._convergence import MOVES, StaleDescent
from jaxwgc.studies._simulation._program_arguments import DrawnTimes, as_argument, from_argument

# Longest times that rounds may be simulated with, in float32.
_UNIT_RANGE = (1e-15, 1e15)
# Relative random change of times, so that the order of equal times is random.
_TIME_ROUNDING = 1e-6
# Numbers of families of groups (one for uncoded and repetition codes, two for binary
# codes) and of copies of a part in the shared program. Codes with larger numbers have
# their own program.
_NUM_FAMILIES = 2
_NUM_COPIES = 4
# Number of simulated steps with memory. Later steps shrink the residual at the rate of
# the last half of the simulated steps. Workers that have not responded by then are
# assumed never to respond.
_NUM_STEPS = 200
# Maximum number of random draws of the parts' gradients at the optimum, which are
# orthogonal to each other.
_MOST_DRAWS = 8
# Distance at which descent counts as diverged.
_DIVERGED = 1e3
# Compiler options for programs that run for milliseconds and compile for seconds.
_UNOPTIMISED = {"xla_backend_optimization_level": 0}


class Drawn(NamedTuple):
    """Simulated finish times of independent clusters, for consecutive rounds.

    All loads share random draws, so that choices are compared in pairs.

    Attributes:
      delay: Delay model.
      num_measured: Number of rounds in the trace, or infinity.
      has_stalls: Whether times have stalls that the trace does not rule out.
      has_state: Whether the rounds of a cluster depend on each other.
      key: PRNG key.
      loads: Loads for which times are drawn, (loads, num_workers).
      times: float32 (loads, runs, rounds, num_workers).
    """

    delay: stragglers.DelayModel
    num_measured: float
    has_stalls: bool
    has_state: bool
    key: jax.Array
    loads: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, delay, codes, key, shape, stalls) -> "Drawn":
        """Draws times of `shape` (runs, rounds) for the loads of all codes."""
        num_measured = stalls.num_rounds if stalls else math.inf
        has_stalls = stalls is not None and delay is stalls.delay
        loads = np.unique([np.asarray(code.loads) for code in codes], axis=0)
        each = loads.astype(np.float32)
        times = np.stack([_draw(shape, as_argument(delay), key, own) for own in each])
        if not np.all(times >= 0):
            raise ValueError(
                f"delay must return times of at least 0; got {times.min()}"
            )
        _check_unit(times)
        has_state = bool(jax.tree.leaves(delay.init(loads.shape[1])))
        return cls(delay, num_measured, has_stalls, has_state, key, loads, times)

    @property
    def num_runs(self) -> int:
        """Number of simulated clusters."""
        return self.times.shape[1]

    def place(self, code: GradientCode) -> int:
        """Returns the index of the loads of a code in `loads`."""
        return int((self.loads == np.asarray(code.loads)).all(1).argmax())


def _check_unit(times: np.ndarray) -> None:
    """Raises ValueError if squares of times leave the range of float32."""
    is_finite = np.isfinite(times)
    longest = np.max(times, where=is_finite, initial=0)
    low, high = _UNIT_RANGE
    if is_finite.any() and not (low < longest < high):
        raise ValueError(
            f"the longest time of delay must be between {low:g} and {high:g}; got "
            f"{longest:g}. Choose another unit"
        )


class Rounds(NamedTuple):
    """Simulated rounds of a choice; arrays (runs, rounds), some with one more axis.

    Attributes:
      elapsed: Duration of the round.
      num_answers: Number of received messages; on request, the maximum number of sums.
      num_late: Number of messages of earlier rounds that arrived.
      effective_weights: Weights of the parts in the gradient, (runs, rounds, parts).
      error: Decoding error over the squared norm of the target.
    """

    elapsed: Any
    num_answers: Any
    num_late: Any
    effective_weights: Any
    error: Any


def simulate(choices: Sequence[Choice], unknown: np.ndarray, drawn: Drawn) -> Any:
    """Simulates rounds of choices, and gradient descent of choices with memory.

    Args:
      choices: Choices; only code, rule, late and memory are used.
      unknown: Indices of the choices with simulated rounds.
      drawn: Finish times for the loads of their codes.

    Returns:
      Rounds and descent of each choice, with a row per run; None if not simulated.
    """
    random = np.random.default_rng(0).random(drawn.times.shape[1:], np.float32)
    times = drawn.times * (1 - np.float32(_TIME_ROUNDING) * random)
    times = np.moveaxis(times, 2, 0).astype(jnp.result_type(float))
    rounds: list[Any] = [None] * len(choices)
    descents: list[Any] = [None] * len(choices)
    calls: list[Any] = []
    for late, stacked, members in _by_program(choices, unknown):
        places = np.array([drawn.place(choices[index].code) for index in members])
        calls.append((_simulate, (late, stacked, places, times), rounds, members))
    storing = [index for index, choice in enumerate(choices) if choice.memory]
    for late, stacked, members in _by_program(choices, storing, are_whole=False):
        num_parts = choices[members[0]].code.num_parts
        shape = num_parts, min(num_parts, _MOST_DRAWS)
        draws = np.linalg.qr(np.random.default_rng(0).standard_normal(shape))[0]
        draws *= math.sqrt(num_parts)
        keys = jax.random.split(drawn.key, drawn.num_runs)
        given = late, as_argument(drawn.delay), stacked, draws, keys
        calls.append((_descend, given, descents, members))
    # All programs are lowered first. They then compile in parallel, and the calls below
    # find them in JAX's cache.
    lowered = [program.lower(*given) for program, given, *_ in calls]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each.compile(), lowered))
    for program, given, results, members in calls:
        found = program(*given)
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)
        for index, *own in zip(members, *found, strict=True):
            results[index] = type(found)(*own)
    return rounds, descents


def _by_program(choices, indices, are_whole=True) -> Iterator[Any]:
    """Yields groups of choices that share a compiled program.

    Args:
      choices: All choices.
      indices: Indices of the choices to group.
      are_whole: Whether `_WholeParts` may represent codes.

    Yields:
      What late workers do; rule and code with arrays stacked over choices; and the
      indices of the choices.
    """
    shared, plain = map(functools.cache, (_shared_code, uncoded))
    groups: dict[Any, list[tuple[Any, int]]] = {}
    for index in indices:
        choice = choices[index]
        code = choices[index].code
        no_code = plain(code.num_workers)
        if choice.is_exact and code.messages_per_worker == 1 and are_whole:
            # Exact rounds need no decoding weights, so all exact codes share the
            # program of an uncoded placement.
            code = no_code
        wait = as_argument(_shared_rule(choice.wait, no_code, shared))
        pair = jax.tree.map(np.asarray, (wait, shared(code) if are_whole else code))
        leaves, structure = jax.tree.flatten(pair)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        groups.setdefault((choice.late, structure, shapes), []).append((pair, index))
    for (late, *_), members in groups.items():
        pairs, own = zip(*members)
        yield late, jax.tree.map(lambda *leaves: np.stack(leaves), *pairs), own


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _WholeParts:
    """Copies of each part, for codes that decode every part of which a copy arrived.

    Attributes:
      workers: Worker of each copy, int (families, parts, copies).
      shares: Fraction of the worker's time until the copy is finished,
        (families, parts, copies).
      least: Fraction of each worker's time until it can respond, (num_workers,).
      target: (parts,).
    """

    workers: Any
    shares: Any
    least: Any
    target: Any

    @classmethod
    def of(cls, code: GradientCode, decoder: Group | OneCopy) -> "_WholeParts":
        """Returns the copies of a code's parts, padded to equal numbers of copies."""
        per_worker = code.messages_per_worker
        held = np.asarray(code.encoding_matrix) != 0
        if isinstance(decoder, OneCopy):
            families = [held]
            fewest = 1
            shares = code.required_parts / np.asarray(code.parts_per_worker)[:, None]
        else:
            groups = np.asarray(decoder.groups)
            fewest = _NUM_FAMILIES
            families = [held & (family >= 0)[:, None] for family in groups]
            shares = np.ones((code.num_workers, 1))
        most = max(_NUM_COPIES, *(int(family.sum(0).max()) for family in families))
        # Families and copies are repeated as padding, which has no effect.
        copies = [
            [np.resize(np.flatnonzero(part), most) for part in family.T]
            for family in families
        ]
        missing = max(fewest - len(copies), 0)
        copies = np.pad(np.array(copies, int), [(0, missing), (0, 0), (0, 0)], "edge")
        target = np.asarray(code.target)
        return cls(copies // per_worker, shares.ravel()[copies], shares.min(1), target)

    def ends(self, times: jax.Array) -> jax.Array:
        """Returns when the first copy of each part arrives, (families, parts)."""
        return (times[self.workers] * self.shares).min(-1)

    def errors(self, is_there: jax.Array) -> jax.Array:
        """Returns relative decoding errors (families,) from the parts that arrived."""
        target = jnp.asarray(self.target, jnp.float32)
        sizes = (target / jnp.linalg.norm(target)) ** 2
        return jnp.sum(jnp.where(is_there, 0, sizes), axis=1)

    def decoded(self, arrivals: stragglers.Arrivals) -> tuple[jax.Array, ...]:
        """Returns the number of responses, and the best family's weights and error."""
        first = arrivals.times * self.least
        ends = self.ends(arrivals.times)
        is_first, is_there = (
            (each <= arrivals.elapsed) & jnp.isfinite(each) for each in (first, ends)
        )
        errors = self.errors(is_there)
        best = jnp.argmin(errors)
        weights = jnp.where(is_there[best], jnp.asarray(self.target, ends.dtype), 0)
        return is_first.sum(), weights, errors[best]


@register
@dataclasses.dataclass(frozen=True)
class _First(stragglers.WaitingRule):
    """Waits for a number of workers, a deadline or decoded parts, whichever is first.

    The first event ends the round: this is `fastest`, `deadline` and `until_decodable`
    in one program.
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
    """Converts a waiting rule to one that shares its program with other rules."""
    num_workers = no_code.num_workers
    # A NaN tolerance accepts no error.
    if isinstance(wait, stragglers.fastest):
        return _First(wait.num_required, np.inf, np.nan, shared(no_code))
    if isinstance(wait, stragglers.deadline):
        return _First(num_workers, wait.seconds, np.nan, shared(no_code))
    until: Any = stragglers.until_decodable
    if type(wait) is not type(until(no_code)) or wait.decoder is not None:
        return wait
    code = shared(wait.code)
    if isinstance(code, _WholeParts):
        return _First(num_workers, np.inf, wait.tolerance**2, code)
    return dataclasses.replace(wait, code=code)


def _shared_code(code: GradientCode) -> Any:
    """Converts a code to `_WholeParts` if its decoder allows this."""
    decoder = code.choose_decoder()
    if isinstance(decoder, Group | OneCopy):
        return _WholeParts.of(code, decoder)
    return dataclasses.replace(code, decoders=(decoder,))


@functools.partial(jax.jit, static_argnums=0, compiler_options=_UNOPTIMISED)
def _draw(shape, delay, key, loads):
    """Draws finish times of consecutive rounds, (*shape, num_workers)."""
    delay = from_argument(delay)

    def run(keys):
        def step(state, key):
            times, state = delay.sample(key, state, loads)
            return state, times

        return jax.lax.scan(step, delay.init(len(loads)), keys)[1]

    return jax.vmap(run)(jax.random.split(key, shape))


@functools.partial(jax.jit, static_argnums=0)
def _simulate(late, choices, places, times):
    """Simulates `Rounds` from finish times (rounds, loads, runs, num_workers)."""
    key = jax.random.key(0)

    def round_of(choice, remaining, times):
        wait, code = choice
        model = stragglers.delayed(DrawnTimes(), from_argument(wait), late)
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
            answers = answers.sum()
            weights = decoded.effective_weights
            target = jnp.asarray(code.target, times.dtype)
            error = decoded.error / jnp.sum(target**2)
        error = jnp.where(error < ROUNDING[jnp.finfo(error.dtype).bits] ** 2, 0, error)
        return remaining, Rounds(arrivals.elapsed, answers, num_late, weights, error)

    def step(remaining, times):
        of_runs = jax.vmap(round_of, (None, 0, 0))
        return jax.vmap(of_runs)(choices, remaining, times[places])

    rounds = jax.lax.scan(step, jnp.zeros_like(times[0][places]), times)[1]
    # The axes become choices, runs and rounds.
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), rounds)


@functools.partial(jax.jit, static_argnums=0)
def _descend(late, delay, choices, draws, keys):
    """Simulates descent with memory; results are `StaleDescent` of (choices, runs)."""
    moves = jnp.asarray(MOVES, jnp.result_type(float))[:, None]

    def of_choice(choice):
        wait, code = choice
        model = stragglers.delayed(from_argument(delay), from_argument(wait), late)
        target = jnp.asarray(code.target, moves.dtype)
        parts = draws - target[:, None] * (target @ draws) / (target @ target)
        parts = jnp.pad(parts / jnp.linalg.norm(target), [(0, 0), (1, 0)])

        def run(key):
            aggregate = coded_aggregate(code, model, key, memory=True)
            # A complex message packs two numbers. With stored messages, errors of one
            # number affect the other, so that both are simulated.
            shape = 1 + code.is_complex, len(moves), 1 + draws.shape[1]
            # Column 0 is a distance that starts at one. The other columns start at
            # zero, and are moved by gradients at the optimum.
            start = jnp.zeros(shape).at[..., 0].set(1)

            def step(carry: Any, _: Any):
                place, state = carry
                change: Any
                gradients = moves * place / target.sum() + parts[:, None, None]
                change, state = aggregate.update(gradients, state, place)
                place = jnp.clip(place - change, -_DIVERGED, _DIVERGED)
                squares = jnp.mean(place**2, axis=0)
                unknown = jnp.mean(change[:, 0, 1:] ** 2)
                own = squares[:, 0], squares[:, 1:].mean(1), unknown
                return (place, state), own

            carry = start, aggregate.init(start)
            left, displaced, unknown = jax.lax.scan(step, carry, length=_NUM_STEPS)[1]
            left = jnp.pad(left.T, [(0, 0), (1, 0)], constant_values=1)
            displaced = jnp.pad(displaced.T, [(0, 0), (1, 0)])
            return StaleDescent(left, displaced, unknown[-1])

        return jax.vmap(run)(keys)

    return jax.lax.map(of_choice, choices)
