"""Rows that come in blocks, gathered in chunks of one size and known again."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxwgc._arrays import is_sparse, next_power_of_two
from jaxwgc.sketching import _checks

_CHUNK_BYTES = 2**25
# Fingerprints of a chunk in two passes differ by no more than this share.
_SAME = 1e-5
# Rows of a sparse product: sums of more would lose digits in float32.
SPARSE_ROWS = 8192
# SciPy's sparse products are of one thread each.
NUM_THREADS = min(os.cpu_count() or 1, 8)


def chunks(
    blocks: Callable[[], Iterable[Any]], keep_sparse: bool = False
) -> Iterator[tuple[Any, int]]:
    """Yields all rows, in arrays of one size but for the last, and its unpadded size.

    One size, so that one function is compiled. An array may be overwritten when the
    next one is asked for.

    With `keep_sparse`, sparse blocks are chunks as they are, in SciPy's compressed
    rows.
    """
    iterable = iterable_of("arrays", blocks())
    buffer = np.empty((0, 0))
    filled = 0
    num_sparse_columns = None
    for block in iterable:
        rows = _checks.host_rows("every block", block, keep_sparse)
        is_kept = not isinstance(rows, np.ndarray)
        if buffer.size if is_kept else num_sparse_columns is not None:
            raise TypeError("blocks must be all sparse or none; got some of each")
        if is_kept:
            dtype = _checks.float_array("every block", np.zeros(0, rows.dtype)).dtype
            rows = rows.astype(dtype, copy=False)
            if num_sparse_columns is None:
                num_sparse_columns = rows.shape[1]
            _check_columns(num_sparse_columns, rows.shape[1])
            size = SPARSE_ROWS * NUM_THREADS
            for start in range(0, rows.shape[0], size):
                part = some_rows(rows, start, start + size)
                yield part, part.shape[0]
            continue
        if rows.ndim != 2:
            raise ValueError(f"every block must have shape (b, p); got {rows.shape}")
        dtype = _checks.float_array("every block", rows[:0]).dtype
        if not buffer.size:
            num_columns = rows.shape[1]
            if num_columns < 1:
                raise ValueError("every block must have at least one column; got none")
            # At least 16p rows, so that p x p matrices are cheap beside a chunk.
            size = _CHUNK_BYTES // (num_columns * dtype.itemsize)
            size = max(size, 16 * num_columns)
            buffer = np.empty((size, num_columns), dtype)
        size, num_columns = buffer.shape
        _check_columns(num_columns, rows.shape[1])
        with np.errstate(over="ignore"):
            rows = rows.astype(buffer.dtype, copy=False)
        while len(rows):
            taken, rows = np.split(rows, [size - filled])
            if len(taken) == size:
                yield taken, size
                continue
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            if filled == size:
                yield buffer, size
                filled = 0
    if filled:
        # Few different sizes, and little to do for small matrices.
        padded = min(len(buffer), max(256, next_power_of_two(filled)))
        buffer[filled:padded] = 0
        yield buffer[:padded], filled


def iterable_of(kind: str, value: Any) -> Iterable[Any]:
    """Returns what a function of blocks has returned, if it is not one matrix."""
    is_matrix = isinstance(value, jax.Array) or is_sparse(value)
    if is_matrix or not isinstance(value, Iterable):
        raise TypeError(
            f"blocks() must be an iterable of {kind}; got {type(value).__name__}"
        )
    return value


def _check_columns(first: int, other: int) -> None:
    if other != first:
        raise ValueError(
            f"all blocks must have the same columns; got {first} and {other}"
        )


def some_rows(matrix: Any, start: int, stop: int) -> Any:
    """Returns rows of a matrix in compressed rows, other than SciPy without a copy."""
    starts = matrix.indptr[start : stop + 1]
    of_entries = slice(starts[0], starts[-1])
    parts = matrix.data[of_entries], matrix.indices[of_entries], starts - starts[0]
    return type(matrix)(parts, shape=(len(starts) - 1, matrix.shape[1]))


def fingerprint(rows: Any) -> tuple[float, float]:
    """Returns a sum in which every entry has a weight of its own, and a scale for it.

    Rows count by the tenth root of their sizes: a difference in size shows, but not
    even a row of 1e8 hides the others.
    """
    weights = [np.cos(np.arange(size)) for size in rows.shape]
    if is_sparse(rows):
        # The largest entries of rows would take longer than all the rest.
        sums = rows @ weights[1].astype(rows.dtype)
        sums = np.sign(sums) * np.abs(sums).astype(np.float64) ** 0.1
        return float(weights[0] @ sums), float(np.linalg.norm(sums))
    sizes = np.abs(rows).max(axis=1)
    # Whoever computes with them says what is not finite.
    with np.errstate(invalid="ignore"):
        rows = rows / np.where(sizes > 0, sizes, 1)[:, None]
        sums = rows @ weights[1].astype(rows.dtype)
    sums = sums * sizes.astype(np.float64) ** 0.1
    return float(weights[0] @ sums), float(np.linalg.norm(sums))


Fingerprint: TypeAlias = tuple[float, float] | np.ndarray


def is_same(fingerprint: Fingerprint, first: Fingerprint) -> bool:
    """Compares up to rounding, which a loader of blocks may have."""
    return not bool(abs(fingerprint[0] - first[0]) > _SAME * first[1])


class RepeatedChunks:
    """The chunks of rows that are passed over again and again, the same each time.

    Attributes:
      num_rows: how many there are; 0 before the end of the first pass.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterable[Any]],
        keep_sparse: bool = False,
        fingerprint_of: Callable[[Any], Fingerprint] = fingerprint,
    ):
        self._blocks, self._keep_sparse = blocks, keep_sparse
        self._fingerprint_of = fingerprint_of
        self._prints: list[Fingerprint] = []
        self.num_rows = 0

    def __iter__(self) -> Iterator[tuple[int, Any, int]]:
        """Yields where a chunk starts, the chunk as `chunks` does, and its size.

        Raises:
          ValueError: where there are no rows, or others than in the first pass.
        """
        is_first = not self.num_rows
        start = 0
        all_chunks = chunks(self._blocks, self._keep_sparse)
        for index, (chunk, size) in enumerate(all_chunks):
            # Rows beyond those of the first pass are counted only.
            if is_first or start + size <= self.num_rows:
                seen = self._fingerprint_of(chunk)
                if is_first:
                    self._prints.append(seen)
                elif not is_same(seen, self._prints[index]):
                    raise ValueError(
                        "blocks must be the same in all passes; got others"
                    )
                yield start, chunk, size
            start += size
        if is_first:
            if not start:
                raise ValueError("blocks must have at least one row; got none")
            self.num_rows = start
        elif start != self.num_rows:
            raise ValueError(
                f"blocks must be the same in all passes; got {self.num_rows} rows in "
                f"the first and {start} in a later one"
            )
