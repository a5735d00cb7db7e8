"""Clustered codes: each cluster of workers has its own copy of a code."""

import dataclasses

import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import array_module
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import Clustered, Decoder


def clustered(code: GradientCode, num_clusters: int) -> GradientCode:
    """Returns a block-diagonal code: each cluster of workers has its own parts.

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
    num_clusters = _validation.check_int("num_clusters", num_clusters, minimum=1)
    required_parts = code.required_parts
    if required_parts is not None:
        required_parts = _repeated(required_parts, (num_clusters, 1))
    return dataclasses.replace(
        code,
        encoding_matrix=_block_diagonal(code.encoding_matrix, num_clusters),
        assignment=_block_diagonal(code.assignment, num_clusters),
        target=_repeated(code.target, (num_clusters,)),
        decoders=tuple(_clustered(block, num_clusters) for block in code.decoders),
        required_parts=required_parts,
    )


def _clustered(decoder: Decoder, num_clusters: int) -> Clustered:
    """Returns one decoder for all clusters, also for clusters of clusters."""
    if isinstance(decoder, Clustered):
        return Clustered(decoder.inner, decoder.num_clusters * num_clusters)
    return Clustered(decoder, num_clusters)


def _block_diagonal(block: Array, num_blocks: int) -> Array:
    """Repeats `block` along the diagonal of a matrix of zeros or False."""
    rows, columns = block.shape
    diagonal = np.eye(num_blocks, dtype=bool)[:, None, :, None]
    # Axes: (block, row, block, column).
    blocks = array_module(block).where(
        diagonal, block[:, None], np.zeros((), block.dtype)
    )
    return blocks.reshape(num_blocks * rows, num_blocks * columns)


def _repeated(array: Array, repetitions: tuple[int, ...]) -> Array:
    return array_module(array).tile(array, repetitions)
