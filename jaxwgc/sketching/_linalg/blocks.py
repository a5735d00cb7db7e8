"""Matrices given as blocks of rows (`Blocks`), and their reader (`Chunks`)."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxwgc._common import conversions
from jaxwgc._common.arrays import is_sparse, next_power_of_two
from jaxwgc.sketching import _arguments

# Bytes per chunk of dense rows (32 MiB). The time for a chunk is long against the
# overhead of a compiled call, and a chunk takes little of a computer's memory.
_CHUNK_BYTES = 2**25
# Largest relative difference between a chunk's fingerprints in two passes. A larger
# difference means that the chunk has changed.
_SAME = 1e-5
# Rows per sparse product: sums over more rows would lose digits in float32.
SPARSE_ROWS = 8192
# Number of threads for sparse products. SciPy computes each product in one thread, so
# several products run at a time.
NUM_THREADS = min(os.cpu_count() or 1, 8)


class Blocks:
    """A matrix given as blocks of rows, so that it need not fit in memory.

    Scores and least squares accept it as a matrix. They read the blocks once per pass
    and compute on the host, without `jax.jit` and derivatives.

    Args:
      blocks: The blocks: arrays (b, p) of NumPy or JAX, or sparse matrices of SciPy. b
        may vary and may be 0. All are converted to the dtype of the first block, and
        integers to the default float. Pass a function without arguments that returns a
        new iterable of blocks in each pass, or an iterable that can be read again, such
        as a list. One array (N, p), such as a NumPy memory map, is read in slices.
      num_rows: N. If `blocks` is a function and N is not given, a further pass counts
        rows.

    Raises:
      TypeError: If `blocks` is not iterable, or is a generator or another iterator,
        which cannot be read twice.

    Example:
      >>> import numpy as np
      >>> from jaxwgc import sketching
      >>> def blocks():
      ...     for seed in range(3):
      ...         yield np.random.default_rng(seed).standard_normal((1000, 4))
      >>> scores = sketching.leverage_scores(sketching.Blocks(blocks))
      >>> print(scores.shape, scores.sum().round(3))
      (3000,) 4.0
    """

    def __init__(
        self,
        blocks: Callable[[], Iterable[Any]] | Iterable[Any],
        num_rows: int | None = None,
    ):
        if _is_matrix(blocks):
            blocks = [blocks]
        is_iterable = isinstance(blocks, Iterable) and iter(blocks) is not blocks
        if not (callable(blocks) or is_iterable):
            raise TypeError(
                "blocks must be an iterable that can be read again, or a function that "
                f"returns a new iterable; got {type(blocks).__name__}"
            )
        self._blocks = blocks
        self.num_rows = num_rows

    def __iter__(self) -> Iterator[Any]:
        """Yields the blocks of one pass, as NumPy arrays or SciPy CSR matrices."""
        blocks: Any = self._blocks() if callable(self._blocks) else self._blocks
        if _is_matrix(blocks) or not isinstance(blocks, Iterable):
            raise TypeError(
                "blocks() must return an iterable of arrays, e.g. a list; got "
                f"{type(blocks).__name__}"
            )
        for block in blocks:
            rows = _arguments.host_rows("every block", block)
            if rows.ndim != 2 or rows.shape[1] == 0:
                raise ValueError(
                    "every block must have shape (b, p) with at least one column; got "
                    f"{rows.shape}"
                )
            yield rows


class Chunk(NamedTuple):
    """Consecutive rows of `Blocks` that are processed together.

    Attributes:
      start: The index of the first row.
      rows: A NumPy array, or a CSR matrix of SciPy. Rows of zeros may follow the rows.
      size: The number of rows without these zeros.
    """

    start: int
    rows: Any
    size: int


class Chunks:
    """The rows of `Blocks` in chunks; raises ValueError if a later pass has other rows.

    Attributes:
      shape: (N, p).
      dtype: The dtype of the chunks.
      largest: The largest absolute value in the first chunk.
    """

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        # The factor by which each row is multiplied, (N,), or None for unscaled rows.
        self._row_factors: np.ndarray | None = None
        # Fingerprints of the chunks in the last complete pass, to detect other rows.
        self._prints: list[float] = []
        first = next(self._read(), None)
        if first is None:
            raise ValueError("blocks must have at least one row; got none")
        rows, _ = first
        self.dtype = np.dtype(rows.dtype)
        values = rows.data if is_sparse(rows) else rows
        self.largest = np.abs(values).max(initial=0)
        num_rows = blocks.num_rows
        if num_rows is None:
            num_rows = sum(block.shape[0] for block in blocks)
        self.shape = (num_rows, rows.shape[1])

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks of one pass.

        Raises:
          ValueError: If a row is not finite, or if the rows or their number differ
            from an earlier pass or from `num_rows`.
        """
        start = 0
        prints: list[float] = []
        for rows, size in self._read():
            fingerprint, scale = _fingerprint(rows)
            if not np.isfinite(scale):
                _check_finite(rows, start)
            if self._prints:
                last = len(self._prints) - 1
                expected = self._prints[min(len(prints), last)]
                if abs(fingerprint - expected) > _SAME * scale:
                    raise ValueError(
                        "blocks must be the same in all passes; got different values "
                        f"in the chunk of rows from {start} on"
                    )
            prints.append(fingerprint)
            yield Chunk(start, self._scaled(rows, start, size), size)
            start += size
        if start != self.shape[0]:
            raise ValueError(
                "blocks must have as many rows in each pass as num_rows or the first "
                f"pass says; got {start} rows instead of {self.shape[0]}"
            )
        self._prints = prints

    def row_scaled(self, factors: np.ndarray) -> "Chunks":
        """Returns the chunks with each row multiplied by its factor."""
        chunks = copy.copy(self)
        chunks._row_factors = factors
        chunks.largest = self.largest * factors.max()
        return chunks

    def _scaled(self, rows: Any, start: int, size: int) -> Any:
        """Returns the chunk's rows times their factors; padding rows stay zero."""
        if self._row_factors is None:
            return rows
        factors = np.zeros((rows.shape[0], 1), self.dtype)
        factors[:size, 0] = self._row_factors[start : start + size]
        return rows.multiply(factors).tocsr() if is_sparse(rows) else rows * factors

    def _read(self) -> Iterator[tuple[Any, int]]:
        """Yields padded rows of each chunk, and the number of rows without padding.

        All dense chunks but the last have one size, so that functions of a chunk are
        compiled once. A dense chunk may be overwritten when the next one is read.
        Sparse blocks are split into chunks without a copy.
        """
        buffer: np.ndarray | None = None
        num_filled = 0
        for block in self._alike_blocks():
            # `float_array` gives the dtype to compute in, and raises an error for a
            # complex block. An empty array avoids a copy of the block.
            empty = np.zeros(0, block.dtype)
            dtype = conversions.float_array("every block", empty).dtype
            if is_sparse(block):
                rows = block.astype(dtype, copy=False)
                size = SPARSE_ROWS * NUM_THREADS
                for start in range(0, rows.shape[0], size):
                    chunk = some_rows(rows, start, start + size)
                    yield chunk, chunk.shape[0]
                continue
            if buffer is None:
                # Chunks have at least 16p rows, so that a p × p matrix is small against
                # them.
                num_columns = block.shape[1]
                size = _CHUNK_BYTES // (num_columns * dtype.itemsize)
                buffer = np.empty((max(size, 16 * num_columns), num_columns), dtype)
            unread = block
            while len(unread):
                num_free = len(buffer) - num_filled
                with np.errstate(over="ignore"):
                    rows = unread[:num_free].astype(buffer.dtype, copy=False)
                unread = unread[num_free:]
                if len(rows) == len(buffer):
                    yield rows, len(rows)
                    continue
                buffer[num_filled : num_filled + len(rows)] = rows
                num_filled += len(rows)
                if num_filled == len(buffer):
                    yield buffer, num_filled
                    num_filled = 0
        if buffer is not None and num_filled:
            # The last chunk is padded to a power of two, and at least 256 rows, so that
            # functions are compiled for few sizes.
            size = min(len(buffer), max(256, next_power_of_two(num_filled)))
            buffer[num_filled:size] = 0
            yield buffer[:size], num_filled

    def _alike_blocks(self) -> Iterator[Any]:
        """Yields blocks; raises ValueError if they differ in columns or sparsity."""
        num_columns: int | None = None
        are_sparse = False
        for block in self._blocks:
            if num_columns is None:
                num_columns = block.shape[1]
                are_sparse = is_sparse(block)
            if block.shape[1] != num_columns or is_sparse(block) != are_sparse:
                raise ValueError(
                    "blocks must have equally many columns, and be all dense or all "
                    f"sparse; got {num_columns} columns, then {block.shape[1]} in a "
                    f"{type(block).__name__}"
                )
            yield block


def some_rows(matrix: Any, start: int, stop: int) -> Any:
    """Returns rows from `start` to `stop` of a CSR matrix, without copying entries."""
    starts = matrix.indptr[start : stop + 1]
    first = starts[0]
    last = starts[-1]
    data = matrix.data[first:last]
    indices = matrix.indices[first:last]
    shape = (len(starts) - 1, matrix.shape[1])
    return type(matrix)((data, indices, starts - first), shape=shape)


def _check_finite(rows: Any, start: int) -> None:
    # Zero times a finite entry is zero, and zero times any other entry is NaN.
    with np.errstate(invalid="ignore"):
        sums = (0 * rows) @ np.ones(rows.shape[1])
    if sums.any():
        row = start + np.argmax(sums != 0)
        raise ValueError(f"blocks must be finite; got NaN or infinity in row {row}")


def _fingerprint(rows: Any) -> tuple[float, float]:
    """Computes a fingerprint of rows, to detect changes, and the norm of its terms.

    The fingerprint is a weighted sum with one term per row: the eighth root of a
    weighted sum of the row, with its sign. Unlike a sign alone, a root changes with the
    size of the row. Without roots, a row of entries near 1e8 would hide the other rows.
    """
    num_rows, num_columns = rows.shape
    row_weights = np.cos(np.arange(num_rows)).astype(rows.dtype)
    column_weights = np.cos(np.arange(num_columns)).astype(rows.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = rows @ column_weights
        roots = np.sign(sums) * np.sqrt(np.sqrt(np.sqrt(np.abs(sums))))
        return row_weights @ roots, float(np.linalg.norm(roots))


def _is_matrix(value: Any) -> bool:
    return is_sparse(value) or getattr(value, "ndim", None) == 2
