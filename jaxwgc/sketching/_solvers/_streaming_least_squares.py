"""Least squares with a matrix that is only ever there in blocks of rows."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._row_blocks import sum_over_blocks
from jaxwgc.sketching._scores._chunks import RepeatedChunks
from jaxwgc.sketching._scores._streaming_scores import Factor
from jaxwgc.sketching._solvers._orthonormalisers import Orthonormaliser, from_factors
from jaxwgc.sketching._solvers._solution import Solution

Blocks = Callable[[], Iterable[tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]]]

# Up to this many columns, the factor of all rows costs about as much as reading them.
_MAX_FACTOR_COLUMNS = 256
_SKETCH_ROWS_PER_COLUMN = 8


def streaming_least_squares(
    key: jax.Array,
    blocks: Blocks,
    sketch_size: int | None = None,
    *,
    ridge: float = 0.0,
    tolerance: float | None = None,
    max_passes: int = 50,
    rcond: float | None = None,
    progress: Callable[[int, float], Any] | None = None,
) -> Solution:
    """Solves least squares to full accuracy with data that do not fit in memory.

    Minimises ‖Xθ - y‖² + ridge ‖θ‖², as `preconditioned` does. The first pass makes a
    small matrix of all rows, and with it a first θ. Every other pass takes a step of
    conjugate gradients that are preconditioned by the small matrix, from the residual
    itself. The small matrix is

    - the R of a QR factorisation of [X y], as in `streaming_leverage_scores`, for up to
      256 columns: three passes are then mostly enough, and there is no randomness;
    - a sketch S[X y] by `sparse_sign` for more columns, or where a sketch_size is
      given: some thirty passes for 8p rows, fewer for larger sketches.

    Args:
      key: a PRNG key, for the sketch.
      blocks: a function without arguments that returns the blocks anew for each pass:
        an iterable of pairs of real arrays, (b, p) and (b,) or (b, c) for c systems; b
        may vary and may be 0. Slices of NumPy memory maps will do, and are read as they
        are needed. All are computed in the dtype of the first.
      sketch_size: m, at least p; see above for the default, with 8p rows.
      ridge: a non-negative number.
      tolerance: of the backward error, as in `preconditioned`; by default 4 times the
        rounding unit of the dtype.
      max_passes: the largest number of passes over the blocks, at least 2.
      rcond: as in `preconditioned`.
      progress: called as `progress(passes, residual)` after each pass but the first,
        with the norm of the residual, of all systems together.

    Returns:
      `Solution` of JAX arrays, with norms of the residual, and with a ridge the root of
      what is minimised, of shape (max_passes,): one for every pass from the second on.
      `num_iterations` is the number of passes, the first one and the last included.
      `converged` says that the backward error of each system has passed `tolerance`
      by a residual that was computed in the last pass, and that the sketch saw every
      direction of X. It is not looked for heavy rows that hide others.

    Raises:
      ValueError: for blocks with NaN or infinite entries (the block is named), whose
        shapes do not match, without rows, or that are not the same in all passes; for a
        sketch_size below p, a negative ridge or tolerance, an rcond outside [0, 1).
      TypeError: where blocks is not a function that gives an iterable of pairs of real
        arrays.

    Note:
      This runs on the host, and not under `jax.jit`, and has no derivatives. It takes
      the memory of a chunk of rows (32 MiB, or 16p rows where that is more), a block
      and a few matrices as large as the small one.

    Example:
      >>> import jax, numpy as np
      >>> from jaxwgc import sketching
      >>> def blocks():
      ...     for seed in range(3):
      ...         rows = np.random.default_rng(seed).standard_normal((1000, 2))
      ...         yield rows, rows @ [1.0, -2.0]
      >>> result = sketching.streaming_least_squares(jax.random.key(0), blocks)
      >>> print(result.solution.round(3), result.converged)
      [ 1. -2.] True

    References:
      As `preconditioned` and `streaming_leverage_scores`.
    """
    _validation.check_key(key)
    if not callable(blocks):
        raise TypeError(
            "blocks must be a function that returns an iterable of pairs of arrays, "
            f"since it is passed over often; got {type(blocks).__name__}"
        )
    max_passes = _validation.check_int("max_passes", max_passes, minimum=2)
    if progress is not None:
        _validation.check_callable("progress", progress)
    for name, value in (("ridge", ridge), ("rcond", rcond), ("tolerance", tolerance)):
        _validation.check_concrete(name, value, "blocks are read on the host")
    stream = _Stream(blocks)
    small = stream.small_matrix(key, sketch_size)
    p, dtype = stream.num_columns, small.dtype
    eps = float(jnp.finfo(dtype).eps)
    tolerance = float(_checks.stopping_tolerance(tolerance, 4 * eps, dtype))
    regulariser = _checks.regulariser(ridge, dtype)
    shape = stream.num_rows, p
    small, cutoff = _checks.with_cutoff(small, rcond, _checks.solver_cutoff, shape)
    small, target = small[:, :p], small[:, p:]
    start, factors, probe = _start(key, small, target, regulariser, cutoff)
    system = _System(stream, factors, 0.0 if regulariser is None else float(ridge))
    state, passes, norms, is_complete = _iterate(
        system, start, probe, tolerance, max_passes, progress, float(cutoff)
    )
    error = system.backward_error(state)
    solution = np.where(np.isfinite(state.squared), state.solution, np.nan)
    norms += [norms[-1]] * (max_passes - len(norms))
    result = Solution(
        solution=jnp.asarray(solution, dtype),
        num_iterations=jnp.full(error.shape, passes, jnp.int32),
        converged=jnp.asarray((error <= tolerance) & is_complete),
        residual_history=jnp.asarray(np.stack(norms), dtype),
        rank=jax.tree.map(lambda x: jnp.full(error.shape, x), factors.rank),
    )
    return jax.tree.map(lambda x: x[..., 0], result) if stream.is_vector else result


class _State(NamedTuple):
    """At θ (p, c): half of the negative gradient, and the value, of each system."""

    solution: np.ndarray
    gradient: np.ndarray
    squared: np.ndarray


class _Stream:
    """The rows of [X y], in chunks of one size, the same in every pass."""

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        self._rows = RepeatedChunks(self._pairs, fingerprint_of=self._fingerprint_of)
        self.num_columns = 0
        self.is_vector = True

    @property
    def num_rows(self) -> int:
        return self._rows.num_rows

    def small_matrix(self, key: jax.Array, sketch_size: int | None) -> jax.Array:
        """Returns a small matrix of all rows, in the first pass."""
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
                own = jax.random.fold_in(key, index)
                total = total + np.asarray(_sketch(own, chunk, sketch_size), float)
        if factor is not None:
            total = np.ldexp(factor.triangular, factor.exponents)
        return jnp.asarray(total.astype(dtype))

    def products(self, solution: np.ndarray, direction: np.ndarray) -> list[np.ndarray]:
        """Returns Xᵀr, rᵀr, XᵀXd and dᵀXᵀXd of r = y - Xθ, in one pass."""
        sums: Any = None
        for _, chunk, _ in self._rows:
            arrays = (solution.astype(chunk.dtype), direction.astype(chunk.dtype))
            # Sums of chunks in float64, in any mode.
            parts = [
                np.asarray(part, float) for part in _chunk_products(chunk, *arrays)
            ]
            sums = parts if sums is None else [a + b for a, b in zip(sums, parts)]
        return sums

    def _pairs(self) -> Iterator[np.ndarray]:
        """Yields [X y] of every block."""
        iterable = self._blocks()
        if not isinstance(iterable, Iterable) or isinstance(iterable, jax.Array):
            raise TypeError(
                "blocks() must be an iterable of pairs of arrays; got "
                f"{type(iterable).__name__}"
            )
        joined = None
        for index, block in enumerate(iterable):
            if not isinstance(block, tuple | list) or len(block) != 2:
                raise TypeError(
                    f"every block must be a pair of rows and target; got block {index} "
                    f"of {type(block).__name__}"
                )
            rows, target = (np.asarray(part) for part in block)
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
            yield joined

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
        raise ValueError("blocks must be finite; got numbers whose sums overflow")


class _System(NamedTuple):
    """What is minimised over θ, and the factors that precondition it."""

    stream: _Stream
    factors: Orthonormaliser
    ridge: float

    def look(
        self, solution: np.ndarray, direction: np.ndarray
    ) -> tuple[_State, np.ndarray, np.ndarray]:
        """Returns the state at θ, the image of a direction and its curvature."""
        gradient, squared, image, curvature = self.stream.products(solution, direction)
        gradient = gradient - self.ridge * solution
        squared = squared + self.ridge * np.sum(solution**2, axis=0)
        image = image + self.ridge * direction
        curvature = curvature + self.ridge * np.sum(direction**2, axis=0)
        return _State(solution, gradient, squared), image, curvature

    def in_range(self, state: _State) -> np.ndarray:
        scale = np.asarray(self.factors.scale, np.float64)[:, None]
        return np.asarray(self.factors.matrix, np.float64).T @ (scale * state.gradient)

    def direction(self, in_range: np.ndarray) -> np.ndarray:
        scale = np.asarray(self.factors.scale, np.float64)[:, None]
        direction = scale * (np.asarray(self.factors.matrix, np.float64) @ in_range)
        return _shortest(self.factors, direction)

    def backward_error(self, state: _State) -> np.ndarray:
        scale = np.asarray(self.factors.scale, np.float64)[:, None]
        # Squares of small residuals may vanish in float32.
        with np.errstate(invalid="ignore"):
            values = np.asarray(self.factors.singular_values, np.float64)[:, None]
            squares = np.sum((state.solution / scale) ** 2, axis=0)
            weight = values**2 * squares + state.squared
            share = values * self.in_range(state)
            share = share / np.sqrt(np.where(weight > 0, weight, 1))
            return np.linalg.norm(share, axis=0) / float(self.factors.norm)


def _iterate(
    system: _System,
    start: np.ndarray,
    probe: np.ndarray,
    tolerance: float,
    max_passes: int,
    progress: Callable[[int, float], Any] | None,
    cutoff: float,
) -> tuple[_State, int, list[np.ndarray], bool]:
    """Takes steps until every system is solved, each in one pass over the blocks."""
    norms: list[np.ndarray] = []

    def note(state: _State, passes: int) -> None:
        norms.append(np.sqrt(state.squared))
        if progress is not None:
            progress(passes, float(np.sqrt(np.sum(state.squared))))

    # The first of them has no direction yet. It asks instead whether X is zero where
    # its sketch is.
    state, _, seen = system.look(start, probe)
    scaled = np.asarray(probe[:, :1] / np.asarray(system.factors.scale)[:, None], float)
    largest = float(system.factors.singular_values[0])
    bound = 2 * cutoff * largest * np.linalg.norm(scaled)
    seen = seen - system.ridge * np.sum(probe**2, axis=0)
    is_complete = bool(np.sqrt(max(seen[0], 0.0)) <= bound)
    passes = 2
    note(state, passes)
    in_range = system.in_range(state)
    search = in_range
    while passes < max_passes:
        is_open = system.backward_error(state) > tolerance
        # The first step makes a direct solution as good as a refined one.
        is_open |= (passes == 2) & (in_range != 0).any(axis=0)
        if not is_open.any() or not np.isfinite(state.squared).all():
            break
        direction = system.direction(search) * is_open
        # The full step is right but for what the small matrix misses. The pass looks
        # where it ends, so that the residual there is not an update of another one.
        trial, image, curvature = system.look(state.solution + direction, direction)
        ahead = np.sum(direction * trial.gradient, axis=0)
        more = ahead / np.where(curvature > 0, curvature, np.inf)
        # Below rounding, the place that was looked at is as good.
        more = np.where(np.abs(more) > 1e-3, more, 0)
        state = _State(
            trial.solution + more * direction,
            trial.gradient - more * image,
            np.maximum(trial.squared - more * (2 * ahead - more * curvature), 0),
        )
        passes += 1
        note(state, passes)
        last, in_range = in_range, system.in_range(state)
        energy = np.sum(last**2, axis=0)
        turn = np.sum(in_range * (in_range - last), axis=0)
        turn = np.maximum(turn / np.where(energy > 0, energy, 1), 0)
        search = in_range + turn * search
    return state, passes, norms, is_complete


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
    chunk: jax.Array, solution: jax.Array, direction: jax.Array
) -> list[jax.Array]:
    p, num_systems = solution.shape

    def products(joined: jax.Array) -> list[jax.Array]:
        rows, target = joined[:, :p], joined[:, p:]
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


def _start(
    key: jax.Array,
    small: jax.Array,
    target: jax.Array,
    ridge: jax.Array | None,
    rcond: jax.Array,
) -> tuple[np.ndarray, Orthonormaliser, np.ndarray]:
    """Returns θ of the small system, its factors, and a vector of the null space."""
    factors = jax.jit(from_factors)(small, ridge, rcond)
    scale, basis = factors.scale[:, None], factors.matrix
    left = product(small * factors.scale, basis)
    solution = scale * product(basis, product(left.T, target))
    solution = _shortest(factors, np.asarray(solution, np.float64))
    probe = np.zeros_like(solution)
    if factors.has_null_space:
        vector = factors.null_vector(jax.random.fold_in(key, 2**31 - 1))
        probe[:] = np.asarray(factors.scale * vector, np.float64)[:, None]
    return solution, factors, probe


def _shortest(factors: Orthonormaliser, solution: np.ndarray) -> np.ndarray:
    """Returns each solution without its part in the null space of X."""
    if not factors.has_null_space:
        return solution
    dtype = factors.scale.dtype
    columns = jax.vmap(factors.shortest, -1, -1)(jnp.asarray(solution, dtype))
    return np.asarray(columns, np.float64)
