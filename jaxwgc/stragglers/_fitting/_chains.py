"""Two-state Markov chain of slow spells, as a hidden Markov model of times."""

import numpy as np

# Bound of probabilities: at 0 or 1 the iteration would not move.
_SMALLEST = 1e-6
# Bound of log-likelihood ratios, so that their exponentials are finite.
_MOST_EVIDENCE = 700.0


def predictions(
    log_likelihoods: np.ndarray, become_slow: float, become_fast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes state probabilities of each round, given earlier rounds (filter).

    Args:
      log_likelihoods: Log-likelihood of each time for fast and slow workers,
        (2, rounds, workers).
      become_slow: Probability that a fast worker is slow in the next round.
      become_fast: Probability that a slow worker is fast in the next round.

    Returns:
      The probability of the slow state before the time of the round is known, and the
      log-likelihood of that time, (rounds, workers) each.
    """
    fast_log, slow_log = log_likelihoods
    with np.errstate(invalid="ignore"):
        evidence = np.clip(slow_log - fast_log, -_MOST_EVIDENCE, _MOST_EVIDENCE)
    # A time that is impossible in both states gives no information.
    odds = np.exp(np.where(np.isnan(evidence), 0.0, evidence))
    before = np.empty_like(odds)
    slow = become_slow / (become_slow + become_fast)
    for number, odd in enumerate(odds):
        before[number] = slow
        known = slow * odd / (1 - slow + slow * odd)
        slow = known * (1 - become_fast) + (1 - known) * become_slow
    with np.errstate(divide="ignore"):
        joint = np.log1p(-before) + fast_log, np.log(before) + slow_log
    return before, np.logaddexp(*joint)


def responsibilities(
    log_likelihoods: np.ndarray, become_slow: float, become_fast: float
) -> tuple[np.ndarray, float, float]:
    """Computes state probabilities of each round, given all rounds (smoother).

    Args:
      log_likelihoods: See `predictions`.
      become_slow: See `predictions`.
      become_fast: See `predictions`.

    Returns:
      The probability of the slow state (rounds, workers), and the next estimates of
      `become_slow` and `become_fast`: frequencies of transitions.

    References:
      Baum, Petrie, Soules, Weiss, "A maximization technique occurring in the
      statistical analysis of probabilistic functions of Markov chains", 1970.
    """
    before, total = predictions(log_likelihoods, become_slow, become_fast)
    prior = np.stack([1 - before, before])
    given = np.exp(log_likelihoods - _finite(total)) * prior
    given = np.where(np.isfinite(total), given, prior)
    transition = np.array(
        [[1 - become_slow, become_slow], [become_fast, 1 - become_fast]]
    )
    smoothed = [given[:, -1]]
    moves = np.zeros((2, 2))
    for later in range(len(before) - 1, 0, -1):
        ratio = smoothed[-1] / np.maximum(prior[:, later], 1e-300)
        joint = given[:, later - 1, None] * transition[:, :, None] * ratio
        moves += joint.sum(-1)
        smoothed.append(joint.sum(1))
    slow = np.stack(smoothed[::-1])[:, 1]
    counts = np.maximum(moves.sum(1), 1e-300)
    # A chain without transitions gets the observed shares as stationary distribution.
    share = np.clip(slow.mean(), _SMALLEST, 1 - _SMALLEST)
    least = _SMALLEST * np.array([share, 1 - share])
    chances = np.clip([moves[0, 1], moves[1, 0]] / counts, least, 1 - least)
    return slow, float(chances[0]), float(chances[1])


def _finite(values):
    return np.where(np.isfinite(values), values, 0)
