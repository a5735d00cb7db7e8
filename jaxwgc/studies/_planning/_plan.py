"""Which code, how many copies, how long to wait: an answer, with its uncertainty."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np

from jaxwgc import _validation
from jaxwgc._targets import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import DelayModel, WaitingRule, fastest
from jaxwgc.studies._planning._candidates import (
    Named,
    rules_of,
    speeds_of,
    standard_codes,
    standard_rules,
)
from jaxwgc.studies._planning._choice import BUSY, CANCELLED, UNCODED, Choice
from jaxwgc.studies._planning._judgement import judge
from jaxwgc.studies._planning._plan_results import Plan
from jaxwgc.studies._planning._ranking import ranked_choices
from jaxwgc.studies._planning._simulated_rounds import Drawn
from jaxwgc.studies._planning._steps_to_target import Goal

# A waiting rule, or what gives one for a code.
RuleLike: TypeAlias = WaitingRule | Callable[[GradientCode], WaitingRule]
# Rounds are averaged in so many groups, whose scatter gives the standard errors.
_NUM_GROUPS = 20
# Of each group, so that few of them begin with no worker busy.
_FEWEST_ROUNDS = 50
# Where none are asked for.
_MOST_COPIES = 4


def plan(
    delay: DelayModel,
    num_workers: int,
    key: jax.Array,
    *,
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
    """Which code, how many copies and how long to wait, and whether to code at all.

    Each code with each waiting rule is a choice; a choice costs time a step, and what
    it loses of the gradient costs steps. Work is counted: workers have `code.loads`, so
    that d copies of every part are d times as much to do.

    **Time of a step.** Where workers are independent and equal (`delay.law`), and as
    many answers are waited for as are asked for, or to a deadline, from the law of
    order statistics; elsewhere from simulated rounds, the same for all choices.
    Waiting for any n - s answers of an exact code, this is the rule of Halbawi et al.

    Workers that send one message and are late go on, and join the round in which they
    have answered, as those of a `RayCluster` do. Those that send finished parts on
    request begin every round afresh, and so do all with `late="cancelled"`.

    **Steps.** Of gradient descent with the best constant step on a quadratic loss whose
    curvatures are spread evenly, on the scale of logarithms, over a factor of
    `condition`. Exact gradients need as many steps as that takes. Decoded ones weigh
    the parts unequally: what changes from round to round is noise of the step, which
    lasts where stragglers do, and what does not is a bias, such as of the parts of a
    worker that always comes too late. Both are in proportion to what the parts'
    gradients are at the optimum, `heterogeneity`, and are 0 where all parts agree.
    A scale that all weights share is left to the step.

    **Memory.** With `coded_aggregate(memory=True)` an old message stands in for a late
    one. No part is lost, but gradients are old in part: steps are those of a simulation
    of this aggregator. Ask about codes by `choices=[choice._replace(memory=True)]`.

    **What was not seen.** What a trace of m times does not show has, with 95%, a
    probability of up to 3 / m. So choices are judged by a trace as it is and with
    workers that stall so often and weights as biased as such a trace may hide, and the
    best is that of least regret: the one which takes, in the worse case of the two, the
    least longer than what is best in it.

    Args:
      delay: the delay model, such as `jaxwgc.stragglers.empirical` of measured times.
      num_workers: n, at least 1.
      key: PRNG key of either kind, of the rounds.
      replications: copies d of every part that are tried, from 1 to n; by default up to
        4. Without a code always: it is one of the choices.
      codes: in the place of the standard codes, codes of one's own by their names, each
        as a whole. Not traced. Other decoders than those of the standard codes take
        seconds to compile.
      choices: in the place of both, choices of another plan, to be judged with this
        delay model or goal.
      waiting: the waiting rules that are tried, also of one's own; in the place of one
        a function that gives it for a code, such as `stragglers.until_decodable`. By
        default `fastest`, `deadline` and `until_decodable`, each with some values.
      late: `"busy"` or `"cancelled"`, what workers with one message do that have not
        answered when a round ends, as for `stragglers.delayed`. A choice of `choices`
        keeps its own.
      memory: whether to remember late answers is among what is tried, without a code
        and waiting for the first so many. Asked for, since a short trace does not say
        how old the answers may get where times have heavy tails.
      exact: only choices whose gradient is exact in every round.
      num_rounds: that are simulated, at least 40; rounded up to a multiple of 20 that
        is at least 1,000.
      target: the loss above its minimum that is to be reached, over that of the start;
        between 0 and 1.
      condition: the largest curvature over the smallest, at least 1.
      heterogeneity: mean square of the gradients that the parts have at the optimum,
        for the whole data split into n parts, over that of the gradient at the start,
        all of them means over data. Logistic regression on two MNIST digits has about
        0.02 with 32 shuffled parts, and 0.1 to 0.9 where parts are sorted by digit.
      num_parameters: of the gradient, for the bytes.
      bytes_per_number: of a parameter and of a number in a message.
      tail: how long workers stall where delay is a trace, over the longest time in it;
        at least 0, which is for never.

    Returns:
      A `Plan`.

    Raises:
      ValueError: where an argument breaks its rule, codes have another number of
        workers, or a trace has too few of them.
      TypeError: where an argument has the wrong type.

    Example:
      Times that hardly differ do not pay for a second copy of the work:

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
    _validation.check_instance("delay", delay, DelayModel)
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
    length = max(-(-num_rounds // _NUM_GROUPS), _FEWEST_ROUNDS)
    shape = _NUM_GROUPS, length
    stalls = delay.stalls(float(tail))
    num_measured = stalls.num_rounds if stalls else math.inf
    delays = [delay, stalls.delay] if stalls and stalls.time > 0 else [delay]

    def draw(each, named):
        own = [code for _, code in named]
        return Drawn.of(each, own, key, shape, num_measured, each is not delay)

    chosen = _listed("choices", choices)
    if chosen is None:
        equal = draw(delay, standard_codes(num_workers, (), None))
        replications = _listed("replications", replications)
        named = _named_codes(num_workers, replications, codes, speeds_of(equal))
    else:
        named = _checked_choices(chosen, num_workers)
    drawn = [draw(each, named) for each in delays]
    if chosen is None:
        chosen = []
        for name, code in named:
            if waiting is None:
                rules = standard_rules(name, drawn[0], code, exact)
            else:
                rules = rules_of(name, drawn[0], code, waiting)
            # Workers that send several messages stop between two of them.
            stop = code.messages_per_worker > 1
            own = [
                Choice(name, code, rule, CANCELLED if stop else late) for rule in rules
            ]
            chosen += own
            if name == UNCODED and memory and not exact:
                everyone = fastest(num_workers)
                counts = [each for each in own if isinstance(each.wait, fastest)]
                late_too = [each for each in counts if each.wait != everyone]
                chosen += [each._replace(memory=True) for each in late_too]
    rounds = zip(*(judge(chosen, each) for each in drawn))
    judged = [
        choice._replace(rounds=own) for choice, own in zip(chosen, rounds, strict=True)
    ]
    if exact:
        judged = [each for each in judged if each.rounds[0].error.mean() <= DECODES**2]
    return Plan(
        choices=tuple(ranked_choices(judged, goal, num_parameters * bytes_per_number)),
        **goal._asdict(),
        num_rounds=length * _NUM_GROUPS,
        num_parameters=num_parameters,
        bytes_per_number=bytes_per_number,
        stalls=stalls,
    )


def _listed(name, values):
    """Returns an argument of one or several as a list."""
    if values is None:
        return None
    values = list(values)
    _validation.require(values, name, "be at least one", values)
    return values


def _named_codes(num_workers, replications, codes, speeds) -> list[Named]:
    """Returns the codes that are judged, uncoded workers first."""
    if codes is None:
        if replications is None:
            replications = range(1, min(num_workers, _MOST_COPIES) + 1)
        copies = [
            _validation.check_up_to("replications", copies, num_workers=num_workers)
            for copies in replications
        ]
        return list(standard_codes(num_workers, copies, speeds))
    rule = "be None with codes"
    _validation.require(replications is None, "replications", rule, replications)
    named = list(standard_codes(num_workers, (), None))
    for name, code in codes.items():
        GradientCode.check(code)
        name = str(name)
        _validation.check_concrete(f"codes[{name!r}]", code, "rounds are simulated")
        _check_workers(f"codes[{name!r}]", code, num_workers)
        named.append((name, code))
    return named


def _checked_choices(choices, num_workers) -> list[Named]:
    """Returns the codes of the choices of another plan."""
    for number, choice in enumerate(choices):
        name = f"choices[{number}]"
        _validation.check_instance(name, choice, Choice)
        code, several = choice.code, choice.code.messages_per_worker > 1
        _check_workers(f"{name}.code", code, num_workers)
        late = (CANCELLED,) if several else (CANCELLED, BUSY)
        _validation.check_choice(f"{name}.late", choice.late, late)
        if _validation.check_bool(f"{name}.memory", choice.memory):
            decodes = code.decodes(np.ones(code.num_messages, bool), DECODES)
            is_right = not several and code.num_segments == 1 and bool(decodes)
            rule = "be False unless code has one message per worker, and all decode"
            _validation.require(is_right, f"{name}.memory", rule, code)
    return [(choice.name, choice.code) for choice in choices]


def _check_workers(name, code, num_workers):
    rule, given = f"have num_workers = {num_workers}", code.num_workers
    _validation.require(given == num_workers, name, rule, given)
