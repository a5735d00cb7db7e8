"""Checks that a loss is a sum over rows of the data, by its gradients on some of them.

Each check is for itself: it gives what it has measured, what that probably is and what
to do, or None.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays
from jaxwgc.checks._layout import Layout

# What rounding may do to a gradient, in bfloat16 too.
TOLERANCE = 0.02
# The weights of a sample may add up to as many standard errors too much or too little.
_STANDARD_ERRORS = 4


def norm(tree: Any) -> float:
    """The norm of a gradient, or of several side by side."""
    leaves = [_arrays.promoted(leaf) for leaf in jax.tree.leaves(tree)]
    return float(np.linalg.norm([jnp.linalg.norm(leaf.ravel()) for leaf in leaves]))


def flat(tree: Any) -> np.ndarray:
    """The leaves of a gradient side by side, on the host in double precision."""
    leaves = [np.asarray(leaf).astype(complex) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.ravel() for leaf in leaves])


class LossProbe:
    """Gradients of a loss on a few rows, of which the checks are made.

    Attributes:
      constant: the gradient without any rows; None where the loss has none, or it is
        not finite.
      is_mean: whether twice the same rows give the same gradient.
    """

    def __init__(self, gradient_of: Callable[[Any], Any], layout: Layout) -> None:
        """`gradient_of(part)`, for any number of rows in a part."""
        self._gradient_of = gradient_of
        self._layout = layout
        size = layout.is_padding.shape[1]
        self._few = _rows(layout.rows, slice(size))
        try:
            constant = flat(gradient_of(_rows(layout.rows, slice(0))))
        except Exception:  # Whatever a loss does without rows, such as a maximum.
            constant = np.array([np.nan])
        self.constant = constant if np.isfinite(constant).all() else None
        self._base = 0 if self.constant is None else self.constant

        def gradient(rows):
            return flat(gradient_of(rows)) - self._base

        once = gradient(self._few)
        twice = gradient(
            jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), self._few)
        )
        self._once, self._length = once, np.linalg.norm(once)
        # Two for a sum, one for a mean.
        self._growth = np.vdot(once, twice).real / max(self._length**2, 1e-300)
        turned = np.linalg.norm(twice - self._growth * once)
        is_straight = turned <= TOLERANCE * self._length
        self.is_mean = is_straight and abs(self._growth - 1) <= TOLERANCE
        self._how = ""
        if not (is_straight and abs(self._growth - 2) <= TOLERANCE):
            self._how = (
                f"twice the same rows give {self._growth:.3g} times the gradient"
                f"{'' if is_straight else ', turned'}, where a sum gives 2"
            )
        elif layout.num_rows >= 2 * size:
            # Twice the same rows have the same mean and variance; others have not.
            other = gradient(_rows(layout.rows, slice(size, 2 * size)))
            both = gradient(_rows(layout.rows, slice(2 * size)))
            most = TOLERANCE * (self._length + np.linalg.norm(other))
            miss = np.linalg.norm(both - once - other)
            if miss > most:
                self._how = (
                    f"the gradient of {2 * size} rows is not the sum of those of each "
                    f"half, but off by one of norm {miss:.3g}"
                )

    def sum_problem(self, ratio: float) -> str | None:
        """A mean, or anything else but a sum, over the rows of a part."""
        if not self._length:
            return None
        if self.is_mean:
            return (
                "loss is a mean over the rows of a part: twice the same rows give "
                f"{self._growth:.2f} times the gradient, where a sum gives 2. Decoding "
                f"adds the gradients of {len(self._layout.is_padding)} parts, so that "
                f"the gradient is {ratio:.3g} times that of the loss on all data "
                "(Adam hides it). Return jnp.sum(row_weights * ...), over the number "
                "of all rows if you want their mean"
            )
        if not self._how:
            return None
        return (
            f"loss is no sum over the rows of a part: {self._how}. Rows "
            "may not see each other (batch normalisation, a square root or logarithm "
            "of the whole sum), and the loss may not draw random numbers (dropout)"
        )

    def constant_problem(self, times: float) -> str | None:
        """A term that does not depend on the data."""
        length = 0 if self.constant is None else np.linalg.norm(self.constant)
        if not length:
            return None
        return (
            f"loss has a gradient of norm {length:.3g} on no rows at all: a "
            f"regulariser inside of the loss, which is counted {times:g} times, once a "
            "part. Take it out, and add its gradient after the aggregator, such as "
            "with optax.add_decayed_weights (or divide it by that number, if the "
            "weights of the parts may scale it, too)"
        )

    def padding_problem(self, parts: Any, scale: float) -> str | None:
        """Rows that only fill up a part, and are not weighted with 0."""
        is_padding = self._layout.is_padding
        # Nor are rows weighted one by one where they see each other.
        if self._how or not is_padding.any():
            return None
        padding = jax.tree.map(lambda leaf: jnp.asarray(leaf)[is_padding], parts)
        length = np.linalg.norm(flat(self._gradient_of(padding)) - self._base)
        if length <= 1e-6 * scale:
            return None
        number = int(is_padding.sum())
        if not np.isfinite(length):
            return (
                f"the loss of the {number} rows of weight 0 has no finite gradient, "
                "and 0 times that is NaN. Select before you compute: jnp.where("
                "row_weights > 0, x, 1) in the place of x"
            )
        return (
            f"{number} rows that only fill up the parts add a gradient of norm "
            f"{length:.3g}: padding is not weighted. Multiply the loss of each row by "
            "its row weight (from jaxwgc.partition), as in jnp.sum(row_weights * ...)"
        )

    def row_weights_problem(self) -> str | None:
        """Row weights of a sample that the loss does not use."""
        weights = self._layout.row_weights
        if weights is None or self._how or np.isin(weights, (0, 1)).all():
            return None
        data, ones = self._few
        doubled = flat(self._gradient_of((data, 2 * ones))) - self._base
        if np.linalg.norm(doubled - self._once) > TOLERANCE * self._length:
            return None
        return (
            "the row weights of a sample are not used: the loss has the same gradient "
            f"with twice the weights, which are {weights[weights > 0].mean():.3g} in "
            "the mean. Multiply the loss of each row by its weight, as in "
            "jnp.sum(row_weights * ...)"
        )


def sample_problem(layout: Layout, target: np.ndarray, along: float) -> str | None:
    """A sample of the parts that does not stand for all rows.

    Args:
      layout: of which parts hold fewer rows than there are.
      target: (num_parts,), the weights of the parts.
      along: the decoded gradient along that of all data, as a share of it.
    """
    weights = layout.row_weights
    if weights is None:
        weights = ~layout.is_padding
    # Each part's estimate of how many rows there are, over their number.
    shares = target * weights.sum(1) / layout.num_rows
    total, spread = shares.sum(), np.std(shares)
    error = spread * np.sqrt(len(shares))
    if np.isin(weights, (0, 1)).all():
        # No weights at all, unless the rows themselves are scaled, as in the paper.
        is_right = abs(total - 1) <= TOLERANCE or abs(along - 1) <= abs(along - total)
    else:
        # Where weights differ much, the largest may be those that were not drawn.
        unseen = spread / (2 * abs(shares.mean()))
        is_right = abs(total - 1) <= TOLERANCE + _STANDARD_ERRORS * error + unseen
    if is_right:
        return None
    return (
        f"a sample without its weights: the parts hold {layout.num_held} of "
        f"{layout.num_rows} rows, whose weights with those of the code add up to "
        f"{total:.3g} of all (standard error {error:.2g}), where 1 is expected. Take "
        "parts and row_weights from jaxwgc.sketching.weighted_parts, and its weights, "
        "which say how often a part was drawn, into jaxwgc.weighted(code, weights)"
    )


def _rows(tree: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)
