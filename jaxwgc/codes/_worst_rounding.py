"""Accuracy of an exact code in float32, for the worst pattern of stragglers."""

import numpy as np
import scipy

from jaxwgc._common import validation
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._tolerance import patterns_lost


def worst_rounding(
    code: GradientCode, num_patterns: int = 1000
) -> tuple[float, np.ndarray]:
    """Returns the largest residual of a code in float32, and the responses causing it.

    Least-squares weights are computed in float64, and rounded to float32 like the
    encoding matrix. The result measures the conditioning of a code, independently of
    the decoder: it is about what a good decoder reaches.

    Args:
      code: Gradient code. Not traced.
      num_patterns: Maximum number of patterns of s stragglers. If there are more, this
        many are drawn at random, with a fixed seed.

    Returns:
      The norm of aᵀB - target relative to the norm of the target, and a mask
      `received`, bool (num_workers,) in NumPy.

    Raises:
      ValueError: If num_patterns is below 1.
      TypeError: If code is not a GradientCode or is traced, or num_patterns is not an
        int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(12, num_parts=12, replication=4)
      >>> published = jaxwgc.codes.reed_solomon(12, 12, 4, interleave=False)
      >>> residual, received = jaxwgc.codes.worst_rounding(published)
      >>> bool(residual > 5 * jaxwgc.codes.worst_rounding(code)[0]), int(received.sum())
      (True, 9)
    """
    GradientCode.check(code, concrete="patterns are tried on the host")
    num_patterns = validation.check_int("num_patterns", num_patterns, minimum=1)
    matrix = np.asarray(code.encoding_matrix)
    target = code.segment_targets
    single = np.complex64 if code.is_complex else np.float32
    rounded = matrix.astype(single).astype(matrix.dtype)
    scale = np.linalg.norm(target) or 1.0
    worst_residual = -1.0
    worst_received = np.ones(code.num_workers, bool)
    for lost in patterns_lost(code.num_workers, code.num_stragglers, num_patterns):
        received = np.ones(code.num_workers, bool)
        received[list(lost)] = False
        sent = received.repeat(code.messages_per_worker)
        weights = scipy.linalg.lstsq(
            matrix[sent].T, target.T, lapack_driver="gelsy", check_finite=False
        )[0]
        weights = weights.astype(single).astype(matrix.dtype)
        residual = float(np.linalg.norm(weights.T @ rounded[sent] - target) / scale)
        if not residual <= worst_residual:
            worst_residual = residual
            worst_received = received
    return worst_residual, worst_received
