"""Gradients of parts that are sampled anew at every step, by leverage scores."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate._coded_aggregate import check_updates, coded_aggregate
from jaxwgc.aggregate._policy import make_aggregator
from jaxwgc.codes import GradientCode
from jaxwgc.gradients import decoded_value_and_grad
from jaxwgc.gradients._gradients import scalar_loss
from jaxwgc.parts import (
    PartitionSample,
    drop_last_distinct,
    rescaling_factors,
    sample_partitions,
)
from jaxwgc.stragglers import StragglerModel


class BlockLeverageState(NamedTuple):
    """Last sample of `block_leverage_aggregate`, and its `coded_aggregate` state."""

    key: jax.Array
    indices: jax.Array
    weights: jax.Array
    coded: Any


def block_leverage_aggregate(
    code: GradientCode,
    model: StragglerModel,
    key: jax.Array,
    probabilities: jax.typing.ArrayLike,
    *,
    num_draws: int | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Aggregates partial gradients of a new sample of parts at every step.

    Every update draws k of the K parts and rescales their partial gradients, so that
    their sum is an unbiased estimate of the sum over all parts. They are passed to
    `jaxwgc.coded_aggregate` with a code over k parts. This is stochastic gradient
    descent on the whole problem, with leverage score sampling to reduce the variance.
    The one-shot sketch (`weighted_parts`) draws once, and converges to
    the solution of the sampled problem.

    The updates are the partial gradients of all parts, of which k are used. To compute
    only the sampled ones, use `jaxwgc.sampled_value_and_grad`.

    Args:
      code: Gradient code over the k slots of the sample: k = code.num_parts.
      model: Straggler model, e.g. `jaxwgc.stragglers.uniform(2)`.
      key: PRNG key of either kind, for samples and stragglers.
      probabilities: Π, (K,), e.g. from `partition_probabilities`;
        normalised to sum to 1. A part of probability 0 is never used. If they are
        traced and invalid, or too few are positive, the result is NaN.
      num_draws: Number q of draws with replacement, with min(q, K) = k; unused slots
        have weight 0. By default, parts are drawn until k + 1 distinct ones have been
        seen, and the last one is dropped (`drop_last_distinct`), so
        that all k slots are used.
      options: Keyword arguments of `jaxwgc.coded_aggregate`, such as `decoding` and
        `undecodable`.

    Returns:
      An `optax.experimental.aggregating.Aggregator`. Updates are floats like params,
      with a leading axis of K. `update` takes the extra arguments of
      `jaxwgc.coded_aggregate`. Its state is a NamedTuple: `key` is for future samples,
      `indices` are the parts of the last sample, int32 (k,), `weights` the factors of
      their partial gradients, (k,), 0 for unused slots, and `coded` is the
      `jaxwgc.CodedAggregateState` of the code and its stragglers.

    Raises:
      ValueError: If k does not match num_draws or the number of positive
        probabilities, another argument is invalid, or (in `update`) the leading axis
        of a leaf is not K.
      TypeError: If an argument has the wrong type, or (in `update`) a leaf is of
        integers or bools.

    Example:
      Three of five parts in each update:

      >>> import jax, jax.numpy as jnp, jaxwgc, optax
      >>> code = jaxwgc.codes.reed_solomon(num_workers=6, num_parts=3, copies=4)
      >>> optimizer = optax.chain(
      ...     jaxwgc.block_leverage_aggregate(
      ...         code,
      ...         jaxwgc.stragglers.uniform(code.num_stragglers),
      ...         jax.random.key(0),
      ...         probabilities=jnp.array([0.4, 0.3, 0.1, 0.1, 0.1]),
      ...     ),
      ...     optax.sgd(0.1),
      ... )
      >>> params = {"w": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> partial_gradients = {"w": jnp.ones((5, 2))}
      >>> update = jax.jit(optimizer.update)
      >>> updates, state = update(partial_gradients, state, params)
      >>> print(updates["w"].shape, state[0].indices.shape)
      (2,) (3,)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.2 (parts drawn by block leverage scores);
      "Gradient coding with iterative block leverage score sampling", by the same
      authors, IEEE Trans. Inf. Theory 70, 2024 (a new sample at every step).
    """
    array_validation.check_key(key)
    sample_key, coded_key = jax.random.split(key)
    inner = coded_aggregate(code, model, coded_key, **options)
    sampler = _PartSampler(code, probabilities, num_draws)

    def init(params: Any) -> BlockLeverageState:
        _, weights_like = jax.eval_shape(sampler.draw, key)
        return BlockLeverageState(
            # The key is copied, because the state may be donated before `init` is
            # called again.
            key=jnp.array(sample_key, copy=True),
            indices=jnp.zeros(code.num_parts, jnp.int32),
            weights=jnp.zeros_like(weights_like),
            coded=inner.init(params),
        )

    def update(updates, state, params=None, **extra):
        shapes = state.coded.shapes
        check_updates(updates, sampler.num_parts, "K", params, shapes)
        sampled, next_key, indices, weights = sample(updates, state.key)
        decoded, coded = inner.update(sampled, state.coded, params, **extra)
        return decoded, BlockLeverageState(next_key, indices, weights, coded)

    # The function is one compiled program, even if the caller does not use jit.
    @functools.partial(jax.jit, inline=True)
    def sample(
        updates: Any, key: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
        next_key, step_key = jax.random.split(key)
        indices, weights = sampler.draw(step_key)
        sampled = jax.tree.map(
            lambda leaf: _weighted_rows(leaf, indices, weights), updates
        )
        return sampled, next_key, indices, weights

    return make_aggregator(init, update)


def _weighted_rows(
    leaf: jax.Array, indices: jax.Array, weights: jax.Array
) -> jax.Array:
    rows = leaf[indices].astype(jnp.result_type(leaf.dtype, jnp.float32))
    weights = jnp.expand_dims(weights.astype(rows.dtype), range(1, rows.ndim))
    return (rows * weights).astype(leaf.dtype)


def sampled_value_and_grad(
    loss: Callable[..., Any],
    code: GradientCode,
    probabilities: jax.typing.ArrayLike,
    *,
    num_draws: int | None = None,
) -> Callable:
    """Returns a function that decodes value and gradient of a new sample of parts.

    Each call needs one backward pass over the k sampled parts: a step costs k / K of a
    full step. The parts are weighted so that value and gradient are unbiased estimates
    of the sum over all K parts.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the rows of the part.
      code: Gradient code over the k slots of the sample: k = code.num_parts.
      probabilities: Π, (K,), e.g. from `partition_probabilities`;
        normalised to sum to 1. A part of probability 0 is never used.
      num_draws: Number q of draws with replacement, with min(q, K) = k. By default,
        parts are drawn until k + 1 distinct ones have been seen, and the last one is
        dropped.

    Returns:
      A function of `params` (pytree of floats), `parts` (pytree with leaves (K, ...)),
      `key` (PRNG key) and `received`, the bool mask (num_workers,) of the workers that
      responded. It returns `(value, gradient)`, a scalar and a pytree like params. With
      too few responses both come from least-squares decoding, and the value may not be
      a sum of losses.

    Raises:
      ValueError: If k does not match num_draws or the number of positive
        probabilities, or (when called) the leading axis of parts is not K or received
        has the wrong shape.
      TypeError: If code is not a GradientCode, key is not a PRNG key, received is not
        bool or loss does not return a scalar.

    Example:
      Three of six parts in each step:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> loss = lambda params, part: jnp.sum((part @ params["w"]) ** 2)
      >>> parts = jnp.arange(24.0).reshape(6, 2, 2)
      >>> scores = jaxwgc.sketching.leverage_scores(parts.reshape(12, 2))
      >>> probabilities = jaxwgc.parts.partition_probabilities(scores, num_parts=6)
      >>> code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 3, num_stragglers=1)
      >>> step = jax.jit(jaxwgc.sampled_value_and_grad(loss, code, probabilities))
      >>> received = jnp.array([True, False, True])
      >>> value, gradient = step({"w": jnp.ones(2)}, parts, jax.random.key(1), received)
      >>> print(gradient["w"].shape)
      (2,)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, sections 2.2 and 3.2; "Gradient coding with iterative
      block leverage score sampling", by the same authors, IEEE Trans. Inf. Theory 70,
      2024.
    """
    GradientCode.check(code)
    sampler = _PartSampler(code, probabilities, num_draws)
    checked = scalar_loss(loss)

    def weighted_loss(params, weighted_part):
        part, weight = weighted_part
        value = checked(params, part)
        return value * weight.astype(value.dtype)

    decoded = decoded_value_and_grad(weighted_loss, code)

    def sampled(params, parts, key, received):
        array_validation.check_leading_axis("parts", parts, sampler.num_parts, "K")
        indices, weights = sampler.draw(array_validation.check_key(key))
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], parts)
        return decoded(params, (chosen, weights), received)

    return sampled


class _PartSampler:
    """Sampler of parts, with weights that make the sum over a sample unbiased.

    Args:
      code: Gradient code over the slots of a sample.
      probabilities: Π, (K,).
      num_draws: The number of draws, or None to draw until all slots are used.

    Attributes:
      num_parts: K.
    """

    def __init__(
        self,
        code: GradientCode,
        probabilities: jax.typing.ArrayLike,
        num_draws: int | None,
    ):
        def draw_one(key: jax.Array) -> PartitionSample:
            return sample_partitions(key, probabilities, num_draws=1)

        # Tracing one draw checks the probabilities, and computes nothing.
        jax.eval_shape(draw_one, jax.random.key(0))
        self.num_parts = np.shape(probabilities)[0]
        self._probabilities = probabilities
        self._num_slots = code.num_parts
        self._num_draws = num_draws
        if num_draws is None:
            num_positive = self.num_parts
            if not array_validation.is_traced(probabilities):
                num_positive = int(np.sum(np.asarray(probabilities) > 0))
            if code.num_parts >= num_positive:
                raise ValueError(
                    f"code.num_parts must be less than {num_positive}, the number of "
                    f"positive probabilities; got {code.num_parts}"
                )
        else:
            validation.check_int("num_draws", num_draws, minimum=1)
            num_slots = min(num_draws, self.num_parts)
            if code.num_parts != num_slots:
                raise ValueError(
                    f"code.num_parts must be {num_slots}, the smaller of num_draws and "
                    f"the number of probabilities; got {code.num_parts}"
                )

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the indices of drawn parts, and weights for an unbiased sum."""
        if self._num_draws is None:
            sample = sample_partitions(
                key, self._probabilities, num_distinct=self._num_slots + 1
            )
            # A count of 0 means that fewer parts were drawn: traced probabilities are
            # invalid, or too few of them are positive.
            valid = jnp.all(sample.counts > 0)
            sample = drop_last_distinct(sample)
        else:
            sample = sample_partitions(
                key, self._probabilities, num_draws=self._num_draws
            )
            valid = sample.num_draws > 0
        weights = sample.counts * rescaling_factors(sample) ** 2
        # Weights of invalid draws are NaN: a zero gradient would look like convergence.
        return sample.indices, jnp.where(valid, weights, jnp.nan)
