"""Rules that end a round: the waiting rule, and whether messages can be decoded."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc._common import validation
from jaxwgc.codes import GradientCode
from jaxwgc.coding import ErrorLocator
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.stragglers import WaitingRule, fastest


class Rules(NamedTuple):
    """Functions that tell when a round ends, from its code and waiting rule.

    Attributes:
      ends: Waiting rule: maps the times so far to the time at which the round ends,
        infinity if the time is not known yet.
      decodes: Maps a mask of messages to whether these messages can be decoded.
      sees_workers: On request, whether `ends` maps times of workers, and not of
        messages.
      num_stragglers: Number of workers that the code tolerates.
    """

    ends: Callable[[np.ndarray], float]
    decodes: Callable[[np.ndarray], bool]
    sees_workers: bool
    num_stragglers: int


def decodes_of(
    code: GradientCode, decoder: DecoderLike, tolerance: float
) -> Callable[[np.ndarray], bool]:
    """Returns a function that tests whether given messages can be decoded."""
    # The code is a constant of the compiled function. As an argument, the float64
    # matrix of a NumPy code could be rounded to float32.
    decodes = jax.jit(lambda mask: code.decodes(mask, tolerance, decoder))
    # Results are cached, because the waiting rule and the end of the round test the
    # same masks, and masks recur in later rounds.
    known = functools.lru_cache(maxsize=10_000)(
        lambda mask: bool(decodes(np.frombuffer(mask, bool)))
    )
    return lambda mask: known(mask.tobytes())


def rules_of(
    code: GradientCode,
    wait: WaitingRule | None,
    decodes: Callable[[np.ndarray], bool],
    locator: ErrorLocator | None,
) -> Rules:
    """Returns the `Rules` of rounds; `RayCluster` documents the default of `wait`."""
    if wait is None and locator is not None:
        num_required = code.num_workers - code.num_stragglers + 2
        wait = fastest(min(code.num_workers, num_required))
    if wait is not None:
        validation.check_instance("wait", wait, WaitingRule, ", such as fastest(6)")
        # This call raises an error if the rule is for another number of workers.
        wait.ends(np.full(code.num_workers, np.inf))

    def ends(times: np.ndarray) -> float:
        if wait is None:
            return 0.0 if decodes(np.isfinite(times)) else np.inf
        return float(wait.ends(times))

    def can_be_used(mask: np.ndarray) -> bool:
        # With a locator, only messages in parity checks with other messages count.
        return decodes(mask if locator is None else locator.checked_by_others(mask))

    sees_workers = wait is not None and (
        wait.code is None or wait.code.messages_per_worker != code.messages_per_worker
    )
    return Rules(ends, can_be_used, sees_workers, code.num_stragglers)
