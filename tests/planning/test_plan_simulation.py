"""Plans against an independent simulation of rounds and of gradient descent in NumPy.

The simulation follows the documentation of `plan`, `delayed`, the waiting rules and the
codes. It draws its own times, and uses no rule, decoder or model of the library.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.planning import Candidate, Candidates, Goal
from jaxwgc.planning._choice import Estimate

NUM_WORKERS = 6
# Independent clusters, and consecutive rounds of each.
NUM_CLUSTERS = 100
NUM_ROUNDS = 100
# Number of clusters for codes with many messages, which take long to simulate.
NUM_FEW_CLUSTERS = 40
# Groups of clusters; their scatter gives the standard errors of the simulation.
NUM_GROUPS = 20
# Standard errors between plan and simulation. The plan has 20 groups of rounds: for
# Student's t with 19 degrees of freedom, 6 are exceeded with probability 1e-5.
DEVIATIONS = 6.0
# Largest number of rare events in the rounds of the plan that are missing in the
# simulation, which has more rounds.
NUM_RARE = 10
# Relative difference that is allowed on top: plans compute in float32.
ROUNDING = 1e-5
SHIFT = 1.0
RATE = 1.0
SPEEDS = np.array([1, 1, 1, 0.8, 0.6, 0.4])
# Factor of the loss that is allowed for approximations of persistent noise.
MODEL = 1.1
# Length of a stall, over the longest time in the trace.
TAIL = 5.0
# Goal with a noise that matters, and that exact descent reaches in few steps.
GOAL = Goal(target=0.01, condition=10.0, heterogeneity=2.0)

UNCODED = codes.uncoded(NUM_WORKERS)
REPETITION = codes.fractional_repetition(NUM_WORKERS, 1)
BINARY = codes.binary(NUM_WORKERS, 3)
REPLICATED = codes.replicated(NUM_WORKERS, 12, 2)
MESSAGES = codes.multi_message(REPETITION)
STOCHASTIC = codes.stochastic(
    jax.random.key(3), NUM_WORKERS, 6, 2, straggler_probability=0.2
)
# Each worker has two parts, with unequal entries.
MATRIX = codes.GradientCode.from_matrix(np.eye(6) + 0.5 * np.roll(np.eye(6), 1, axis=1))

# Times at load 1, (clusters, rounds, workers).


@functools.cache
def times_of_unequal_workers():
    """Draws shifted exponential times, over the speed of each worker."""
    random = np.random.default_rng(1)
    shape = NUM_CLUSTERS, NUM_ROUNDS, NUM_WORKERS
    return (SHIFT + random.exponential(1 / RATE, shape)) / SPEEDS


@functools.cache
def times_of_equal_workers():
    """Draws shifted exponential times of workers of speed 1."""
    random = np.random.default_rng(2)
    shape = NUM_CLUSTERS, NUM_ROUNDS, NUM_WORKERS
    return SHIFT + random.exponential(1 / RATE, shape)


# Decoders. Each returns a function of arrival times (clusters, messages) and moments
# (clusters, moments) that computes the weight of each part in the gradient decoded at
# each moment, (clusters, moments, parts).


def from_any_copy(code, families=None):
    """Decodes the parts of which a copy arrived, in the family that loses least.

    Args:
      code: Gradient code whose messages are sums of parts.
      families: Masks of the messages that may be combined; all by default.
    """
    held = np.asarray(code.encoding_matrix) != 0
    if families is None:
        families = [np.ones(len(held), bool)]

    def weights(times, moments):
        arrived = []
        for family in families:
            copies = (held & family[:, None]).T
            first = np.stack([times[:, copy].min(axis=1) for copy in copies], axis=1)
            is_there = first[:, None] <= moments[:, :, None]
            arrived.append(is_there & (first < np.inf)[:, None])
        arrived = np.array(arrived)
        best = arrived.sum(axis=-1).argmax(axis=0)
        chosen = np.take_along_axis(arrived, best[None, :, :, None], axis=0)[0]
        return chosen.astype(float)

    return weights


def from_classes(code):
    """Decodes a binary code: classes of equal size split the parts in the same way."""
    class_of_worker = np.arange(code.num_workers) % (code.num_stragglers + 1)
    size_of_class = np.bincount(class_of_worker)
    size = size_of_class[class_of_worker]
    return from_any_copy(code, [size == choice for choice in np.unique(size_of_class)])


@functools.cache
def least_squares(code):
    """Returns a function of masks (..., messages) that computes decoding weights.

    They are the shortest ones that combine the messages as near to the target as
    possible.
    """
    matrix = np.asarray(code.encoding_matrix)
    powers = 2 ** np.arange(len(matrix))
    of_mask = np.zeros((2 ** len(matrix), len(matrix)), matrix.dtype)
    for index, weights in enumerate(of_mask):
        mask = index // powers % 2 == 1
        weights[mask] = np.linalg.lstsq(
            matrix[mask].T, np.asarray(code.target), rcond=1e-9
        )[0]
    return lambda masks: of_mask[masks @ powers]


def by_least_squares(code):
    """Decodes as near to the target as the messages that arrived allow."""

    def weights(times, moments):
        arrived = (times[:, None] <= moments[:, :, None]) & (times[:, None] < np.inf)
        return least_squares(code)(arrived) @ np.asarray(code.encoding_matrix)

    return weights


def by_sum(code):
    """Adds all messages that arrived."""
    matrix = np.asarray(code.encoding_matrix)

    def weights(times, moments):
        return (times[:, None] <= moments[:, :, None]) @ matrix

    return weights


class Rounds(NamedTuple):
    """Simulated rounds of clusters; arrays (clusters, rounds, ...).

    Attributes:
      elapsed: Duration of the round.
      weights: Weight of each part in the decoded gradient.
      responding: Workers with a message of this round.
      joined: Workers that began with the parameters of this round.
      late: Workers with a response to an earlier round.
    """

    elapsed: np.ndarray
    weights: np.ndarray
    responding: np.ndarray
    joined: np.ndarray
    late: np.ndarray


def squared_errors(code, weights):
    """Returns squared distances from the target over its squared norm."""
    target = np.asarray(code.target)
    return np.sum(np.abs(weights - target) ** 2, axis=-1) / np.sum(target**2)


def end_of_round(choice, times, message_times, decoded):
    """Returns when rounds end, (clusters,), from times (clusters, workers)."""
    wait = choice.wait
    ordered = np.sort(times, axis=1)
    if isinstance(wait, stragglers.fastest):
        return ordered[:, wait.num_required - 1]
    if isinstance(wait, stragglers.deadline):
        return np.minimum(ordered[:, -1], wait.seconds)
    if isinstance(wait, stragglers.relative_deadline):
        return np.minimum(ordered[:, -1], wait.factor * ordered[:, wait.quorum - 1])
    # All other rules end with the first message after which the error is tolerated, or
    # with the last one. It is found by bisection: no message increases the error.
    moments = np.sort(message_times, axis=1)
    first = np.zeros(len(moments), int)
    last = np.full(len(moments), moments.shape[1] - 1)
    while np.any(first < last):
        middle = (first + last) // 2
        moment = np.take_along_axis(moments, middle[:, None], axis=1)
        weights = decoded(message_times, moment)[:, 0]
        is_over = squared_errors(choice.code, weights) <= wait.tolerance**2
        first = np.where(is_over, first, np.minimum(middle + 1, last))
        last = np.where(is_over, middle, last)
    return np.take_along_axis(moments, last[:, None], axis=1)[:, 0]


def simulate(choice, unit_times, decoder):
    """Simulates the rounds of a choice from times at load 1.

    Workers process their parts one by one, at constant speed. A late worker that is
    busy finishes its work, and begins with the parameters of the round in which it
    does. If it would never finish, it is replaced.
    """
    if choice.late == "cancelled" and unit_times.shape[1] > 1:
        # Rounds do not depend on each other, so that all are first rounds of clusters.
        clusters_and_rounds = unit_times.shape[:2]
        first_rounds = unit_times.reshape(-1, 1, unit_times.shape[2])

        def by_cluster(array):
            return array.reshape(clusters_and_rounds + array.shape[2:])

        return jax.tree.map(by_cluster, simulate(choice, first_rounds, decoder))
    code = choice.code
    num_parts = np.asarray(code.assignment).sum(axis=1)
    loads = num_parts * code.num_workers / code.num_parts
    required = np.asarray(code.required_parts)
    if code.messages_per_worker == 1:
        required = num_parts[:, None]
    shares = required / np.maximum(num_parts, 1)[:, None]
    decoded = decoder(code)
    remaining = np.zeros((len(unit_times), code.num_workers))
    rounds = []
    # Without a part, a response takes no time.
    all_times = np.where(loads > 0, unit_times, 0) * loads
    for times in np.moveaxis(all_times, 1, 0):
        finish = remaining + times
        by_message = (finish[:, :, None] * shares).reshape(len(finish), -1)
        elapsed = end_of_round(choice, finish, by_message, decoded)
        now = elapsed[:, None]
        weights = decoded(by_message, now)[:, 0]
        is_there = (by_message <= now) & (by_message < np.inf)
        responding = is_there.reshape(*finish.shape, -1).any(axis=2)
        joined = remaining <= now
        late = joined & (remaining > 0)
        rounds.append((elapsed, weights, responding, joined, late))
        if choice.late == "busy":
            after = np.where(joined, finish, remaining) - now
            remaining = np.where((finish <= now) | np.isinf(after), 0, after)
    return Rounds(*(np.stack(values, axis=1) for values in zip(*rounds)))


# Gradient descent on the quadratic that `plan` describes. It is linear in the initial
# distance and in the gradients of the parts at the optimum. Column 0 has the distance
# of 1 from the optimum with which descent starts. Each other column is moved by a
# gradient of one part at the optimum, and squares add up because these gradients are
# independent.


def curvatures():
    """Returns the curvatures, as a column."""
    return np.geomspace(1 / GOAL.condition, 1, 8)[:, None]


def gradients_at_optimum(num_parts, result):
    """Returns gradients of the parts, (num_parts, 1, 1 + num_parts).

    For data split into n parts, their mean square is `heterogeneity` times the mean
    square of the initial gradient. They are independent, apart from a sum of zero.
    """
    square = result.goal.heterogeneity * curvatures().mean()
    # The mean over all parts is removed, and parts of fewer data differ more.
    square *= num_parts / (NUM_WORKERS - 1)
    deviations = np.eye(num_parts) - 1 / num_parts
    return math.sqrt(square) * np.pad(deviations, [(0, 0), (1, 0)])[:, None]


def start(rounds, num_parts):
    """Returns the place at which descent starts, (clusters, curvatures, columns).

    Every curvature has the same share of the loss.
    """
    place = np.zeros((len(rounds.elapsed), 8, 1 + num_parts))
    place[:, :, 0] = 1 / np.sqrt(curvatures()[:, 0])
    return place


def loss(place):
    """Returns the loss of each cluster, relative to the loss at the start."""
    return np.mean(np.sum(curvatures() * place**2, axis=2), axis=1)


def losses_of_descent(rounds, step, result):
    """Returns losses (clusters, 1 + rounds) of descent with the decoded gradients."""
    num_parts = rounds.weights.shape[2]
    at_optimum = gradients_at_optimum(num_parts, result)[:, 0]
    place = start(rounds, num_parts)
    losses = [loss(place)]
    # The step size makes up for a scale of all gradients.
    weights = rounds.weights.real / rounds.weights.real.mean()
    for weight in np.moveaxis(weights, 1, 0):
        scale = weight.mean(axis=1)[:, None, None]
        moved = (weight @ at_optimum / num_parts)[:, None]
        place = place - step * (scale * curvatures() * place + moved)
        losses.append(loss(place))
    return np.stack(losses, axis=1)


def losses_with_memory(code, rounds, step, result):
    """Returns losses of descent with stored messages, for a code of least squares.

    The coordinator stores the newest message of each worker. A late message has the
    gradient at the parameters with which its worker began. With decoding weights a of
    the round and w of all workers that have ever responded, the gradient is the sum of
    a (m - h) + w h, for messages m and stored messages h.
    """
    matrix = np.asarray(code.encoding_matrix)
    decode = least_squares(code)
    at_optimum = gradients_at_optimum(code.num_parts, result)
    place = start(rounds, code.num_parts)
    losses = [loss(place)]
    stored = np.zeros((len(place), NUM_WORKERS, *place.shape[1:]))
    underway = stored
    is_known = np.zeros((len(place), NUM_WORKERS), bool)
    for index in range(NUM_ROUNDS):
        responding = rounds.responding[:, index]
        late = rounds.late[:, index]
        gradients = (curvatures() * place)[:, None] + at_optimum
        messages = np.einsum("wp,cpdk->cwdk", matrix, gradients)
        stored = np.where((late & ~responding)[..., None, None], underway, stored)
        # A worker that responds for the first time has no older message.
        is_new = responding & ~is_known & ~late
        stored = np.where(is_new[..., None, None], messages, stored)
        is_known = is_known | responding | late
        weights = decode(responding)
        of_known = decode(is_known)
        # Until all workers are known, their share of the gradient is scaled to all.
        share = (of_known @ matrix).mean(axis=1, keepdims=True)
        missing = of_known / np.where(share > 0, share, 1) - weights
        # A round that decodes needs no stored messages.
        is_exact = squared_errors(code, weights @ matrix) < 1e-6
        missing[is_exact] = 0
        total = np.einsum("cw,cwdk->cdk", weights, messages)
        total += np.einsum("cw,cwdk->cdk", missing, stored)
        place = place - step * total / code.num_parts
        losses.append(loss(place))
        joined = rounds.joined[:, index, :, None, None]
        underway = np.where(joined, messages, underway)
        stored = np.where(responding[..., None, None], messages, stored)
    return np.stack(losses, axis=1)


# Comparisons.


def spread(values):
    """Returns the standard error of the mean of values (clusters, ...)."""
    return values.std(ddof=1) / math.sqrt(len(values))


def assert_mean(estimate, values, result, *, event, is_closed_form=False):
    """Compares an estimate of a plan with values (clusters, rounds).

    Args:
      estimate: Estimate of the plan.
      values: Values of the simulation.
      found: Plan.
      event: Change of a value in a rare round, of which some may be in the plan but not
        in the simulation.
      is_closed_form: Whether the plan has no rounds.
    """
    standard_error = spread(values.mean(axis=1))
    planned = 0
    rare = 0
    if not is_closed_form:
        # Few rounds may have a standard error of 0 by chance. The simulation tells what
        # it is for as many rounds.
        planned = standard_error * math.sqrt(values.size / result.num_rounds)
        planned = max(planned, estimate.standard_error)
        rare = NUM_RARE * event / result.num_rounds
    tolerance = DEVIATIONS * math.hypot(standard_error, planned) + rare
    expected = pytest.approx(values.mean(), rel=ROUNDING, abs=tolerance)
    assert estimate.value == expected


def assert_quantile(choice, elapsed, result):
    """Compares the 90% quantile of step times; groups of clusters give its error."""
    groups = np.quantile(elapsed.reshape(NUM_GROUPS, -1), 0.9, axis=1)
    standard_error = spread(groups)
    planned = standard_error * math.sqrt(elapsed.size / result.num_rounds)
    planned = max(planned, choice.step_quantile.standard_error)
    planned = 0 if choice.is_closed_form else planned
    tolerance = DEVIATIONS * math.hypot(standard_error, planned)
    expected = pytest.approx(np.quantile(elapsed, 0.9), rel=ROUNDING, abs=tolerance)
    assert choice.step_quantile.value == expected


def assert_rounds(choice, rounds, result):
    """Compares the times, messages and errors of a choice with simulated rounds."""
    elapsed = rounds.elapsed
    assert_mean(
        choice.step_time,
        elapsed,
        result,
        event=elapsed.mean() / 2,
        is_closed_form=choice.is_closed_form,
    )
    assert_quantile(choice, elapsed, result)
    errors = squared_errors(choice.code, rounds.weights)
    if choice.is_exact:
        assert errors.max() < ROUNDING
        assert choice.decoding_error == (0, 0)
    else:
        assert_mean(choice.decoding_error, errors, result, event=0.5)
    messages = rounds.responding.sum(axis=2).astype(float)
    if choice.memory:
        messages += rounds.late.sum(axis=2)
    assert_mean(Estimate(choice.num_messages, 0.0), messages, result, event=1)


def assert_steps(choice, rounds, result):
    """Compares the loss after the planned number of steps with the target.

    Choices of more steps than simulated rounds are left out.
    """
    if math.isinf(choice.num_steps):
        assert_lowest_loss(choice, rounds, result)
    if choice.num_steps > NUM_ROUNDS:
        return

    def losses_for(step):
        if choice.memory:
            return losses_with_memory(choice.code, rounds, step, result)
        return losses_of_descent(rounds, step, result)

    def reached(losses):
        logarithms = np.log(losses.mean(axis=0))
        return np.interp(choice.num_steps, np.arange(len(logarithms)), logarithms)

    losses = losses_for(choice.step_size)
    target = math.log(result.goal.target)
    at_target = losses[:, round(choice.num_steps)]
    tolerance = relative_tolerance(at_target, rounds, result)
    assert reached(losses) == pytest.approx(target, abs=tolerance)
    # No step of another size reaches a lower loss.
    for factor in (0.6, 1.4):
        other = losses_for(factor * choice.step_size)
        assert reached(other) > reached(losses) - math.log(MODEL)
    # If descent has converged, its loss is the lowest one. Errors in few rounds are not
    # compared.
    left = (1 - choice.step_size / result.goal.condition) ** NUM_ROUNDS
    if left < ROUNDING and choice.lowest_loss > result.goal.target / 10:
        last = losses[:, -NUM_ROUNDS // 4 :].mean(axis=1)
        tolerance = relative_tolerance(last, rounds, result)
        lowest = pytest.approx(math.log(choice.lowest_loss), abs=tolerance)
        assert math.log(last.mean()) == lowest


def assert_lowest_loss(choice, rounds, result):
    """Compares the lowest loss of a choice that does not reach the target.

    It is the loss of small steps, due to the mean weights of the parts.
    """
    num_parts = choice.code.num_parts
    weights = rounds.weights.real.mean(axis=1)
    gradients = weights / weights.mean() @ gradients_at_optimum(num_parts, result)[:, 0]
    gradient = gradients.mean(axis=0) / num_parts
    lowest = np.sum(gradient**2) * np.mean(1 / curvatures())
    # Changes of the squares with the weights of each cluster, to first order.
    changes = 2 * gradients @ gradient / num_parts - np.sum(gradient**2)
    tolerance = relative_tolerance(changes, rounds, result)
    assert lowest > result.goal.target * math.exp(-tolerance)
    expected = pytest.approx(math.log(lowest), abs=tolerance)
    assert math.log(choice.lowest_loss) == expected


def relative_tolerance(losses, rounds, result):
    """Returns the tolerance of the logarithm of a mean of losses (clusters,)."""
    relative_error = spread(losses) / losses.mean()
    planned = relative_error * math.sqrt(rounds.elapsed.size / result.num_rounds)
    return DEVIATIONS * math.hypot(relative_error, planned) + math.log(MODEL)


# Standard codes and rules.

UNEQUAL = stragglers.unequal_speeds(
    stragglers.shifted_exponential(SHIFT, RATE), tuple(SPEEDS)
)
DECODERS = {
    "uncoded": from_any_copy,
    "uncoded by speed": from_any_copy,
    "replicated": from_any_copy,
    "replicated by speed": from_any_copy,
    "any_placement by speed": by_least_squares,
    "fractional_repetition": from_any_copy,
    "binary": from_classes,
    "reed_solomon": by_least_squares,
}


@functools.cache
def standard_plan(late):
    """Returns a plan of the standard codes and rules, for workers of unequal speed."""
    candidates = Candidates(copies=[2, 4], late=late)
    return jaxwgc.plan(
        UNEQUAL, NUM_WORKERS, jax.random.key(0), candidates=candidates, goal=GOAL
    )


@pytest.mark.parametrize("late", ["busy", "cancelled"])
@pytest.mark.parametrize("name", DECODERS)
def test_standard_choices(name, late):
    result = standard_plan(late)
    assert {choice.name for choice in result.choices} == {*DECODERS}
    chosen = [choice for choice in result.choices if choice.name == name]
    # Workers that stop between two messages are never busy.
    stop = "cancelled" if name.startswith("replicated") else late
    assert {choice.late for choice in chosen} == {stop}
    unit_times = times_of_unequal_workers()
    if name.startswith("replicated"):
        unit_times = unit_times[:NUM_FEW_CLUSTERS]
    for choice in chosen:
        rounds = simulate(choice, unit_times, DECODERS[name])
        assert_rounds(choice, rounds, result)
        assert_steps(choice, rounds, result)


@functools.cache
def exact_plan():
    """Returns a plan of the standard codes and rules that are exact."""
    candidates = Candidates(copies=[2, 4], late="busy", exact=True)
    return jaxwgc.plan(
        UNEQUAL, NUM_WORKERS, jax.random.key(1), candidates=candidates, goal=GOAL
    )


@pytest.mark.parametrize("name", DECODERS)
def test_exact_choices(name):
    result = exact_plan()
    chosen = [choice for choice in result.choices if choice.name == name]
    assert chosen
    unit_times = times_of_unequal_workers()
    if name.startswith("replicated"):
        unit_times = unit_times[:NUM_FEW_CLUSTERS]
    for choice in chosen:
        rounds = simulate(choice, unit_times, DECODERS[name])
        assert squared_errors(choice.code, rounds.weights).max() < 1e-9
        assert choice.decoding_error == (0, 0)
        assert_rounds(choice, rounds, result)


def test_choices_that_are_not_exact_are_left_out():
    waiting = [stragglers.fastest(number) for number in (3, 4, 5)]
    own_codes = {"fractional_repetition": REPETITION, "binary": BINARY}
    candidates = Candidates(codes=own_codes, waiting=waiting, late="cancelled")
    plan = functools.partial(
        jaxwgc.plan, UNEQUAL, NUM_WORKERS, jax.random.key(6), goal=GOAL
    )
    all_choices = plan(candidates=candidates).choices
    expected = set()
    for choice in all_choices:
        rounds = simulate(choice, times_of_unequal_workers(), DECODERS[choice.name])
        if squared_errors(choice.code, rounds.weights).max() < ROUNDING:
            expected.add((choice.name, choice.wait))
    result = plan(candidates=dataclasses.replace(candidates, exact=True))
    assert {(choice.name, choice.wait) for choice in result.choices} == expected
    assert 0 < len(expected) < len(all_choices)


# Closed forms for independent and equally fast workers.


@functools.cache
def plan_of_equal_workers(late):
    """Returns a plan for a law with rules that count workers or seconds."""
    return jaxwgc.plan(
        stragglers.shifted_exponential(SHIFT, RATE),
        NUM_WORKERS,
        jax.random.key(2),
        candidates=Candidates(
            codes={"fractional_repetition": REPETITION},
            waiting=[
                *(stragglers.fastest(number) for number in (2, 5)),
                *(stragglers.deadline(seconds) for seconds in (2.5, 4.0)),
            ],
            late=late,
        ),
        goal=GOAL,
    )


@pytest.mark.parametrize("late", ["cancelled", "busy"])
@pytest.mark.parametrize("name", ["uncoded", "fractional_repetition"])
def test_closed_forms(name, late):
    result = plan_of_equal_workers(late)
    chosen = [choice for choice in result.choices if choice.name == name]
    # Uncoded workers are always compared with waiting for all of them.
    assert len(chosen) == (5 if name == "uncoded" else 4)
    for choice in chosen:
        # Workers are never busy if rounds wait for all.
        is_busy = late == "busy" and choice.wait != stragglers.fastest(NUM_WORKERS)
        assert choice.is_closed_form == (not is_busy)
        if choice.is_closed_form:
            assert choice.step_time.standard_error == 0
        rounds = simulate(choice, times_of_equal_workers(), from_any_copy)
        assert_rounds(choice, rounds, result)
        assert_steps(choice, rounds, result)


# Own codes and rules.

# Code, rule, what late workers do, whether messages are stored, and decoder.
OWN = {
    "uncoded, fastest, cancelled": (
        Candidate("", UNCODED, stragglers.fastest(4), "cancelled"),
        from_any_copy,
    ),
    "uncoded, fastest, busy": (
        Candidate("", UNCODED, stragglers.fastest(4), "busy"),
        from_any_copy,
    ),
    "uncoded, deadline, busy": (
        Candidate("", UNCODED, stragglers.deadline(6.0), "busy"),
        from_any_copy,
    ),
    "uncoded, relative deadline, cancelled": (
        Candidate("", UNCODED, stragglers.relative_deadline(1.5, 3), "cancelled"),
        from_any_copy,
    ),
    "uncoded, relative deadline, busy": (
        Candidate("", UNCODED, stragglers.relative_deadline(1.5, 3), "busy"),
        from_any_copy,
    ),
    "uncoded, memory": (
        Candidate("", UNCODED, stragglers.fastest(4), "busy", memory=True),
        from_any_copy,
    ),
    "fractional_repetition, decodable, busy": (
        Candidate("", REPETITION, stragglers.until_decodable(REPETITION), "busy"),
        from_any_copy,
    ),
    # One of three blocks may be lost, which is an error of 1/3 or 0.58 squared.
    "fractional_repetition, error, busy": (
        Candidate("", REPETITION, stragglers.until_decodable(REPETITION, 0.6), "busy"),
        from_any_copy,
    ),
    "fractional_repetition, coverage, cancelled": (
        Candidate("", REPETITION, stragglers.coverage(REPETITION, 0.65), "cancelled"),
        from_any_copy,
    ),
    # One half of the parts may be lost, 0.71 squared.
    "binary, error, busy": (
        Candidate("", BINARY, stragglers.until_decodable(BINARY, 0.75), "busy"),
        from_classes,
    ),
    "binary, deadline, cancelled": (
        Candidate("", BINARY, stragglers.deadline(8.0), "cancelled"),
        from_classes,
    ),
    "replicated, deadline": (
        Candidate("", REPLICATED, stragglers.deadline(4.0), "cancelled"),
        from_any_copy,
    ),
    "replicated, coverage": (
        Candidate("", REPLICATED, stragglers.coverage(REPLICATED, 0.7), "cancelled"),
        from_any_copy,
    ),
    "stochastic, deadline, cancelled": (
        Candidate("", STOCHASTIC, stragglers.deadline(8.0), "cancelled"),
        by_sum,
    ),
    "stochastic, fastest, busy": (
        Candidate("", STOCHASTIC, stragglers.fastest(5), "busy"),
        by_sum,
    ),
    "own matrix, fastest, busy": (
        Candidate("", MATRIX, stragglers.fastest(5), "busy"),
        by_least_squares,
    ),
    "own matrix, error, cancelled": (
        Candidate("", MATRIX, stragglers.until_decodable(MATRIX, 0.4), "cancelled"),
        by_least_squares,
    ),
    "own matrix, memory": (
        Candidate("", MATRIX, stragglers.fastest(4), "busy", memory=True),
        by_least_squares,
    ),
    "several messages, error": (
        Candidate("", MESSAGES, stragglers.until_decodable(MESSAGES, 0.5), "cancelled"),
        by_least_squares,
    ),
}


def named_choices(names):
    """Returns own choices with their names."""
    return [dataclasses.replace(OWN[name][0], name=name) for name in names]


@functools.cache
def plan_of_own_choices():
    """Returns a plan of own choices for workers of unequal speed."""
    options = {"candidates": named_choices(OWN), "goal": GOAL}
    return jaxwgc.plan(UNEQUAL, NUM_WORKERS, jax.random.key(4), **options)


@pytest.mark.parametrize("name", OWN)
def test_choices_of_the_user_are_simulated_as_by_numpy(name):
    result = plan_of_own_choices()
    [choice] = [choice for choice in result.choices if choice.name == name]
    rounds = simulate(choice, times_of_unequal_workers(), OWN[name][1])
    assert_rounds(choice, rounds, result)
    assert_steps(choice, rounds, result)


@pytest.mark.parametrize(
    ("name", "heterogeneity"),
    [
        # Until all workers are known, the unknown ones move the place.
        ("uncoded, memory", 100.0),
        # If all parts agree, only the scale of the gradient is noisy.
        ("binary, deadline, cancelled", 0.0),
    ],
)
def test_steps_for_another_goal(name, heterogeneity):
    goal = dataclasses.replace(GOAL, heterogeneity=heterogeneity)
    result = plan_of_own_choices().replan(goal)
    [choice] = [choice for choice in result.choices if choice.name == name]
    rounds = simulate(choice, times_of_unequal_workers(), OWN[name][1])
    assert choice.num_steps <= NUM_ROUNDS
    assert_steps(choice, rounds, result)


def test_classes_of_a_binary_code_that_do_not_combine():
    """Five workers: classes of three and of two split the parts in unlike ways."""
    code = codes.binary(5, 1)
    chosen = [
        Candidate("", code, stragglers.fastest(3), "cancelled"),
        Candidate("", code, stragglers.until_decodable(code, 0.7), "busy"),
    ]
    delay = stragglers.unequal_speeds(
        stragglers.shifted_exponential(SHIFT, RATE), SPEEDS[:5]
    )
    result = jaxwgc.plan(delay, 5, jax.random.key(7), candidates=chosen, goal=GOAL)
    for choice in result.choices:
        unit_times = times_of_unequal_workers()[..., :5]
        assert_rounds(choice, simulate(choice, unit_times, from_classes), result)


# Traces, and stalls that they do not show.

TRACED = [
    "uncoded, fastest, cancelled",
    "uncoded, fastest, busy",
    "fractional_repetition, decodable, busy",
    "binary, deadline, cancelled",
    "replicated, coverage",
]
NUM_MEASURED = 40


@functools.cache
def trace():
    """Returns measured times with a slow spell of a worker."""
    random = np.random.default_rng(3)
    times = (1 + random.exponential(size=(NUM_MEASURED, NUM_WORKERS))) / SPEEDS
    times[10:20, 1] *= 3
    return times


@functools.cache
def trace_with_a_lost_response():
    """Returns measured times with a response that never arrived."""
    times = trace().copy()
    times[5, 2] = np.inf
    return times


def times_by_history(measured):
    """Draws the start of the history of each worker, and follows it cyclically."""
    random = np.random.default_rng(4)
    starts = random.integers(NUM_MEASURED, size=(NUM_CLUSTERS, 1, NUM_WORKERS))
    rounds = (starts + np.arange(NUM_ROUNDS)[:, None]) % NUM_MEASURED
    return measured[rounds, np.arange(NUM_WORKERS)]


@functools.cache
def plan_for_trace():
    """Returns a plan of own choices for a trace."""
    delay = stragglers.empirical(trace_with_a_lost_response(), "workers")
    options = {"candidates": named_choices(TRACED), "tail": 0, "goal": GOAL}
    return jaxwgc.plan(delay, NUM_WORKERS, jax.random.key(5), **options)


@pytest.mark.parametrize("name", TRACED)
def test_rounds_of_a_trace(name):
    result = plan_for_trace()
    [choice] = [choice for choice in result.choices if choice.name == name]
    unit_times = times_by_history(trace_with_a_lost_response())
    assert_rounds(choice, simulate(choice, unit_times, OWN[name][1]), result)


def test_stalls_that_a_trace_does_not_show():
    """Three of the measured times could have been stalls."""
    chosen = [
        Candidate("", UNCODED, stragglers.fastest(NUM_WORKERS), "cancelled"),
        Candidate("", UNCODED, stragglers.fastest(5), "busy"),
        Candidate("", REPETITION, stragglers.fastest(5), "busy"),
    ]
    delay = stragglers.empirical(trace(), "workers")
    options = {"candidates": chosen, "tail": TAIL, "num_rounds": 8000, "goal": GOAL}
    result = jaxwgc.plan(delay, NUM_WORKERS, jax.random.key(8), **options)
    unit_times = times_by_history(trace())
    random = np.random.default_rng(6)
    is_stalled = random.random(unit_times.shape) < 3 / trace().size
    stall = TAIL * trace().max()
    stalled_times = np.where(is_stalled, np.maximum(unit_times, stall), unit_times)
    for choice in result.choices:
        rounds = simulate(choice, unit_times, from_any_copy)
        assert_rounds(choice, rounds, result)
        elapsed = simulate(choice, stalled_times, from_any_copy).elapsed
        event = elapsed.mean() / 2
        assert_mean(choice.stalled_step_time, elapsed, result, event=event)
