"""Kinds of matrices that scores and solvers accept, and how they compute with each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two
from jaxwgc._pytrees import Static, register
from jaxwgc._validation import require
from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.blocks import BlockRows, Blocks
from jaxwgc.sketching._linalg.rows import (
    DenseRows,
    Products,
    Rows,
    ShardedRows,
    SparseRows,
)

# Functions of a `LinearOperator`, and what errors say of them.
_FUNCTIONS = {
    "matvec": "a function of v (p,) that returns Xv (N,)",
    "rmatvec": "a function of u (N,) that returns Xᵀu (p,), or None",
    "sketch": "a function of an Embedding S that returns SX (m, p), or None",
}
# End of the errors of the constructor: other libraries have arguments in other orders.
_BY_NAME = "Pass arguments by name: LinearOperator(matvec, shape=(N, p))"
# Number of pairs of random vectors that test whether two functions are adjoint.
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

    Raises:
      TypeError: If a function is not callable, `shape` is not a tuple of two ints, or
        `dtype` is not float32 or float64.
      ValueError: If `shape` is not positive.

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
        for name, meaning in _FUNCTIONS.items():
            function = getattr(self, name)
            if function is None and name != "matvec":
                continue
            if not callable(function):
                raise TypeError(
                    f"operator.{name} must be {meaning}; got "
                    f"{_validation.in_short(function)}. {_BY_NAME}"
                )
            if not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))
        if not isinstance(self.shape, tuple) or len(self.shape) != 2:
            shown = _validation.in_short(self.shape)
            raise TypeError(
                f"operator.shape must be the tuple (N, p); got {shown}. {_BY_NAME}"
            )
        for axis, size in enumerate(self.shape):
            _validation.check_int(f"operator.shape[{axis}]", size)
        if min(self.shape) < 1:
            raise ValueError(
                "operator.shape must be (N, p), of positive ints; got "
                f"{self.shape}. {_BY_NAME}"
            )
        _dtype_of(self)

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


def _dtype_of(operator: LinearOperator) -> Any:
    """Checks and returns the dtype of an operator, by default the float dtype."""
    named = float if operator.dtype is None else operator.dtype
    try:
        dtype = jnp.result_type(named)
    except TypeError as error:
        shown = _validation.in_short(named)
        raise TypeError(
            f"operator.dtype must be float32 or float64; got {shown}. {_BY_NAME}"
        ) from error
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
        raise TypeError(f"operator.dtype must be float32 or float64; got {dtype}")
    return dtype


def _of_columns(function: Callable[..., Array], vector: Array) -> Array:
    if vector.ndim == 1:
        return function(vector)
    return jax.vmap(function, -1, -1)(vector)


def checked_operator(
    key: Array, operator: LinearOperator
) -> tuple[LinearOperator, Array]:
    """Checks the functions of an operator: shapes, and whether they are adjoint."""
    shape = operator.shape
    dtype = _dtype_of(operator)
    functions = {}
    sizes = {"matvec": shape[::-1]}
    if operator.rmatvec is not None:
        sizes["rmatvec"] = shape
    for name, (length, result) in sizes.items():
        function = getattr(operator, name)
        vector = np.zeros(length, dtype)
        functions[name] = _hoisted(function, vector)
        image = jax.eval_shape(functions[name], vector)
        given = getattr(image, "shape", None), getattr(image, "dtype", None)
        rule = f"return {dtype} of shape ({result},) for one of ({length},)"
        require(given == ((result,), dtype), f"operator.{name}", rule, image)
    operator = dataclasses.replace(operator, dtype=dtype, **functions)
    norm, is_adjoint = probed(jax.random.fold_in(key, 2), operator)
    if not _validation.is_traced(is_adjoint):
        name = "operator.matvec and operator.rmatvec"
        given = f"different uᵀ(Xv) and (Xᵀu)ᵀv of random vectors, norm {norm:.2g}"
        require(is_adjoint, name, "be finite and adjoint", given)
    return operator, is_adjoint


def _hoisted(function: Callable[..., Any], vector: Any) -> Callable[..., Any]:
    """Turns traced arrays in the closure of a function into leaves, for `jax.jit`."""
    converted, constants = jax.closure_convert(function, vector)
    if not constants:
        return function
    return Partial(lambda constants, v: converted(v, *constants), constants)


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
        # Scaling by an exact power of two avoids overflow of squares.
        unit = inverse_power_of_two(jnp.max(jnp.abs(images)))
        images = images * unit
        difference = jnp.abs(jnp.sum(images * jnp.concatenate([left, -right])))
        return jnp.linalg.norm(images) / 2**0.5 / unit, difference / unit

    norms, differences = lax.map(probe, jax.random.split(key, _NUM_PROBES))
    norm = jnp.mean(norms)
    # The bound is far above rounding. Adjoints that differ by this share of their norm
    # are still detected.
    bound = 4 * float(jnp.finfo(operator.dtype).eps) ** 0.5 * norm
    return norm, jnp.all(differences <= bound) & jnp.isfinite(norm)


if TYPE_CHECKING:
    from jax.experimental.sparse import JAXSparse
    from scipy.sparse import sparray, spmatrix

# Matrices with access to rows. The types of sparse matrices are only imported for type
# checks, since their modules import slowly.
MatrixLike: TypeAlias = "ArrayLike | Blocks | JAXSparse | sparray | spmatrix"


def matrix_of(name: str, value: Any) -> Any:
    """Checks a matrix with access to rows, and returns an array, a BCOO or `BlockRows`.

    Raises:
      TypeError: If `value` is a `LinearOperator` or no matrix.
    """
    if isinstance(value, LinearOperator):
        rule = "be an array, a sparse matrix or Blocks, since rows are read one by one"
        given = "a LinearOperator, which gives products only"
        raise TypeError(f"{name} must {rule}; got {given}")
    if isinstance(value, Blocks):
        return BlockRows(value)
    if _checks.is_sparse(value):
        matrix = _checks.sparse_matrix(name, value)
        _validation.check_shape(name, matrix, "(N, p)", ("any", "any"))
        return matrix
    matrix = _checks.finite_matrix(name, value)
    is_tall = matrix.shape[0] >= matrix.shape[1] or not axes_of(matrix)
    rule = "have at least as many rows as columns if rows are sharded"
    given = f"{matrix.shape}; replicate it with jax.device_put"
    require(is_tall, name, rule, given)
    return matrix


def system_of(key: Any, matrix: Any, target: Any) -> tuple[Any, Array]:
    """Checks X of any kind and the right-hand side y; returns both in one dtype.

    Without a key, operators are rejected.
    """
    if isinstance(matrix, LinearOperator) and key is not None:
        matrix, is_right = checked_operator(key, matrix)
        target = _checks.right_hand_side(target, matrix.shape).astype(matrix.dtype)
        # An error that cannot be raised under jax.jit becomes a NaN in the result.
        return matrix, jnp.where(is_right, target, jnp.nan)
    matrix = matrix_of("matrix", matrix)
    target = _checks.right_hand_side(target, matrix.shape)
    if isinstance(matrix, BlockRows):
        _validation.check_concrete("target", target, "Blocks are read on the host")
        return matrix, target.astype(matrix.dtype)
    dtype = jnp.promote_types(matrix.dtype, target.dtype)
    matrix = _checks.with_values(lambda values: values.astype(dtype), matrix)
    return matrix, target.astype(dtype)


def sketched(rows: Products, embedding: Any, *along: Array) -> list[Array]:
    """Computes S times X, and S times other arrays with N rows."""
    if isinstance(rows, Rows):
        return rows.sketch(embedding, *along)
    assert isinstance(rows, LinearOperator) and rows.sketch is not None
    small = rows.sketch(embedding)
    expected = embedding.sketch_size, rows.shape[1]
    _validation.check_shape("operator.sketch", small, "(m, p)", expected)
    return [small.astype(rows.dtype), *(embedding @ array for array in along)]


def is_dense(matrix: Any) -> bool:
    """Returns whether a checked matrix is an array on one device."""
    return isinstance(matrix, Array) and not axes_of(matrix)


def axes_of(matrix: Any) -> Any:
    """Returns the mesh axes over which the rows of an array are sharded, or None.

    For a traced array, they are known on a mesh of explicit axes only.
    """
    sharding = None
    if isinstance(matrix, Array):
        traced = _validation.is_traced(matrix)
        sharding = jax.typeof(matrix).sharding if traced else matrix.sharding
    spec: Any = sharding.spec if isinstance(sharding, NamedSharding) else ()
    return spec[0] if len(spec) and not any(spec[1:]) else None


def compute(
    core: Callable[..., Any],
    matrix: Any,
    *args: Any,
    along: tuple[Any, ...] = (),
    by_rows: Any = False,
    **static: Any,
) -> Any:
    """Runs `core(rows, *along, *args, **static)`, compiled except for `BlockRows`.

    Args:
      core: A function at the top level of a module.
      matrix: A checked matrix.
      args: Pytrees of arrays.
      along: Arrays with N rows, sharded like those of the matrix.
      by_rows: Whether the result has one number per row, or a tuple of bools.
      static: Hashable options.
    """
    if isinstance(matrix, BlockRows):
        return core(matrix, *along, *args, **static)
    options = tuple(static.items())
    axes = axes_of(matrix)
    if not axes:
        return _compiled(matrix, along, args, core, options)
    typed = jax.typeof(matrix) if _validation.is_traced(matrix) else matrix
    layout = typed.sharding.mesh, axes, by_rows
    return _sharded(matrix, along, args, core, options, layout)


@functools.partial(jax.jit, static_argnames=("core", "options"))
def _compiled(matrix: Any, along: Any, args: Any, core: Any, options: Any) -> Any:
    rows = matrix
    if not isinstance(matrix, LinearOperator):
        is_sparse = _checks.is_sparse(matrix)
        rows = SparseRows.of(matrix) if is_sparse else DenseRows(matrix)
    return core(rows, *along, *args, **dict(options))


@functools.partial(jax.jit, static_argnames=("core", "options", "layout"))
def _sharded(
    matrix: Array, along: Any, args: Any, core: Any, options: Any, layout: Any
) -> Any:
    """Runs `core` on each device, with the rows of the device."""
    mesh, axes, by_rows = layout
    split = PartitionSpec(axes)
    everywhere = PartitionSpec()

    def on_each(matrix: Array, along: Any, args: Any) -> Any:
        return core(ShardedRows(matrix, axes), *along, *args, **dict(options))

    along = jax.device_put(along, NamedSharding(mesh, split))
    return jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(split, split, everywhere),
        out_specs=jax.tree.map(lambda each: split if each else everywhere, by_rows),
        # Loops start from zeros, which are equal on all devices, and end with values
        # that differ, which the check would reject.
        check_vma=False,
    )(matrix, along, args)
