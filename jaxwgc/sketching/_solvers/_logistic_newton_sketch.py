"""Logistic regression by Newton's method with sketched Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import conversions, validation
from jaxwgc._common.arrays import product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._embedding import EmbeddingLike
from jaxwgc.sketching._embeddings._sparse_matrices import sparse_sign
from jaxwgc.sketching._solvers._newton_sketch import newton_sketch
from jaxwgc.sketching._solvers._solution import Solution


def logistic_newton_sketch(
    key: Array,
    features: ArrayLike,
    labels: ArrayLike,
    sketch_size: int,
    embedding: EmbeddingLike = sparse_sign,
    *,
    ridge: ArrayLike = 0.0,
    initial: ArrayLike | None = None,
    num_refinements: int = 0,
    tolerance: ArrayLike | None = None,
    max_iterations: int = 50,
) -> Solution:
    """Fits logistic regression by Newton's method with sketched Hessians.

    The objective is the mean over the N rows of log(1 + exp(xᵢᵀθ)) - yᵢ xᵢᵀθ, plus
    ridge / 2 ‖θ‖². There is no intercept. Add a column of ones for one; the ridge then
    includes it. Scikit-learn's `LogisticRegression(C=1 / (N * ridge),
    fit_intercept=False)` has the same solution.

    Args:
      key: A PRNG key.
      features: X, real, of shape (N, p).
      labels: y, of shape (N,): 0 or 1, bools, or probabilities between them.
      sketch_size: m, at least min(N, p). With a ridge, any size works; a few times the
        effective dimension is a good choice.
      embedding: See `newton_sketch`.
      ridge: A non-negative number, may be traced. Without a ridge, there is no solution
        if a plane separates the labels; `converged` is then False.
      initial: The starting point, (p,), zero by default.
      num_refinements: See `newton_sketch`.
      tolerance: See `newton_sketch`.
      max_iterations: The largest number of steps.

    Returns:
      A `Solution`, with values of the objective as its history. `converged` is as in
      `newton_sketch`, and False if θ separates the labels and there is no ridge. A
      plane that separates some of the labels and contains the other points is not
      detected. θ is then the point at which the loss stopped changing, and grows with
      precision. Traced labels outside [0, 1] give NaN and False.

    Raises:
      ValueError: If labels are outside [0, 1], features are not finite (unless traced),
        or shapes do not match. See also `newton_sketch`.
      TypeError: If an array is complex, sparse or not numeric.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> features = jax.random.normal(jax.random.key(0), (500, 3))
      >>> labels = features[:, 0] > 0
      >>> result = sketching.logistic_newton_sketch(
      ...     jax.random.key(1), features, labels, sketch_size=60, ridge=0.1
      ... )
      >>> print(result.converged, result.solution[0] > 1)
      True True

    References:
      Pilanci and Wainwright, "Newton sketch: a near linear-time optimization algorithm
      with linear-quadratic convergence", SIAM J. Optim. 27 (2017), section 4.
    """
    features = _arguments.finite_matrix("features", features)
    num_rows, num_columns = features.shape
    targets = _arguments.nonnegative_array("labels", labels, features.dtype, largest=1)
    targets = conversions.gathered(targets)
    validation.check_shape("labels", targets, "(N,)", (num_rows,))
    if initial is None:
        initial = np.zeros(num_columns, features.dtype)
    initial = _arguments.finite_array("initial", initial).astype(features.dtype)
    validation.check_shape("initial", initial, "(p,)", (num_columns,))
    newton = newton_sketch(
        key,
        _logistic_loss,
        _logistic_root,
        initial,
        sketch_size,
        embedding,
        args=(features, targets),
        ridge=ridge,
        num_refinements=num_refinements,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    has_converged = _has_converged(newton, features, targets, ridge)
    return newton._replace(converged=has_converged)


@jax.jit
def _has_converged(
    newton: Solution, features: Array, labels: Array, ridge: ArrayLike
) -> Array:
    """Returns whether the fit converged; False for separable labels without a ridge."""
    margins = product(features, newton.solution) * (2 * labels - 1)
    is_separated = jnp.all((margins > 0) & ((labels == 0) | (labels == 1)))
    return newton.converged & (~is_separated | (jnp.asarray(ridge) > 0))


def _logistic_loss(params: Array, features: Array, labels: Array) -> Array:
    logits = product(features, params)
    return jnp.mean(jax.nn.softplus(logits) - labels * logits)


def _logistic_root(params: Array, features: Array, labels: Array) -> Array:
    logits = product(features, params)
    variance = jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits)
    return features * jnp.sqrt(variance / labels.shape[0])[:, None]
