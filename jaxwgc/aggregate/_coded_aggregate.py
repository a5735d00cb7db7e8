"""Simulates a coded cluster that aggregates partial gradients."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import coding
from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate._options import DecodingOptions
from jaxwgc.aggregate._policy import (
    ORDER,
    DecodingPolicy,
    make_aggregator,
    shapes_of,
)
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.corruptions import CorruptionModel
from jaxwgc.stragglers import StragglerModel


def coded_aggregate(
    code: GradientCode,
    model: StragglerModel,
    key: jax.Array,
    *,
    method: str = "partials",
    decoding: DecodingOptions = DecodingOptions(),
    undecodable: str = "least_squares",
    memory: bool = False,
    debias: str | float | None = None,
    corrupt: CorruptionModel | None = None,
    correct_errors: bool = False,
    noise: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Aggregates partial gradients as a coded cluster with stragglers would.

    Put it first in `optax.chain`, or use it as the aggregator in
    `optax.experimental.aggregating.process`. Its updates have a leading axis of
    num_parts; it returns a pytree like params. Wrappers such as `optax.MultiSteps`,
    `optax.apply_if_finite` and `optax.flatten` therefore go around the transformations
    behind it, not around the chain. Partial gradients come from
    `jaxwgc.partial_value_and_grad`. An exact code decodes their sum, not their mean.

    Every round draws from the straggler model which workers respond. For a code with
    several messages per worker, it draws how many parts each worker has finished. To
    use an observed round instead, pass its mask of workers as `received` (or its
    numbers of parts as `finished`) to `update`, and its duration as `elapsed`. A traced
    duration below 0 makes the total NaN. (`aggregating.process` passes extra arguments
    to its pre- and postprocessor, too: wrap transformations without extra arguments in
    `optax.with_extra_args_support`.)

    An update is one program even outside of `jax.jit`, so the model is traced.

    Args:
      code: Gradient code.
      model: Straggler model. It receives `code.loads`.
      key: PRNG key of either kind.
      method: `"partials"` applies the effective weights to the partial gradients, for
        about the cost of their sum. `"messages"` forms, selects and decodes the
        message of each worker. The results agree up to rounding.
      decoding: Options of decoding: decoder, tolerance, and the dtype that messages are
        rounded to. With such a dtype, messages are formed with both methods.
      undecodable: Result of a round that cannot be decoded exactly.
        `"least_squares"` takes the nearest gradient that the responses give (or the
        result of another decoder), `"skip"` a zero update. `num_undecodable` in the
        state counts these rounds.
      memory: Whether to store the newest message of each worker, and to use stored
        messages for missing ones in an undecodable round. Let aᵢ be the decoding
        weights of the round, wᵢ the weights if all workers respond, mᵢ messages and hᵢ
        stored messages; the gradient is the sum of aᵢ (mᵢ - hᵢ) + wᵢ hᵢ. Only the
        change of missing messages is lost, so the bias of ignoring workers vanishes as
        parameters settle. Until all workers have responded once, w are the weights of
        those that have, scaled to the target. Late messages of a model with
        `late="busy"` are stored, too. The state holds one message per worker (two in
        simulations), and messages are formed with both methods.
      debias: Correction for lost parts. `"share"` divides the gradient by the fraction
        recovered, which is 1 in exact rounds. A number is the mean weight of partial
        gradients, and divides the gradient of every round. (If this weight differs
        between parts, divide the partial gradients.) Not with memory.
      corrupt: Corruption model from `jaxwgc.corruptions`. Only with
        `method="messages"`.
      correct_errors: Whether to locate corrupted messages in every round, as
        `jaxwgc.locate_errors` does, and to exclude them. A round is rejected if its
        errors cannot be explained, or if a message takes part in no parity check. A
        rejected round counts as undecodable, and its update is zero. The `errors` of
        the state count corrupted messages. Only with `method="messages"`, and not with
        memory.
      noise: Difference of honest copies of a message, relative to its norm, if it is
        larger than rounding. Only with correct_errors.

    Returns:
      An `optax.experimental.aggregating.Aggregator`, which is an optax gradient
      transformation with extra arguments. Its state is a `CodedAggregateState`.

    Raises:
      ValueError: If a choice is unknown, a number is negative, the decoder does not fit
        the code, or options exclude each other: corrupt and correct_errors with
        "partials", and memory with debias, correct_errors or "skip". In `update`: if
        updates are not like params with a leading axis of num_parts, or `received` has
        the wrong shape.
      TypeError: If the code, model, key, updates or `received` have the wrong type, or
        the model does not return rounds for the workers of the code.

    Warns if the waiting rule of the model ends nearly every round before the code
    decodes. `update` warns of unknown extra arguments with names like its own, and
    leaves others to the transformations behind it.

    Example:
      A step in which 3 of 6 workers do not respond:

      >>> import jax, jax.numpy as jnp, jaxwgc, optax
      >>> code = jaxwgc.codes.reed_solomon(num_workers=6, num_parts=3, copies=4)
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
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, sections 2 and 4 and figure 1.
    """
    GradientCode.check(code)
    loads = jnp.asarray(code.loads, jnp.result_type(float))
    StragglerModel.check("model", model, loads)
    array_validation.check_key(key)
    validation.check_choice("method", method, ("partials", "messages"))
    if corrupt is not None:
        validation.check_instance("corrupt", corrupt, CorruptionModel)
    if method == "partials" and (corrupt is not None or correct_errors):
        argument = "corrupt=" if corrupt is not None else "correct_errors=True"
        raise ValueError(
            f"{argument} needs method='messages', which forms messages; got "
            f"method={method!r}"
        )
    policy = DecodingPolicy(
        code,
        decoding,
        undecodable=undecodable,
        memory=memory,
        debias=debias,
        correct_errors=correct_errors,
        noise=noise,
        is_simulated=True,
    )
    model.warn_where_undecodable(code, decoding.decoder)
    forms_messages = method == "messages" or memory or policy.message_dtype is not None

    def init(params):
        faults = () if corrupt is None else corrupt.init(code.num_workers)
        # The key is copied, because the caller may donate the state and still use the
        # key.
        return policy.init(
            params,
            key=jnp.array(key, copy=True),
            stragglers=model.init(code.num_workers),
            faults=faults,
        )

    def update(updates, state, params=None, **extra):
        policy.check_state(state)
        arrived, elapsed = policy.observed(**extra)
        if memory and params is not None:
            policy.check_params(state, params)
        check_updates(updates, code.num_parts, "num_parts", params, state.shapes)
        return aggregate(updates, state, arrived, elapsed)

    # The function is one compiled program, even if the caller does not use jit.
    @functools.partial(jax.jit, inline=True)
    def aggregate(partial_gradients, state, arrived, elapsed):
        next_key = state.key
        if arrived is None:
            next_key, round_key = jax.random.split(next_key)
            if code.messages_per_worker == 1:
                arrivals, stragglers = model.sample(round_key, state.stragglers, loads)
            else:
                arrivals, stragglers = model.sample_parts(
                    round_key, state.stragglers, loads, code.part_shares
                )
            state = state._replace(stragglers=stragglers)
            arrived = Arrived.of(code, arrivals)
            elapsed = arrivals.elapsed
        if not forms_messages:
            round_decoding = arrived.decode(code, policy.decoder)
            gradient = round_decoding.collapse(partial_gradients)
            state = state._replace(key=next_key)
            return policy.finish(arrived, round_decoding, gradient, elapsed, state)
        messages = coding.encode(code, partial_gradients)
        if corrupt is not None:
            next_key, fault_key = jax.random.split(next_key)
            messages, _, faults = corrupt.sample(
                fault_key, state.faults, messages, code.num_workers
            )
            state = state._replace(faults=faults)
        if policy.message_dtype is not None:
            messages = _rounded(messages, policy.message_dtype)
        if correct_errors:
            next_key, location_key = jax.random.split(next_key)
            arrived, state = policy.without_errors(
                arrived, messages, state, location_key
            )
        round_decoding = arrived.decode(code, policy.decoder)
        like = jax.tree.map(operator.itemgetter(0), partial_gradients)
        gradient = round_decoding.combine(messages, like, policy.message_dtype)
        state = state._replace(key=next_key)
        return policy.finish(
            arrived, round_decoding, gradient, elapsed, state, messages
        )

    return make_aggregator(init, update)


def check_updates(
    updates: Any, size: int, axis_name: str, params: Any, shapes: Any
) -> None:
    """Raises an error unless updates are floats like params with a leading axis.

    If params is None, updates are compared with `shapes`, recorded by `init`, unless
    these are None, too.
    """
    expected = shapes if params is None else shapes_of(params)
    leaves, structure = jax.tree.flatten(updates)
    shapes_after_axis = []
    for leaf in leaves:
        shape = np.shape(leaf)
        if shape[:1] == (size,) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            shapes_after_axis.append({str(shape[1:]): ()})
        else:
            # A leaf in place of a shape makes the comparison of structures below fail.
            shapes_after_axis.append(leaf)
    structure_of_shapes = jax.tree.structure(
        jax.tree.unflatten(structure, shapes_after_axis)
    )
    if not leaves or structure_of_shapes != jax.tree.structure(expected):
        _compare_by_path(updates, size, axis_name, expected)


def _compare_by_path(updates: Any, size: int, axis_name: str, expected: Any) -> None:
    """Raises an error that names the first leaf of updates that is unlike params.

    Structures of other types, such as a `FrozenDict` for a dict, are accepted.
    """
    array_validation.check_leading_axis("updates", updates, size, axis_name, ORDER)
    array_validation.check_dtypes("updates", updates, "real or complex floats")
    if expected is None:
        return
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        shapes[jax.tree_util.keystr(path)] = str(np.shape(leaf)[1:])
    shapes_of_params = {}
    leaves = jax.tree_util.tree_leaves_with_path(expected, is_leaf=_is_shape)
    for path, leaf in leaves:
        [shape] = leaf
        shapes_of_params[jax.tree_util.keystr(path)] = shape
    if shapes.keys() != shapes_of_params.keys():
        only_updates = _leaf_names("updates", shapes, shapes_of_params)
        only_params = _leaf_names("params", shapes_of_params, shapes)
        raise ValueError(
            f"updates must be like params with a leading axis of {axis_name} = {size} "
            f"in front; got {only_updates} only in updates, and {only_params} only in "
            "params. Pass the params by which the loss was differentiated. Put a "
            "wrapper with params of its own, such as optax.lookahead, around the whole "
            "chain"
        )
    for path, shape in shapes.items():
        if shape != shapes_of_params[path]:
            raise ValueError(
                f"updates{path} must be like params with a leading axis of {axis_name} "
                f"= {size} in front; got the shape {shape} after this axis, but params "
                f"have the shape {shapes_of_params[path]}{ORDER}"
            )


def _is_shape(node: object) -> bool:
    """Returns whether a node in a result of `shapes_of` is the shape of an array."""
    return isinstance(node, dict) and list(node.values()) == [()]


def _leaf_names(name: str, shapes: dict[str, str], others: dict[str, str]) -> str:
    """Returns the names of leaves that are not in `others`, as text."""
    names = [f"{name}{path}" for path in shapes if path not in others]
    if not names:
        return "no leaves"
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _rounded(messages: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Rounds the entries of messages to a dtype, but keeps their own dtype."""
    if jnp.iscomplexobj(messages):
        return jax.lax.complex(
            _rounded(messages.real, dtype), _rounded(messages.imag, dtype)
        )
    kind = jnp.finfo(dtype)
    # XLA may remove a cast to the dtype and back, and with it the rounding.
    return jax.lax.reduce_precision(messages, kind.nexp, kind.nmant)
