"""Plans: choice of the code, the replication factor and the waiting rule."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxwgc import _validation, codes, stragglers
from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode, uncoded
from jaxwgc.decoders import Lagrange, OneCopy, OneStep
from jaxwgc.stragglers import WaitingRule
from jaxwgc.studies._planning._choice import BUSY, CANCELLED, Choice
from jaxwgc.studies._planning._convergence import Goal
from jaxwgc.studies._planning._judgement import judge
from jaxwgc.studies._planning._lost_workers import (
    OtherWorkers,
    WithLostWorkers,
    never_responding,
)
from jaxwgc.studies._planning._ranking import ranked_choices
from jaxwgc.studies._planning._results import Plan
from jaxwgc.studies._planning._simulated_rounds import Drawn
from jaxwgc.studies._simulation._program_arguments import as_argument

# A waiting rule, or a function that returns one for a code.
RuleLike: TypeAlias = WaitingRule | Callable[[GradientCode], WaitingRule]
Rules: TypeAlias = Iterator[WaitingRule]
# Number of groups of rounds; their scatter gives the standard errors.
_NUM_GROUPS = 20
# Minimum number of rounds per group, so that the start with idle workers hardly
# matters.
_FEWEST_ROUNDS = 50
# Default maximum of the replication factor.
_MOST_COPIES = 4
# Shares of the workers to wait for. Rules also wait for all workers, for all but one,
# and for the number that an exact code needs.
_SHARES_AWAITED = (0.9, 0.8, 0.65, 0.5)
# Levels of the quantiles of worker times that serve as deadlines. The maximum bounds
# the round time if a worker takes longer than ever before.
_SHARES_BY_DEADLINE = (0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
# Squared decoding errors at which an approximate rule ends the round.
_SQUARED_ERRORS = (0.05, 0.1, 0.2)
_ROUNDING = 1e-5
# Shares of finished parts at which a rule of coverage ends the round.
_SHARES_COVERED = (0.99, 0.97, 0.9)
# Speeds count as permanently different if the medians of workers differ by more than
# the factor _CHRONIC, and by more than _DEVIATIONS standard deviations of chance. For 8
# to 128 equal workers, 15 to 300 rounds and any delay law, chance gives up to 19
# standard deviations. Measured traces with permanent differences give at least 290.
_CHRONIC = 1.25
_DEVIATIONS = 20.0
# Minimum number of measured rounds for medians that tell speeds apart.
_FEWEST_MEASURED = 5
# Numbers of parts per worker to try for codes with requests, and maximum number of
# parts of all workers.
_PARTS_OF_WORKER = (8, 4, 2)
_MOST_PARTS = 512


class Candidate(NamedTuple):
    """A code to compare, with its displayed name.

    Attributes:
      name: Name in the table.
      code: Gradient code.
      by_speed: Whether the loads are proportional to the speeds of the workers.
    """

    name: str
    code: GradientCode
    by_speed: bool = False


def plan(
    delay: stragglers.DelayModel,
    num_workers: int,
    key: jax.Array,
    *,
    names: Sequence[str] | None = None,
    replications: Sequence[int] | None = None,
    codes: Mapping[str, GradientCode] | None = None,
    choices: Sequence[Choice] | None = None,
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
    of this aggregator. For codes, use `choices=[choice._replace(memory=True)]`.

    **Lost workers.** Parts that never arrive with a rule, or significantly less often
    than others, are a bias. A worker without responses in the last rounds of a trace is
    lost, and does not respond in the plan. There is then also a plan for the other
    workers (`without`), which have all of the data.

    **Unseen stalls.** An event that a trace of m times does not show may have a
    probability of up to 3 / m (95%). So a trace is judged as it is, and with the
    stalls and biases that it may hide. The best choice has the least regret: its excess
    over the fastest choice, in the worse of the two cases, is the smallest.

    Args:
      delay: Delay model, e.g. `jaxwgc.stragglers.empirical` of measured times.
      num_workers: n, at least 1.
      key: PRNG key of either kind, for the rounds.
      names: Names of the workers in the text. Defaults to 0, 1, ….
      replications: Replication factors d to try, from 1 to n; by default up to 4.
        Uncoded workers are always among the choices.
      codes: Your own codes by name, in place of the standard codes. Not traced.
        Decoders that the standard codes do not use take seconds to compile.
      choices: Choices of another plan, in place of all codes and rules, to be judged
        with this delay model or goal.
      waiting: Waiting rules to try, or functions that return one for a code, e.g.
        `stragglers.until_decodable`. By default several values of `fastest`, `deadline`
        and `until_decodable`.
      late: `"busy"` or `"cancelled"`: what workers with one message do that have not
        responded when a round ends, see `stragglers.delayed`. Entries of `choices` keep
        their own.
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

    Returns:
      A `Plan`.

    Raises:
      ValueError: If an argument has an invalid value, codes have another number of
        workers, or a trace has too few workers.
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
      >>> plan.best.name, plan.best.wait
      ('uncoded', fastest(num_required=8))
      >>> (
      ...     round(plan.best.step_time.value, 3),
      ...     round(plan.next_best.step_time.value, 3),
      ... )
      (1.136, 2.172)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018 (the number of stragglers with the least expected
      time); Lee et al., "Speeding up distributed machine learning using codes", 2018;
      Bottou, Curtis, Nocedal, "Optimization methods for large-scale machine learning",
      2018, section 4 (noise at constant steps); Savage, "The theory of statistical
      decision", 1951 (least regret).
    """
    _validation.check_instance("delay", delay, stragglers.DelayModel)
    _validation.check_int("num_workers", num_workers, minimum=1)
    goal = Goal.checked(target, condition, heterogeneity, num_workers)
    waiting = _listed("waiting", waiting)
    key = _validation.check_key(key)
    _validation.check_concrete("key", key, "a plan is made on the host")
    num_rounds = _validation.check_int("num_rounds", num_rounds, minimum=40)
    rule = {"positive": True, "traceable": False}
    _validation.check_number("num_parameters", num_parameters, **rule)
    _validation.check_number("bytes_per_number", bytes_per_number, **rule)
    _validation.check_number("tail", tail, minimum=0, finite=True, traceable=False)
    _validation.check_bool("exact", exact)
    _validation.check_choice("late", late, (CANCELLED, BUSY))
    is_right = not _validation.check_bool("memory", memory) or late == BUSY
    _validation.require(is_right, "memory", "be False with late='cancelled'", memory)
    labels = _worker_names(names, num_workers)
    length = max(-(-num_rounds // _NUM_GROUPS), _FEWEST_ROUNDS)
    shape = _NUM_GROUPS, length
    stopped = delay.stopped(num_workers)
    cluster = delay
    if stopped:
        delay = WithLostWorkers(delay=as_argument(cluster), lost=tuple(stopped))
    stalls = delay.stalls(float(tail))
    delays = [delay, stalls.delay] if stalls and stalls.time > 0 else [delay]

    def draw(each, candidates):
        own_codes = [candidate.code for candidate in candidates]
        return Drawn.of(each, own_codes, key, shape, stalls)

    chosen = _listed("choices", choices)
    is_standard = chosen is None and codes is None and waiting is None
    copies: Sequence[int] = []
    baseline = uncoded(num_workers)
    candidates = [Candidate("uncoded", baseline)]
    if chosen is not None:
        candidates = _checked_choices(chosen)
    elif codes is not None:
        rule = "be None with codes"
        _validation.require(replications is None, "replications", rule, replications)
        candidates += [Candidate(str(name), code) for name, code in codes.items()]
    else:
        most = min(num_workers, _MOST_COPIES)
        copies = _listed("replications", replications) or range(1, most + 1)
        for number in copies:
            _validation.check_up_to("replications", number, num_workers=num_workers)
        speeds = speeds_of(draw(delay, candidates))
        candidates += standard_codes(num_workers, copies, speeds)
    for name, code, _ in candidates:
        GradientCode.check(code, concrete="rounds are simulated")
        rule = f"have num_workers = {num_workers}"
        given = code.num_workers
        _validation.require(given == num_workers, f"code {name!r}", rule, given)
    drawn = [draw(each, candidates) for each in delays]
    if chosen is None:
        chosen = []
        for candidate in candidates:
            code = candidate.code
            if waiting is None:
                rules = standard_rules(drawn[0], candidate, exact)
            elif code is baseline:
                # Uncoded workers are always also judged with waiting for all.
                everyone = stragglers.fastest(num_workers)
                rules = rules_of(drawn[0], code, [everyone, *waiting])
            else:
                rules = rules_of(drawn[0], code, waiting)
            # Workers with several messages stop between messages, so that they are
            # cancelled.
            stop = CANCELLED if code.messages_per_worker > 1 else late
            chosen += [
                Choice(candidate.name, code, rule, stop, by_speed=candidate.by_speed)
                for rule in rules
            ]
        if memory and not exact:
            fewer = {stragglers.fastest(count) for count in range(1, num_workers)}
            chosen += [
                each._replace(memory=True)
                for each in chosen
                if each.code is baseline and each.wait in fewer
            ]
    rounds = zip(*(judge(chosen, each) for each in drawn))
    judged = [choice._replace(rounds=own) for choice, own in zip(chosen, rounds)]
    if exact:
        judged = [each for each in judged if each.rounds[0].error[0] <= DECODES**2]
    lost = {worker: stopped.get(worker, 0) for worker in never_responding(drawn[0])}
    num_remaining = num_workers - len(lost)
    without = None
    if lost and num_remaining and is_standard:
        without = plan(
            OtherWorkers.without(tuple(lost), cluster, num_workers),
            num_remaining,
            key,
            names=[
                labels[worker] for worker in range(num_workers) if worker not in lost
            ],
            replications=[1, *(d for d in copies if 1 < d <= num_remaining)],
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
        )
    return Plan(
        choices=tuple(ranked_choices(judged, goal, num_parameters * bytes_per_number)),
        **goal._asdict(),
        num_rounds=length * _NUM_GROUPS,
        num_parameters=num_parameters,
        bytes_per_number=bytes_per_number,
        stalls=stalls,
        names=labels,
        lost=lost,
        without=without,
    )


def _worker_names(names: Sequence[str] | None, num_workers: int) -> tuple[str, ...]:
    """Returns the names of workers, 0, 1, ... by default."""
    labels = tuple(map(str, range(num_workers) if names is None else names))
    if len(labels) != num_workers:
        raise ValueError(
            f"names must be one for each of num_workers = {num_workers}; got {labels}"
        )
    return labels


def _listed(name, values):
    """Converts an iterable to a list with at least one value; None stays None."""
    if values is None:
        return None
    if isinstance(values, Choice | str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list; got {_validation.in_short(values)}")
    values = list(values)
    _validation.require(values, name, "be at least one", values)
    return values


def _checked_choices(choices):
    """Checks the choices of another plan, and returns their codes."""
    for choice in choices:
        _validation.check_instance("choices", choice, Choice)
        several = choice.code.messages_per_worker > 1
        late = (CANCELLED,) if several else (CANCELLED, BUSY)
        _validation.check_choice("late of choices", choice.late, late)
    return [Candidate(each.name, each.code, each.by_speed) for each in choices]


def standard_codes(
    num_workers: int, replications: Any, speeds: Any
) -> Iterator[Candidate]:
    """Yields the codes that a plan compares by default.

    They have as many parts as workers, except for codes with requests and codes for
    workers of unequal speeds.
    """
    few = [parts for parts in _PARTS_OF_WORKER if parts * num_workers <= _MOST_PARTS]
    num_parts = num_workers * max(few, default=1)
    if speeds is not None:
        code = codes.uncoded(num_workers, num_parts, speeds)
        yield Candidate("uncoded by speed", code, by_speed=True)
        if max(replications) > 1:
            code = codes.replicated(num_workers, num_parts, 2, speeds)
            yield Candidate("replicated by speed", code, by_speed=True)
            placement = codes.proportional_placement(speeds, num_parts, 2)
            code = codes.any_placement(jax.random.key(0), placement, 1)
            yield Candidate("any_placement by speed", code, by_speed=True)
    for copies in replications:
        if copies == 1:
            continue
        code = codes.replicated(num_workers, num_parts, copies)
        yield Candidate("replicated", code)
        if num_workers % copies == 0:
            code = codes.fractional_repetition(num_workers, copies - 1)
            yield Candidate("fractional_repetition", code)
        else:
            yield Candidate("binary", codes.binary(num_workers, copies - 1))
            # Exact codes that need any n - s responses are equivalent; one is enough.
            code = codes.reed_solomon(num_workers, num_workers, copies)
            yield Candidate("reed_solomon", code)


def speeds_of(drawn: Drawn) -> np.ndarray | None:
    """Returns speeds (num_workers,) if they differ permanently, otherwise None.

    Differences of medians of few rounds may be due to chance.
    """
    if drawn.num_measured < _FEWEST_MEASURED:
        return None
    times = drawn.times[0].reshape(-1, drawn.times.shape[-1])
    medians = np.median(times, axis=0)
    if not np.all((medians > 0) & np.isfinite(medians)):
        return None
    with np.errstate(divide="ignore"):
        deviations = np.abs(np.log(times / medians))
    by_chance = np.median(deviations) * math.sqrt(1 / drawn.num_measured)
    spread = np.ptp(np.log(medians))
    is_chronic = spread > max(math.log(_CHRONIC), _DEVIATIONS * by_chance)
    return 1 / medians if is_chronic else None


def standard_rules(drawn: Drawn, candidate: Candidate, exact: bool) -> Rules:
    """Yields the waiting rules that a plan compares by default for a code."""
    code = candidate.code
    decoder = code.choose_decoder()
    num_workers = code.num_workers
    enough = num_workers - int(np.asarray(code.num_stragglers))
    if decoder.is_a(OneCopy):
        yield stragglers.until_decodable(code)
        for share in [] if exact else _SHARES_COVERED:
            # A rule that may lose less than one part is equal to `until_decodable`.
            if (1 - share) * code.num_parts > 1 - _ROUNDING:
                yield stragglers.coverage(code, share)
        return
    # Approximate rules are left out, since one missing response may lose all parts.
    only_exact = decoder.is_a(Lagrange) or candidate.by_speed
    exact = exact or only_exact
    is_coded = np.asarray(code.assignment).sum() > code.num_parts
    fewer = {math.ceil(share * num_workers) for share in _SHARES_AWAITED}
    fewer = {number for number in {num_workers - 1, *fewer} if 0 < number < enough}
    if code.num_stragglers or not is_coded:
        yield stragglers.fastest(enough)
    for number in [] if exact else sorted(fewer, reverse=True):
        yield stragglers.fastest(number)
    if code.num_stragglers and not only_exact:
        yield stragglers.until_decodable(code)
    if exact:
        return
    if is_coded and not decoder.is_a(OneStep):
        for squared in _SQUARED_ERRORS:
            # The tolerance allows for rounding of errors that are equal to it.
            yield stragglers.until_decodable(code, math.sqrt(squared * (1 + _ROUNDING)))
    times = drawn.times[drawn.place(code)]
    quantiles = np.quantile(times, _SHARES_BY_DEADLINE, method="inverted_cdf")
    for seconds in np.unique(quantiles):
        if 0 < seconds < math.inf:
            yield stragglers.deadline(float(seconds))


def rules_of(drawn: Drawn, code: GradientCode, waiting: Any) -> Rules:
    """Checks waiting rules passed by the caller, and yields the rules for a code."""
    rules: list[Any] = [rule(code) if callable(rule) else rule for rule in waiting]
    for rule in rules:
        hint = ", or a function that returns one for a code"
        _validation.check_instance("waiting", rule, WaitingRule, hint)
    for rule in dict.fromkeys(rules):
        model = stragglers.delayed(drawn.delay, rule)
        stragglers.StragglerModel.check("waiting", model, code.loads)
        yield rule
