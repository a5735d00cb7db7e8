"""Plans: choice of the code, the replication factor and the waiting rule."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax

from jaxwgc import stragglers
from jaxwgc._common import array_validation, validation
from jaxwgc._common.progress import Progress
from jaxwgc._common.tolerances import DECODES
from jaxwgc.codes import GradientCode, uncoded
from jaxwgc.planning._candidates import BUSY, CANCELLED, Candidate
from jaxwgc.planning._choice import Choice, RoundStatistics
from jaxwgc.planning._clusters import Clusters
from jaxwgc.planning._convergence import Goal
from jaxwgc.planning._judging import judge
from jaxwgc.planning._lost_workers import (
    OtherWorkers,
    WithLostWorkers,
    never_responding,
)
from jaxwgc.planning._ranking import ranked_choices
from jaxwgc.planning._results import Plan, best_by_code
from jaxwgc.planning._standard_candidates import (
    NamedCode,
    speeds_of,
    standard_codes,
    standard_rules,
)
from jaxwgc.simulation import as_argument, rule_of_code
from jaxwgc.stragglers import WaitingRule

# A waiting rule, or a function that returns one for a code.
RuleLike: TypeAlias = WaitingRule | Callable[[GradientCode], WaitingRule]
# Number of simulated clusters. Their scatter gives the standard errors.
_NUM_CLUSTERS = 20
# Minimum number of rounds per cluster. The start with idle workers then hardly matters.
_FEWEST_ROUNDS = 50
# Default maximum of replication factors.
_MOST_COPIES = 4
# Shares of a time that may not depend on the load, for which the choices are ranked
# again if times were measured at one load.
_OVERHEADS = (0.5, 1.0)


def plan(
    delay: stragglers.DelayModel,
    num_workers: int,
    key: jax.Array,
    *,
    names: Sequence[str] | None = None,
    replications: Sequence[int] | None = None,
    codes: Mapping[str, GradientCode] | None = None,
    choices: Sequence[Candidate] | None = None,
    waiting: Sequence[RuleLike] | None = None,
    late: str = BUSY,
    memory: bool = False,
    exact: bool = False,
    num_rounds: int = 2000,
    target: float = 0.01,
    condition: float = 100.0,
    heterogeneity: float = 0.1,
    num_parameters: int = 1_000_000,
    bytes_per_number: float = 4,
    tail: float = 10.0,
    progress: Callable[[int, int], object] | None = None,
) -> Plan:
    """Finds the code, replication factor and waiting rule with the shortest training.

    Each code with each waiting rule is a choice. A choice determines the time of a
    step; its decoding error increases the number of steps. Uncoded workers are among
    the choices. Workers have `code.loads`: d copies of every part are d times as much
    work.

    **Time of a step.** It comes from order statistics if workers are independent and
    identically distributed (`delay.law`), and the rule waits for a number of responses
    or a deadline. Otherwise rounds are simulated, the same for all choices. For an
    exact code and any n - s responses, this is the rule of Halbawi et al.

    Late workers that send one message continue, and join the round in which they
    respond, as in a `RayCluster`. Workers that send finished parts on request begin
    every round together, and so do all workers with `late="cancelled"`.

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
    `choices=[dataclasses.replace(choice, memory=True)]`.

    **Lost workers.** Parts that never arrive with a rule, or significantly less often
    than others, are a bias. A worker without responses in the last rounds of a trace is
    lost, and does not respond in the plan. There is then also a plan for the other
    workers (`without`), which have all of the data.

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
      names: Names of the workers in the text. Defaults to 0, 1, ….
      replications: Replication factors d to try, from 1 to n; by default up to 4.
        Uncoded workers are always among the choices.
      codes: Your own codes by name, in place of the standard codes. Not traced.
        Decoders that the standard codes do not use take seconds to compile.
      choices: Candidates, or choices of another plan, to be judged with this delay
        model or goal. They replace `codes` and `waiting`.
      waiting: Waiting rules to try, or functions that return one for a code, e.g.
        `stragglers.until_decodable`. By default several values of `fastest`, `deadline`
        and `until_decodable`.
      late: What workers with one message do that have not responded when a round ends.
        `"busy"` workers continue, and join the round in which they respond.
        `"cancelled"` workers stop. Entries of `choices` keep their own.
      memory: Whether to try storing late messages, for uncoded workers that wait for a
        number of workers. False by default, since a short trace does not tell how
        stale messages can get with heavy-tailed times.
      exact: Whether to restrict choices to exact gradients in every round.
      num_rounds: Number of simulated rounds, at least 40; rounded up to a multiple of
        20 that is at least 1,000.
      target: Loss above its minimum to reach, relative to the initial one; between 0
        and 1.
      condition: Ratio of the largest to the smallest curvature, at least 1.
      heterogeneity: Mean square of the gradients of the parts at the optimum, for the
        data split into n parts, relative to the initial gradient; both are means
        over data. Logistic regression on two MNIST digits has about 0.02 with 32
        shuffled parts, and 0.1 to 0.9 if parts are sorted by digit.
      num_parameters: Length of the gradient, for the number of bytes.
      bytes_per_number: Bytes of a parameter and of a number in a message.
      tail: Length of a hypothetical stall, as a multiple of the longest time in the
        trace. 0 disables stalls. Ignored for parametric delay models.
      progress: Called as `progress(done, total)` while rounds are simulated. By
        default, a terminal or notebook shows a bar after two seconds if rich is
        installed.

    Returns:
      A `Plan`. `print(plan)` shows the advice and a table.

    Raises:
      ValueError: If a number is out of its range, names or replications do not fit
        num_workers, codes have another number of workers, or a trace has too few
        workers.
      TypeError: If an argument has the wrong type.

    Example:
      If times hardly differ, a second copy of the work does not pay:

      >>> import jax, jaxwgc
      >>> delay = jaxwgc.stragglers.shifted_exponential(shift=1.0, rate=20.0)
      >>> enough = lambda code: jaxwgc.stragglers.fastest(
      ...     code.num_workers - code.num_stragglers
      ... )
      >>> plan = jaxwgc.plan(
      ...     delay,
      ...     8,
      ...     jax.random.key(0),
      ...     waiting=[enough],
      ...     late="cancelled",
      ...     exact=True,
      ... )
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
    goal = Goal.checked(target, condition, heterogeneity, num_workers)
    key = array_validation.check_key(key)
    array_validation.check_concrete("key", key, "a plan is made on the host")
    num_bytes = _checked_bytes(num_parameters, bytes_per_number)
    shape = _checked_shape(num_rounds)
    _check_options(late, memory, exact, tail)
    labels = _worker_names(names, num_workers)
    chosen = _checked_choices(choices, num_workers)
    if chosen is not None and (codes is not None or waiting is not None):
        raise ValueError(
            "codes and waiting must be None with choices, which have their own; got "
            f"codes={validation.in_short(codes)}, "
            f"waiting={validation.in_short(waiting)}"
        )
    waiting = _listed("waiting", waiting)
    copies = _checked_replications(replications, codes, num_workers)

    stopped = delay.stopped(num_workers)
    model = delay
    if stopped:
        model = WithLostWorkers(delay=as_argument(delay), lost=tuple(stopped))
    stalls = model.stalls(float(tail))
    models = [model]
    if stalls is not None and stalls.time > 0:
        models.append(stalls.delay)

    def clusters_of(model, named_codes, overhead=0.0):
        codes_of_clusters = [named.code for named in named_codes]
        return Clusters.of(model, codes_of_clusters, key, shape, stalls, overhead)

    baseline = NamedCode("uncoded", uncoded(num_workers))
    if chosen is not None:
        compared = [
            NamedCode(candidate.name, candidate.code, candidate.by_speed)
            for candidate in chosen
        ]
    elif codes is not None:
        compared = [baseline, *_checked_codes(codes, num_workers)]
    else:
        uncoded_clusters = clusters_of(model, [baseline])
        speeds = speeds_of(
            uncoded_clusters.times(baseline.code), uncoded_clusters.num_measured
        )
        compared = [baseline, *standard_codes(num_workers, copies, speeds)]

    # Clusters without stalls, and with stalls if the trace does not rule them out.
    cases = [clusters_of(model, compared) for model in models]
    candidates = chosen
    if candidates is None:
        candidates = _candidates(compared, waiting, cases[0], late, exact)
        if memory and not exact:
            candidates += _storing(candidates, baseline.code)
    rank = functools.partial(
        _ranked, exact=exact, goal=goal, num_bytes=num_bytes, progress=progress
    )
    ranking = rank(candidates, cases)
    rankings_with_overhead = {}
    if len(delay.measured_loads()) == 1:
        best_of_codes = best_by_code(ranking)
        for overhead in _OVERHEADS:
            with_overhead = [clusters_of(model, compared, overhead) for model in models]
            rankings_with_overhead[overhead] = rank(best_of_codes, with_overhead)

    lost = {worker: stopped.get(worker, 0) for worker in never_responding(cases[0])}
    remaining = [worker for worker in range(num_workers) if worker not in lost]
    is_standard = choices is None and codes is None and waiting is None
    without = None
    if lost and remaining and is_standard:
        without = plan(
            OtherWorkers(
                delay=as_argument(delay),
                workers=tuple(remaining),
                num_workers=num_workers,
            ),
            len(remaining),
            key,
            names=[labels[worker] for worker in remaining],
            replications=sorted({1, *(min(d, len(remaining)) for d in copies)}),
            late=late,
            memory=memory,
            exact=exact,
            num_rounds=num_rounds,
            target=target,
            condition=condition,
            heterogeneity=heterogeneity,
            num_parameters=num_parameters,
            bytes_per_number=bytes_per_number,
            tail=tail,
            progress=progress,
        )
    return Plan(
        choices=ranking,
        overheads=rankings_with_overhead,
        **goal._asdict(),
        num_rounds=math.prod(shape),
        num_parameters=num_parameters,
        bytes_per_number=bytes_per_number,
        delay=delay,
        stalls=stalls,
        names=labels,
        lost=lost,
        without=without,
    )


def _ranked(
    candidates: Sequence[Candidate],
    cases: Sequence[Clusters],
    *,
    exact: bool,
    goal: Goal,
    num_bytes: float,
    progress: Callable[[int, int], object] | None,
) -> tuple[Choice, ...]:
    """Judges candidates, and returns them in order, without inexact ones if `exact`.

    Args:
      candidates: Candidates.
      cases: Clusters without stalls and, if stalls are not ruled out, with them.
      exact: Whether choices must be exact in every round.
      goal: Target, and the problem to solve.
      num_bytes: Bytes of a gradient.
      progress: As in `plan`.
    """
    with Progress(progress, len(cases) * len(candidates)) as shown:
        judged = [judge(candidates, case, shown.advance) for case in cases]
    # Statistics of each candidate in all cases.
    rounds = list(zip(*judged, strict=True))
    if exact:
        is_exact = [_are_exact(statistics) for statistics in rounds]
        candidates = list(itertools.compress(candidates, is_exact))
        rounds = list(itertools.compress(rounds, is_exact))
    if not candidates:
        raise ValueError(
            "exact must be False for these choices, of which none is exact in "
            "every round; got exact=True"
        )
    return ranked_choices(candidates, rounds, goal, num_bytes)


def _are_exact(cases: Sequence[RoundStatistics]) -> bool:
    """Returns whether a candidate has no decoding error in any case."""
    return all(statistics.error[0] <= DECODES**2 for statistics in cases)


def _candidates(
    compared: Sequence[NamedCode],
    waiting: Sequence[RuleLike] | None,
    clusters: Clusters,
    late: str,
    exact: bool,
) -> list[Candidate]:
    """Returns each code with each of its waiting rules; the first code is uncoded."""
    candidates = []
    for place, named in enumerate(compared):
        if waiting is None:
            rules = list(standard_rules(named, clusters, exact))
        elif place == 0:
            # Waiting for all is always among the rules of uncoded workers.
            everyone = stragglers.fastest(named.code.num_workers)
            rules = _rules_of(named, [everyone, *waiting])
        else:
            rules = _rules_of(named, waiting)
        # Workers with several messages are cancelled: they stop between messages.
        sends_several_messages = named.code.messages_per_worker > 1
        for rule in rules:
            candidates.append(
                Candidate(
                    name=named.name,
                    code=named.code,
                    wait=rule,
                    late=CANCELLED if sends_several_messages else late,
                    by_speed=named.by_speed,
                )
            )
    return candidates


def _checked_bytes(num_parameters: float, bytes_per_number: float) -> float:
    """Returns the number of bytes of a gradient."""
    array_validation.check_number(
        "num_parameters", num_parameters, positive=True, traceable=False
    )
    array_validation.check_number(
        "bytes_per_number", bytes_per_number, positive=True, traceable=False
    )
    return num_parameters * bytes_per_number


def _checked_shape(num_rounds: int) -> tuple[int, int]:
    """Returns the number of simulated clusters, and of rounds of each."""
    num_rounds = validation.check_int("num_rounds", num_rounds, minimum=40)
    rounds_per_cluster = math.ceil(num_rounds / _NUM_CLUSTERS)
    return _NUM_CLUSTERS, max(rounds_per_cluster, _FEWEST_ROUNDS)


def _check_options(late: str, memory: bool, exact: bool, tail: float) -> None:
    """Checks what is simulated."""
    array_validation.check_number("tail", tail, minimum=0, finite=True, traceable=False)
    validation.check_bool("exact", exact)
    validation.check_bool("memory", memory)
    validation.check_choice("late", late, (CANCELLED, BUSY))
    if memory and late != BUSY:
        raise ValueError(
            f"memory must be False with late={late!r}, since workers that are "
            "cancelled send no late messages; got memory=True"
        )


def _worker_names(names: Sequence[str] | None, num_workers: int) -> tuple[str, ...]:
    """Returns the names of workers, 0, 1, ... by default."""
    if names is None:
        return tuple(str(worker) for worker in range(num_workers))
    labels = tuple(str(name) for name in names)
    if len(labels) != num_workers:
        raise ValueError(
            f"names must be one for each of num_workers = {num_workers}; got {labels}"
        )
    return labels


def _listed(name: str, values: Any) -> list[Any] | None:
    """Converts an iterable to a list with at least one value; None stays None."""
    if values is None:
        return None
    if isinstance(values, Candidate | str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list; got {validation.in_short(values)}")
    values = list(values)
    if not values:
        raise ValueError(f"{name} must have at least one entry; got an empty list")
    return values


def _checked_replications(
    replications: Any, codes: Any, num_workers: int
) -> Sequence[int]:
    """Returns the replication factors to try."""
    if replications is None:
        return range(1, min(num_workers, _MOST_COPIES) + 1)
    if codes is not None:
        raise ValueError(
            f"replications must be None with codes, which have their own; got "
            f"{replications}"
        )
    listed = _listed("replications", replications) or []
    for number in listed:
        validation.check_up_to("replications", number, num_workers=num_workers)
    return listed


def _checked_choices(choices: Any, num_workers: int) -> list[Candidate] | None:
    """Returns the choices of another plan, after checks."""
    if isinstance(choices, Plan):
        raise TypeError(
            "choices must be a list of candidates; got a Plan. Pass its "
            "choices: plan.choices"
        )
    listed = _listed("choices", choices)
    if listed is None:
        return None
    for choice in listed:
        validation.check_instance("choices", choice, Candidate)
        _check_choice(choice, num_workers)
    return listed


def _check_choice(choice: Candidate, num_workers: int) -> None:
    """Checks a choice of another plan, and that its rule fits its code."""
    _check_code(choice.name, choice.code, num_workers)
    rule_name = f"wait of choice {choice.name!r}"
    validation.check_instance(rule_name, choice.wait, WaitingRule)
    validation.check_bool(f"memory of choice {choice.name!r}", choice.memory)
    allowed = (CANCELLED,) if choice.sends_several_messages else (CANCELLED, BUSY)
    validation.check_choice("late of choices", choice.late, allowed)
    if choice.memory and choice.late != BUSY:
        raise ValueError(
            f"late of choice {choice.name!r} must be 'busy' with memory=True, since "
            f"workers that are cancelled send no late messages; got {choice.late!r}"
        )
    rule_of_code(rule_name, choice.wait, choice.code)


def _checked_codes(codes: Any, num_workers: int) -> list[NamedCode]:
    """Returns the codes of the caller, after checks."""
    if not isinstance(codes, Mapping):
        raise TypeError(
            f"codes must be a dict with names; got {validation.in_short(codes)}"
        )
    if not codes:
        raise ValueError(f"codes must have at least one entry; got {codes}")
    for name, code in codes.items():
        _check_code(name, code, num_workers)
    return [NamedCode(str(name), code) for name, code in codes.items()]


def _check_code(name: str, code: Any, num_workers: int) -> None:
    validation.check_instance(f"code {name!r}", code, GradientCode)
    GradientCode.check(code, concrete="rounds are simulated")
    if code.num_workers != num_workers:
        raise ValueError(
            f"code {name!r} must have num_workers = {num_workers}; got "
            f"{code.num_workers}"
        )


def _rules_of(named: NamedCode, waiting: Sequence[RuleLike]) -> list[WaitingRule]:
    """Returns the waiting rules of the caller for a code, after checks."""
    for rule in waiting:
        if not isinstance(rule, WaitingRule) and not callable(rule):
            raise TypeError(
                "waiting must be a WaitingRule, or a function that returns one for a "
                f"code; got {validation.in_short(rule)}"
            )
    name = f"waiting for code {named.name!r}"
    rules = [rule_of_code(name, rule, named.code) for rule in waiting]
    return list(dict.fromkeys(rules))


def _storing(
    candidates: Sequence[Candidate], baseline: GradientCode
) -> list[Candidate]:
    """Returns uncoded candidates that wait for some workers, with stored messages."""
    storing = []
    for candidate in candidates:
        wait = candidate.wait
        if candidate.code is not baseline or not isinstance(wait, stragglers.fastest):
            continue
        if wait.num_required < baseline.num_workers:
            storing.append(dataclasses.replace(candidate, memory=True))
    return storing
