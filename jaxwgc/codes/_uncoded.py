"""No code at all, the baseline."""

from collections.abc import Sequence

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import check_works, code_of_sums, owned_parts
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Group, LeastSquares, OneStep, Peeling


def uncoded(
    num_workers: int,
    num_parts: int | None = None,
    loads: Sequence[float] | np.ndarray | None = None,
) -> GradientCode:
    """Every part on one worker, and no straggler is tolerated.

    Worker i holds the i-th run of parts, k / n by default, and sends their sum. A
    straggler's parts are lost; decoding keeps the others as they are, exactly.

    Args:
      num_workers: n, at least 1.
      num_parts: k, a multiple of n unless there are loads, or None for n.
      loads: (n,), how many parts each worker holds, in proportion, such as the speeds
        of the workers. Rounded so that the sum is k; equal by default.

    Returns:
      A real code with entries 0 and 1: B = I where k = n.

    Raises:
      ValueError: If num_workers is less than 1 or, without loads, does not divide
        num_parts; or if loads are not n finite numbers of at least 0, or all 0.
      TypeError: If an argument has the wrong type.

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
    num_parts = num_workers if num_parts is None else num_parts
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    if loads is None:
        loads = np.ones(num_workers)
        rule = f"be a multiple of num_workers = {num_workers}"
        check_works("num_parts", num_parts, lambda k: k % num_workers == 0, rule, 1)
    sizes = owned_parts(num_workers, num_parts, loads)
    assignment = np.eye(num_workers, dtype=bool).repeat(sizes, axis=1)
    return code_of_sums(
        assignment,
        Group(np.arange(num_workers)[None]),
        LeastSquares(),
        OneStep(float(num_workers)),
        Peeling(np.eye(num_workers, dtype=bool)),
    )
