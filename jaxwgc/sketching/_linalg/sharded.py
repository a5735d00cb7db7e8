"""Arrays with rows on several devices."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching._linalg.dense import Dense
from jaxwgc.sketching._linalg.matrix import RowMatrix

if TYPE_CHECKING:
    from jaxwgc.sketching._embeddings._embedding import Embedding

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

_EVERYWHERE = PartitionSpec()


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Sharded(RowMatrix):
    """An array (N, p) with rows on several devices.

    Each method runs on the rows of each device. Sums over rows then add over devices.

    Attributes:
      array: X.
      mesh: The mesh of devices.
      axes: The mesh axes over which rows are sharded.
    """

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
        def on_each(rows: Dense, factors: Array, args: tuple[()]) -> Array:
            del args
            return rows.row_scaled(factors).array

        array = self._on_devices(on_each, factors, (), is_summed=False)
        return dataclasses.replace(self, array=array)

    def mv(self, vector):
        def on_each(rows: Dense, along: tuple[()], vector: Array) -> Array:
            del along
            return rows.mv(vector)

        return self._on_devices(on_each, (), vector, is_summed=False)

    def rmv(self, vector):
        def on_each(rows: Dense, vector: Array, args: tuple[()]) -> Array:
            del args
            return rows.rmv(vector)

        return self._on_devices(on_each, vector, ())

    def sketch(self, embedding, *arrays):
        def on_each(
            rows: Dense, along: tuple[Array, ...], embedding: "Embedding"
        ) -> list[Array]:
            start = lax.axis_index(self.axes) * rows.shape[0]
            drawn = embedding._draw()
            return embedding._apply_to_part([rows.array, *along], drawn, start)

        return self._on_devices(on_each, arrays, embedding)

    def sum_rows(self, function, *args, along=()):
        def on_each(
            rows: Dense, along: tuple[Array, ...], args: tuple[Any, ...]
        ) -> Any:
            return rows.sum_rows(function, *args, along=along)

        return self._on_devices(on_each, along, args)

    def row_norms(self, basis, scale):
        def on_each(rows: Dense, along: tuple[()], args: tuple[Array, Array]) -> Array:
            del along
            basis, scale = args
            return rows.row_norms(basis, scale)

        return self._on_devices(on_each, (), (basis, scale), is_summed=False)

    def column_maxima(self):
        return jnp.abs(lax.stop_gradient(self.array)).max(axis=0)

    def _on_devices(
        self,
        function: Callable[[Dense, A, B], T],
        along: A,
        args: B,
        *,
        is_summed: bool = True,
    ) -> T:
        """Runs `function(rows, slices, args)` on the rows of each device.

        Args:
          function: A function without arrays in its closure, which JAX rejects on a
            mesh with explicit axes.
          along: A pytree of arrays with N rows. `slices` are the rows of the device.
          args: A pytree of arrays that all devices share.
          is_summed: Whether to sum results over devices. Otherwise, they have N rows.
        """
        by_rows = PartitionSpec(self.axes)

        def on_each(rows: Array, along: A, args: B) -> T:
            result = function(Dense(rows), along, args)
            return lax.psum(result, self.axes) if is_summed else result

        run = jax.shard_map(
            on_each,
            mesh=self.mesh,
            in_specs=(by_rows, by_rows, _EVERYWHERE),
            out_specs=_EVERYWHERE if is_summed else by_rows,
            # The check rejects a loop that starts from values that are equal on all
            # devices, such as zeros, and ends with values that differ.
            check_vma=False,
        )
        along = jax.device_put(along, NamedSharding(self.mesh, by_rows))
        return run(self.array, along, args)
