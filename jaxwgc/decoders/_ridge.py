"""Regularised least-squares decoding, for noisy messages."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import scale_of
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._least_squares import nearest_weights
from jaxwgc.decoders._systems import System, scaled_rows, squared_norm

# Smallest accepted noise. With less, the weights are nearly those of least squares, and
# the system may be too ill-conditioned for float32.
_SMALLEST_NOISE = 0.01


class Ridge(Decoder):
    """Decodes noisy messages of any code with the least expected error.

    They minimise ‖aᵀB - target‖² + noise² Σᵢ |aᵢ|² ‖bᵢ‖², where bᵢ is the row of the
    i-th message. This is the expected squared error of the decoded sum under two
    conditions. The gradients of the parts are uncorrelated and of equal variance, and
    each message has an independent error of `noise` times its own standard deviation.
    Least squares, which ignore the noise, may amplify it by large weights.

    The decoder is inexact on purpose: with noiseless messages, it leaves a residual of
    the order of noise², also if all workers respond. See `Decoder.is_exact`, and set
    the tolerance of `stragglers.until_decodable`.

    Attributes:
      noise: Standard deviation of the error of a message relative to that of the
        message, at least 0.01; with less, use another decoder. For messages of b bits
        per number, about the root of `coding.quantization_variance(length, b)`. May be
        traced; values out of range are then not noticed.

    Example:
      It has smaller weights than exact decoding, and so amplifies noise less:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(4, num_stragglers=2)
      >>> received = jnp.array([True, True, True, False])
      >>> decoder = jaxwgc.decoders.Ridge(noise=0.1)
      >>> weights = jaxwgc.decoding(code, received, decoder).weights
      >>> exact = jaxwgc.decoding(code, received).weights
      >>> bool(jnp.linalg.norm(weights) < jnp.linalg.norm(exact))
      True

    References:
      Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal
      problems", Technometrics 1970.
    """

    noise: float

    is_exact: ClassVar[bool] = False

    def check(self, matrix: Array, target: Array) -> None:
        array_validation.check_number("noise", self.noise, finite=True)
        if not array_validation.is_traced(self.noise) and self.noise < _SMALLEST_NOISE:
            raise ValueError(
                f"noise must be at least {_SMALLEST_NOISE}; got {self.noise}. With "
                "less, use another decoder: noise hardly changes the weights"
            )

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        scale = scale_of(target)
        # Scaled rows have squares in the range of the dtype.
        rows, norms = scaled_rows(jnp.asarray(matrix) / scale)
        # A column for the noise of each message makes this a least-squares problem.
        noise_columns = jnp.diag(self.noise * jnp.sqrt(squared_norm(rows)))
        no_noise = jnp.zeros((len(target), len(rows)), norms.dtype)
        system = System(
            matrix=jnp.concatenate([rows, noise_columns.astype(rows.dtype)], axis=1),
            norms=norms,
            target=jnp.concatenate([target / scale, no_noise], axis=1),
        )
        weights, _ = nearest_weights(mask, system)
        return weights
