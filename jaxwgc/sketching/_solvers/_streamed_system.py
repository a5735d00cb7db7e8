"""The rows of a least-squares problem in blocks, passed over again and again."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._row_blocks import sum_over_blocks
from jaxwgc.sketching._scores._chunks import RepeatedChunks, iterable_of
from jaxwgc.sketching._scores._streaming_scores import Factor

Blocks = Callable[[], Iterable[tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]]]

# Up to this many columns, the factor of all rows costs about as much as reading them.
_MAX_FACTOR_COLUMNS = 256
_SKETCH_ROWS_PER_COLUMN = 8


class StreamedSystem:
    """The rows of [X y], in chunks of one size, the same in every pass."""

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        self._rows = RepeatedChunks(self._pairs, fingerprint_of=self._fingerprint_of)
        self.num_columns = 0
        self.is_vector = True
        self.units = np.ones(1)
        # Whether blocks of float64 lost digits, and R of [X y] before they did.
        self.is_rounded = False
        self.exact_factor = np.zeros((0, 0))

    @property
    def num_rows(self) -> int:
        return self._rows.num_rows

    def small_matrix(self, key: jax.Array, sketch_size: int | None) -> jax.Array:
        """Returns a small matrix of all rows, in the first pass.

        From then on, y is divided by powers of two, against overflow of squares.
        """
        total = np.zeros((0, 0))
        factor = None
        dtype: Any = None
        for index, (start, chunk, size) in enumerate(self._rows):
            if not start:
                p, num_columns = self.num_columns, chunk.shape[1]
                if sketch_size is None and p > _MAX_FACTOR_COLUMNS:
                    sketch_size = _SKETCH_ROWS_PER_COLUMN * p
                if sketch_size is None:
                    factor = Factor(num_columns)
                else:
                    sketch_size = _checks.sketch_size(sketch_size, (p, p))
                    total = np.zeros((sketch_size, num_columns))
            dtype = chunk.dtype
            if factor is not None:
                factor.add(chunk, 0, size)
            else:
                assert sketch_size is not None
                # Columns of S are independent, and so are the S of chunks.
                subkey = jax.random.fold_in(key, index)
                total = total + np.asarray(_sketch(subkey, chunk, sketch_size), float)
        if factor is not None:
            total = np.ldexp(factor.triangular, factor.exponents)
        small = jnp.asarray(total.astype(dtype))
        largest = jnp.max(jnp.abs(small[:, self.num_columns :]), axis=0)
        self.units = np.asarray(inverse_power_of_two(largest))
        return small.at[:, self.num_columns :].multiply(self.units)

    def products(self, solution: np.ndarray, direction: np.ndarray) -> list[np.ndarray]:
        """Returns Xᵀr, rᵀr, XᵀXd and dᵀXᵀXd of r = y - Xθ, in one pass."""
        sums: Any = None
        for _, chunk, _ in self._rows:
            arrays = solution, direction, self.units
            arrays = (array.astype(chunk.dtype) for array in arrays)
            # Sums of chunks in float64, in any mode.
            parts = [
                np.asarray(part, float) for part in _chunk_products(chunk, *arrays)
            ]
            sums = parts if sums is None else [a + b for a, b in zip(sums, parts)]
        return sums

    def _pairs(self) -> Iterator[np.ndarray]:
        """Yields [X y] of every block."""
        joined = None
        iterable = iterable_of("pairs of arrays", self._blocks())
        for index, block in enumerate(iterable):
            if not isinstance(block, tuple | list) or len(block) != 2:
                raise TypeError(
                    f"every block must be a pair of rows and target; got block {index} "
                    f"of {type(block).__name__}"
                )
            rows, target = (_checks.host_rows("every block", part) for part in block)
            if rows.ndim != 2 or target.ndim not in (1, 2) or len(rows) != len(target):
                raise ValueError(
                    "every block must have shapes (b, p) and (b,) or (b, c); got "
                    f"{rows.shape} and {target.shape} in block {index}"
                )
            if not self.num_columns:
                self.num_columns, self.is_vector = rows.shape[1], target.ndim == 1
                dtypes = [
                    _checks.float_array("every block", part[:0]).dtype
                    for part in (rows, target)
                ]
                self._dtype = np.result_type(*dtypes)
                if 0 in (rows.shape[1], *target.shape[1:]):
                    raise ValueError(
                        "every block must have at least one column of rows and target; "
                        f"got {rows.shape} and {target.shape} in block {index}"
                    )
            if rows.shape[1] != self.num_columns or self.is_vector != (
                target.ndim == 1
            ):
                raise ValueError(
                    f"all blocks must have the same columns; got ({len(rows)}, "
                    f"{self.num_columns}) expected, {rows.shape} and {target.shape} in "
                    f"block {index}"
                )
            target = target[:, None] if self.is_vector else target
            shape = len(rows), rows.shape[1] + target.shape[1]
            # One array again and again: new ones cost as much as what is done to them.
            if joined is None or joined.shape != shape:
                joined = np.empty(shape, self._dtype)
            with np.errstate(over="ignore"):
                joined[:, : rows.shape[1]] = rows
                joined[:, rows.shape[1] :] = target
            is_rounding = self._dtype < np.result_type(rows, target) == np.float64
            if is_rounding and not self.num_rows:
                self._add_exactly(np.concatenate([rows, target], axis=1), joined)
            yield joined

    def _add_exactly(self, block: np.ndarray, rounded: np.ndarray) -> None:
        """Adds rows to the factor in float64, and notes whether they were rounded."""
        self.is_rounded |= not np.array_equal(block, rounded)
        if np.isfinite(block).all():
            factor = self.exact_factor.reshape(-1, block.shape[1])
            self.exact_factor = np.linalg.qr(np.concatenate([factor, block]), mode="r")

    def _fingerprint_of(self, chunk: np.ndarray) -> np.ndarray:
        """Looks for the block, where there is a NaN in a sum of all entries."""
        fingerprint = np.asarray(_fingerprint(chunk))
        if np.isfinite(fingerprint).all():
            return fingerprint
        for index, joined in enumerate(self._pairs()):
            is_finite = np.isfinite(joined).all(axis=1)
            if not is_finite.all():
                row = int(np.argmin(is_finite))
                raise ValueError(
                    "blocks must be finite; got NaN or infinity in row "
                    f"{row} of block {index}"
                )
        raise ValueError(
            "blocks must be finite, and the same in all passes; got numbers whose sums "
            "overflow, or that are no longer there"
        )


@functools.partial(jax.jit, static_argnames="sketch_size")
def _sketch(key: jax.Array, chunk: jax.Array, sketch_size: int) -> jax.Array:
    return sparse_sign(key, sketch_size, chunk.shape[0]) @ chunk


@jax.jit
def _fingerprint(chunk: jax.Array) -> jax.Array:
    """Returns what that of `_chunks` does for sparse rows, compiled.

    Of tenth roots of rows: a difference in size shows, but no row hides the others.
    """
    weights, columns = (
        jnp.asarray(np.cos(np.arange(size)), chunk.dtype) for size in chunk.shape
    )

    def sums(rows: jax.Array, weights: jax.Array) -> jax.Array:
        values = product(rows, columns[:, None])[:, 0]
        roots = jnp.sign(values) * jnp.abs(values) ** 0.1
        roots = jnp.where(jnp.isfinite(values), roots, jnp.nan)
        return jnp.stack([jnp.sum(roots * weights), jnp.sum(roots**2)])

    weighted, squares = sum_over_blocks(sums, chunk, weights)
    return jnp.stack([weighted, jnp.sqrt(squares)])


@jax.jit
def _chunk_products(
    chunk: jax.Array, solution: jax.Array, direction: jax.Array, units: jax.Array
) -> list[jax.Array]:
    p, num_systems = solution.shape

    def products(joined: jax.Array) -> list[jax.Array]:
        rows, target = joined[:, :p], joined[:, p:] * units
        images = product(rows, jnp.concatenate([solution, direction], axis=1))
        residual, moved = target - images[:, :num_systems], images[:, num_systems:]
        pulled = product(rows.T, jnp.concatenate([residual, moved], axis=1))
        return [
            pulled[:, :num_systems],
            jnp.sum(residual**2, axis=0),
            pulled[:, num_systems:],
            jnp.sum(moved**2, axis=0),
        ]

    return sum_over_blocks(products, chunk)
