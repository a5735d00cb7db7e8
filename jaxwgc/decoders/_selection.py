"""Decoders with equal weights for all responses, or for a selection of them."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import product, scale_of, working
from jaxwgc._common.bisection import first_time
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

    Parts are assigned one after the other. Each is taken from the worker with the
    fewest parts so far among those that have finished it. Parts with a single copy
    count from the start. Only parts that no worker has finished are lost.

    Attributes:
      copies: Messages that are copies of each part, int (num_parts, num_copies); the
        first wins in a tie.
      num_workers: n; each worker has equally many adjacent messages.

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
    num_workers: Static[int]

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
        validation.check_int("num_workers", self.num_workers, minimum=1)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        return _lightest(mask, jnp.asarray(self.copies), self.num_workers)

    def decodes(
        self, matrix: Array, target: Array, mask: jax.Array, tolerance: ArrayLike
    ) -> jax.Array:
        lost = ~mask[..., self.copies].any(-1)
        sizes = (jnp.asarray(target[0]) / scale_of(target)) ** 2
        return product(lost.astype(sizes.dtype), sizes) <= tolerance**2 * sizes.sum()

    def decoding_time(
        self, matrix: Array, target: Array, times: jax.Array, tolerance: ArrayLike
    ) -> jax.Array:
        first_copies = times[self.copies].min(-1)
        sizes = (jnp.asarray(target[0]) / scale_of(target)) ** 2

        def is_enough(now):
            missing = jnp.where(first_copies <= now, 0, sizes)
            return missing.sum() <= tolerance**2 * sizes.sum()

        return first_time(is_enough, first_copies.max())


@functools.partial(jax.jit, static_argnames="num_workers")
def _lightest(mask: jax.Array, copies: jax.Array, num_workers: int) -> jax.Array:
    """Returns weights of 1 for the copies of parts on the workers with fewest parts."""
    dtype = jnp.result_type(float)
    num_parts, num_copies = copies.shape
    num_messages = mask.shape[-1]
    # Index of each message in the flattened `copies`. Empty messages have an index out
    # of range, for which `jnp.take` gives zero.
    indices = jnp.arange(copies.size).reshape(copies.shape)
    places = jnp.full(num_messages, copies.size).at[copies].set(indices)

    def by_message(by_copy):
        flat = by_copy.reshape(*mask.shape[:-1], copies.size)
        return jnp.take(flat, places, axis=-1, mode="fill", fill_value=0)

    is_there = mask[..., copies]
    is_alone = is_there & (is_there.sum(-1, keepdims=True) == 1)
    per_worker = num_messages // num_workers
    batch = mask.shape[:-1]
    burdens = by_message(is_alone.astype(jnp.int32))
    burdens = burdens.reshape(*batch, num_workers, per_worker).sum(-1)

    def choose(burdens, part):
        workers, is_there, is_alone = part
        candidates = jnp.where(is_there, burdens[..., workers], num_messages)
        lightest = jnp.argmin(candidates, axis=-1, keepdims=True)
        chosen = is_there & (jnp.arange(num_copies) == lightest)
        return burdens.at[..., workers].add(chosen & ~is_alone), chosen

    is_there = jnp.moveaxis(is_there, -2, 0)
    is_alone = jnp.moveaxis(is_alone, -2, 0)
    workers = copies // per_worker
    _, chosen = jax.lax.scan(choose, burdens, (workers, is_there, is_alone))
    chosen = jnp.moveaxis(chosen, 0, -2)
    return by_message(chosen.astype(dtype))[..., None, :]
