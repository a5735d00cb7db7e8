"""Choice of the ridge by cross-validation."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.factors import factors_of, solver_cutoff
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    compute,
    is_dense,
    matrix_of,
    system_of,
)
from jaxwgc.sketching._linalg.rows import Rows, constant

CRITERIA = ("leave_one_out", "generalized")


class RidgeChoice(NamedTuple):
    """Cross-validation errors of ridges, and the best ridge.

    Attributes:
      ridge: The ridge of the smallest error, a scalar.
      errors: (num_ridges,), the mean squared errors over rows and systems. An error is
        infinite if a row is predicted from itself alone. With a ridge of 0 and more
        columns than rows, errors are those of minimum-norm solutions. Errors beyond the
        range of the dtype become 0 or infinite, but the choice still compares them.
      solution: θ of that ridge, (p,) or (p, c). Entries beyond the range of the dtype
        are 0 or infinite.
    """

    ridge: Array
    errors: Array
    solution: Array


def choose_ridge(
    matrix: MatrixLike,
    target: ArrayLike,
    ridges: ArrayLike,
    criterion: str = "leave_one_out",
) -> RidgeChoice:
    """Computes the ridge of the least cross-validation error, by one factorisation.

    The errors are those of the minimiser θ of ‖Xθ - y‖² + ridge ‖θ‖². With H = X (XᵀX +
    ridge I)⁻¹ Xᵀ, they are:

    - `"leave_one_out"`: the mean of ((y - Hy)ᵢ / (1 - Hᵢᵢ))², which is exactly the
      squared error of predicting yᵢ from all other rows;
    - `"generalized"`: the mean of (y - Hy)ᵢ² over (1 - tr H / N)², which is invariant
      under rotations of X and y.

    X is factored once, and all ridges are compared in one product with its left
    singular vectors.

    Args:
      matrix: X, (N, p), of any rank and of any kind that `leverage_scores` takes.
        Unless it is an array on one device, N must be at least 4p.
      target: y, of shape (N,), or (N, c) for c systems that share the ridge.
      ridges: The candidates, (num_ridges,), not negative, such as `jnp.logspace(-3, 3,
        20)`.
      criterion: `"leave_one_out"` or `"generalized"`.

    Returns:
      A `RidgeChoice`. If a traced matrix, target or ridge has a NaN, or a traced ridge
      is negative, it is NaN. It is a constant to `jax.grad`.

    Raises:
      ValueError: If shapes do not match, entries are not finite (unless traced), a
        ridge is negative, or the criterion is unknown.
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
      good ridge parameter", Technometrics 21 (1979), equations 1.4 and 2.3.
    """
    checked, target = system_of(None, matrix_of("matrix", matrix), target)
    num_rows, num_columns = checked.shape
    is_tall = num_rows >= 4 * num_columns
    rule = "have at least four rows per column, or be an array on one device"
    given = f"{type(checked).__name__} of shape {checked.shape}"
    _validation.require(is_tall or is_dense(checked), "matrix", rule, given)
    ridges_given = ridges
    ridges = _checks.finite_array("ridges", ridges)
    _validation.check_shape("ridges", ridges, "(num_ridges,)", ("any",))
    ridges = ridges.astype(checked.dtype)
    values = _checks.concrete(ridges_given, ridges.dtype)
    if values is not None:
        least = jnp.finfo(ridges.dtype).tiny
        _validation.check_entries("ridges", values, values >= 0, "not negative")
        is_right = (values >= least) | (np.asarray(ridges_given) == 0)
        _validation.check_entries("ridges", values, is_right, f"0 or at least {least}")
    _validation.check_choice("criterion", criterion, CRITERIA)
    options = {"criterion": criterion, "shape": tuple(checked.shape)}
    return compute(_choose, checked, ridges, along=(target,), **options)


def _choose(
    rows: Rows, target: Array, ridges: Array, criterion: str, shape: tuple[int, int]
) -> RidgeChoice:
    rows, target, ridges = constant(rows), *lax.stop_gradient((target, ridges))
    is_tall = shape[0] >= 4 * shape[1]
    left, values, right, finite = _decomposed(rows, shape)
    is_right = finite & (rows.maximum(~jnp.isfinite(target).all() * 1) == 0)
    is_right &= jnp.all(ridges >= 0)
    targets = jnp.where(is_right, target, 0).reshape(len(target), -1)
    # Scaling by an exact power of two avoids overflow of squares.
    scale = inverse_power_of_two(values[0])
    unit = inverse_power_of_two(rows.maximum(jnp.max(jnp.abs(targets))))
    targets = targets * unit
    # A ridge that overflows becomes the largest float, which removes all directions.
    scaled_ridges = jnp.nan_to_num(ridges * scale * scale)
    # Share of each direction that remains with each ridge, (num_ridges, k).
    squares = (values * scale) ** 2
    is_kept = squares > 0
    weights = squares + scaled_ridges[:, None]
    shares = jnp.where(is_kept, squares / jnp.where(is_kept, weights, 1), 0)
    parts: Array = rows.sum(_parts, left, along=(targets,))
    size = shape[0] * targets.shape[1]
    if is_tall:
        is_left_out = jnp.asarray(criterion == "leave_one_out", rows.dtype)
        fit = left, shares, parts
        total = rows.sum(_errors, fit, is_left_out, along=(targets,))
        total = total / size
        if criterion == "generalized":
            rest = 1 - jnp.sum(shares, axis=1) / shape[0]
            for _ in range(2):
                total = _divided(total[:, None], rest)[:, 0]
    else:
        basis = rows.times(left)
        total = _errors_in_basis(basis, targets, squares, scaled_ridges, criterion)
    best = jnp.argmin(total)
    values, root = jnp.where(is_kept, values, 1), jnp.sqrt(ridges[best])
    # v + ridge / v for singular values v, in units of the larger of v and √ridge, to
    # avoid overflow.
    larger = jnp.maximum(values, root)
    weights = values / larger + root / larger * (root / values)
    coordinates = parts / unit / larger[:, None] / weights[:, None]
    solution = product(right, jnp.where(is_kept[:, None], coordinates, 0))
    nan = jnp.where(is_right, 0, jnp.nan)
    return RidgeChoice(
        ridge=ridges[best] + nan,
        errors=total / unit / unit + nan,
        solution=solution.reshape(-1, *target.shape[1:]) + nan,
    )


def _parts(rows: Array, target: Array, left: Array) -> Array:
    return product(product(rows, left).T, target)


def _errors(rows: Array, target: Array, fit: Any, is_left_out: Array) -> Array:
    """Computes the sum of squared errors over a block of rows, for each ridge.

    Errors are leave-one-out errors or residuals.
    """
    left, shares, parts = fit
    basis = product(rows, left)
    # All ridges and systems share one matrix product.
    scaled = shares.T[:, :, None] * parts[:, None]
    fits = product(basis, scaled.reshape(len(parts), -1))
    residuals = target[:, None] - fits.reshape(len(basis), *scaled.shape[1:])
    residuals = _divided(residuals, 1 - is_left_out * product(basis**2, shares.T))
    return jnp.sum(residuals**2, axis=(0, 2))


def _errors_in_basis(
    basis: Array, targets: Array, squares: Array, ridges: Array, criterion: str
) -> Array:
    """Computes the error of each ridge, with U completed to a basis of ℝᴺ.

    In this basis 1 - H is a sum of positive terms, without cancellation. This factor
    cancels, so that ridges may be small beside all singular values.
    """
    basis = jnp.linalg.qr(basis, mode="complete")[0]
    squares = jnp.pad(squares, (0, len(basis) - len(squares)))
    sums = squares + ridges[:, None]
    least = jnp.min(squares) + ridges[:, None]
    rest = jnp.where(sums > 0, least / jnp.where(sums > 0, sums, 1), 1)
    scaled = rest.T[:, :, None] * product(basis.T, targets)[:, None]
    residuals = product(basis, scaled.reshape(len(basis), -1)).reshape(scaled.shape)
    if criterion == "leave_one_out":
        # If all terms are positive, so is their sum, and no tolerance is needed.
        rounding = (100 * float(jnp.finfo(basis.dtype).eps)) ** 2
        rounding = jnp.where(least[:, 0] > 0, 0, rounding)
        residuals = _divided(residuals, product(basis**2, rest.T), rounding)
    else:
        residuals = residuals / jnp.mean(rest, axis=1)[:, None]
    return jnp.sum(residuals**2, axis=(0, 2)) / targets.size


def _divided(residuals: Array, rest: Array, rounding: ArrayLike | None = None) -> Array:
    """Divides residuals (..., c) by `rest`; infinite if `rest` is only rounding.

    `rest` is rounding for a row that is alone in a direction.
    """
    if rounding is None:
        rounding = 100 * float(jnp.finfo(rest.dtype).eps)
    is_left = (rest > rounding)[..., None]
    rest = rest[..., None]
    return jnp.where(is_left, residuals / jnp.where(is_left, rest, 1), jnp.inf)


def _decomposed(rows: Rows, shape: tuple[int, int]) -> tuple[Array, ...]:
    """Returns L, s and V with X = U diag(s) Vᵀ, U = X L, and whether X is finite.

    Columns keep their units, which are those of the ridge.
    """
    rcond = solver_cutoff(shape, rows.dtype)
    threshold = 1e4 * jnp.finfo(rows.dtype).eps
    method = "gram" if shape[0] >= 4 * shape[1] else "qr"
    factors = factors_of(rows, None, rcond, method, threshold)
    # With X diag(scale) = U₀ diag(s₀) V₀ᵀ, X is U₀ times this small matrix.
    small = (factors.vectors * factors.singular_values / factors.scale[:, None]).T
    rotation, values, right = jnp.linalg.svd(small, full_matrices=False)
    is_kept = jnp.arange(values.size) < factors.rank.rank
    left = product(factors.scale[:, None] * factors.matrix, rotation)
    left = jnp.where(is_kept, left, 0)
    return left, jnp.where(is_kept, values, 0), right.T, factors.finite
