"""Group decoding: one response from each group of workers with equal messages."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc._targets import target_scale
from jaxwgc.decoders._decoder import Array, Decoder


class Group(Decoder):
    """Sums the first response of each group: weights are 0 or 1.

    Uses the family of groups that loses least. Decoding is exact if every group of one
    family has a response. Otherwise exactly the parts of groups without one are lost.

    Attributes:
      groups: Group of each worker, int (num_families, num_workers). Workers of a group
        hold the same parts and send equal messages; the groups of a family hold every
        part once. A worker belongs to one family, and is -1 in the others.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> code.decoders[0].groups
      array([[0, 1, 0, 1]])
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding_weights(code, received, jaxwgc.decoders.Group)
      Array([1., 1., 0., 0.], dtype=float32)

    References:
      Tandon, Lei, Dimakis, Karampatziakis, "Gradient coding: avoiding stragglers in
      distributed learning", ICML 2017, section 4 (fractional repetition).
    """

    groups: Array

    needs: ClassVar[str] = (
        "of groups of workers with equal messages, such as codes.fractional_repetition"
    )

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        sizes = {"num_families": "any", "num_workers": len(matrix)}
        groups = _validation.as_array("groups", self.groups, "integers", **sizes)
        if any(isinstance(array, jax.Array) for array in (groups, matrix, target)):
            return
        for family in np.asarray(groups):
            names, first, which = np.unique(
                family, return_index=True, return_inverse=True
            )
            rows = matrix[first][which]
            is_member = family >= 0
            # Parts of weight zero may belong to any group.
            covered = (matrix[first[names >= 0]] != 0).sum(0)[target[0] != 0]
            is_right = np.all((matrix == rows)[is_member]) and np.all(covered == 1)
            self.check_matrix(is_right, matrix)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _first_responses(mask, self.groups, matrix, target)


@jax.jit
def _first_responses(mask, groups, matrix, target):
    num_workers = mask.shape[-1]
    dtype = jnp.result_type(float)
    member = groups >= 0
    same = (groups[:, :, None] == groups[:, None, :]) & member[:, :, None]
    same = same.any(axis=0)
    order = jnp.arange(num_workers)
    earlier = same & (order[:, None] < order)
    responses = mask.astype(dtype)
    first = mask & (product(responses, earlier.astype(dtype)) == 0)
    # Chosen by the lost part of the target, which is exactly zero for a complete
    # family; the covered part is a rounded sum.
    silent = product(responses, same.astype(dtype)) == 0
    leader = ~earlier.any(axis=0)
    sizes = jnp.abs(target[0]) / target_scale(target)
    worth = product((matrix != 0).astype(dtype), sizes**2)
    lost = product(jnp.where(silent & leader, worth, 0), member.T.astype(dtype))
    chosen = member[jnp.argmin(lost, axis=-1)]
    return jnp.where(first & chosen, 1, 0).astype(dtype)[..., None, :]
