"""Result of a plan: ranked choices, and plans for other goals."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxwgc.planning import _figures, _tables
from jaxwgc.planning._choice import Choice
from jaxwgc.planning._convergence import Goal
from jaxwgc.planning._ranking import ranked_choices
from jaxwgc.stragglers import DelayModel, Stalls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maximum number of rows of the table, besides the baseline.
_NUM_ROWS = 12


def best_by_code(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Returns the first choice of every code, with and without memory."""
    best: dict[tuple[int, bool], Choice] = {}
    for choice in choices:
        best.setdefault((id(choice.code), choice.memory), choice)
    return tuple(best.values())


class Plan(NamedTuple):
    """Result of `plan`; `print` shows the advice and a table.

    Attributes:
      choices: Every `Choice`, by increasing `regret` in steps of a thousandth; of
        choices with equal regret, those with the fewest copies come first. Choices that
        do not reach the target are last, ordered by their final loss.
      num_workers: Number of workers, n.
      target: Loss above its minimum to reach, relative to the initial one.
      condition: Ratio of the largest to the smallest curvature.
      heterogeneity: Mean square of the gradients of the parts at the optimum, relative
        to the initial gradient.
      num_rounds: Number of simulated rounds, for times or weights without a closed
        form.
      num_parameters: Length of the gradient.
      bytes_per_number: Bytes of a parameter and of a number in a message.
      delay: Delay model of the plan, with which `choice.model(plan.delay)` simulates a
        choice. That of `without` has the other workers, with all of the work.
      stalls: Stalls that the trace does not rule out; None for parametric delay models.
      names: Names of the workers.
      lost: Workers that do not respond: for the index of each, the round of the trace
        since which it has not, or 0.
      without: Plan for the other workers, with all of the data; None if no worker is
        lost, or if codes, choices or waiting rules were given.
      overheads: The choices of `by_code` in order, if a share of each time did not
        depend on the load, by this share. Empty unless times were measured at one load.

    Example:
      With heavy-tailed times, a second copy of the work pays:

      >>> import jax, jaxwgc
      >>> from jaxwgc import stragglers
      >>> plan = jaxwgc.plan(
      ...     stragglers.pareto(scale=1.0, shape=1.5),
      ...     4,
      ...     jax.random.key(0),
      ...     replications=[2],
      ...     waiting=[lambda code: stragglers.fastest(4 - code.num_stragglers)],
      ...     late="cancelled",
      ...     exact=True,
      ... )
      >>> print(plan)
      Code: replicated with 2 copies, waiting for the first 3 of 4 workers.
      Next best: fractional_repetition with 2 copies, waiting for the first 3 of 4
      workers, takes as long (± 0.0).
      Not coding: uncoded, waiting for all 4 workers, takes 50.0% longer (± 0.0).
      <BLANKLINE>
      code                  d waits for   step    90%  error    MB  steps   time  ±
      replicated            2 first 3    4.629  7.329   0.0%  28.0  67.12  310.7  0
      fractional_repetition 2 first 3    4.629  7.329   0.0%  28.0  67.12  310.7  0
      uncoded               1 all        6.943  11.40   0.0%  32.0  67.12  466.0  0
      <BLANKLINE>
      d: copies of a part; step, 90%: mean and quantile of the time of a step, in the
      unit of the delay model; error: squared, relative, mean over rounds; MB: through
      the coordinator in a step, for 1,000,000 parameters; steps, time: to a loss of
      0.01 of the start with condition 100 and heterogeneity 0.1; -: never; ±: one
      standard error. Sorted by time. For each code, the best waiting rule is shown,
      of 3 choices in total.
      >>> plan.best.name, plan.best.waits_for
      ('replicated', 'first 3')
    """

    choices: tuple[Choice, ...]
    num_workers: int
    target: float
    condition: float
    heterogeneity: float
    num_rounds: int
    num_parameters: int
    bytes_per_number: float
    delay: DelayModel
    stalls: Stalls | None = None
    names: tuple[str, ...] = ()
    lost: Mapping[int, int] = MappingProxyType({})
    without: "Plan | None" = None
    overheads: Mapping[float, tuple[Choice, ...]] = MappingProxyType({})

    @property
    def best(self) -> Choice:
        """Best choice; if none reaches the target, the one that comes closest."""
        return self.choices[0]

    @property
    def followed(self) -> "Plan":
        """The plan that the advice follows: `without` if it reaches the target."""
        if self.without is not None and self.without.is_reached:
            return self.without
        return self

    @property
    def has_stalls(self) -> bool:
        """True if choices are also compared with hypothetical stalls of workers."""
        return self.stalls is not None and self.stalls.time > 0

    @property
    def is_reached(self) -> bool:
        """True if the best choice reaches the target in finite time."""
        return math.isfinite(self.best.time.value)

    @property
    def by_code(self) -> tuple[Choice, ...]:
        """Best choice of every code and replication factor, in the order of `choices`.

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
        """Best choice with each part on one worker; None if there is none."""
        uncoded = (choice for choice in self.choices if not choice.is_coded)
        return next(uncoded, None)

    @property
    def next_best(self) -> Choice | None:
        """Best choice unlike `best` in code, replication factor or memory, or None."""
        return next(iter(self.by_code[1:]), None)

    @property
    def baseline(self) -> Choice | None:
        """Equal work without a code, waiting for all workers; None if not judged."""
        baselines = (choice for choice in self.choices if choice.is_baseline)
        return next(baselines, None)

    def replan(
        self,
        *,
        target: float | None = None,
        condition: float | None = None,
        heterogeneity: float | None = None,
    ) -> "Plan":
        """Returns the plan for another goal, without new simulations.

        Args:
          target: Loss above its minimum to reach, relative to the initial one. None
            keeps the value.
          condition: Ratio of the largest to the smallest curvature. None keeps it.
          heterogeneity: Mean square of the gradients of the parts at the optimum,
            relative to the initial gradient. None keeps it.

        Returns:
          A `Plan` with the same choices in another order.

        Raises:
          ValueError: If an argument is out of the range that `plan` accepts.
          TypeError: If an argument is not a real number.
        """
        goal = Goal.checked(
            target=self.target if target is None else target,
            condition=self.condition if condition is None else condition,
            heterogeneity=(
                self.heterogeneity if heterogeneity is None else heterogeneity
            ),
            num_workers=self.num_workers,
        )
        size = self.num_parameters * self.bytes_per_number

        def ranked(choices):
            rounds = [choice.rounds for choice in choices]
            return ranked_choices(choices, rounds, goal, size)

        without = self.without
        if without is not None:
            without = without.replan(
                target=target, condition=condition, heterogeneity=heterogeneity
            )
        return self._replace(
            choices=ranked(self.choices),
            overheads={
                share: ranked(choices) for share, choices in self.overheads.items()
            },
            without=without,
            **goal._asdict(),
        )

    def plot(self) -> "Figure":
        """Draws the times to the target, and step times against decoding errors.

        Times are those of the rows of the table, with intervals of 95%. The other panel
        has every choice.

        Returns:
          A `matplotlib.figure.Figure`; `savefig` writes it to a file.

        Raises:
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        return _figures.draw(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a dict for JSON, with the rows of the table.

        Numbers are those of `Choice`; infinity and NaN are None. As in the table,
        choices are those of `without` if the advice is to leave workers out.
        """
        return _tables.to_dict(self)

    @property
    def answer(self) -> str:
        """Text on the recommended choice, and how much longer alternatives take."""
        return _tables.answer(self)

    def __str__(self) -> str:
        return _tables.answer_and_table(self)

    __repr__ = __str__
