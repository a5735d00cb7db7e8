"""Attributes of a plan: ranked choices and their comparison."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jaxwgc.planning._choice import Choice
from jaxwgc.planning._convergence import Goal
from jaxwgc.stragglers import DelayModel
from jaxwgc.stragglers._models import Stalls

# Maximum number of rows of the table, besides the baseline.
_NUM_ROWS = 12


def best_by_code(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Returns the first choice of every code, separately with and without memory."""
    best: dict[tuple[int, bool], Choice] = {}
    for choice in choices:
        best.setdefault((id(choice.code), choice.memory), choice)
    return tuple(best.values())


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PlanData:
    """Attributes of a plan, without its text and figures."""

    choices: tuple[Choice, ...]
    goal: Goal
    num_rounds: int
    delay: DelayModel
    stalls: Stalls | None
    names: tuple[str, ...]
    lost: Mapping[int, int]
    without: "PlanData | None"
    overheads: Mapping[float, tuple[Choice, ...]]
    rate_without_waiting: float

    @property
    def best(self) -> Choice:
        """Best choice, or the choice that comes closest if none reaches the target."""
        return self.choices[0]

    @property
    def num_workers(self) -> int:
        """Number of workers that the plan is for."""
        return len(self.names)

    @property
    def followed(self) -> "PlanData":
        """Plan that the advice is for: `without` if it reaches the target, or self."""
        if self.without is not None and self.without.is_reached:
            return self.without
        return self

    @property
    def is_reached(self) -> bool:
        """True if the best choice reaches the target in finite time."""
        return math.isfinite(self.best.time.value)

    @property
    def gradients_without_waiting(self) -> float:
        """Number of gradients from workers that never wait, in the time of `best`.

        Each is the gradient of a load of 1, which is 1/n of the data. An exact step
        uses n of them. Infinite if the best choice does not reach the target.
        """
        return self.rate_without_waiting * self.best.time.value

    @property
    def by_code(self) -> tuple[Choice, ...]:
        """Best choice for every code and number of copies, in the order of `choices`.

        Choices with memory are listed separately.
        """
        return best_by_code(self.choices)

    @property
    def shown(self) -> tuple[Choice, ...]:
        """Rows of the table: the best choice of up to 12 codes, and `baseline`."""
        rows = self.by_code[:_NUM_ROWS]
        baseline = self.baseline
        if baseline is None or any(baseline is choice for choice in rows):
            return rows
        return (*rows, baseline)

    @property
    def uncoded(self) -> Choice | None:
        """Best choice with each part on one worker, or None."""
        uncoded = (choice for choice in self.choices if not choice.is_coded)
        return next(uncoded, None)

    @property
    def next_best(self) -> Choice | None:
        """Best choice that differs from `best` in code, copies or memory, or None."""
        return next(iter(self.by_code[1:]), None)

    @property
    def baseline(self) -> Choice | None:
        """Uncoded choice with equal loads that waits for all workers, or None."""
        baselines = (choice for choice in self.choices if choice.is_baseline)
        return next(baselines, None)
