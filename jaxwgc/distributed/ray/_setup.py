"""Rules of the rounds of a `RayCluster`, from its code, waiting rule and options."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwgc import _validation, coding
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray._fleet import Rules
from jaxwgc.distributed.ray._options import DecodingOptions
from jaxwgc.stragglers import StragglerModel, WaitingRule, fastest


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
    can_be_used = decodes
    if locator is not None:
        num_required = code.num_workers - code.num_stragglers + 2
        wait = wait or fastest(min(code.num_workers, num_required))

        def can_be_used(mask):
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
