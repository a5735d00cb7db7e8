"""Comparison of methods on one problem, by loss against time."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.progress import Progress
from jaxwgc.asynchronous._problem import Problem
from jaxwgc.asynchronous._results import Race, place_of
from jaxwgc.asynchronous._rule import AsynchronousRule
from jaxwgc.asynchronous._synchronous import SynchronousCluster, synchronous
from jaxwgc.asynchronous._training import AsynchronousCluster, drawn_times
from jaxwgc.simulation._program_arguments import (
    LIGHTLY_OPTIMIZED,
    as_argument,
    from_argument,
)
from jaxwgc.stragglers import DelayModel

# Number of times that are drawn for each worker under an asynchronous rule. A worker
# with more computations repeats its times.
_NUM_TIMES = 1024
# Number of runs of each step size, with different seeds, to choose the best step size.
_NUM_SEEDS_OF_CHOICE = 3


class _Runs(NamedTuple):
    """Results of several runs of a method, each with a seed and a step size.

    Attributes:
      loss: Total loss, (runs, points).
      distance: Distance to the solution, (runs, points); NaN without one.
      num_updates: Number of updates, (runs,).
      last_given: Last update at which a worker was given new parameters, (runs,).
    """

    loss: jax.Array
    distance: jax.Array
    num_updates: jax.Array
    last_given: jax.Array


def race(
    methods: Mapping[str, AsynchronousRule | synchronous],
    problem: Problem,
    delay: DelayModel,
    key: jax.Array,
    *,
    seconds: float,
    step_sizes: ArrayLike,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    targets: ArrayLike = (0.1, 0.01, 0.001),
    solution: Any = None,
    num_seeds: int = 20,
    num_points: int = 200,
    progress: Callable[[int, int], object] | None = None,
) -> Race:
    """Compares synchronous rounds and asynchronous rules by loss against time.

    All methods have the same loss, parts, first parameters, delay model and seeds. Each
    runs at its best step size, chosen on other seeds: the step size that reaches the
    smallest target first, or the lowest loss if no step size reaches the target.

    Losses are relative: 1 is the total loss at the start, and 0 that of the solution,
    or 0 without one. Workers that do not wait repeat their times after 1,024
    computations. Rounds and rules draw times from the same law, but not the same times.

    Args:
      methods: Names, and rules (e.g. `asynchronous.every_arrival()`) or rounds of a
        code (`asynchronous.synchronous(code, wait)`).
      problem: Loss, parts, first parameters and number of workers.
      delay: Delay model.
      key: PRNG key of either kind.
      seconds: Length of the race, in the unit of the delay model.
      step_sizes: Step sizes to choose from. A method that updates at every arrival
        needs steps about n times as small as one that waits for n workers.
      optimizer: Function of a step size that returns an optimizer, e.g. `optax.adam`.
        Its gradients are estimates of the gradient of the total loss.
      targets: Relative losses whose times are in the table.
      solution: Parameters with the least total loss, like those of the problem.
      num_seeds: Number of runs of each method, at least 2.
      num_points: Number of points of time at which losses are computed.
      progress: Called as `progress(done, total)`. By default, a bar appears after two
        seconds in a terminal, if rich is installed, and in a notebook, if rich and
        ipywidgets are.

    Returns:
      A `Race` with losses, distances, times to targets, a table and a figure.

    Raises:
      ValueError: If methods are empty, a code has other numbers of workers or parts
        than the problem, the delay model returns times that are not positive, the
        solution does not fit or is no better than the start, parameters become infinite
        at every step size of a method, a rule never gives workers new parameters, or a
        number is out of range.
      TypeError: If an argument has the wrong type.

    Example:
      Four workers with parts that differ, one of which is slow:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import asynchronous, codes, stragglers
      >>> problem = asynchronous.Problem(
      ...     loss=lambda params, part: jnp.sum((params - part) ** 2),
      ...     parts=jnp.array([[1.0], [2.0], [3.0], [4.0]]),
      ...     start=jnp.zeros(1),
      ...     num_workers=4,
      ... )
      >>> law = stragglers.shifted_exponential(shift=1.0, rate=5.0)
      >>> results = jaxwgc.race(
      ...     {
      ...         "wait": asynchronous.synchronous(
      ...             codes.uncoded(4), stragglers.fastest(4)
      ...         ),
      ...         "every arrival": asynchronous.every_arrival(),
      ...         "Ringleader": asynchronous.ringleader(),
      ...     },
      ...     problem,
      ...     stragglers.unequal_speeds(law, [1, 1, 1, 0.25]),
      ...     jax.random.key(0),
      ...     seconds=60.0,
      ...     step_sizes=[0.003, 0.01, 0.03, 0.1],
      ...     solution=jnp.full(1, 2.5),
      ... )
      >>> bool(results.times_to(0.01)["Ringleader"].max() < 60)
      True

    References:
      Begunov, Tyurin, "Do we need asynchronous SGD? On the near-optimality of
      synchronous methods", 2026 (arXiv 2602.03802), for the question.
    """
    _check_methods(methods, problem)
    validation.check_instance("delay", delay, DelayModel)
    key = jnp.asarray(array_validation.check_key(key))
    array_validation.check_concrete("key", key, "a race runs on the host")
    array_validation.check_number("seconds", seconds, positive=True, finite=True)
    sizes = array_validation.host_array(
        "step_sizes", step_sizes, "real numbers", num_sizes="any"
    )
    goals = array_validation.host_array(
        "targets", targets, "real numbers", num_targets="any"
    )
    if not (np.all(sizes > 0) and np.all(goals > 0)):
        raise ValueError(
            f"step_sizes and targets must be positive; got {sizes} and {goals}"
        )
    validation.check_callable("optimizer", optimizer)
    num_seeds = validation.check_int("num_seeds", num_seeds, minimum=2)
    num_points = validation.check_int("num_points", num_points, minimum=2)
    key, key_of_choice = jax.random.split(key)
    keys = jax.random.split(key, num_seeds)
    _check_times(delay, key, problem.num_workers)
    times = np.linspace(0, seconds, num_points)
    first, least = _losses_of_start_and_solution(problem, solution)
    num_lanes = max(num_seeds, _NUM_SEEDS_OF_CHOICE * len(sizes))

    def run(method, keys, sizes):
        """Runs a method once for each pair of a key and a step size.

        Pairs are repeated to `num_lanes` runs, so that all calls share one program.
        """
        lanes = np.arange(num_lanes) % len(keys)
        runs = _run(
            as_argument(method),
            as_argument(optimizer),
            as_argument(delay),
            problem,
            solution,
            times,
            keys[lanes],
            sizes[lanes],
        )
        runs = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(keys)], runs)
        return runs._replace(loss=(runs.loss - least) / (first - least))

    def best_step(name, method):
        """Returns the best step size of a method, on seeds apart from the race."""
        seeds = np.arange(_NUM_SEEDS_OF_CHOICE * len(sizes)) % _NUM_SEEDS_OF_CHOICE
        other_keys = jax.random.split(key_of_choice, _NUM_SEEDS_OF_CHOICE)
        runs = run(method, other_keys[seeds], np.repeat(sizes, _NUM_SEEDS_OF_CHOICE))
        losses = runs.loss.reshape(len(sizes), _NUM_SEEDS_OF_CHOICE, num_points)
        return sizes[_best_place(name, sizes, losses, goals.min())]

    chosen = []
    results = []
    with Progress(progress, 2 * len(methods)) as shown:
        for name, method in methods.items():
            chosen.append(best_step(name, method))
            shown.advance()
            results.append(run(method, keys, np.full(num_seeds, chosen[-1])))
            _check_is_given(name, method, results[-1])
            shown.advance()
    return Race(
        methods=tuple(methods),
        seconds=times,
        loss=np.stack([runs.loss for runs in results]),
        distance=np.stack([runs.distance for runs in results]),
        num_updates=np.stack([runs.num_updates for runs in results]),
        step_sizes=np.array(chosen),
        offered_step_sizes=sizes,
        targets=tuple(goals.tolist()),
    )


@functools.partial(jax.jit, compiler_options=LIGHTLY_OPTIMIZED)
def _run(
    method: Any,
    make_optimizer: Any,
    delay: Any,
    problem: Problem,
    solution: Any,
    times: jax.Array,
    keys: jax.Array,
    step_sizes: jax.Array,
) -> _Runs:
    """Runs a method once for each pair of a key and a step size, in one program."""
    method = from_argument(method)
    delay = from_argument(delay)

    def run(key, step_size):
        key_of_delays, key_of_parts = jax.random.split(key)
        optimizer = from_argument(make_optimizer)(step_size)
        if isinstance(method, AsynchronousRule):
            cluster = AsynchronousCluster(
                rule=method,
                problem=problem,
                optimizer=optimizer,
                times=drawn_times(
                    delay, key_of_delays, problem.num_workers, _NUM_TIMES
                ),
                key=key_of_parts,
            )
        else:
            aggregator = method.aggregator(delay, key_of_delays)
            cluster = SynchronousCluster(
                problem=problem,
                optimizer=optax.chain(
                    aggregator,
                    optax.scale(problem.num_parts / problem.num_parts_of_round),
                    optimizer,
                ),
                key=key_of_parts,
            )

        def advance_until(state, time):
            def is_next(state):
                return cluster.next_end(state) <= time

            def following(state):
                return cluster.following(state)

            state = jax.lax.while_loop(is_next, following, state)
            distance = jnp.full((), jnp.nan)
            if solution is not None:
                gaps = optax.tree.sub(state.params, solution)
                distance = optax.tree.norm(gaps)
            return state, (problem.total_loss(state.params), distance)

        state, (losses, distances) = jax.lax.scan(advance_until, cluster.start(), times)
        return _Runs(losses, distances, state.num_updates, jnp.max(state.given_at))

    return jax.vmap(run)(keys, step_sizes)


def _best_place(name: str, sizes: np.ndarray, losses: np.ndarray, target: float) -> int:
    """Returns the index of the step size that reaches a target first.

    If no step size reaches the target, the one with the lowest loss at the end. Losses
    are (step sizes, seeds, points).
    """
    is_finite = np.isfinite(losses).all(axis=(1, 2))
    if not is_finite.any():
        raise ValueError(
            "step_sizes must have a step size at which the losses of "
            f"methods[{name!r}] stay finite; got {sizes.tolist()}. Pass smaller ones"
        )
    places = np.mean(place_of(losses, target), axis=1)
    last = np.mean(losses[..., -1], axis=1)
    order = np.lexsort((last, places, ~is_finite))
    return order[0]


def _check_methods(methods: Any, problem: Any) -> None:
    validation.check_instance("methods", methods, Mapping)
    validation.check_instance("problem", problem, Problem)
    if not methods:
        raise ValueError(f"methods must not be empty; got {methods}")
    for name, method in methods.items():
        if not isinstance(method, AsynchronousRule | synchronous):
            raise TypeError(
                f"methods[{name!r}] must be an asynchronous rule, or "
                "asynchronous.synchronous(code, wait); got "
                f"{validation.in_short(method)}"
            )
        code = getattr(method, "code", None)
        sizes = problem.num_workers, problem.num_parts_of_round
        if code is not None and (code.num_workers, code.num_parts) != sizes:
            raise ValueError(
                f"the code of methods[{name!r}] must have {sizes[0]} workers and "
                f"{sizes[1]} parts, like a round of the problem; got "
                f"{code.num_workers} workers and {code.num_parts} parts"
            )


def _check_times(delay: DelayModel, key: jax.Array, num_workers: int) -> None:
    times = np.asarray(drawn_times(delay, key, num_workers, 8))
    if not np.all(times > 0):
        raise ValueError(
            "delay must draw positive times, and infinity for a worker that does not "
            f"respond; got a time of {times.min()}"
        )


def _losses_of_start_and_solution(
    problem: Problem, solution: Any
) -> tuple[np.float64, np.float64]:
    first = np.float64(problem.total_loss(problem.start))
    if solution is None:
        least = np.float64(0)
    elif jax.tree.map(jnp.shape, solution) != jax.tree.map(jnp.shape, problem.start):
        raise ValueError(
            "solution must have the structure and shapes of problem.start; got "
            f"{validation.in_short(solution)}"
        )
    else:
        least = np.float64(problem.total_loss(solution))
    if not least < first < np.inf:
        raise ValueError(
            "problem.start must have a finite total loss, above the total loss of "
            f"solution (0 if solution is None); got {first} and {least}"
        )
    return first, least


def _check_is_given(name: str, method: Any, runs: _Runs) -> None:
    is_stuck = (runs.num_updates > 0) & (runs.last_given == 0)
    if np.all(is_stuck):
        raise ValueError(
            f"methods[{name!r}] must restart workers with the newest parameters; got "
            f"{runs.num_updates.max()} updates and no restart from {method}. Set "
            "restarts of its decisions, e.g. to arrival.is_worker"
        )
