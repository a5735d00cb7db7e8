"""Estimates of straggler probabilities from measured rounds."""

from typing import Any

from jaxwgc import _validation
from jaxwgc.studies._monte_carlo import Summary, summarize


def straggler_probabilities(received: Any, confidence: float = 0.95) -> Summary:
    """Estimates the straggler probability of each worker, with intervals.

    Rounds may come from a trace with a waiting rule, from a straggler model, or from
    training (stacked `received` of `RayCluster.compute`). For x of N rounds without a
    response, the estimate is (x + ½) / (N + 1): x / N would be 0 for a worker that has
    always responded, and `codes.unequal` would give it all parts.

    Args:
      received: Which workers responded in each round, bool (rounds, num_workers).
      confidence: Level of the intervals, between 0 and 1.

    Returns:
      A `Summary` of (num_workers,), NumPy float64: the estimates as `mean`, with
      Wilson's intervals (continuity correction), as in `jaxwgc.summarize`. Rounds are
      assumed independent: for workers with slow spells, intervals are too narrow.

    Raises:
      ValueError: If received does not have two axes or is empty, or confidence is not
        between 0 and 1.
      TypeError: If received is not bool or is traced.

    Example:
      From a trace, with a deadline of two seconds:

      >>> import jax, numpy as np
      >>> from jaxwgc import codes, stragglers, studies
      >>> times = np.random.default_rng(0).exponential([0.5, 1.0, 2.0], (500, 3))
      >>> wait, key = stragglers.deadline(2.0), jax.random.key(0)
      >>> arrivals = jax.vmap(lambda row: wait.arrivals(key, row))(times)
      >>> estimates = studies.straggler_probabilities(arrivals.received)
      >>> estimates.mean.round(3)
      array([0.019, 0.149, 0.358])
      >>> estimates.low.round(3), estimates.high.round(3)
      (array([0.009, 0.119, 0.316]), array([0.035, 0.183, 0.402]))
      >>> code = codes.unequal(estimates.mean, num_parts=6)

    References:
      Krichevsky, Trofimov, "The performance of universal encoding", IEEE Transactions
      on Information Theory 27, 1981 (the added ½); Newcombe, "Two-sided
      confidence intervals for the single proportion", 1998.
    """
    sizes = {"rounds": "any", "num_workers": "any"}
    received = _validation.host_array("received", received, "bools", **sizes)
    rounds = len(received)
    lost = ~received
    estimates = (lost.sum(0) + 0.5) / (rounds + 1)
    return summarize(lost, confidence)._replace(mean=estimates)
