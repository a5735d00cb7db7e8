"""Passes over rows that come in blocks, for the leading directions of their matrix."""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import is_sparse
from jaxwgc.sketching._row_blocks import DenseRows
from jaxwgc.sketching._scores._chunks import (
    NUM_THREADS,
    SPARSE_ROWS,
    RepeatedChunks,
    some_rows,
)
from jaxwgc.sketching._scores._leading_directions import image


class StreamedPasses:
    """A matrix X in blocks, which is passed over by `run` and never held.

    Sums are in float64. All is multiplied by one power of two, `scale`, by the size of
    what comes first.
    """

    def __init__(self, blocks: Callable[[], Iterable[Any]]):
        self._rows = RepeatedChunks(blocks, keep_sparse=True)
        # What has been taken of the first pass, to see the columns.
        begun = iter(self._rows)
        first = next(begun)
        self._begun = itertools.chain([first], begun)
        _, chunk, _ = first
        self.num_columns = chunk.shape[1]
        self.dtype = jnp.dtype(chunk.dtype)
        self.scale = _scale(chunk)

    @property
    def num_rows(self) -> int:
        """How many there are, after the first pass."""
        return self._rows.num_rows

    def run(
        self, basis: jax.Array, each: Callable[[np.ndarray], Any] | None = None
    ) -> jax.Array:
        """Returns the sum of `image` over all rows; `each` is given X `basis`."""
        total = np.zeros((sum(basis.shape), basis.shape[1]))
        for start, chunk, size in self._rows if self.num_rows else self._begun:
            multiply = _sparse_image if is_sparse(chunk) else _dense_image
            rows, added = multiply(chunk, self.scale, basis)
            added = np.asarray(added)
            if not np.isfinite(added).all():
                _raise_not_finite(chunk[:size], start)
            total += added
            if each is not None:
                each(np.asarray(rows)[:size])
        return jnp.asarray(total, self.dtype)


def _scale(chunk: Any) -> float:
    values = chunk.data if is_sparse(chunk) else chunk
    largest = np.abs(values).max(initial=0)
    usual = np.isfinite(largest) and largest > 0
    return float(np.ldexp(1.0, -np.frexp(largest)[1])) if usual else 1.0


@jax.jit
def _dense_image(
    chunk: jax.Array, scale: jax.Array, basis: jax.Array
) -> tuple[jax.Array, jax.Array]:
    scaled = DenseRows(chunk * scale)
    return scaled.matrix @ basis, scaled.sum(lambda block: image(block, basis))


def _sparse_image(chunk: Any, scale: float, basis: jax.Array) -> tuple[Any, Any]:
    """Applies SciPy's sparse blocks on the host, in time of the entries."""
    scale = chunk.dtype.type(scale)
    scaled = np.asarray(basis) * scale

    def of_some(start: int) -> tuple[Any, Any]:
        some = some_rows(chunk, start, start + SPARSE_ROWS)
        # Whoever asks looks for what is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            rows = some @ scaled
            return rows, np.concatenate([(some.T @ rows) * scale, rows.T @ rows])

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        starts = range(0, chunk.shape[0], SPARSE_ROWS)
        rows, images = zip(*threads.map(of_some, starts))
    return np.concatenate(rows), np.sum(images, axis=0, dtype=np.float64)


def _raise_not_finite(rows: Any, start: int) -> None:
    if is_sparse(rows):
        rows = rows.tocoo()
        wrong = rows.row[~np.isfinite(rows.data)]
    else:
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if wrong.size:
        raise ValueError(
            f"blocks must be finite; got NaN or infinity in row {start + wrong.min()}"
        )
    raise ValueError(
        "blocks must not overflow; got rows from "
        f"{start} on that are far larger than the first ones"
    )
