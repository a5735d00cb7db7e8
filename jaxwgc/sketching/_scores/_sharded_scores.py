"""Leverage scores of a matrix whose rows are spread over devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._gram import Gram
from jaxwgc.sketching._row_blocks import DenseRows
from jaxwgc.sketching._scores._gram_scores import gram_scores


def sharded_leverage_scores(
    matrix: jax.typing.ArrayLike,
    mesh: Mesh,
    axis_name: str,
    rcond: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Returns leverage scores of a matrix whose rows lie on several devices.

    The same as `leverage_scores(matrix, "gram")`, up to the order of sums. Every device
    reads its own rows only; what travels is one p×p matrix, or two where X is not
    well-conditioned.

    Args:
      matrix: X, real, of shape (N, p) with N >= p, sharded by rows over the axis or
        not; it is brought into that layout first. N need not be a multiple of the
        number of devices: zero rows are added, which takes a copy.
      mesh: a `jax.sharding.Mesh`.
      axis_name: the axis of the mesh that the rows are spread over. Along other axes
        all devices do the same.
      rcond: as in `leverage_scores`.

    Returns:
      (N,), each in [0, 1]; sharded over the axis where N is a multiple of its size,
      else on every device.

    Raises:
      ValueError: for a matrix without two axes, with fewer rows than columns, without
        columns, or (where not traced) with NaN or infinite entries; for an axis that
        the mesh does not have; for an rcond outside [0, 1).
      TypeError: for a complex or sparse matrix, anything but numbers, or not a mesh.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",))
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> scores = sketching.sharded_leverage_scores(matrix, mesh, "rows")
      >>> print(scores.round(3))
      [0.5 0.5 1. ]

    References:
      As `leverage_scores`.
    """
    _validation.check_instance("mesh", mesh, Mesh, " of jax.sharding")
    _validation.check_choice("axis_name", axis_name, mesh.axis_names)
    matrix = _checks.finite_matrix("matrix", matrix)
    if matrix.shape[0] < matrix.shape[1]:
        raise ValueError(
            "matrix must have at least as many rows as columns to be sharded by rows; "
            f"got {matrix.shape}; use leverage_scores"
        )
    matrix, rcond = _checks.with_cutoff(matrix, rcond)
    return _sharded_scores(matrix, rcond, mesh=mesh, axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("mesh", "axis_name"))
def _sharded_scores(
    matrix: jax.Array, rcond: jax.Array, mesh: Mesh, axis_name: str
) -> jax.Array:
    def of_one_device(rows, rcond):
        return gram_scores(Gram.equilibrated(ShardedRows(rows, axis_name)), rcond)

    by_rows = PartitionSpec(axis_name)
    scores = over_shards(of_one_device, matrix, (rcond,), mesh, axis_name, by_rows)
    return without_padding(scores, matrix.shape[0], mesh)


def over_shards(
    function: Callable[..., Any],
    matrix: jax.Array,
    others: tuple[jax.Array, ...],
    mesh: Mesh,
    axis_name: str,
    specs: Any,
) -> Any:
    """Returns what `function` gives on every device: of its own rows, and the others.

    Zero rows are added where the devices would not have equally many.
    """
    missing = -matrix.shape[0] % mesh.shape[axis_name]
    if missing:
        matrix = jnp.pad(matrix, ((0, missing), (0, 0)))
    by_rows = PartitionSpec(axis_name)
    # On a mesh with explicit axes, shard_map asks for it.
    matrix = jax.device_put(matrix, NamedSharding(mesh, by_rows))
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(by_rows, *[PartitionSpec()] * len(others)),
        out_specs=specs,
        # Loops start from zeros, which are the same everywhere, and end with values
        # that are not.
        check_vma=False,
    )(matrix, *others)


def without_padding(scores: jax.Array, num_rows: int, mesh: Mesh) -> jax.Array:
    """Returns the scores of the rows of the matrix alone."""
    if scores.shape[0] != num_rows:
        # Rows that are no multiple of the devices cannot be spread over them.
        scores = jax.sharding.reshard(scores, NamedSharding(mesh, PartitionSpec()))
    return scores[:num_rows]


class ShardedRows(DenseRows):
    """The rows of one device; sums are over all devices."""

    def __init__(self, matrix: jax.Array, axis_name: str):
        super().__init__(matrix)
        self.axis_name = axis_name

    def largest(self) -> jax.Array:
        return lax.pmax(super().largest(), self.axis_name)

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return lax.psum(super().sum(function), self.axis_name)
