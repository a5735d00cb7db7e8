"""Codes with several messages per worker, one after each finished part."""

import dataclasses

import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import array_module
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares


def multi_message(code: GradientCode) -> GradientCode:
    """Returns a code with one message after each finished part.

    Message t of a worker combines the first t parts that it computes, with the
    coefficients of `code`; its last message is the one of `code`. So all stragglers
    that `code` tolerates are tolerated, and a slow worker contributes the parts that it
    has finished.

    The order of the parts spreads early work evenly. Position by position and worker by
    worker, each takes the part that was taken least often so far. Ties go to the next
    part around a ring, on which worker i of n starts at k * i / n.

    Args:
      code: Code with one message per worker and one segment. Its assignment must not
        be traced, since it determines the order; its other arrays may be.

    Returns:
      A code with as many messages per worker as the largest number of parts of a
      worker, decoded by least squares. A worker with fewer parts has rows of zeros for
      messages that it does not send.

    Raises:
      ValueError: If code has several messages per worker, or several segments.
      TypeError: If code is not a GradientCode, or its assignment is traced.

    Example:
      >>> import jaxwgc
      >>> inner = jaxwgc.codes.fractional_repetition(2, num_stragglers=1)
      >>> code = jaxwgc.codes.multi_message(inner)
      >>> code.encoding_matrix
      array([[1., 0.],
             [1., 1.],
             [0., 1.],
             [1., 1.]])
      >>> code.required_parts
      array([[1, 2],
             [1, 2]])

    References:
      Ozfatura, Gunduz, Ulukus, "Gradient coding with clustering and multi-message
      communication", IEEE Data Science Workshop 2019, section IV. The order of the
      parts is new here.
    """
    GradientCode.check(code)
    code.check_plain("multi_message")
    reason = "it determines the order of the parts"
    _validation.check_concrete("code.assignment", code.assignment, reason)
    assignment = np.asarray(code.assignment)
    loads = assignment.sum(1)
    num_messages = max(1, int(loads.max()))
    finished = np.minimum(np.arange(1, num_messages + 1), loads[:, None])
    included = _turns(assignment)[:, None] < finished[..., None]
    sent = np.arange(num_messages) < loads[:, None]
    matrix = array_module(code.encoding_matrix).where(
        included & sent[..., None], code.encoding_matrix[:, None], 0
    )
    return dataclasses.replace(
        code,
        encoding_matrix=matrix.reshape(-1, code.num_parts),
        decoders=code.decoders_of(LeastSquares) or (LeastSquares(),),
        messages_per_worker=num_messages,
        required_parts=finished,
    )


def _turns(assignment: np.ndarray) -> np.ndarray:
    """Returns the turn at which a worker computes each part; k for other parts.

    The shape is (num_workers, num_parts).
    """
    num_workers, num_parts = assignment.shape
    starts = np.arange(num_workers) * num_parts // num_workers
    turns = np.full(assignment.shape, num_parts)
    times_taken = np.zeros(num_parts, int)
    for turn in range(assignment.sum(1).max(initial=0)):
        for worker in range(num_workers):
            remaining = np.flatnonzero(assignment[worker] & (turns[worker] > turn))
            if remaining.size == 0:
                continue
            around_ring = (remaining - starts[worker]) % num_parts
            taken = remaining[np.lexsort((around_ring, times_taken[remaining]))[0]]
            turns[worker, taken] = turn
            times_taken[taken] += 1
    return turns
