"""Group decoding: the first answer of each group of workers that send the same."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc._targets import target_scale
from jaxwgc.decoders._decoder import Array, Decoder


class Group(Decoder):
    """The sum of the first answer of each group, exact to the last bit.

    In the family of groups that loses least: exact where every group of one family has
    an answer; otherwise the parts of the groups without one are lost, and no others.

    Attributes:
      groups: int (num_families, num_workers). Workers of one group hold the same parts
        and send the same message; the groups of a family hold every part once. A
        worker is in one family, and -1 in the others.

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
        "of groups of workers that send the same, such as codes.fractional_repetition"
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
            # Parts that do not count may be held by anybody.
            covered = (matrix[first[names >= 0]] != 0).sum(0)[target[0] != 0]
            is_right = np.all((matrix == rows)[is_member]) and np.all(covered == 1)
            self.check_matrix(is_right, matrix)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _first_answers(mask, self.groups, matrix, target)


@jax.jit
def _first_answers(mask, groups, matrix, target):
    num_workers = mask.shape[-1]
    dtype = jnp.result_type(float)
    member = groups >= 0
    same = (groups[:, :, None] == groups[:, None, :]) & member[:, :, None]
    same = same.any(axis=0)
    order = jnp.arange(num_workers)
    earlier = same & (order[:, None] < order)
    answers = mask.astype(dtype)
    first = mask & (product(answers, earlier.astype(dtype)) == 0)
    # By what is lost, which is exactly zero for a whole family, not by what is
    # covered, whose sum is rounded.
    silent = product(answers, same.astype(dtype)) == 0
    leader = ~earlier.any(axis=0)
    sizes = jnp.abs(target[0]) / target_scale(target)
    worth = product((matrix != 0).astype(dtype), sizes**2)
    lost = product(jnp.where(silent & leader, worth, 0), member.T.astype(dtype))
    chosen = member[jnp.argmin(lost, axis=-1)]
    return jnp.where(first & chosen, 1, 0).astype(dtype)[..., None, :]
