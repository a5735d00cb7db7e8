"""Order of the choices of a plan: costs of reaching the target, and regret."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxwgc.studies._planning import _convergence
from jaxwgc.studies._planning._choice import UNKNOWN, Choice, Estimate
from jaxwgc.studies._planning._convergence import Goal, StaleDescent, Weights

# Differences of regret below which choices count as equally good.
_SAME_REGRET = 1e-3


def ranked_choices(judged: Sequence[Choice], goal: Goal, size: float) -> list[Choice]:
    """Sorts choices by regret; without stalls this is the order of their times.

    Choices have statistics of their rounds without stalls and, if stalls are not ruled
    out, with them. A gradient has `size` bytes.
    """
    cases = zip(*(choice.rounds for choice in judged), strict=True)
    cases = [_to_target(statistics, goal) for statistics in cases]
    calm = cases[0]
    stalled = cases[-1]
    regret = np.max([case.regret for case in cases], axis=0)
    seconds = calm.seconds[:, 0]
    times = calm.times[:, 0]
    # Of choices that are equally good up to rounding, the one with the fewest copies is
    # the first.
    copies = [choice.replication for choice in judged]
    rounded_regret = np.round(regret / _SAME_REGRET)
    keys = (seconds, calm.lowest, np.isinf(seconds), times, copies, rounded_regret)
    order = np.lexsort(keys)
    best = calm.times[order[0]]

    def filled(index):
        choice = judged[index]
        rounds = choice.rounds[0]
        step_time = _jackknife(calm.seconds[index])
        # A round that does not end decodes nothing.
        ends = math.isfinite(step_time.value)
        sent = choice.code.num_workers + rounds.num_answers / choice.code.num_segments
        return choice._replace(
            step_time=step_time,
            step_quantile=rounds.quantile,
            stalled_step_time=_jackknife(stalled.seconds[index]),
            is_closed_form=rounds.is_closed_form,
            decoding_error=_jackknife(rounds.error) if ends else UNKNOWN,
            num_answers=rounds.num_answers,
            num_bytes=sent * size,
            num_steps=float(calm.steps[index, 0]),
            step_size=float(calm.step[index]),
            lowest_loss=float(calm.lowest[index]) if ends else 1.0,
            time=_jackknife(calm.times[index]),
            stalled_time=_jackknife(stalled.times[index]),
            behind=_jackknife(calm.times[index] - best),
            regret=float(regret[index]),
        )

    # Differences of infinite times are NaN, which is no reason to warn.
    with np.errstate(invalid="ignore"):
        return [filled(index) for index in order]


class _ToTarget(NamedTuple):
    """Costs of reaching the target: a row per choice, and columns of `leave_one_out`.

    These are the step size, number of steps, time of one step and of all, final loss,
    and relative excess over the shortest time. Step size, loss and excess have one
    column. The excess is 0 if all times are infinite.
    """

    step: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray
    times: np.ndarray
    lowest: np.ndarray
    regret: np.ndarray


def _to_target(judged, goal):
    """Computes costs from all groups of rounds (column 0), and without one group.

    Standard errors follow by the jackknife.
    """
    seconds = np.stack([each.seconds for each in judged])
    weights = Weights(*map(np.stack, zip(*(each.weights for each in judged))))
    whole = Weights(*(column[:, 0] for column in weights))
    step = _convergence.best_step(whole, goal)
    steps = _convergence.num_steps(weights, step[:, None], goal)
    lowest = whole.loss(step, goal)(np.inf)
    for index, statistics in enumerate(judged):
        if (descent := statistics.descent) is not None:
            whole = StaleDescent(*(column[0] for column in descent))
            step[index] = _convergence.best_step(whole, goal)
            steps[index] = _convergence.num_steps(descent, step[index], goal)
            lowest[index] = whole.loss(step[index], goal)(np.inf)
    times = np.where(np.isfinite(steps), steps * seconds, np.inf)
    with np.errstate(invalid="ignore"):
        excess = times[:, 0] / times[:, 0].min() - 1
    regret = np.nan_to_num(excess, posinf=np.inf)
    return _ToTarget(step, steps, seconds, times, lowest, regret)


def _jackknife(values):
    """Returns an estimate with its jackknife error, NaN if a value is infinite."""
    variance = (len(values) - 2) * np.var(values[1:] - values[0])
    error = math.sqrt(variance) if np.isfinite(variance) else math.nan
    return Estimate(float(values[0]), error)
