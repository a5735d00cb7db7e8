"""Checks of an optimizer with an aggregator: its order, its rounds and its state."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import coding
from jaxwgc.aggregate import CodedAggregateState
from jaxwgc.checks._losses import flat
from jaxwgc.codes import GradientCode

# Enough for a schedule that starts at zero, or gradients that are accumulated.
_NUM_UPDATES = 4
# Of what an update may depend on things that it should not, relative.
_SHARE = 0.1


def aggregator_state(state: Any) -> CodedAggregateState:
    """The state of the one aggregator in that of an optimizer."""
    is_one = lambda node: isinstance(node, CodedAggregateState)  # noqa: E731
    states = [node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node)]
    if len(states) != 1:
        raise ValueError(
            "optimizer must have one jaxwgc.coded_aggregate or decode_aggregate in "
            f"it; got a state with {len(states)}: {jax.tree.structure(state)}"
        )
    return states[0]


class OptimizerProbe:
    """An optimizer that can be updated, at fixed parameters, by partial gradients."""

    def __init__(
        self, optimizer: optax.GradientTransformation, code: GradientCode, params: Any
    ) -> None:
        """The optimizer must have an aggregator for the code."""
        self._code = code
        self.state = optimizer.init(params)
        coded_state = aggregator_state(self.state)
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

    def order_problems(self, gradient: Any) -> list[str]:
        """Reports transformations that stand before the aggregator."""
        everyone = np.ones(self._code.num_workers, bool)
        weights = np.asarray(coding.effective_weights(self._code, everyone), np.float64)
        largest = np.argsort(np.abs(weights))[::-1]
        if len(weights) < 2 or not weights[largest[1]]:
            return []
        # Weighted, both sum up to the gradient.
        alike = weights / np.vdot(weights, weights)
        apart = np.zeros(len(weights))
        apart[largest[:2]] = [2, -1] / weights[largest[:2]]
        sums = [self._total(gradient, mask, everyone) for mask in (alike, apart)]
        problems = []
        if _difference(*sums) > _SHARE:
            problems.append(
                "something before the aggregator changes partial gradients one by one: "
                "two sets of them with the same sum give updates that differ by "
                f"{_difference(*sums):.0%}. Adam, clipping and the like see the "
                "gradient of each part there: in optax.chain the aggregator goes first"
            )
        nothing = np.zeros(len(weights))
        with_all = self._total(gradient, nothing, everyone)
        with_none = self._total(gradient, nothing, ~everyone)
        if _difference(with_all, with_none) > _SHARE:
            problems.append(
                "something before the aggregator adds to partial gradients: where all "
                "are zero, updates have a norm of "
                f"{np.linalg.norm(with_all):.3g} if all workers answer and of "
                f"{np.linalg.norm(with_none):.3g} if none does. A weight decay there "
                f"is counted {weights.sum():.3g} times, once a part: in optax.chain "
                "the aggregator goes first"
            )
        return problems

    def _total(self, gradient, shares, received):
        """The sum of a few updates, flat, by parts with shares of a gradient."""

        def spread(leaf):
            return jnp.stack([leaf * share for share in shares]).astype(leaf.dtype)

        partial_gradients = jax.tree.map(spread, gradient)
        total, state = np.zeros(()), self.state
        for _ in range(_NUM_UPDATES):
            updates, state = self.update(partial_gradients, state, received=received)
            total = total + flat(updates)
        return total


def state_problem(
    probe: OptimizerProbe, partial_gradients: Any, before: Any, after: Any
) -> str | None:
    """A step that gives back the state that it was given."""
    if probe.simulates:
        # Every simulated round has a key of its own.
        before, after = aggregator_state(before), aggregator_state(after)
    if not _are_equal(before, after):
        return None
    if not probe.simulates:
        received = aggregator_state(after).received
        expected = probe.update(partial_gradients, before, received=received)[1]
        if _are_equal(before, expected):
            # There is nothing to carry.
            return None
    return (
        "the state is not carried: step gives back the state of the aggregator as it "
        "was given, so that every step loses the same workers, counts of rounds and "
        "moments of optimizers stay where they are. Return the state that "
        "optimizer.update gives, and hand it to the next step"
    )


def states_of(
    advance: Callable[[Any, Any], Any], params: Any, state: Any, num_rounds: int
) -> list[Any]:
    """The state, and those after so many times `advance(params, state)`."""
    copy = functools.partial(jax.tree.map, lambda leaf: jnp.array(leaf, copy=True))
    # Copies, since a step may donate what it is given.
    params, states = copy(params), [state]
    for _ in range(num_rounds):
        params, state = advance(params, copy(states[-1]))
        states.append(copy(state))
    return states


def rounds_of(states: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs rounds; returns who answered, which were not decoded, and their times."""
    coded_states = [aggregator_state(state) for state in states]
    return (
        np.array([state.received for state in coded_states[1:]]),
        np.diff([int(state.num_undecodable) for state in coded_states]) > 0,
        np.diff([float(state.elapsed) for state in coded_states]),
    )


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    """Relative to the longer one; 0 where they are no vectors of numbers."""
    longest = max(np.linalg.norm(first), np.linalg.norm(second))
    if not (longest > 0 and np.isfinite(longest)):
        return 0.0
    return float(np.linalg.norm(first - second) / longest)


def _are_equal(first: Any, second: Any) -> bool:
    def data_of(leaf):
        dtype = getattr(leaf, "dtype", None)
        is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(data_of(one), data_of(two)) for one, two in pairs)
