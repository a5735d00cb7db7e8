"""How often each worker straggles, from rounds that were measured."""

from typing import Any

from jaxwgc import _validation
from jaxwgc.studies._monte_carlo import Summary, summarize


def straggler_probabilities(received: Any, confidence: float = 0.95) -> Summary:
    """Estimates how often each worker straggles, with intervals.

    From the rounds of a trace under a waiting rule, of a straggler model, or those that
    were trained with (`received` of `RayCluster.compute`, one below the other). Of x
    rounds out of N without an answer it makes (x + ½) / (N + 1), since x / N is 0 for a
    worker that has answered every time, and `codes.unequal` would trust it with all
    parts.

    Args:
      received: bool (rounds, num_workers), who answered in each round.
      confidence: of the intervals, between 0 and 1.

    Returns:
      A `Summary` of (num_workers,), NumPy float64: the estimates as `mean`, and
      Wilson's intervals with continuity correction, as of `jaxwgc.summarize`. They take
      rounds for independent: of workers that are slow for a while they are too narrow.

    Raises:
      ValueError: where received has not two axes or is empty, or confidence is not
        between 0 and 1.
      TypeError: where received is not bool or is traced.

    Example:
      Of a trace, with a deadline of two seconds:

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
      on Information Theory 27, 1981 (the half that is added); Newcombe, "Two-sided
      confidence intervals for the single proportion", 1998.
    """
    sizes = {"rounds": "any", "num_workers": "any"}
    received = _validation.host_array("received", received, "bools", **sizes)
    rounds = len(received)
    lost = ~received
    estimates = (lost.sum(0) + 0.5) / (rounds + 1)
    return summarize(lost, confidence)._replace(mean=estimates)
