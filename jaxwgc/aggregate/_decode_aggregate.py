"""Optax transformation that decodes the messages of real workers."""

import functools

import jax
import optax

from jaxwgc import coding
from jaxwgc._common import array_validation, validation
from jaxwgc._common.flat_vectors import raveled_size
from jaxwgc.aggregate._options import DecodingOptions
from jaxwgc.aggregate._policy import (
    ORDER,
    DecodingPolicy,
    check_unmasked,
    make_aggregator,
)
from jaxwgc.codes import GradientCode
from jaxwgc.coding._projection import key_from


def decode_aggregate(
    code: GradientCode,
    *,
    decoding: DecodingOptions = DecodingOptions(),
    undecodable: str = "least_squares",
    on_request: bool = False,
    memory: bool = False,
    debias: str | float | None = None,
    correct_errors: bool = False,
    noise: float = 0.0,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Aggregates the messages of real workers; `coded_aggregate` simulates workers.

    Put it first in `optax.chain`. Its updates are the messages of the workers, as
    `jaxwgc.encode` returns them: row i is the result of `jaxwgc.coding.form_messages`
    on worker i. Rows of workers that did not respond may hold anything, including NaN.
    It returns a pytree like params. Wrappers such as `optax.MultiSteps` go around the
    transformations behind it, not around the chain.

    `update` needs `received`, the bool mask (num_workers,) of the workers that
    responded, or `finished`, the number of parts that each worker has finished, int
    (num_workers,). The state sums up the optional `elapsed`, the duration of the round.

    Args:
      code: Gradient code.
      decoding: Options of decoding: decoder, tolerance, and the dtype that messages
        were rounded to when sent.
      undecodable: Result of a round that cannot be decoded exactly: `"least_squares"`
        takes the nearest gradient that the responses give, `"skip"` a zero update.
      on_request: Whether each worker has sent one weighted sum of its messages, with
        the weights in `Decoding.requests`. Updates are then the results of
        `jaxwgc.coding.requested_sum`, (num_workers, length), and `finished` says how
        many messages could be requested.
      memory: Whether to store the newest message of each worker, and to use it for a
        missing one, by the formula of `coded_aggregate`; not on request. `update` then
        takes `late`, bool (num_workers,): workers with rows of an earlier round. These
        rows are stored, but not decoded.
      debias: Correction for lost parts. `"share"` divides the gradient by the fraction
        recovered, which is 1 in exact rounds. A number is the mean weight of partial
        gradients, and divides the gradient of every round. Not with memory.
      correct_errors: Whether to locate corrupted messages in every round, as
        `jaxwgc.locate_errors` does, and to exclude them; not on request or with memory.
      noise: Difference of honest copies of a message, relative to its norm, if it is
        larger than rounding. Only with correct_errors.
      key: PRNG key for the projections that locate errors. By default it is derived
        from the messages, so that it is unknown before they are sent. A secret key also
        protects against workers that collude.

    Returns:
      An `optax.experimental.aggregating.Aggregator`. Updates are one array
        (num_messages, length), real or complex like the code, of any precision; they
        are decoded in at least float32. Its state is a `CodedAggregateState`.

    Raises:
      ValueError: If a choice is unknown, a number is negative, the decoder does not fit
        the code, or options exclude each other: memory with on_request, debias,
        correct_errors or "skip". In `update`: if updates are not messages for a
        gradient like params, params or `received` are not given, or `received` has the
        wrong shape.
      TypeError: If the code, the messages, params or `received` have the wrong type.

    Example:
      A step without the message of worker 1:

      >>> import jax.numpy as jnp, jaxwgc, optax
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> optimizer = optax.chain(jaxwgc.decode_aggregate(code), optax.sgd(0.1))
      >>> params = {"w": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> partial_gradients = {"w": jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 5.0]])}
      >>> messages = jaxwgc.encode(code, partial_gradients).at[1].set(jnp.nan)
      >>> received = jnp.array([True, False, True])
      >>> updates, state = optimizer.update(messages, state, params, received=received)
      >>> updates["w"].round(3)
      Array([-0.6, -0.5], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2.
    """
    GradientCode.check(code)
    if key is not None:
        array_validation.check_key(key)
        if not correct_errors:
            raise ValueError(
                "key= is used only with correct_errors=True; got a key and "
                "correct_errors=False"
            )
    policy = DecodingPolicy(
        code,
        decoding,
        undecodable=undecodable,
        memory=memory,
        debias=debias,
        correct_errors=correct_errors,
        noise=noise,
        is_simulated=False,
    )
    if validation.check_bool("on_request", on_request):
        code.check_requests()
        if memory:
            raise ValueError(
                "memory=True cannot be used with on_request=True, since workers send "
                "sums of messages; got True for both"
            )
        if correct_errors:
            raise ValueError(
                "correct_errors=True cannot be used with on_request=True, since "
                "workers send sums of messages; got True for both"
            )

    def update(updates, state, params=None, **extra):
        policy.check_state(state)
        arrived, elapsed = policy.observed(**extra)
        if not jax.tree_util.all_leaves([updates]):
            raise ValueError(
                "updates must be one array, the messages of all workers; got "
                f"{jax.tree.structure(updates)}{ORDER}"
            )
        array_validation.check_dtypes("messages", updates, "numbers or bools")
        if params is None:
            raise ValueError(
                "params must be given to update, since the gradient has their shapes; "
                "got None"
            )
        check_unmasked(params)
        if memory:
            policy.check_params(state, params)
        return aggregate(updates, state, params, arrived, elapsed)

    # The function is one compiled program, even if the caller does not use jit.
    @functools.partial(jax.jit, inline=True)
    def aggregate(messages, state, params, arrived, elapsed):
        if correct_errors:
            location_key = key_from(messages)
            if key is not None:
                location_key = jax.random.fold_in(key, jax.random.bits(location_key))
            arrived, state = policy.without_errors(
                arrived, messages, state, location_key
            )
        round_decoding = arrived.decode(code, policy.decoder)
        if on_request:
            shape = (code.num_workers, raveled_size(params))
            validation.check_shape("updates", messages, "(num_workers, length)", shape)
            gradient = coding.decode_sums(messages, params)
        else:
            gradient = round_decoding.combine(messages, params, policy.message_dtype)
        return policy.finish(
            arrived, round_decoding, gradient, elapsed, state, messages
        )

    return make_aggregator(policy.init, update)
