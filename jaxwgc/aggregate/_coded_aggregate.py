"""Partial gradients in, a gradient out: a coded cluster, simulated."""

import functools
import operator

import jax
import jax.numpy as jnp
import optax

from jaxwgc import _updates, _validation, coding
from jaxwgc.aggregate._policy import DecodingPolicy, make_aggregator
from jaxwgc.aggregate._state import Round
from jaxwgc.codes import GradientCode
from jaxwgc.corruptions import CorruptionModel
from jaxwgc.decoders import DecoderLike
from jaxwgc.stragglers import StragglerModel


def coded_aggregate(
    code: GradientCode,
    model: StragglerModel,
    key: jax.Array,
    *,
    method: str = "partials",
    undecodable: str = "least_squares",
    tolerance: float = 1e-3,
    decoder: DecoderLike = None,
    memory: bool = False,
    debias: str | float | None = None,
    corrupt: CorruptionModel | None = None,
    correct_errors: bool = False,
    noise: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Aggregates partial gradients as a coded cluster with stragglers would.

    Put it first in `optax.chain`, or as the aggregator in
    `optax.experimental.aggregating.process`. Its updates have a leading axis of
    num_parts; what it returns is like params. So `optax.MultiSteps`,
    `optax.apply_if_finite`, `optax.flatten` and other wrappers go around the
    transformations behind it, not around the chain. Partial gradients come from
    `jaxwgc.partial_value_and_grad`, and their sum, not their mean, is what an exact
    code decodes.

    Every round draws who answers from the straggler model, and for a code of several
    messages a worker, how many parts each has finished. A mask of workers (or numbers
    of parts) that were observed instead goes in as `received` (or `finished`), an extra
    argument of `update`, with `elapsed` beside it if the round's time is to be counted
    (a traced one below 0 makes the sum NaN); then the model is not asked.
    (`aggregating.process` hands extra arguments to its pre- and postprocessor, too:
    wrap those that take none in `optax.with_extra_args_support`.)

    Args:
      code: a gradient code.
      model: a straggler model, which is given `code.loads`.
      key: PRNG key of either kind.
      method: `"partials"` applies the effective weights to the partial gradients, at
        about the price of summing them. `"messages"` forms, selects and decodes the
        message of each worker. The results agree to rounding.
      undecodable: what to do with a round where the gradient cannot be decoded exactly:
        `"least_squares"` takes the nearest that the answers give (or what another
        decoder makes of them), `"skip"` a zero update. The state counts such rounds in
        `num_undecodable`.
      tolerance: a round is undecodable where the norm of aᵀB - target is above this
        share of the norm of the target. Far above the rounding of well-conditioned
        codes in float32. An approximate code decodes hardly any round exactly: raise it
        to what is close enough.
      decoder: as for `jaxwgc.decoding_weights`.
      memory: whether the newest message of each worker is remembered, and stands in an
        undecodable round for what is missing: with aᵢ the decoding weights of the
        round, w those of all workers, mᵢ messages and hᵢ remembered ones, the sum of
        aᵢ (mᵢ - hᵢ) + wᵢ hᵢ. So only the change of what is missing is lost, and the
        bias of ignoring workers goes away as parameters settle. Until all have
        answered, w is that of those who have, scaled to the target. Late answers of a
        model with `late="busy"` are remembered, too. The state holds a message a worker
        (two, in simulations), and messages are formed whatever the method.
      debias: what makes up for parts that are lost. `"share"` divides by the share of
        the gradient that was decoded, in rounds that are not exact. A number is the
        weight that partial gradients have on average, and divides in every round (where
        it differs from part to part, divide the partial gradients). Not with memory.
      corrupt: a model of `jaxwgc.corruptions`, which makes some messages wrong. Only
        with `method="messages"`.
      correct_errors: whether wrong messages are looked for in every round, as by
        `jaxwgc.locate_errors`, and left out. A round whose errors cannot be explained
        is refused, and so is one with an answer that no other checks: nothing is
        decoded from it, so that it counts as undecodable, with a zero update. Who was
        wrong, and how often, is counted in the `errors` of the state. Only with
        `method="messages"`, and not with memory.
      noise: as for `jaxwgc.locate_errors`.

    Returns:
      An `optax.experimental.aggregating.Aggregator`, so an optax gradient
      transformation with extra arguments. Its state is a `CodedAggregateState`.

    Raises:
      ValueError: where an argument breaks its rule, or (at `update`) updates are not
        like params with a leading axis of num_parts in front, or `received` has the
        wrong shape.
      TypeError: where the code, model, key, updates or `received` have the wrong type.
        A model that gives no rounds for the workers of the code is found here, before
        the first update.

    Warns where the waiting rule of the model ends nearly every round before the code
    decodes, and (at `update`) of extra arguments that it does not know.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc, optax
      >>> code = jaxwgc.codes.reed_solomon(num_workers=6, num_parts=3, replication=4)
      >>> optimizer = optax.chain(
      ...     jaxwgc.coded_aggregate(
      ...         code,
      ...         jaxwgc.stragglers.uniform(code.num_stragglers),
      ...         jax.random.key(0),
      ...     ),
      ...     optax.sgd(0.1),
      ... )
      >>> params = {"w": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> partial_gradients = {"w": jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 5.0]])}
      >>> updates, state = optimizer.update(partial_gradients, state, params)
      >>> updates["w"].round(3)
      Array([-0.6, -0.5], dtype=float32)

    References:
      The paper's sections 2 and 4 and figure 1.
    """
    GradientCode.check(code)
    StragglerModel.check("model", model, _loads(code))
    _validation.check_key(key)
    _validation.check_choice("method", method, ("partials", "messages"))
    model.warn_where_undecodable(code, decoder)
    if corrupt is not None:
        hint = " of jaxwgc.corruptions"
        _validation.check_instance("corrupt", corrupt, CorruptionModel, hint)
    if method != "messages" and (corrupt is not None or correct_errors):
        raise ValueError(
            'method must be "messages" with corrupt or correct_errors, which are about '
            f"what arrives; got {method!r}"
        )
    options = undecodable, tolerance, decoder, memory, debias, correct_errors, noise
    policy = DecodingPolicy(code, *options, is_simulated=True)

    def init(params):
        drawn = model.init(code.num_workers)
        if corrupt is not None:
            drawn = drawn, corrupt.init(code.num_workers)
        # A copy, so that donating the state leaves the caller's key alone.
        return policy.init(params, jnp.array(key, copy=True), drawn)

    def update(updates, state, params=None, **extra):
        this_round, shapes = policy.observed(state, **extra), state.shapes
        _updates.check_updates(updates, code.num_parts, "num_parts", params, shapes)
        return aggregate(updates, state, this_round)

    # One program, also outside of jit.
    @functools.partial(jax.jit, inline=True)
    def aggregate(partial_gradients, state, this_round):
        if this_round is None:
            this_round, state = _simulate(code, model, corrupt, state)
        if method == "partials" and not memory:
            decoding, state = policy.decode(this_round, None, state, None)
            gradient = decoding.collapse(partial_gradients)
            return policy.finish(decoding, gradient, None, this_round, state)
        messages = coding.encode(code, partial_gradients)
        if corrupt is not None:
            messages, state = _corrupt(code, corrupt, messages, state)
        location_key = jax.random.fold_in(state.key, 1)
        decoding, state = policy.decode(this_round, messages, state, location_key)
        like = jax.tree.map(operator.itemgetter(0), partial_gradients)
        gradient = decoding.combine(messages, like)
        return policy.finish(decoding, gradient, messages, this_round, state)

    return make_aggregator(init, update)


def _loads(code):
    return jnp.asarray(code.loads, jnp.result_type(float))


def _simulate(code, model, corrupt, state):
    """Draws a round from the straggler model; returns it and the next state."""
    next_key, round_key = jax.random.split(state.key)
    drawn = state.stragglers if corrupt is None else state.stragglers[0]
    arrivals, drawn = model.sample(round_key, drawn, _loads(code))
    drawn = drawn if corrupt is None else (drawn, state.stragglers[1])
    state = state._replace(key=next_key, stragglers=drawn)
    return Round.simulated(code, arrivals), state


def _corrupt(code, corrupt, messages, state):
    """Corrupts messages by the corruption model; returns them and the next state."""
    next_key, key = jax.random.split(state.key)
    drawn, faults = state.stragglers
    messages, _, faults = corrupt.sample(key, faults, messages, code.num_workers)
    return messages, state._replace(key=next_key, stragglers=(drawn, faults))
