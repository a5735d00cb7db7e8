"""Costs of reaching the target, and the order of choices by regret."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxwgc.planning import _convergence
from jaxwgc.planning._choice import Candidate, Choice, Estimate, RoundStatistics
from jaxwgc.planning._convergence import Goal, Quadratic

# Difference of regret below which choices are equally good.
_SAME_REGRET = 1e-3
_UNKNOWN = Estimate(math.nan, math.nan)


def ranked_choices(
    candidates: Sequence[Candidate],
    rounds: Sequence[tuple[RoundStatistics, ...]],
    goal: Goal,
) -> tuple[Choice, ...]:
    """Returns candidates as choices with their costs, sorted by regret.

    Args:
      candidates: Candidates.
      rounds: Statistics of the rounds of each candidate without stalls and, if stalls
        are not ruled out, with them.
      goal: Target, and the problem to solve.
    """
    problem = Quadratic.of(goal, candidates[0].code.num_workers)
    cases = [_to_target(case, problem) for case in zip(*rounds, strict=True)]
    calm = cases[0]
    stalled = cases[-1]
    regret = np.max([case.regret for case in cases], axis=0)
    least_regret = np.min([case.regret for case in cases], axis=0)
    order = _order(candidates, calm, regret, least_regret)
    best_times = calm.times[order[0]]
    choices = []
    for index in order:
        candidate = candidates[index]
        calm_rounds = rounds[index][0]
        step_time = jackknife(calm.seconds[index])
        # If some rounds never end, the decoding error is unknown, and training stays at
        # its initial loss.
        ends = math.isfinite(step_time.value)
        # The difference of two infinite times is NaN. NumPy shall not warn about it.
        with np.errstate(invalid="ignore"):
            behind = jackknife(calm.times[index] - best_times)
        choice = Choice(
            name=candidate.name,
            code=candidate.code,
            wait=candidate.wait,
            late=candidate.late,
            memory=candidate.memory,
            by_speed=candidate.by_speed,
            step_time=step_time,
            step_quantile=calm_rounds.quantile,
            stalled_step_time=jackknife(stalled.seconds[index]),
            is_closed_form=calm_rounds.is_closed_form,
            decoding_error=jackknife(calm_rounds.error) if ends else _UNKNOWN,
            num_messages=calm_rounds.num_messages,
            num_steps=float(calm.num_steps[index, 0]),
            step_size=float(calm.step_size[index]),
            lowest_loss=float(calm.lowest_loss[index]) if ends else 1.0,
            time=jackknife(calm.times[index]),
            stalled_time=jackknife(stalled.times[index]),
            behind=behind,
            regret=float(regret[index]),
            rounds=rounds[index],
        )
        choices.append(choice)
    return tuple(choices)


class _ToTarget(NamedTuple):
    """Costs of candidates until the target is reached.

    Attributes:
      step_size: Best constant step size, (candidates,).
      num_steps: Number of steps, (candidates, jackknife samples); infinite if the
        target is not reached.
      seconds: Time of one step, (candidates, jackknife samples).
      times: Time of all steps, (candidates, jackknife samples).
      lowest_loss: Final loss, (candidates,).
      regret: Relative excess over the shortest time, (candidates,). 0 if all times are
        infinite.
    """

    step_size: np.ndarray
    num_steps: np.ndarray
    seconds: np.ndarray
    times: np.ndarray
    lowest_loss: np.ndarray
    regret: np.ndarray


def _to_target(rounds: Sequence[RoundStatistics], problem: Quadratic) -> _ToTarget:
    """Computes the costs of candidates until the target is reached.

    Standard errors follow from the jackknife samples: all clusters, then all but one.
    """
    seconds = np.stack([statistics.seconds for statistics in rounds])
    # Weights of all candidates, (candidates, jackknife samples). The first sample is
    # from all clusters.
    weights_of_candidates = [statistics.weights for statistics in rounds]
    weights = jax.tree.map(lambda *moments: np.stack(moments), *weights_of_candidates)
    weights_of_all = jax.tree.map(lambda moments: moments[:, 0], weights)
    step_size = _convergence.best_step(weights_of_all, problem)
    num_steps = _convergence.num_steps(weights, step_size[:, None], problem)
    lowest_loss = weights_of_all.loss(step_size, problem)(np.inf)
    for index, statistics in enumerate(rounds):
        descent = statistics.descent
        if descent is None:
            continue
        descent_of_all = jax.tree.map(lambda moments: moments[0], descent)
        step_size[index] = _convergence.best_step(descent_of_all, problem)
        num_steps[index] = _convergence.num_steps(descent, step_size[index], problem)
        lowest_loss[index] = descent_of_all.loss(step_size[index], problem)(np.inf)
    times = np.where(np.isfinite(num_steps), num_steps * seconds, np.inf)
    with np.errstate(invalid="ignore"):
        excess = times[:, 0] / times[:, 0].min() - 1
    return _ToTarget(
        step_size=step_size,
        num_steps=num_steps,
        seconds=seconds,
        times=times,
        lowest_loss=lowest_loss,
        regret=np.nan_to_num(excess, posinf=np.inf),
    )


def _order(
    candidates: Sequence[Candidate],
    calm: _ToTarget,
    regret: np.ndarray,
    least_regret: np.ndarray,
) -> np.ndarray:
    """Returns the indices of candidates in order, the best first.

    Candidates with equal regret, up to 0.001, are ordered by their regret in the other
    case, then by their number of copies. Candidates that do not reach the target are
    ordered by their final loss.

    Args:
      candidates: Candidates.
      calm: Costs without stalls.
      regret: Regret in the worse case of each candidate.
      least_regret: Regret in its other case.
    """
    seconds = calm.seconds[:, 0]
    # In `lexsort`, the last key has the highest priority.
    keys = (
        seconds,
        calm.lowest_loss,
        np.isinf(seconds),
        calm.times[:, 0],
        np.array([candidate.copies for candidate in candidates]),
        np.round(least_regret / _SAME_REGRET),
        np.round(regret / _SAME_REGRET),
    )
    return np.lexsort(keys)


def jackknife(values: np.ndarray) -> Estimate:
    """Computes an estimate and its standard error by the jackknife.

    Args:
      values: Estimate from all groups, then estimates that leave out one group each.
    """
    with np.errstate(invalid="ignore"):
        variance = (len(values) - 2) * np.var(values[1:] - values[0])
    error = math.sqrt(variance) if np.isfinite(variance) else math.nan
    return Estimate(value=float(values[0]), standard_error=error)
