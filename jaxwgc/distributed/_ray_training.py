"""Training around rounds: optimizer steps, checkpoints, and what is seen of them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _validation
from jaxwgc.aggregate import decode_aggregate
from jaxwgc.distributed._ray_progress import show
from jaxwgc.distributed._ray_rounds import Round
from jaxwgc.distributed._ray_runtime import noticed_interrupts, uninterrupted

if TYPE_CHECKING:
    from jaxwgc.distributed._ray_cluster import RayCluster


class TrainingState(NamedTuple):
    """Where training is, and all that it needs to go on from there.

    Attributes:
      params: a pytree.
      optimizer_state: that of `optax.chain(decode_aggregate(...), optimizer)`; its
        first entry counts the rounds that could not be decoded.
      key: of batches.
      step: how many have been taken.
    """

    params: Any
    optimizer_state: Any
    key: jax.Array
    step: int


class Progress(NamedTuple):
    """What `callback` of `RayCluster.train` sees after a step.

    Attributes:
      state: a `TrainingState`, after the step.
      round: a `Round`, that of the step.
      loss: sum of the losses of the parts before the step; NaN where that of one is
        not known.
    """

    state: TrainingState
    round: Round
    loss: float


def train(
    cluster: "RayCluster",
    compute: Callable[[Any, int, jax.Array], Round],
    optimizer: optax.GradientTransformation,
    params: Any,
    num_steps: int,
    *,
    callback: Callable[[Progress], Any] | None,
    checkpoint: str | Path | None,
    checkpoint_every: int,
    live: bool,
) -> TrainingState:
    """See `RayCluster.train`; `compute(params, step, key)` gives a `Round`."""
    num_steps = _validation.check_int("num_steps", num_steps, minimum=0)
    every = _validation.check_int("checkpoint_every", checkpoint_every, minimum=1)
    if callback is not None:
        _validation.check_callable("callback", callback)
    _validation.check_bool("live", live)
    # A round that must not be used never gets here.
    policy = "skip" if cluster.undecodable == "raise" else cluster.undecodable
    chain = optax.chain(
        decode_aggregate(
            cluster.code,
            undecodable=policy,
            tolerance=cluster.tolerance,
            decoder=cluster.decoder,
            message_dtype=cluster.message_dtype,
        ),
        optimizer,
    )

    @jax.jit
    def update(messages, optimizer_state, params, received, elapsed):
        updates, optimizer_state = chain.update(
            messages, optimizer_state, params, received=received, elapsed=elapsed
        )
        params = optax.apply_updates(params, updates)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
        return params, optimizer_state, jnp.stack(finite).all()

    params = jax.tree.map(jnp.asarray, params)
    state = TrainingState(params, chain.init(params), cluster.key, 0)
    with contextlib.ExitStack() as stack:
        save = None
        if checkpoint is not None:
            state, save = stack.enter_context(_checkpoints(Path(checkpoint), state))
        report = stack.enter_context(show(num_steps, cluster)) if live else None
        check_interrupt = stack.enter_context(noticed_interrupts())
        try:
            while state.step < num_steps:
                check_interrupt()
                found = compute(state.params, state.step, state.key)
                params, optimizer_state, is_finite = update(
                    found.messages,
                    state.optimizer_state,
                    state.params,
                    found.received,
                    np.float32(found.elapsed),
                )
                if not is_finite:
                    raise FloatingPointError(
                        f"step {state.step} gives params that are not finite, from "
                        f"those of a loss of {found.losses.sum():.6g}; training ends "
                        "before it"
                    )
                # In one piece, since Ctrl-C may come at any time.
                state = state._replace(
                    params=params, optimizer_state=optimizer_state, step=state.step + 1
                )
                progress = Progress(state, found, float(found.losses.sum()))
                if callback is not None:
                    callback(progress)
                if report is not None:
                    report(progress)
                if save is not None and state.step % every == 0:
                    save(state)
        finally:
            if save is not None:
                save(state)
    return state


@contextlib.contextmanager
def _checkpoints(
    folder: Path, start: TrainingState
) -> Iterator[tuple[TrainingState, Callable[[TrainingState], None]]]:
    """The newest state in a folder, `start` if there is none, and a function to save.

    A checkpoint appears whole or not at all.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(
            "checkpoint needs Orbax, which is an extra: in a checkout of jaxwgc, "
            "pip install '.[ray]'"
        ) from error

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"checkpoint must be a folder; got the file {folder}")
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(
        folder.absolute(),
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(),
    ) as manager:
        state = start
        newest = manager.latest_step()
        if newest is not None:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(start))
            stored = _by_name(manager.item_metadata(newest))
            try:
                found = manager.restore(
                    newest, args=ocp.args.StandardRestore(_of_workers(like, stored))
                )
            except Exception as error:
                raise ValueError(
                    "checkpoint must be of the same params, optimizer and key; got "
                    f"step {newest} in {folder}, with {_difference(like, stored)}"
                ) from error
            state = _loaded(found, start)

        def save(state: TrainingState) -> None:
            if state.step == manager.latest_step():
                return
            # Orbax does not bear to be interrupted.
            with uninterrupted():
                manager.save(state.step, args=ocp.args.StandardSave(_saved(state)))

        yield state, save


def _saved(state: TrainingState) -> dict[str, Any]:
    """As a checkpoint holds it: a key by its data."""
    if jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        state = state._replace(key=jax.random.key_data(state.key))
    return state._asdict()


# The only leaf whose shape is that of the code: who answered in the last round.
_RECEIVED = "optimizer_state.0.received"


def _of_workers(like: Any, stored: dict[str, Any]) -> Any:
    """`like`, for as many workers as the checkpoint was written with."""
    aggregate, *others = like["optimizer_state"]
    if _RECEIVED in stored:
        received = jax.ShapeDtypeStruct(stored[_RECEIVED].shape, bool)
        aggregate = aggregate._replace(received=received)
    return {**like, "optimizer_state": (aggregate, *others)}


def _difference(like: Any, stored: dict[str, Any]) -> str:
    """The first leaf that is not the same in a checkpoint, in words."""

    def shown(leaf):
        return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"

    expected = _by_name(like)
    # Who answered may differ, and the step is a number.
    names = (expected | stored).keys() - {_RECEIVED, "step"}
    for name in sorted(names, key=lambda own: (not own.startswith("params"), own)):
        before, now = shown(stored.get(name)), shown(expected.get(name))
        if before != now:
            return f"{name} = {before}, and now {now}"
    return "another structure"


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by their path, in which a checkpoint knows names, and no types."""

    def name(key):
        return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", ""))))

    return {
        ".".join(map(name, path)): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _loaded(found: dict[str, Any], start: TrainingState) -> TrainingState:
    state = TrainingState(**found)._replace(step=int(found["step"]))
    aggregate, *others = state.optimizer_state
    received = start.optimizer_state[0].received
    if aggregate.received.shape != received.shape:
        aggregate = aggregate._replace(received=received)
        state = state._replace(optimizer_state=(aggregate, *others))
    if jnp.issubdtype(start.key.dtype, jax.dtypes.prng_key):
        kind = jax.random.key_impl(start.key)
        state = state._replace(key=jax.random.wrap_key_data(state.key, impl=kind))
    return state
