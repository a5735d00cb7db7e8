"""How far an exact code is from exact in float32, for the answers that do worst."""

import numpy as np
import scipy

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.codes._tolerance import patterns_lost


def worst_rounding(
    code: GradientCode, num_patterns: int = 1000
) -> tuple[float, np.ndarray]:
    """Returns by how much float32 misses the target at worst, and for which answers.

    The nearest weights are found in float64, and rounded to float32 as the encoding
    matrix is. That tells how well a code is conditioned, whatever decodes it: it is
    about what a good decoder reaches.

    Args:
      code: a gradient code. Not traced.
      num_patterns: every pattern of s stragglers is tried where there are no more than
        that, and as many random ones, always the same, elsewhere.

    Returns:
      The norm of aᵀB - target over that of the target, and a mask `received`, bool
      (num_workers,) in NumPy.

    Raises:
      ValueError: where num_patterns is less than 1.
      TypeError: where the code is none or is traced, or num_patterns is no int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(12, num_parts=12, replication=4)
      >>> published = jaxwgc.codes.reed_solomon(12, 12, 4, interleave=False)
      >>> miss, received = jaxwgc.codes.worst_rounding(published)
      >>> bool(miss > 5 * jaxwgc.codes.worst_rounding(code)[0]), int(received.sum())
      (True, 9)
    """
    GradientCode.check(code, concrete="patterns are tried on the host")
    num_patterns = _validation.check_int("num_patterns", num_patterns, minimum=1)
    matrix, target = np.asarray(code.encoding_matrix), code.segment_targets
    single = np.complex64 if code.is_complex else np.float32
    rounded = matrix.astype(single).astype(matrix.dtype)
    scale = np.linalg.norm(target) or 1.0
    worst = -1.0, np.ones(code.num_workers, bool)
    for lost in patterns_lost(code.num_workers, code.num_stragglers, num_patterns):
        received = np.ones(code.num_workers, bool)
        received[list(lost)] = False
        sent = received.repeat(code.messages_per_worker)
        weights = scipy.linalg.lstsq(
            matrix[sent].T, target.T, lapack_driver="gelsy", check_finite=False
        )[0]
        weights = weights.astype(single).astype(matrix.dtype)
        miss = float(np.linalg.norm(weights.T @ rounded[sent] - target) / scale)
        if not miss <= worst[0]:
            worst = miss, received
    return worst
