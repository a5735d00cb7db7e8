"""Measurements of a loss: gradients on some rows, and of all parts decoded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, coding
from jaxwgc.checks._layout import Layout
from jaxwgc.checks._mistakes import TOLERANCE
from jaxwgc.codes import GradientCode

# Standard errors by which the weights of a sample may add up to too much or too little.
_STANDARD_ERRORS = 4


def norm(tree: Any) -> float:
    """Returns the norm of a gradient, or of several side by side."""
    leaves = [_arrays.promoted(leaf) for leaf in jax.tree.leaves(tree)]
    return float(np.linalg.norm([jnp.linalg.norm(leaf.ravel()) for leaf in leaves]))


def flat(tree: Any) -> np.ndarray:
    """Returns the leaves of a gradient side by side, in double precision."""
    leaves = [np.asarray(leaf).astype(complex) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves])


def measure_loss(
    gradient_of: Callable[[Any], Any], layout: Layout, parts: Any
) -> dict[str, Any]:
    """Measures whether a loss is a sum over weighted rows.

    Args:
      gradient_of: `gradient_of(part)`, for any number of rows in a part.
      layout: of the data and of the parts.
      parts: a pytree, leaves (num_parts, m, ...).
    """

    def rows(*numbers):
        return jax.tree.map(lambda leaf: leaf[slice(*numbers)], layout.rows)

    try:
        constant = flat(gradient_of(rows(0)))
    except Exception:  # Whatever a loss does without rows, such as a maximum.
        constant = np.full(1, np.nan)
    constant = constant if np.isfinite(constant).all() else np.zeros(1)

    def gradient(part):
        return flat(gradient_of(part)) - constant

    is_padding, weights = layout.is_padding, layout.row_weights
    size = is_padding.shape[1]
    few = more = rows(size)
    if layout.num_rows >= 2 * size:
        # Twice the same rows have the same mean and variance; others have not.
        more = rows(size, 2 * size)
    once, other = gradient(few), gradient(more)
    both = gradient(jax.tree.map(lambda *own: jnp.concatenate(own), few, more))
    length = np.linalg.norm(once) + np.linalg.norm(other)
    # These may nearly cancel.
    missed, above_mean = (
        np.linalg.norm(both - share * (once + other)) / max(length, 1e-300)
        for share in (1, 0.5)
    )
    is_sum = missed <= TOLERANCE
    padding, is_unweighted = 0.0, False
    # Rows that see each other are not weighted one by one either.
    if is_sum and is_padding.any():
        filled = jax.tree.map(lambda leaf: jnp.asarray(leaf)[is_padding], parts)
        padding = np.linalg.norm(gradient(filled))
    if is_sum and weights is not None and not np.isin(weights, (0, 1)).all():
        doubled = gradient((few[0], 2 * few[1]))
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


def measure_decoded(
    code: GradientCode,
    gradients: Any,
    gradient_of: Callable[[Any], Any],
    layout: Layout,
) -> dict[str, Any]:
    """Measures the decoded gradient of all parts against that of the data."""
    target = np.asarray(code.target, np.float64)
    weights, rows = layout.row_weights, layout.rows
    num_held = (~layout.is_padding).sum()
    is_sample = num_held < layout.num_rows
    if weights is not None and not is_sample:
        # Weights of the user's own are those of the whole data, too.
        own = (weights * target[:, None])[~layout.is_padding]
        rows = rows[0], jnp.asarray(own, rows[1].dtype)
    whole = flat(gradient_of(rows))
    scale, length = norm(gradients), max(np.linalg.norm(whole), 1e-150)
    # All workers respond, then all but as many as may be lost.
    masks = np.ones((2, code.num_workers), bool)
    masks[1, : code.num_stragglers] = False
    decodings = [coding.decoding(code, mask) for mask in masks]
    vectors = [flat(decoding.collapse(gradients)) for decoding in decodings]
    along = float(np.vdot(whole, vectors[0]).real / length**2)
    # Each part's estimate of how many rows there are, over their number.
    row_weights = ~layout.is_padding if weights is None else weights
    shares = target * row_weights.sum(1) / layout.num_rows
    total, spread = shares.sum(), np.std(shares)
    error = spread * np.sqrt(len(shares))
    if np.isin(row_weights, (0, 1)).all():
        # No weights at all, unless the rows themselves are scaled, as in the paper.
        is_right = abs(total - 1) <= TOLERANCE or abs(along - 1) <= abs(along - total)
    else:
        # Where weights differ much, the largest may be those that were not drawn.
        unseen = spread / (2 * abs(shares.mean()))
        is_right = abs(total - 1) <= TOLERANCE + _STANDARD_ERRORS * error + unseen
    misses = [float(np.linalg.norm(vector - whole)) for vector in vectors]
    # Approximate codes promise nothing, and weights of parts that are not those of rows
    # have no loss on the data.
    promises = code.num_stragglers or not decodings[0].failed()
    has_loss = weights is not None or (target == 1).all()
    return {
        "num_stragglers": code.num_stragglers,
        "total": target.sum(),
        "scale": scale,
        "cancelled": scale / length,
        "ratio": float(np.linalg.norm(vectors[0]) / length),
        "error": max(misses) / length,
        "is_comparable": promises and has_loss and not is_sample,
        "is_sample": is_sample,
        "is_weighted": is_right,
        "num_held": num_held,
        "num_rows": layout.num_rows,
        "represented": total,
        "deviation": error,
    }
