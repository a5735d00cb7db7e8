"""Least squares: weights of minimum residual ("optimal decoding")."""

from typing import ClassVar

import jax

from jaxwgc import _validation
from jaxwgc.decoders._accuracy import is_uniform
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._decomposition import decompose_some
from jaxwgc.decoders._nearest_weights import least_squares_weights


class LeastSquares(Decoder):
    """Minimum-norm least-squares weights, for any code.

    Weights are multiplied by the norms of the rows of B, rounded to powers of two, in
    this norm, so that the scale of a message does not matter. Many masks are solved
    together by conjugate gradients. Masks without convergence are decomposed one by
    one.

    A weighted code is decoded like the unweighted one, so that the error of each part
    is relative to its weight. The weighted target is fitted only if the residual
    exceeds a thousandth.

    Attributes:
      num_missing: Number of messages that may be missing for exact decoding, for every
        choice of them. On such masks, weights with a residual are replaced. 0 if the
        code guarantees nothing.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> decoder = jaxwgc.decoders.LeastSquares
      >>> jaxwgc.decoding_weights(code, received, decoder).round(3)
      Array([1. , 0.5, 0. , 0.5], dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017 ("optimal decoding").
    """

    num_missing: int | jax.Array = 0

    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        _validation.check_number("num_missing", self.num_missing, minimum=0)
        _validation.check_dtypes("num_missing", self.num_missing, "integers")

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        weights, is_poor, systems = least_squares_weights(
            mask, matrix, target, self.num_missing, is_uniform(target)
        )
        return decompose_some(is_poor, weights, mask, systems)
