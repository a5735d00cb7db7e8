"""Matrices given by functions that multiply vectors, and conversion from lineax."""

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import Partial
from jax.typing import DTypeLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import inverse_power_of_two
from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching._linalg.matrix import Matrix
from jaxwgc.sketching._linalg.rows import padded_with_zeros

if TYPE_CHECKING:
    import lineax

    from jaxwgc.sketching._embeddings._embedding import Embedding

# Names of the functions of a `LinearOperator`, with descriptions for error messages.
_FUNCTIONS = {
    "matvec": "a function of v (p,) that returns Xv (N,)",
    "rmatvec": "a function of u (N,) that returns Xᵀu (p,), or None",
    "sketch": "a function of an Embedding S that returns SX (m, p), or None",
}
# Last sentence of the constructor's error messages. Users may pass arguments in the
# order of SciPy, where the shape is first.
_BY_NAME = "Pass arguments by name: LinearOperator(matvec, shape=(N, p))"
# Number of pairs of random vectors that test whether matvec and rmatvec are adjoint.
_NUM_PROBES = 4
# Number of products Xv that are computed at a time. They share the random numbers of a
# sketch, and need memory for as many columns of X.
_PRODUCTS_AT_ONCE = 16


@dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True, eq=False)
class LinearOperator:
    """A matrix given by a function that returns its product with a vector.

    `preconditioned`, `sketch_and_solve` and `approximate_leverage_scores` accept it as
    a matrix. They also accept operators of lineax: a `MatrixLinearOperator` counts as
    its array, every other one as a `LinearOperator` of its products, in which pytrees
    are concatenated.

    Attributes:
      matvec: A linear JAX function of v (p,) that returns Xv (N,).
      rmatvec: A function of u (N,) that returns Xᵀu (p,). By default the
        `jax.linear_transpose` of `matvec`. Pass one if JAX cannot transpose `matvec`,
        or if a faster function exists. Random vectors test whether the two are adjoint.
      shape: (N, p), ints.
      dtype: The dtype of v, u and the products, real; by default the default float
        dtype.
      sketch: Optional function of an `Embedding` S (m, N) that returns SX, (m, p). With
        it, sketching solvers work as they do for arrays. The generic function takes p
        products Xv, one per column: `lambda embedding: jax.lax.map(lambda v: embedding
        @ matvec(v), jnp.eye(p)).T`.

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
    dtype: Static[DTypeLike | None] = None
    sketch: "Callable[[Embedding], Array] | None" = None

    def __post_init__(self):
        for name, meaning in _FUNCTIONS.items():
            function = getattr(self, name)
            if function is None and name != "matvec":
                continue
            if not callable(function):
                raise TypeError(
                    f"operator.{name} must be {meaning}; got "
                    f"{validation.in_short(function)}. {_BY_NAME}"
                )
            if not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))
        if not isinstance(self.shape, tuple) or len(self.shape) != 2:
            shown = validation.in_short(self.shape)
            raise TypeError(
                "operator.shape must be a tuple (N, p) of positive ints; got "
                f"{shown}. {_BY_NAME}"
            )
        for axis, size in enumerate(self.shape):
            validation.check_int(f"operator.shape[{axis}]", size)
        if min(self.shape) < 1:
            raise ValueError(
                "operator.shape must be a tuple (N, p) of positive ints; got "
                f"{self.shape}. {_BY_NAME}"
            )
        _dtype_of(self)


register(LinearOperator)


def _dtype_of(operator: LinearOperator) -> np.dtype:
    """Returns an operator's dtype; raises TypeError unless it is float32 or float64.

    None stands for the default float dtype.
    """
    named = float if operator.dtype is None else operator.dtype
    try:
        dtype = jnp.result_type(named)
    except TypeError as error:
        shown = validation.in_short(named)
        raise TypeError(
            f"operator.dtype must be float32 or float64; got {shown}. {_BY_NAME}"
        ) from error
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
        raise TypeError(f"operator.dtype must be float32 or float64; got {dtype}")
    return dtype


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Operator(Matrix):
    """A `LinearOperator` as a `Matrix`, after its functions have been checked."""

    description = "a LinearOperator"

    functions: LinearOperator

    @property
    def shape(self):
        return self.functions.shape

    @property
    def dtype(self):
        return _dtype_of(self.functions)

    def mv(self, vector):
        return _of_columns(self.functions.matvec, vector)

    def rmv(self, vector):
        if self.functions.rmatvec is not None:
            return _of_columns(self.functions.rmatvec, vector)
        like = jax.ShapeDtypeStruct(self.shape[1:], self.dtype)
        transposed = jax.linear_transpose(self.functions.matvec, like)
        return _of_columns(lambda u: transposed(u)[0], vector)

    def sketch(self, embedding, *arrays):
        if self.functions.sketch is None:
            small = self._map_columns(lambda column: embedding @ column).T
        else:
            small = self.functions.sketch(embedding)
            expected = (embedding.sketch_size, self.shape[1])
            validation.check_shape("operator.sketch", small, "(m, p)", expected)
        return [small.astype(self.dtype), *(embedding @ array for array in arrays)]

    def to_array(self) -> Array:
        """Returns the matrix as an array, from its products with all unit vectors."""
        return self._map_columns(lambda column: column).T

    def row_norms(self, basis: Array, scale: Array) -> Array:
        """Computes squared row norms of X diag(scale) `basis`, for this matrix X.

        One product Xv is needed for each column of `basis`. Only a
        few products are in memory at a time.
        """
        vectors = (scale[:, None] * basis).T
        num_left = -len(vectors) % _PRODUCTS_AT_ONCE
        padded = padded_with_zeros(vectors, num_left)
        batches = padded.reshape(-1, _PRODUCTS_AT_ONCE, self.shape[1])

        def add(total: Array, batch: Array) -> tuple[Array, None]:
            return total + jnp.sum(self.mv(batch.T) ** 2, axis=1), None

        norms, _ = lax.scan(add, jnp.zeros(self.shape[0], self.dtype), batches)
        return norms

    def _map_columns(self, function: Callable[[Array], Array]) -> Array:
        """Applies a function to each column of the matrix, and stacks the results.

        The results are rows of the stack. A few columns are in memory at a time.
        """
        num_columns = self.shape[1]
        units = jnp.eye(num_columns, dtype=self.dtype)
        batch_size = min(_PRODUCTS_AT_ONCE, num_columns)
        return lax.map(lambda v: function(self.mv(v)), units, batch_size=batch_size)


def _of_columns(function: Callable[[Array], Array], vector: Array) -> Array:
    if vector.ndim == 1:
        return function(vector)
    return jax.vmap(function, -1, -1)(vector)


def checked_operator(key: Array, operator: LinearOperator) -> tuple[Operator, Array]:
    """Returns an `Operator` with checked functions, and whether they are adjoint.

    Raises:
      ValueError: If a function returns another shape or dtype than required, or if the
        functions are not adjoint. The second test raises no error under `jax.jit`.
    """
    num_rows, num_columns = operator.shape
    dtype = _dtype_of(operator)
    matvec = _checked_function(
        "matvec",
        operator.matvec,
        length=num_columns,
        image_length=num_rows,
        dtype=dtype,
    )
    rmatvec = operator.rmatvec
    if rmatvec is not None:
        rmatvec = _checked_function(
            "rmatvec", rmatvec, length=num_rows, image_length=num_columns, dtype=dtype
        )
    functions = dataclasses.replace(
        operator, dtype=dtype, matvec=matvec, rmatvec=rmatvec
    )
    matrix = Operator(functions)
    norm, is_adjoint = probed(jax.random.fold_in(key, 2), matrix)
    if not array_validation.is_traced(is_adjoint) and not is_adjoint:
        raise ValueError(
            "operator.matvec and operator.rmatvec must be finite and adjoint; got "
            "uᵀ(Xv) unequal to (Xᵀu)ᵀv for random vectors u and v, and an estimated "
            f"norm of X of {norm:.2g}. Omit rmatvec if JAX can transpose matvec"
        )
    return matrix, is_adjoint


def _checked_function(
    name: str,
    function: Callable[[Array], Array],
    *,
    length: int,
    image_length: int,
    dtype: np.dtype,
) -> Callable[[Array], Array]:
    """Returns a function as a pytree; raises ValueError if its result does not fit.

    The result must have shape (image_length,) and `dtype`. See `_hoisted`.
    """
    vector = np.zeros(length, dtype)
    image = jax.eval_shape(function, vector)
    shape = getattr(image, "shape", None)
    if shape != (image_length,) or getattr(image, "dtype", None) != dtype:
        raise ValueError(
            f"operator.{name} must return an array of shape ({image_length},) and "
            f"dtype {dtype} for a vector of shape ({length},); got {image}"
        )
    return _hoisted(function, vector)


def _hoisted(
    function: Callable[[Array], Array], vector: np.ndarray
) -> Callable[[Array], Array]:
    """Converts a function to a pytree whose leaves are traced arrays in its closure.

    `jax.jit` can then be called with the function as an argument. Unlike
    `jax.closure_convert`, this also covers arrays of integers.
    """
    program = jax.make_jaxpr(function)(vector)
    if not array_validation.is_traced(program.consts):
        return function

    def run(constants: list[Array], v: Array) -> Array:
        (image,) = jaxpr_as_fun(program.replace(consts=constants))(v)
        return image

    return Partial(run, program.consts)


@jax.jit
def probed(key: Array, matrix: Operator) -> tuple[Array, Array]:
    """Estimates the Frobenius norm, and tests whether the functions are adjoint."""
    num_rows, num_columns = matrix.shape
    dtype = matrix.dtype

    def probe(key: Array) -> tuple[Array, Array]:
        right_key, left_key = jax.random.split(key)
        right = jax.random.normal(right_key, (num_columns,), dtype)
        left = jax.random.normal(left_key, (num_rows,), dtype)
        images = jnp.concatenate([matrix.mv(right), matrix.rmv(left)])
        # Scaling by an exact power of two avoids overflow of squares.
        unit = inverse_power_of_two(jnp.max(jnp.abs(images)))
        images = images * unit
        difference = jnp.abs(jnp.sum(images * jnp.concatenate([left, -right])))
        return jnp.linalg.norm(images) / 2**0.5 / unit, difference / unit

    norms, differences = lax.map(probe, jax.random.split(key, _NUM_PROBES))
    norm = jnp.mean(norms)
    # Functions count as adjoint if differences are at most 4 √eps times the norm, which
    # is far above rounding errors.
    bound = 4 * float(jnp.finfo(dtype).eps) ** 0.5 * norm
    return norm, jnp.all(differences <= bound) & jnp.isfinite(norm)


def from_lineax(value: Any) -> Any:
    """Converts an operator of lineax, and returns other values unchanged.

    A `MatrixLinearOperator` becomes its array, every other operator a `LinearOperator`.
    """
    # If lineax has not been imported, no value is one of its operators.
    lineax = sys.modules.get("lineax")
    if lineax is None or not isinstance(value, lineax.AbstractLinearOperator):
        return value
    if isinstance(value, lineax.MatrixLinearOperator):
        return value.as_matrix()
    return operator_from_lineax(value)


def operator_from_lineax(operator: "lineax.AbstractLinearOperator") -> LinearOperator:
    """Converts a lineax operator on pytrees to a `LinearOperator` on flat vectors.

    Raises:
      TypeError: If the dtype of the operator is not a real float dtype.
    """
    # equinox is optional, but a user of lineax has it: lineax depends on equinox.
    import equinox

    dtype = check_real(operator)
    arrays, others = equinox.partition(operator, _is_array)
    split = _SplitOperator(arrays, others)
    return LinearOperator(
        matvec=Partial(_mv, split),
        rmatvec=Partial(_rmv, split),
        shape=(operator.out_size(), operator.in_size()),
        dtype=dtype,
    )


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, Array | np.ndarray)


def check_real(operator: "lineax.AbstractLinearOperator") -> np.dtype:
    """Returns a lineax operator's dtype; raises TypeError if it is not a real float."""
    leaves = jax.tree.leaves((operator.in_structure(), operator.out_structure()))
    dtype = jnp.result_type(*leaves)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"operator must have a real float dtype; got {dtype}")
    return dtype


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _SplitOperator:
    """A lineax operator as a pytree: arrays are its leaves, all other parts are static.

    Attributes:
      arrays: The operator, with None for a leaf that is not an array.
      others: The operator, with None for an array.
    """

    arrays: Any
    others: Static[Any]


def _mv(split: _SplitOperator, vector: Array) -> Array:
    """Multiplies a flat vector by a lineax operator."""
    import equinox

    return _product(equinox.combine(split.arrays, split.others), vector)


def _rmv(split: _SplitOperator, vector: Array) -> Array:
    """Multiplies a flat vector by the transpose of a lineax operator."""
    import equinox

    operator = equinox.combine(split.arrays, split.others)
    return _product(operator.transpose(), vector)


def _product(operator: "lineax.AbstractLinearOperator", vector: Array) -> Array:
    from lineax.internal import pack_structures, ravel_vector, unravel_solution

    structures = pack_structures(operator)
    image = operator.mv(unravel_solution(vector, structures))
    return ravel_vector(image, structures).astype(vector.dtype)
