"""Codes for partial stragglers: some parts uncoded, the others coded."""

import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import array_module
from jaxwgc.codes._gradient_code import Array, GradientCode
from jaxwgc.decoders import Clustered, LeastSquares


def partially_coded(code: GradientCode, num_uncoded: int) -> GradientCode:
    """Uncoded parts first, then a share of `code`, in two messages (Tandon et al.).

    For stragglers that are slow but not dead. A worker first goes through `num_uncoded`
    (u) parts that nobody else holds and sends their sum; then through its parts in
    `code`, and sends its mix of them. Decoding is exact as long as every worker sends
    its first message, and at most s do not send their second one, s being that of
    `code`.

    Args:
      code: what the coded parts are shared by: a code of one message a worker, one
        segment and one cluster. For clusters, use `clustered` on the result.
      num_uncoded: u, at least 0.

    Returns:
      A code of n * u + k parts, k those of `code`: first the uncoded ones, u a worker,
      then the coded ones. Decoded by least squares. Its `num_stragglers` is 0 for
      u > 0: a worker that sends nothing at all loses its uncoded parts.

    Raises:
      ValueError: where num_uncoded is negative, or code has several messages a worker,
        segments or clusters.
      TypeError: where num_uncoded is not an int, or code is no code.

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
    num_uncoded = _validation.check_int("num_uncoded", num_uncoded, minimum=0)
    code.check_plain("partially_coded")
    rule = "have no clusters: use clustered on the partial code instead"
    _validation.require(not code.decoders_of(Clustered), "code", rule, code)
    num_workers, num_parts = code.num_workers, code.num_parts
    uncoded = np.eye(num_workers, dtype=bool).repeat(num_uncoded, axis=1)
    first = _side_by_side(uncoded, np.zeros((num_workers, num_parts), bool))
    second = _side_by_side(np.zeros_like(uncoded), code.encoding_matrix)
    rows = array_module(second).stack([first.astype(second.dtype), second], axis=1)
    parts = num_uncoded + code.parts_per_worker
    return GradientCode(
        encoding_matrix=rows.reshape(2 * num_workers, -1),
        assignment=_side_by_side(uncoded, code.assignment),
        target=_side_by_side(np.ones(uncoded.shape[1], bool), code.target),
        num_stragglers=0 if num_uncoded else code.num_stragglers,
        decoders=(LeastSquares(0 if num_uncoded else code.num_stragglers),),
        messages_per_worker=2,
        required_parts=array_module(parts).stack(
            [np.full(num_workers, num_uncoded), parts], axis=1
        ),
    )


def _side_by_side(left: np.ndarray, right: Array) -> Array:
    """The two joined along the last axis, in the dtype of `right`."""
    return array_module(right).concatenate([left.astype(right.dtype), right], axis=-1)
