"""How far descent gets in which late answers are remembered: its gradients are old."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.studies._many_masks import decode_masks
from jaxwgc.studies._planning._simulated_rounds import Rounds
from jaxwgc.studies._planning._steps_to_target import Goal, quadratic

# Products of step and curvature, between which logarithms of losses are interpolated:
# for short ones these are in proportion.
_MOVES = np.concatenate([[0.0], 2.0 * np.geomspace(1e-5, 0.98, 80)[40:]])
# Rounds of a run that are followed. After them what is left shrinks as fast as in their
# last half.
FOLLOWED = 150
# Rounds after those, up to which a worker is not known.
_LATER = np.append(0.0, np.geomspace(1.0, 1e9, 121))
_LEAST = 1e-300


class RememberedDescent(NamedTuple):
    """Descent on quadratics, by the ages that the messages of simulated rounds had.

    Linear in what is at the start and in the gradients that the parts have at the
    optimum. These cancel as soon as all workers are known, so until then they matter.

    Attributes:
      left: (..., moves, 1 + rounds), mean square of what is left of a distance of one.
      displaced: as left, of the distance that a step of one brings the gradients of
        parts which are known later than others, for a mean square of one.
      unknown: (..., times), mean square of the weights of parts that are not known
        after the rounds and so many more.
    """

    left: np.ndarray
    displaced: np.ndarray
    unknown: np.ndarray

    @classmethod
    def of(cls, code: GradientCode, rounds: Rounds) -> "RememberedDescent":
        """A row a run, of rounds whose leaves are (runs, rounds, ...)."""
        rounds = Rounds(*(leaf[:, :FOLLOWED] for leaf in rounds))
        ages, weights, known = _used(code, rounds)
        num_runs, num_rounds, _ = ages.shape
        # Who is not known and not at work will never be.
        remaining, pace = rounds.remaining[:, -1], rounds.elapsed.mean(1)[:, None]
        until = np.where(known, 0, np.where(remaining > 0, remaining / pace, np.inf))
        is_unknown = until.max(1)[:, None] > _LATER
        unknown = np.mean(weights[:, -1] ** 2, axis=-1)[:, None] * is_unknown
        # Weights that change with the rounds move the parameters in few directions.
        left, sizes, _ = np.linalg.svd(weights - weights[:, -1:], full_matrices=False)
        number = int((sizes > 1e-6).sum(-1).max())
        forces = (left * sizes[:, None])[..., :number] / np.sqrt(weights.shape[-1])
        places = np.zeros((num_runs, len(_MOVES), num_rounds + 1, 1 + number))
        places[:, :, 0, 0] = 1
        for t in range(num_rounds):
            seen = ages[:, None, None, t, : t + 1] @ places[:, :, : t + 1]
            places[:, :, t + 1] = places[:, :, t] - _MOVES[:, None] * seen[:, :, 0]
            places[:, :, t + 1, 1:] -= forces[:, None, t]
        square = places**2
        return cls(square[..., 0], square[..., 1:].sum(-1), unknown)

    def over_steps(self) -> "RememberedDescent":
        """With an axis at the end, for steps."""
        return RememberedDescent(
            self.left[..., None, :, :],
            self.displaced[..., None, :, :],
            self.unknown[..., None, :],
        )

    def loss(
        self, step: Any, goal: Goal, num_steps: np.ndarray | float = np.inf
    ) -> np.ndarray:
        """As that of `Weights`."""
        curvature, parts = quadratic(goal)
        step, steps = np.asarray(step)[..., None], np.asarray(num_steps)[..., None]
        last = self.left.shape[-1] - 1
        more = np.maximum(steps - last, 0.0)
        at = _Place.of(step * curvature, np.minimum(steps, last), self.left.shape[:-2])
        left, displaced = (at.logarithm(each) for each in (self.left, self.displaced))
        pace = at.last_slope(self.left)
        with np.errstate(over="ignore", invalid="ignore"):
            later = np.where(more > 0, more * pace, 0.0)
            left, displaced = np.exp(left + later), np.exp(displaced + later)
            unknown = self.unknown.reshape(-1, self.unknown.shape[-1])
            unknown = unknown[at.run, _LATER.searchsorted(more, "right") - 1]
            biased = unknown / curvature**2 * (1 - np.sqrt(left)) ** 2
            loss = left + parts * curvature * (step**2 * displaced + biased)
            return np.where((pace < 0).all(-1), loss.mean(-1), np.inf)


class _Place(NamedTuple):
    """Between which entries of (..., moves, rounds) numbers lie, and how far."""

    run: np.ndarray
    move: np.ndarray
    past_move: np.ndarray
    time: np.ndarray

    @classmethod
    def of(cls, moved, time, runs):
        run = np.arange(math.prod(runs)).reshape(*runs, 1)
        moved, time, run = np.broadcast_arrays(moved, time, run)
        move = np.clip(_MOVES.searchsorted(moved) - 1, 0, len(_MOVES) - 2)
        past = (moved - _MOVES[move]) / (_MOVES[move + 1] - _MOVES[move])
        return cls(run, move, past, time)

    def logarithm(self, values):
        """Interpolated in both directions."""
        first = np.floor(self.time).astype(int)
        before = self._at(values, first)
        after = self._at(values, np.minimum(first + 1, values.shape[-1] - 1))
        return before + (self.time - first) * (after - before)

    def last_slope(self, values):
        """Returns the slope of the logarithm, in the last half of the rounds."""
        last = values.shape[-1] - 1
        end, middle = self._at(values, last), self._at(values, last // 2)
        is_gone = end <= np.log(_LEAST)
        return np.where(is_gone, end / last, (end - middle) / (last - last // 2))

    def _at(self, values, time):
        values = values.reshape(-1, *values.shape[-2:])
        low, high = (
            np.log(np.maximum(values[self.run, move, time], _LEAST))
            for move in (self.move, self.move + 1)
        )
        return low + self.past_move * (high - low)


def _used(code, rounds):
    """Returns what gradients are made of, as `jaxwgc.coding.Memory` remembers messages.

    Weights (runs, rounds, rounds) of the parameters of each round in each gradient;
    (runs, rounds, parts), by how much those of parts differ from their mean; and who is
    known at the end, (runs, workers).
    """
    received, joined, late = rounds.received, rounds.joined, rounds.late
    shape = num_runs, num_rounds, _ = received.shape
    answered = received | late
    known = np.logical_or.accumulate(answered, axis=1)
    number = num_runs * num_rounds
    masks = np.concatenate([received.reshape(number, -1), known.reshape(number, -1)])
    decoded = decode_masks(code, masks)
    now, all_known = decoded.weights.reshape(2, *shape)
    target = np.asarray(code.target, np.float64)
    size = target @ target
    is_exact = decoded.errors[:number].reshape(shape[:2]) <= DECODES**2 * size
    effective = decoded.effective_weights[number:].reshape(*shape[:2], -1)
    share = (effective @ target / size)[..., None]
    scale = np.where(share > 0, share, 1)
    effective = np.where(is_exact[..., None], target, effective / scale)
    # Of each worker: what its new message has, and what its remembered one.
    old = np.where(is_exact[..., None], 0.0, all_known / scale - now)
    of_worker = (np.asarray(code.encoding_matrix) @ target) / size
    begun = np.zeros((num_runs, shape[2]), int)
    newest = np.zeros_like(begun)
    ages = np.zeros((num_runs, num_rounds, num_rounds))
    run = np.arange(num_runs)[:, None]
    before = np.zeros_like(begun, dtype=bool)
    for t in range(num_rounds):
        newest = np.where(late[:, t] & ~received[:, t], begun, newest)
        before |= late[:, t] & ~received[:, t]
        begun = np.where(joined[:, t], t, begun)
        newest = np.where(received[:, t] & ~before, t, newest)
        of_old = (old[:, t] * of_worker).real
        np.add.at(ages[:, t], (run, newest), of_old)
        ages[:, t, t] += (now[:, t] @ of_worker).real
        newest = np.where(received[:, t], t, newest)
        before |= received[:, t]
    deviations = effective - target
    return ages, deviations / np.sqrt(np.mean(target**2)), known[:, -1]
