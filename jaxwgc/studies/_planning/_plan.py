"""Plans: choice of the code, the replication factor and the waiting rule."""

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

# A waiting rule, or a function that returns one for a code.
RuleLike: TypeAlias = WaitingRule | Callable[[GradientCode], WaitingRule]
# Number of groups of rounds; their scatter gives the standard errors.
_NUM_GROUPS = 20
# Minimum number of rounds per group, so that the idle start hardly matters.
_FEWEST_ROUNDS = 50
# Default maximum of the replication factor.
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
    Its curvatures are spread evenly, on a logarithmic scale, over a factor of
    `condition`. Decoded gradients weight the parts unequally: changes from round to
    round are noise, which persists if stragglers do; a permanent deviation is a bias,
    e.g. from the parts of a worker that is always late. Both are proportional to the
    gradients of the parts at the optimum, `heterogeneity`, and are 0 if all parts
    agree. A common scale of all weights is compensated by the step size.

    **Memory.** With `coded_aggregate(memory=True)`, a stored message replaces a late
    one. No part is lost, but some gradients are stale: steps are found by a simulation
    of this aggregator. For codes, use `choices=[choice._replace(memory=True)]`.

    **Unseen stalls.** An event that a trace of m times does not show may have a
    probability of up to 3 / m (95%). So a trace is judged as it is, and with the
    stalls and biases that it may hide. The best choice has the least regret: its excess
    over the fastest choice, in the worse of the two cases, is the smallest.

    Args:
      delay: Delay model, e.g. `jaxwgc.stragglers.empirical` of measured times.
      num_workers: n, at least 1.
      key: PRNG key of either kind, for the rounds.
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
            # Workers with several messages stop between messages.
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
    """Returns a single value, or several values, as a list."""
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
            rule = (
                "be False unless code has one message per worker and decodes from all"
            )
            _validation.require(is_right, f"{name}.memory", rule, code)
    return [(choice.name, choice.code) for choice in choices]


def _check_workers(name, code, num_workers):
    rule, given = f"have num_workers = {num_workers}", code.num_workers
    _validation.require(given == num_workers, name, rule, given)
