"""Update logic shared by `coded_aggregate` and `decode_aggregate`."""

import dataclasses
import difflib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxwgc import _updates, _validation, coding
from jaxwgc._validation import require
from jaxwgc.aggregate._state import CodedAggregateState, ErrorCounts
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.stragglers import Arrivals

# Extra arguments that describe a round.
_ROUND_ARGUMENTS = ("received", "finished", "late", "elapsed")
# Similarity, from 0 to 1, above which an unknown name counts as misspelt. One wrong
# letter in "late" leaves 0.75; no extra argument of optax exceeds 0.5.
_MISSPELT_SIMILARITY = 0.7


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options of decoding in `jaxwgc.distributed.RayCluster`.

    Args:
      undecodable: Result of a round that cannot be decoded. `"least_squares"` and
        `"skip"` are explained in `jaxwgc.decode_aggregate`. `"raise"` raises an error
        that names the missing workers.
      tolerance: See `jaxwgc.decode_aggregate`.
      decoder: See `jaxwgc.decoding_weights`.
      message_dtype: Dtype to which messages are rounded when sent, e.g. `"bfloat16"`:
        half the bytes, and a relative error of up to 2^-8 in every entry of a message,
        multiplied by the decoding weights in the gradient. None sends messages
        unchanged.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.aggregate.DecodingOptions(undecodable="raise").tolerance
      0.001
    """

    undecodable: str = "least_squares"
    tolerance: float = 1e-3
    decoder: DecoderLike = None
    message_dtype: Any = None

    def __post_init__(self):
        choices = ("least_squares", "skip", "raise")
        _validation.check_choice("undecodable", self.undecodable, choices)
        dtype = _validation.check_message_dtype(self.message_dtype)
        object.__setattr__(self, "message_dtype", dtype)


class Round(NamedTuple):
    """Round of an update, observed or simulated.

    Attributes:
      mask: bool (num_messages,), messages that arrived.
      elapsed: Real scalar, duration of the round.
      weights: Decoding weights if they are known, otherwise None.
      late: bool (num_workers,), workers with a response to an earlier round that
        arrived in this round; None if there are none.
      joined: bool (num_workers,), workers that started with the parameters of this
        round; None in observed rounds.
    """

    mask: jax.Array
    elapsed: Any
    weights: Any = None
    late: Any = None
    joined: Any = None

    @classmethod
    def simulated(cls, code: GradientCode, arrivals: Arrivals) -> "Round":
        """Returns the round of simulated arrivals."""
        mask, joined = coding.arrived_messages(code, arrivals, None), arrivals.joined
        joined = jnp.ones(code.num_workers, bool) if joined is None else joined
        return cls(mask, arrivals.elapsed, late=arrivals.late, joined=joined)


@dataclasses.dataclass(eq=False)
class DecodingPolicy:
    """Processing of a round: decode, correct, use stored messages, debias, skip.

    Attributes:
      is_simulated: Whether rounds that are not observed are simulated.
      locator: Locator of corrupted messages; None unless errors are corrected.
      The other fields are options of `coded_aggregate` and `decode_aggregate`.
    """

    code: GradientCode
    undecodable: str
    tolerance: Any
    decoder: Any
    memory: bool
    debias: Any
    correct_errors: bool
    noise: Any
    message_dtype: Any = None
    is_simulated: bool = False
    locator: coding.ErrorLocator | None = dataclasses.field(init=False, default=None)

    def __post_init__(self):
        choices = ("least_squares", "skip")
        _validation.check_choice("undecodable", self.undecodable, choices)
        _validation.check_number("tolerance", self.tolerance, minimum=0)
        if isinstance(self.debias, str):
            _validation.check_choice("debias", self.debias, ("share",))
        elif self.debias is not None:
            _validation.check_number("debias", self.debias, positive=True)
        self.decoder = self.code.choose_decoder(self.decoder)
        _validation.check_number("noise", self.noise, minimum=0, finite=True)
        if _validation.check_bool("correct_errors", self.correct_errors):
            self.locator = coding.ErrorLocator.of(self.code)
        if _validation.check_bool("memory", self.memory):
            rule = "be False with memory: a late message arrives alone, without checks"
            require(not self.correct_errors, "correct_errors", rule, True)
            rule, is_right = 'not be "skip" with memory', self.undecodable != "skip"
            require(is_right, "undecodable", rule, self.undecodable)
            require(self.debias is None, "debias", "be None with memory", self.debias)

    def init(
        self, params: Any, key: Any = (), stragglers: Any = ()
    ) -> CodedAggregateState:
        """Returns the state before the first round."""
        # Params are checked before the init of another transformation fails. Trees
        # without leaves pass, because optax maps over states with such placeholders.
        _validation.check_dtypes("params", params, "real or complex floats", True)
        memory = ()
        if self.memory and jax.tree.leaves(params):
            memory = coding.Memory.empty(self.code, params, self.is_simulated)
        num_workers, errors = self.code.num_workers, ()
        if self.locator is not None:
            numbers = jnp.zeros(num_workers, jnp.int32)
            errors = ErrorCounts(numbers > 0, numbers, jnp.int32(0), jnp.int32(0))
        return CodedAggregateState(
            key=key,
            stragglers=stragglers,
            received=jnp.ones(num_workers, bool),
            elapsed=jnp.zeros((), jnp.result_type(float)),
            residual=jnp.zeros((), jnp.result_type(float)),
            num_undecodable=jnp.zeros((), jnp.int32),
            share=jnp.ones((), jnp.result_type(float)),
            memory=memory,
            errors=errors,
            shapes=_updates.shapes_of(params),
        )

    def observed(
        self, state, received=None, finished=None, elapsed=None, late=None, **extra
    ) -> Round | None:
        """Returns the round that the extra arguments of an update describe.

        None if they describe no round, so that it is simulated.
        """
        _validation.check_instance("state", state, CodedAggregateState, ", from init")
        self._check_code_of(state)
        # optax.chain passes extra arguments to all transformations, so most unknown
        # names are for another transformation.
        misspelt = [name for name in sorted(extra) if _is_misspelt(name)]
        if misspelt:
            warnings.warn(
                f"unknown extra arguments {', '.join(misspelt)}: the aggregator takes "
                f"{', '.join(_ROUND_ARGUMENTS)}. Check the spelling, and whether "
                "another transformation of the chain takes them",
                stacklevel=4,
            )
        code = self.code
        _validation.check_one_round(code.num_workers, received, finished)
        if late is not None:
            shape = (code.num_workers,)
            _validation.check_shape("late", late, "(num_workers,)", shape)
        if received is None and finished is None:
            require(elapsed is None, "elapsed", "be None without received", elapsed)
            if self.is_simulated:
                return None
        elapsed = 0.0 if elapsed is None else elapsed
        _validation.check_number("elapsed", elapsed, minimum=0)
        if isinstance(received, coding.Decoding | coding.ErrorLocation):
            decoding = coding.decoding(code, received, self.decoder)
            return Round(decoding.mask, elapsed, decoding.weights, late)
        if isinstance(received, Arrivals) and finished is None:
            return Round.simulated(code, received)._replace(elapsed=elapsed)
        mask = coding.arrived_messages(code, received, finished)
        return Round(mask, elapsed, late=late)

    def _check_code_of(self, state: CodedAggregateState) -> None:
        """Raises ValueError if a state does not fit the code or the aggregator."""
        num_workers = state.received.shape[0]
        if num_workers != self.code.num_workers:
            raise ValueError(
                f"state must be of the code's {self.code.num_workers} workers; got a "
                f"state of {num_workers} workers. Begin with a new state from init"
            )
        if self.is_simulated and isinstance(state.key, tuple):
            raise ValueError(
                "state must be from init of coded_aggregate; got one of "
                "decode_aggregate, without a key"
            )
        if not self.memory:
            return
        if not isinstance(state.memory, coding.Memory):
            raise ValueError(
                "state must be from init with memory=True; got a state without stored "
                "messages"
            )
        state.memory.check(self.code)

    def check_params(self, state: CodedAggregateState, params: Any) -> None:
        """Raises ValueError if stored messages are of gradients of other params."""
        if not self.memory:
            return
        shapes = _updates.shapes_of(params)
        if jax.tree.structure(shapes) != jax.tree.structure(state.shapes):
            raise ValueError(
                "params must have the shapes of those that init got, since the state "
                f"has stored messages; got {shapes}, and init got {state.shapes}"
            )

    def decode(
        self, this_round: Round, messages: Any, state: CodedAggregateState, key: Any
    ) -> tuple[coding.Decoding, CodedAggregateState]:
        """Computes the decoding weights of a round, without corrupted messages.

        Args:
          this_round: Round to decode.
          messages: (num_messages, length), only if errors are corrected.
          state: State before the round.
          key: PRNG key, only if errors are corrected.

        Returns:
          The decoding, and the state with updated error counts.
        """
        code, mask, weights = self.code, this_round.mask, this_round.weights
        if self.locator is not None:
            messages = coding.check_messages_of(code, messages)
            location = self.locator.locate(
                messages, mask, key, self.noise, self.message_dtype
            )
            state = state._replace(errors=state.errors.after(location))
            mask, weights = location.mask, None
        if weights is None:
            return coding.decode_mask(code, mask, self.decoder), state
        return coding.Decoding(code, mask, weights), state

    def finish(
        self,
        decoding: coding.Decoding,
        gradient: Any,
        messages: Any,
        this_round: Round,
        state: CodedAggregateState,
    ) -> tuple[Any, CodedAggregateState]:
        """Returns the update and the state after a round.

        Args:
          decoding: Decoding of the round.
          gradient: Decoded gradient.
          messages: (num_messages, length), only if messages are stored.
          this_round: Round that was decoded.
          state: State with the key and models of the next round.
        """
        failed, memory = decoding.failed(self.tolerance), state.memory
        if self.memory:
            stale, memory = self._recall(
                decoding, gradient, messages, this_round, memory
            )
            gradient = jax.tree.map(
                lambda own, other: jnp.where(failed, own + other, own), gradient, stale
            )
        if self.debias is not None:
            divisor = self.debias
            if isinstance(divisor, str):
                is_partial = decoding.failed() & (decoding.share > 0)
                divisor = jnp.where(is_partial, decoding.share, 1)
            gradient = jax.tree.map(
                lambda leaf: (leaf / divisor).astype(leaf.dtype), gradient
            )
        if self.undecodable == "skip":
            gradient = jax.tree.map(lambda leaf: jnp.where(failed, 0, leaf), gradient)
        # A negative traced time makes the total NaN.
        elapsed = jnp.where(this_round.elapsed >= 0, this_round.elapsed, jnp.nan)
        return gradient, state._replace(
            received=decoding.received,
            elapsed=(state.elapsed + elapsed).astype(state.elapsed.dtype),
            residual=decoding.residual.astype(state.residual.dtype),
            num_undecodable=state.num_undecodable + failed.astype(jnp.int32),
            share=decoding.share.astype(state.share.dtype),
            memory=memory,
        )

    def _recall(self, decoding, params, messages, this_round, memory):
        """Returns the contribution of stored messages, and the next memory."""
        late_messages, underway = messages, memory.underway
        if this_round.joined is not None:
            # A worker computes with the parameters of the round in which it started.
            late_messages, joined = underway, self._by_message(this_round.joined)
            underway = jnp.where(joined[:, None], messages, underway)
            underway = underway.astype(late_messages.dtype)
        if this_round.late is not None:
            # If a worker has responded twice, the newer response counts.
            late = self._by_message(this_round.late) & ~decoding.mask
            memory = memory.after(late_messages, late)
        stale = memory.stand_in(decoding, self.decoder, messages, params)
        memory = memory.after(messages, decoding.mask)
        return stale, memory._replace(underway=underway)

    def _by_message(self, mask):
        return jnp.repeat(jnp.asarray(mask), self.code.messages_per_worker)


def _is_misspelt(name: str) -> bool:
    """Returns whether the name of an extra argument resembles one of a round."""
    return bool(
        difflib.get_close_matches(
            name, _ROUND_ARGUMENTS, n=1, cutoff=_MISSPELT_SIMILARITY
        )
    )


def make_aggregator(
    init: Callable[..., Any], update: Callable[..., Any]
) -> optax.GradientTransformationExtraArgs:
    """Returns an optax aggregator."""
    # The import is here, because an experimental module may move, which must not break
    # `import jaxwgc`.
    from optax.experimental import aggregating

    return aggregating.Aggregator(init, update)
