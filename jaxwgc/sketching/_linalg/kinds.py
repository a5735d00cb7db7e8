"""Conversion of arguments to a `Matrix`, and compilation of functions of a matrix."""

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_sparse
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.block_matrix import BlockMatrix
from jaxwgc.sketching._linalg.blocks import Blocks, Chunks
from jaxwgc.sketching._linalg.factors import rank_cutoff
from jaxwgc.sketching._linalg.linear_operator import (
    LinearOperator,
    checked_operator,
    from_lineax,
)
from jaxwgc.sketching._linalg.matrix import Dense, Matrix, RowMatrix
from jaxwgc.sketching._linalg.sharded import Sharded
from jaxwgc.sketching._linalg.sparse import sparse_of_bcoo

if TYPE_CHECKING:
    import lineax
    from jax.experimental.sparse import JAXSparse
    from scipy.sparse import sparray, spmatrix

# Types of arguments that are matrices with access to rows. They are a string, since
# modules of sparse matrices import slowly, and lineax is optional.
MatrixLike: TypeAlias = (
    "ArrayLike | Blocks | JAXSparse | sparray | spmatrix | lineax.MatrixLinearOperator"
)
# Types of arguments that only multiply vectors, without access to rows.
OperatorLike: TypeAlias = "LinearOperator | lineax.AbstractLinearOperator"

M = TypeVar("M", bound=Matrix)
P = ParamSpec("P")
T = TypeVar("T")


def matrix_and_cutoff(
    matrix: "MatrixLike | OperatorLike", rcond: ArrayLike | None
) -> tuple[RowMatrix, Array]:
    """Returns a converted matrix and the cutoff of its numerical rank, after checks.

    If `rcond` is None, the cutoff is `rank_cutoff`.
    """
    checked = matrix_of(matrix)
    default = rank_cutoff(checked.shape, checked.dtype)
    return _arguments.with_cutoff(checked, rcond, default)


def matrix_of(value: "MatrixLike | OperatorLike") -> RowMatrix:
    """Converts an argument to a `RowMatrix`; raises TypeError for an operator.

    Raises:
      TypeError: If `value` is an operator or no matrix.
    """
    kind = type(value).__name__
    value = from_lineax(value)
    if isinstance(value, LinearOperator):
        raise TypeError(
            "matrix must be an array, a sparse matrix or Blocks, since this function "
            f"reads its rows; got a {kind}, which only multiplies vectors. Use "
            "approximate_leverage_scores, preconditioned or sketch_and_solve, or pass "
            "the operator as an array, e.g. its products with the columns of jnp.eye(p)"
        )
    if isinstance(value, Blocks):
        return BlockMatrix(Chunks(value))
    if is_sparse(value):
        sparse = _arguments.sparse_matrix("matrix", value)
        validation.check_shape("matrix", sparse, "(N, p)", ("any", "any"))
        return sparse_of_bcoo(sparse)
    array = _arguments.finite_array("matrix", value)
    validation.check_shape("matrix", array, "(N, p)", ("any", "any"))
    # A traced array has a known sharding only on a mesh with explicit axes.
    is_traced = array_validation.is_traced(array)
    sharding = jax.typeof(array).sharding if is_traced else array.sharding
    if not isinstance(sharding, NamedSharding):
        return Dense(array)
    spec = sharding.spec
    has_sharded_rows = len(spec) > 0 and bool(spec[0])
    has_sharded_columns = any(spec[1:])
    if not has_sharded_rows or has_sharded_columns:
        return Dense(array)
    if array.shape[0] < array.shape[1]:
        raise ValueError(
            "matrix must have at least as many rows as columns if its rows are "
            f"sharded; got shape {array.shape}. Replicate it with jax.device_put"
        )
    return Sharded(array, sharding.mesh, spec[0])


def system_of(
    key: Array, matrix: "MatrixLike | OperatorLike", target: ArrayLike
) -> tuple[Matrix, Array]:
    """Returns the checked matrix and targets of least squares, in a common dtype.

    Args:
      key: PRNG key of the test whether functions of an operator are adjoint.
      matrix: X.
      target: y.
    """
    matrix = from_lineax(matrix)
    if not isinstance(matrix, LinearOperator):
        return row_system_of(matrix, target)
    operator, is_adjoint = checked_operator(key, matrix)
    target = _arguments.right_hand_side(target, operator.shape)
    target = target.astype(operator.dtype)
    # Under `jax.jit`, a failed test cannot raise an error. It makes the result NaN.
    return operator, jnp.where(is_adjoint, target, jnp.nan)


def row_system_of(
    matrix: "MatrixLike | OperatorLike", target: ArrayLike
) -> tuple[RowMatrix, Array]:
    """Like `system_of`, but rejects operators, which have no access to rows."""
    rows = matrix_of(matrix)
    target = _arguments.right_hand_side(target, rows.shape)
    if isinstance(rows, BlockMatrix):
        array_validation.check_concrete("target", target, "Blocks are read on the host")
        return rows, target.astype(rows.dtype)
    dtype = jnp.promote_types(rows.dtype, target.dtype)
    if dtype != rows.dtype:
        rows = _arguments.map_floats(lambda array: array.astype(dtype), rows)
    return rows, target.astype(dtype)


def warn_of_precision(original: Any, matrix: Matrix, rank: Array | np.ndarray) -> None:
    """Warns if the precision of the dtype may have lowered the numerical rank.

    Args:
      original: The matrix passed by the caller.
      matrix: The converted matrix.
      rank: The computed numerical rank, one per target of a solver, or scores that sum
        to the rank.
    """
    if not isinstance(matrix, Dense | Sharded):
        return
    if array_validation.is_traced(original, matrix, rank):
        return
    shape = matrix.shape
    dtype = matrix.dtype
    # NumPy is used, since JAX would compile a program for each shape.
    ranks = np.asarray(rank)
    if ranks.dtype.kind == "i":
        computed_rank = ranks.max()
    else:
        computed_rank = np.round(ranks.sum(dtype=float))
    if not computed_rank < min(shape):
        return
    message = f"matrix has a numerical rank of {computed_rank:.0f} in {dtype}"
    if getattr(original, "dtype", dtype) == np.float64 and dtype != np.float64:
        exact_rank = _rank_in_float64(original)
        if exact_rank > computed_rank:
            warnings.warn(
                f"{message}, but of {exact_rank} in float64, in which it was given; "
                "enable x64, e.g. by jax.config.update('jax_enable_x64', True)",
                stacklevel=3,
            )
    sizes = np.abs(np.asarray(matrix.array)).max(axis=1)
    usual = np.median(sizes[sizes > 0]) if sizes.any() else 0
    if usual < rank_cutoff(shape, dtype) * sizes.max():
        warnings.warn(
            f"{message}, and rows of very different norm: most rows are smaller than "
            f"the rounding errors of entries of {sizes.max():.2g}; scale the rows",
            stacklevel=3,
        )


def _rank_in_float64(matrix: np.ndarray) -> int:
    """Computes the numerical rank in float64, after columns are scaled to norm 1."""
    norms = np.linalg.norm(matrix, axis=0)
    rtol = rank_cutoff(matrix.shape, np.dtype(float))
    scaled = matrix / np.where(norms > 0, norms, 1)
    return np.linalg.matrix_rank(scaled, rtol=rtol)


def compiled(
    *static_argnames: str,
) -> Callable[
    [Callable[Concatenate[M, P], T]],
    Callable[Concatenate[M, P], T],
]:
    """Returns a decorator that compiles functions of any matrix but `BlockMatrix`.

    Functions of a `BlockMatrix` run op by op, since its methods read blocks on the
    host. `static_argnames` are those of `jax.jit`.
    """

    def decorate(
        function: Callable[Concatenate[M, P], T],
    ) -> Callable[Concatenate[M, P], T]:
        program = jax.jit(function, static_argnames=static_argnames)

        @functools.wraps(function)
        def call(matrix: M, *args: P.args, **options: P.kwargs) -> T:
            run = function if isinstance(matrix, BlockMatrix) else program
            return run(matrix, *args, **options)

        return call

    return decorate
