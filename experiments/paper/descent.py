"""Gradient descent on the paper's simulated cluster.

In every iteration, as many random workers straggle as the code tolerates, and the
gradient is decoded from the messages of the others.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxwgc

# The paper's cluster: n = 50 workers, k = 20 parts and d = 30 copies, so w = 12 parts
# per worker and s = 29 stragglers.
CODE = jaxwgc.codes.reed_solomon(num_workers=50, num_parts=20, copies=30)
STRAGGLERS = jaxwgc.stragglers.uniform(CODE.num_stragglers)


# Sum over a part, `loss(params, part)`, of trees of arrays.
Loss = Callable[[Any, Any], jax.Array]


class Descent(NamedTuple):
    """End of gradient descent: parameters, iterations, norm of the gradient."""

    params: Any
    iterations: jax.Array
    gradient_norm: jax.Array


def descend(
    key: jax.Array,
    loss: Loss,
    params: Any,
    parts: Any,
    weights: jax.Array,
    step_size: jax.Array | float,
    stop_norm: jax.Array | float,
    max_iterations: int,
) -> Descent:
    """Descends until the decoded gradient is shorter than `stop_norm`.

    Iterations count the steps taken. `loss(params, part)` is the sum over a part, and
    `weights` multiply the gradients of the parts.
    """
    initial, step = _stepper(key, loss, parts, weights, step_size)

    def go_on(carry):
        _, _, norm, iterations = carry
        return (norm >= stop_norm) & (iterations < max_iterations)

    def one_iteration(carry):
        params, state, _, iterations = carry
        new_params, state, norm = step(params, state)
        # The step that finds a short gradient is not taken.
        is_done = norm < stop_norm
        choose = functools.partial(jnp.where, is_done)
        params = jax.tree.map(choose, params, new_params)
        iterations = jnp.where(is_done, iterations, iterations + 1)
        return params, state, norm, iterations

    infinite = jnp.full((), jnp.inf, jax.tree.leaves(params)[0].dtype)
    start = (params, initial(params), infinite, jnp.zeros((), jnp.int32))
    params, _, norm, iterations = jax.lax.while_loop(go_on, one_iteration, start)
    return Descent(params, iterations, norm)


def gradient_norms(
    key: jax.Array,
    loss: Loss,
    params: Any,
    parts: Any,
    weights: jax.Array,
    step_size: jax.Array | float,
    num_iterations: int,
) -> jax.Array:
    """Returns the norm of the decoded gradient at every iteration, without a stop."""
    initial, step = _stepper(key, loss, parts, weights, step_size)

    def one_iteration(carry, _):
        params, state = carry
        params, state, norm = step(params, state)
        return (params, state), norm

    start = (params, initial(params))
    _, norms = jax.lax.scan(one_iteration, start, length=num_iterations)
    return norms


def _stepper(
    key: jax.Array,
    loss: Loss,
    parts: Any,
    weights: jax.Array,
    step_size: jax.Array | float,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns `init` and `step` of a coded optimizer step."""
    code = jaxwgc.weighted(CODE, weights)
    aggregate = jaxwgc.coded_aggregate(code, STRAGGLERS, key)
    partial_gradients = jaxwgc.partial_value_and_grad(loss)

    def step(params, state):
        _, gradients = partial_gradients(params, parts)
        gradient, state = aggregate.update(gradients, state, params)
        updates = jax.tree.map(lambda leaf: -step_size * leaf, gradient)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    return aggregate.init, step
