"""Placements for workers of unequal speeds: loads in proportion to speeds."""

from collections.abc import Sequence

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import shares


def proportional_placement(
    speeds: Sequence[float] | np.ndarray, num_parts: int, copies: int
) -> np.ndarray:
    """Returns who holds what, loads in proportion to speeds: for `any_placement`.

    The parts lie around a ring, and workers one after the other take as many as is
    their share of all copies, each from where the last one ended: so all workers need
    about the same time, and no part comes twice to one of them. Shares are rounded: by
    less than one part, so take several times as many parts as workers.

    Args:
      speeds: (num_workers,), parts a second, say.
      num_parts: k, at least 1.
      copies: d, the workers that hold a part, from 1 to n; s + 1 for a code that
        survives s stragglers.

    Returns:
      Bool (num_workers, num_parts) in NumPy. Where a worker is so fast that its share
      would be more than all parts, it holds all of them, and the others share the
      rest.

    Raises:
      ValueError: where speeds are not positive and finite, num_parts is less than 1,
        or copies are less than 1 or more than the workers.
      TypeError: where an argument has the wrong type.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.codes.proportional_placement([2, 2, 1, 1], 6, copies=1).astype(int)
      array([[1, 1, 0, 0, 0, 0],
             [0, 0, 1, 1, 0, 0],
             [0, 0, 0, 0, 1, 0],
             [0, 0, 0, 0, 0, 1]])

    References:
      Wang, Guo, Tang, Li, Li, "Heterogeneity-aware gradient coding for straggler
      tolerance", ICDCS 2019.
    """
    speeds = _validation.host_array("speeds", speeds, "real numbers", num_workers="any")
    _validation.check_entries("speeds", speeds, speeds > 0, "positive")
    num_workers = len(speeds)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    copies = _validation.check_up_to("copies", copies, num_workers=num_workers)
    loads = shares(speeds.astype(np.float64), num_parts * copies, num_parts)
    worker = np.arange(num_workers).repeat(loads)
    assignment = np.zeros((num_workers, num_parts), bool)
    assignment[worker, np.arange(num_parts * copies) % num_parts] = True
    return assignment
