"""Lagrange interpolation, for codes evaluated at roots of unity."""

import math
from typing import Any, ClassVar

import jax
import numpy as np

from jaxwgc import _validation
from jaxwgc._pytrees import Static
from jaxwgc.decoders._interpolation import interpolate, lagrange_weights
from jaxwgc.decoders._nearest_weights import iterated_weights
from jaxwgc.decoders._part_by_part import PartByPart


class Lagrange(PartByPart):
    """A closed form that costs one matrix product for a whole batch of masks.

    Where its weights are so large that they miss the target by more than rounding, as
    on masks whose stragglers are neighbours on the circle of points, smaller ones come
    from a system of the size of s; and masks with fewer than n - s answers get least
    squares, one by one. Weighted codes are decoded as by `LeastSquares`.

    Attributes:
      point_step: worker i sits at the point exp(2 pi i (point_step * i) / num_workers),
        at which the polynomials of the code are evaluated.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(4, num_parts=4, replication=2)
      >>> code.decoders[0]
      Lagrange(point_step=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.effective_weights(code, received).round(3)
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018; the paper's section 2.2.
    """

    point_step: Static[int]

    needs: ClassVar[str] = "evaluated at roots of unity, such as codes.reed_solomon"

    def check(self, code: Any) -> None:
        code.check_plain(f"decoder {self}")
        if not code.is_complex:
            self.refuse(code)
        _validation.check_int("point_step", self.point_step, minimum=1)

    def check_entries(self, code: Any) -> None:
        """Columns are values of polynomials of degree n - s - 1 at most."""
        number = code.num_workers
        if math.gcd(self.point_step, number) != 1:
            self.refuse(code)
        values = np.empty_like(code.encoding_matrix)
        values[self.point_step * np.arange(number) % number] = code.encoding_matrix
        coefficients = np.abs(np.fft.fft(values, axis=0))
        if np.any(
            coefficients[number - code.num_stragglers :] > 1e-6 * coefficients.max()
        ):
            self.refuse(code)

    def closed_form(self, mask: jax.Array) -> jax.Array:
        """The weights (..., 1, num_workers) of the formula alone, however large."""
        return interpolate(mask, self.point_step)

    def _shape(self, code):
        # That of the dual code, which pays where it is small.
        is_small = 4 * code.num_stragglers <= code.num_workers
        return code.num_stragglers if is_small else 0

    def _first_weights(self, rows, is_plain, num_stragglers, shape):
        def lagrange():
            return lagrange_weights(rows, num_stragglers, self.point_step, shape)

        if is_plain is True:
            return lagrange()
        return jax.lax.cond(is_plain, lagrange, lambda: iterated_weights(rows))
