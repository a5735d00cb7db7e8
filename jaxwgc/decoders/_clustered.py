"""Decoding cluster by cluster."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._dtypes import working
from jaxwgc._pytrees import Static
from jaxwgc.decoders._decoder import Decoder


class Clustered(Decoder):
    """Decodes each block of a block-diagonal code on its own.

    Attributes:
      inner: the decoder of a block, the same for all.
      num_clusters: how many blocks of equal size there are along the diagonal.

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
        """As the inner decoder."""
        return self.inner.is_optimal

    def is_a(self, kind: type[Decoder]) -> bool:
        return super().is_a(kind) or self.inner.is_a(kind)

    def check(self, code: Any) -> None:
        if not isinstance(self.inner, Decoder):
            raise TypeError(f"inner must be a Decoder; got {self.inner!r}")
        _validation.check_int("num_clusters", self.num_clusters, minimum=1)
        for name in ("num_workers", "num_parts"):
            if getattr(code, name) % self.num_clusters:
                raise ValueError(
                    f"num_clusters must divide {name}; got num_clusters = "
                    f"{self.num_clusters} for {code}"
                )
        self.inner.check(jax.eval_shape(self._first_block, code))

    def check_entries(self, code: Any) -> None:
        blocks = _diagonal_blocks(code.encoding_matrix, self.num_clusters)
        if np.count_nonzero(code.encoding_matrix) != np.count_nonzero(blocks):
            self.refuse(code)
        self.inner.check_entries(self._first_block(code))

    def _first_block(self, code: Any) -> Any:
        return _block(
            code,
            _diagonal_blocks(code.encoding_matrix, self.num_clusters)[0],
            _diagonal_blocks(code.assignment, self.num_clusters)[0],
            code.target.reshape(self.num_clusters, -1)[0],
        )

    def weights(self, code: Any, mask: jax.Array) -> jax.Array:
        targets = code.target.reshape(self.num_clusters, -1)
        # Known on the host, a target that is the same for all stays known.
        is_same = isinstance(targets, np.ndarray) and (targets == targets[0]).all()

        def decode(mask, matrix, assignment, target):
            target = targets[0] if is_same else target
            own = _block(code, matrix, assignment, target)
            return self.inner.checked_weights(own, mask)

        size = mask.shape[-1] // self.num_clusters
        weights = jax.vmap(decode, in_axes=(-2, 0, 0, 0), out_axes=-2)(
            mask.reshape(*mask.shape[:-1], self.num_clusters, size),
            _diagonal_blocks(working(code.encoding_matrix), self.num_clusters),
            _diagonal_blocks(jnp.asarray(code.assignment), self.num_clusters),
            working(targets),
        )
        return weights.reshape(*weights.shape[:-2], mask.shape[-1])

    def __str__(self) -> str:
        return f"Clustered({self.inner})"


def _block(code: Any, matrix: Any, assignment: Any, target: Any) -> Any:
    """A code with what one cluster has of these."""
    return dataclasses.replace(
        code,
        encoding_matrix=matrix,
        assignment=assignment,
        target=target,
        required_parts=None,
    )


def _diagonal_blocks(matrix: Any, count: int) -> Any:
    rows, columns = (size // count for size in matrix.shape)
    index = np.arange(count)
    return matrix.reshape(count, rows, count, columns)[index, :, index, :]
