"""Least squares: the weights that miss the target by least ("optimal decoding")."""

from typing import ClassVar

import jax

from jaxwgc import _validation
from jaxwgc.decoders._accuracy import is_uniform
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._decomposition import decompose_some
from jaxwgc.decoders._nearest_weights import least_squares_weights


class LeastSquares(Decoder):
    """The weights of least norm among those of least error; for any code.

    The norm is that of the weights times the norms of the rows of B, these as powers of
    two, so that the scale of a message does not matter. Many masks share the products
    of conjugate gradients; masks on which these do not converge are decomposed one by
    one.

    A weighted code is decoded as the code itself, for which all parts count alike, so
    that the error of each part is relative to its own weight; the target itself is
    fitted only where that misses by more than a thousandth.

    Attributes:
      num_missing: how many messages may be missing, whichever they are, for the others
        to decode exactly: where so few are, weights that miss are not the nearest ones.
        0 where nothing is promised.

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
