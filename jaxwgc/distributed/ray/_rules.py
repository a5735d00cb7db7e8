"""Rules that end a round: the waiting rule, and whether its messages decode."""

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
    """Rules of a round, given by the code and the waiting rule.

    Attributes:
      ends: Waiting rule: maps the times so far to the time at which the round ends,
        infinity if it is not known.
      decodes: Whether a mask of messages can be decoded.
      sees_workers: On request, whether `ends` maps the times of workers, in place of
        those of messages.
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
    # The code is a constant of the program, because a NumPy code would lose precision
    # as an argument.
    decodes = jax.jit(lambda mask: code.decodes(mask, tolerance, decoder))
    # The cache helps, because the waiting rule and the end of the round use equal
    # masks, which recur in later rounds.
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
    """Returns the rules of rounds: see `RayCluster` for the default of `wait`."""
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
        # A message counts only if a check compares it with others.
        return decodes(mask if locator is None else locator.checked_by_others(mask))

    sees_workers = wait is not None and (
        wait.code is None or wait.code.messages_per_worker != code.messages_per_worker
    )
    return Rules(ends, can_be_used, sees_workers, code.num_stragglers)
