"""Digests of batches, to check that all holders of a part have equal batches."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxwgc.distributed._placement import signature


def digest(batch: Any) -> bytes:
    """Computes a 64-bit digest of a batch.

    The digest depends on all bits of the arrays, and on their shapes, dtypes and names.
    Two batches that differ have equal digests with a probability of about 2^-64.

    Args:
      batch: Pytree of NumPy arrays.
    """
    result = hashlib.blake2b(signature(batch).encode(), digest_size=8)
    for leaf in jax.tree.leaves(batch):
        result.update(leaf.tobytes())
    return result.digest()


class BatchDigests:
    """Checks by digests that all holders of a part have equal batches in one round.

    Args:
      when: Text that names the round in errors, e.g. "in step 3".
    """

    def __init__(self, when: str):
        self._when = when
        # For each part, the first worker that sent a digest, and this digest.
        self._first: dict[int, tuple[int, bytes]] = {}

    def check(
        self, worker: int, parts: np.ndarray, digests: Sequence[bytes] | None
    ) -> None:
        """Raises RuntimeError if a worker's batches differ from those of other workers.

        Args:
          worker: Index of the worker.
          parts: Indices of its parts, int (num_parts,).
          digests: Digests of their batches, or None if there are none.

        Raises:
          RuntimeError: If two holders of a part have different batches.
        """
        if digests is None:
            return
        for part, this_digest in zip(parts.tolist(), digests, strict=True):
            first = self._first.setdefault(part, (worker, this_digest))
            first_worker, first_digest = first
            if this_digest == first_digest:
                continue
            holders = f"workers {first_worker} and {worker} have"
            if first_worker == worker:
                holders = f"worker {worker} and its replacement have"
            raise RuntimeError(
                f"{holders} different batches of part {part} {self._when}: "
                "batches(step, part) must return the same arrays on all workers"
            )
