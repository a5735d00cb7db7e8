"""Rules of the rounds of a `RayCluster`, from its code, waiting rule and options."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxwgc import _validation, coding
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._fleet import Rules
from jaxwgc.distributed.ray._messages import is_finite
from jaxwgc.distributed.ray._options import Faults
from jaxwgc.distributed.ray._training import difference
from jaxwgc.distributed.ray._worker import Task, sent
from jaxwgc.stragglers import StragglerModel, WaitingRule, fastest


def parts_of(parts: Any, code: GradientCode) -> Any:
    """Returns checked parts as they travel."""
    _validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
    _validation.check_dtypes("parts", parts, "numbers, bools or keys")
    return sent(parts)


def task_of(
    loss: Any, has_aux: Any, load: Any, batch: Any, faults: Faults, options: Any
) -> Task:
    """Returns the task of the workers, without what the first params tell."""
    _validation.check_bool("has_aux", has_aux)
    _validation.check_callable("loss", loss)
    if batch is not None:
        _validation.check_callable("batch", batch)
    given = loss, has_aux, load, batch, faults.delay, faults.corrupt
    return Task(*given, options.message_dtype)


def actor_options_of(
    address: str | None, actor_options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the options of Ray's actors."""
    # A Ray of our own has no other users.
    claims: dict[str, Any] = {"num_cpus": 0}
    if address is not None:
        claims = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    # Ray's record of every task would grow without bounds.
    return {**claims, "enable_task_events": False, **actor_options}


def decodes_of(
    code: GradientCode, options: DecodingOptions
) -> Callable[[np.ndarray], bool]:
    """Returns a function that tells whether a mask of messages can be decoded."""
    decoder = code.choose_decoder(options.decoder)
    # The code is a constant, so that NumPy's keeps its precision.
    decodes = jax.jit(lambda mask: code.decodes(mask, options.tolerance, decoder))
    # The rule and the end of the round ask for the same masks, which come again.
    known = functools.lru_cache(maxsize=10_000)(
        lambda mask: bool(decodes(np.frombuffer(mask, bool)))
    )
    return lambda mask: known(mask.tobytes())


def weights_of(
    code: GradientCode, options: DecodingOptions
) -> Callable[[np.ndarray], Any]:
    """Returns a function that maps a mask to decoding weights (1, num_messages)."""
    decoder = code.choose_decoder(options.decoder)
    given = code.encoding_matrix, code.segment_targets
    return jax.jit(lambda mask: decoder.checked_weights(*given, mask))


def rules_of(
    code: GradientCode,
    wait: WaitingRule | None,
    decodes: Callable[[np.ndarray], bool],
    locator: coding.ErrorLocator | None,
) -> Rules:
    """Returns the rules of rounds: see `RayCluster` for the default of `wait`."""
    can_be_used: Callable[[np.ndarray], bool] = decodes
    if locator is not None:
        num_required = code.num_workers - code.num_stragglers + 2
        wait = wait or fastest(min(code.num_workers, num_required))

        def can_be_used(mask: np.ndarray, /) -> bool:
            # Without messages that are compared with nothing.
            return decodes(locator.checked_by_others(mask))

    if wait is None:

        def ends(times):
            return 0.0 if decodes(np.isfinite(times)) else np.inf

    else:
        check_rule(wait, code.num_workers)

        def ends(times):
            return float(wait.ends(times))

    sees_workers = wait is not None and not (
        wait.code is not None
        and wait.code.messages_per_worker == code.messages_per_worker
    )
    numbers = code.messages_per_worker, code.num_stragglers
    return Rules(ends, can_be_used, sees_workers, *numbers)


def check_rule(wait: Any, num_workers: int) -> None:
    """Raises an error unless `wait` is a waiting rule for that many workers."""
    if isinstance(wait, StragglerModel):
        raise TypeError(
            "wait must be a waiting rule, such as jaxwgc.stragglers.fastest(6), since "
            "real workers straggle by themselves; got a StragglerModel, which simulates"
        )
    _validation.check_instance("wait", wait, WaitingRule)
    # The rule checks the number of workers itself.
    if np.shape(wait.ends(np.full(num_workers, np.inf))) != ():
        raise TypeError(f"wait must give one time at which a round ends; got {wait!r}")


def leaves_of(params: Any, like: Any) -> list[np.ndarray]:
    """Returns the leaves of params, finite, in NumPy and in the dtypes of `like`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = []
    for (path, leaf), shape in zip(leaves, jax.tree.leaves(like)):
        found.append(np.asarray(leaf, shape.dtype))
        if not is_finite(found[-1]):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"params must be finite; got NaN or infinity in {name}")
    return found


def check_like(before: Any, now: Any) -> None:
    """Raises ValueError if params have changed; leaves are `jax.ShapeDtypeStruct`."""
    if jax.tree.flatten(now) != jax.tree.flatten(before):
        raise ValueError(
            "params must keep their structure, shapes and dtypes; got "
            f"{difference(before, now) or jax.tree.structure(now)}"
        )
