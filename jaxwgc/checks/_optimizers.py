"""Probes for mistakes with an aggregator in an optax chain: order, state, rounds."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from jaxwgc import coding
from jaxwgc.aggregate import CodedAggregateState
from jaxwgc.checks._finding import flat
from jaxwgc.codes import GradientCode

# Number of updates per measurement, enough for a schedule that starts at zero.
# Gradients grow tenfold per update, so that they exceed any usual clipping threshold.
_NUM_UPDATES = 4
# Number of rounds to simulate, or of steps to run.
_NUM_ROUNDS = 8
# Size of partial gradients relative to their sum. If it is smaller, clipping may have
# no effect. If it is larger, sums in bfloat16 are inaccurate.
_APART = 15.0
# Largest accepted relative difference between updates of rounds with equal decoded
# gradients.
_SHARE = 0.1


class Rounds(NamedTuple):
    """Responses and decoding failures of simulated or observed rounds.

    Attributes:
      received: bool (rounds, num_workers), which workers responded.
      failed: bool (rounds,), which rounds could not be decoded.
    """

    received: np.ndarray
    failed: np.ndarray

    @classmethod
    def observed(cls, code: GradientCode, received: ArrayLike) -> "Rounds":
        """Constructs rounds from masks of the workers that responded."""
        masks = np.atleast_2d(received)
        tolerance = code.choose_decoder().tolerance
        failed = coding.decoding(code, masks).failed(tolerance)
        return cls(received=masks, failed=np.asarray(failed))

    @classmethod
    def between(cls, states: list[optax.OptState]) -> "Rounds":
        """Returns the rounds between successive states of an optimizer."""
        coded_states = [_split(state)[0] for state in states]
        num_undecodable = [int(state.num_undecodable) for state in coded_states]
        return cls(
            received=np.array([state.received for state in coded_states[1:]]),
            failed=np.diff(num_undecodable) > 0,
        )

    def problem(self, code: GradientCode) -> str:
        """Returns a problem as text if at least half of the rounds fail.

        Without a problem, returns an empty string.
        """
        # A code that tolerates no stragglers may be approximate. Then failures are
        # expected in rounds with stragglers.
        is_expected = code.num_stragglers == 0 and self.received.any()
        if self.failed.mean() < 0.5 or is_expected:
            return ""
        counts = self.received.sum(1)
        responses = str(counts.max())
        if counts.min() < counts.max():
            responses = f"{counts.min()} to {responses}"
        return (
            f"{self.failed.sum()} of {len(counts)} rounds cannot be decoded: "
            f"{responses} of {code.num_workers} workers respond, and the code "
            f"tolerates {code.num_stragglers} stragglers. Is the mask inverted? "
            "received and stragglers.fixed are True for workers that respond. "
            "Otherwise the waiting rule ends rounds too early: take "
            f"stragglers.fastest({code.num_workers - code.num_stragglers}), "
            "stragglers.until_decodable(code) or a longer deadline"
        )


def _split(state: optax.OptState) -> tuple[CodedAggregateState, list[Any]]:
    """Returns the aggregator's state, and the leaves of the states that follow it."""

    def is_of_aggregator(node):
        return isinstance(node, CodedAggregateState)

    nodes = jax.tree.leaves(state, is_leaf=is_of_aggregator)
    places = [place for place, node in enumerate(nodes) if is_of_aggregator(node)]
    if len(places) != 1:
        raise ValueError(
            "optimizer must have exactly one jaxwgc.coded_aggregate or "
            f"decode_aggregate; got {len(places)}"
        )
    [place] = places
    return nodes[place], nodes[place + 1 :]


def states_of(
    step: Callable[..., Any], params: Any, state: optax.OptState
) -> list[optax.OptState]:
    """Runs `step` several times; returns all optimizer states, from the first on."""
    copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    # The arguments are copied, because a step may donate them.
    params = copy(params)
    states = [state]
    for _ in range(_NUM_ROUNDS):
        result = step(params, copy(states[-1]))
        if not (isinstance(result, tuple) and len(result) >= 2):
            raise TypeError(
                "step must return (params, state, ...); got "
                f"{jax.tree.structure(result)}"
            )
        params = result[0]
        states.append(copy(result[1]))
    return states


class OptimizerProbe:
    """Runs an optimizer at fixed parameters, to find mistakes in its chain."""

    def __init__(
        self, optimizer: optax.GradientTransformation, code: GradientCode, params: Any
    ) -> None:
        """Raises ValueError unless the optimizer has an aggregator for the code."""
        self._code = code
        self.state = optimizer.init(params)
        coded_state, _ = _split(self.state)
        num_workers = len(coded_state.received)
        if num_workers != code.num_workers:
            raise ValueError(
                "optimizer must have an aggregator for code; got one for "
                f"{num_workers} workers, and a code for {code.num_workers}"
            )
        # Only `coded_aggregate` keeps a key. `decode_aggregate` takes messages as
        # updates, not partial gradients.
        self.simulates = bool(jax.tree.leaves(coded_state.key))

        def update(params, partial_gradients, state, **extra):
            updates = partial_gradients
            if not self.simulates:
                updates = coding.encode(code, partial_gradients)
            return optimizer.update(updates, state, params, **extra)

        # Under `jax.jit`, rounds without responses raise no error.
        self._update = functools.partial(jax.jit(update), params)

    def simulated_rounds(self, partial_gradients: Any) -> Rounds:
        """Simulates several rounds with the optimizer, at fixed parameters."""
        states = [self.state]
        for _ in range(_NUM_ROUNDS):
            states.append(self._update(partial_gradients, states[-1])[1])
        return Rounds.between(states)

    def problem_of_state(
        self, partial_gradients: Any, before: optax.OptState, after: optax.OptState
    ) -> str:
        """Returns a problem as text if a step has kept the old state.

        Without a problem, returns an empty string.
        """
        extra = {}
        if not self.simulates:
            extra["received"] = _split(after)[0].received
        _, expected = self._update(partial_gradients, before, **extra)
        # If an update leaves the state unchanged, an equal state is not a mistake.
        if not _are_equal(before, after) or _are_equal(before, expected):
            return ""
        return (
            "the state is not passed on: step returns it unchanged, so that the same "
            "workers are lost in every step. Return the state from optimizer.update, "
            "and pass it to the next step"
        )

    def problem_of_order(self, gradients: Any) -> str:
        """Returns a problem as text if a transformation comes before the aggregator.

        Without a problem, returns an empty string.
        """
        difference = self.measure_order(gradients)
        if difference <= _SHARE:
            return ""
        return (
            "a transformation before the aggregator acts on each partial gradient: "
            "rounds with equal sums of partial gradients give updates, or later "
            f"states, that differ by {difference:.0%}. Put the aggregator first in "
            "optax.chain; Adam, clipping and weight decay follow it"
        )

    def measure_order(self, gradients: Any) -> float:
        """Measures how much updates depend on more than the sum of partial gradients.

        The result is the largest relative difference between updates of two rounds
        with equal decoded gradients. In one pair of rounds, partial gradients differ,
        but not their weighted sum. In another pair, all are zero, and either all
        workers respond or none: transformations that add to partial gradients, such as
        weight decay, differ there.
        """
        everyone = np.ones(self._code.num_workers, bool)
        weights = np.asarray(coding.decoding(self._code, everyone).effective_weights)
        descending = np.argsort(np.abs(weights))[::-1]
        largest = descending[:2]
        if len(largest) < 2 or not weights[largest].all():
            return 0.0
        near = weights / (weights @ weights)
        apart = np.zeros_like(weights)
        apart[largest] = np.array([_APART + 1, -_APART]) / weights[largest]
        # Entries have a size of at least 1: smaller ones, e.g. of a mean, may not reach
        # the threshold of clipping.
        entries = flat(gradients)
        size = np.linalg.norm(entries) / np.sqrt(len(entries) / len(weights))
        if not 1 < size < np.inf:
            size = 1.0
        # Entries of the sum are random numbers away from zero.
        draw = np.random.default_rng(0)
        total = jax.tree.map(
            lambda leaf: size * draw.uniform(1, 2, leaf.shape[1:]), gradients
        )

        def shared(shares):
            """Divides a total gradient among parts by given shares."""
            return jax.tree.map(
                lambda of_sum, leaf: np.multiply.outer(shares, of_sum).astype(
                    leaf.dtype
                ),
                total,
                gradients,
            )

        zeros = jax.tree.map(np.zeros_like, gradients)
        return max(
            _difference(
                self._followed(shared(near), everyone),
                self._followed(shared(apart), everyone),
            ),
            _difference(
                self._followed(zeros, everyone), self._followed(zeros, ~everyone)
            ),
        )

    def _followed(
        self, partial_gradients: Any, received: np.ndarray
    ) -> list[np.ndarray]:
        """Returns the updates of a few steps, and the final state of the optimizer."""
        seen = []
        state = self.state
        for _ in range(_NUM_UPDATES):
            updates, state = self._update(partial_gradients, state, received=received)
            partial_gradients = jax.tree.map(lambda leaf: 10 * leaf, partial_gradients)
            seen.append(flat(updates))
        # State before the aggregator is left out, because it may depend on each partial
        # gradient.
        _, leaves_behind = _split(state)
        for leaf in leaves_behind:
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                seen.append(flat(leaf))
        return seen


def _difference(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Returns the largest relative difference between two lists of vectors."""
    largest = 0.0
    for vector, other in zip(first, second, strict=True):
        longest = max(np.linalg.norm(vector), np.linalg.norm(other))
        # The relative difference is undefined for zeros and after overflow.
        if longest > 0 and np.isfinite(longest):
            difference = np.linalg.norm(vector - other) / longest
            largest = max(largest, float(difference))
    return largest


def _are_equal(first: Any, second: Any) -> bool:
    """Returns whether all arrays of two pytrees are equal."""
    return jax.tree.all(
        jax.tree.map(lambda leaf, other: np.all(leaf == other), first, second)
    )
