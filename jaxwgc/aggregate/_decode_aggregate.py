"""Messages in, a gradient out: workers that really answered."""

import functools

import jax
import optax

from jaxwgc import _flat_vectors, _updates, _validation, coding
from jaxwgc.aggregate._policy import DecodingPolicy, make_aggregator
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike


def decode_aggregate(
    code: GradientCode,
    *,
    undecodable: str = "least_squares",
    tolerance: float = 1e-3,
    decoder: DecoderLike = None,
    message_dtype: jax.typing.DTypeLike | None = None,
    on_request: bool = False,
    memory: bool = False,
    debias: str | float | None = None,
    correct_errors: bool = False,
    noise: float = 0.0,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Aggregates messages that arrived: the sibling of `coded_aggregate`.

    Put it first in `optax.chain`, for workers that really are slow or dead. Its updates
    are their messages side by side, as `jaxwgc.encode` gives them: row i is what
    `jaxwgc.coding.form_messages` has made on worker i. Rows of workers that did not
    answer may hold anything, NaN included. What it returns is like params. The order in
    a chain is that of `coded_aggregate`.

    `update` needs `received`, the bool mask (num_workers,) of the workers that
    answered, or `finished` in its place, the parts that each has finished. With
    `elapsed` beside it, the time of the round is counted.

    Args:
      code: a gradient code.
      undecodable: as for `coded_aggregate`.
      tolerance: as for `coded_aggregate`.
      decoder: as for `jaxwgc.decoding_weights`.
      message_dtype: what messages were rounded to on their way, such as `"bfloat16"`;
        what that leaves of zeros is cleared. By default their dtype.
      on_request: whether workers have sent one sum of their messages each, as they were
        asked to by `Decoding.requests`. Updates are then what
        `jaxwgc.coding.answer_request` gave, (num_workers, length), and `finished` says
        what could have been asked for.
      memory: as for `coded_aggregate`, not on request; `update` then takes `late`, bool
        (num_workers,): whose rows are an answer to an earlier round. Those are
        remembered, no more.
      debias: as for `coded_aggregate`.
      correct_errors: as for `coded_aggregate`; not on request.
      noise: as for `jaxwgc.locate_errors`.
      key: PRNG key, for the projections by which errors are looked for. By default they
        depend on the messages alone, so that nobody knows them before these are there;
        a secret key is for workers that agree on what to send.

    Returns:
      An `optax.experimental.aggregating.Aggregator`; updates are one array
      (num_messages, length), real or complex as the code is, of any precision (they are
      decoded in at least float32). Its state is a `CodedAggregateState`.

    Raises:
      ValueError: where an argument breaks its rule, or (at `update`) updates are no
        messages for a gradient like params, params or `received` are not given, or
        `received` has the wrong shape.
      TypeError: where the code, the messages, params or `received` have the wrong type.

    Example:
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
      The paper's section 2.2.
    """
    GradientCode.check(code)
    _validation.check_message_dtype(message_dtype)
    if _validation.check_bool("on_request", on_request):
        code.check_requests()
        if memory:
            raise ValueError(
                "memory must be False on request, where sums come in the place of "
                "messages; got True"
            )
        if correct_errors:
            raise ValueError(
                "correct_errors must be False on request: no part is sent twice, so "
                "that nothing can disagree; got True"
            )

    if key is not None:
        _validation.check_key(key)
        if not correct_errors:
            raise ValueError("key goes with correct_errors=True; got a key alone")
    options = undecodable, tolerance, decoder, memory, debias, correct_errors, noise
    policy = DecodingPolicy(code, *options, message_dtype)

    def update(updates, state, params=None, **extra):
        this_round = policy.observed(state, **extra)
        # Rejects params that a mask hides.
        _updates.shapes_of(params)
        _updates.check_one_array("updates", updates, "the messages of all workers")
        _validation.check_dtypes("messages", updates, "numbers or bools")
        return aggregate(updates, state, params, this_round)

    # One program, also outside of jit.
    @functools.partial(jax.jit, inline=True)
    def aggregate(messages, state, params, this_round):
        location_key = _location_key(key, messages, state.errors)
        decoding, state = policy.decode(this_round, messages, state, location_key)
        if on_request:
            shape = code.num_workers, _flat_vectors.raveled_size(params)
            _validation.check_shape("updates", messages, "(num_workers, length)", shape)
            gradient = coding.decode_answers(messages, params)
        else:
            gradient = decoding.combine(messages, params, message_dtype)
        return policy.finish(decoding, gradient, messages, this_round, state)

    return make_aggregator(policy.init, update)


def _location_key(key, messages, errors):
    """Returns the key of the projections that locate errors; None without errors."""
    if errors == ():
        return None
    drawn = coding.key_from(messages)
    if key is not None:
        drawn = jax.random.fold_in(key, jax.random.bits(drawn))
    return jax.random.fold_in(drawn, errors.num_corrected + errors.num_refused)
