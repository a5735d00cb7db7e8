"""Training loop: rounds, optimizer steps, callbacks and checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc.codes import GradientCode
from jaxwgc.coding import Decoding
from jaxwgc.distributed.ray._callbacks import (
    Callback,
    Progress,
    TrainingState,
    begin,
    call,
)
from jaxwgc.distributed.ray._checkpoints import open_checkpoints
from jaxwgc.distributed.ray._fleet import log
from jaxwgc.distributed.ray._interrupts import noticed_interrupts
from jaxwgc.distributed.ray._messages import Round
from jaxwgc.distributed.ray._response_limit import ResponseLimit


def train(
    compute: Callable[[Any, int, jax.Array], Round],
    code: GradientCode,
    optimizer: optax.GradientTransformationExtraArgs,
    state: TrainingState,
    num_steps: int,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
    *,
    checkpoint_fallback: bool = False,
    limit: ResponseLimit,
) -> TrainingState:
    """Trains until `num_steps` steps are done or a callback stops; returns the state.

    `compute(params, step, key)` returns a `Round`, and the optimizer begins with
    `jaxwgc.decode_aggregate`. Training starts at `state`, unless there is a checkpoint.
    `limit` is saved in checkpoints.
    """
    update = _update_of(optimizer, code)
    with (
        open_checkpoints(
            checkpoint, state, code, limit, fallback=checkpoint_fallback
        ) as checkpoints,
        noticed_interrupts() as check_interrupt,
    ):
        state = checkpoints.state
        callbacks = begin(callbacks, checkpoints.run, state.step)
        # Number of steps in this call. Steps before the restored checkpoint do not
        # count.
        num_done = 0
        try:
            while state.step < num_steps:
                check_interrupt()
                round = compute(state.params, state.step, state.key)
                if num_done == 0:
                    log.info("compiling the optimizer step")
                params, optimizer_state, is_finite, failed = update(
                    state.params,
                    state.optimizer_state,
                    round.messages,
                    round.received,
                    # Mask and weights are arguments, so that `update` is compiled once
                    # for all masks.
                    None if round.decoding is None else round.decoding.mask,
                    None if round.decoding is None else round.decoding.weights,
                    # Mask of workers with late messages; None unless they are stored.
                    round.late,
                    np.float32(round.elapsed),
                )
                loss = float(round.losses.sum())
                if not is_finite:
                    raise FloatingPointError(
                        f"step {state.step} gives params that are not finite; the loss "
                        f"before the step is {loss:.6g}. Training ends with the params "
                        "before the step: try a smaller step size"
                    )
                # Ctrl-C may come at any time, so one assignment replaces the whole
                # state.
                state = TrainingState(
                    params=params,
                    optimizer_state=optimizer_state,
                    key=state.key,
                    step=state.step + 1,
                )
                if num_done == 0:
                    log.info("step %d is done: loss %.6g", state.step - 1, loss)
                num_done += 1
                progress = Progress(
                    # Callbacks get a copy, because they may change its dicts and lists.
                    state=jax.tree.map(lambda leaf: leaf, state),
                    round=round,
                    loss=loss,
                    undecodable=bool(failed),
                )
                if _call_all(callbacks, progress):
                    break
                if state.step % checkpoint_every == 0:
                    checkpoints.save(state)
                # Without references, the memory of these messages is free for the next
                # round.
                del round, progress
        except KeyboardInterrupt:
            checkpoints.save(state)
            # The first traceback is suppressed, because the place where Ctrl-C came
            # does not help the user.
            raise KeyboardInterrupt(
                f"training ended after step {state.step}; {checkpoints.where}"
            ) from None
        finally:
            checkpoints.save(state)
    return state


def _call_all(callbacks: Sequence[Callback], progress: Progress) -> bool:
    """Calls all callbacks; returns whether training should end."""
    results = [call(callback, progress) for callback in callbacks]
    # The type is checked first, because a comparison of an array with "stop" may return
    # an array.
    return any(isinstance(result, str) and result == "stop" for result in results)


def _update_of(
    optimizer: optax.GradientTransformationExtraArgs, code: GradientCode
) -> Callable[..., Any]:
    """Returns a compiled function for one step of the optimizer.

    This function returns params, optimizer state, whether params are finite, and
    whether the round could not be decoded.
    """

    @jax.jit
    def update(params, before, messages, received, mask, weights, late, elapsed):
        if weights is not None:
            # The code is a constant of the compiled function. As an argument, the
            # float64 matrix of a NumPy code could be rounded to float32.
            received = Decoding(code=code, mask=mask, weights=weights)
        updates, after = optimizer.update(
            messages, before, params, received=received, late=late, elapsed=elapsed
        )
        params = optax.apply_updates(params, updates)
        are_finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
        is_finite = jnp.stack(are_finite).all()
        failed = _num_undecodable(after) > _num_undecodable(before)
        return params, after, is_finite, failed

    return update


def _num_undecodable(optimizer_state: Any) -> jax.Array:
    """Returns the number of undecodable rounds from the aggregator's state."""
    return optimizer_state[0].num_undecodable
