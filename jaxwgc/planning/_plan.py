"""Plans: choice of the code, the number of copies and the waiting rule."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxwgc import codes, stragglers
from jaxwgc._common import array_validation, validation
from jaxwgc._common.progress import Progress
from jaxwgc._common.tolerances import DECODES
from jaxwgc.planning import _tables
from jaxwgc.planning._candidates import Candidates, check_candidate, listed
from jaxwgc.planning._choice import Candidate, Choice
from jaxwgc.planning._convergence import Goal
from jaxwgc.planning._judging import judge
from jaxwgc.planning._lost_workers import OtherWorkers
from jaxwgc.planning._ranking import ranked_choices
from jaxwgc.planning._results import PlanData, best_by_code
from jaxwgc.planning._rounds import Clusters
from jaxwgc.simulation._program_arguments import as_argument

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Number of simulated clusters. Standard errors are those of the mean over clusters.
_NUM_CLUSTERS = 20
# Minimum number of rounds per cluster. The first rounds, in which all workers start
# idle, then hardly matter.
_FEWEST_ROUNDS = 50
# Assumed shares of each time that do not depend on the load. If times were measured at
# one load, choices are ranked again for each of these shares.
_OVERHEADS = (0.5, 1.0)


class Plan(PlanData):
    """Result of `plan`; `print` shows the advice and a table.

    Attributes:
      choices: Every `Choice`, by increasing `regret` in steps of a thousandth; of
        choices with equal regret, those with the fewest copies come first. Choices that
        do not reach the target are last, ordered by their final loss.
      goal: Loss to reach, and the problem to solve.
      num_rounds: Number of simulated rounds, for times or weights without a closed
        form.
      delay: Delay model of the plan: `choice.model(plan.delay)` simulates a choice. In
        `without.delay`, the other workers do all of the work.
      stalls: Stalls that the trace does not rule out, with which choices are compared,
        too: `delay.stalls(tail)`. None for parametric delay models, and with `tail=0`.
      names: Names of the workers.
      lost: Lost workers, which do not respond: maps the index of each to the first
        round of the trace after its last response, or to 0.
      without: Plan for the other workers, with all of the data; None if no worker is
        lost, or if there were other candidates than standard codes and rules.
      overheads: Choices of `by_code`, ranked again as if a share of each time did not
        depend on the load; a dict with this share as key. Empty unless times were
        measured at one load.
      rate_without_waiting: Gradients per unit of time, of all workers together, if no
        worker ever waits: the sum over workers of 1 over the mean time at load 1. In a
        trace, a response that never comes takes the mean time of the others.

    Example:
      With heavy-tailed times, a second copy of the work pays:

      >>> import jax, jaxwgc
      >>> from jaxwgc import planning, stragglers
      >>> delay = stragglers.pareto(scale=1.0, shape=1.5)
      >>> candidates = planning.Candidates(
      ...     copies=[2],
      ...     waiting=[lambda code: stragglers.fastest(4 - code.num_stragglers)],
      ...     late="cancelled",
      ...     exact=True,
      ... )
      >>> plan = jaxwgc.plan(delay, 4, jax.random.key(0), candidates=candidates)
      >>> print(plan)
      Code: replicated with 2 copies, waiting for the first 3 of 4 workers.
      Next best: fractional_repetition with 2 copies, waiting for the first 3 of 4
      workers, takes as long (± 0.0).
      Not coding: uncoded, waiting for all 4 workers, takes 50.0% longer (± 0.0).
      In the time of the best choice, workers that never wait would deliver 414
      gradients of 1/4 of the data, 1.5 times as many as its 67 steps use at most.
      More gradients help if workers have alike data and noisy gradients; if their
      data differ and the target is accurate, stored messages (`memory=True`) were
      faster. `jaxwgc.race` compares both, see the page "Wait, code, or go
      asynchronous?".
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

    without: "Plan | None"

    def replan(self, goal: Goal) -> "Plan":
        """Returns the plan for another goal, without new simulations.

        Args:
          goal: Loss to reach, and the problem to solve. For a change of one number:
            `dataclasses.replace(plan.goal, target=1e-3)`.

        Returns:
          A `Plan` with the same choices in another order.

        Raises:
          TypeError: If goal is not a `planning.Goal`.
        """
        validation.check_instance("goal", goal, Goal)

        def ranked(choices):
            return ranked_choices(choices, [choice.rounds for choice in choices], goal)

        return dataclasses.replace(
            self,
            choices=ranked(self.choices),
            overheads={
                share: ranked(choices) for share, choices in self.overheads.items()
            },
            without=None if self.without is None else self.without.replan(goal),
            goal=goal,
        )

    def plot(self) -> "Figure":
        """Draws the times to the target, and decoding errors against step times.

        Times are those of the rows of the table, with intervals of 95%. The other panel
        has every choice.

        Returns:
          A `matplotlib.figure.Figure`; `savefig` writes it to a file.

        Raises:
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        from jaxwgc.planning._figures import draw

        return draw(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as a dict for JSON, with the rows of the table.

        Numbers are those of `Choice`; infinity and NaN are None. As in the table,
        choices are those of `without` if the advice is to leave workers out.
        """
        return _tables.to_dict(self)

    @property
    def advice(self) -> str:
        """Text on the best choice, its alternatives, and workers that never wait."""
        return _tables.advice(self)

    def __str__(self) -> str:
        return _tables.advice_and_table(self)

    __repr__ = __str__


def plan(
    delay: stragglers.DelayModel,
    num_workers: int,
    key: jax.Array,
    *,
    candidates: Candidates | Sequence[Candidate] = Candidates(),
    goal: Goal = Goal(),
    names: Sequence[str] | None = None,
    num_rounds: int = 2000,
    tail: float = 10.0,
    progress: Callable[[int, int], object] | None = None,
) -> Plan:
    """Finds the code, copies and waiting rule with the shortest training time.

    Each code with each waiting rule is a choice. A choice determines the time of a
    step; its decoding error increases the number of steps. Uncoded workers are among
    the choices. Workers have `code.loads`: d copies of every part are d times as much
    work.

    **Time of a step.** It comes from order statistics if workers are independent and
    identically distributed (`delay.law`), and the rule waits for a number of responses
    or a deadline. Otherwise rounds are simulated, the same for all choices. For an
    exact code and any n - s responses, this is the rule of Halbawi et al.

    Late workers that send one message continue, and join the round in which they
    respond, as in a `RayCluster`. Workers that send sums on request begin
    every round together, and so do all workers with `Candidates(late="cancelled")`.

    **Steps.** Gradient descent with the best constant step size on a quadratic loss.
    Its eight curvatures are spread evenly, on a logarithmic scale, over a factor of
    `condition`. Decoded gradients weight the parts unequally: changes from round to
    round are noise, which persists if stragglers do; a permanent deviation is a bias,
    e.g. from the parts of a worker that is always late. Both are proportional to the
    gradients of the parts at the optimum, `heterogeneity`, and are 0 if all parts
    agree. A common scale of all weights is compensated by the step size.

    **Memory.** With `coded_aggregate(memory=True)`, a stored message replaces a late
    one. No part is lost, but some gradients are stale: steps are found by a simulation
    of this aggregator. For codes, use
    `candidates=[dataclasses.replace(choice, memory=True)]`.

    **Lost workers.** Parts that never arrive with a rule, or significantly less often
    than others, are a bias. A worker without responses in the last rounds of a trace is
    lost, and does not respond in the plan. There is then also a plan for the other
    workers (`without`), which have all of the data.

    **Without waiting.** All choices are synchronous. The text also says how many
    gradients workers that never wait would deliver in the time of the best choice
    (`gradients_without_waiting`). `jaxwgc.race` compares such asynchronous methods.

    **Times and loads.** Times that were measured at one load are taken to be
    proportional to the load. The plan also says what to choose if half of each time,
    or all of it, did not depend on the load (`overheads`). Measure at two loads to
    know: `stragglers.empirical(times, measured_at=loads)`.

    **Unseen stalls.** An event that a trace of m times does not show may have a
    probability of up to 3 / m (95%). So a trace is judged as it is, and with the
    stalls and biases that it may hide. The best choice has the least regret: its excess
    over the fastest choice, in the worse of the two cases, is the smallest.

    Args:
      delay: Delay model, e.g. `jaxwgc.stragglers.empirical` of measured times. The
        times of the plan have its unit, which is seconds for the models of the library.
      num_workers: n, at least 1.
      key: PRNG key of either kind, for the rounds.
      candidates: Codes and waiting rules to compare. Alternatively a list of
        `planning.Candidate`, e.g. choices of another plan, to be judged with this delay
        model or goal.
      goal: Loss to reach, and the problem to solve.
      names: Names of the workers in the text. Defaults to 0, 1, ….
      num_rounds: Number of simulated rounds, at least 40; rounded up to a multiple of
        20 that is at least 1,000.
      tail: Length of a hypothetical stall, as a multiple of the longest time in the
        trace. 0 disables stalls. Ignored for parametric delay models.
      progress: Called as `progress(done, total)` while rounds are simulated. By
        default, a terminal or notebook shows a bar after two seconds if rich is
        installed.

    Returns:
      A `Plan`. `print(plan)` shows the advice and a table.

    Raises:
      ValueError: If a number is out of its range, names or candidates do not fit
        num_workers, or a trace has too few workers.
      TypeError: If an argument has the wrong type.

    Example:
      If times hardly differ, a second copy of the work does not pay:

      >>> import jax, jaxwgc
      >>> from jaxwgc import planning, stragglers
      >>> delay = stragglers.shifted_exponential(shift=1.0, rate=20.0)
      >>> enough = lambda code: stragglers.fastest(8 - code.num_stragglers)
      >>> exact = planning.Candidates(waiting=[enough], late="cancelled", exact=True)
      >>> plan = jaxwgc.plan(delay, 8, jax.random.key(0), candidates=exact)
      >>> print(plan.best)
      uncoded, waiting for all 8 workers
      >>> round(plan.best.step_time.value, 3), round(plan.next_best.step_time.value, 3)
      (1.136, 2.172)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018 (the number of stragglers with the least expected
      time); Lee et al., "Speeding up distributed machine learning using codes", 2018;
      Bottou, Curtis, Nocedal, "Optimization methods for large-scale machine learning",
      2018, section 4 (noise at constant steps); Savage, "The theory of statistical
      decision", 1951 (least regret).
    """
    validation.check_instance("delay", delay, stragglers.DelayModel)
    num_workers = validation.check_int("num_workers", num_workers, minimum=1)
    key = array_validation.check_key(key)
    array_validation.check_concrete("key", key, "a plan is made on the host")
    validation.check_instance("goal", goal, Goal)
    num_rounds = validation.check_int("num_rounds", num_rounds, minimum=40)
    array_validation.check_number("tail", tail, minimum=0, finite=True, traceable=False)
    if names is None:
        names = [str(worker) for worker in range(num_workers)]
    if len(names) != num_workers:
        raise ValueError(
            f"names must have num_workers = {num_workers} entries; got {names}"
        )

    # Workers that stopped during the trace do not respond in the simulation. If the
    # trace does not rule out stalls, rounds are also simulated with stalls.
    stopped = delay.stopped(num_workers)
    model = delay
    if stopped:
        responding = sorted({*range(num_workers)} - stopped.keys())
        model = OtherWorkers(
            delay=as_argument(delay),
            workers=tuple(responding),
            num_workers=num_workers,
            do_all=False,
        )
    stalls = model.stalls(float(tail))
    calm = Clusters(
        delay=model,
        key=key,
        num_clusters=_NUM_CLUSTERS,
        num_rounds=max(math.ceil(num_rounds / _NUM_CLUSTERS), _FEWEST_ROUNDS),
        num_measured=math.inf if stalls is None else stalls.num_rounds,
    )
    cases = [calm]
    if stalls is not None and stalls.time > 0:
        cases.append(dataclasses.replace(calm, delay=stalls.delay, has_stalls=True))

    exact = False
    if isinstance(candidates, Candidates):
        exact = candidates.exact
        compared = candidates.for_workers(num_workers, calm)
    elif isinstance(candidates, PlanData):
        raise TypeError(
            "candidates must be planning.Candidates, or a list; got a Plan. Pass "
            "plan.choices"
        )
    else:
        compared = listed("candidates", candidates)
        for candidate in compared:
            check_candidate(candidate, num_workers)

    choices = _ranked(compared, cases, goal, exact, progress)
    overheads = {}
    if len(delay.measured_loads()) == 1:
        for share in _OVERHEADS:
            overheads[share] = _ranked(
                best_by_code(choices),
                [dataclasses.replace(case, overhead=share) for case in cases],
                goal,
                exact,
                progress,
            )

    # Workers without any simulated response are lost. A second plan gives all of the
    # work to the others.
    responds = np.any(
        [np.isfinite(calm.times(one.code)).any(axis=(0, 1)) for one in compared], axis=0
    )
    lost = {}
    for worker in np.flatnonzero(~responds).tolist():
        lost[worker] = stopped.get(worker, 0)
    remaining = np.flatnonzero(responds).tolist()
    without = None
    has_others = bool(lost) and bool(remaining)
    if has_others and isinstance(candidates, Candidates) and candidates.is_standard:
        copies = candidates.checked_copies(num_workers)
        fewer_copies = sorted({1, *(min(d, len(remaining)) for d in copies)})
        without = plan(
            OtherWorkers(
                delay=as_argument(delay),
                workers=tuple(remaining),
                num_workers=num_workers,
                do_all=True,
            ),
            len(remaining),
            key,
            candidates=dataclasses.replace(candidates, copies=fewer_copies),
            goal=goal,
            names=[names[worker] for worker in remaining],
            num_rounds=num_rounds,
            tail=tail,
            progress=progress,
        )
    return Plan(
        choices=choices,
        overheads=overheads,
        goal=goal,
        num_rounds=calm.num_clusters * calm.num_rounds,
        delay=delay,
        stalls=stalls if len(cases) > 1 else None,
        names=tuple(str(name) for name in names),
        lost=lost,
        without=without,
        rate_without_waiting=_rate_without_waiting(num_workers, calm),
    )


def _ranked(
    candidates: Sequence[Candidate],
    cases: Sequence[Clusters],
    goal: Goal,
    exact: bool,
    progress: Callable[[int, int], object] | None,
) -> tuple[Choice, ...]:
    """Computes the costs of candidates, and returns choices sorted by regret.

    Args:
      candidates: Candidates.
      cases: Clusters without stalls and, if stalls are not ruled out, with them.
      goal: Target, and the problem to solve.
      exact: Whether choices must be exact in every round.
      progress: As in `plan`.
    """
    with Progress(progress, len(cases) * len(candidates)) as shown:
        judged = [judge(candidates, case, shown.advance) for case in cases]
    # One tuple per candidate, with its statistics in each case.
    rounds = list(zip(*judged, strict=True))
    if exact:
        is_exact = []
        for statistics in rounds:
            errors = [of_case.error[0] for of_case in statistics]
            is_exact.append(max(errors) <= DECODES**2)
        candidates = list(itertools.compress(candidates, is_exact))
        rounds = list(itertools.compress(rounds, is_exact))
    return ranked_choices(candidates, rounds, goal)


def _rate_without_waiting(num_workers: int, clusters: Clusters) -> float:
    """Computes the number of gradients per unit of time if workers never wait.

    The mean time of a worker has a closed form if workers are independent and
    identically distributed. Otherwise, times are simulated.
    """
    law = clusters.delay.law(1.0)
    if law is not None:
        return num_workers / law.fastest_mean(num_required=1, num_workers=1)
    times = clusters.times(codes.uncoded(num_workers))
    responds = np.isfinite(times)
    of_responses = np.ma.masked_array(times, mask=~responds, dtype=np.float64)
    # A worker that never responds has an infinite mean time.
    mean_time = of_responses.mean(axis=(0, 1)).filled(np.inf)
    with np.errstate(divide="ignore"):
        # A response that never comes is assumed to take the mean time of its worker.
        rates = responds.mean(axis=(0, 1)) / mean_time
    return float(rates.sum())
