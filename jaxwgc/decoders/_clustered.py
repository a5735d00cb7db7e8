"""Decoding of clustered codes, one cluster at a time."""

from typing import Any, ClassVar

import jax
import numpy as np

from jaxwgc import _validation
from jaxwgc._pytrees import Static
from jaxwgc.decoders._decoder import Array, Decoder


class Clustered(Decoder):
    """Decodes each block of a block-diagonal code separately.

    Attributes:
      inner: Decoder of every block.
      num_clusters: Number of blocks of equal size along the diagonal.

    Example:
      >>> import jaxwgc
      >>> from jaxwgc import codes, decoders
      >>> code = codes.clustered(codes.fractional_repetition(4, 1), num_clusters=3)
      >>> code.decoders[0].num_clusters, str(code.decoders[0])
      (3, 'Clustered(Group)')

    References:
      Ozfatura, Gunduz, Ulukus, "Gradient coding with clustering and multi-message
      communication", IEEE Data Science Workshop 2019, section III.
    """

    inner: Decoder
    num_clusters: Static[int]

    needs: ClassVar[str] = "that is block-diagonal, such as codes.clustered"

    @property
    def is_optimal(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the inner decoder is optimal."""
        return self.inner.is_optimal

    @property
    def is_exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False if the inner decoder is inexact on purpose."""
        return self.inner.is_exact

    def is_a(self, kind: type[Decoder]) -> bool:
        return super().is_a(kind) or self.inner.is_a(kind)

    def check(self, matrix: Array, target: Array) -> None:
        _validation.check_instance("inner", self.inner, Decoder)
        _validation.check_int("num_clusters", self.num_clusters, minimum=1)
        is_right = not any(size % self.num_clusters for size in matrix.shape)
        rule = f"divide the shape {matrix.shape} of the encoding matrix"
        _validation.require(is_right, "num_clusters", rule, self.num_clusters)
        self.inner.check(self._blocks(matrix)[0], self._targets(target)[0])

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        blocks = self._blocks(matrix)
        targets = self._targets(target)
        by_cluster = mask.reshape(*mask.shape[:-1], *blocks.shape[:2])
        find = jax.vmap(self.inner.checked_weights, in_axes=(0, 0, -2), out_axes=-2)
        weights = find(blocks, targets, by_cluster)
        return weights.reshape(*weights.shape[:-2], mask.shape[-1])

    def _blocks(self, matrix: Any) -> Any:
        """Returns the diagonal blocks, (num_clusters, rows, columns)."""
        rows, columns = (size // self.num_clusters for size in matrix.shape)
        index = np.arange(self.num_clusters)
        shape = (self.num_clusters, rows, self.num_clusters, columns)
        return matrix.reshape(shape)[index, :, index, :]

    def _targets(self, target: Any) -> Any:
        """Returns the targets, (num_clusters, num_segments, columns)."""
        return target.reshape(len(target), self.num_clusters, -1).swapaxes(0, 1)

    def __str__(self) -> str:
        return f"Clustered({self.inner})"
