"""Matrices of which solvers need products only: dense, sparse, or two functions."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, dataclass_transform

import jax
import jax.extend.core
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc._pytrees import Static, register
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._row_blocks import sum_over_blocks

if TYPE_CHECKING:
    from jax.experimental.sparse import JAXSparse
    from scipy.sparse import sparray, spmatrix

# Pairs of random vectors that are asked whether two functions are adjoint.
_NUM_PROBES = 4


@dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True, eq=False)
class LinearOperator:
    """A matrix X that is given by two functions, v ↦ Xv and u ↦ Xᵀu.

    `preconditioned` takes one in the place of a matrix, and never forms X. It tests
    with random vectors whether the two are adjoint.

    Attributes:
      matvec: the function of v (p,) that returns Xv (N,), linear, in JAX.
      rmatvec: the function of u (N,) that returns Xᵀu (p,). Of a `matvec` that JAX can
        transpose it is `jax.linear_transpose(matvec, v)`, with its result unpacked.
      shape: (N, p), ints.
      dtype: of v, u and the products, real; by default the default float dtype.
      sketch: optionally, a function of an `Embedding` S (m, N) that returns SX, (m, p).
        With it, solvers by sketches work as they do for arrays. S of m rows costs m
        products Xᵀu where there is nothing better:
        `lambda embedding: jax.lax.map(rmatvec, embedding.matrix())`.

    It is a pytree, in which functions are `jax.tree_util.Partial`, and passes through
    `jax.jit`. Solvers compile once for each function object: a lambda written at the
    call compiles anew, `Partial(function, arrays)` does not. Derivatives are also those
    by the arrays that the functions hold or close over.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> # Differences of neighbours, and the first value.
      >>> operator = sketching.LinearOperator(
      ...     lambda v: jnp.diff(v, prepend=0),
      ...     lambda u: u - jnp.append(u[1:], 0),
      ...     shape=(5, 5),
      ... )
      >>> result = sketching.preconditioned(jax.random.key(0), operator, jnp.ones(5))
      >>> print(jnp.allclose(result.solution, jnp.arange(1, 6)), result.converged)
      True True
    """

    matvec: Callable[[jax.Array], jax.Array]
    rmatvec: Callable[[jax.Array], jax.Array]
    shape: Static[tuple[int, int]]
    dtype: Static[Any] = None
    sketch: Callable[[Any], jax.Array] | None = None

    def __post_init__(self):
        for name in ("matvec", "rmatvec", "sketch"):
            function = getattr(self, name)
            # JAX builds pytrees of other things than functions, too.
            if callable(function) and not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))


register(LinearOperator)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class SparseMatrix:
    """The entries of a sparse matrix, all of them within its shape; repeated ones add.

    Segment sums over the entries are three times as fast as products with BCOO on CPUs.
    """

    row: jax.Array
    column: jax.Array
    data: jax.Array
    shape: Static[tuple[int, int]]

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def matvec(self, vector: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            self.data * vector[self.column], self.row, self.shape[0]
        )

    def rmatvec(self, vector: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            self.data * vector[self.row], self.column, self.shape[1]
        )

    def row_norms(self, scale: jax.Array) -> jax.Array:
        """Returns those of X diag(scale)."""
        squares = (self.data * scale[self.column]) ** 2
        return jnp.sqrt(jax.ops.segment_sum(squares, self.row, self.shape[0]))


Matrix: TypeAlias = jax.Array | SparseMatrix | LinearOperator


# What solvers take, with sparse matrices, whose modules take long to import.
MatrixLike: TypeAlias = (
    "jax.typing.ArrayLike | LinearOperator | JAXSparse | sparray | spmatrix"
)


def times(matrix: Matrix, vector: jax.Array) -> jax.Array:
    """Returns Xv."""
    if isinstance(matrix, SparseMatrix | LinearOperator):
        return matrix.matvec(vector)
    return product(matrix, vector)


def transposed_times(matrix: Matrix, vector: jax.Array) -> jax.Array:
    """Returns Xᵀu."""
    if isinstance(matrix, SparseMatrix | LinearOperator):
        return matrix.rmatvec(vector)
    return product(vector, matrix)


def sketched(matrix: Matrix, embedding: Embedding) -> jax.Array:
    """Returns SX, (m, p)."""
    if isinstance(matrix, SparseMatrix):
        entries = matrix.row, matrix.column, matrix.data
        return embedding._apply_to_entries(entries, matrix.shape)
    if isinstance(matrix, LinearOperator):
        assert matrix.sketch is not None
        small = matrix.sketch(embedding)
        expected = embedding.sketch_size, matrix.shape[1]
        _validation.check_shape("operator.sketch", small, "(m, p)", expected)
        return small.astype(matrix.dtype)
    return embedding @ matrix


def change_of(
    function: Callable[..., jax.Array], matrix: Matrix, change: Any, vector: jax.Array
) -> jax.Array:
    """Returns what a change of X does to `function(X, vector)`, linear in X."""
    return jax.jvp(lambda matrix: function(matrix, vector), (matrix,), (change,))[1]


class Equilibrated(NamedTuple):
    """[X; root I] diag(scale), whose columns have norms next to 1."""

    matrix: Matrix
    scale: jax.Array
    root: jax.typing.ArrayLike

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, num_columns = self.matrix.shape
        return num_rows + num_columns, num_columns

    def matvec(self, vector: jax.Array) -> jax.Array:
        vector = self.scale * vector
        return jnp.concatenate([times(self.matrix, vector), self.root * vector])

    def rmatvec(self, vector: jax.Array) -> jax.Array:
        upper, lower = jnp.split(vector, self.matrix.shape[:1])
        return self.scale * (transposed_times(self.matrix, upper) + self.root * lower)


def residual_products(
    matrix: Matrix | Equilibrated, target: jax.Array, solution: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns Xᵀr and rᵀr of r = y - Xθ, in one pass over the memory of an array X."""
    if isinstance(matrix, Equilibrated):
        target, lower = jnp.split(target, matrix.matrix.shape[:1])
        solution = matrix.scale * solution
        lower = lower - matrix.root * solution
        gradient, squared = residual_products(matrix.matrix, target, solution)
        gradient = matrix.scale * (gradient + matrix.root * lower)
        return gradient, squared + jnp.sum(lower**2)
    if isinstance(matrix, SparseMatrix | LinearOperator):
        residual = target - matrix.matvec(solution)
        return matrix.rmatvec(residual), jnp.sum(residual**2)

    def products(rows: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        residual = target - product(rows, solution)
        return product(residual, rows), jnp.sum(residual**2)

    return sum_over_blocks(products, matrix, target)


def any_system(key: jax.Array, matrix: Any, target: Any) -> tuple[Matrix, jax.Array]:
    """Returns X (N, p), of any kind, and y (N,) or (N, c), in one dtype."""
    if isinstance(matrix, LinearOperator):
        matrix, is_right = _checked(key, matrix)
        target = _checks.right_hand_side(target, matrix.shape).astype(matrix.dtype)
        # What cannot be raised under jax.jit is a NaN in the result.
        return matrix, jnp.where(is_right, target, jnp.nan)
    if not _checks.is_sparse(matrix):
        return _checks.system(matrix, target)
    matrix = _checks.any_matrix("matrix", matrix)
    target = _checks.right_hand_side(target, matrix.shape)
    dtype = jnp.promote_types(matrix.dtype, target.dtype)
    row, column, data = _within(matrix.indices, matrix.data.astype(dtype), matrix.shape)
    return SparseMatrix(row, column, data, matrix.shape), target.astype(dtype)


def column_norms(
    matrix: Matrix, root: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns powers of two that bring columns near to 1, and the norm of X then.

    Rows `root` I count as rows of X. Columns of an operator get one power for all, and
    its norm is an estimate.
    """
    num_columns = matrix.shape[1]
    if isinstance(matrix, LinearOperator):
        norm, _ = _probed(jax.random.key(0), matrix)
        norm = jnp.hypot(norm, root * num_columns**0.5)
        scale = inverse_power_of_two(norm)
        return jnp.full(num_columns, scale), norm * scale
    assert isinstance(matrix, SparseMatrix)
    sizes = jnp.abs(matrix.data)
    largest = jnp.full(num_columns, root, matrix.dtype).at[matrix.column].max(sizes)
    # Twice, against overflow of squares.
    scale = inverse_power_of_two(largest)
    squares = (matrix.data * scale[matrix.column]) ** 2
    squares = jax.ops.segment_sum(squares, matrix.column, num_columns)
    norms = jnp.sqrt(squares + (root * scale) ** 2)
    unit = inverse_power_of_two(norms)
    return scale * unit, jnp.linalg.norm(norms * unit)


@jax.jit
def _inside(indices: jax.Array, data: jax.Array, shape: jax.Array) -> Any:
    is_inside = jnp.all((indices >= 0) & (indices < shape), axis=1)
    row, column = jnp.where(is_inside[:, None], indices, 0).T
    return row, column, jnp.where(is_inside, data, 0)


def _within(indices: jax.Array, data: jax.Array, shape: tuple[int, ...]) -> Any:
    return _inside(indices, data, jnp.asarray(shape, indices.dtype))


def _checked(
    key: jax.Array, operator: LinearOperator
) -> tuple[LinearOperator, jax.Array]:
    """Returns an operator whose functions are right in shape, and if in value, too."""
    shape = operator.shape
    if not (isinstance(shape, tuple) and len(shape) == 2):
        raise ValueError(f"operator.shape must be (N, p); got {shape!r}")
    for axis, size in zip(("[0]", "[1]"), shape):
        _validation.check_int(f"operator.shape{axis}", size, minimum=1)
    dtype = jnp.result_type(float if operator.dtype is None else operator.dtype)
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
        raise TypeError(f"operator.dtype must be float32 or float64; got {dtype}")
    functions = {}
    for name, length, result in (("matvec", *shape[::-1]), ("rmatvec", *shape)):
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
        expected = jax.ShapeDtypeStruct((result,), dtype)
        if (getattr(image, "shape", None), getattr(image, "dtype", None)) != (
            expected.shape,
            expected.dtype,
        ):
            raise ValueError(
                f"operator.{name} must return {dtype} of shape ({result},) for one of "
                f"({length},); got {image}"
            )
    operator = dataclasses.replace(operator, dtype=dtype, **functions)
    norm, is_adjoint = _probed(jax.random.fold_in(key, 2), operator)
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
    """Returns a function that holds the traced arrays it closes over, for `jax.jit`."""
    closed, structure = jax.make_jaxpr(function, return_shape=True)(vector)
    if not _validation.is_traced(closed.consts):
        return function
    structure = jax.tree.structure(structure)

    def evaluate(constants: Any, vector: jax.Array) -> Any:
        again = type(closed)(closed.jaxpr, constants)
        flat = jax.extend.core.jaxpr_as_fun(again)(vector)
        return jax.tree.unflatten(structure, flat)

    return Partial(evaluate, closed.consts)


@jax.jit
def _probed(key: jax.Array, operator: LinearOperator) -> tuple[jax.Array, jax.Array]:
    """Returns an estimate of the Frobenius norm, and whether the two are adjoint."""
    num_rows, num_columns = operator.shape

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key)
        right = jax.random.normal(keys[0], (num_columns,), operator.dtype)
        left = jax.random.normal(keys[1], (num_rows,), operator.dtype)
        images = jnp.concatenate([operator.matvec(right), operator.rmatvec(left)])
        # Against overflow of squares; exact.
        unit = inverse_power_of_two(jnp.max(jnp.abs(images)))
        images = images * unit
        miss = jnp.abs(jnp.sum(images * jnp.concatenate([left, -right])))
        return jnp.linalg.norm(images) / 2**0.5 / unit, miss / unit

    norms, misses = lax.map(probe, jax.random.split(key, _NUM_PROBES))
    norm = jnp.mean(norms)
    # Rounding is far less; two matrices that differ by that share of their norm show.
    bound = 4 * float(jnp.finfo(operator.dtype).eps) ** 0.5 * norm
    return norm, jnp.all(misses <= bound) & jnp.isfinite(norm)
