"""Ranking of judged candidates by their time to the target."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxwgc.studies._planning import _steps_to_target
from jaxwgc.studies._planning._choice import Choice, Estimate, RoundStatistics
from jaxwgc.studies._planning._remembered import RememberedDescent
from jaxwgc.studies._planning._steps_to_target import Goal, Weights


def ranked_choices(
    judged: Sequence[Choice], goal: Goal, gradient_bytes: float
) -> list[Choice]:
    """Sorts choices by regret; without stalls this is the order of their times.

    Choices have statistics of their rounds without stalls and, if stalls are not ruled
    out, with them.
    """
    each = [
        _to_target(statistics, goal)
        for statistics in zip(*(choice.rounds for choice in judged), strict=True)
    ]
    calm, stalled = each[0], each[-1]
    regret = np.max([needed.regret for needed in each], axis=0)
    is_endless = np.isinf(calm.seconds[:, 0])
    order = np.lexsort(
        (calm.seconds[:, 0], calm.lowest, is_endless, calm.times[:, 0], regret)
    )
    best = calm.times[order[0]]

    def filled(index):
        choice, rounds = judged[index], judged[index].rounds
        answers = float(rounds[0].answers.mean())
        length = 1 / choice.code.num_segments
        return choice._replace(
            step_time=_jackknife(calm.seconds[index]),
            step_quantile=rounds[0].quantile,
            stalled_step_time=_jackknife(stalled.seconds[index]),
            is_closed_form=rounds[0].is_closed_form,
            decoding_error=_jackknife(_leave_one_out(rounds[0].error)),
            num_answers=answers,
            num_bytes=(choice.code.num_workers + answers * length) * gradient_bytes,
            num_steps=float(calm.steps[index, 0]),
            step_size=float(calm.step[index]),
            lowest_loss=float(calm.lowest[index]),
            time=_jackknife(calm.times[index]),
            stalled_time=_jackknife(stalled.times[index]),
            behind=_difference(calm.times[index], best),
            regret=float(regret[index]),
        )

    return [filled(index) for index in order]


class _ToTarget(NamedTuple):
    """Costs of the candidates, (rows, columns), with columns of `_leave_one_out`.

    These are the step size (one column), number of steps, time of one step and of all,
    and the final loss (one column).
    """

    step: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray
    times: np.ndarray
    lowest: np.ndarray

    @property
    def regret(self) -> np.ndarray:
        """Returns the relative excess over the fastest; 0 if none is finite."""
        least = self.times[:, 0].min()
        if np.isinf(least):
            return np.zeros(len(self.times))
        return self.times[:, 0] / least - 1


def _to_target(judged: Sequence[RoundStatistics], goal: Goal) -> _ToTarget:
    """Computes costs with all groups of rounds (column 0), and without each group.

    Standard errors follow by the jackknife.
    """
    seconds = np.stack([_leave_one_out(each.seconds) for each in judged])
    rows = [_weights(statistics) for statistics in judged]
    weights = Weights(*map(np.stack, zip(*rows)))
    whole = Weights(*(column[:, 0] for column in weights))
    step = _steps_to_target.best_step(whole, goal)
    steps = _steps_to_target.num_steps(weights, step[:, None], goal)
    lowest = whole.loss(step, goal)
    for index, statistics in enumerate(judged):
        if statistics.remembered is not None:
            groups = RememberedDescent(*map(_leave_one_out, statistics.remembered))
            all_groups = RememberedDescent(*(column[0] for column in groups))
            step[index] = _steps_to_target.best_step(all_groups, goal)
            steps[index] = _steps_to_target.num_steps(groups, step[index], goal)
            lowest[index] = all_groups.loss(step[index], goal)
    times = np.where(np.isfinite(steps), steps * seconds, np.inf)
    return _ToTarget(step, steps, seconds, times, lowest)


def _weights(judged: RoundStatistics) -> Weights:
    """Returns moments of weights for the model of the steps."""
    scale, square = _leave_one_out(judged.scale), _leave_one_out(judged.scale_square)
    deviation = _leave_one_out(judged.deviation)
    # Without any decoded gradient the target is not reached.
    size = np.where(scale > 0, scale, np.nan) ** 2
    return Weights(
        noise=np.maximum(deviation - judged.bias, 0) / size,
        bias=np.minimum(judged.bias, deviation) / size,
        scale_variance=np.maximum(square - scale**2, 0) / size,
        lasting=np.full_like(scale, judged.lasting),
        correlation=np.full_like(scale, judged.correlation),
    )


def _leave_one_out(groups: np.ndarray) -> np.ndarray:
    """Returns the mean of all groups, and means without each: (1 + groups, ...)."""
    total, number = groups.sum(0), len(groups)
    with np.errstate(invalid="ignore"):
        without = (total - groups) / (number - 1)
    # Without an infinite group, the mean of the others may be finite.
    without = np.where(np.isinf(total), np.inf, without)
    return np.concatenate([total[None] / number, without])


def _jackknife(values: np.ndarray) -> Estimate:
    """Returns an estimate from all groups, with its jackknife error."""
    if not np.isfinite(values).all():
        return Estimate(float(values[0]), math.nan)
    number = len(values) - 1
    spread = math.sqrt((number - 1) * np.var(values[1:]))
    # A value that is constant over groups varies only by rounding.
    is_noise = spread > 1e-12 * abs(values[0])
    return Estimate(float(values[0]), spread if is_noise else 0.0)


def _difference(values: np.ndarray, best: np.ndarray) -> Estimate:
    """Estimates a paired difference; NaN for infinite values."""
    if np.isinf(best[0]):
        return Estimate(math.nan, math.nan)
    if np.isinf(values[0]):
        return Estimate(math.inf, math.nan)
    with np.errstate(invalid="ignore"):
        return _jackknife(values - best)
