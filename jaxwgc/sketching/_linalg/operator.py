"""Matrices given by functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import Array, lax
from jax.tree_util import Partial

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two
from jaxwgc._pytrees import Static, register
from jaxwgc.sketching._linalg.rows import Products

# Pairs of random vectors of the test that two functions are adjoint.
_NUM_PROBES = 4


@dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True, eq=False)
class LinearOperator(Products):
    """A matrix X given by a function v ↦ Xv.

    `preconditioned` accepts it as a matrix, and never forms X.

    Attributes:
      matvec: A linear JAX function of v (p,) that returns Xv (N,).
      rmatvec: A function of u (N,) that returns Xᵀu (p,). By default the
        `jax.linear_transpose` of `matvec`. Pass one if JAX cannot transpose `matvec`,
        or if a faster function exists. Random vectors test whether the two are adjoint.
      shape: (N, p), ints.
      dtype: The dtype of v, u and the products, real; by default the default float
        dtype.
      sketch: Optional function of an `Embedding` S (m, N) that returns SX, (m, p). With
        it, sketching solvers work as they do for arrays. The generic function takes m
        products Xᵀu for m rows: `lambda embedding: jax.lax.map(rmatvec,
        embedding.matrix())`.

    An operator is a pytree, in which functions are `jax.tree_util.Partial`, and passes
    through `jax.jit`. Solvers compile once per function object: a lambda in the call
    compiles again, `Partial(function, arrays)` does not. Solutions can be
    differentiated by the arrays that the functions hold or close over.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> # Differences of neighbours, and the first value.
      >>> operator = sketching.LinearOperator(
      ...     lambda v: jnp.diff(v, prepend=0), shape=(5, 5)
      ... )
      >>> result = sketching.preconditioned(jax.random.key(0), operator, jnp.ones(5))
      >>> print(jnp.allclose(result.solution, jnp.arange(1, 6)), result.converged)
      True True
    """

    matvec: Callable[[Array], Array]
    rmatvec: Callable[[Array], Array] | None = None
    shape: Static[tuple[int, int]] = (0, 0)
    dtype: Static[Any] = None
    sketch: Callable[[Any], Array] | None = None

    def __post_init__(self):
        for name in ("matvec", "rmatvec", "sketch"):
            function = getattr(self, name)
            # JAX also builds pytrees with leaves other than functions.
            if callable(function) and not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))

    def times(self, vector: Array) -> Array:
        """Computes Xv for v (p,) or (p, c)."""
        return _of_columns(self.matvec, vector)

    def transposed_times(self, vector: Array) -> Array:
        """Computes Xᵀu for u (N,) or (N, c)."""
        if self.rmatvec is not None:
            return _of_columns(self.rmatvec, vector)
        like = jax.ShapeDtypeStruct(self.shape[1:], self.dtype)
        transposed = jax.linear_transpose(self.matvec, like)
        return _of_columns(lambda u: transposed(u)[0], vector)


register(LinearOperator)


def _of_columns(function: Callable[..., Array], vector: Array) -> Array:
    if vector.ndim == 1:
        return function(vector)
    return jax.vmap(function, -1, -1)(vector)


def checked_operator(
    key: Array, operator: LinearOperator
) -> tuple[LinearOperator, Array]:
    """Checks the functions of an operator: shapes, and whether they are adjoint."""
    shape = operator.shape
    if not (isinstance(shape, tuple) and len(shape) == 2):
        raise ValueError(f"operator.shape must be (N, p); got {shape!r}")
    for axis, size in zip(("[0]", "[1]"), shape):
        _validation.check_int(f"operator.shape{axis}", size, minimum=1)
    dtype = jnp.result_type(float if operator.dtype is None else operator.dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
        raise TypeError(f"operator.dtype must be float32 or float64; got {dtype}")
    functions = {}
    sizes = {"matvec": shape[::-1]}
    if operator.rmatvec is not None:
        sizes["rmatvec"] = shape
    for name, (length, result) in sizes.items():
        function = getattr(operator, name)
        _validation.check_callable(f"operator.{name}", function)
        vector = jax.ShapeDtypeStruct((length,), dtype)
        try:
            functions[name] = _hoisted(function, vector)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"operator.{name} must take a traced {dtype} of shape ({length},), as "
                f"operator.shape = {shape} has it; it raised {type(error).__name__}"
            ) from error
        image = jax.eval_shape(functions[name], vector)
        given = getattr(image, "shape", None), getattr(image, "dtype", None)
        if given != ((result,), dtype):
            raise ValueError(
                f"operator.{name} must return {dtype} of shape ({result},) for one of "
                f"({length},); got {image}"
            )
    operator = dataclasses.replace(operator, dtype=dtype, **functions)
    norm, is_adjoint = probed(jax.random.fold_in(key, 2), operator)
    if not _validation.is_traced(is_adjoint):
        if not jnp.isfinite(norm):
            raise ValueError(
                "operator must be finite; got NaN or infinite products with random "
                "vectors"
            )
        if not is_adjoint:
            raise ValueError(
                "operator.matvec and operator.rmatvec must be adjoint; got different "
                "uᵀ(Xv) and (Xᵀu)ᵀv of random vectors"
            )
    return operator, is_adjoint


def _hoisted(function: Callable[..., Any], vector: Any) -> Callable[..., Any]:
    """Converts closed-over traced arrays of a function to its leaves, for `jax.jit`."""
    closed, structure = jax.make_jaxpr(function, return_shape=True)(vector)
    if not _validation.is_traced(closed.consts):
        return function
    structure = jax.tree.structure(structure)

    def evaluate(constants: Any, vector: Array) -> Any:
        again = type(closed)(closed.jaxpr, constants)
        flat = jax.extend.core.jaxpr_as_fun(again)(vector)
        return jax.tree.unflatten(structure, flat)

    return Partial(evaluate, closed.consts)


@jax.jit
def probed(key: Array, operator: LinearOperator) -> tuple[Array, Array]:
    """Estimates the Frobenius norm, and tests whether the two functions are adjoint."""
    num_rows, num_columns = operator.shape

    def probe(key: Array) -> tuple[Array, Array]:
        keys = jax.random.split(key)
        right = jax.random.normal(keys[0], (num_columns,), operator.dtype)
        left = jax.random.normal(keys[1], (num_rows,), operator.dtype)
        images = [operator.times(right), operator.transposed_times(left)]
        images = jnp.concatenate(images)
        # Avoids overflow of squares. Powers of two are exact.
        unit = inverse_power_of_two(jnp.max(jnp.abs(images)))
        images = images * unit
        difference = jnp.abs(jnp.sum(images * jnp.concatenate([left, -right])))
        return jnp.linalg.norm(images) / 2**0.5 / unit, difference / unit

    norms, differences = lax.map(probe, jax.random.split(key, _NUM_PROBES))
    norm = jnp.mean(norms)
    # Far above rounding. Matrices that differ by this share of their norm are detected.
    bound = 4 * float(jnp.finfo(operator.dtype).eps) ** 0.5 * norm
    return norm, jnp.all(differences <= bound) & jnp.isfinite(norm)
