"""Matrices in blocks of rows, read once per pass."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxwgc._arrays import is_sparse, next_power_of_two
from jaxwgc._validation import require
from jaxwgc.sketching import _conversions

_CHUNK_BYTES = 2**25
# Largest relative difference between fingerprints of equal chunks in two passes.
_SAME = 1e-5
# Rows per sparse product: longer sums would lose digits in float32.
SPARSE_ROWS = 8192
# Threads for sparse products, since each SciPy product uses one thread.
NUM_THREADS = min(os.cpu_count() or 1, 8)


class Blocks:
    """A matrix in blocks of rows, which need not fit in memory.

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
            rule = "an iterable that can be read again, or a function that returns one"
            raise TypeError(f"blocks must be {rule}; got {type(blocks).__name__}")
        self._blocks = blocks
        self.num_rows = num_rows

    def __iter__(self) -> Iterator[Any]:
        """Yields the blocks of one pass, as NumPy arrays or SciPy CSR matrices."""
        blocks: Any = self._blocks() if callable(self._blocks) else self._blocks
        if _is_matrix(blocks) or not isinstance(blocks, Iterable):
            given = type(blocks).__name__
            raise TypeError(f"blocks() must be an iterable of arrays; got {given}")
        for block in blocks:
            rows = _conversions.host_rows("every block", block)
            is_right = rows.ndim == 2 and rows.shape[1]
            rule = "have shape (b, p) with at least one column"
            require(is_right, "every block", rule, rows.shape)
            yield rows


class Chunks:
    """The rows of `Blocks`, in chunks of equal size and equal content in every pass.

    Attributes:
      shape: (N, p).
      dtype: The dtype of the chunks.
      largest: The largest absolute value in the first chunk.
    """

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        # Fingerprints of the chunks in the first pass.
        self._prints: list[np.ndarray] = []
        first: Any = next(self._read(), [None])
        chunk = first[0]
        require(chunk is not None, "blocks", "have at least one row", "none")
        self.dtype = np.dtype(chunk.dtype)
        values = chunk.data if is_sparse(chunk) else chunk
        self.largest = np.abs(values).max(initial=0)
        num_rows = blocks.num_rows
        if num_rows is None:
            num_rows = sum(block.shape[0] for block in blocks)
        self.shape = num_rows, chunk.shape[1]

    def __iter__(self) -> Iterator[tuple[int, Any, int]]:
        """Yields the start of each chunk, the chunk, and its size without padding.

        Raises:
          ValueError: If the rows are not finite, or differ from those of the first
            pass.
        """
        rule = "be the same in all passes"
        start = 0
        prints = []
        for chunk, size in self._read():
            seen = _fingerprint(chunk)
            if not np.isfinite(seen).all():
                _check_finite(chunk, start)
            if self._prints:
                known = self._prints[min(len(prints), len(self._prints) - 1)]
                is_same = not abs(seen[0] - known[0]) > _SAME * seen[1]
                require(is_same, "blocks", rule, f"others from row {start} on")
            prints.append(seen)
            yield start, chunk, size
            start += size
        given = f"{start} rows instead of {self.shape[0]}"
        require(start == self.shape[0], "blocks", rule, given)
        self._prints = prints

    def _read(self) -> Iterator[tuple[Any, int]]:
        """Yields chunks of one size, except for the last, with their unpadded sizes.

        Chunks of one size need one compiled function. An array may be overwritten when
        the next one is read. Sparse blocks are chunks without a copy.
        """
        kind = None
        buffer = np.empty((0, 0))
        filled = 0
        for block in self._blocks:
            columns = block.shape[1]
            kind = kind or (is_sparse(block), columns)
            is_right = kind == (is_sparse(block), columns)
            rule = "have the same columns, and all or none be sparse"
            given = f"{kind[1]}, then {columns} columns ({type(block).__name__})"
            require(is_right, "blocks", rule, given)
            dtype = _conversions.float_array(
                "every block", np.zeros(0, block.dtype)
            ).dtype
            if is_sparse(block):
                block = block.astype(dtype, copy=False)
                size = SPARSE_ROWS * NUM_THREADS
                for start in range(0, block.shape[0], size):
                    part = some_rows(block, start, start + size)
                    yield part, part.shape[0]
                continue
            if not buffer.size:
                # A chunk has at least 16p rows, so that p x p matrices are small beside
                # it.
                size = _CHUNK_BYTES // (columns * dtype.itemsize)
                buffer = np.empty((max(size, 16 * columns), columns), dtype)
            while len(block):
                taken, block = np.split(block, [len(buffer) - filled])
                with np.errstate(over="ignore"):
                    taken = taken.astype(buffer.dtype, copy=False)
                if len(taken) == len(buffer):
                    yield taken, len(taken)
                    continue
                buffer[filled : filled + len(taken)] = taken
                filled += len(taken)
                if filled == len(buffer):
                    yield buffer, filled
                    filled = 0
        if filled:
            # Powers of two give few different sizes, and little padding for small
            # matrices.
            padded = min(len(buffer), max(256, next_power_of_two(filled)))
            buffer[filled:padded] = 0
            yield buffer[:padded], filled


def some_rows(matrix: Any, start: int, stop: int) -> Any:
    """Slices rows of a CSR matrix without a copy, unlike the slices of SciPy."""
    starts = matrix.indptr[start : stop + 1]
    of_entries = slice(starts[0], starts[-1])
    parts = matrix.data[of_entries], matrix.indices[of_entries], starts - starts[0]
    return type(matrix)(parts, shape=(len(starts) - 1, matrix.shape[1]))


def _check_finite(chunk: Any, start: int) -> None:
    with np.errstate(invalid="ignore"):
        zeros = (0 * chunk) @ np.ones(chunk.shape[1])
    row = start + np.argmax(zeros != 0)
    require(not zeros.any(), "blocks", "be finite", f"NaN or infinity in row {row}")


def _fingerprint(rows: Any) -> np.ndarray:
    """Returns a number that identifies a chunk (a weighted sum), and its scale.

    Rows enter by the eighth roots of their sums. So a difference in size shows, and
    even a row of 1e8 does not hide the others.
    """
    weights, columns = (np.cos(np.arange(n)).astype(rows.dtype) for n in rows.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = rows @ columns
        roots = np.sign(sums) * np.sqrt(np.sqrt(np.sqrt(np.abs(sums))))
        return np.array([weights @ roots, np.linalg.norm(roots)])


def _is_matrix(value: Any) -> bool:
    return is_sparse(value) or getattr(value, "ndim", None) == 2
