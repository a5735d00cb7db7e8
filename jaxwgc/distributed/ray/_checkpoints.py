"""Checkpoints of training: saving, checksums, and restoring."""

import contextlib
import secrets
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common.leaves import by_name, difference
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._callbacks import TrainingState
from jaxwgc.distributed.ray._errors import line_of
from jaxwgc.distributed.ray._fleet import log
from jaxwgc.distributed.ray._interrupts import uninterrupted
from jaxwgc.distributed.ray._response_limit import ResponseLimit
from jaxwgc.distributed.ray._session import find_extra

# Name of the stored checksum of the code.
_CODE = "code"
# Prefix of the names of leaves that depend on the code: the state of
# `decode_aggregate`.
_OF_CODE = "optimizer_state[0]"
# Name of the stored number of parts. If it has changed, the loss may have changed.
_NUM_PARTS = "num_parts"
# Name of the stored time of the slowest recent response, in seconds. A resumed run
# derives its first timeouts from this time.
_SLOWEST = "slowest_response"
# Name of the stored checksum of all other leaves. The checksum detects damaged bytes,
# which Orbax does not always notice.
_CHECKSUM = "checksum"
# Text that is appended, with a random number, to the folder name of a damaged step.
# Orbax then ignores the folder.
_DAMAGED = ".damaged-"


class DamagedStep(Exception):
    """Raised if a checkpoint cannot be read, or its checksum is wrong."""


class NoCheckpoints(NamedTuple):
    """Substitute for `Checkpoints` if training has no folder; saves nothing.

    Attributes:
      state: State from which training starts.
      run: Identifier of the run.
    """

    state: TrainingState
    run: str

    @property
    def where(self) -> str:
        """Clause for messages: the last state is not saved."""
        return "its state is not saved: pass checkpoint='folder' to continue later"

    def save(self, state: TrainingState) -> None:
        """Does nothing, because there is no folder for checkpoints."""


class Checkpoints:
    """Checkpoints in a folder: restores the newest, and saves further states.

    Each checkpoint is written completely or not at all.

    Attributes:
      state: State of the newest checkpoint; `start` if there is no checkpoint.
      run: Identifier of the run, which is stored in the folder.
    """

    def __init__(
        self,
        folder: Path,
        manager: Any,
        start: TrainingState,
        code: GradientCode,
        limit: ResponseLimit,
        *,
        fallback: bool,
    ):
        self._folder = folder
        self._manager = manager
        self._code = code
        self._limit = limit
        self.state = start
        newest = self._newest_leaves(fallback)
        if newest is not None:
            step, leaves = newest
            self._check_alike(step, leaves, start)
            self._compare_num_parts(step, int(leaves[_NUM_PARTS]))
            limit.resume(float(leaves[_SLOWEST]))
            self.state = _restored(leaves, start, code)
            log.info("training continues from step %d in %s", step, folder)
        self.run = self._run_of_folder()

    @property
    def where(self) -> str:
        """Clause for messages that names the folder of the last state."""
        return f"its state is in {self._folder}"

    def save(self, state: TrainingState) -> None:
        """Saves a state, unless the newest checkpoint is of the same step."""
        if state.step == self._manager.latest_step():
            return
        ocp = find_extra("orbax.checkpoint")
        slowest = np.asarray(self._limit.slowest, np.float32)
        saved = {**_saved(state, self._code), _SLOWEST: slowest}
        saved[_CHECKSUM] = _checksum(saved)
        # Orbax must not be interrupted while it saves, so interrupts are delayed.
        with uninterrupted():
            self._manager.save(state.step, args=ocp.args.StandardSave(saved))

    def _newest_leaves(self, fallback: bool) -> tuple[int, dict[str, Any]] | None:
        """Returns the newest intact step and its arrays by name; None without any step.

        Raises:
          ValueError: If the newest step is damaged, unless `fallback` is True and an
            older step is intact.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                leaves = self._leaves_of(step)
            except DamagedStep as error:
                damaged[step] = str(error)
                continue
            if damaged and not fallback:
                raise ValueError(
                    f"checkpoint must be intact; got {self._described(damaged)}. Pass "
                    f"checkpoint_fallback=True to continue from step {step}, which is "
                    "intact"
                )
            self._set_aside(damaged, step)
            return step, leaves
        if damaged:
            raise ValueError(
                f"checkpoint must be intact; got {self._described(damaged)}, and no "
                "intact step. Pass another folder to start a new run"
            )
        return None

    def _leaves_of(self, step: int) -> dict[str, Any]:
        """Returns the stored arrays of a step by name.

        The shapes may differ from those of the run, because the number of workers may
        have changed.

        Raises:
          DamagedStep: If the step cannot be read, or its checksum is wrong.
        """
        ocp = find_extra("orbax.checkpoint")
        try:
            stored = self._manager.item_metadata(step)
            like = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored
            )
            args = ocp.args.StandardRestore(like)
            leaves = self._manager.restore(step, args=args)
        except Exception as error:
            # Damaged files make Orbax and TensorStore raise exceptions of many classes,
            # so all are caught.
            reason = f"{type(error).__name__}: {line_of(str(error))}"
            raise DamagedStep(reason) from error
        expected = leaves.pop(_CHECKSUM, None)
        if expected is None or _checksum(leaves) != expected:
            raise DamagedStep("its stored checksum differs from that of its arrays")
        return leaves

    def _described(self, damaged: dict[int, str]) -> str:
        """Returns a clause that lists the damaged steps, and why each is damaged."""
        reasons = "; ".join(f"step {step}: {damaged[step]}" for step in damaged)
        return f"damaged steps in {self._folder}: {reasons}"

    def _set_aside(self, damaged: dict[int, str], intact: int) -> None:
        """Renames the folders of damaged steps, and logs where training continues."""
        if not damaged:
            return
        for step in damaged:
            source = self._folder / str(step)
            source.rename(f"{source}{_DAMAGED}{secrets.token_hex(4)}")
        self._manager.reload()
        log.warning(
            "%s. Training continues from step %d; the folders of damaged steps have "
            "%s in their names",
            self._described(damaged),
            intact,
            _DAMAGED,
        )

    def _check_alike(
        self, step: int, leaves: dict[str, Any], start: TrainingState
    ) -> None:
        """Raises ValueError if stored leaves differ from `start` in shape or dtype."""
        now = _lasting(_saved(start, self._code))
        differs = difference(_lasting(leaves), now)
        if differs:
            raise ValueError(
                "checkpoint must fit the params, optimizer and key of this run; in "
                f"step {step} of {self._folder}, {differs}. Pass another folder to "
                "start a new run"
            )

    def _compare_num_parts(self, step: int, num_parts: int) -> None:
        """Warns if a checkpoint was trained with another number of parts."""
        now = self._code.num_parts
        if num_parts != now:
            warnings.warn(
                f"step {step} in {self._folder} was trained with {num_parts} parts, "
                f"and the code now has {now}: the loss now sums parts 0 to {now - 1} "
                f"instead of 0 to {num_parts - 1}. This is the same loss only if the "
                "parts together contain the same data as before. If they do not, use a "
                f"code with num_parts={num_parts}",
                stacklevel=2,
            )

    def _run_of_folder(self) -> str:
        """Returns the run identifier of the folder; creates one if there is none."""
        file = self._folder / "run.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(8))
        return file.read_text()


@contextlib.contextmanager
def open_checkpoints(
    folder: str | Path | None,
    start: TrainingState,
    code: GradientCode,
    limit: ResponseLimit,
    *,
    fallback: bool,
) -> Iterator[Checkpoints | NoCheckpoints]:
    """Yields the `Checkpoints` of a folder, or `NoCheckpoints` if there is no folder.

    Args:
      folder: Path; None for no checkpoints.
      start: State from which training starts if there is no checkpoint.
      code: Gradient code. If it has changed, the stored state of `decode_aggregate` is
        dropped.
      limit: Time limits of workers, which continue from the checkpoint.
      fallback: Whether to continue from the newest intact step if newer ones are
        damaged.

    Raises:
      ValueError: If the newest step is damaged, or is of other params or another
        optimizer or key.
    """
    if folder is None:
        yield NoCheckpoints(start, secrets.token_hex(8))
        return
    ocp = find_extra("orbax.checkpoint")
    folder = Path(folder)
    keep = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    handlers = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(
        folder.absolute(), options=keep, item_handlers=handlers
    ) as manager:
        yield Checkpoints(folder, manager, start, code, limit, fallback=fallback)


def _fields(state: TrainingState) -> dict[str, Any]:
    """Returns the fields of a state by name, with key and step as arrays."""
    return state._asdict() | {
        "key": jax.random.key_data(state.key),
        "step": np.asarray(state.step),
    }


def _saved(state: TrainingState, code: GradientCode) -> dict[str, Any]:
    """Returns the arrays that a checkpoint stores, by name.

    Orbax joins the names of nested nodes by dots, so that `{"a.b": x}` and
    `{"a": {"b": x}}` would have one name. It does not save leaves of size zero, which
    contain nothing to restore.
    """
    leaves = {_CODE: np.asarray(code.checksum, np.uint32)}
    leaves[_NUM_PARTS] = np.asarray(code.num_parts, np.uint32)
    for name, tree in _fields(state).items():
        leaves |= by_name(name, tree)
    return {name: leaf for name, leaf in leaves.items() if np.size(leaf)}


def _checksum(leaves: dict[str, Any]) -> np.ndarray:
    """Computes the CRC-32 of the names, dtypes, shapes and bytes of arrays."""
    checksum = 0
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        header = f"{name} {array.dtype} {array.shape}"
        checksum = zlib.crc32(header.encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return np.asarray(checksum, np.uint32)


def _lasting(leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays whose shapes and dtypes a resumed run must match, by name."""
    changing = (_CODE, _OF_CODE, _NUM_PARTS, _SLOWEST, "step")
    return {
        name: leaf for name, leaf in leaves.items() if not name.startswith(changing)
    }


def _restored(
    leaves: dict[str, Any], start: TrainingState, code: GradientCode
) -> TrainingState:
    """Returns the state from stored arrays, in the structure of `start`.

    If the code has changed, the state of `decode_aggregate` is taken from `start`.
    """
    if leaves[_CODE] != code.checksum:
        leaves = _lasting(leaves) | {"step": leaves["step"]}
    fields = {}
    for field, tree in _fields(start).items():
        arrays = [
            jnp.asarray(leaves.get(name, leaf))
            for name, leaf in by_name(field, tree).items()
        ]
        fields[field] = jax.tree.structure(tree).unflatten(arrays)
    if jnp.issubdtype(start.key.dtype, jax.dtypes.prng_key):
        implementation = jax.random.key_impl(start.key)
        fields["key"] = jax.random.wrap_key_data(fields["key"], impl=implementation)
    fields["step"] = int(fields["step"])
    return TrainingState(**fields)
