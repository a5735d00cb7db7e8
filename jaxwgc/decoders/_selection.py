"""Decoders with equal weights for all responses, or for a selection of them."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import product, scale_of, working
from jaxwgc._common.pytrees import Static
from jaxwgc.decoders._decoder import Array, Decoder


class OneStep(Decoder):
    """Equal weights for all responses, scaled to be unbiased.

    For codes with about equally many copies of each part.

    Attributes:
      scale: Sum of the weights, or each weight.
      shared: Whether `scale` is the sum, divided among the responses.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, False, False, True])
      >>> jaxwgc.decoding(code, received, jaxwgc.decoders.OneStep).weights
      Array([[1., 0., 0., 1.]], dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017.
    """

    scale: ArrayLike
    shared: Static[bool] = True

    needs: ClassVar[str] = "with equal column sums, such as codes.bernoulli"
    is_exact: ClassVar[bool] = False

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.check_number("scale", self.scale)
        validation.check_bool("shared", self.shared)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        weight = jnp.asarray(self.scale, jnp.result_type(float))
        if self.shared:
            weight = weight / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        return jnp.where(mask, weight, 0)[..., None, :]


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
      >>> jaxwgc.decoding(code, received, jaxwgc.decoders.Group).weights
      Array([[1., 1., 0., 0.]], dtype=float32)

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
        array_validation.as_array(
            "groups",
            self.groups,
            "integers",
            num_families="any",
            num_workers=len(matrix),
        )

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _first_responses(mask, working(self.groups), matrix, target)


@jax.jit
def _first_responses(
    mask: jax.Array, groups: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """Returns weights of 1 for the first response of each group of the best family."""
    num_workers = mask.shape[-1]
    dtype = jnp.result_type(float)
    member = groups >= 0
    is_equal = groups[:, :, None] == groups[:, None, :]
    same = (is_equal & member[:, :, None]).any(axis=0)
    order = jnp.arange(num_workers)
    earlier = same & (order[:, None] < order)
    responses = mask.astype(dtype)
    first = mask & (product(responses, earlier.astype(dtype)) == 0)
    # The lost part of the target decides, because it is exactly zero for a complete
    # family. The covered part would be a rounded sum.
    silent = product(responses, same.astype(dtype)) == 0
    leader = ~earlier.any(axis=0)
    sizes = jnp.abs(target[0]) / scale_of(target)
    worth = product((matrix != 0).astype(dtype), sizes**2)
    worth_of_silent = jnp.where(silent & leader, worth, 0)
    lost = product(worth_of_silent, member.T.astype(dtype))
    chosen = member[jnp.argmin(lost, axis=-1)]
    return jnp.where(first & chosen, 1, 0).astype(dtype)[..., None, :]


class OneCopy(Decoder):
    """Sums one copy of each part: weights are 0 or 1.

    The first copy that has arrived is taken. Only parts that no worker has finished are
    lost.

    Attributes:
      copies: Messages that are copies of each part, int (num_parts, num_copies), in
        the order in which they are preferred.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.replicated(2, copies=2)
      >>> code.decoders[0].copies
      array([[0, 3],
             [2, 1]])
      >>> jaxwgc.decoding(code, finished=jnp.array([1, 2])).weights
      Array([[1., 0., 1., 0.]], dtype=float32)

    References:
      Ramamoorthy, Meng, Girimaji, "Leveraging partial stragglers within gradient
      coding", NeurIPS 2024, arXiv:2405.19509, also decodes from the parts that slow
      workers have finished. Here, each part is taken from a single worker, so that all
      weights are 0 or 1.
    """

    copies: Array

    needs: ClassVar[str] = "with one part per message, such as codes.replicated"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.as_array(
            "copies",
            self.copies,
            "integers",
            num_parts=matrix.shape[1],
            num_copies="any",
        )

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _first_copies(mask, jnp.asarray(self.copies))

    def decodes(
        self, matrix: Array, target: Array, mask: jax.Array, tolerance: ArrayLike
    ) -> jax.Array:
        lost = ~mask[..., self.copies].any(-1)
        sizes = (jnp.asarray(target[0]) / scale_of(target)) ** 2
        return product(lost.astype(sizes.dtype), sizes) <= tolerance**2 * sizes.sum()


@jax.jit
def _first_copies(mask: jax.Array, copies: jax.Array) -> jax.Array:
    """Returns weights of 1 for the first copy of each part that has arrived."""
    is_there = mask[..., copies]
    is_first = is_there & (is_there.cumsum(axis=-1) == 1)
    zeros = jnp.where(mask, jnp.zeros((), jnp.result_type(float)), 0)
    return zeros.at[..., copies].set(is_first)[..., None, :]
