"""Digests of batches, to compare the batches of all holders of a part."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxwgc.distributed._placement import signature


def digest(batch: Any) -> bytes:
    """Computes a digest of a batch, 64 bits.

    It depends on all bits of the arrays, on their shapes, dtypes and names. Two batches
    that differ have the same digest with a probability of about 2^-64.

    Args:
      batch: Pytree of NumPy arrays.
    """
    result = hashlib.blake2b(signature(batch).encode(), digest_size=8)
    for leaf in jax.tree.leaves(batch):
        result.update(leaf.tobytes())
    return result.digest()


class BatchDigests:
    """Digests of the batches of one round, by part.

    Args:
      when: Round, in words.
    """

    def __init__(self, when: str):
        self._when = when
        # First worker with the part, and its digest.
        self._first: dict[int, tuple[int, bytes]] = {}

    def check(
        self, worker: int, parts: np.ndarray, digests: Sequence[bytes] | None
    ) -> None:
        """Compares the batches of a worker with those of others.

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
