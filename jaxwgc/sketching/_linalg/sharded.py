"""Matrices whose rows are sharded over several devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching._linalg.matrix import Dense, RowMatrix

T = TypeVar("T")

_EVERYWHERE = PartitionSpec()


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Sharded(RowMatrix):
    """A matrix that is stored as an array whose rows are sharded over devices.

    Each method runs on the rows of each device. Sums over rows are then added over the
    devices.

    Attributes:
      array: X.
      mesh: The mesh of devices.
      axes: The mesh axes over which rows are sharded.
    """

    description = "a sharded array"

    array: Array
    mesh: Static[Mesh | AbstractMesh]
    axes: Static[str | tuple[str, ...]]

    @property
    def shape(self):
        num_rows, num_columns = self.array.shape
        return num_rows, num_columns

    @property
    def dtype(self):
        return self.array.dtype

    def row_scaled(self, factors):
        array = self._on_devices(_scaled_rows, (factors,), has_rows=True)
        return dataclasses.replace(self, array=array)

    def mv(self, vector):
        return self._on_devices(Dense.mv, args=(vector,), has_rows=True)

    def rmv(self, vector):
        return self._on_devices(Dense.rmv, (vector,))

    def sketch(self, embedding, *arrays):
        def sketch_of(rows: Dense, *slices_and_embedding: Any) -> list[Array]:
            *slices, embedding = slices_and_embedding
            start = lax.axis_index(self.axes) * rows.shape[0]
            return embedding.apply_to_part(
                [rows.array, *slices], embedding.draw(), start
            )

        return self._on_devices(sketch_of, arrays, (embedding,))

    def sum_rows(self, function, *args, along=()):
        def sum_of(rows: Dense, *slices_and_args: Any) -> Any:
            slices = slices_and_args[: len(along)]
            return rows.sum_rows(function, *slices_and_args[len(along) :], along=slices)

        return self._on_devices(sum_of, along, args)

    def row_norms(self, basis, scale):
        return self._on_devices(Dense.row_norms, args=(basis, scale), has_rows=True)

    def column_maxima(self):
        return jnp.abs(lax.stop_gradient(self.array)).max(axis=0)

    def _on_devices(
        self,
        function: Callable[..., T],
        along: tuple[Array, ...] = (),
        args: tuple[Any, ...] = (),
        *,
        has_rows: bool = False,
    ) -> T:
        """Runs a function on each device's rows; adds up or concatenates the results.

        Args:
          function: A function without arrays in its closure, which JAX rejects on a
            mesh with explicit axes.
          along: Arrays with N rows. `slices` are the rows of the device.
          args: Pytrees of arrays that all devices share.
          has_rows: Whether the result has N rows. Otherwise, results of the devices are
            added up.
        """
        by_rows = PartitionSpec(self.axes)

        def on_each(rows: Array, slices: tuple[Array, ...], args: tuple[Any, ...]) -> T:
            result = function(Dense(rows), *slices, *args)
            return result if has_rows else lax.psum(result, self.axes)

        run = jax.shard_map(
            on_each,
            mesh=self.mesh,
            in_specs=(by_rows, by_rows, _EVERYWHERE),
            out_specs=by_rows if has_rows else _EVERYWHERE,
            # `check_vma=True` would reject loops whose values start equal on all
            # devices, such as zeros, and differ later.
            check_vma=False,
        )
        along = jax.device_put(along, NamedSharding(self.mesh, by_rows))
        return run(self.array, along, args)


def _scaled_rows(rows: Dense, factors: Array) -> Array:
    return rows.row_scaled(factors).array
