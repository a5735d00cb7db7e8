"""Weighting: parts that count more than once."""

import dataclasses

import jax
import numpy as np

from jaxwgc import _arrays, _validation
from jaxwgc.codes import GradientCode


def weighted(code: GradientCode, weights: jax.typing.ArrayLike) -> GradientCode:
    """The code whose decoded gradient is the sum over j of wⱼ gⱼ.

    Scales the columns of B and the target of decoding together. Works for every code,
    also for one that is weighted already (the weights multiply).

    Args:
      code: a gradient code.
      weights: real (num_parts,), such as the counts of a sample.

    Returns:
      A code with encoding matrix B diag(w).

    Raises:
      ValueError: where weights has the wrong shape, or (where not traced) a NaN or
        infinite entry.
      TypeError: where weights are not real numbers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.weighted(jaxwgc.codes.uncoded(3), jnp.array([2.0, 1.0, 3.0]))
      >>> jaxwgc.effective_weights(code, jnp.array([True, True, True]))
      Array([2., 1., 3.], dtype=float32)

    References:
      The paper's theorem 4.1.
    """
    GradientCode.check(code)
    kind, sizes = "real numbers or bools", {"num_parts": code.num_parts}
    factors = _validation.as_array("weights", weights, kind, **sizes)
    if not _validation.is_traced(factors):
        # On the host, where a code that was made there keeps its precision.
        factors = np.asarray(factors)
        _validation.require(np.isfinite(factors).all(), "weights", "be finite", factors)
    columns = factors.repeat(code.num_segments) if code.num_segments > 1 else factors
    return dataclasses.replace(
        code,
        encoding_matrix=_floats(code.encoding_matrix) * columns,
        target=_floats(code.target) * factors,
    )


def _floats(array):
    """Returns floats, since products of small integers would wrap around."""
    if not isinstance(array, np.ndarray):
        return _arrays.promoted(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
