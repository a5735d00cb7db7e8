"""Least squares: the weights that miss the target by least ("optimal decoding")."""

from jaxwgc.decoders._nearest_weights import iterated_weights
from jaxwgc.decoders._part_by_part import PartByPart


class LeastSquares(PartByPart):
    """The weights of least norm among those of least error; for any code.

    The norm is that of the weights times the norms of the rows of B, these as powers of
    two, so that the scale of a message does not matter. Many masks share the products
    of conjugate gradients; masks on which these do not converge are decomposed one by
    one.

    A weighted code is decoded as the code itself, for which all parts count alike, so
    that the error of each part is relative to its own weight; the target itself is
    fitted only where that misses by more than a thousandth.

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

    def _first_weights(self, rows, is_plain, num_stragglers, shape):
        return iterated_weights(rows)
