"""Comparison of the decoded gradient with the gradient of a loss on the whole data."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate._policy import shapes_of
from jaxwgc.checks._finding import (
    TINY,
    TOLERANCE,
    DecodedSums,
    Finding,
    decoded_sums,
    flat,
    flat_by_part,
    problem_of_code,
)
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import partial_value_and_grad
from jaxwgc.gradients._gradients import checked_loss
from jaxwgc.parts import partition

# Largest accepted error of the total weight of a sample, in standard errors.
_STANDARD_ERRORS = 4


def compare_with_loss(
    loss: Callable[..., Any],
    code: GradientCode,
    params: Any,
    parts: Any,
    data: Any,
    *,
    has_aux: bool,
    whole_loss: Callable[..., Any] | None,
    any_factor: bool,
) -> Finding:
    """Compares the decoded gradient with the gradient on the whole data.

    Args:
      loss: `loss(params, part)`, for parts with any number of rows.
      code: Gradient code.
      params: Pytree of arrays.
      parts: Pytree, leaves (num_parts, m, ...).
      data: Pytree, leaves (N, ...).
      has_aux: Whether `loss` returns a pair with aux.
      whole_loss: `whole_loss(params, rows)`, or None for `loss`.
      any_factor: Whether the two gradients may differ by a positive constant factor.
    """
    layout = _Layout.of(data, parts)
    partial = jax.jit(partial_value_and_grad(loss, has_aux))
    gradients = jax.device_get(partial(params, parts)[1])
    gradient_and_aux = jax.jit(jax.grad(checked_loss(loss, has_aux), has_aux=True))

    def gradient_of(part):
        return flat(gradient_and_aux(params, part)[0])

    gradient_on_data = gradient_of
    if whole_loss is not None:
        validation.check_callable("whole_loss", whole_loss)
        gradient_of_whole = jax.jit(jax.grad(whole_loss))

        def gradient_on_data(part):
            return flat(gradient_of_whole(params, part))

    comparison = _compare(
        code,
        gradients,
        layout,
        gradient_on_data,
        is_whole_loss=whole_loss is not None,
        any_factor=any_factor,
    )
    return Finding(
        terms=gradients,
        ratio=comparison.ratio,
        error=comparison.error,
        problem=comparison.problem(layout, gradient_of),
    )


class _Layout(NamedTuple):
    """Rows of the data and rows of the parts, as NumPy arrays.

    Attributes:
      data: Rows of the data, leaves (N, ...).
      num_rows: N.
      parts: Rows of the parts, leaves (num_parts, m, ...).
      row_weights: (num_parts, m); 0 for padding.
      dtype: Dtype of the row weights that the loss takes; None if it takes rows alone.
    """

    data: Any
    num_rows: int
    parts: Any
    row_weights: np.ndarray
    dtype: np.dtype | None

    @classmethod
    def of(cls, data: Any, parts: Any) -> "_Layout":
        """Constructs the layout from parts with or without row weights.

        Raises:
          ValueError: If parts are neither `(parts, row_weights)` nor like the data.
        """
        data = jax.device_get(data)
        parts = jax.device_get(parts)
        num_rows = array_validation.check_parts("data", data, "N")
        leaves = jax.tree.leaves(parts)
        has_rows = all(np.ndim(leaf) > 1 for leaf in leaves)
        structure = jax.tree.structure(parts)
        if has_rows and structure == jax.tree.structure((data, 0)):
            rows, row_weights = parts
            in_double = row_weights.astype(np.float64)
            return cls(data, num_rows, rows, in_double, row_weights.dtype)
        if not has_rows or structure != jax.tree.structure(data):
            raise ValueError(
                "parts must be (parts, row_weights) from jaxwgc.partition(data, "
                "num_parts), or a pytree with the structure of data; got "
                f"{shapes_of(parts)} with data {shapes_of(data)}"
            )
        row_weights = np.asarray(partition(np.ones(num_rows), len(leaves[0]))[1])
        if row_weights.shape != np.shape(leaves[0])[:2]:
            # If parts are not from `partition`, padding is unknown, and all rows count.
            row_weights = np.ones(np.shape(leaves[0])[:2])
        return cls(data, num_rows, parts, row_weights, None)

    @property
    def is_held(self) -> np.ndarray:
        """Returns a mask of rows with a nonzero weight, which are not padding."""
        return self.row_weights != 0

    @property
    def is_sample(self) -> bool:
        """Returns whether parts hold fewer or more rows than the data."""
        return self.is_held.sum() != self.num_rows

    @property
    def marks_padding(self) -> bool:
        """Returns whether all row weights are 0 or 1, so that 0 only marks padding."""
        return bool(np.isin(self.row_weights, (0, 1)).all())

    def rows(self, is_chosen: np.ndarray) -> Any:
        """Returns the rows of the parts that a mask selects."""
        return jax.tree.map(operator.itemgetter(is_chosen), self.parts)

    def as_part(self, rows: Any, row_weights: np.ndarray) -> Any:
        """Returns rows as a part for the loss, with row weights if it takes them."""
        return rows if self.dtype is None else (rows, row_weights.astype(self.dtype))


class _Comparison(NamedTuple):
    """The decoded gradient and the gradient on the data, in double precision.

    Attributes:
      code: Gradient code.
      of_parts: Partial gradients, (num_parts, size).
      total: Sum of the partial gradients with the weights of the code, (size,).
      expected: Gradient on the data, (size,).
      decoded: Decoded gradients, without stragglers and with them.
      ratio: Norm of the first decoded gradient, relative to the gradient on the data.
      has_loss: Whether `total` should equal `expected`.
    """

    code: GradientCode
    of_parts: np.ndarray
    total: np.ndarray
    expected: np.ndarray
    decoded: DecodedSums
    ratio: float
    has_loss: bool

    @property
    def error(self) -> float:
        """Returns the largest relative error of the decoded gradients."""
        errors = np.linalg.norm(self.decoded.sums - self.expected, axis=1)
        return float(errors.max() / max(np.linalg.norm(self.expected), TINY))

    def problem(self, layout: _Layout, gradient_of: Callable[[Any], np.ndarray]) -> str:
        """Returns the first problem of the gradients as text, or an empty string.

        Args:
          layout: Rows of the data and of the parts.
          gradient_of: `gradient_of(part)`, for parts with any number of rows.
        """
        if not self.of_parts.any():
            return (
                "the gradient of every part is zero: does loss use its params? Take "
                "other params if the loss is flat at these"
            )
        norms_of_parts = np.linalg.norm(self.of_parts, axis=1)
        [not_finite] = np.nonzero(~np.isfinite(norms_of_parts))
        if len(not_finite) or not np.isfinite(self.expected).all():
            place = "the whole data"
            if len(not_finite):
                place = f"{len(not_finite)} of {len(norms_of_parts)} parts"
            return (
                f"the gradient is NaN or infinite for {place}. Are the parts, their "
                'row weights and params finite? jax.config.update("jax_debug_nans", '
                "True) finds the operation. If it is in rows of weight 0, select "
                "before you compute: jnp.where(row_weights > 0, x, 1) in place of x"
            )
        added = _gradient_of_weight_zero(layout, gradient_of)
        if 1e-6 * np.linalg.norm(norms_of_parts) < added < np.inf:
            return (
                "the row weights are not used: rows of weight 0, such as padding, add "
                f"a gradient of norm {added:.3g}. Multiply the loss of each row by its "
                "row weight (from jaxwgc.partition, or from "
                "jaxwgc.parts.weighted_parts), as in jnp.sum(row_weights * ...)"
            )
        # Rounding errors of different parts are independent, so that their squares add.
        terms = np.asarray(self.code.target) * norms_of_parts
        rounding = TOLERANCE * max(np.linalg.norm(self.expected), np.linalg.norm(terms))
        difference = np.linalg.norm(self.total - self.expected)
        if self.has_loss and not difference <= rounding:
            return (
                "the sum over the parts differs from the gradient of the loss on the "
                f"data: it is {self.ratio:.3g} times as long, relative error "
                f"{self.error:.2g}. Does the loss take a mean over the rows of a part "
                f"({self.code.num_parts} times as long; Adam hides it)? Return "
                "jnp.sum(row_weights * ...). Does it have a regulariser, which counts "
                "once per part? Divide it by the number of parts, and pass whole_loss. "
                "Rows must not interact (batch normalisation, a square root or "
                "logarithm of the total), and the loss must not draw random numbers "
                "(dropout). Are these the parts of these data?"
            )
        problem = problem_of_code(self.decoded, self.total, rounding, self.code)
        return problem or _problem_of_sample(self, layout, gradient_of)


def _compare(
    code: GradientCode,
    gradients: Any,
    layout: _Layout,
    gradient_on_data: Callable[[Any], np.ndarray],
    *,
    is_whole_loss: bool,
    any_factor: bool,
) -> _Comparison:
    """Compares the decoded gradient of all parts with the gradient on the data.

    Args:
      code: Gradient code.
      gradients: Partial gradients, leaves (num_parts, ...).
      layout: Rows of the data and of the parts.
      gradient_on_data: `gradient_on_data(rows)`, the gradient on all rows.
      is_whole_loss: Whether `gradient_on_data` is the gradient of `whole_loss`, not of
        the loss for parts.
      any_factor: Whether the two gradients may differ by a positive constant factor.
    """
    of_parts = flat_by_part(gradients, code.num_parts)
    target = np.asarray(code.target, np.float64)
    total = target @ of_parts
    has_weights = bool((target != 1).any())
    # If parts are a sample, they are compared with the loss on the rows of the sample.
    rows = layout.rows(layout.is_held) if layout.is_sample else layout.data
    # Weights of the code may average the parts, or weight their rows: both gradients
    # are tried, and the nearer one is expected. `whole_loss` leaves no choice. The
    # user's row weights apply to the whole data in each case.
    choices = [layout.row_weights]
    if has_weights and not is_whole_loss:
        choices.append(target[:, None] * layout.row_weights)
    candidates = [
        gradient_on_data(layout.as_part(rows, row_weights[layout.is_held]))
        for row_weights in choices
    ]
    expected = min(candidates, key=lambda gradient: np.linalg.norm(total - gradient))
    decoded = decoded_sums(code, of_parts)
    length = max(np.linalg.norm(expected), TINY)
    ratio = float(np.linalg.norm(decoded.sums[0]) / length)
    if any_factor:
        expected = expected * (np.linalg.norm(total) / length)
    # A loss without row weights cannot apply the weights of a code to rows. Then the
    # gradient on the data may differ from the decoded gradient without a mistake.
    has_loss = layout.dtype is not None or not has_weights
    if is_whole_loss:
        has_loss = not layout.is_sample
    return _Comparison(
        code=code,
        of_parts=of_parts,
        total=total,
        expected=expected,
        decoded=decoded,
        ratio=ratio,
        has_loss=has_loss,
    )


def _gradient_of_weight_zero(
    layout: _Layout, gradient_of: Callable[[Any], np.ndarray]
) -> float:
    """Computes the norm of the gradient that rows of weight 0 add.

    The comparison with the gradient on the data may miss this gradient, since that of
    padding is small at the start of training.
    """
    is_chosen = ~layout.is_held
    if not layout.marks_padding:
        is_chosen = np.ones_like(is_chosen)
    rows = layout.rows(is_chosen)
    numbers = np.arange(is_chosen.sum())
    if len(numbers) == 0:
        return 0.0

    def gradient(numbers):
        chosen = jax.tree.map(operator.itemgetter(numbers), rows)
        return gradient_of(layout.as_part(chosen, np.zeros(len(numbers))))

    # A regulariser cancels here, since it does not depend on the number of rows.
    twice = gradient(np.tile(numbers, 2))
    return float(np.linalg.norm(twice - gradient(numbers)))


def _problem_of_sample(
    comparison: _Comparison,
    layout: _Layout,
    gradient_of: Callable[[Any], np.ndarray],
) -> str:
    """Returns a problem as text if weights of a sample do not represent all rows.

    Without a problem, returns an empty string.
    """
    if not layout.is_sample:
        return ""
    # Row weights of each part represent a share of all rows. Shares should sum to 1.
    sums = layout.row_weights.sum(1)
    shares = np.asarray(comparison.code.target) * sums / layout.num_rows
    represented = shares.sum()
    spread = np.std(shares)
    deviation = spread * np.sqrt(len(shares))
    if layout.marks_padding:
        # Rows may be scaled instead of their weights, so gradients are compared, too.
        on_data = gradient_of(layout.as_part(layout.data, np.ones(layout.num_rows)))
        along = np.vdot(on_data, comparison.total).real / np.vdot(on_data, on_data).real
        is_weighted = abs(along - 1) <= abs(along - represented)
        is_weighted |= abs(represented - 1) <= TOLERANCE
    else:
        # If weights differ much, the parts with the largest weights may not be drawn.
        unseen = spread / (2 * abs(shares.mean()))
        allowed = TOLERANCE + _STANDARD_ERRORS * deviation + unseen
        is_weighted = abs(represented - 1) <= allowed
    if is_weighted:
        return ""
    return (
        f"a sample without its weights: the parts hold {layout.is_held.sum()} of "
        f"{layout.num_rows} rows, which represent {represented:.3g} times all "
        f"(standard error {deviation:.2g}). Take parts and row_weights from "
        "jaxwgc.parts.weighted_parts, and pass its weights to jaxwgc.weighted(code, "
        "weights)"
    )
