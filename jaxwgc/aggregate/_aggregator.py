"""Steps of a round that both transformations take: decode, count, remember, correct."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _updates, _validation, coding
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.stragglers import Arrivals

# Extra arguments of optax's own transformations, which go to all of a chain.
OPTAX_ARGUMENTS = {"value", "grad", "value_fn"}


class ErrorCounts(NamedTuple):
    """Counts of wrong messages so far.

    Attributes:
      wrong: bool (num_workers,), whose messages were found wrong in the last round.
      num_wrong: int32 (num_workers,), in how many rounds that was so.
      num_corrected: int32 scalar, rounds in which it was so of anybody.
      num_refused: int32 scalar, rounds in which checks failed in a way that could not
        be explained, or some message had none: nothing is decoded from these, and they
        count as undecodable, too.
    """

    wrong: jax.Array
    num_wrong: jax.Array
    num_corrected: jax.Array
    num_refused: jax.Array

    @classmethod
    def zero(cls, num_workers: int) -> "ErrorCounts":
        """Returns those before the first round."""
        numbers = jnp.zeros(num_workers, jnp.int32)
        return cls(numbers > 0, numbers, jnp.int32(0), jnp.int32(0))

    def after(self, location: coding.ErrorLocation) -> "ErrorCounts":
        """Returns those after a round."""
        return ErrorCounts(
            location.wrong,
            self.num_wrong + location.wrong,
            self.num_corrected + location.wrong.any(),
            self.num_refused + location.refused,
        )


class CodedAggregateState(NamedTuple):
    """State of `coded_aggregate` and of `decode_aggregate`.

    Attributes:
      key: PRNG key for the rounds to come, of the kind that was given; () where none is
        simulated.
      stragglers: state of the straggler model; () where there is none. A pair with that
        of the corruption model, where there is one.
      received: bool (num_workers,), who answered in the last round; for a code of
        several messages, who sent all of them. Where errors are corrected, whose
        answers were decoded.
      elapsed: float scalar, time of all rounds so far, in the unit of the model, or of
        the times given.
      residual: float scalar, norm of aᵀB - target in the last round; the square root
        of `jaxwgc.decoding_error`. Absolute, where `tolerance` is relative.
      num_undecodable: int32 scalar, rounds so far in which too few workers answered,
        or whose errors were refused.
      share: float scalar, the share of the gradient that was decoded in the last round:
        one, or of whole parts that are lost, what is left.
      memory: the `jaxwgc.coding.Memory` of late answers; () where there is none.
      errors: the `ErrorCounts`; () where errors are not corrected.
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
    errors: Any
    shapes: Any


def aggregator(
    code: GradientCode,
    read: Callable[
        [Any, Any, CodedAggregateState],
        tuple[Any, Any, Callable[[coding.Decoding, Any], Any]],
    ],
    undecodable: str,
    tolerance: float,
    decoder: DecoderLike,
    memory: bool,
    debias: str | float | None,
    locate: Callable | None = None,
    corrupt: Callable | None = None,
    start: Callable[[], tuple[Any, Any]] = lambda: ((), ()),
    simulate: Callable | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An aggregator that decodes what it reads from updates.

    `read(updates, params, state)` gives the messages, if there are any, what the
    gradient is like, and the function that applies a `Decoding` to the updates or to
    these messages; `start()` the key and the state of what is drawn. `simulate(state)
    -> (arrivals, state)` is for what is not observed, `corrupt(messages, state) ->
    (messages, state)` for what arrives wrong, and `locate(messages, received, finished,
    state) -> ErrorLocation` finds that.
    """
    if undecodable in ("warn", "raise"):
        raise ValueError(
            f"undecodable must be 'least_squares' or 'skip'; got {undecodable!r} (read "
            "num_undecodable in the state, or call jaxwgc.check_step before training)"
        )
    _validation.check_choice("undecodable", undecodable, ("least_squares", "skip"))
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
            errors=() if locate is None else ErrorCounts.zero(code.num_workers),
            shapes=_updates.shapes_of(params),
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
        _validation.check_instance("state", state, CodedAggregateState, ", from init")
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
        if corrupt is not None:
            messages, state = corrupt(messages, state)
        elapsed = 0.0 if elapsed is None else elapsed
        _validation.check_number("elapsed", elapsed, minimum=0)
        # A traced time that is none shows in the sum.
        elapsed = jnp.where(elapsed >= 0, elapsed, jnp.nan)
        arrived, errors = received, state.errors
        if locate is not None:
            arrived = locate(messages, received, finished, state)
            errors, finished = errors.after(arrived), None
        decoding = coding.decoding(code, arrived, decoder, finished=finished)
        failed, residual = decoding.failed(tolerance), decoding.residual
        gradient = apply(decoding, messages)
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
            errors=errors,
        )

    def recall(decoding, failed, gradient, messages, like, memory, arrivals, late):
        """Returns the gradient with remembered messages, and the new memory."""
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


def make_locate(
    code: GradientCode,
    correct_errors: bool,
    memory: bool,
    noise: Any,
    message_dtype: Any,
    key_of: Callable[[Any, CodedAggregateState], jax.Array],
) -> Callable | None:
    """Returns what finds wrong messages, or None; `key_of(messages, state)` a key."""
    _validation.check_number("noise", noise, minimum=0, finite=True)
    if not _validation.check_bool("correct_errors", correct_errors):
        if not _validation.is_traced(noise) and noise != 0:
            raise ValueError(
                f"noise goes with correct_errors=True; got noise = {noise}"
            )
        return None
    if memory:
        raise ValueError(
            "memory must be False with correct_errors, since late answers come alone "
            "and cannot be checked; got True"
        )
    locator = coding.ErrorLocator.of(code)

    def locate(messages, received, finished, state):
        return locator.locate(
            coding.check_messages_of(code, messages),
            coding.arrived_messages(code, received, finished),
            key_of(messages, state),
            noise,
            message_dtype,
        )

    return locate


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
