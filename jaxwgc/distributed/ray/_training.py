"""Training around rounds: optimizer steps, interrupts and live table."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from jaxwgc.distributed.ray._session import find_extra

if TYPE_CHECKING:
    from jaxwgc.distributed.ray._cluster import RayCluster


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
    """Runs steps of training, and returns the state: see `RayCluster.train`.

    `compute(params, step, key)` gives a `Round`, and the optimizer begins with
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
        # Number of steps of this call. Steps before a checkpoint do not count.
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
                    # Mask and weights are arguments, and the code is a constant of
                    # `_update_of`.
                    None if round.decoding is None else round.decoding.mask,
                    None if round.decoding is None else round.decoding.weights,
                    # None unless late messages are stored.
                    round.late,
                    np.float32(round.elapsed),
                )
                loss = float(round.losses.sum())
                if not is_finite:
                    raise FloatingPointError(
                        f"step {state.step} gives params that are not finite, from "
                        f"those of a loss of {loss:.6g}; training ends before it"
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
                    # A callback may write into dicts and lists of its own copy.
                    state=jax.tree.map(lambda leaf: leaf, state),
                    round=round,
                    loss=loss,
                    undecodable=bool(failed),
                )
                if _call_all(callbacks, progress):
                    break
                if state.step % checkpoint_every == 0:
                    checkpoints.save(state)
                # The next round reuses the memory of these messages.
                del round, progress
        finally:
            checkpoints.save(state)
    return state


def _call_all(callbacks: Sequence[Callback], progress: Progress) -> bool:
    """Calls all callbacks, and returns whether one of them ends the training."""
    results = [call(callback, progress) for callback in callbacks]
    # The comparison of an array with "stop" would give an array.
    return any(isinstance(result, str) and result == "stop" for result in results)


def _update_of(
    optimizer: optax.GradientTransformationExtraArgs, code: GradientCode
) -> Callable[..., Any]:
    """Returns a function for one step of the optimizer.

    It returns params, optimizer state, whether params are finite, and whether the round
    could not be decoded.
    """

    @jax.jit
    def update(params, before, messages, received, mask, weights, late, elapsed):
        if weights is not None:
            # The code is a constant of the program, because a NumPy code would lose
            # precision as an argument.
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
    """Returns the count of the aggregator, which comes first in the chain."""
    return optimizer_state[0].num_undecodable


@contextlib.contextmanager
def live_table(
    num_steps: int, cluster: "RayCluster"
) -> Iterator[list[Callable[[Progress], None]]]:
    """Shows a row for each worker in the terminal; yields the callbacks for training.

    Before the first step, it shows how many workers are ready. From step 8 on, it shows
    a straggler report, and a new one whenever the number of steps has doubled.
    """
    display = find_extra("rich.live").Live
    new_table = find_extra("rich.table").Table
    start = time.monotonic()
    steps = 0
    num_workers = cluster.code.num_workers
    num_missed = np.zeros(num_workers)
    table = None
    report = None

    def shown() -> Any:
        if table is not None:
            return table
        num_ready = sum(bool(slot.node) for slot in cluster.workers)
        return f"{num_ready} of {num_workers} workers are ready"

    with display(get_renderable=shown, refresh_per_second=4):

        def show(progress: Progress) -> None:
            nonlocal num_missed, steps, table, report
            metrics = progress.metrics()
            steps = steps + 1
            num_missed = num_missed + ~progress.round.received
            seconds_per_step = (time.monotonic() - start) / steps
            title = (
                f"step {progress.state.step} of {num_steps}: loss {progress.loss:.6g}, "
                f"{seconds_per_step:.3g} s a step"
            )
            is_power_of_two = steps.bit_count() == 1
            if steps >= 8 and is_power_of_two:
                # `report` raises an error if, for example, there are no times. Training
                # then continues without a report.
                with contextlib.suppress(ValueError):
                    report = cluster.report()
            new = new_table(
                "worker",
                "straggled",
                "last response",
                "slowdown",
                "kind",
                "trouble",
                caption=None if report is None else report.advice,
            )
            new.title = title
            new.title_justify = "left"
            for worker, slot in enumerate(cluster.workers):
                seconds = metrics[f"worker/{worker}/seconds"]
                slowdown = ""
                kind_of_worker = ""
                if report is not None:
                    slowdown = f"{report.slowdown[worker]:.2f}"
                    kind_of_worker = report.kind_texts[worker]
                new.add_row(
                    str(worker),
                    f"{num_missed[worker] / steps:.1%}",
                    f"{seconds:.3f} s" if seconds >= 0 else "none",
                    slowdown,
                    kind_of_worker,
                    slot.trouble,
                )
            table = new

        yield [show]
