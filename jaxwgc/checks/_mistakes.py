"""The mistakes that `check_step` names: one table of tests, symptoms and advice."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

# Rounding errors of a gradient, relative, in bfloat16 too.
TOLERANCE = 0.02
# Share of an update that may depend on what it should not depend on.
_SHARE = 0.1


class Mistake(NamedTuple):
    """A mistake, found by what was measured.

    Attributes:
      test: returns whether the measurements show the mistake.
      symptom: what was measured, with the names of measurements in braces.
      advice: what to do.
    """

    test: Callable[[Any], Any]
    symptom: str
    advice: str


def problems(mistakes: Sequence[Mistake], **measured: Any) -> list[str]:
    """Returns the symptom and the advice of each mistake that the test finds."""
    found = [each for each in mistakes if each.test(SimpleNamespace(**measured))]
    return [f"{each.symptom}. {each.advice}".format_map(measured) for each in found]


OF_LOSS = (
    Mistake(
        lambda m: not m.scale,
        "the gradient of every part is zero, so nothing was compared: does loss use "
        "its params?",
        "Take other params if it is flat at these",
    ),
    Mistake(
        lambda m: m.is_mean,
        "loss is a mean over the rows of a part: twice the rows have a gradient of the "
        "same size (Adam hides it)",
        "Return jnp.sum(row_weights * ...), over the number of all rows for their mean",
    ),
    Mistake(
        lambda m: not m.is_sum and not m.is_mean,
        "loss is no sum over the rows of a part: the gradient of twice the rows is off "
        "by {missed:.0%} of the gradients of both halves",
        "Rows may not see each other (batch normalisation, a square root or logarithm "
        "of the whole sum), and the loss may not draw random numbers (dropout)",
    ),
    Mistake(
        lambda m: m.constant,
        "loss has a gradient of norm {constant:.3g} on no rows at all: a regulariser "
        "inside of the loss, which is counted {total:g} times, once a part",
        "Add its gradient after the aggregator, as by optax.add_decayed_weights",
    ),
    Mistake(
        lambda m: not np.isfinite(m.padding),
        "the loss of the {num_padding} rows of weight 0 has no finite gradient, and 0 "
        "times that is NaN",
        "Select before you compute: jnp.where(row_weights > 0, x, 1) in the place of x",
    ),
    Mistake(
        lambda m: m.is_unweighted or 1e-6 * m.scale < m.padding < np.inf,
        "the row weights are not used: {num_padding} rows that only fill up the parts "
        "add a gradient of norm {padding:.3g}, or other weights do not count",
        "Multiply the loss of each row by its row weight (from jaxwgc.partition, or "
        "from jaxwgc.sketching.weighted_parts), as in jnp.sum(row_weights * ...)",
    ),
)
# Only if the loss has no mistake.
OF_DATA = (
    Mistake(
        lambda m: m.is_sample and not m.is_weighted,
        "a sample without its weights: the parts hold {num_held} of {num_rows} rows, "
        "which stand for {represented:.3g} times all (standard error {deviation:.2g})",
        "Take parts and row_weights from jaxwgc.sketching.weighted_parts, and its "
        "weights into jaxwgc.weighted(code, weights)",
    ),
    Mistake(
        lambda m: m.is_comparable and not m.error <= TOLERANCE * max(1, m.cancelled),
        "the decoded gradient is not that of the loss on the data: off by {error:.2g} "
        "of it, with at most {num_stragglers} workers lost",
        "Are these the parts of these data, and does the code decode "
        "(jaxwgc.studies.diagnose)?",
    ),
)
OF_OPTIMIZER = (
    Mistake(
        lambda m: m.unequal > _SHARE,
        "something before the aggregator changes partial gradients one by one: two "
        "sets with the same sum give updates, or states behind it, that differ by "
        "{unequal:.0%}",
        "Adam, clipping and the like follow: in optax.chain the aggregator is first",
    ),
    Mistake(
        lambda m: m.added > _SHARE,
        "something before the aggregator adds to partial gradients: if all are zero, "
        "updates, or states behind it, differ by {added:.0%} between rounds in which "
        "all workers respond and none",
        "Weight decay there is counted {total:.3g} times, once a part: in optax.chain "
        "the aggregator is first",
    ),
    Mistake(
        lambda m: m.leaked > _SHARE,
        "parameters without a gradient are moved in a round that does not decode, "
        "{leaked:.2g} times as far as others: the code packs several entries of the "
        "gradient into one",
        "Take a code that does not, such as fractional_repetition or binary",
    ),
    Mistake(
        lambda m: m.is_dropped,
        "the state is not carried: step gives back that of the aggregator as it was "
        "given, so that every step loses the same workers",
        "Return the state that optimizer.update gives, and hand it to the next step",
    ),
)
_LOST = "{num_failed} of {num_rounds} rounds cannot be decoded: "
# The first that is found, if at least half of the rounds do not decode.
OF_ROUNDS = (
    Mistake(
        lambda m: m.is_inverted or not m.most,
        _LOST + "the same {most} of {num_workers} workers respond in each{took}, and "
        "the others never do",
        "Is the mask inverted? received and stragglers.fixed are True for workers that "
        "have responded. A deadline must be one that enough workers meet",
    ),
    Mistake(
        # Approximate codes do not say how many responses are enough.
        lambda m: m.num_stragglers,
        _LOST + "{responses} of {num_workers} workers respond{took}, and any {enough} "
        "are enough",
        "The waiting rule ends rounds too early: one of another code? Take "
        "stragglers.fastest({enough}), stragglers.until_decodable(code) or a longer "
        "deadline",
    ),
)
