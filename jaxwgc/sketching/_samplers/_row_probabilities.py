"""Sampling probabilities of rows from their scores."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.probabilities import distribution

RULES = ("lev", "unif", "slev")


def row_probabilities(
    scores: ArrayLike, rule: str = "lev", alpha: ArrayLike = 0.9
) -> Array:
    """Computes sampling probabilities of rows by the rules LEV, UNIF and SLEV.

    Args:
      scores: (N,), one non-negative number per row, such as `leverage_scores`.
      rule: The map from scores to probabilities.
        - `"lev"`: in proportion to the scores.
        - `"unif"`: the same for all rows.
        - `"slev"`: alpha times the first plus 1 - alpha times the second. Rows of small
          scores, which have a large scale and so a large variance, become less rare.
      alpha: The share of the scores in `"slev"`, from 0 to 1, may be traced.

    Returns:
      (N,), sums to 1. If traced scores are negative, NaN, infinite or all zero, or a
      traced alpha is out of range, all are NaN.

    Raises:
      ValueError: If rule is unknown, alpha is outside [0, 1], or scores do not have one
        axis or (unless traced) are negative, NaN, infinite or all zero.
      TypeError: If alpha is not a real scalar, or scores are not real.

    Note:
      For LEVUNW, the leverage rule with an unweighted solve, combine `"lev"` with
      `sample_rows(..., weighted=False)`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> scores = jnp.array([1.0, 0.5, 0.5])
      >>> print(sketching.row_probabilities(scores))
      [0.5  0.25 0.25]
      >>> scores = jnp.array([1.0, 0.0])
      >>> print(sketching.row_probabilities(scores, "slev", alpha=0.5))
      [0.75 0.25]

    References:
      Ma, Mahoney and Yu, "A statistical perspective on algorithmic leveraging", JMLR 16
      (2015), section 2.
    """
    validation.check_choice("rule", rule, RULES)
    array_validation.check_number("alpha", alpha, minimum=0, maximum=1)
    leverage, valid = distribution("scores", scores)
    uniform = jnp.full_like(leverage, 1 / leverage.shape[0])
    if rule == "lev":
        probabilities = leverage
    elif rule == "unif":
        probabilities = uniform
    else:
        alpha = jnp.asarray(alpha, leverage.dtype)
        alpha = jnp.where((alpha >= 0) & (alpha <= 1), alpha, jnp.nan)
        probabilities = alpha * leverage + (1 - alpha) * uniform
    return jnp.where(valid, probabilities, jnp.nan)
