"""Data sources of a worker: parts in memory, or batches that are read in each step."""

import abc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation
from jaxwgc._common.leaves import by_name, difference
from jaxwgc.distributed._placement import check_alike, signature
from jaxwgc.distributed.ray._errors import BatchError, BatchValueError
from jaxwgc.distributed.ray._messages import ArrayPool, sent

# Kinds of entries that arrays of parts and batches may have.
_KINDS = "numbers, bools or keys"


class DataSource(abc.ABC):
    """Base class of data sources of a worker, indexed by step and group of parts.

    If groups are stacked, leaves of a group are (num_parts_of_group, ...). Otherwise a
    group is one part.

    Attributes:
      signature: Structure, shapes and dtypes of the data of one part.
      origin: Name of the part or batch that has this signature, for messages.
    """

    signature: str
    origin: str

    @abc.abstractmethod
    def of_step(self, step: int, group: int) -> Any:
        """Returns the data of a group of parts in a step."""

    @abc.abstractmethod
    def expect(self, groups_of_steps: Sequence[tuple[int, int]]) -> None:
        """Announces which data are needed next, so that they can be read ahead."""


class StoredParts(DataSource):
    """Data source of parts that stay in memory for all steps.

    Args:
      parts: Parts of the worker, as they are sent.
      is_stacked: Whether all parts are one group, or each part is one.
      origin: Name of the first part, for messages.
    """

    def __init__(self, parts: list[Any], *, is_stacked: bool, origin: str = "parts"):
        if is_stacked:
            self._groups = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)]
        else:
            self._groups = [jax.tree.map(jnp.asarray, part) for part in parts]
        self.signature = signature(parts[0])
        self.origin = origin

    def of_step(self, step: int, group: int) -> Any:
        """Returns the parts of a group, which do not depend on the step."""
        return self._groups[group]

    def expect(self, groups_of_steps: Sequence[tuple[int, int]]) -> None:
        """Does nothing, since parts are in memory."""


def load_parts(load: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
    """Returns loaded parts; raises ValueError if two differ in shapes or dtypes.

    Raises:
      RuntimeError: If a part cannot be loaded.
      ValueError: If two parts differ in structure, shapes or dtypes.
    """
    parts = []
    for index in indices:
        try:
            part = load(index)
            array_validation.check_dtypes(f"part {index}", part, _KINDS)
            array_validation.check_integers_are_kept(f"part {index}", part)
            parts.append(sent(part))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"loading part {index} failed: {why}") from error
    check_alike(parts)
    return parts


class HostBatches(DataSource):
    """Data source that reads batches of a Python function ahead, in a thread.

    Arrays are copied when they are read, so that `batches` may return views of a file,
    or arrays that it changes later. Batches of earlier steps are not kept. At most one
    thread at a time calls `batches`.

    Args:
      batches: `batches(step, part)`, a pytree of arrays.
      parts: Indices of the parts of the worker.
      step: Step of the first batches. Batches of all steps must be like them.
      is_stacked: Whether all parts are one group, or each part is one.

    Raises:
      BatchError: If `batches` raises an error, also in a later call of `of_step`.
      BatchValueError: If a batch differs from the first one in structure, shapes or
        dtypes, also in a later call of `of_step`.
    """

    def __init__(
        self,
        batches: Callable[[int, int], Any],
        parts: Sequence[int],
        step: int,
        *,
        is_stacked: bool,
    ):
        self._batches = batches
        self._is_stacked = is_stacked
        self._groups = [list(parts)] if is_stacked else [[part] for part in parts]
        self.origin = f"batches(step={step}, part={parts[0]})"
        first = self._call(step, parts[0])
        self.signature = signature(first)
        self._like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first
        )
        # The pools have arrays of bytes, because the array interface that they use does
        # not support dtypes such as bfloat16.
        group_size = len(self._groups[0])
        self._memory = [
            ArrayPool((group_size * leaf.nbytes,), np.dtype(np.uint8))
            for leaf in jax.tree.leaves(first)
        ]
        # Held while `batches` is called, so that only one thread at a time calls it.
        self._is_reading = threading.Lock()
        # Held while `_reads` is used, because several threads use it.
        self._lock = threading.Lock()
        self._reads: dict[tuple[int, int], Future] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def of_step(self, step: int, group: int) -> Any:
        """Returns the batches of a group in a step; waits until they are read."""
        with self._lock:
            # The read is removed, so that no other thread cancels it while this thread
            # waits for its result.
            read = self._reads.pop((step, group), None)
            if read is None:
                self._drop_reads(except_for=())
        return self._read(step, group) if read is None else read.result()

    def expect(self, groups_of_steps: Sequence[tuple[int, int]]) -> None:
        """Starts to read the given batches ahead, and drops all other batches."""
        with self._lock:
            self._drop_reads(except_for=groups_of_steps)
            for step, group in groups_of_steps:
                if (step, group) not in self._reads:
                    read = self._reader.submit(self._read, step, group)
                    self._reads[step, group] = read

    def _drop_reads(self, except_for: Sequence[tuple[int, int]]) -> None:
        for wanted in set(self._reads) - set(except_for):
            self._reads.pop(wanted).cancel()

    def _read(self, step: int, group: int) -> Any:
        """Calls `batches` for each part of a group; returns copies of the arrays."""
        parts = self._groups[group]
        likes, structure = jax.tree.flatten(self._like)
        with self._is_reading:
            stacks = [
                memory.borrow().view(like.dtype).reshape(len(parts), *like.shape)
                for memory, like in zip(self._memory, likes)
            ]
            for place, part in enumerate(parts):
                batch = self._call(step, part)
                self._check_alike(batch, step, part)
                for stack, leaf in zip(stacks, jax.tree.leaves(batch)):
                    stack[place] = leaf
        if not self._is_stacked:
            stacks = [stack[0] for stack in stacks]
        return structure.unflatten(stacks)

    def _call(self, step: int, part: int) -> Any:
        """Calls `batches` for a part, and returns the batch in NumPy."""
        call = f"batches(step={step}, part={part})"
        try:
            batch = self._batches(step, part)
            array_validation.check_dtypes("its batch", batch, _KINDS)
            array_validation.check_integers_are_kept("its batch", batch)
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {error}"
            raise BatchError(f"{call} raised {why}") from error
        if not jax.tree.leaves(batch):
            raise BatchValueError(f"{call} must return arrays; got {batch!r}")
        return sent(batch)

    def _check_alike(self, batch: Any, step: int, part: int) -> None:
        """Raises BatchValueError if a batch is unlike the first in shapes or dtypes."""
        differs = difference(by_name("batch", self._like), by_name("batch", batch))
        structure = jax.tree.structure(batch)
        if not differs and structure != jax.tree.structure(self._like):
            differs = f"{jax.tree.structure(self._like)}, and now {structure}"
        if differs:
            raise BatchValueError(
                f"batches(step={step}, part={part}) must have the structure, shapes "
                f"and dtypes of {self.origin}; got {differs}"
            )
