"""Measurements of an optimizer with an aggregator: order, rounds and state."""

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
from jaxwgc.checks._losses import flat, norm
from jaxwgc.checks._measures import OrderMeasures, RoundMeasures
from jaxwgc.codes import GradientCode

# Number of updates. It is enough for a schedule that starts at zero. Gradients grow
# tenfold per update, so that they exceed any usual clipping threshold.
_NUM_UPDATES = 4
# Number of rounds to simulate, or of steps to run.
_NUM_ROUNDS = 8
# Size of partial gradients relative to their sum. Clipping may not show with smaller
# ones. Sums in bfloat16 are inaccurate with larger ones.
_APART = 15.0


class MaskedRounds(NamedTuple):
    """Rounds that were simulated or observed.

    Attributes:
      received: bool (rounds, num_workers).
      failed: bool (rounds,), which rounds could not be decoded.
    """

    received: np.ndarray
    failed: np.ndarray

    @classmethod
    def observed(cls, code: GradientCode, received: ArrayLike) -> "MaskedRounds":
        """Returns observed rounds, given masks, bool ([rounds,] num_workers)."""
        masks = np.atleast_2d(received)
        tolerance = code.choose_decoder().tolerance
        failed = coding.decoding(code, masks).failed(tolerance)
        return cls(received=masks, failed=np.asarray(failed))

    def measure(self, code: GradientCode) -> RoundMeasures:
        """Measures which workers respond, if at least half of the rounds fail."""
        if self.failed.mean() < 0.5:
            return RoundMeasures()
        counts = self.received.sum(1)
        is_constant = counts.max() == 0
        if (self.received == self.received[0]).all():
            others = MaskedRounds.observed(code, ~self.received[:1])
            is_constant |= not others.failed.any()
        return RoundMeasures(
            is_constant=bool(is_constant),
            # An approximate code has no number of responses that is always enough.
            is_early=bool(code.num_stragglers > 0 and not is_constant),
            num_failed=int(self.failed.sum()),
            num_rounds=len(counts),
            num_workers=code.num_workers,
            num_enough=code.num_workers - code.num_stragglers,
            fewest=int(counts.min()),
            most=int(counts.max()),
        )


def _split(state: optax.OptState) -> tuple[CodedAggregateState, list[Any]]:
    """Returns the only aggregator's state in `state`, and the leaves after it."""
    nodes = jax.tree.leaves(state, is_leaf=_is_of_aggregator)
    places = [place for place, node in enumerate(nodes) if _is_of_aggregator(node)]
    if len(places) != 1:
        raise ValueError(
            "optimizer must have one jaxwgc.coded_aggregate or decode_aggregate in it; "
            f"got {len(places)} in its state"
        )
    [place] = places
    return nodes[place], nodes[place + 1 :]


def _is_of_aggregator(node: object) -> bool:
    return isinstance(node, CodedAggregateState)


class OptimizerProbe:
    """An optimizer, to be updated by partial gradients at fixed parameters."""

    def __init__(
        self, optimizer: optax.GradientTransformation, code: GradientCode, params: Any
    ) -> None:
        """Checks that the optimizer has an aggregator for the code."""
        self._code = code
        self.state = optimizer.init(params)
        coded_state, _ = _split(self.state)
        num_workers = len(coded_state.received)
        if num_workers != code.num_workers:
            raise ValueError(
                "optimizer must have an aggregator for code; got one for "
                f"{num_workers} workers"
            )
        # A state without a key is one of `decode_aggregate`, with messages as updates.
        self.simulates = bool(jax.tree.leaves(coded_state.key))

        def update(params, partial_gradients, state, **extra):
            updates = partial_gradients
            if not self.simulates:
                updates = coding.encode(code, partial_gradients)
            return optimizer.update(updates, state, params, **extra)

        # The update is compiled, so that rounds without responses raise no error.
        self.update = functools.partial(jax.jit(update), params)

    def measure(self, gradients: Any) -> OrderMeasures:
        """Measures forbidden dependences of updates.

        `unequal`: On partial gradients other than by their sum. `added`: On the workers
        that respond if all gradients are zero.
        """
        everyone = np.ones(self._code.num_workers, bool)
        weights = np.asarray(coding.decoding(self._code, everyone).effective_weights)
        descending = np.argsort(np.abs(weights))[::-1]
        largest = descending[:2]
        if len(largest) < 2 or not weights[largest].all():
            return OrderMeasures()
        near = weights / (weights @ weights)
        apart = np.zeros_like(weights)
        apart[largest] = np.array([_APART + 1, -_APART]) / weights[largest]
        # The gradient is random, without zeros.
        draw = np.random.default_rng(0)
        zeros = jax.tree.map(np.zeros_like, gradients)
        size = norm(gradients) / np.sqrt(len(flat(gradients)) / len(weights))
        # Small gradients, e.g. of a mean, would not reach the threshold of clipping.
        if not 1 < size < np.inf:
            size = 1.0
        total = jax.tree.map(
            lambda leaf: size * draw.uniform(1, 2, leaf.shape[1:]), gradients
        )

        def shared(weights):
            """Returns the partial gradients `weights[j] * total`."""
            return jax.tree.map(
                lambda sum_of_parts, leaf: np.multiply.outer(
                    weights, sum_of_parts
                ).astype(leaf.dtype),
                total,
                gradients,
            )

        even = self._followed(shared(near), everyone)
        uneven = self._followed(shared(apart), everyone)
        all_respond = self._followed(zeros, everyone)
        none_responds = self._followed(zeros, ~everyone)
        return OrderMeasures(
            unequal=_difference(even, uneven),
            added=_difference(all_respond, none_responds),
        )

    def _followed(
        self, partial_gradients: Any, received: np.ndarray
    ) -> list[np.ndarray]:
        """Returns updates of a few steps, and the final state behind the aggregator."""
        seen = []
        state = self.state
        for _ in range(_NUM_UPDATES):
            updates, state = self.update(partial_gradients, state, received=received)
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


def is_dropped(
    probe: OptimizerProbe,
    partial_gradients: Any,
    before: optax.OptState,
    after: optax.OptState,
) -> bool:
    """Returns whether a step kept the old state instead of the updated one."""
    if probe.simulates:
        # Every simulated round changes the key. An unchanged state was therefore
        # dropped.
        return _are_equal(_split(before)[0], _split(after)[0])
    received = _split(after)[0].received
    expected = probe.update(partial_gradients, before, received=received)[1]
    # If the state of an optimizer never changes, an equal state is not a mistake.
    return _are_equal(before, after) and not _are_equal(before, expected)


def states_of(
    advance: Callable[..., Any], params: Any, state: optax.OptState
) -> list[optax.OptState]:
    """Returns the initial state, and the state after each of several steps."""
    copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    # The arguments are copied, because a step may donate them.
    params = copy(params)
    states = [state]
    for _ in range(_NUM_ROUNDS):
        result = advance(params, copy(states[-1]))
        if not (isinstance(result, tuple) and len(result) >= 2):
            raise TypeError(
                "step must return (params, state, ...); got "
                f"{jax.tree.structure(result)}"
            )
        params = result[0]
        states.append(copy(result[1]))
    return states


def rounds_of(states: list[optax.OptState]) -> MaskedRounds:
    """Returns the rounds between consecutive states."""
    coded_states = [_split(state)[0] for state in states]
    num_undecodable = [int(state.num_undecodable) for state in coded_states]
    return MaskedRounds(
        received=np.array([state.received for state in coded_states[1:]]),
        failed=np.diff(num_undecodable) > 0,
    )


def _are_equal(first: Any, second: Any) -> bool:
    """Returns whether all arrays of two pytrees are equal."""
    return jax.tree.all(
        jax.tree.map(lambda leaf, other: np.all(leaf == other), first, second)
    )
