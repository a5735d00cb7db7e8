"""BLESS: approximate ridge leverage scores of a kernel matrix never formed."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from jaxwgc import _validation
from jaxwgc._arrays import next_power_of_two, product
from jaxwgc._pytrees import Static, register
from jaxwgc.sketching import _checks

Kernel = Callable[[jax.Array, jax.Array], jax.Array]

_BLOCK = 4096


class BlessSample(NamedTuple):
    """Landmarks drawn by ridge leverage scores, and the scores of all points.

    Attributes:
      indices: int32 (M,), the landmarks, all different and in order.
      weights: (M,), one over the probability with which each was kept, so at least 1.
        Σ weightⱼ f(xⱼ) over the landmarks stands for Σ f(xᵢ) over all points.
      scores: (n,), the approximate ridge leverage score of every point, in (0, 1].
    """

    indices: jax.Array
    weights: jax.Array
    scores: jax.Array


def bless(
    key: jax.Array,
    kernel: Kernel,
    data: jax.typing.ArrayLike,
    ridge: float,
    *,
    oversampling: float = 8.0,
    step: float = 2.0,
) -> BlessSample:
    """Returns approximate ridge leverage scores without forming the kernel matrix.

    The scores are the diagonal of K (K + ridge I)⁻¹ with Kᵢⱼ = k(xᵢ, xⱼ): those of
    `ridge_leverage_scores` for the features of the kernel. They are found along a path
    of falling ridges: at a large ridge all are alike and few points stand for all; the
    points kept at one ridge give the scores at the next, by which more are kept. The
    scores that are returned are the exact ones of the kernel projected to the span of
    the last landmarks, plus what is left of each point over the ridge.

    Args:
      key: one PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      kernel: a positive semi-definite kernel that takes two arrays of points, (a, ...)
        and (b, ...), to the matrix (a, b); made of JAX functions, and the same object
        in every call, so that it is compiled once.
      data: the points, real, of shape (n, ...).
      ridge: a positive number, added to K as it is. Rudi et al. write λn for it. It
        must be at least 8 rounding units of the dtype times the trace of K: below that
        K itself is not known well enough.
      oversampling: how many landmarks are kept for each unit of effective dimension; a
        positive number. With the default, scores are within a factor of 2 in practice.
      step: the ratio of successive ridges, above 1.

    Returns:
      A `BlessSample`. Scores are too large, not too small, where there are too few
      landmarks. Rounding adds an error of the order of the rounding unit times the
      trace of K over the ridge.

    Raises:
      ValueError: for data without points or (NaN or infinite) values, a kernel that
        gives another shape, or values that are not finite or negative on the diagonal;
        for numbers out of range.
      TypeError: for a traced key, data or ridge: how many points are kept depends on
        them. For anything but numbers.

    Note:
      The path runs on the host; each of its steps is compiled, with sizes that are
      powers of two. With M landmarks, about `oversampling` times the effective
      dimension, this takes time of the order of n M² and memory of 4096 M.

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
    key = _validation.check_key(key)
    _validation.check_number("ridge", ridge, positive=True)
    _validation.check_number("oversampling", oversampling, positive=True)
    _validation.check_number("step", step, minimum=1)
    if _validation.is_traced(key, data, ridge, oversampling, step):
        raise TypeError(
            "bless must not be traced: how many points it keeps depends on their values"
        )
    if not step > 1:
        raise ValueError(f"step must be more than 1; got {step}")
    points = _checks.float_array("data", data)
    if points.ndim < 1 or points.shape[0] < 1:
        raise ValueError(f"data must have at least one point; got shape {points.shape}")
    _checks.check_finite("data", data, points.dtype)
    points = _Points(kernel, points, _diagonal(kernel, points))
    dtype = points.diagonal.dtype
    largest, trace = float(points.diagonal.max()), float(points.diagonal.sum())
    smallest_ridge = 8 * float(jnp.finfo(dtype).eps) * trace
    if not (math.isfinite(ridge) and ridge >= smallest_ridge):
        raise ValueError(
            "ridge must be finite and at least 8 rounding units times the trace of the "
            f"kernel matrix, {smallest_ridge:.3g} in {dtype}; got {ridge}"
        )

    num_points = points.diagonal.size
    indices, weights = np.zeros(0, np.int32), np.zeros(0)
    # At a ridge of the trace, no score is above 1/2 of its bound k(x, x) / ridge.
    num_steps = max(1, math.ceil(math.log(max(trace / ridge, 1)) / math.log(step)))
    for i in range(num_steps):
        current = float(ridge) * step ** (num_steps - 1 - i)
        # No point is kept with more than this probability, so that the scores of the
        # others are not needed.
        bound = min(1.0, oversampling * largest / current)
        uniform = np.asarray(_uniform(key, i, num_steps, num_points))
        candidates = np.flatnonzero(uniform < bound)
        scores = points.scores(candidates, indices, weights, current)
        probabilities = np.minimum(oversampling * scores.astype(np.float64), 1)
        kept = uniform[candidates] < probabilities
        indices, weights = candidates[kept], 1 / probabilities[kept]
    return BlessSample(
        indices=jnp.asarray(indices, jnp.int32),
        weights=jnp.asarray(weights, dtype),
        scores=jnp.asarray(points.projected_scores(indices, float(ridge))),
    )


def _diagonal(kernel: Kernel, points: jax.Array) -> np.ndarray:
    """Returns k(x, x) of all points, after a check of the kernel."""
    shape = jax.eval_shape(kernel, points[:2], points[:1])
    expected = (min(2, points.shape[0]), 1)
    if getattr(shape, "shape", None) != expected:
        raise ValueError(
            "kernel must take (a, ...) and (b, ...) to an array of shape (a, b); for "
            f"a, b = {expected} it gave {shape}"
        )
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise TypeError(f"kernel must give real numbers; got {shape.dtype}")
    diagonal = np.asarray(_compiled_diagonal(points, kernel=kernel))
    is_right = np.isfinite(diagonal) & (diagonal >= 0)
    rule = "finite and not negative for a point and itself"
    _validation.check_entries("kernel", diagonal, is_right, rule)
    if not diagonal.any():
        raise ValueError("kernel must not be zero for all points and themselves")
    return diagonal


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _Landmarks:
    """Points that stand for all: the roots of their weights, and a Cholesky factor.

    The factor is that of W^(1/2) K W^(1/2) + shift I.
    """

    kernel: Static[Kernel]
    points: jax.Array
    roots: jax.Array
    factor: jax.Array

    def features(self, points: jax.Array) -> jax.Array:
        """Returns columns z with zᵀz the part of k(x, x) that landmarks explain."""
        cross = self.kernel(self.points, points) * self.roots[:, None]
        return solve_triangular(self.factor, cross, lower=True)


class _Points(NamedTuple):
    """All points, and k(x, x) of each."""

    kernel: Kernel
    points: jax.Array
    diagonal: np.ndarray

    def landmarks(
        self, indices: np.ndarray, weights: np.ndarray, shift: float
    ) -> _Landmarks:
        # Padding has the weight 0, and so counts for nothing.
        padded = _padded(indices, _size(indices))
        roots = np.pad(np.sqrt(weights), (0, padded.size - indices.size))
        roots = roots.astype(self.diagonal.dtype)
        return _landmarks(self.points, padded, roots, shift, kernel=self.kernel)

    def scores(
        self,
        candidates: np.ndarray,
        indices: np.ndarray,
        weights: np.ndarray,
        ridge: float,
    ) -> np.ndarray:
        """Returns scores of the candidates, by sums over weighted landmarks."""
        landmarks = self.landmarks(indices, weights, ridge)
        (explained,) = self.squared_norms(candidates, landmarks)
        diagonal = self.diagonal[candidates]
        # The bounds hold for the exact scores; rounding may leave them.
        lowest = diagonal / (ridge + self.diagonal.sum())
        highest = np.minimum(diagonal / ridge, 1)
        return np.clip((diagonal - explained) / ridge, lowest, highest)

    def projected_scores(self, indices: np.ndarray, ridge: float) -> np.ndarray:
        """Returns zᵀ (Σ z zᵀ + ridge I)⁻¹ z + (k(x, x) - zᵀz) / ridge of all points.

        Here z are the coordinates of a point in the span of the landmarks.
        """
        diagonal = self.diagonal
        # Landmarks may be as good as dependent. The ridge is larger than this.
        shift = 4 * np.finfo(diagonal.dtype).eps * diagonal[indices].sum()
        shift = shift if indices.size else 1.0
        landmarks = self.landmarks(indices, np.ones(indices.size), shift)
        everyone = np.arange(diagonal.size)
        gram = np.zeros(landmarks.factor.shape, diagonal.dtype)
        for block, number in _blocks(everyone):
            gram += np.asarray(_gram(landmarks, self.points, block, number))
        inner = _shifted_factor(gram, ridge)
        explained, solved = self.squared_norms(everyone, landmarks, inner)
        scores = solved + np.maximum(diagonal - explained, 0) / ridge
        # Holds for the exact scores.
        return np.minimum(scores, diagonal / (ridge + diagonal))

    def squared_norms(
        self,
        candidates: np.ndarray,
        landmarks: _Landmarks,
        inner: jax.Array | None = None,
    ) -> np.ndarray:
        """Returns the `_squared_norms` of the candidates, a block of them at a time."""
        parts = [np.zeros((1 if inner is None else 2, 0), self.diagonal.dtype)]
        for block, number in _blocks(candidates):
            norms = _squared_norms(landmarks, self.points, block, inner)
            parts.append(np.asarray(norms)[:, :number])
        norms = np.concatenate(parts, axis=1)
        if not np.isfinite(norms).all():
            raise ValueError(
                "kernel must be finite and positive semi-definite; it is not"
            )
        return norms


def _blocks(indices: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yields indices in arrays of one size, and how many in each are not padding."""
    size = min(_BLOCK, _size(indices))
    for start in range(0, indices.size, size):
        block = indices[start : start + size]
        yield _padded(block, size), block.size


def _size(indices: np.ndarray) -> int:
    # Few different sizes, each of which is compiled.
    return next_power_of_two(max(8, indices.size))


def _padded(indices: np.ndarray, size: int) -> np.ndarray:
    return np.pad(indices.astype(np.int32), (0, size - indices.size))


@functools.partial(jax.jit, static_argnames=("num_steps", "num_points"))
def _uniform(
    key: jax.Array, step: int | jax.Array, num_steps: int, num_points: int
) -> jax.Array:
    """Returns the uniform variable of every point in one of the steps."""
    key = jax.random.split(key, num_steps)[step]
    return jax.random.uniform(key, (num_points,), np.float32)


@functools.partial(jax.jit, static_argnames="kernel")
def _compiled_diagonal(points: jax.Array, kernel: Kernel) -> jax.Array:
    return jax.vmap(lambda point: kernel(point[None], point[None])[0, 0])(points)


@functools.partial(jax.jit, static_argnames="kernel")
def _landmarks(
    points: jax.Array,
    indices: jax.Array,
    roots: jax.Array,
    shift: jax.Array,
    kernel: Kernel,
) -> _Landmarks:
    chosen = points[indices]
    matrix = kernel(chosen, chosen) * roots * roots[:, None]
    return _Landmarks(kernel, chosen, roots, _shifted_factor(matrix, shift))


@jax.jit
def _shifted_factor(matrix: jax.Array, shift: jax.Array) -> jax.Array:
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jnp.linalg.cholesky(matrix + shift * identity)


@jax.jit
def _squared_norms(
    landmarks: _Landmarks, points: jax.Array, block: jax.Array, inner: jax.Array | None
) -> jax.Array:
    """Returns zᵀz of each point; with L = `inner`, zᵀ (L Lᵀ)⁻¹ z as well."""
    features = [landmarks.features(points[block])]
    if inner is not None:
        features.append(solve_triangular(inner, features[0], lower=True))
    return jnp.stack([jnp.sum(columns**2, axis=0) for columns in features])


@jax.jit
def _gram(
    landmarks: _Landmarks, points: jax.Array, block: jax.Array, number: jax.Array
) -> jax.Array:
    features = landmarks.features(points[block])
    features = jnp.where(jnp.arange(features.shape[1]) < number, features, 0)
    return product(features, features.T)
