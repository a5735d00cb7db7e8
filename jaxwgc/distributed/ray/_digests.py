"""Digests of batches: all holders of a part must have the same batch in a step."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.distributed._placement import signature

# Odd multipliers: 2^32 over the golden ratio for positions, and those of the finalisers
# of MurmurHash3 and lowbias32 (Wellons) for words.
_OF_POSITIONS = np.uint32(0x9E3779B9)
_OF_FIRST_MIX = np.uint32(0x85EBCA6B)
_OF_SECOND_MIX = np.uint32(0xC2B2AE35)
_OF_LAST_MIX = np.uint32(0x2C1B3C6D)
# Number of parallel sums of words. The compiler vectorises them.
_NUM_LANES = 64


def digest(batch: Any) -> jax.Array:
    """Returns a digest of 64 bits of a batch, uint32 (2,).

    It depends on all bits of the arrays, on their shapes, dtypes and names. Two batches
    that differ have the same digest with a probability of about 2^-64. It is no
    protection against batches that are made to have the same digest.

    Args:
      batch: Pytree of arrays without typed keys.
    """
    seed = zlib.crc32(signature(batch).encode())
    total = jnp.full(2, seed, jnp.uint32)
    for place, leaf in enumerate(jax.tree.leaves(batch)):
        total = total * _OF_SECOND_MIX + _digest_of_words(_words_of(leaf), place)
    return total


def _words_of(leaf: jax.Array) -> jax.Array:
    """Returns the bits of an array as words, uint32 (num_words,)."""
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag])
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        num_bits = jnp.iinfo(leaf.dtype).bits
    else:
        num_bits = jnp.finfo(leaf.dtype).bits
    if num_bits >= 32:
        # An array of 64 bits becomes pairs of words.
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
    entries = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{num_bits}")).ravel()
    # Several entries share a word.
    entries_per_word = 32 // num_bits
    padding = -entries.size % entries_per_word
    rows = jnp.pad(entries, (0, padding)).reshape(entries_per_word, -1)
    words = jnp.zeros(rows.shape[1], jnp.uint32)
    for place, row in enumerate(rows):
        words |= row.astype(jnp.uint32) << np.uint32(num_bits * place)
    return words


def _digest_of_words(words: jax.Array, seed: int) -> jax.Array:
    """Returns two sums of words that are mixed with their positions, uint32 (2,)."""
    padding = -words.size % _NUM_LANES
    words = jnp.pad(words, (0, padding)).reshape(-1, _NUM_LANES)
    positions = jax.lax.iota(jnp.uint32, words.size).reshape(words.shape)
    first = words ^ ((positions + np.uint32(seed)) * _OF_POSITIONS)
    first = (first ^ (first >> 16)) * _OF_FIRST_MIX
    first = (first ^ (first >> 13)) * _OF_SECOND_MIX
    first = first ^ (first >> 16)
    second = (first ^ (first >> 15)) * _OF_LAST_MIX
    second = second ^ (second >> 12)
    return jnp.stack([first.sum(0), second.sum(0)]).sum(1)


class BatchDigests:
    """Digests of the batches of one round, by part.

    Args:
      when: Round, in words.
    """

    def __init__(self, when: str):
        self._when = when
        # First worker with the part, and its digest.
        self._first: dict[int, tuple[int, tuple[int, ...]]] = {}

    def check(self, worker: int, parts: np.ndarray, digests: np.ndarray | None) -> None:
        """Compares the batches of a worker with those of others.

        Args:
          worker: Index of the worker.
          parts: Indices of its parts, int (num_parts,).
          digests: uint32 (num_parts, 2), or None if there are none.

        Raises:
          RuntimeError: If two holders of a part have different batches.
        """
        if digests is None:
            return
        for part, words in zip(parts.tolist(), digests.tolist()):
            this_digest = tuple(words)
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
