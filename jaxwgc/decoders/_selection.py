"""Decoders with equal weights for all responses, or for a selection of them."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import (
    A,
    array_module,
    on_host_or_compiled,
    product,
    scale_of,
    with_entries,
    with_minima,
    working,
)
from jaxwgc._common.pytrees import Static
from jaxwgc.decoders._decoder import Array, Decoder


class OneStep(Decoder):
    """Decodes by equal weights for all responses, scaled to be unbiased.

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
    """Decodes by the first response of each group of equal messages.

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
    runs_on_host: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.as_array(
            "groups",
            self.groups,
            "integers",
            num_families="any",
            num_workers=len(matrix),
        )

    def weights(self, matrix: Array, target: Array, mask: A) -> A:
        return _first_responses(mask, working(self.groups), matrix, target)

    def decoding_time(
        self, matrix: Array, target: Array, times: A, tolerance: ArrayLike
    ) -> A:
        return _time_of_groups(times, tolerance, self.groups, matrix, target)


@on_host_or_compiled
def _first_responses(mask: A, groups: Array, matrix: Array, target: Array) -> A:
    """Selects the first response of each group, in the family that recovers most."""
    xp: Any = array_module(mask)
    num_workers = mask.shape[-1]
    dtype = jnp.result_type(float)
    member = groups >= 0
    is_equal = groups[:, :, None] == groups[:, None, :]
    same = (is_equal & member[:, :, None]).any(axis=0)
    order = np.arange(num_workers)
    earlier = same & (order[:, None] < order)
    responses = mask.astype(dtype)
    first = mask & (product(responses, earlier.astype(dtype)) == 0)
    # Families are compared by the lost part of the target, which is exactly zero for a
    # complete family. The covered part is rounded.
    silent = product(responses, same.astype(dtype)) == 0
    leader = ~earlier.any(axis=0)
    worth = _worth_of_messages(matrix, target)
    worth_of_silent = xp.where(silent & leader, worth, 0)
    lost = product(worth_of_silent, member.T.astype(dtype))
    chosen = member[xp.argmin(lost, axis=-1)]
    return xp.where(first & chosen, 1, 0).astype(dtype)[..., None, :]


@on_host_or_compiled
def _time_of_groups(
    times: A, tolerance: ArrayLike, groups: Array, matrix: Array, target: Array
) -> A:
    """Returns the time at which enough groups of a family have a response."""
    xp: Any = array_module(times)
    num_workers = times.shape[-1]
    never = xp.full((*times.shape[:-1], num_workers + 1), np.inf, times.dtype)
    nothing = xp.zeros(num_workers + 1, times.dtype)
    worth = _worth_of_messages(matrix, target)
    ends = []
    for groups_of_family in groups:
        # The last place is for workers of other families.
        is_member = groups_of_family >= 0
        places = xp.where(is_member, groups_of_family, num_workers)
        first_times = with_minima(never, places, times)[..., :-1]
        sizes = with_entries(nothing, places, worth)[:-1]
        ends.append(_time_until_covered(first_times, sizes, tolerance))
    return xp.stack(ends).min(axis=0)


def _worth_of_messages(matrix: Array, target: Array) -> Array:
    """Sums the squared weights of the parts in each message.

    Returns (n,).
    """
    sizes = _sizes_of_parts(target)
    return product((matrix != 0).astype(sizes.dtype), sizes)


def _sizes_of_parts(target: Array) -> Array:
    """Returns squared weights of the parts, relative to the largest.

    Returns (k,).
    """
    return (target[0] / scale_of(target)) ** 2


def _time_until_covered(times: Any, sizes: Array, tolerance: ArrayLike) -> Any:
    """Returns the time at which the missing parts are within the tolerance.

    The sizes of missing parts are then at most tolerance² of their sum.

    Args:
      times: When each of several things arrives, (..., number).
      sizes: Their sizes, of a shape that broadcasts with times.
      tolerance: Bound of the relative residual.

    Returns:
      (...), infinity if never.
    """
    xp: Any = array_module(times)
    # Sizes vary with the mesh axes of times, as in `varying_with`.
    sizes = xp.where(times >= 0, sizes, sizes)
    times = xp.broadcast_to(times, sizes.shape)
    order = xp.argsort(times, axis=-1)
    in_order = xp.take_along_axis(times, order, axis=-1)
    sizes_in_order = xp.take_along_axis(sizes, order, axis=-1)
    # Sums begin at the last message, so that the missing part is exactly zero when all
    # have arrived.
    from_here = xp.flip(xp.cumsum(xp.flip(sizes_in_order, -1), axis=-1), -1)
    missing = xp.concatenate([from_here[..., 1:], 0 * from_here[..., :1]], axis=-1)
    is_enough = missing <= tolerance**2 * from_here[..., :1]
    return xp.where(is_enough, in_order, np.inf).min(axis=-1)


class OneCopy(Decoder):
    """Decodes by one copy of each part that has arrived.

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
    runs_on_host: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.as_array(
            "copies",
            self.copies,
            "integers",
            num_parts=matrix.shape[1],
            num_copies="any",
        )

    def weights(self, matrix: Array, target: Array, mask: A) -> A:
        return _first_copies(mask, self.copies)

    def decoding_time(
        self, matrix: Array, target: Array, times: A, tolerance: ArrayLike
    ) -> A:
        return _time_of_copies(times, tolerance, self.copies, target)

    def decodes(
        self, matrix: Array, target: Array, mask: jax.Array, tolerance: ArrayLike
    ) -> jax.Array:
        lost = ~mask[..., self.copies].any(-1)
        sizes = working(_sizes_of_parts(target))
        return product(lost.astype(sizes.dtype), sizes) <= tolerance**2 * sizes.sum()


@on_host_or_compiled
def _first_copies(mask: A, copies: Array) -> A:
    """Selects the first copy of each part that has arrived."""
    xp: Any = array_module(mask)
    # Parts are the last axis, so that the few copies are added as long vectors.
    in_turn = copies.T
    is_there = mask[..., in_turn]
    is_first = is_there & (is_there.cumsum(axis=-2, dtype=xp.int32) == 1)
    zeros = xp.where(mask, xp.zeros((), jnp.result_type(float)), 0)
    return with_entries(zeros, in_turn, is_first)[..., None, :]


@on_host_or_compiled
def _time_of_copies(times: A, tolerance: ArrayLike, copies: Array, target: Array) -> A:
    """Returns the time at which enough parts have a copy that has arrived."""
    sizes = _sizes_of_parts(target)
    return _time_until_covered(times[..., copies.T].min(axis=-2), sizes, tolerance)
