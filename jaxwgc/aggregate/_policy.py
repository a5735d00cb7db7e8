"""Update logic shared by `coded_aggregate` and `decode_aggregate`."""

import difflib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxwgc import coding
from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate._options import DecodingOptions
from jaxwgc.aggregate._state import CodedAggregateState, ErrorCounts
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.coding._decode import Finished, Received

# Extra arguments of `update` that describe a round.
_ROUND_ARGUMENTS = ("received", "finished", "late", "elapsed")
# Similarity, from 0 to 1, above which an unknown name counts as misspelt. "late" with
# one wrong letter has 0.75. Extra arguments of optax have at most 0.5.
_MISSPELT_SIMILARITY = 0.7
# Hint at the end of errors if another transformation has probably changed the updates.
ORDER = (
    " (an aggregator must be the first transformation in optax.chain, and the only "
    "aggregator; wrappers such as optax.MultiSteps or optax.contrib.sam go around "
    "the transformations after it)"
)


class DecodingPolicy:
    """Shared steps of aggregators, from the messages of a round to the update.

    Args:
      code: Gradient code.
      decoding: Options of decoding.
      undecodable: Result of an undecodable round, `"least_squares"` or `"skip"`.
      memory: Whether stored messages stand for missing ones.
      debias: Correction for lost parts: `"share"`, a number, or None.
      correct_errors: Whether corrupted messages are located and excluded.
      noise: Relative difference of honest copies of a message.
      is_simulated: Whether rounds that are not observed are simulated.

    Attributes:
      decoder: Decoder of the options, or of the code.
      tolerance: Largest relative residual with which a round counts as decoded.
      message_dtype: Dtype that messages are rounded to, or None.
      locator: Locator of corrupted messages; None unless errors are corrected.

    Raises:
      ValueError: If an option has an invalid value, does not fit the code, or excludes
        another one.
      TypeError: If an option has the wrong type.
    """

    def __init__(
        self,
        code: GradientCode,
        decoding: DecodingOptions,
        *,
        undecodable: str,
        memory: bool,
        debias: str | float | None,
        correct_errors: bool,
        noise: float,
        is_simulated: bool,
    ):
        validation.check_instance("decoding", decoding, DecodingOptions)
        validation.check_choice("undecodable", undecodable, ("least_squares", "skip"))
        if isinstance(debias, str):
            validation.check_choice("debias", debias, ("share",))
        elif debias is not None:
            array_validation.check_number("debias", debias, positive=True)
        validation.check_bool("correct_errors", correct_errors)
        array_validation.check_number("noise", noise, minimum=0, finite=True)
        if validation.check_bool("memory", memory):
            if correct_errors:
                raise ValueError(
                    "memory=True needs correct_errors=False, since late messages "
                    "cannot be compared with other messages; got True for both"
                )
            if undecodable == "skip":
                raise ValueError(
                    'memory=True needs undecodable="least_squares", since stored '
                    'messages replace missing messages; got "skip"'
                )
            if debias is not None:
                raise ValueError(
                    "memory=True needs debias=None, since stored messages replace "
                    f"lost parts; got debias={debias!r}"
                )
        self.code = code
        self.decoder = code.choose_decoder(decoding.decoder)
        self.tolerance = decoding.tolerance_for(
            self.decoder, memory=memory, debias=debias
        )
        self.message_dtype = decoding.message_dtype
        self.locator = None
        if correct_errors:
            self.locator = coding.ErrorLocator.of(code)
        elif array_validation.is_traced(noise) or noise != 0:
            raise ValueError(
                f"noise= is used only with correct_errors=True; got noise={noise} and "
                "correct_errors=False"
            )
        self._undecodable = undecodable
        self._memory = memory
        self._debias = debias
        self._noise = noise
        self._is_simulated = is_simulated

    def init(
        self,
        params: optax.Params,
        key: jax.Array | tuple[()] = (),
        stragglers: Any = (),
        faults: Any = (),
    ) -> CodedAggregateState:
        """Returns the state before the first round."""
        # Params are checked here, because errors of other transformations are less
        # clear. Trees without leaves pass, because optax calls `init` with such
        # placeholders to map over states.
        array_validation.check_dtypes("params", params, "real or complex floats", True)
        check_unmasked(params)
        num_workers = self.code.num_workers
        memory = ()
        if self._memory and jax.tree.leaves(params):
            memory = coding.Memory.empty(self.code, params, self._is_simulated)
        errors = ()
        if self.locator is not None:
            errors = ErrorCounts(
                wrong=jnp.zeros(num_workers, bool),
                num_wrong=jnp.zeros(num_workers, jnp.int32),
                num_corrected=jnp.int32(0),
                num_rejected=jnp.int32(0),
            )
        return CodedAggregateState(
            key=key,
            stragglers=stragglers,
            faults=faults,
            received=jnp.ones(num_workers, bool),
            elapsed=jnp.zeros((), jnp.result_type(float)),
            residual=jnp.zeros((), jnp.result_type(float)),
            num_undecodable=jnp.zeros((), jnp.int32),
            share=jnp.ones((), jnp.result_type(float)),
            memory=memory,
            errors=errors,
            shapes=shapes_of(params),
        )

    def check_state(self, state: object) -> None:
        """Raises an error if a state does not fit the code or the aggregator."""
        if not isinstance(state, CodedAggregateState):
            raise TypeError(
                "state must be a CodedAggregateState, from init; got "
                f"{validation.in_short(state)}"
            )
        num_workers = state.received.shape[0]
        if num_workers != self.code.num_workers:
            raise ValueError(
                f"state must be for the {self.code.num_workers} workers of the code; "
                f"got a state for {num_workers} workers. Begin with a new state from "
                "init"
            )
        if self._is_simulated and isinstance(state.key, tuple):
            raise ValueError(
                "state must be from init of coded_aggregate; got a state of "
                "decode_aggregate, which has no key"
            )
        if self.locator is not None and not isinstance(state.errors, ErrorCounts):
            raise ValueError(
                "state must be from init with correct_errors=True; got a state without "
                "error counts"
            )
        if not self._memory:
            return
        if not isinstance(state.memory, coding.Memory):
            raise ValueError(
                "state must be from init with memory=True; got a state without stored "
                "messages"
            )
        state.memory.check(self.code)

    def check_params(
        self, state: CodedAggregateState, params: optax.Params | None
    ) -> None:
        """Raises ValueError if stored messages do not fit params."""
        shapes = shapes_of(params)
        if jax.tree.structure(shapes) != jax.tree.structure(state.shapes):
            raise ValueError(
                "params must have the shapes that were passed to init, since the state "
                f"has stored messages; got {shapes}, but init got {state.shapes}"
            )

    def observed(
        self,
        received: Received | None = None,
        finished: Finished | None = None,
        elapsed: jax.Array | float | None = None,
        late: ArrayLike | None = None,
        **others: object,
    ) -> tuple[Arrived | None, jax.Array | float | None]:
        """Reads from the extra arguments what arrived in the round, and its duration.

        Returns:
          What has arrived, and the duration. Both are None if the arguments describe no
          round, so that the round is simulated.
        """
        # optax.chain passes extra arguments to all transformations. Most unknown names
        # are for another transformation, so only names that look misspelt are reported.
        misspelt = [name for name in sorted(others) if _is_misspelt(name)]
        if misspelt:
            warnings.warn(
                f"unknown extra arguments {', '.join(misspelt)}: the aggregator takes "
                f"{', '.join(_ROUND_ARGUMENTS)}. Check the spelling, and whether "
                "another transformation of the chain takes them",
                stacklevel=4,
            )
        mask_of_late = None
        if late is not None:
            if not self._memory:
                raise ValueError(
                    "late= is used only with memory=True, which stores late messages; "
                    "got late= and memory=False"
                )
            mask_of_late = array_validation.as_array(
                "late", late, "bools", num_workers=self.code.num_workers
            )
        if received is None and finished is None:
            if elapsed is not None:
                raise ValueError(
                    "elapsed= needs received= or finished= of the same round; got "
                    f"elapsed={elapsed} alone"
                )
            if late is not None:
                raise ValueError(
                    "late= needs received= or finished= of the same round; got late "
                    "alone"
                )
            if self._is_simulated:
                return None, None
        arrived = Arrived.of(self.code, received, finished, one_round=True)
        if mask_of_late is not None:
            arrived = arrived._replace(late=mask_of_late)
        if elapsed is None:
            return arrived, 0.0
        array_validation.check_number("elapsed", elapsed, minimum=0)
        return arrived, elapsed

    def without_errors(
        self,
        arrived: Arrived,
        messages: jax.Array,
        state: CodedAggregateState,
        key: jax.Array,
    ) -> tuple[Arrived, CodedAggregateState]:
        """Returns the messages that are not corrupted, and the state with new counts.

        Args:
          arrived: Messages of the round.
          messages: (num_messages, length).
          state: State before the round.
          key: PRNG key of the projections.
        """
        assert self.locator is not None
        assert isinstance(state.errors, ErrorCounts)
        location = self.locator.locate(
            messages,
            arrived.mask,
            key,
            self._noise,
            self.message_dtype,
        )
        state = state._replace(errors=state.errors.after(location))
        return Arrived(location.mask), state

    def finish(
        self,
        arrived: Arrived,
        decoding: coding.Decoding,
        gradient: optax.Updates,
        elapsed: jax.Array | float,
        state: CodedAggregateState,
        messages: jax.Array | None = None,
    ) -> tuple[optax.Updates, CodedAggregateState]:
        """Computes the update and the state after a round.

        Args:
          arrived: Messages of the round.
          decoding: Decoding of the round.
          gradient: Decoded gradient.
          elapsed: Duration of the round.
          state: State with the key and models of the next round.
          messages: (num_messages, length). With memory, they are stored.
        """
        failed = ~(decoding.relative_residual <= self.tolerance)
        if self._memory:
            assert messages is not None
            stored, state = self._stand_in(arrived, decoding, gradient, messages, state)
            gradient = jax.tree.map(
                lambda leaf, stored_leaf: jnp.where(failed, leaf + stored_leaf, leaf),
                gradient,
                stored,
            )
        if self._debias is not None:
            divisor = self._debias
            if isinstance(divisor, str):
                divisor = jnp.where(decoding.share > 0, decoding.share, 1)
            gradient = jax.tree.map(
                lambda leaf: (leaf / divisor).astype(leaf.dtype), gradient
            )
        if self._undecodable == "skip":
            gradient = jax.tree.map(lambda leaf: jnp.where(failed, 0, leaf), gradient)
        # A traced duration cannot raise an error: if it is negative, the total is NaN.
        elapsed = jnp.where(elapsed >= 0, elapsed, jnp.nan)
        return gradient, state._replace(
            received=decoding.received,
            elapsed=(state.elapsed + elapsed).astype(state.elapsed.dtype),
            residual=decoding.residual.astype(state.residual.dtype),
            num_undecodable=state.num_undecodable + failed.astype(jnp.int32),
            share=decoding.share.astype(state.share.dtype),
        )

    def _stand_in(
        self,
        arrived: Arrived,
        decoding: coding.Decoding,
        gradient: optax.Updates,
        messages: jax.Array,
        state: CodedAggregateState,
    ) -> tuple[optax.Updates, CodedAggregateState]:
        """Returns the part of the gradient from stored messages, and the new state.

        Returns:
          The contribution of stored messages to the gradient if the round is
          undecodable, and the state with the messages of the round.
        """
        memory = state.memory
        assert isinstance(memory, coding.Memory)
        late_messages = messages
        underway = memory.underway
        if arrived.joined is not None and not isinstance(underway, tuple):
            # A simulated late message was computed with the parameters of the round in
            # which its worker started. Late messages of real workers arrive as they
            # are.
            late_messages = underway
            joined = self._by_message(arrived.joined)
            underway = jnp.where(joined[:, None], messages, underway)
            underway = underway.astype(late_messages.dtype)
        if arrived.late is not None:
            # If a worker has responded twice, the newer response counts.
            late = self._by_message(arrived.late) & ~decoding.mask
            memory = memory.after(late_messages, late)
        stored = memory.stand_in(decoding, self.decoder, messages, gradient)
        memory = memory.after(messages, decoding.mask)._replace(underway=underway)
        return stored, state._replace(memory=memory)

    def _by_message(self, mask: jax.Array) -> jax.Array:
        """Converts a mask of workers to a mask of messages."""
        return jnp.repeat(jnp.asarray(mask), self.code.messages_per_worker)


def _is_misspelt(name: str) -> bool:
    """Returns whether a name resembles an extra argument that describes a round."""
    similar = difflib.get_close_matches(
        name, _ROUND_ARGUMENTS, n=1, cutoff=_MISSPELT_SIMILARITY
    )
    return bool(similar)


def shapes_of(tree: Any) -> Any:
    """Replaces each array of a pytree by its shape, as the key of a dict.

    A state with these shapes consists of dicts and tuples, which every checkpoint
    library can save.
    """
    return jax.tree.map(lambda leaf: {str(np.shape(leaf)): ()}, tree)


def check_unmasked(params: Any) -> None:
    """Raises ValueError if `optax.masked` hides leaves of params."""
    nodes = jax.tree.leaves(params, is_leaf=_is_masked)
    if any(_is_masked(node) for node in nodes):
        raise ValueError(
            "params must have no masked leaves; got optax.MaskedNode. Put optax.masked "
            "around transformations after the aggregator"
        )


def _is_masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


def make_aggregator(
    init: optax.TransformInitFn, update: optax.TransformUpdateExtraArgsFn
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax aggregator from the functions `init` and `update`."""
    # This experimental module may move. Its import is here, so that `import jaxwgc`
    # does not break then.
    from optax.experimental import aggregating

    return aggregating.Aggregator(init, update)
