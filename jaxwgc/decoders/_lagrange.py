"""Lagrange interpolation, for codes evaluated at roots of unity."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import working
from jaxwgc._pytrees import Static
from jaxwgc._some_masks import is_nowhere, masked_map
from jaxwgc._targets import rounding
from jaxwgc.decoders._accuracy import is_uniform, squared_norm, systems_of
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._decomposition import decompose
from jaxwgc.decoders._dual import dual_weights
from jaxwgc.decoders._interpolation import dual_of_polynomials, interpolate

# Residual due to rounding of weights and of B, in eps of the norm of the weights:
# measured 0.2 to 0.5 over random masks of n from 50 to 200.
_EPS_OF_NORM = 0.5


class Lagrange(Decoder):
    """Closed-form weights, by one matrix product for a whole batch of masks.

    If stragglers are neighbours on the circle of points, weights are large, and the
    residual can exceed 1e-4 in float32 (1e-10 in float64). Smaller weights are then
    computed from a system of size s, or by least squares if their residual is also too
    large. Masks with fewer than n - s responses are solved by least squares, one by
    one. Weighted codes are decoded as in `LeastSquares`.

    Attributes:
      positions: int (num_workers,), a permutation of 0, ..., n - 1: the polynomials of
        the code are evaluated at exp(2πi positions[i] / n) by worker i.
      num_stragglers: s; the polynomials have degree at most n - s - 1.

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
    # Size of the system for masks with an inaccurate closed form.
    num_stragglers: Static[int]

    needs: ClassVar[str] = "evaluated at roots of unity, such as codes.reed_solomon"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        number = len(matrix)
        given, sizes = self.positions, {"num_workers": number}
        positions = _validation.as_array("positions", given, "integers", **sizes)
        _validation.check_stragglers(self.num_stragglers, number)
        self.check_matrix(np.iscomplexobj(matrix), matrix)
        is_known = not _validation.is_traced(positions)
        if is_known:
            is_right = np.array_equal(np.sort(positions), np.arange(number))
            rule = "be a permutation of the numbers below num_workers"
            _validation.require(is_right, "positions", rule, positions)
        if is_known and isinstance(matrix, np.ndarray):
            values = np.empty_like(matrix)
            values[np.asarray(positions)] = matrix
            coefficients = np.abs(np.fft.fft(values, axis=0))
            high = coefficients[number - self.num_stragglers :]
            self.check_matrix(np.all(high <= 1e-6 * coefficients.max()), matrix)

    def interpolation(self, mask: jax.Array) -> tuple[jax.Array, Array, int]:
        positions = working(self.positions)
        number = len(positions)
        points: Array = np.exp(2j * np.pi * np.arange(number) / number)
        weights = interpolate(mask, positions)[..., 0, :]
        if isinstance(positions, jax.Array):
            points = jnp.asarray(points, weights.dtype)
        return weights, points[positions], number - self.num_stragglers

    def closed_form(self, mask: jax.Array) -> jax.Array:
        """Returns the weights (..., 1, num_workers) of the closed form alone."""
        return interpolate(mask, self.positions)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        found = _weights(self, mask, matrix, target, is_uniform(target))
        return found[0] if is_nowhere(found[1]) else _improve(self, mask, *found)


@functools.partial(jax.jit, static_argnames="is_uniform")
def _weights(decoder, mask, matrix, target, is_uniform):
    """Returns weights, the masks that may be inaccurate, and `systems_of` the code.

    Interpolation does not apply to masks with too few messages. On other masks it may
    amplify rounding: if their stragglers are neighbours on the circle, weights are so
    large that the residual grows.
    """
    systems = systems_of(matrix, target, is_uniform)
    plain, dtype = systems.at(0), systems.matrix.dtype
    is_short = (~mask).sum(-1) > decoder.num_stragglers
    weights = interpolate(mask, decoder.positions)
    weights = jnp.where(is_short[..., None, None], 0, weights).astype(dtype)
    # Estimate of the residual: its computation would take as long as the weights.
    norm = squared_norm(weights[..., 0, :] * plain.norms)
    size = jnp.sqrt(norm / squared_norm(plain.target[0]))
    is_rounding = _EPS_OF_NORM * jnp.finfo(dtype).eps * size <= rounding(dtype)
    return weights, is_short | ~is_rounding, systems


@jax.jit
def _improve(decoder, mask, weights, may_miss, systems):
    """Replaces weights with a residual above rounding.

    Weights are first computed with the dual code, which trades the residual against
    their norm. If their residual is also above rounding, or if there are many
    stragglers, they are computed by a decomposition. The best weights are returned.
    """
    lost, dual = decoder.num_stragglers, None
    if 0 < 4 * lost <= mask.shape[-1]:
        dual = dual_of_polynomials(decoder.positions, lost, weights.dtype)

    def improve(weights, mask, systems, dual):
        plain = systems.at(0)
        if dual is not None:
            solve = functools.partial(dual_weights, num_stragglers=lost)
            weights = _unless_good(weights, plain, solve, mask, plain, dual)
        return _unless_good(weights, plain, decompose, mask, systems)

    return masked_map(may_miss, improve, weights, (weights, mask), (systems, dual))


def _unless_good(weights, system, solve, *arguments):
    """Returns weights, or `solve` of them if their residual is above rounding."""
    is_good = system.residual(weights) <= rounding(weights.dtype)
    return jax.lax.cond(is_good, lambda: weights, lambda: solve(weights, *arguments))
