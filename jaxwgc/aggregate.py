"""The optax transformations: partial gradients or messages in, a gradient out."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _flat_vectors, _validation, coding
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.stragglers import Arrivals, StragglerModel

__all__ = [
    "CodedAggregateState",
    "coded_aggregate",
    "decode_aggregate",
]

METHODS = ("partials", "messages")
UNDECODABLE = ("least_squares", "skip", "warn", "raise")
# Extra arguments of optax's own transformations, which go to all of a chain.
OPTAX_ARGUMENTS = {"value", "grad", "value_fn"}


class CodedAggregateState(NamedTuple):
    """State of `coded_aggregate` and of `decode_aggregate`.

    Attributes:
      key: PRNG key for the rounds to come, of the kind that was given; () where none is
        simulated.
      stragglers: state of the straggler model; () where there is none.
      received: bool (num_workers,), who answered in the last round; for a code of
        several messages, who sent all of them.
      elapsed: float scalar, time of all rounds so far, in the unit of the model, or of
        the times given.
      residual: float scalar, norm of aᵀB - target in the last round; the square root
        of `jaxwgc.decoding_error`. Absolute, where `tolerance` is relative.
      num_undecodable: int32 scalar, rounds so far in which too few workers answered.
      share: float scalar, the share of the gradient that was decoded in the last round:
        one, or of whole parts that are lost, what is left.
      memory: the `jaxwgc.coding.Memory` of late answers; () where there is none.
      shapes: those of params, as keys in a pytree without arrays. They tell partial
        gradients from others where `update` is called without params.
    """

    key: Any
    stragglers: Any
    received: jax.Array
    elapsed: jax.Array
    residual: jax.Array
    num_undecodable: jax.Array
    share: jax.Array
    memory: Any
    shapes: Any


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
      model: a straggler model; sees each worker's number of parts as its load.
      key: PRNG key of either kind.
      method: `"partials"` applies the effective weights to the partial gradients, at
        about the price of summing them. `"messages"` forms, selects and decodes the
        message of each worker. The results agree to rounding.
      undecodable: what to do with a round where the gradient cannot be decoded exactly:
        `"least_squares"` takes the nearest that the answers give (or what another
        decoder makes of them), `"skip"` a zero update. `"warn"` and `"raise"` are like
        `"least_squares"`, but say so, with a warning or a RuntimeError, where `update`
        runs eagerly: inside of `jax.jit` and the like, where nobody knows yet who
        answers, `num_undecodable` is all that tells.
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
      RuntimeError: at `update`, with `undecodable="raise"`.

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
    loads = jnp.asarray(code.loads, jnp.result_type(float))
    StragglerModel.check("model", model, loads)
    _validation.check_key(key)
    _validation.check_choice("method", method, METHODS)
    model.warn_where_undecodable(code, decoder)

    def simulate(state):
        next_key, round_key = jax.random.split(state.key)
        arrivals, carried = model.sample(round_key, state.stragglers, loads)
        return arrivals, state._replace(key=next_key, stragglers=carried)

    def read(updates, params, state):
        _validation.check_updates(
            updates, code.num_parts, "num_parts", params, state.shapes
        )
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
        )
        if method == "partials" and not memory:
            return None, like, lambda decoding: decoding.collapse(updates)
        messages = coding.encode(code, updates)
        return messages, like, lambda decoding: decoding.combine(messages, like)

    return _aggregator(
        code,
        read,
        undecodable,
        tolerance,
        decoder,
        memory,
        debias,
        # A copy, so that donating the state leaves the caller's key alone.
        start=lambda: (jnp.array(key, copy=True), model.init(code.num_workers)),
        simulate=simulate,
    )


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

    Returns:
      An `optax.experimental.aggregating.Aggregator`; updates are one array
      (num_messages, length), real or complex as the code is, of any precision (they are
      decoded in at least float32). Its state is a `CodedAggregateState`.

    Raises:
      ValueError: where an argument breaks its rule, or (at `update`) updates are no
        messages for a gradient like params, params or `received` are not given, or
        `received` has the wrong shape.
      TypeError: where the code, the messages, params or `received` have the wrong type.
      RuntimeError: at `update`, with `undecodable="raise"`.

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

    def read(updates, params, state):
        del state
        # Refuses those that a mask hides.
        _validation.shapes_of(params)
        _validation.check_one_array("updates", updates, "the messages of all workers")
        if on_request:
            shape = code.num_workers, _flat_vectors.raveled_size(params)
            if updates.shape != shape:
                raise ValueError(
                    "updates must be the answers of all workers to their requests, of "
                    f"shape (num_workers, length) = {shape}; got {updates.shape}"
                )
            return None, params, lambda _: coding.decode_answers(updates, params)
        return (
            updates,
            params,
            lambda decoding: decoding.combine(updates, params, message_dtype),
        )

    return _aggregator(code, read, undecodable, tolerance, decoder, memory, debias)


def _aggregator(
    code: GradientCode,
    read: Callable[
        [Any, Any, CodedAggregateState],
        tuple[Any, Any, Callable[[coding.Decoding], Any]],
    ],
    undecodable: str,
    tolerance: float,
    decoder: DecoderLike,
    memory: bool,
    debias: str | float | None,
    start: Callable[[], tuple[Any, Any]] = lambda: ((), ()),
    simulate: Callable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An aggregator that decodes what it reads from updates.

    `read(updates, params, state)` gives the messages, if there are any, what the
    gradient is like, and the function of a `Decoding` that applies it to the updates;
    `start()` the key and the state of the stragglers. `simulate(state) -> (arrivals,
    state)` is for what is not observed.
    """
    _validation.check_choice("undecodable", undecodable, UNDECODABLE)
    _validation.check_number("tolerance", tolerance, minimum=0)
    decoder = code.choose_decoder(decoder)
    _validation.check_bool("memory", memory)
    if isinstance(debias, str):
        _validation.check_choice("debias", debias, ("share",))
    elif debias is not None:
        _validation.check_number("debias", debias, positive=True)
    if memory:
        _check_memory(code, undecodable, tolerance, decoder, debias)

    def init(params):
        # Here, before another transformation's init fails in its own way. What has no
        # leaves passes: optax maps over states with such placeholders.
        _validation.check_dtypes("params", params, "real or complex floats", True)
        key, stragglers = start()
        return CodedAggregateState(
            key=key,
            stragglers=stragglers,
            received=jnp.ones(code.num_workers, bool),
            elapsed=jnp.zeros((), jnp.result_type(float)),
            residual=jnp.zeros((), jnp.result_type(float)),
            num_undecodable=jnp.zeros((), jnp.int32),
            share=jnp.ones((), jnp.result_type(float)),
            # What has no leaves gives no messages either.
            memory=coding.Memory.empty(code, params, simulate is not None)
            if memory and jax.tree.leaves(params)
            else (),
            shapes=_validation.shapes_of(params),
        )

    def update(
        updates,
        state,
        params=None,
        *,
        received=None,
        finished=None,
        elapsed=None,
        late=None,
        **extra,
    ):
        unknown = extra.keys() - OPTAX_ARGUMENTS
        if unknown:
            warnings.warn(
                f"the aggregator does not know {', '.join(sorted(unknown))}, and goes "
                "by received, finished, late and elapsed alone: misspelt, or meant for "
                "another transformation of the chain?",
                stacklevel=3,
            )
        if not isinstance(state, CodedAggregateState):
            raise TypeError(
                f"state must be a CodedAggregateState, from init; got {state!r}"
            )
        _validation.check_one_round(
            code.num_workers, received=received, finished=finished
        )
        messages, like, apply = read(updates, params, state)
        if received is None and finished is None:
            if elapsed is not None:
                raise ValueError(
                    "elapsed goes with received, for an observed round; got elapsed "
                    f"= {elapsed!r} and no received"
                )
            if simulate is not None:
                received, state = simulate(state)
                elapsed = received.elapsed
        elapsed = 0.0 if elapsed is None else elapsed
        _validation.check_number("elapsed", elapsed, minimum=0)
        # A traced time that is none shows in the sum.
        elapsed = jnp.where(elapsed >= 0, elapsed, jnp.nan)
        decoding = coding.decoding(code, received, decoder, finished=finished)
        failed, residual = decoding.failed(tolerance), decoding.residual
        if undecodable in ("warn", "raise") and not _validation.is_traced(failed):
            if failed:
                report = (
                    f"a round cannot be decoded: {int(decoding.received.sum())} of "
                    f"{code.num_workers} workers have answered with all that they "
                    f"send, and the norm of aᵀB - target is {residual:.3g}"
                )
                if undecodable == "raise":
                    raise RuntimeError(report)
                warnings.warn(report, stacklevel=3)
        gradient = apply(decoding)
        remembered = state.memory
        if memory:
            gradient, remembered = recall(
                decoding, failed, gradient, messages, like, remembered, received, late
            )
        if debias is not None:
            share = jnp.where(decoding.share > 0, decoding.share, 1)
            share = jnp.where(decoding.failed(), share, 1)
            divisor = share if debias == "share" else debias
            gradient = jax.tree.map(
                lambda leaf: (leaf / divisor).astype(leaf.dtype), gradient
            )
        if undecodable == "skip":
            gradient = jax.tree.map(
                lambda leaf: jnp.where(failed, jnp.zeros_like(leaf), leaf), gradient
            )
        return gradient, state._replace(
            received=decoding.received,
            elapsed=(state.elapsed + elapsed).astype(state.elapsed.dtype),
            residual=residual.astype(state.residual.dtype),
            num_undecodable=state.num_undecodable + failed.astype(jnp.int32),
            share=decoding.share.astype(state.share.dtype),
            memory=remembered,
        )

    def recall(decoding, failed, gradient, messages, like, memory, arrivals, late):
        """What is remembered, in the place of what is missing, and from now on."""
        underway, source = memory.underway, messages
        if simulate is not None and isinstance(arrivals, Arrivals):
            joined, late, source = arrivals.joined, arrivals.late, underway
            joined = True if joined is None else of_workers("joined", joined)[:, None]
            underway = jnp.where(joined, messages, underway).astype(underway.dtype)
        if late is not None:
            # Of who has answered twice, the newer answer counts.
            memory = memory.after(source, of_workers("late", late) & ~decoding.mask)
        missing = memory.stand_in(decoding, decoder, messages, like)
        gradient = jax.tree.map(
            lambda leaf, missed: jnp.where(failed, leaf + missed, leaf),
            gradient,
            missing,
        )
        memory = memory.after(messages, decoding.mask)
        return gradient, memory._replace(underway=underway)

    def of_workers(name, mask):
        _validation.check_one_round(code.num_workers, **{name: mask})
        return jnp.repeat(jnp.asarray(mask), code.messages_per_worker)

    return make_aggregator(init, update)


def _check_memory(code, undecodable, tolerance, decoder, debias):
    """Refuses what makes no sense where late answers are remembered."""
    if undecodable == "skip":
        raise ValueError(
            'undecodable must not be "skip" with memory, which stands for what is '
            "missing in such rounds"
        )
    if debias is not None:
        raise ValueError(
            "debias must be None with memory, which leaves nothing to make up for; got "
            f"{debias!r}"
        )
    if _validation.is_traced(code, decoder, tolerance):
        return
    everything = np.ones(code.num_messages, bool)
    with jax.ensure_compile_time_eval():
        decodes = code.decodes(everything, tolerance, decoder)
    if not decodes:
        raise ValueError(
            "memory needs a code that decodes when all have answered, since that is "
            f"what is made up for; got {code} with the decoder {decoder} and a "
            f"tolerance of {tolerance}"
        )


def make_aggregator(
    init: Callable[..., Any], update: Callable[..., Any]
) -> optax.GradientTransformationExtraArgs:
    """Returns an optax aggregator."""
    # Here, so that a move of an experimental module breaks no import.
    from optax.experimental import aggregating

    return aggregating.Aggregator(init, update)
