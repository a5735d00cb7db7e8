"""Choice of the ridge by cross-validation."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import conversions, validation
from jaxwgc._common.arrays import inverse_power_of_two, product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.factors import factors_of, solver_cutoff
from jaxwgc.sketching._linalg.kinds import MatrixLike, compiled, row_system_of
from jaxwgc.sketching._linalg.matrix import Dense, RowMatrix


class RidgeChoice(NamedTuple):
    """Cross-validation errors of ridges, and the best ridge; see `choose_ridge`."""

    ridge: Array
    errors: Array
    solution: Array


def choose_ridge(
    matrix: MatrixLike,
    target: ArrayLike,
    ridges: ArrayLike,
) -> RidgeChoice:
    """Finds the ridge with the least cross-validation error, by one factorisation.

    The errors are those of the minimiser θ of ‖Xθ - y‖² + ridge ‖θ‖². With H = X (XᵀX +
    ridge I)⁻¹ Xᵀ, they are the means of ((y - Hy)ᵢ / (1 - Hᵢᵢ))². Each term is exactly
    the squared error of predicting yᵢ from all other rows.

    X is factored once, and all ridges are compared in one product with its left
    singular vectors.

    Args:
      matrix: X, (N, p), of any rank and of any kind that `leverage_scores` takes.
        Unless it is an array on one device, N must be at least 4p.
      target: y, of shape (N,), or (N, c) for c systems that share the ridge.
      ridges: The candidates, (num_ridges,), not negative, such as `jnp.logspace(-3, 3,
        20)`.

    Returns:
      A named tuple:

      - `ridge`: The ridge of the smallest error, a scalar.
      - `errors`: (num_ridges,), the mean squared errors over rows and systems. An error
        is infinite if a row is predicted from itself alone. With a ridge of 0 and more
        columns than rows, errors are those of minimum-norm solutions. Errors beyond the
        range of the dtype become 0 or infinite, but the choice still compares them.
      - `solution`: θ of that ridge, (p,) or (p, c). Entries beyond the range of the
        dtype are 0 or infinite.

      If a traced matrix, target or ridge has a NaN, or a traced ridge is negative, all
      are NaN. They are constants to `jax.grad`.

    Raises:
      ValueError: If shapes do not match, entries are not finite (unless traced), or a
        ridge is negative.
      TypeError: If an array is complex or not numeric.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (30, 20))
      >>> noise = jax.random.normal(jax.random.key(1), (30,))
      >>> ridges = jnp.array([0.01, 1.0, 10.0, 1000.0])
      >>> choice = sketching.choose_ridge(matrix, matrix[:, 0] + 2 * noise, ridges)
      >>> print(choice.ridge)
      10.0

    References:
      Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a
      good ridge parameter", Technometrics 21 (1979), equation 2.3.
    """
    checked, target = row_system_of(matrix, target)
    num_rows, num_columns = checked.shape
    if num_rows < 4 * num_columns and not isinstance(checked, Dense):
        raise ValueError(
            "matrix must have at least four rows per column, or be an array on one "
            f"device; got {checked.description} of shape {checked.shape}"
        )
    candidates = _arguments.nonnegative_array("ridges", ridges, checked.dtype)
    candidates = conversions.gathered(candidates)
    validation.check_shape("ridges", candidates, "(num_ridges,)", ("any",))
    return _choose(checked, target, candidates)


@compiled()
def _choose(matrix: RowMatrix, target: Array, ridges: Array) -> RidgeChoice:
    matrix, target, ridges = lax.stop_gradient((matrix, target, ridges))
    num_rows, num_columns = matrix.shape
    # The ridge applies to unscaled columns, so the factors of scaled columns are
    # converted.
    rcond = solver_cutoff(matrix.shape, matrix.dtype)
    threshold = 1e4 * jnp.finfo(matrix.dtype).eps
    is_tall = num_rows >= 4 * num_columns
    factors = factors_of(matrix, None, rcond, "auto", threshold)
    # With X diag(scale) = U₀ diag(s₀) V₀ᵀ, X is U₀ times this small matrix.
    small = (factors.vectors * factors.singular_values / factors.scale[:, None]).T
    rotation, values, right = jnp.linalg.svd(small, full_matrices=False)
    is_kept = jnp.arange(values.size) < factors.rank.rank
    values = jnp.where(is_kept, values, 0)
    # The left singular vectors of X are U = X `left`.
    left = product(factors.scale[:, None] * factors.inverse, rotation)
    left = jnp.where(is_kept, left, 0)
    is_valid = factors.finite & jnp.isfinite(target).all() & jnp.all(ridges >= 0)
    targets = jnp.where(is_valid, target, 0).reshape(len(target), -1)
    # Scaling by an exact power of two avoids overflow of squares.
    scale = inverse_power_of_two(values[0])
    to_unit = inverse_power_of_two(jnp.max(jnp.abs(targets)))
    targets = targets * to_unit
    # A ridge that overflows becomes the largest float, which removes all directions.
    scaled_ridges = jnp.nan_to_num(ridges * scale * scale)
    squares = (values * scale) ** 2
    is_kept = squares > 0
    if not is_tall:
        # Rounding errors in U = X `left` are large in directions of small singular
        # values. A QR factorisation makes U orthonormal again.
        basis, triangle = jnp.linalg.qr(matrix.mv(left))
        matrix = Dense(basis)
        left = jnp.diag(jnp.sign(jnp.diagonal(triangle)))
    coordinates: Array = matrix.sum_rows(_coordinates, left, along=(targets,))
    # In the directions U of X, 1 - H is ridge / (σ² + ridge). In all other directions,
    # it is 1. Without other directions, the factor ridge / (min σ² + ridge) cancels in
    # all errors. It is divided out, since it is 0 up to rounding for a small ridge.
    num_others = num_rows - jnp.sum(is_kept)
    eps = float(jnp.finfo(matrix.dtype).eps)
    rounding = jnp.where(num_others > 0, 100 * eps, 0)
    numerators = scaled_ridges + jnp.where(num_others > 0, 0, jnp.min(squares))
    sums = jnp.where(is_kept, squares + scaled_ridges[:, None], 1)
    shrinkage = jnp.where(is_kept, numerators[:, None] / sums, 0)
    fit = _Fit(
        left=left,
        shrinkage=shrinkage,
        coordinates=coordinates,
        has_others=jnp.minimum(num_others, 1),
        rounding=rounding,
    )
    total = matrix.sum_rows(_errors, fit, along=(targets,))
    errors = total / (num_rows * targets.shape[1])
    ridge = ridges[jnp.argmin(errors)]
    divisors = jnp.where(is_kept, values, 1)
    root = jnp.sqrt(ridge)
    # s + ridge / s in units of the larger of s and √ridge, to avoid overflow.
    larger = jnp.maximum(divisors, root)
    weights = divisors / larger + root / larger * (root / divisors)
    weighted = coordinates / to_unit / larger[:, None] / weights[:, None]
    solution = product(right.T, jnp.where(is_kept[:, None], weighted, 0))
    nan = jnp.where(is_valid, 0, jnp.nan)
    return RidgeChoice(
        ridge=ridge + nan,
        errors=errors / to_unit / to_unit + nan,
        solution=solution.reshape(-1, *target.shape[1:]) + nan,
    )


class _Fit(NamedTuple):
    """Quantities of one factorisation from which the fit for every ridge follows.

    Attributes:
      left: L, for which U = X L are the left singular vectors of X.
      shrinkage: The factors 1 - H of the directions U, (num_ridges, k), up to a common
        factor if there are no other directions.
      coordinates: Uᵀy, (k, c).
      has_others: 1 if there are directions orthogonal to U, otherwise 0.
      rounding: The largest factor 1 - H of a row that counts as rounding of zero.
    """

    left: Array
    shrinkage: Array
    coordinates: Array
    has_others: Array
    rounding: Array


def _coordinates(rows: Array, target: Array, left: Array) -> Array:
    return product(product(rows, left).T, target)


def _errors(rows: Array, target: Array, fit: _Fit) -> Array:
    """Computes the sum of squared errors over a block of rows, for each ridge."""
    basis = product(rows, fit.left)
    # All ridges and targets share one matrix product.
    scaled = fit.shrinkage.T[:, :, None] * fit.coordinates[:, None]
    residuals = product(basis, scaled.reshape(len(fit.coordinates), -1))
    residuals = residuals.reshape(len(basis), *scaled.shape[1:])
    in_others = target - product(basis, fit.coordinates)
    residuals += fit.has_others * in_others[:, None]
    # The diagonal of 1 - H, for each row and ridge.
    leverage_complement = fit.has_others * (
        1 - jnp.sum(basis**2, axis=1, keepdims=True)
    )
    leverage_complement += product(basis**2, fit.shrinkage.T)
    # Errors of rows of leverage 1 are infinite.
    divisors = leverage_complement[:, :, None]
    is_exact = divisors > fit.rounding
    errors = jnp.where(is_exact, residuals / jnp.where(is_exact, divisors, 1), jnp.inf)
    return jnp.sum(errors**2, axis=(0, 2))
