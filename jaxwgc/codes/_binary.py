"""Binary code: fractional repetition for any number of workers and stragglers."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import code_of_sums
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Group, LeastSquares, OneStep, Peeling


def binary(num_workers: int, num_stragglers: int) -> GradientCode:
    """Returns an exact code of plain sums, for any n and s.

    Worker i belongs to class i mod (s + 1). The workers of each class split all parts
    into runs of nearly equal length, and each sends the sum of its run. With at most s
    stragglers, one of the s + 1 classes is complete, and the sum of its messages is
    the exact gradient. Classes of equal size are split in the same way, so that their
    workers can replace each other, and often more than s stragglers are tolerated.

    If s + 1 divides n, this is `fractional_repetition` with another order of workers.
    Otherwise there are classes of two sizes, and workers of smaller classes hold more
    parts. Group decoding uses responses of classes of one size. Beyond s stragglers,
    `decoders.LeastSquares` combines all responses.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code with entries 0 and 1.

    Raises:
      ValueError: If s is negative or not less than n.
      TypeError: If a parameter is not an int.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.binary(5, num_stragglers=1)
      >>> code.encoding_matrix
      array([[1., 1., 0., 0., 0.],
             [1., 1., 1., 0., 0.],
             [0., 0., 1., 1., 0.],
             [0., 0., 0., 1., 1.],
             [0., 0., 0., 0., 1.]])
      >>> code.decoders[0].groups
      array([[ 0, -1,  1, -1,  2],
             [-1,  0, -1,  1, -1]])

    References:
      Charalambides, Mahdavifar, Hero, "Numerically stable binary gradient coding",
      ISIT 2020, section III.
    """
    num_stragglers = _validation.check_stragglers(num_stragglers, num_workers)
    num_classes = num_stragglers + 1
    workers = np.arange(num_workers)
    class_sizes = np.bincount(workers % num_classes)
    size_of_worker = class_sizes[workers % num_classes]
    # Position of a worker in its class, and run of each part in a class of its size.
    slot_of_worker = workers // num_classes
    slot_of_part = _even_runs(num_workers, size_of_worker)
    assignment = slot_of_worker[:, None] == slot_of_part
    sizes = np.unique(class_sizes)[::-1]
    return code_of_sums(
        assignment,
        Group(np.where(size_of_worker == sizes[:, None], slot_of_worker, -1)),
        LeastSquares(num_stragglers),
        OneStep(num_workers / num_classes),
        Peeling(assignment),
        num_stragglers=num_stragglers,
    )


def _even_runs(num_parts: int, num_runs: np.ndarray) -> np.ndarray:
    """Returns the run that contains each part, (len(num_runs), num_parts).

    Lengths of runs differ by at most one, longer ones first.
    """
    num_runs = num_runs[:, None]
    length, num_longer = num_parts // num_runs, num_parts % num_runs
    parts = np.arange(num_parts)
    in_longer = parts // (length + 1)
    in_shorter = (parts - num_longer) // length
    return np.where(in_longer < num_longer, in_longer, in_shorter)
