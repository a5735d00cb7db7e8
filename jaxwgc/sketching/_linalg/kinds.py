"""The kinds of matrices that functions accept, and computation with each."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.blocks import BlockRows, Blocks
from jaxwgc.sketching._linalg.operator import LinearOperator, checked_operator
from jaxwgc.sketching._linalg.rows import (
    DenseRows,
    Products,
    Rows,
    ShardedRows,
    SparseRows,
)

if TYPE_CHECKING:
    from jax.experimental.sparse import JAXSparse
    from scipy.sparse import sparray, spmatrix

# Matrices with rows. Sparse ones are not named, since their modules import slowly.
MatrixLike: TypeAlias = "ArrayLike | Blocks | JAXSparse | sparray | spmatrix"


def matrix_of(name: str, value: Any) -> Any:
    """Returns a checked matrix with rows: an array, a BCOO or `BlockRows`.

    Raises:
      TypeError: If `value` is a `LinearOperator` or no matrix.
    """
    if isinstance(value, LinearOperator):
        raise TypeError(
            f"{name} must be an array, a sparse matrix or Blocks, since rows are read "
            "one by one; got a LinearOperator, which gives products only"
        )
    if isinstance(value, Blocks):
        return BlockRows(value)
    matrix = _checks.any_matrix(name, value)
    if axes_of(matrix) and matrix.shape[0] < matrix.shape[1]:
        raise ValueError(
            f"{name} must have at least as many rows as columns if rows are sharded; "
            f"got {matrix.shape}; replicate it with jax.device_put"
        )
    return matrix


def system_of(key: Any, matrix: Any, target: Any) -> tuple[Any, Array]:
    """Returns X (N, p), of any kind, and y (N,) or (N, c), in one dtype."""
    if isinstance(matrix, LinearOperator):
        matrix, is_right = checked_operator(key, matrix)
        target = _checks.right_hand_side(target, matrix.shape).astype(matrix.dtype)
        # An error that cannot be raised under jax.jit becomes a NaN in the result.
        return matrix, jnp.where(is_right, target, jnp.nan)
    if not isinstance(matrix, BlockRows):
        matrix = matrix_of("matrix", matrix)
    target = _checks.right_hand_side(target, matrix.shape)
    if isinstance(matrix, BlockRows):
        _validation.check_concrete("target", target, "Blocks are read on the host")
        return matrix, target.astype(matrix.dtype)
    dtype = jnp.promote_types(matrix.dtype, target.dtype)
    matrix = _checks.with_values(lambda values: values.astype(dtype), matrix)
    return matrix, target.astype(dtype)


def sketched(rows: Products, embedding: Any, *along: Array) -> list[Array]:
    """Computes S X, and S times arrays with N rows."""
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


def rows_of(matrix: Any) -> Any:
    """Returns the rows of an array or a BCOO, or an operator unchanged."""
    if isinstance(matrix, LinearOperator):
        return matrix
    return SparseRows.of(matrix) if _checks.is_sparse(matrix) else DenseRows(matrix)


def compute(
    core: Callable[..., Any],
    matrix: Any,
    *args: Any,
    along: tuple[Any, ...] = (),
    specs: Callable[[Any], Any] = lambda by_rows: PartitionSpec(),
    **static: Any,
) -> Any:
    """Runs `core(rows, *along, *args, **static)`, compiled except for `BlockRows`.

    Args:
      core: A function at the top level of a module.
      matrix: A checked matrix.
      args: Pytrees of arrays.
      along: Arrays with N rows, sharded like those of the matrix.
      specs: Partition specs of the result, given that of rows.
      static: Hashable options.
    """
    options = tuple(static.items())
    if isinstance(matrix, BlockRows):
        return core(matrix, *along, *args, **static)
    axes = axes_of(matrix)
    if axes:
        mesh = (
            jax.typeof(matrix) if _validation.is_traced(matrix) else matrix
        ).sharding.mesh
        return _sharded(matrix, along, args, core, options, mesh, axes, specs)
    return _compiled(matrix, along, args, core, options)


@functools.partial(jax.jit, static_argnames=("core", "options"))
def _compiled(matrix: Any, along: Any, args: Any, core: Any, options: Any) -> Any:
    return core(rows_of(matrix), *along, *args, **dict(options))


@functools.partial(
    jax.jit, static_argnames=("core", "options", "mesh", "axes", "specs")
)
def _sharded(
    matrix: Array,
    along: Any,
    args: Any,
    core: Any,
    options: Any,
    mesh: Any,
    axes: Any,
    specs: Any,
) -> Any:
    """Runs `core` on each device, with the rows of the device."""
    by_rows, everywhere = PartitionSpec(axes), PartitionSpec()

    def on_each(matrix: Array, along: Any, args: Any) -> Any:
        return core(ShardedRows(matrix, axes), *along, *args, **dict(options))

    along = jax.device_put(along, NamedSharding(mesh, by_rows))
    return jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(by_rows, by_rows, everywhere),
        out_specs=specs(by_rows),
        # Loops start from zeros, which are equal on all devices, and end with values
        # that differ.
        check_vma=False,
    )(matrix, along, args)


def by_rows_spec(by_rows: Any) -> Any:
    """Returns the spec of a result with one number per row."""
    return by_rows
