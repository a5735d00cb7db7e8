"""Measurements of a loss on the data: whether it is a sum over weighted rows."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _updates, _validation, coding
from jaxwgc.checks._mistakes import TOLERANCE
from jaxwgc.codes import GradientCode
from jaxwgc.sketching import partition

# Bound of the error of a sample's total weight, in standard errors.
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
    num_rows = _validation.check_parts("data", data, "N")
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
            f"or like data; got {_updates.shapes_of(parts)} and data "
            f"{_updates.shapes_of(data)}"
        )
    _, weights_of_partition = partition(np.ones(num_rows), num_parts)
    is_padding = np.asarray(weights_of_partition) == 0
    shape = np.shape(leaves[0])[:2]
    if is_padding.shape != shape:
        # The parts are not from `partition`, so padding is unknown.
        is_padding = np.zeros(shape, bool)
    return Layout(rows=data, num_rows=num_rows, row_weights=None, is_padding=is_padding)


def norm(tree: Any) -> float:
    """Returns the norm of one gradient, or of a stack of gradients."""
    # In double precision, squares of single precision stay in range.
    return float(np.linalg.norm(flat(tree)))


def flat(tree: Any) -> np.ndarray:
    """Concatenates the leaves of a gradient, in double precision."""
    leaves = [np.asarray(leaf).astype(complex) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves])


def measure_loss(
    gradient_of: Callable[[Any], Any], layout: Layout, parts: Any
) -> dict[str, Any]:
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
    try:
        constant = flat(gradient_of(rows(numbers[:0])))
    except Exception:  # Losses may fail without rows, e.g. a maximum.
        constant = np.full(1, np.nan)
    constant = constant if np.isfinite(constant).all() else np.zeros(1)

    def gradient(part):
        return flat(gradient_of(part)) - constant

    # `more` has other rows than `few` if there are enough. Repeated rows would keep
    # mean and variance, so that interactions of rows would not show.
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
    # If rows interact, row weights cannot act on single rows either.
    if is_sum and is_padding.any():
        filled = jax.tree.map(operator.itemgetter(is_padding), jax.device_get(parts))
        padding = np.linalg.norm(gradient(filled))
    if is_sum and weights is not None and not np.isin(weights, (0, 1)).all():
        part, ones = rows(few)
        doubled = gradient((part, 2 * ones))
        is_unweighted = np.linalg.norm(doubled - once) < TOLERANCE * length
    return {
        "missed": missed,
        "is_sum": is_sum,
        "is_mean": not is_sum and above_mean <= TOLERANCE,
        "constant": np.linalg.norm(constant),
        "num_padding": is_padding.sum(),
        "padding": padding,
        "is_unweighted": is_unweighted,
    }


def _least_squares(code: GradientCode, received: np.ndarray) -> coding.Decoding:
    """Returns the decoding of rounds (rounds, num_workers) by least squares.

    Weights are computed on the host: a decoder takes longer to compile than all other
    measurements.
    """
    masks = np.repeat(received, code.messages_per_worker, axis=-1)
    matrix = np.asarray(code.encoding_matrix)
    target = np.asarray(code.segment_targets)
    weights = np.zeros((len(masks), *target.shape[:1], len(matrix)), matrix.dtype)
    for weights_of_round, mask in zip(weights, masks, strict=True):
        solution, *_ = np.linalg.lstsq(matrix[mask].T, target.T)
        weights_of_round[:, mask] = solution.T
    return coding.Decoding(code, jnp.asarray(masks), jnp.asarray(weights))


def measure_decoded(
    code: GradientCode,
    gradients: Any,
    gradient_of: Callable[[Any], Any],
    layout: Layout,
) -> dict[str, Any]:
    """Measures the decoded gradient of all parts against the gradient on the data."""
    target = np.asarray(code.target, np.float64)
    weights = layout.row_weights
    rows = layout.rows
    num_held = (~layout.is_padding).sum()
    is_sample = num_held < layout.num_rows
    if weights is not None and not is_sample:
        # The user's own row weights apply to the whole data, too.
        own = (weights * target[:, None])[~layout.is_padding]
        rows = rows[0], own.astype(rows[1].dtype)
    whole = flat(gradient_of(rows))
    scale = norm(gradients)
    length = max(np.linalg.norm(whole), 1e-150)
    # In the first round all workers respond, in the second all but the tolerated
    # stragglers.
    masks = np.arange(code.num_workers) >= np.array([[0], [code.num_stragglers]])
    decoding = _least_squares(code, masks)
    wide = jax.tree.map(_arrays.promoted, gradients)
    vectors = [
        flat(jax.tree.map(functools.partial(np.tensordot, own, axes=1), wide))
        for own in np.asarray(decoding.effective_weights)
    ]
    along = np.vdot(whole, vectors[0]).real / length**2
    # Estimate of the number of rows from each part, relative to the true number.
    row_weights = ~layout.is_padding if weights is None else weights
    shares = target * row_weights.sum(1) / layout.num_rows
    total = shares.sum()
    spread = np.std(shares)
    deviation = spread * np.sqrt(len(shares))
    if np.isin(row_weights, (0, 1)).all():
        # There are no row weights. In the paper's form, the rows themselves are scaled.
        is_right = abs(total - 1) <= TOLERANCE or abs(along - 1) <= abs(along - total)
    else:
        # If weights differ much, parts with the largest weights may not have been
        # drawn.
        unseen = spread / (2 * abs(shares.mean()))
        is_right = abs(total - 1) <= TOLERANCE + _STANDARD_ERRORS * deviation + unseen
    error = max(np.linalg.norm(vector - whole) for vector in vectors)
    # Approximate codes do not guarantee the exact gradient. Weights of parts that are
    # not row weights correspond to no loss on the data.
    promises = code.num_stragglers or not decoding.failed()[0]
    has_loss = weights is not None or (target == 1).all()
    is_comparable = promises and has_loss and not is_sample
    return {
        "num_stragglers": code.num_stragglers,
        "total": target.sum(),
        "scale": scale,
        "ratio": float(np.linalg.norm(vectors[0]) / length),
        "error": float(error / length),
        "is_wrong": is_comparable and not error <= TOLERANCE * max(length, scale),
        "is_sample": is_sample,
        "is_weighted": is_right,
        "num_held": num_held,
        "num_rows": layout.num_rows,
        "represented": total,
        "deviation": deviation,
    }
