"""Rounds that end once their messages decode, found by a search over distinct masks."""

import numpy as np

from jaxwgc.codes import GradientCode
from jaxwgc.simulation._masks import decode_packed, distinct_rows
from jaxwgc.simulation._program_arguments import with_one_decoder
from jaxwgc.stragglers import UntilDecodable, WaitingRule


def can_search(rule: WaitingRule, late: str) -> bool:
    """Returns whether `ends_of_rounds` finds the ends of rounds of a waiting rule."""
    if not isinstance(rule, UntilDecodable) or late != "cancelled":
        return False
    return rule.code.messages_per_worker == 1


def ends_of_rounds(rule: UntilDecodable, times: np.ndarray) -> np.ndarray:
    """Returns when the rounds of `stragglers.until_decodable` end, (trials,).

    Responses are counted in the order of their times. The smallest number of responses
    that decodes is found for all trials together, by bisection: each step decodes the
    distinct masks of one number per trial.

    Args:
      rule: Waiting rule for a code with one message per worker.
      times: Finish times, (trials, num_workers).
    """
    code = with_one_decoder(rule.code, rule.decoder)
    num_trials, num_workers = times.shape
    in_order = np.sort(times, axis=1)
    trials = np.arange(num_trials)
    # `low` responses do not decode, and `high` responses decode. num_workers + 1 stands
    # for rounds that never decode.
    low = np.zeros(num_trials, int)
    high = np.full(num_trials, num_workers + 1)
    # Exact codes decode from this number of responses. Most of them need all of these.
    num_enough = num_workers - int(np.asarray(code.num_stragglers))
    first_guesses = [num_enough, num_enough - 1]
    while np.any(high - low > 1):
        middle = (low + high) // 2
        if first_guesses:
            guess = first_guesses.pop(0)
            middle = np.where((low < guess) & (guess < high), guess, middle)
        open_trials = trials[high - low > 1]
        now = in_order[open_trials, middle[open_trials] - 1]
        decodes = _decode(code, times[open_trials], now, rule.tolerance)
        decoded = open_trials[decodes]
        undecoded = open_trials[~decodes]
        high[decoded] = middle[decoded]
        low[undecoded] = middle[undecoded]
    # A round that does not decode lasts until all workers have responded.
    num_awaited = np.minimum(high, num_workers)
    return in_order[trials, num_awaited - 1]


def _decode(
    code: GradientCode, times: np.ndarray, now: np.ndarray, tolerance: float
) -> np.ndarray:
    """Returns whether the responses until `now` decode, bool (trials,)."""
    received = (times <= now[:, None]) & np.isfinite(times)
    masks, places = distinct_rows(np.packbits(received, axis=1))
    decodes = decode_packed(code, masks).residual <= tolerance
    return decodes[places]
