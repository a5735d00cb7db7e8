"""BLESS: approximate ridge leverage scores without forming the kernel matrix."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.arrays import is_kind, next_power_of_two
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.rows import gram

Kernel = Callable[[Array, Array], Array]


class BlessSample(NamedTuple):
    """Landmarks sampled by ridge leverage scores, and the scores of all points.

    See `bless`.
    """

    indices: Array
    weights: Array
    scores: Array


def bless(
    key: Array,
    kernel: Kernel,
    data: ArrayLike,
    ridge: float,
    *,
    oversampling: float = 8.0,
    step: float = 2.0,
) -> BlessSample:
    """Computes ridge leverage scores and landmarks without forming a kernel matrix.

    The scores are the diagonal of K (K + ridge I)⁻¹ with Kᵢⱼ = k(xᵢ, xⱼ): the
    `ridge_leverage_scores` of the features of the kernel. They are computed along a
    path of falling ridges. At a large ridge, all scores are similar and few points
    represent the others. The points kept at one ridge give the scores at the next
    ridge, by which more points are kept. The returned scores are the exact scores of
    the kernel projected to the span of the last landmarks, plus the rest of each point
    over the ridge.

    Args:
      key: one PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      kernel: A positive semi-definite kernel that maps two arrays of points, (a, ...)
        and (b, ...), to the matrix (a, b). It must consist of JAX functions. Pass the
        same object in every call, so that it is compiled once.
      data: the points, real, of shape (n, ...).
      ridge: A positive number, added to K unscaled (λn in Rudi et al.). It must be at
        least 8 machine epsilons of the dtype times the trace of K: below that, rounding
        of K dominates.
      oversampling: The number of landmarks per unit of effective dimension, a positive
        number. With the default, scores are within a factor of 2 in practice.
      step: The ratio of successive ridges, above 1.

    Returns:
      A named tuple:

      - `indices`: int32 (M,), the landmarks, distinct and in ascending order.
      - `weights`: (M,), inverse inclusion probabilities of the landmarks, at least 1. Σ
        weightⱼ f(xⱼ) over the landmarks estimates Σ f(xᵢ) over all points.
      - `scores`: (n,), the approximate ridge leverage score of every point, in (0, 1].

      If there are too few landmarks, scores are too large, not too small. Rounding adds
      an error of the order of machine epsilon times the trace of K over the ridge.

    Raises:
      ValueError: If the data are empty or not finite; if the kernel returns another
        shape, or values that are not finite or negative on the diagonal; if a number is
        out of range.
      TypeError: If the key, data or ridge is traced, since the number of landmarks
        depends on them; if the data are not numeric.

    Note:
      The path runs on the host. Each of its steps is compiled, with sizes that are
      powers of two. M, the number of landmarks, is about `oversampling` times the
      effective dimension. Time is of the order of n M², and memory of 8192 M.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> def kernel(x, y):
      ...     return jnp.exp(-jnp.sum((x[:, None] - y) ** 2, axis=-1))
      >>> data = jax.random.normal(jax.random.key(0), (300, 1))
      >>> sample = sketching.bless(jax.random.key(1), kernel, data, ridge=1.0)
      >>> matrix = kernel(data, data)
      >>> exact = jnp.diag(jnp.linalg.solve(matrix + jnp.eye(300), matrix))
      >>> ratios = sample.scores / exact
      >>> print(bool(ratios.min() > 0.5), bool(ratios.max() < 2))
      True True

    References:
      Rudi, Calandriello, Carratino and Rosasco, "On fast leverage score sampling and
      optimal learning", NeurIPS 2018, algorithm 2 (BLESS-R) and equation 3, which is
      used along the path. Its weighted sums over landmarks leave a sampling error of
      one over the root of `oversampling` in the scores; the projection, with sums over
      all points, does not.
    """
    key = array_validation.check_key(key)
    validation.check_callable("kernel", kernel)
    array_validation.check_number("ridge", ridge, positive=True, traceable=False)
    array_validation.check_number("oversampling", oversampling, positive=True)
    array_validation.check_number("step", step)
    if step <= 1:
        raise ValueError(f"step must be more than 1; got {step}")
    points = conversions.gathered(_arguments.finite_array("data", data))
    array_validation.check_parts("data", points, "n")
    diagonal = _diagonal(kernel, points)
    dtype = diagonal.dtype
    trace = float(diagonal.sum())
    smallest_ridge = 8 * float(jnp.finfo(dtype).eps) * trace
    if not math.isfinite(ridge) or ridge < smallest_ridge:
        raise ValueError(
            "ridge must be finite and at least 8 machine epsilons times the trace of "
            f"the kernel matrix, {smallest_ridge:.3g} in {dtype}; got {ridge}"
        )
    points = points.astype(dtype)

    def scores_of(
        indices: np.ndarray,
        weights: np.ndarray,
        *,
        shift: float,
        ridge: float,
        is_projected: bool,
    ) -> np.ndarray:
        """Computes scores of all points from weighted landmarks."""
        # Points of weight 0 pad the landmarks to a power of two, so that few programs
        # are compiled.
        padding = (0, next_power_of_two(max(8, indices.size)) - indices.size)
        scores = _compiled_scores(
            points,
            diagonal,
            np.pad(indices.astype(np.int32), padding),
            np.pad(np.sqrt(weights), padding).astype(dtype),
            np.asarray([shift, ridge], dtype),
            kernel,
            is_projected,
        )
        if not np.isfinite(np.asarray(scores)).all():
            raise ValueError(
                "kernel must be finite and positive semi-definite; got NaN or infinite "
                "scores"
            )
        return np.asarray(scores)

    indices = np.zeros(0, np.int32)
    weights = np.zeros(0)
    # The path of ridges starts at most one step below the trace of the kernel matrix.
    # It needs no landmarks: at a ridge equal to the trace, every score is at least half
    # of its bound k(x, x) / ridge.
    num_steps = max(1, math.ceil(math.log(max(trace / ridge, 1)) / math.log(step)))
    for i in range(num_steps):
        current = float(ridge) * step ** (num_steps - 1 - i)
        scores = scores_of(
            indices, weights, shift=current, ridge=current, is_projected=False
        )
        # Exact scores are within these bounds. Scores with rounding errors may not be.
        lower = diagonal / (current + trace)
        upper = np.minimum(diagonal / current, 1)
        scores = np.clip(scores, lower, upper).astype(np.float64)
        probabilities = np.minimum(oversampling * scores, 1)
        uniform = jax.random.uniform(jax.random.fold_in(key, i), (diagonal.size,))
        indices = np.flatnonzero(uniform < probabilities)
        weights = 1 / probabilities[indices]
    # Landmarks may be numerically dependent. The shift, which is less than the ridge,
    # makes their kernel matrix positive definite.
    shift = 1.0
    if indices.size:
        shift = 4 * float(jnp.finfo(dtype).eps) * diagonal[indices].sum()
    ones = np.ones(indices.size)
    scores = scores_of(indices, ones, shift=shift, ridge=ridge, is_projected=True)
    return BlessSample(
        indices=jnp.asarray(indices, jnp.int32),
        weights=jnp.asarray(weights, dtype),
        # Exact scores never exceed this bound. Scores with rounding errors may.
        scores=jnp.asarray(np.minimum(scores, diagonal / (ridge + diagonal))),
    )


def _diagonal(kernel: Kernel, points: Array) -> np.ndarray:
    """Computes k(x, x) of every point x; raises ValueError if the kernel is invalid."""
    shape = jax.eval_shape(kernel, points[:2], points[:1])
    expected = (min(2, points.shape[0]), 1)
    if not is_kind(shape, "real floats") or shape.shape != expected:
        raise ValueError(
            "kernel must take points (a, ...) and (b, ...) to floats (a, b); got "
            f"{shape} for a, b = {expected}"
        )
    diagonal = np.asarray(_compiled_diagonal(points, kernel=kernel))
    is_valid = np.isfinite(diagonal) & (diagonal >= 0)
    validation.check_entries(
        "kernel", diagonal, is_valid, "finite and not negative for a point and itself"
    )
    return diagonal


@functools.partial(jax.jit, static_argnames="kernel")
def _compiled_diagonal(points: Array, kernel: Kernel) -> Array:
    return jax.vmap(lambda point: kernel(point[None], point[None])[0, 0])(points)


@functools.partial(jax.jit, static_argnames=("kernel", "is_projected"))
def _compiled_scores(
    points: Array,
    diagonal: np.ndarray,
    indices: np.ndarray,
    roots: np.ndarray,
    shift_and_ridge: np.ndarray,
    kernel: Kernel,
    is_projected: bool,
) -> Array:
    """Computes scores of all points from weighted landmarks, in one program.

    Let z be the coordinates of a point in the span of the landmarks. The score is (k(x,
    x) - zᵀz) / ridge. Projected scores add zᵀ (Σ z zᵀ + ridge I)⁻¹ z.
    """
    shift, ridge = shift_and_ridge
    chosen = points[indices]
    identity = jnp.eye(len(indices), dtype=diagonal.dtype)
    matrix = kernel(chosen, chosen) * roots * roots[:, None]
    factor = jnp.linalg.cholesky(matrix + shift * identity)
    rows = Dense(points.reshape(len(points), -1))

    def features(block: Array) -> Array:
        block = block.reshape(-1, *points.shape[1:])
        cross = kernel(chosen, block) * roots[:, None]
        return solve_triangular(factor, cross, lower=True)

    def norms_of(function: Callable[[Array], Array]) -> Array:
        def norms_of_block(block: Array) -> Array:
            return jnp.sum(function(block) ** 2, axis=0)

        return rows.map_rows(norms_of_block)

    rest = diagonal - norms_of(features)
    if not is_projected:
        return rest / ridge
    inner = rows.sum_rows(lambda block: gram(features(block).T))
    inner += ridge * identity
    inner = jnp.linalg.cholesky(inner)
    solved = norms_of(lambda x: solve_triangular(inner, features(x), lower=True))
    return solved + jnp.maximum(rest, 0) / ridge
