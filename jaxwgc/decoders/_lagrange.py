"""Lagrange interpolation, for codes evaluated at roots of unity."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import working
from jaxwgc._pytrees import Static
from jaxwgc._some_masks import is_nowhere
from jaxwgc.decoders._accuracy import is_uniform
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._interpolation import (
    improve_weights,
    interpolate,
    lagrange_weights,
)


class Lagrange(Decoder):
    """A closed form that costs one matrix product for a whole batch of masks.

    Where its weights are so large that they miss the target by more than 1e-4 in
    float32 (1e-10 in float64), as on masks whose stragglers are neighbours on the
    circle of points, smaller ones come from a system of the size of s, and least
    squares where these miss, too; masks with fewer than n - s answers get least
    squares, one by one. Weighted codes are decoded as by `LeastSquares`.

    Attributes:
      positions: int (num_workers,), a permutation of 0, ..., n - 1: worker i sits at
        the point exp(2πi positions[i] / n), at which the polynomials of the code are
        evaluated.
      num_stragglers: s; the polynomials are of degree n - s - 1 at most.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(4, num_parts=4, replication=2)
      >>> code.decoders[0]
      Lagrange(positions=array([0, 1, 2, 3]), num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.effective_weights(code, received).round(3)
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018; the paper's section 2.2.
    """

    positions: Array
    # The size of the system for masks on which the closed form misses.
    num_stragglers: Static[int]

    needs: ClassVar[str] = "evaluated at roots of unity, such as codes.reed_solomon"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        positions = _validation.as_array("positions", self.positions)
        _validation.check_dtypes("positions", positions, "integers")
        number = len(matrix)
        _validation.check_stragglers(self.num_stragglers, number)
        is_known = not _validation.is_traced(positions)
        if positions.shape != (number,) or (
            is_known and not np.array_equal(np.sort(positions), np.arange(number))
        ):
            raise ValueError(
                "positions must be a permutation of the numbers below num_workers = "
                f"{number}; got {positions}"
            )
        if not np.issubdtype(matrix.dtype, np.complexfloating):
            self.refuse_matrix(matrix)
        if is_known and isinstance(matrix, np.ndarray):
            values = np.empty_like(matrix)
            values[np.asarray(positions)] = matrix
            coefficients = np.abs(np.fft.fft(values, axis=0))
            high = coefficients[number - self.num_stragglers :]
            if np.any(high > 1e-6 * coefficients.max()):
                self.refuse_matrix(matrix)

    def interpolation(self, mask: jax.Array) -> tuple[jax.Array, Array, int]:
        positions = working(self.positions)
        number = len(positions)
        points: Array = np.exp(2j * np.pi * np.arange(number) / number)
        weights = interpolate(mask, positions)[..., 0, :]
        if isinstance(positions, jax.Array):
            points = jnp.asarray(points, weights.dtype)
        return weights, points[positions], number - self.num_stragglers

    def closed_form(self, mask: jax.Array) -> jax.Array:
        """Returns the weights (..., 1, num_workers) of the formula alone."""
        return interpolate(mask, self.positions)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        positions = jnp.asarray(working(self.positions))
        weights, may_miss, systems = lagrange_weights(
            mask, matrix, target, positions, self.num_stragglers, is_uniform(target)
        )
        if is_nowhere(may_miss):
            return weights
        return improve_weights(
            weights, may_miss, systems, mask, positions, self.num_stragglers
        )
