"""Codes built from other codes: clusters, several messages, an uncoded share."""

import dataclasses

import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import array_module
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import Clustered, LeastSquares


def clustered(code: GradientCode, num_clusters: int) -> GradientCode:
    """Returns a code of clusters, each with its own parts and workers.

    Decoding treats each cluster separately. Every cluster tolerates as many stragglers
    as `code`. This is the guarantee for the whole code, too, but stragglers that are
    spread over the clusters can be many more.

    Args:
      code: Code of a cluster, of any kind; its arrays may be traced.
      num_clusters: Number of clusters, at least 1.

    Returns:
      A code with num_clusters times the workers and parts of `code`, ordered by
      cluster.

    Raises:
      ValueError: If num_clusters is below 1.
      TypeError: If num_clusters is not an int, or code is not a GradientCode.

    Example:
      >>> import jaxwgc
      >>> inner = jaxwgc.codes.fractional_repetition(2, num_stragglers=1)
      >>> jaxwgc.codes.clustered(inner, num_clusters=2).encoding_matrix
      array([[1., 1., 0., 0.],
             [1., 1., 0., 0.],
             [0., 0., 1., 1.],
             [0., 0., 1., 1.]])

    References:
      Ozfatura, Gunduz, Ulukus, "Gradient coding with clustering and multi-message
      communication", IEEE Data Science Workshop 2019, section III.
    """
    GradientCode.check(code)
    num_clusters = validation.check_int("num_clusters", num_clusters, minimum=1)
    required_parts = code.required_parts
    if required_parts is not None:
        xp = array_module(required_parts)
        required_parts = xp.tile(required_parts, (num_clusters, 1))
    return dataclasses.replace(
        code,
        encoding_matrix=_block_diagonal(code.encoding_matrix, num_clusters),
        assignment=_block_diagonal(code.assignment, num_clusters),
        target=array_module(code.target).tile(code.target, num_clusters),
        decoders=tuple(Clustered(inner, num_clusters) for inner in code.decoders),
        required_parts=required_parts,
    )


def _block_diagonal(block: Array, num_blocks: int) -> Array:
    """Repeats `block` along the diagonal of a matrix of zeros or False."""
    rows, columns = block.shape
    diagonal = np.eye(num_blocks, dtype=bool)[:, None, :, None]
    # Axes: (block, row, block, column).
    blocks = array_module(block).where(
        diagonal, block[:, None], np.zeros((), block.dtype)
    )
    return blocks.reshape(num_blocks * rows, num_blocks * columns)


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
    array_validation.check_concrete(
        "code.assignment", code.assignment, "it determines the order of the parts"
    )
    assignment = np.asarray(code.assignment)
    loads = assignment.sum(1)
    num_messages = max(1, int(loads.max()))
    finished = np.minimum(np.arange(1, num_messages + 1), loads[:, None])
    included = _positions(assignment)[:, None] < finished[..., None]
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


def _positions(assignment: np.ndarray) -> np.ndarray:
    """Returns the position of each part in the order in which each worker computes.

    The shape is (num_workers, num_parts).
    """
    num_workers, num_parts = assignment.shape
    starts = np.arange(num_workers) * num_parts // num_workers
    positions = np.full(assignment.shape, num_parts)
    times_taken = np.zeros(num_parts, int)
    for position in range(assignment.sum(1).max(initial=0)):
        for worker in range(num_workers):
            remaining = np.flatnonzero(
                assignment[worker] & (positions[worker] > position)
            )
            if remaining.size == 0:
                continue
            around_ring = (remaining - starts[worker]) % num_parts
            taken = remaining[np.lexsort((around_ring, times_taken[remaining]))[0]]
            positions[worker, taken] = position
            times_taken[taken] += 1
    return positions


def partially_coded(code: GradientCode, num_uncoded: int) -> GradientCode:
    """Returns a code whose workers send an uncoded sum, then a coded message.

    For stragglers that are slow but not lost. A worker first computes `num_uncoded` (u)
    parts that no other worker holds, and sends their sum. Then it computes its parts in
    `code`, and sends its message of `code`. Decoding is exact if every worker sends its
    first message, and at most s do not send their second one. `code` tolerates s
    stragglers.

    Args:
      code: Code of the coded parts, with one message per worker, one segment and one
        cluster. For clusters, apply `clustered` to the result.
      num_uncoded: Number u of uncoded parts per worker, at least 0.

    Returns:
      A code of n * u + k parts, k the parts of `code`: first the uncoded parts, u per
      worker, then the coded ones. Decoded by least squares. Its `num_stragglers` is 0
      for u > 0: a worker without any message loses its uncoded parts.

    Raises:
      ValueError: If num_uncoded is negative, or code has several messages per worker,
        segments or clusters.
      TypeError: If num_uncoded is not an int, or code is not a GradientCode.

    Example:
      >>> import jaxwgc
      >>> inner = jaxwgc.codes.fractional_repetition(2, num_stragglers=1)
      >>> code = jaxwgc.codes.partially_coded(inner, num_uncoded=1)
      >>> code.encoding_matrix
      array([[1., 0., 0., 0.],
             [0., 0., 1., 1.],
             [0., 1., 0., 0.],
             [0., 0., 1., 1.]])
      >>> code.required_parts
      array([[1, 3],
             [1, 3]])

    References:
      Tandon, Lei, Dimakis, Karampatziakis, "Gradient coding: avoiding stragglers in
      distributed learning", ICML 2017, section 5.
    """
    GradientCode.check(code)
    num_uncoded = validation.check_int("num_uncoded", num_uncoded, minimum=0)
    code.check_plain("partially_coded")
    if code.decoders_of(Clustered):
        raise ValueError(
            "code must have no clusters: apply clustered to the partial code instead; "
            f"got {code}"
        )
    num_workers = code.num_workers
    num_parts = code.num_parts
    uncoded = np.eye(num_workers, dtype=bool).repeat(num_uncoded, axis=1)
    first = _side_by_side(uncoded, np.zeros((num_workers, num_parts), bool))
    second = _side_by_side(np.zeros_like(uncoded), code.encoding_matrix)
    rows = array_module(second).stack([first.astype(second.dtype), second], axis=1)
    num_stragglers = 0 if num_uncoded else code.num_stragglers
    uncoded_parts = np.full(num_workers, num_uncoded)
    parts = num_uncoded + code.parts_per_worker
    return GradientCode(
        encoding_matrix=rows.reshape(2 * num_workers, -1),
        assignment=_side_by_side(uncoded, code.assignment),
        target=_side_by_side(np.ones(uncoded.shape[1], bool), code.target),
        num_stragglers=num_stragglers,
        decoders=(LeastSquares(num_stragglers),),
        messages_per_worker=2,
        required_parts=array_module(parts).stack([uncoded_parts, parts], axis=1),
    )


def _side_by_side(left: np.ndarray, right: Array) -> Array:
    """Joins two arrays along the last axis, in the dtype of `right`."""
    return array_module(right).concatenate([left.astype(right.dtype), right], axis=-1)
