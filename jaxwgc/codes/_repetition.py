"""Codes of sums with replicated parts, and the uncoded baseline."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc.codes._constructors import code_of_sums, replicated_sums, shares
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import Group, LeastSquares, OneCopy, OneStep, Peeling


def uncoded(
    num_workers: int,
    num_parts: int | None = None,
    loads: Sequence[float] | np.ndarray | None = None,
) -> GradientCode:
    """Returns the code without redundancy: every part is on one worker.

    Worker i holds the i-th run of parts, k / n by default, and sends their sum. Parts
    of stragglers are lost; the others are decoded exactly.

    Args:
      num_workers: n, at least 1.
      num_parts: k, a multiple of n unless loads are given, or None for n.
      loads: Relative number of parts that each worker holds, (n,), e.g. the speeds of
        the workers. Rounded so that the sum is k; equal by default.

    Returns:
      A real code with entries 0 and 1: B = I if k = n.

    Raises:
      ValueError: If num_workers is below 1 or, without loads, does not divide
        num_parts; or if loads are not n finite numbers of at least 0, or all 0.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.codes.uncoded(3).encoding_matrix
      array([[1., 0., 0.],
             [0., 1., 0.],
             [0., 0., 1.]])
    """
    num_workers = validation.check_int("num_workers", num_workers, minimum=1)
    num_parts = num_workers if num_parts is None else num_parts
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    if loads is None:
        loads = np.ones(num_workers)
        if num_parts % num_workers != 0:
            raise ValueError(
                f"num_parts must be a multiple of num_workers = {num_workers}; got "
                f"{num_parts}"
            )
    sizes = _owned_parts(num_workers, num_parts, loads)
    identity = np.eye(num_workers, dtype=bool)
    return code_of_sums(
        identity.repeat(sizes, axis=1),
        Group(np.arange(num_workers)[None]),
        LeastSquares(),
        OneStep(float(num_workers)),
        Peeling(identity),
    )


def fractional_repetition(num_workers: int, num_stragglers: int) -> GradientCode:
    """Returns an exact code of plain sums, in which groups of workers are copies.

    Each block of s + 1 parts has s + 1 copies. The workers form s + 1 groups. In
    each group, the n / (s + 1) workers hold one block each, together all parts, and
    send the plain sum of their block. One response per block suffices, so decoding
    is exact for any s stragglers. If all copies of a block are lost, the other
    blocks are still decoded.

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
    num_stragglers = validation.check_stragglers(num_stragglers, num_workers)
    copies = num_stragglers + 1
    if num_workers % copies != 0:
        raise ValueError(
            "num_stragglers must be 1 less than a divisor of num_workers = "
            f"{num_workers}; got {num_stragglers}"
        )
    num_blocks = num_workers // copies
    block_of_worker = np.arange(num_workers) % num_blocks
    block_of_part = np.arange(num_workers) // copies
    assignment = block_of_worker[:, None] == block_of_part
    groups = Group(block_of_worker[None])
    return replicated_sums(assignment, copies, groups, num_stragglers=num_stragglers)


def binary(num_workers: int, num_stragglers: int) -> GradientCode:
    """Returns an exact code of plain sums for any numbers of workers and stragglers.

    Worker i belongs to class i mod (s + 1). The workers of each class split all parts
    into runs of nearly equal length, and each sends the sum of its run. With at most s
    stragglers, one of the s + 1 classes is complete, and the sum of its messages is
    the exact gradient. Classes of equal size are split in the same way, so that their
    workers can replace each other, and often more than s stragglers are tolerated.

    If s + 1 divides n, this is `fractional_repetition` with another order of workers.
    Otherwise there are classes of two sizes, and workers of smaller classes hold more
    parts. `decoders.Group`, the default, uses responses of classes of one size.
    `decoders.LeastSquares` combines all responses, so that beyond s stragglers its
    error is smaller: for n up to 20 and s up to 5, the mean squared error of group
    decoding is up to 4.5 times that of least squares.

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

      Two stragglers are more than it tolerates, and leave both classes incomplete:

      >>> import numpy as np
      >>> received = np.array([False, True, True, False, True])
      >>> least_squares = jaxwgc.decoders.LeastSquares
      >>> by_group = jaxwgc.decoding(code, received).error
      >>> by_all = jaxwgc.decoding(code, received, least_squares).error
      >>> f"{by_group:.2f} {by_all:.2f}"
      '2.00 0.40'

    References:
      Charalambides, Mahdavifar, Hero, "Numerically stable binary gradient coding",
      ISIT 2020, section III.
    """
    num_stragglers = validation.check_stragglers(num_stragglers, num_workers)
    num_classes = num_stragglers + 1
    workers = np.arange(num_workers)
    class_sizes = np.bincount(workers % num_classes)
    size_of_worker = class_sizes[workers % num_classes]
    # Position of each worker in its class, and the run of each part in a class of this
    # size.
    slot_of_worker = workers // num_classes
    # Lengths of runs differ by at most one, longer ones first.
    slot_of_part = np.array(
        [
            np.arange(size).repeat(shares(np.ones(size), num_workers))
            for size in size_of_worker
        ]
    )
    assignment = slot_of_worker[:, None] == slot_of_part
    sizes = np.unique(class_sizes)[::-1]
    groups = Group(np.where(size_of_worker == sizes[:, None], slot_of_worker, -1))
    return replicated_sums(
        assignment, num_classes, groups, num_stragglers=num_stragglers
    )


def replicated(
    num_workers: int,
    num_parts: int | None = None,
    copies: int = 2,
    loads: Sequence[float] | np.ndarray | None = None,
) -> GradientCode:
    """Returns an exact code whose workers send sums of finished parts on request.

    Each part has `copies` workers and its own message. A worker first computes its
    own parts, then the parts of the next worker, and of the one after it, each from
    the last part backwards. So owner and helper meet in the middle. In rounds
    without stragglers, no second copy is computed. Parts that a slow worker has not
    finished are computed by its helpers. Waiting `until_decodable` therefore takes
    hardly longer than without copies, and any copies - 1 lost workers are
    tolerated.

    Workers keep a gradient for each finished part, until a weighted sum is requested:
    see `Decoding.requests`.

    Args:
      num_workers: n, at least 1.
      num_parts: k, or None for n.
      copies: Number d of copies, from 1 to n.
      loads: Relative number of parts that each worker owns, (n,), e.g. the speeds of
        the workers. Rounded so that the sum is k; equal by default.

    Returns:
      A real code of zeros and ones, with as many messages per worker as the largest
      number of parts that a worker holds. A worker with fewer parts has rows of zeros
      for messages that it does not send.

    Raises:
      ValueError: If num_workers or num_parts is below 1, copies are below 1 or above n,
        or loads are not n finite numbers of at least 0, or all 0.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.replicated(3, num_parts=6, copies=2)
      >>> code.encoding_matrix[:4]
      array([[1., 0., 0., 0., 0., 0.],
             [0., 1., 0., 0., 0., 0.],
             [0., 0., 0., 1., 0., 0.],
             [0., 0., 1., 0., 0., 0.]])
      >>> jaxwgc.decoding(code, finished=[2, 4, 0]).effective_weights
      Array([1., 1., 1., 1., 1., 1.], dtype=float32)

    References:
      Mohammadi Amiri, Gündüz, "Computation scheduling for distributed machine learning
      with straggling workers", arXiv:1810.09992, where workers send every finished part
      at once; Ramamoorthy, Meng, Girimaji, "Leveraging partial stragglers within
      gradient coding", NeurIPS 2024, arXiv:2405.19509, where the order of the parts is
      optimized for a given assignment. Here, assignment and order are chosen together:
      the owner and its helpers take the same run of parts from opposite ends. With one
      copy and a deadline, Giladi et al., "DropCompute: simple and more robust
      distributed synchronous training via compute variance reduction", NeurIPS 2023.
    """
    num_parts = num_workers if num_parts is None else num_parts
    copies = validation.check_up_to("copies", copies, num_workers=num_workers)
    num_parts = validation.check_int("num_parts", num_parts, minimum=1)
    loads = np.ones(num_workers) if loads is None else loads
    sizes = _owned_parts(num_workers, num_parts, loads)
    owners = np.arange(num_workers).repeat(sizes)[:, None]
    steps = np.arange(copies)
    holders = (owners - steps) % num_workers
    # Number of parts that a worker computes before the first part of each owner.
    owners_met = (np.arange(num_workers)[:, None] + steps) % num_workers
    sizes_met = sizes[owners_met]
    num_held = sizes_met.sum(1)
    before = (sizes_met.cumsum(1) - sizes_met)[holders, steps]
    # Number of parts of the same owner that the worker computes earlier. It computes
    # its own parts from the first to the last, and parts of other owners from the last
    # to the first.
    starts = (sizes.cumsum() - sizes)[owners]
    place = np.arange(num_parts)[:, None] - starts
    place_from_last = sizes[owners] - 1 - place
    turns = before + np.where(steps == 0, place, place_from_last)
    num_messages = int(num_held.max())
    messages = holders * num_messages + turns
    matrix = np.zeros((num_workers * num_messages, num_parts))
    matrix[messages, np.arange(num_parts)[:, None]] = 1
    return GradientCode(
        encoding_matrix=matrix,
        assignment=matrix.reshape(num_workers, num_messages, num_parts).any(1),
        target=np.ones(num_parts),
        num_stragglers=copies - 1,
        decoders=(OneCopy(messages), LeastSquares()),
        messages_per_worker=num_messages,
        required_parts=np.minimum(np.arange(num_messages) + 1, num_held[:, None]),
    )


def _owned_parts(num_workers: int, num_parts: int, loads: ArrayLike) -> np.ndarray:
    """Checks loads, and returns the number of parts that each worker owns."""
    known_loads = array_validation.host_array(
        "loads", loads, "real numbers", num_workers=num_workers
    )
    if np.any(known_loads < 0) or not np.any(known_loads):
        shown = validation.in_short(known_loads.tolist())
        raise ValueError(f"loads must be at least 0, and not all 0; got {shown}")
    return shares(known_loads.astype(np.float64), num_parts)
