"""Fractional repetition: copies of whole blocks of parts."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import check_works, code_of_sums
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Group, LeastSquares, OneStep, Peeling


def fractional_repetition(num_workers: int, num_stragglers: int) -> GradientCode:
    """Returns the fractional repetition code: s + 1 copies of blocks of s + 1 parts.

    The workers form s + 1 groups. In each group, the n / (s + 1) workers hold one block
    each, together all parts, and send the plain sum of their block. One response per
    block suffices, so decoding is exact for any s stragglers. If all copies of a block
    are lost, the other blocks are still decoded.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s; s + 1 must divide n.

    Returns:
      A real code with entries 0 and 1.

    Raises:
      ValueError: If s is negative or not less than n, or s + 1 does not divide n.
      TypeError: If a parameter is not an int.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.codes.fractional_repetition(4, num_stragglers=1).encoding_matrix
      array([[1., 1., 0., 0.],
             [0., 0., 1., 1.],
             [1., 1., 0., 0.],
             [0., 0., 1., 1.]])

    References:
      Tandon, Lei, Dimakis, Karampatziakis, "Gradient coding: avoiding stragglers in
      distributed learning", ICML 2017, section 4.
    """
    num_stragglers = _validation.check_stragglers(num_stragglers, num_workers)
    replication = num_stragglers + 1
    sizes = range(1, num_workers + 1)
    works = [size - 1 for size in sizes if num_workers % size == 0]
    rule = f"be 1 less than a divisor of num_workers = {num_workers}"
    check_works("num_stragglers", num_stragglers, works.__contains__, rule, 0)
    num_blocks = num_workers // replication
    block_of_worker = np.arange(num_workers) % num_blocks
    block_of_part = np.arange(num_workers) // replication
    assignment = block_of_worker[:, None] == block_of_part
    return code_of_sums(
        assignment,
        Group(block_of_worker[None]),
        LeastSquares(num_stragglers),
        OneStep(num_workers / replication),
        Peeling(assignment),
        num_stragglers=num_stragglers,
    )
