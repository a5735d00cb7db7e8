"""The binary code: fractional repetition for any number of workers and stragglers."""

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import code_of_sums
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Group, LeastSquares, OneStep, Peeling


def binary(num_workers: int, num_stragglers: int) -> GradientCode:
    """Workers that send plain sums, for any n and s (Charalambides et al.).

    Worker i belongs to class i mod (s + 1). In each class the workers split all parts
    between them, in runs that are as even as can be, and send the sum of their own. At
    most s stragglers leave one of the s + 1 classes whole, and the sum of its messages
    is the gradient, exactly. Classes of one size split alike, so that their workers
    can stand in for each other, and more stragglers than s often do no harm.

    Where s + 1 divides n this is `fractional_repetition`, with the workers in another
    order. Where it does not, there are classes of two sizes, and the workers of the
    smaller ones hold more parts. Group decoding takes the answers of classes of one
    size. Beyond s, `decoders.LeastSquares` combines all that there are.

    Args:
      num_workers: n, at least 1; also the number of parts.
      num_stragglers: s, from 0 to n - 1.

    Returns:
      A real code with entries 0 and 1.

    Raises:
      ValueError: where s is negative or not less than n.
      TypeError: where the parameters are not ints.

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
    # The place of a worker in its class, and of the parts in a class of its size.
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
    """Returns the run that each part falls in, (len(num_runs), num_parts).

    The lengths of the runs differ by at most one, longer ones first.
    """
    num_runs = num_runs[:, None]
    length, num_longer = num_parts // num_runs, num_parts % num_runs
    parts = np.arange(num_parts)
    in_longer = parts // (length + 1)
    in_shorter = (parts - num_longer) // length
    return np.where(in_longer < num_longer, in_longer, in_shorter)
