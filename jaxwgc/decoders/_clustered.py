"""Decoding of clustered codes, one cluster at a time."""

from typing import ClassVar

import jax
import numpy as np

from jaxwgc._common import validation
from jaxwgc._common.pytrees import Static
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
        validation.check_instance("inner", self.inner, Decoder)
        validation.check_int("num_clusters", self.num_clusters, minimum=1)
        num_rows, num_columns = matrix.shape
        if num_rows % self.num_clusters != 0 or num_columns % self.num_clusters != 0:
            raise ValueError(
                f"num_clusters must divide the shape {matrix.shape} of the encoding "
                f"matrix; got {self.num_clusters}"
            )
        self.inner.check(self._blocks(matrix)[0], self._targets(target)[0])

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        blocks = self._blocks(matrix)
        targets = self._targets(target)
        by_cluster = mask.reshape(*mask.shape[:-1], *blocks.shape[:2])
        find = jax.vmap(self.inner.checked_weights, in_axes=(0, 0, -2), out_axes=-2)
        weights = find(blocks, targets, by_cluster)
        return weights.reshape(*weights.shape[:-2], mask.shape[-1])

    def _blocks(self, matrix: Array) -> Array:
        """Returns the diagonal blocks of the encoding matrix, one per cluster."""
        num_clusters = self.num_clusters
        num_rows = matrix.shape[0] // num_clusters
        num_columns = matrix.shape[1] // num_clusters
        blocks = matrix.reshape(num_clusters, num_rows, num_clusters, num_columns)
        cluster = np.arange(num_clusters)
        return blocks[cluster, :, cluster, :]

    def _targets(self, target: Array) -> Array:
        """Returns the targets of the clusters."""
        return target.reshape(len(target), self.num_clusters, -1).swapaxes(0, 1)

    def __str__(self) -> str:
        return f"Clustered({self.inner})"
