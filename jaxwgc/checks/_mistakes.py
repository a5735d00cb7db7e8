"""Table of the mistakes that `check_step` reports: symptoms, tests and advice."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxwgc.checks._measures import Measures

# A forbidden dependence is reported if it changes an update by more than this fraction.
_SHARE = 0.1


class _Mistake(NamedTuple):
    """A mistake that measurements can show.

    Attributes:
      symptom: What is wrong, with measurements in braces, e.g. {loss.missed}.
      occurs: Returns whether the measurements show it.
      advice: What to do, with measurements in braces.
      is_consequence: Whether earlier mistakes of the table have this symptom, too, so
        that it is reported only without them.
    """

    symptom: str
    occurs: Callable[[Measures], bool]
    advice: str
    is_consequence: bool = False


def problems(measures: Measures) -> tuple[str, ...]:
    """Returns the symptom and advice of each mistake found."""
    found: list[str] = []
    for mistake in _MISTAKES:
        if mistake.is_consequence and found:
            continue
        if mistake.occurs(measures):
            text = f"{mistake.symptom}. {mistake.advice}"
            found.append(text.format(**measures._asdict()))
    return tuple(found)


_MISTAKES = (
    _Mistake(
        symptom="the gradient of every part is zero: does loss use its params?",
        occurs=lambda m: m.gradient.scale == 0,
        advice="Take other params if the loss is flat at these",
    ),
    _Mistake(
        symptom="the gradient is NaN or infinite for {gradient.not_finite}",
        occurs=lambda m: m.gradient.not_finite != "" and math.isfinite(m.loss.padding),
        advice=(
            "Are the parts, their row weights and params finite? "
            'jax.config.update("jax_debug_nans", True) finds the operation'
        ),
    ),
    _Mistake(
        symptom=(
            "loss is a mean over the rows of a part: doubled rows have a gradient of "
            "equal size (Adam hides it)"
        ),
        occurs=lambda m: m.gradient.needs_cause and m.loss.is_mean,
        advice=(
            "Return jnp.sum(row_weights * ...), divided by the total number of rows "
            "for a mean. If it is divided by the number of parts, pass whole_loss"
        ),
    ),
    _Mistake(
        symptom=(
            "loss is not a sum over the rows of a part: the gradient of doubled rows "
            "is off by {loss.missed:.0%} of the gradients of both halves"
        ),
        occurs=lambda m: (
            m.gradient.needs_cause and not m.loss.is_sum and not m.loss.is_mean
        ),
        advice=(
            "Rows must not interact (batch normalisation, a square root or logarithm "
            "of the total), and the loss must not draw random numbers (dropout)"
        ),
    ),
    _Mistake(
        symptom=(
            "loss has a gradient of norm {loss.constant:.3g} without any rows: a "
            "regulariser inside the loss, which is counted {gradient.total:g} times, "
            "once per part"
        ),
        occurs=lambda m: (
            m.gradient.needs_cause and m.loss.constant > 0 and m.gradient.total != 1
        ),
        advice=(
            "Divide it by that number, or add its gradient after the aggregator, e.g. "
            "by optax.add_decayed_weights. If it is divided already, pass whole_loss"
        ),
    ),
    _Mistake(
        symptom=(
            "the loss of the {loss.num_padding} rows of weight 0 has no finite gradient"
        ),
        occurs=lambda m: not math.isfinite(m.loss.padding),
        advice=(
            "Select before you compute: jnp.where(row_weights > 0, x, 1) in place of x"
        ),
    ),
    _Mistake(
        symptom=(
            "the row weights are not used: {loss.num_padding} padding rows add a "
            "gradient of norm {loss.padding:.3g}, or other weights have no effect"
        ),
        occurs=lambda m: (
            m.loss.is_unweighted or 1e-6 * m.gradient.scale < m.loss.padding < math.inf
        ),
        advice=(
            "Multiply the loss of each row by its row weight (from jaxwgc.partition, "
            "or from jaxwgc.parts.weighted_parts), as in jnp.sum(row_weights * "
            "...)"
        ),
    ),
    _Mistake(
        symptom=(
            "a sample without its weights: the parts hold {gradient.num_held} of "
            "{gradient.num_rows} rows, which represent {gradient.represented:.3g} "
            "times all (standard error {gradient.deviation:.2g})"
        ),
        occurs=lambda m: m.gradient.is_sample and not m.gradient.is_weighted,
        advice=(
            "Take parts and row_weights from jaxwgc.parts.weighted_parts, and pass "
            "its weights to jaxwgc.weighted(code, weights)"
        ),
        is_consequence=True,
    ),
    _Mistake(
        symptom=(
            "the decoded gradient differs from the gradient of the loss on the data: "
            "relative error {gradient.error:.2g}, with at most "
            "{gradient.num_stragglers} stragglers"
        ),
        occurs=lambda m: m.gradient.is_wrong,
        advice=(
            "Are these the parts of these data? Does jaxwgc.simulation.diagnose(code) "
            "fail?"
        ),
        is_consequence=True,
    ),
    _Mistake(
        symptom=(
            "a transformation before the aggregator changes partial gradients one by "
            "one: two sets with equal sums give updates, or later states, that differ "
            "by {order.unequal:.0%}"
        ),
        occurs=lambda m: m.order.unequal > _SHARE,
        advice=(
            "Put the aggregator first in optax.chain; Adam, clipping and others follow "
            "it"
        ),
    ),
    _Mistake(
        symptom=(
            "a transformation before the aggregator adds to partial gradients: if all "
            "are zero, updates, or later states, differ by {order.added:.0%} between "
            "rounds in which all workers respond and rounds in which none responds"
        ),
        occurs=lambda m: m.order.added > _SHARE,
        advice=(
            "Weight decay there is counted {gradient.total:.3g} times, once per part: "
            "put the aggregator first in optax.chain"
        ),
    ),
    _Mistake(
        symptom=(
            "the state is not passed on: step returns the aggregator's state "
            "unchanged, so that the same workers are lost in every step"
        ),
        occurs=lambda m: m.is_dropped,
        advice="Return the state from optimizer.update, and pass it to the next step",
    ),
    _Mistake(
        symptom=(
            "{rounds.num_failed} of {rounds.num_rounds} rounds cannot be decoded: the "
            "same {rounds.most} of {rounds.num_workers} workers respond in each, and "
            "the others never do"
        ),
        occurs=lambda m: m.rounds.is_constant,
        advice=(
            "Is the mask inverted? received and stragglers.fixed are True for workers "
            "that respond. A deadline must be long enough for most workers"
        ),
    ),
    _Mistake(
        symptom=(
            "{rounds.num_failed} of {rounds.num_rounds} rounds cannot be decoded: "
            "{rounds.responses} of {rounds.num_workers} workers respond, and any "
            "{rounds.num_enough} are enough"
        ),
        occurs=lambda m: m.rounds.is_early,
        advice=(
            "Does the waiting rule belong to another code? It ends rounds too early. "
            "Take stragglers.fastest({rounds.num_enough}), "
            "stragglers.until_decodable(code) or a longer deadline"
        ),
    ),
)
