"""What every gradient code is: who holds what, and how it is mixed."""

import dataclasses
from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GradientCode:
    """A gradient code: worker i sends the sum over j of B_ij g_j.

    Made by the constructors in `jaxwgc.codes`; used through the functions of
    `jaxwgc.coding`. It is a pytree: its arrays can be traced, mapped over by
    `jax.vmap` and passed through `jax.jit`, and its integers are static. Codes made
    on the host keep their arrays in NumPy float64 or complex128 until they are used,
    so that their accuracy does not depend on JAX's precision setting.

    Attributes:
      encoding_matrix: B, real or complex of shape (num_workers, num_parts).
      assignment: bool of shape (num_workers, num_parts); True where the worker holds
        the part. B is zero elsewhere.
      target: the weights of the parts that decoding aims at, of shape (num_parts,):
        ones, so that decoding gives the plain sum of the partial gradients, unless
        `jaxwgc.weighted` has set others.
      num_stragglers: s; whichever s workers fail to answer, decoding is exact.
      decoder: `"lagrange"` or `"least_squares"`, how decoding weights are found.
      point_step: for codes evaluated at roots of unity, worker i sits at the point
        exp(2 pi i (point_step * i) / num_workers). None for other codes.
    """

    encoding_matrix: Array
    assignment: Array
    target: Array
    num_stragglers: int = dataclasses.field(metadata={"static": True})
    decoder: str = dataclasses.field(default="least_squares", metadata={"static": True})
    point_step: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_workers(self) -> int:
        """n, the number of workers."""
        return self.encoding_matrix.shape[-2]

    @property
    def num_parts(self) -> int:
        """k, the number of data parts that are coded over."""
        return self.encoding_matrix.shape[-1]

    @property
    def is_complex(self) -> bool:
        """True where messages are complex: two halves of a gradient in one."""
        return np.issubdtype(self.encoding_matrix.dtype, np.complexfloating)

    @property
    def loads(self) -> Array:
        """The number of parts that each worker holds, of shape (num_workers,)."""
        return self.assignment.sum(-1)

    def __repr__(self) -> str:
        return (
            f"GradientCode(num_workers={self.num_workers}, "
            f"num_parts={self.num_parts}, num_stragglers={self.num_stragglers}, "
            f"decoder={self.decoder!r})"
        )
