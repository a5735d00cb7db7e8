"""Passes over rows that come in blocks, for the leading directions of their matrix."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc.sketching._row_blocks import DenseRows
from jaxwgc.sketching._scores._chunks import (
    chunks,
    fingerprint,
    is_same,
    is_sparse_of_scipy,
)
from jaxwgc.sketching._scores._leading_directions import image


class StreamedPasses:
    """A matrix X in blocks, which is passed over by `run` and never held.

    Sums are in float64. All is multiplied by one power of two, `scale`, by the size of
    what comes first.
    """

    def __init__(self, blocks: Callable[[], Iterable[Any]]):
        self._blocks = blocks
        self._prints: list[tuple[float, float]] = []
        # Known after the first pass.
        self.num_rows = 0
        # What has been taken of the first pass, to see the columns.
        begun = chunks(blocks, keep_sparse=True)
        first = next(begun, None)
        if first is None:
            raise ValueError("blocks must have at least one row; got none")
        self._begun = itertools.chain([first], begun)
        self.num_columns = first[0].shape[1]
        self.dtype = jnp.dtype(first[0].dtype)
        self.scale = _scale(first[0])

    def run(
        self, basis: jax.Array, each: Callable[[np.ndarray], Any] | None = None
    ) -> jax.Array:
        """Returns the sum of `image` over all rows; `each` is given X `basis`."""
        is_first = not self.num_rows
        stream = self._begun if is_first else chunks(self._blocks, keep_sparse=True)
        total = np.zeros((sum(basis.shape), basis.shape[1]))
        num_rows = 0
        for index, (chunk, size) in enumerate(stream):
            seen = fingerprint(chunk[:size])
            if is_first:
                self._prints.append(seen)
            elif num_rows + size > self.num_rows:
                # Counted only.
                num_rows += size
                continue
            elif not is_same(seen, self._prints[index]):
                raise ValueError("blocks must be the same in all passes; got others")
            multiply = _sparse_image if is_sparse_of_scipy(chunk) else _dense_image
            rows, added = multiply(chunk, self.scale, basis)
            added = np.asarray(added)
            if not np.isfinite(added).all():
                _raise_not_finite(chunk[:size], num_rows)
            total += added
            if each is not None:
                each(np.asarray(rows)[:size])
            num_rows += size
        if is_first:
            self.num_rows = num_rows
        elif num_rows != self.num_rows:
            raise ValueError(
                f"blocks must be the same in all passes; got {self.num_rows} rows in "
                f"the first and {num_rows} in a later one"
            )
        return jnp.asarray(total, self.dtype)


def _scale(chunk: Any) -> float:
    values = chunk.data if is_sparse_of_scipy(chunk) else chunk
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
    """Of SciPy's matrices on the host, in time of the entries."""
    scale = chunk.dtype.type(scale)
    # Whoever asks looks for what is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        rows = chunk @ (np.asarray(basis) * scale)
        return rows, np.concatenate([(chunk.T @ rows) * scale, rows.T @ rows])


def _raise_not_finite(rows: Any, start: int) -> None:
    if is_sparse_of_scipy(rows):
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
