"""Measurements of an optimizer with an aggregator: its order, rounds and state."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import coding
from jaxwgc.aggregate import CodedAggregateState
from jaxwgc.checks._losses import flat, norm
from jaxwgc.checks._rounds import Rounds
from jaxwgc.codes import GradientCode

# Number of updates: enough for a schedule that starts at zero. Each has gradients ten
# times as large as the one before, so that clipping of large ones alone shows.
_NUM_UPDATES = 4
# Size of partial gradients over that of their sum: clipping may not show with less, and
# sums of bfloat16 round with more.
_APART = 15.0


def _split(state: Any) -> tuple[CodedAggregateState, list[Any]]:
    """Returns the state of the one aggregator of an optimizer, and leaves behind it."""
    is_one = lambda node: isinstance(node, CodedAggregateState)  # noqa: E731
    nodes = jax.tree.leaves(state, is_leaf=is_one)
    places = [place for place, node in enumerate(nodes) if is_one(node)]
    if len(places) != 1:
        raise ValueError(
            "optimizer must have one jaxwgc.coded_aggregate or decode_aggregate in "
            f"it; got a state with {len(places)}: {jax.tree.structure(state)}"
        )
    return nodes[places[0]], nodes[places[0] + 1 :]


class OptimizerProbe:
    """An optimizer that can be updated, at fixed parameters, by partial gradients."""

    def __init__(
        self, optimizer: optax.GradientTransformation, code: GradientCode, params: Any
    ) -> None:
        """The optimizer must have an aggregator for the code."""
        self._code = code
        self.state = optimizer.init(params)
        coded_state, _ = _split(self.state)
        if coded_state.received.shape != (code.num_workers,):
            raise ValueError(
                "optimizer must have an aggregator for code; got one for "
                f"{coded_state.received.shape[0]} workers, and {code}"
            )
        # decode_aggregate has no key, and takes messages.
        self.simulates = bool(jax.tree.leaves(coded_state.key))

        def update(params, partial_gradients, state, **extra):
            updates = partial_gradients
            if not self.simulates:
                updates = coding.encode(code, partial_gradients)
            return optimizer.update(updates, state, params, **extra)

        # Compiled, so that nothing is raised in a round without answers.
        self.update = functools.partial(jax.jit(update), params)

    def measure(self, gradients: Any, rounds: list[Rounds]) -> dict[str, float]:
        """Measures how updates depend on what they should not depend on.

        `unequal`: on partial gradients besides their sum; `added`: on the workers that
        respond if all gradients are zero; `leaked`: movement of parameters without a
        gradient in a round that does not decode, over that of others.
        """
        draw = np.random.default_rng(0).uniform
        everyone = np.ones(self._code.num_workers, bool)
        weights = np.asarray(coding.effective_weights(self._code, everyone))
        is_still = flat(jax.tree.map(lambda leaf: ~leaf.any(0), gradients)) != 0
        size = norm(gradients) / np.sqrt(len(is_still))

        def drawn(leaf):
            numbers = draw(-size, size, leaf.shape[1:])
            return jnp.asarray(numbers + np.sign(numbers) * size, leaf.dtype)

        # Random, and without zeros.
        total = jax.tree.map(drawn, gradients)

        @jax.vmap
        def shared(share):
            return jax.tree.map(lambda leaf: (share * leaf).astype(leaf.dtype), total)

        zeros = jax.tree.map(jnp.zeros_like, gradients)
        measured = {"unequal": 0.0, "added": 0.0, "leaked": 0.0}
        largest = np.argsort(np.abs(weights))[:-3:-1]
        if len(largest) == 2 and weights[largest].all():
            apart = np.zeros_like(weights)
            apart[largest] = np.array([_APART + 1, -_APART]) / weights[largest]
            measured["unequal"] = _difference(
                self._followed(shared(weights / (weights @ weights)), everyone),
                self._followed(shared(apart), everyone),
            )
            measured["added"] = _difference(
                self._followed(zeros, everyone), self._followed(zeros, ~everyone)
            )
        lost = [mask for one in rounds for mask in one.received[one.failed]]
        if lost and is_still.any() and not is_still.all():
            moved, unmoved = (
                sum(self._followed(each, lost[0])[:_NUM_UPDATES])
                for each in (gradients, zeros)
            )
            far = np.abs(moved - unmoved)
            measured["leaked"] = far[is_still].max() / max(far[~is_still].max(), 1e-300)
        return measured

    def _followed(self, partial_gradients, received):
        """Returns the updates of a few steps, and the state behind the aggregator."""
        seen, state = [], self.state
        for _ in range(_NUM_UPDATES):
            updates, state = self.update(partial_gradients, state, received=received)
            partial_gradients = jax.tree.map(lambda leaf: 10 * leaf, partial_gradients)
            seen.append(flat(updates))
        # What lies before the aggregator may depend on each partial gradient.
        behind = (
            leaf for leaf in _split(state)[1] if jnp.issubdtype(leaf.dtype, jnp.inexact)
        )
        return seen + [*map(flat, behind)]


def _difference(first, second):
    """Returns the largest relative difference of two such results."""
    largest = 0.0
    for one, two in zip(first, second, strict=True):
        longest = max(np.linalg.norm(one), np.linalg.norm(two))
        # Zeros and overflow have none.
        if longest > 0 and np.isfinite(longest):
            largest = max(largest, float(np.linalg.norm(one - two) / longest))
    return largest


def is_dropped(
    probe: OptimizerProbe, partial_gradients: Any, before: Any, after: Any
) -> bool:
    """Returns whether a step gives back the state that it was given."""
    if probe.simulates:
        # Every simulated round has a key of its own.
        return _are_equal(_split(before)[0], _split(after)[0])
    received = _split(after)[0].received
    expected = probe.update(partial_gradients, before, received=received)[1]
    # Some optimizers have nothing to carry.
    return _are_equal(before, after) and not _are_equal(before, expected)


def states_of(
    advance: Callable[[Any, Any], Any], params: Any, state: Any, num_rounds: int
) -> list[Any]:
    """Returns the state, and those after each of some steps of `advance`."""
    copy = functools.partial(jax.tree.map, lambda leaf: jnp.array(leaf, copy=True))
    # Copies, since a step may donate what it is given.
    params, states = copy(params), [state]
    for _ in range(num_rounds):
        result = advance(params, copy(states[-1]))
        if not (isinstance(result, tuple) and len(result) >= 2):
            raise TypeError(
                "step must return (params, state, ...); got "
                f"{jax.tree.structure(result)}"
            )
        params = result[0]
        states.append(copy(result[1]))
    return states


def rounds_of(states: list[Any]) -> Rounds:
    """Returns the rounds between states."""
    coded_states = [_split(state)[0] for state in states]
    return Rounds(
        np.array([state.received for state in coded_states[1:]]),
        np.diff([int(state.num_undecodable) for state in coded_states]) > 0,
        np.diff([float(state.elapsed) for state in coded_states]),
    )


def _are_equal(first: Any, second: Any) -> bool:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(bool(jnp.all(one == two)) for one, two in pairs)
