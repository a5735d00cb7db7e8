"""Newton's method with sketched Hessians, and logistic regression by this method."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc._conjugate_gradients import conjugate_gradients
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._random_matrices import sparse_sign
from jaxwgc.sketching._linalg.factors import (
    Factors,
    diagonal,
    factors_of_small,
    gram,
    solver_cutoff,
)
from jaxwgc.sketching._linalg.implicit import solve_augmented
from jaxwgc.sketching._linalg.monitor import Criterion, Monitor
from jaxwgc.sketching._linalg.rows import DenseRows
from jaxwgc.sketching._solvers._least_squares import Solution

# Armijo's constant, and the largest number of halvings of a step.
_SUFFICIENT = 0.1
_MAX_HALVINGS = 40


def newton_sketch(
    key: Array,
    loss: Callable[..., Array],
    square_root_hessian: Callable[..., Any],
    params: Any,
    sketch_size: int,
    embedding: EmbeddingLike = sparse_sign,
    *,
    args: tuple[Any, ...] = (),
    ridge: ArrayLike = 0.0,
    num_refinements: int = 0,
    tolerance: ArrayLike | None = None,
    max_iterations: int = 50,
) -> Solution:
    """Minimises loss(θ) + ridge / 2 ‖θ‖² by Newton steps with sketched Hessians.

    The Hessian of the loss is BᵀB with B of shape (N, p). Every step draws a sketch S
    of m rows and solves a system with (SB)ᵀSB + ridge I. The ridge is not sketched. A
    backtracking line search makes the method converge from any starting point if the
    loss is convex.

    Near the solution, each step lowers the error by a factor of about √(d / m). Here d
    is the effective dimension of the Hessian H, the trace of H (H + ridge I)⁻¹, at most
    p. `num_refinements` preconditioned conjugate-gradient steps improve the direction
    towards the exact Newton direction. Each of them reads B twice. The first only
    scales the sketched direction, as the line search does. Each further step gains
    about one more factor of √(d / m).

    Args:
      key: A PRNG key.
      loss: `loss(params, *args) -> scalar`, twice differentiable and convex.
      square_root_hessian: `square_root_hessian(params, *args)`, B with BᵀB the Hessian
        of the loss. B is (N, p) if params is a vector, and otherwise a pytree like
        params with a leading axis N in all leaves. For a loss Σᵢ fᵢ(xᵢᵀθ), the rows of
        B are √f_i'' xᵢᵀ.
      params: The starting point, a pytree of real arrays.
      sketch_size: m, at least min(N, p). With a ridge, any size works.
      embedding: The distribution of S. Either a constructor, such as `gaussian`,
        `rademacher`, `srht`, `count_sketch`, `sparse_sign` or `row_sampling`; or an
        `Embedding` of shape (m, N). The keys of all S are then derived from its key.
      args: Further arguments of the two functions. Data in args are not compiled into
        the program. Pass the same function objects in every call: new ones compile
        again.
      ridge: A non-negative number, may be traced. The loss must not include it.
      num_refinements: The number of conjugate-gradient steps on the exact Hessian; 0 is
        the plain method.
      tolerance: The method stops after a step with a small predicted decrease of the
        objective (half the squared Newton decrement). The limit is this share of the
        absolute value of the objective after the step, or the effect of rounding of the
        parameters. By default 1e-10 in float32, which is the standard error of rounding
        over a million rows, and 4 machine epsilons in float64.
      max_iterations: The largest number of steps.

    Returns:
      A `Solution`. `solution` is a pytree like params. The history holds values of the
      objective (with the ridge), not residuals. `converged` says that the last step
      passed the test of `tolerance`, that the gradient is in the range of its sketch,
      and that the result is finite. Directions of B below 4 + √p machine epsilons are
      ignored. A negative traced ridge gives False.

      Derivatives of `solution` with respect to args and ridge are those of the exact
      minimum, from one factorisation of B. The history is constant.

    Raises:
      ValueError: If sketch_size is too small, params are not finite (unless traced), B
        or the embedding has the wrong shape, or ridge is negative.
      TypeError: If an argument is not the function, number or array required, the loss
        is not a scalar, or the embedding is neither a constructor nor an `Embedding`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> features = jax.random.normal(jax.random.key(0), (500, 3))
      >>> def loss(params, features):  # Poisson regression on counts of 2
      ...     logits = features @ params + 1
      ...     return jnp.sum(jnp.exp(logits) - 2 * logits)
      >>> def square_root_hessian(params, features):
      ...     return features * jnp.exp((features @ params + 1) / 2)[:, None]
      >>> result = sketching.newton_sketch(
      ...     jax.random.key(1),
      ...     loss,
      ...     square_root_hessian,
      ...     jnp.zeros(3),
      ...     sketch_size=60,
      ...     args=(features,),
      ... )
      >>> print(
      ...     result.converged, jnp.abs(jax.grad(loss)(result.solution, features)) < 1
      ... )
      True [ True  True  True]

    References:
      Pilanci and Wainwright, "Newton sketch: a near linear-time optimization algorithm
      with linear-quadratic convergence", SIAM J. Optim. 27 (2017).
    """
    _validation.check_key(key)
    _validation.check_callable("loss", loss)
    _validation.check_callable("square_root_hessian", square_root_hessian)
    _validation.check_instance("args", args, tuple, " of what loss takes")
    args = jax.tree.map(functools.partial(_checks.from_scipy, "args"), args)
    params = _float_params(params)
    flat, _ = ravel_pytree(params)
    _validation.require(flat.size, "params", "have at least one number", repr(params))
    root = jax.eval_shape(square_root_hessian, params, *args)
    shapes = [leaf.shape for leaf in jax.tree.leaves(root)]
    num_rows = next((shape[0] for shape in shapes if shape), 0)
    expected = [(num_rows, *leaf.shape) for leaf in jax.tree.leaves(params)]
    is_like = jax.tree.structure(root) == jax.tree.structure(params)
    is_right = is_like and shapes == expected
    rule = "return a pytree like params, with an axis of N in front of every leaf"
    _validation.require(is_right, "square_root_hessian", rule, root)
    regulariser = _checks.regulariser(ridge, flat.dtype)
    # With a ridge, any sketch size is allowed.
    shape = (num_rows, flat.size if regulariser is None else 1)
    sketch_size = _checks.sketch_size(sketch_size, shape)
    embedding = embed(embedding, key, sketch_size, num_rows)
    check_int = _validation.check_int
    num_refinements = check_int("num_refinements", num_refinements, minimum=0)
    max_iterations = check_int("max_iterations", max_iterations, minimum=1)
    default_tolerance = min(1e-10, 4 * float(jnp.finfo(flat.dtype).eps))
    tolerance = _checks.stopping_tolerance(tolerance, default_tolerance, flat.dtype)
    functions = (loss, square_root_hessian)
    limits = (num_refinements, max_iterations)
    given = args, regulariser
    return _newton_steps(params, given, embedding, tolerance, functions, limits)


def _float_params(params: Any) -> Any:
    def checked(path: Any, leaf: Any) -> Array:
        return _checks.finite_array(f"params{jax.tree_util.keystr(path)}", leaf)

    is_leaf = _checks.is_sparse
    return jax.tree_util.tree_map_with_path(checked, params, is_leaf=is_leaf)


class _State(NamedTuple):
    flat: Array
    value: Array
    gradient: Array
    monitor: Monitor


class _Problem(NamedTuple):
    """A loss with a ridge for flat parameters, and a root of its Hessian."""

    unravel: Callable[[Array], Any]
    loss: Callable[..., Array]
    square_root_hessian: Callable[..., Any]
    args: tuple[Any, ...]
    ridge: Array | None

    def objective(self, flat: Array) -> Array:
        """Returns the objective: the loss plus ridge / 2 ‖θ‖²."""
        value = jnp.asarray(self.loss(self.unravel(flat), *self.args), flat.dtype)
        weight = 0 if self.ridge is None else self.ridge
        return value + weight / 2 * jnp.sum(flat**2)

    def root(self, flat: Array) -> Array:
        """Returns B (N, p) with BᵀB the Hessian without the ridge."""
        tree = self.square_root_hessian(self.unravel(flat), *self.args)
        columns = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate(columns, axis=1).astype(flat.dtype)

    def hessian(self, root: Array, vector: Array) -> Array:
        """Multiplies a vector by the Hessian BᵀB + ridge I."""
        image = product(product(root, vector), root)
        return image if self.ridge is None else image + self.ridge * vector

    def direction(
        self, root: Array, small: Array, gradient: Array, num_steps: int
    ) -> tuple[Array, Array]:
        """Computes a descent direction by a sketch of B, refined by B.

        Also returns the norm of the gradient's part outside of the sketch's range.
        """
        inverse = _inverse_root(small, self.ridge)

        preconditioned_gradient = product(gradient, inverse)
        change = -product(inverse, preconditioned_gradient)
        unseen = jnp.linalg.norm(gradient + self.hessian(small, change))
        if num_steps:

            def preconditioned_hessian(vector: Array) -> Array:
                image = self.hessian(root, product(inverse, vector))
                return product(image, inverse)

            refined = conjugate_gradients(
                preconditioned_hessian,
                -preconditioned_gradient,
                max_iterations=num_steps,
                tolerance=float(jnp.finfo(gradient.dtype).eps),
            )
            refined = product(inverse, refined)
            # Squares of a very small or large gradient leave the range of the dtype.
            is_usable = jnp.isfinite(refined).all() & (refined != 0).any()
            change = jnp.where(is_usable, refined, change)
        return change, unseen

    def line_search(
        self, state: _State, change: Array, slope: Array, rounding: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Returns the next point, value and gradient, and whether the search failed.

        If values differ by rounding alone, slopes decide: Hager and Zhang, "A new
        conjugate gradient method with guaranteed descent and an efficient line search",
        SIAM J. Optim. 16 (2005), equation 4.1, which is Armijo's rule for a quadratic
        function.
        """
        evaluate = jax.value_and_grad(self.objective)
        magnitude = jnp.abs(state.value)
        noise = 4 * jnp.finfo(change.dtype).eps * magnitude
        noise += jnp.sqrt(2 * magnitude) * rounding
        steepest = (2 * _SUFFICIENT - 1) * slope

        def is_too_long(search):
            size, value, gradient, count = search
            is_lower = value <= state.value + _SUFFICIENT * size * slope
            is_flat = product(change, gradient) <= steepest
            is_lower |= (value <= state.value + noise) & is_flat
            # A step to a value of NaN counts as too long.
            return ~is_lower & (count < _MAX_HALVINGS)

        def halve(search):
            size, _, _, count = search
            size = size / 2
            return size, *evaluate(state.flat + size * change), count + 1

        one = jnp.ones((), change.dtype)
        start = one, *evaluate(state.flat + change), jnp.int32(0)
        size, value, gradient, count = lax.while_loop(is_too_long, halve, start)
        stalled = (count == _MAX_HALVINGS) | ~jnp.isfinite(value)
        old = state.flat, state.value, state.gradient
        new = state.flat + size * change, value, gradient
        return *jax.tree.map(functools.partial(jnp.where, stalled), old, new), stalled


@functools.partial(jax.jit, static_argnames=("functions", "limits"))
def _newton_steps(
    params: Any,
    given: tuple[Any, Array | None],
    embedding: Embedding,
    tolerance: Array,
    functions: tuple[Callable[..., Array], Callable[..., Any]],
    limits: tuple[int, int],
) -> Solution:
    """Minimises the loss with a ridge, starting at `params`; see `newton_sketch`.

    Args:
      params: The starting point.
      given: Arguments of the functions, and the ridge.
      embedding: Embedding of the first step.
      tolerance: See `newton_sketch`.
      functions: The loss, and the root of its Hessian.
      limits: The number of refinements, and the largest number of iterations.
    """
    num_refinements, max_iterations = limits
    params, (args, ridge) = lax.stop_gradient((params, given))
    flat, unravel = ravel_pytree(params)
    loss, root_of_hessian = functions
    problem = _Problem(unravel, loss, root_of_hessian, args, ridge)
    value, gradient = jax.value_and_grad(problem.objective)(flat)
    eps = jnp.finfo(flat.dtype).eps
    tiny = jnp.finfo(flat.dtype).tiny

    def is_running(state: _State) -> Array:
        return state.monitor.is_running(max_iterations)

    def step(state: _State) -> _State:
        root = problem.root(state.flat)
        key = jax.random.fold_in(embedding.key, state.monitor.iteration)
        small = dataclasses.replace(embedding, key=key) @ root
        change, unseen = problem.direction(root, small, state.gradient, num_refinements)
        # Rounding of the parameters and of B θ limits the accuracy of the objective.
        terms = product(jnp.abs(root), jnp.abs(state.flat))
        rounding = 2 * eps * jnp.linalg.norm(terms)
        # `unseen` is relative to the size of the objective, or to its rounding if
        # larger.
        length = jnp.sqrt(jnp.abs(state.value)) + rounding / eps**0.5
        unseen = unseen / jnp.maximum(jnp.linalg.norm(small) * length, tiny)
        slope = product(change, state.gradient)
        search = problem.line_search(state, change, slope, rounding)
        new, value, gradient, is_stalled = search
        # The tolerance is relative to the current value, since the value at the start
        # may be larger by any factor.
        decrement = Criterion(
            error=-slope / 2,
            tolerance=tolerance * jnp.abs(value),
            floor=rounding**2 / 2,
        )
        # The bound √eps is stricter than a step needs, and above rounding. If the
        # gradient is in the null space of the sketch, `unseen` is far larger.
        unseen = Criterion(unseen, tolerance=float(eps) ** 0.5)
        monitor = state.monitor.update(
            value, [decrement, unseen], has_stagnated=is_stalled
        )
        return _State(new, value, gradient, monitor)

    monitor = Monitor.init(value, max_iterations)
    start = _State(flat, value, gradient, monitor)
    state = lax.while_loop(is_running, step, start)
    solution = _minimiser(functions, unravel, state.flat, given)
    monitor = state.monitor
    return Solution(
        unravel(solution), monitor.iteration, monitor.has_converged, monitor.history
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _minimiser(functions: Any, unravel: Any, flat: Array, given: Any) -> Array:
    """Returns `flat` with the derivative of the point at which the gradient is zero."""
    del functions, unravel, given
    return flat


@_minimiser.defjvp
def _minimiser_jvp(functions, unravel, primals, tangents):
    flat, given = primals
    loss, root_of_hessian = functions

    def problem_of(given):
        args, ridge = given
        return _Problem(unravel, loss, root_of_hessian, args, ridge)

    def gradient(given):
        return jax.grad(problem_of(given).objective)(flat)

    _, change = jax.jvp(gradient, (given,), tangents[1:])
    # The Hessian is BᵀB, so that this is a least-squares system. It is solved with the
    # accuracy of least squares.
    root = problem_of(given).root(flat)
    _, ridge = given
    factors = _factors(root, ridge)
    zeros = jnp.zeros(root.shape[0], root.dtype)
    flat = _minimiser(functions, unravel, flat, given)
    return flat, solve_augmented(DenseRows(root), ridge, factors, zeros, change)[1]


def _factors(root: Array, ridge: Array | None) -> Factors:
    """Computes the factors of B, or of a sketch of B, stacked on √ridge I."""
    weight = None if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    return factors_of_small(root, solver_cutoff(root.shape, root.dtype), root=weight)


def _inverse_root(small: Array, ridge: Array | None) -> Array:
    """Returns W such that W Wᵀ is the (pseudo-)inverse of BᵀB + ridge I, B a sketch."""

    def robust(_: None) -> Array:
        factors = _factors(small, ridge)
        return factors.scale[:, None] * factors.matrix

    identity = jnp.eye(small.shape[1], dtype=small.dtype)
    # A Cholesky factor is several times faster, and accurate enough for a direction
    # unless the matrix is nearly singular.
    hessian = gram(small) + (0 if ridge is None else ridge) * identity
    unit = inverse_power_of_two(jnp.sqrt(diagonal(hessian)))
    lower = jnp.linalg.cholesky(hessian * unit * unit[:, None])
    smallest = jnp.min(diagonal(lower)) ** 2
    is_regular = smallest > 1e4 * jnp.finfo(small.dtype).eps

    def cheap(_: None) -> Array:
        inverse = solve_triangular(lower, identity, lower=True)
        return unit[:, None] * inverse.T

    # If there is no Cholesky factor, `smallest` is NaN, which counts as singular.
    return lax.cond(is_regular, cheap, robust, None)


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
    """Fits logistic regression by `newton_sketch`.

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
    features = _checks.gathered(_checks.finite_matrix("features", features))
    num_rows, num_columns = features.shape
    targets = _checks.gathered(_checks.float_array("labels", labels))
    _validation.check_shape("labels", targets, "(N,)", (num_rows,))
    values = _checks.concrete(labels, targets.dtype)
    if values is not None:
        is_right = (values >= 0) & (values <= 1)
        _validation.check_entries("labels", values, is_right, "between 0 and 1")
    else:
        targets = jnp.where((targets >= 0) & (targets <= 1), targets, jnp.nan)
    targets = targets.astype(features.dtype)
    if initial is None:
        initial = np.zeros(num_columns, features.dtype)
    initial = _checks.finite_array("initial", initial).astype(features.dtype)
    _validation.check_shape("initial", initial, "(p,)", (num_columns,))
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
    """Returns False if θ separates the labels without a ridge: 2θ is then better."""
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
