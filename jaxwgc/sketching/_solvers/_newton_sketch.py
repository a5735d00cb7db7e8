"""Newton's method with sketched Hessians for twice-differentiable losses."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._solvers._newton_steps import newton_steps
from jaxwgc.sketching._solvers._solution import Solution


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
      ValueError: If sketch_size is too small, params are not finite (unless traced), B,
        the loss or the embedding has the wrong shape, or ridge is negative.
      TypeError: If an argument is not the function, number or array required, or the
        embedding is neither a constructor nor an `Embedding`.

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
    value = jax.eval_shape(loss, params, *args)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"loss must return a scalar; got {value}")
    root = jax.eval_shape(square_root_hessian, params, *args)
    num_rows = _num_rows(root, params)
    regulariser = _checks.regulariser(ridge, flat.dtype)
    # With a ridge, any size is allowed.
    shape = (num_rows, flat.size if regulariser is None else 1)
    sketch_size = _checks.sketch_size(sketch_size, shape)
    embedding = embed(embedding, key, sketch_size, num_rows)
    num_refinements = _validation.check_int(
        "num_refinements", num_refinements, minimum=0
    )
    max_iterations = _validation.check_int("max_iterations", max_iterations, minimum=1)
    default_tolerance = min(1e-10, 4 * float(jnp.finfo(flat.dtype).eps))
    return newton_steps(
        params,
        args,
        embedding,
        regulariser,
        _checks.stopping_tolerance(tolerance, default_tolerance, flat.dtype),
        loss,
        square_root_hessian,
        num_refinements,
        max_iterations,
    )


def _float_params(params: Any) -> Any:
    _checks.check_all_dense("params", params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise ValueError(f"params must have at least one number; got {params!r}")

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _checks.finite_array(
            f"params{jax.tree_util.keystr(path)}", leaf
        ),
        params,
    )


def _num_rows(root: Any, params: Any) -> int:
    """Returns N, after a check that B fits the parameters."""
    leaves, likes = jax.tree.leaves(root), jax.tree.leaves(params)
    num_rows = {leaf.shape[:1] for leaf in leaves}
    if (
        jax.tree.structure(root) != jax.tree.structure(params)
        or len(num_rows) != 1
        or any(leaf.shape[1:] != like.shape for leaf, like in zip(leaves, likes))
        or leaves[0].ndim == 0
    ):
        raise ValueError(
            "square_root_hessian must return a pytree like params, with an axis of N "
            f"in front of every leaf; got {jax.tree.map(jnp.shape, root)} with params "
            f"of {jax.tree.map(jnp.shape, params)}"
        )
    return leaves[0].shape[0]
