"""The base class of embeddings: random matrices that are never formed."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.arrays import is_sparse
from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.entries import Entries, entries_of_bcoo


@dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True, eq=False)
class Embedding(abc.ABC):
    """A random matrix with few rows that nearly preserves the lengths of vectors.

    S has shape (sketch_size, num_rows) and E[SᵀS] = I. The constructors are
    `gaussian`, `rademacher`, `srht`, `count_sketch`, `sparse_sign`, `sparse_stack`
    and `row_sampling`. An embedding holds a key, not S: every use draws an
    identical S. The key alone determines S, for any dtype of the argument and in
    32-bit and 64-bit mode. An embedding is a pytree, and passes through `jax.jit`
    and `jax.vmap`. `embedding @ X` is SX.

    Your own embedding is a subclass. It has `apply_to_columns` and `to_array`, which
    draw S from `key`. Its annotated attributes become fields. For sparse matrices, it
    also has `apply_to_entries`. For `Blocks` and sharded rows, it also has `draw` and
    `apply_to_part`.

    Attributes:
      key: The PRNG key of S.
      sketch_size: The number of rows of S, an int.
      num_rows: N, the number of columns of S, and of rows of its operands.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> x = jax.random.normal(jax.random.key(0), (1000, 5))
      >>> embedding = sketching.sparse_sign(jax.random.key(1), 100, num_rows=1000)
      >>> (embedding @ x).shape
      (100, 5)
    """

    key: Array
    sketch_size: Static[int]
    num_rows: Static[int]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        register(dataclasses.dataclass(frozen=True, eq=False)(cls))

    def apply(self, tree: Any) -> Any:
        """Multiplies every array of a pytree by the embedding, from the left.

        The map is linear and differentiable. All leaves share one S, so that a matrix
        and a right-hand side can be embedded together or one after the other.

        Args:
          tree: A pytree; leaves (num_rows, ...), real or complex. Integers and bools
            become the default float dtype, float16 and bfloat16 become float32. A leaf
            may be a real sparse matrix (num_rows, p), a BCOO or one of SciPy, for
            `count_sketch`, `sparse_sign`, `sparse_stack` and `row_sampling`. They take
            time proportional to its entries.

        Returns:
          A pytree of the same structure, leaves (sketch_size, ...), all dense.

        Raises:
          ValueError: If a leaf has another leading axis.
          TypeError: If a leaf is not numeric, is a sparse matrix of another kind, or is
            sparse and the embedding is dense.
        """
        array_validation.check_key(self.key, "embedding.key")
        arrays, shapes = number_arrays(tree)
        array_validation.check_leading_axis("tree", shapes, self.num_rows, "num_rows")
        return _apply_to_leaves(self, arrays)

    def __matmul__(self, tree: Any) -> Any:
        """Multiplies a matrix or pytree by the embedding, like `apply`."""
        return self.apply(tree)

    def matrix(self, dtype: DTypeLike | None = None) -> Array:
        """Returns the embedding as an array, for tests and small examples.

        It is S, (sketch_size, num_rows), in the default float dtype or `dtype`.

        Raises:
          ValueError: If dtype is of integers or bools, which would truncate entries.
        """
        array_validation.check_key(self.key, "embedding.key")
        dtype = jnp.result_type(float if dtype is None else dtype)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(f"dtype must be real or complex; got {dtype}")
        return _matrix(self, dtype)

    @abc.abstractmethod
    def apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        """Multiplies matrices with num_rows rows by the embedding, from the left."""

    @abc.abstractmethod
    def to_array(self, dtype: np.dtype) -> Array:
        """Returns the embedding as an array of the given dtype."""

    def apply_to_entries(self, entries: Entries, shape: tuple[int, ...]) -> Array:
        """Multiplies a sparse matrix, given by its entries, by the embedding.

        Entries are arrays `row`, `column` and `data`. Those out of bounds are padding.

        Raises:
          TypeError: If the embedding does not support sparse matrices.
        """
        del entries, shape
        raise TypeError(
            "embedding must be count_sketch, sparse_sign, sparse_stack or row_sampling "
            f"for a sparse matrix; got {type(self).__name__}"
        )

    def draw(self) -> tuple[Array, Array]:
        """Draws the random arrays of the embedding, for `apply_to_part`.

        Raises:
          TypeError: If the embedding supports neither `Blocks` nor sharded rows.
        """
        raise TypeError(
            "embedding must be count_sketch, sparse_sign or sparse_stack for Blocks "
            f"and sharded rows; got {type(self).__name__}"
        )

    def apply_to_part(
        self, arrays: list[Array], drawn: tuple[Array, Array], start: Array | None
    ) -> list[Array]:
        """Multiplies some rows of arrays by the matching columns of the embedding.

        Args:
          arrays: Some rows of each array.
          drawn: The result of `draw`.
          start: The first column of S, int. None if the arrays have all rows.
        """
        raise NotImplementedError


# An embedding, or a constructor that takes a key, sketch_size and num_rows.
EmbeddingLike = Callable[[Array, int, int], Embedding] | Embedding


def embed(
    embedding: EmbeddingLike, key: Array, sketch_size: int, num_rows: int
) -> Embedding:
    """Calls a constructor of embeddings, or returns a given embedding.

    Raises:
      ValueError: If the embedding has another shape than (sketch_size, num_rows).
      TypeError: If the argument is neither a constructor nor an `Embedding`.
    """
    made = embedding(key, sketch_size, num_rows) if callable(embedding) else embedding
    if not isinstance(made, Embedding):
        raise TypeError(
            "embedding must be a constructor, such as sketching.srht (not its name), "
            f"or an Embedding; got {embedding!r}"
        )
    sizes = (made.sketch_size, made.num_rows)
    expected = (sketch_size, num_rows)
    if sizes != expected:
        raise ValueError(
            f"embedding must have (sketch_size, num_rows) = {expected}; got {sizes}"
        )
    return made


def check_sizes(key: Array, sketch_size: int, num_rows: int) -> tuple[Array, int, int]:
    """Checks and returns the arguments of all constructors: the key and both sizes."""
    key = array_validation.check_key(key)
    sketch_size = validation.check_int("sketch_size", sketch_size, minimum=1)
    num_rows = validation.check_int("num_rows", num_rows, minimum=1)
    return key, sketch_size, num_rows


def random_signs(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws independent random signs ±1, float32: 32 from each word of random bits."""
    *leading, size = shape
    num_words = -(-size // 32)
    words = jax.random.bits(key, (*leading, num_words), jnp.uint32)
    bits = words[..., None] >> jnp.arange(32, dtype=jnp.uint32) & jnp.uint32(1)
    signs = 1 - 2 * bits.astype(jnp.float32)
    return signs.reshape(*leading, -1)[..., :size]


@jax.jit
def _apply_to_leaves(embedding: Embedding, tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_sparse)
    dense = [leaf for leaf in leaves if not is_sparse(leaf)]
    columns = [leaf.reshape(leaf.shape[0], -1) for leaf in dense]
    # One call multiplies all dense leaves, so that random numbers are drawn once.
    sketches = iter(embedding.apply_to_columns(columns) if columns else [])
    results = []
    for leaf in leaves:
        if is_sparse(leaf):
            entries = entries_of_bcoo(leaf)
            results.append(embedding.apply_to_entries(entries, leaf.shape))
        else:
            sketch = next(sketches)
            results.append(sketch.reshape(sketch.shape[0], *leaf.shape[1:]))
    return jax.tree.unflatten(structure, results)


@functools.partial(jax.jit, static_argnames="dtype")
def _matrix(embedding: Embedding, dtype: np.dtype) -> Array:
    return embedding.to_array(dtype)


def number_arrays(tree: Any) -> tuple[Any, Any]:
    """Converts leaves to numeric arrays or BCOO matrices; also returns their shapes."""
    # A sparse matrix is one leaf, although it is a pytree of values and indices.
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_sparse)
    arrays = []
    for leaf in leaves:
        if is_sparse(leaf):
            arrays.append(_arguments.sparse_matrix("tree", leaf))
        elif np.iscomplexobj(leaf):
            arrays.append(conversions.gathered(jnp.asarray(leaf)))
        else:
            arrays.append(conversions.gathered(conversions.float_array("tree", leaf)))
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    return structure.unflatten(arrays), structure.unflatten(shapes)


T = TypeVar("T")
# Type of the index of a block: a NumPy scalar, or an array inside a loop.
Index: TypeAlias = Array | np.int32


def fold_blocks(
    add: Callable[[Index, T, int], T], total: T, num_rows: int, size: int
) -> T:
    """Accumulates a total over all blocks of `size` rows; the last may be shorter.

    `add(index, total, num_used)` adds the block with this index, of num_used rows.
    """
    num_blocks, num_left = divmod(num_rows, size)
    start = np.int32(0)
    end = np.int32(num_blocks)
    if num_blocks == 1:
        total = add(start, total, size)
    elif num_blocks:
        total = lax.fori_loop(start, end, lambda i, total: add(i, total, size), total)
    if num_left:
        total = add(end, total, num_left)
    return total
