"""Iterative block leverage: a new sample of parts at every step, coded and decoded."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _updates, _validation, sketching
from jaxwgc.aggregate import coded_aggregate, make_aggregator
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.gradients import decoded_value_and_grad
from jaxwgc.stragglers import StragglerModel

__all__ = ["BlockLeverageState", "block_leverage_aggregate", "sampled_value_and_grad"]


class BlockLeverageState(NamedTuple):
    """State of `block_leverage_aggregate`.

    Attributes:
      key: PRNG key for the samples to come, of the kind that was given.
      indices: int32 (k,), the parts of the last sample.
      weights: (k,), what their partial gradients were multiplied with; 0 for a slot
        that was not used.
      coded: the `jaxwgc.CodedAggregateState` of the code and its stragglers.
    """

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

    Every update draws k of the K parts, multiplies their partial gradients so that
    their sum is an unbiased estimate of the sum over all K parts, and hands these to
    `jaxwgc.coded_aggregate`, with a code over k parts. The one-shot sketch
    (`jaxwgc.sketching.weighted_parts`) draws once, and converges to the solution of the
    sampled problem; a new sample at every step makes this stochastic gradient descent
    on the whole problem, with the sampling by leverage scores as its variance
    reduction.

    It takes the partial gradients of all parts and uses k of them: for a simulation or
    where they are there anyway. `jaxwgc.sampled_value_and_grad` computes those of the
    sampled parts only.

    Args:
      code: a gradient code over the k slots of the sample: k = code.num_parts.
      model: a straggler model.
      key: PRNG key of either kind.
      probabilities: Π, (K,), such as `jaxwgc.sketching.partition_probabilities`;
        normalised to sum to 1. A part of probability 0 is never used. Where they are
        traced and wrong, or too few are positive, the result is NaN.
      num_draws: the number q of draws with replacement in a sample, with
        min(q, K) = k; slots that are not used have the weight 0. By default, parts are
        drawn until k + 1 different ones have been seen and the last of them is dropped
        (`jaxwgc.sketching.drop_last_distinct`), so that all k slots are used.
      options: as for `jaxwgc.coded_aggregate`.

    Returns:
      An `optax.experimental.aggregating.Aggregator`; updates have a leading axis of K.
      Integers and bools become the default float. Extra arguments of `update` are those
      of `jaxwgc.coded_aggregate`. Its state is a `BlockLeverageState`.

    Raises:
      ValueError: where k does not go with num_draws or with the number of positive
        probabilities, another argument breaks its rule, or (at `update`) a leaf's
        leading axis is not K.
      TypeError: where an argument has the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc, optax
      >>> code = jaxwgc.codes.reed_solomon(num_workers=6, num_parts=3, replication=4)
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
      The paper's section 3.2; Charalambides, Pilanci and Hero, "Gradient coding with
      iterative block leverage score sampling", IEEE Trans. Inf. Theory 70 (2024), for a
      new sample at every step.
    """
    _validation.check_key(key)
    sample_key, coded_key = jax.random.split(key)
    inner = coded_aggregate(code, model, coded_key, **options)
    num_parts, draw = _sampler(code, probabilities, num_draws)

    def init(params):
        return BlockLeverageState(
            # A copy, so that donating the state leaves the next `init` alone.
            key=jnp.array(sample_key, copy=True),
            indices=jnp.zeros(code.num_parts, jnp.int32),
            weights=jnp.zeros_like(jax.eval_shape(draw, key)[1]),
            coded=inner.init(params),
        )

    def update(updates, state, params=None, **extra):
        shapes = state.coded.shapes
        _updates.check_updates(updates, num_parts, "K", params, shapes)
        updates = jax.tree.map(jnp.asarray, updates)
        sampled, next_key, indices, weights = sample(updates, state.key)
        decoded, coded = inner.update(sampled, state.coded, params, **extra)
        decoded = jax.tree.map(
            lambda leaf, like: leaf.astype(like.dtype), decoded, updates
        )
        return decoded, BlockLeverageState(next_key, indices, weights, coded)

    # One program, also outside of jit.
    @functools.partial(jax.jit, inline=True)
    def sample(updates, key):
        next_key, step_key = jax.random.split(key)
        indices, weights = draw(step_key)
        weigh = functools.partial(_weighted_rows, indices, weights)
        return jax.tree.map(weigh, updates), next_key, indices, weights

    return make_aggregator(init, update)


def _weighted_rows(indices, weights, leaf):
    # In at least float32, as codes work in.
    rows = leaf[indices].astype(jnp.result_type(leaf.dtype, jnp.float32))
    return rows * jnp.expand_dims(weights.astype(rows.dtype), range(1, rows.ndim))


def sampled_value_and_grad(
    loss: Callable[..., Any],
    code: GradientCode,
    probabilities: jax.typing.ArrayLike,
    *,
    num_draws: int | None = None,
    has_aux: bool = False,
    decoder: DecoderLike = None,
) -> Callable:
    """The decoded gradient of a new sample of parts, in one backward pass over them.

    As `jaxwgc.decoded_value_and_grad`, for k parts that are drawn by the key of the
    step and weighted so that value and gradient are unbiased estimates of those of the
    sum over all K parts. Only the sampled parts are touched: a step costs k / K of a
    full one.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the rows of the part.
      code: a gradient code over the k slots of the sample: k = code.num_parts.
      probabilities: as for `jaxwgc.block_leverage_aggregate`.
      num_draws: as for `jaxwgc.block_leverage_aggregate`.
      has_aux: whether loss returns `(scalar, aux)`.
      decoder: as for `jaxwgc.decoding_weights`.

    Returns:
      A function of `params`, `parts` (leaves (K, ...)), `key` and `received` (as for
      `jaxwgc.decoding_weights`, without batch axes). It returns `(value, gradient)`, a
      scalar and a pytree like params. With has_aux, `((value, aux), gradient)`, leaves
      of aux (k, ...), for the sampled parts. With too few answers both are those of
      least-squares decoding, in which a value need not be a sum of losses any more.

    Raises:
      ValueError: where k does not go with num_draws or with the number of positive
        probabilities, or (when called) the leading axis of parts is not K or received
        has the wrong shape.
      TypeError: where code is no code, key no key, received not bool or loss no scalar.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> loss = lambda params, part: jnp.sum((part @ params["w"]) ** 2)
      >>> parts = jnp.arange(24.0).reshape(6, 2, 2)
      >>> scores = jaxwgc.sketching.leverage_scores(parts.reshape(12, 2))
      >>> probabilities = jaxwgc.sketching.partition_probabilities(scores, num_parts=6)
      >>> code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 3, num_stragglers=1)
      >>> step = jaxwgc.sampled_value_and_grad(loss, code, probabilities)
      >>> received = jnp.array([True, False, True])
      >>> value, gradient = step({"w": jnp.ones(2)}, parts, jax.random.key(1), received)
      >>> print(gradient["w"].shape)
      (2,)

    References:
      The paper's sections 2.2 and 3.2; Charalambides, Pilanci and Hero, "Gradient
      coding with iterative block leverage score sampling", IEEE Trans. Inf. Theory 70
      (2024).
    """
    GradientCode.check(code)
    num_parts, draw = _sampler(code, probabilities, num_draws)

    def weighted_loss(params, weighted_part):
        part, weight = weighted_part
        outputs = loss(params, part)
        if has_aux:
            value, aux = outputs
            return value * weight.astype(value.dtype), aux
        return jax.tree.map(lambda value: value * weight.astype(value.dtype), outputs)

    decoded = decoded_value_and_grad(weighted_loss, code, has_aux, decoder)

    def sampled(params, parts, key, received):
        _validation.check_leading_axis("parts", parts, num_parts, "K")
        indices, weights = draw(_validation.check_key(key))
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], parts)
        return decoded(params, (chosen, weights), received)

    return sampled


def _sampler(
    code: GradientCode, probabilities: Any, num_draws: int | None
) -> tuple[int, Callable[[jax.Array], tuple[jax.Array, jax.Array]]]:
    """K, and a function of a key that gives the sampled parts and their weights."""
    # Drawn from without a value, for the checks of probabilities.
    like = jax.eval_shape(
        lambda key: sketching.sample_partitions(key, probabilities, num_draws=1),
        jax.random.key(0),
    )
    num_parts, num_slots = np.shape(probabilities)[0], code.num_parts
    if num_draws is None:
        num_positive = num_parts
        if not _validation.is_traced(probabilities):
            values = np.asarray(probabilities, like.probabilities.dtype)
            num_positive = int((values > 0).sum())
        rule = f"be less than {num_positive}, the number of positive probabilities"
        _validation.require(num_slots < num_positive, "code.num_parts", rule, num_slots)
    else:
        num_draws = _validation.check_int("num_draws", num_draws, minimum=1)
        least = min(num_draws, num_parts)
        rule = f"be {least}, the smaller of num_draws and the number of probabilities"
        _validation.require(num_slots == least, "code.num_parts", rule, num_slots)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if num_draws is None:
            sample = sketching.sample_partitions(
                key, probabilities, num_distinct=num_slots + 1
            )
            # Fewer where traced probabilities are wrong, or too few of them positive.
            valid = jnp.all(sample.counts > 0)
            sample = sketching.drop_last_distinct(sample)
        else:
            sample = sketching.sample_partitions(
                key, probabilities, num_draws=num_draws
            )
            valid = sample.num_draws > 0
        weights = sample.counts * sketching.rescaling_factors(sample) ** 2
        # A zero gradient would look like the end of the descent.
        return sample.indices, jnp.where(valid, weights, jnp.nan)

    return num_parts, draw
