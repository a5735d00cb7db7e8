"""Measurements of a loss on the data: whether it is a sum over weighted rows."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import coding
from jaxwgc._common import array_validation, arrays
from jaxwgc.aggregate import shapes_of
from jaxwgc.checks._measures import TOLERANCE, GradientMeasures, LossMeasures
from jaxwgc.codes import GradientCode
from jaxwgc.parts import partition

# Maximum error of the total weight of a sample, in standard errors.
_STANDARD_ERRORS = 4


class Layout(NamedTuple):
    """Rows of the data in the form that a loss takes, and padding of the parts.

    Attributes:
      rows: All rows of the data as one part, on the host, leaves (N, ...).
      num_rows: N.
      row_weights: Row weights of the parts, (num_parts, m), in NumPy; None if the data
        have the structure of a part.
      is_padding: Which rows are padding, bool (num_parts, m).
    """

    rows: Any
    num_rows: int
    row_weights: np.ndarray | None
    is_padding: np.ndarray


def layout_of(data: Any, parts: Any) -> Layout:
    """Returns the layout of `(parts, row_weights)` from `partition(data, num_parts)`.

    Parts may also have the structure of the data, which may include row weights.
    """
    leaves = jax.tree.leaves(parts)
    num_parts = len(leaves[0])
    has_rows = all(np.ndim(leaf) > 1 for leaf in leaves)
    data = jax.device_get(data)
    num_rows = array_validation.check_parts("data", data, "N")
    structure = jax.tree.structure(parts)
    if has_rows and structure == jax.tree.structure((data, 0)):
        row_weights = np.asarray(parts[1], np.float64)
        return Layout(
            rows=(data, np.ones(num_rows, parts[1].dtype)),
            num_rows=num_rows,
            row_weights=row_weights,
            is_padding=row_weights == 0,
        )
    if not has_rows or structure != jax.tree.structure(data):
        raise ValueError(
            "parts must be (parts, row_weights) of jaxwgc.partition(data, num_parts), "
            f"or like data; got {shapes_of(parts)} and data "
            f"{shapes_of(data)}"
        )
    _, weights_of_partition = partition(np.ones(num_rows), num_parts)
    is_padding = np.asarray(weights_of_partition) == 0
    shape = np.shape(leaves[0])[:2]
    if is_padding.shape != shape:
        # Parts that are not from `partition` have unknown padding.
        is_padding = np.zeros(shape, bool)
    return Layout(rows=data, num_rows=num_rows, row_weights=None, is_padding=is_padding)


def norm(tree: Any) -> float:
    """Returns the norm of one gradient, or of a stack of gradients."""
    # Squares of single-precision numbers stay in range in double precision.
    return float(np.linalg.norm(flat(tree)))


def flat(tree: Any) -> np.ndarray:
    """Concatenates the leaves of a gradient, in double precision."""
    leaves = [np.asarray(leaf).astype(complex) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves])


def measure_loss(
    gradient_of: Callable[[Any], Any], layout: Layout, parts: Any
) -> LossMeasures:
    """Measures whether a loss is a sum over weighted rows.

    Args:
      gradient_of: `gradient_of(part)`, for parts with any number of rows.
      layout: Layout of the data and the parts.
      parts: Pytree with leaves (num_parts, m, ...).
    """

    def rows(numbers):
        return jax.tree.map(operator.itemgetter(numbers), layout.rows)

    is_padding = layout.is_padding
    weights = layout.row_weights
    numbers = np.arange(layout.num_rows)
    size = is_padding.shape[1]
    constant = _constant_gradient(gradient_of, rows(numbers[:0]))

    def gradient(part):
        return flat(gradient_of(part)) - constant

    # `more` has other rows than `few` if there are enough rows. Repeated rows would
    # keep mean and variance, and would hide interactions between rows.
    few = numbers[:size]
    more = numbers[size : 2 * size] if layout.num_rows >= 2 * size else few
    once = gradient(rows(few))
    other = gradient(rows(more))
    together = gradient(rows(np.concatenate([few, more])))
    # The error is relative to the sum of both norms, because the gradients may nearly
    # cancel.
    length = max(np.linalg.norm(once) + np.linalg.norm(other), 1e-300)
    missed = np.linalg.norm(together - (once + other)) / length
    above_mean = np.linalg.norm(together - (once + other) / 2) / length
    is_sum = missed <= TOLERANCE
    padding = 0.0
    is_unweighted = False
    # Padding and row weights are tested only if the loss is a sum: if rows interact,
    # weights cannot act on single rows.
    if is_sum and is_padding.any():
        padded = jax.tree.map(operator.itemgetter(is_padding), jax.device_get(parts))
        padding = np.linalg.norm(gradient(padded))
    if is_sum and weights is not None and not _are_zeros_and_ones(weights):
        part, ones = rows(few)
        doubled = gradient((part, 2 * ones))
        is_unweighted = np.linalg.norm(doubled - once) < TOLERANCE * length
    return LossMeasures(
        missed=float(missed),
        is_sum=bool(is_sum),
        is_mean=bool(not is_sum and above_mean <= TOLERANCE),
        constant=float(np.linalg.norm(constant)),
        num_padding=int(is_padding.sum()),
        padding=float(padding),
        is_unweighted=bool(is_unweighted),
    )


def _constant_gradient(gradient_of: Callable[[Any], Any], no_rows: Any) -> np.ndarray:
    """Returns the gradient of a part without rows, or zero if there is none."""
    try:
        constant = flat(gradient_of(no_rows))
    except Exception:  # Losses may fail without rows, e.g. a maximum.
        return np.zeros(1)
    return constant if np.isfinite(constant).all() else np.zeros(1)


def _are_zeros_and_ones(weights: np.ndarray) -> bool:
    """Returns whether row weights mark nothing but padding."""
    return bool(np.isin(weights, (0, 1)).all())


def _least_squares(code: GradientCode, received: np.ndarray) -> coding.Decoding:
    """Returns the decoding of rounds (rounds, num_workers) by least squares.

    Weights are computed on the host: a decoder takes longer to compile than all other
    measurements.
    """
    masks = np.repeat(received, code.messages_per_worker, axis=-1)
    matrix = np.asarray(code.encoding_matrix)
    target = np.asarray(code.segment_targets)
    shape = (len(masks), code.num_segments, code.num_messages)
    weights = np.zeros(shape, matrix.dtype)
    for weights_of_round, mask in zip(weights, masks, strict=True):
        solution, *_ = np.linalg.lstsq(matrix[mask].T, target.T)
        weights_of_round[:, mask] = solution.T
    return coding.Decoding(code, jnp.asarray(masks), jnp.asarray(weights))


def _gradients_on_data(
    code: GradientCode,
    gradient_of: Callable[[Any], Any],
    layout: Layout,
    is_whole_loss: bool,
) -> list[np.ndarray]:
    """Returns the gradient on the data, and that on rows with the weights of the code.

    Weights of the code may average the losses of the parts, or be weights of rows. The
    second gradient is left out if it is equal to the first, if the loss has no row
    weights, or if it is a loss for the whole data, which says what is meant.
    """
    weights = layout.row_weights
    num_held = (~layout.is_padding).sum()
    if weights is None or num_held < layout.num_rows:
        return [flat(gradient_of(layout.rows))]
    target = np.asarray(code.target, np.float64)
    data, ones = layout.rows
    # Row weights of the user also apply to the whole data.
    weights_of_data = [weights]
    if (target != 1).any() and not is_whole_loss:
        weights_of_data.append(weights * target[:, None])
    return [
        flat(gradient_of((data, of_rows[~layout.is_padding].astype(ones.dtype))))
        for of_rows in weights_of_data
    ]


def measure_decoded(
    code: GradientCode,
    gradients: Any,
    gradient_of: Callable[[Any], Any],
    layout: Layout,
    *,
    is_whole_loss: bool,
    any_factor: bool,
) -> GradientMeasures:
    """Measures the decoded gradient of all parts against the gradient on the data.

    Args:
      code: Gradient code.
      gradients: Partial gradients, leaves (num_parts, ...).
      gradient_of: `gradient_of(rows)`, the gradient on the data.
      layout: Layout of the data and the parts.
      is_whole_loss: Whether this is the gradient of a loss for the whole data, and not
        that of the loss for parts.
      any_factor: Whether a constant positive factor is no error.
    """
    target = np.asarray(code.target, np.float64)
    weights = layout.row_weights
    num_held = (~layout.is_padding).sum()
    is_sample = num_held < layout.num_rows
    total = _weighted_sum(target, gradients)
    whole = min(
        _gradients_on_data(code, gradient_of, layout, is_whole_loss),
        key=lambda gradient: np.linalg.norm(total - gradient),
    )
    scale = norm(gradients)
    length = max(np.linalg.norm(whole), 1e-150)
    expected = whole
    if any_factor:
        expected = whole * (np.linalg.norm(total) / length)
    # Squares of the terms of the sum add up if the terms are independent.
    norms_of_parts = _norms_of_parts(gradients)
    rounding = TOLERANCE * max(
        np.linalg.norm(expected), np.linalg.norm(target * norms_of_parts)
    )
    # All workers respond in the first round. In the second round, as many straggle as
    # the code tolerates.
    num_lost = np.array([[0], [code.num_stragglers]])
    decoding = _least_squares(code, np.arange(code.num_workers) >= num_lost)
    decoded = [
        _weighted_sum(weights_of_parts, gradients)
        for weights_of_parts in np.asarray(decoding.effective_weights)
    ]
    error = max(np.linalg.norm(gradient - expected) for gradient in decoded)
    expected_length = max(np.linalg.norm(expected), 1e-150)
    # Each part gives an estimate of the number of rows, relative to the true number.
    row_weights = ~layout.is_padding if weights is None else weights
    shares = target * row_weights.sum(1) / layout.num_rows
    along = np.vdot(whole, decoded[0]).real / length**2
    # Approximate codes do not guarantee the exact gradient. With weights of parts that
    # are not row weights, no loss on the data has the decoded gradient.
    promises = code.num_stragglers or not decoding.failed()[0]
    has_loss = is_whole_loss or weights is not None or (target == 1).all()
    is_comparable = promises and has_loss and not is_sample
    return GradientMeasures(
        num_stragglers=code.num_stragglers,
        total=float(target.sum()),
        scale=scale,
        not_finite=_not_finite(norms_of_parts, whole),
        ratio=float(np.linalg.norm(decoded[0]) / length),
        error=float(error / expected_length),
        agrees=bool(np.linalg.norm(total - expected) <= rounding),
        is_wrong=bool(is_comparable and not error <= rounding),
        is_sample=bool(is_sample),
        is_weighted=_is_weighted(
            shares, along, has_row_weights=not _are_zeros_and_ones(row_weights)
        ),
        num_held=int(num_held),
        num_rows=layout.num_rows,
        represented=float(shares.sum()),
        deviation=float(np.std(shares) * np.sqrt(len(shares))),
    )


def _norms_of_parts(gradients: Any) -> np.ndarray:
    """Returns the norm of each partial gradient of stacked ones, (num_parts,)."""
    by_leaf = []
    for leaf in jax.tree.leaves(gradients):
        rows = np.asarray(leaf).astype(complex).reshape(len(leaf), -1)
        by_leaf.append(np.linalg.norm(rows, axis=1))
    return np.linalg.norm(by_leaf, axis=0)


def _not_finite(norms_of_parts: np.ndarray, whole: np.ndarray) -> str:
    """Returns which gradients are not finite, in words; empty if all are."""
    [parts] = np.nonzero(~np.isfinite(norms_of_parts))
    if len(parts):
        return f"{len(parts)} of {len(norms_of_parts)} parts, the first is {parts[0]}"
    return "" if np.isfinite(whole).all() else "the whole data"


def _weighted_sum(weights: np.ndarray, gradients: Any) -> np.ndarray:
    """Returns the flat sum of partial gradients times weights (num_parts,)."""
    wide = jax.tree.map(arrays.promoted, gradients)
    return flat(jax.tree.map(functools.partial(np.tensordot, weights, axes=1), wide))


def _is_weighted(shares: np.ndarray, along: float, has_row_weights: bool) -> bool:
    """Returns whether the weights of parts represent all rows of the data.

    Args:
      shares: Rows that each part represents, relative to all rows, (num_parts,).
      along: Length of the decoded gradient along the gradient on the data, relative to
        that gradient.
      has_row_weights: Whether rows have weights other than 0 and 1. False if the rows
        themselves are scaled instead.
    """
    total = shares.sum()
    if not has_row_weights:
        return bool(abs(total - 1) <= TOLERANCE or abs(along - 1) <= abs(along - total))
    spread = np.std(shares)
    deviation = spread * np.sqrt(len(shares))
    # If weights differ much, the sample may lack the parts with the largest weights.
    unseen = spread / (2 * abs(shares.mean()))
    allowed = TOLERANCE + _STANDARD_ERRORS * deviation + unseen
    return bool(abs(total - 1) <= allowed)
