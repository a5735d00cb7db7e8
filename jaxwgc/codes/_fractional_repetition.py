"""Fractional repetition: whole blocks of parts, copied."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import check_works, code_of_sums
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Group, LeastSquares, OneStep, Peeling


def fractional_repetition(num_workers: int, num_stragglers: int) -> GradientCode:
    """Blocks of s + 1 parts, each whole on s + 1 workers (Tandon et al.).

    The workers form s + 1 groups; in each group the n / (s + 1) workers hold all parts
    between them, a block each, and send the plain sum of their block. Any worker
    that answers speaks for its block, and s stragglers cannot silence a block: decoding
    adds up one answer a block, exactly. A block that is lost loses its parts alone.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, with s + 1 dividing n.

    Returns:
      A real code with entries 0 and 1.

    Raises:
      ValueError: where s is negative or not less than n, or s + 1 does not divide n.
      TypeError: where the parameters are not ints.

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
    rule = f"be a divisor of num_workers = {num_workers}, less 1"
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
