"""No code at all, the baseline."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import GradientCode


def uncoded(num_workers: int) -> GradientCode:
    """Every part on one worker: B = I, and no straggler is tolerated.

    A straggler's part is lost; the least-squares decoder keeps the others as they
    are.

    Args:
      num_workers: n, at least 1; also the number of parts.

    Returns:
      A real code.

    Raises:
      ValueError: where num_workers is less than 1.
      TypeError: where it is not an int.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.codes.uncoded(3).encoding_matrix
      array([[1., 0., 0.],
             [0., 1., 0.],
             [0., 0., 1.]])

    References:
      The paper's section 2.2, before coding.
    """
    num_workers = _validation.check_int("num_workers", num_workers, minimum=1)
    return GradientCode(
        encoding_matrix=np.eye(num_workers),
        assignment=np.eye(num_workers, dtype=bool),
        target=np.ones(num_workers),
        num_stragglers=0,
    )
