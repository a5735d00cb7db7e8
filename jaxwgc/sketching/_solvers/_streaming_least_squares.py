"""Least squares with a matrix that is only ever there in blocks of rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._solvers._orthonormalisers import Orthonormaliser, from_factors
from jaxwgc.sketching._solvers._rounded_input import mind_rounding
from jaxwgc.sketching._solvers._solution import Solution, in_units, is_shortest
from jaxwgc.sketching._solvers._streamed_system import Blocks, StreamedSystem


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
        are needed; sparse blocks, of SciPy or BCOO, are converted to dense ones. All
        are computed in the dtype of the first.
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
      by a residual that was computed in the last pass, that the sketch saw every
      direction of X, and that the residual is about as short as it can be, also by
      float64 where blocks of that dtype are computed with in float32: as in
      `preconditioned`. It is not looked for heavy rows that hide others.

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
    stream = StreamedSystem(blocks)
    small = stream.small_matrix(key, sketch_size)
    p, dtype = stream.num_columns, small.dtype
    eps = float(jnp.finfo(dtype).eps)
    tolerance = float(_checks.stopping_tolerance(tolerance, 4 * eps, dtype))
    regulariser = _checks.regulariser(ridge, dtype)
    shape = stream.num_rows, p
    small, cutoff = _checks.with_cutoff(small, rcond, _checks.solver_cutoff, shape)
    small, target = small[:, :p], small[:, p:]
    key = jax.random.fold_in(key, 2**31 - 1)
    start, factors, probe = _start(key, small, target, regulariser, cutoff)
    start, probe = np.asarray(start, np.float64), np.asarray(probe, np.float64)
    system = _System(stream, factors, 0.0 if regulariser is None else float(ridge))
    state, passes, norms, is_complete = _iterate(
        system, start, probe, tolerance, max_passes, progress, float(cutoff)
    )
    error = system.backward_error(state)
    norms_of_y = np.linalg.norm(np.asarray(target, np.float64), axis=0)
    is_lowest = system.is_lowest(state, norms_of_y, tolerance, dtype)
    solution = np.where(np.isfinite(state.squared), state.solution, np.nan)
    norms += [norms[-1]] * (max_passes - len(norms))
    result = Solution(
        solution=jnp.asarray(solution, dtype),
        num_iterations=jnp.full(error.shape, passes, jnp.int32),
        converged=jnp.asarray((error <= tolerance) & is_complete & is_lowest),
        residual_history=jnp.asarray(np.stack(norms), dtype),
        rank=jax.tree.map(lambda x: jnp.full(error.shape, x), factors.rank),
    )
    units = jnp.asarray(stream.units, dtype)
    result = jax.vmap(in_units, (-1, 0, None), -1)(result, units, factors.scale)
    if stream.is_vector:
        result = jax.tree.map(lambda x: x[..., 0], result)
    if not stream.is_rounded:
        return result
    # Its Gram matrix is that of the rows as they were given.
    exact, exact_target = np.split(stream.exact_factor, [p], axis=1)
    if stream.is_vector:
        exact_target = exact_target[:, 0]
    return mind_rounding(result, exact, exact_target, ridge)


class _State(NamedTuple):
    """At θ (p, c): half of the negative gradient, and the value, of each system."""

    solution: np.ndarray
    gradient: np.ndarray
    squared: np.ndarray


class _System:
    """The problem to minimise over θ, and the factors that precondition it."""

    def __init__(self, stream: StreamedSystem, factors: Orthonormaliser, ridge: float):
        self.stream = stream
        self.factors = factors
        self.ridge = ridge
        self.scale = np.asarray(factors.scale, np.float64)[:, None]
        self.matrix = np.asarray(factors.matrix, np.float64)
        self.values = np.asarray(factors.singular_values, np.float64)[:, None]
        self.norm = float(factors.norm)

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
        return self.matrix.T @ (self.scale * state.gradient)

    def direction(self, in_range: np.ndarray) -> np.ndarray:
        direction = _shortest(self.factors, self.scale * (self.matrix @ in_range))
        return np.asarray(direction, np.float64)

    def backward_error(self, state: _State) -> np.ndarray:
        squares = np.sum((state.solution / self.scale) ** 2, axis=0)
        weight = self.values**2 * squares + state.squared
        share = self.values * self.in_range(state)
        share = share / np.sqrt(np.where(weight > 0, weight, 1))
        return np.linalg.norm(share, axis=0) / self.norm

    def is_lowest(
        self, state: _State, norms_of_y: np.ndarray, tolerance: float, dtype: Any
    ) -> np.ndarray:
        """Returns whether no residual can be much shorter, whatever rounding hides."""
        size = self.norm * np.linalg.norm(state.solution / self.scale, axis=0)
        rounding = 4 * float(jnp.finfo(dtype).eps) * size
        in_range = np.sum(self.in_range(state) ** 2, axis=0)
        hidden = self.scale * self.factors.cut_off((state.solution / self.scale).T).T
        longer = -2 * np.sum(hidden * state.gradient, axis=0)
        part = np.sqrt(in_range + rounding**2 + np.maximum(longer, 0))
        arrays = part, state.squared, norms_of_y
        part, squared, norms = (jnp.asarray(array, dtype) for array in arrays)
        return np.asarray(is_shortest(part, squared, norms, tolerance))


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
            norms_of_rest = np.sqrt(state.squared) / system.stream.units
            progress(passes, float(np.linalg.norm(norms_of_rest)))

    # The first of them has no direction yet. It asks instead whether X is zero where
    # its sketch is.
    state, _, seen = system.look(start, probe)
    scaled = probe[:, :1] / system.scale
    bound = 2 * cutoff * system.values[0, 0] * np.linalg.norm(scaled)
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


@jax.jit
def _start(
    key: jax.Array,
    small: jax.Array,
    target: jax.Array,
    ridge: jax.Array | None,
    rcond: jax.Array,
) -> tuple[jax.Array, Orthonormaliser, jax.Array]:
    """Returns θ of the small system, its factors, and vectors of the null space."""
    factors = from_factors(small, ridge, rcond)
    scale, basis = factors.scale, factors.matrix
    left = product(small * scale, basis)
    solution = scale[:, None] * product(basis, product(left.T, target))
    probe = jnp.where(factors.has_null_space, scale * factors.null_vector(key), 0)
    probes = jnp.broadcast_to(probe[:, None], solution.shape)
    return _shortest(factors, solution), factors, probes


@jax.jit
def _shortest(factors: Orthonormaliser, solution: jax.Array) -> jax.Array:
    return jax.vmap(factors.shortest, -1, -1)(solution)
