"""The mistakes that `check_step` names: one table of symptoms, tests and advice."""

from types import SimpleNamespace
from typing import Any

import numpy as np

# Rounding errors of a gradient, relative, in bfloat16 too.
TOLERANCE = 0.02
# Measurements that need an optimizer, or rounds that do not decode.
_OPTIONAL = ("unequal", "added", "leaked", "is_dropped", "is_constant", "is_early")
# Share of an update that may depend on what it should not depend on.
_SHARE = 0.1


def problems(measured: dict[str, Any]) -> tuple[str, ...]:
    """Returns the symptom and the advice of each mistake that is found."""
    numbers = SimpleNamespace(found=[], **dict.fromkeys(_OPTIONAL, 0) | measured)
    for symptom, test, advice in _MISTAKES:
        if test(numbers):
            numbers.found.append(f"{symptom}. {advice}".format_map(measured))
    return tuple(numbers.found)


# Symptom, with the names of measurements in braces; test of the measurements, and of
# the problems found before; advice.
_MISTAKES = (
    (
        "the gradient of every part is zero: does loss use its params?",
        lambda m: not m.scale,
        "Take other params if it is flat at these",
    ),
    (
        "loss is a mean over the rows of a part: twice the rows have a gradient of the "
        "same size (Adam hides it)",
        lambda m: m.is_mean,
        "Return jnp.sum(row_weights * ...), over the number of all rows for their mean",
    ),
    (
        "loss is no sum over the rows of a part: the gradient of twice the rows is off "
        "by {missed:.0%} of the gradients of both halves",
        lambda m: not m.is_sum and not m.is_mean,
        "Rows may not see each other (batch normalisation, a square root or logarithm "
        "of the whole sum), and the loss may not draw random numbers (dropout)",
    ),
    (
        "loss has a gradient of norm {constant:.3g} on no rows at all: a regulariser "
        "inside of the loss, which is counted {total:g} times, once a part",
        lambda m: m.constant,
        "Add its gradient after the aggregator, as by optax.add_decayed_weights",
    ),
    (
        "the loss of the {num_padding} rows of weight 0 has no finite gradient",
        lambda m: not np.isfinite(m.padding),
        "Select before you compute: jnp.where(row_weights > 0, x, 1) in the place of x",
    ),
    (
        "the row weights are not used: {num_padding} rows that only fill up the parts "
        "add a gradient of norm {padding:.3g}, or other weights do not count",
        lambda m: m.is_unweighted or 1e-6 * m.scale < m.padding < np.inf,
        "Multiply the loss of each row by its row weight (from jaxwgc.partition, or "
        "from jaxwgc.sketching.weighted_parts), as in jnp.sum(row_weights * ...)",
    ),
    (
        "a sample without its weights: the parts hold {num_held} of {num_rows} rows, "
        "which stand for {represented:.3g} times all (standard error {deviation:.2g})",
        lambda m: m.is_sample and not m.is_weighted and not m.found,
        "Take parts and row_weights from jaxwgc.sketching.weighted_parts, and its "
        "weights into jaxwgc.weighted(code, weights)",
    ),
    (
        "the decoded gradient is not that of the loss on the data: off by {error:.2g} "
        "of it, with at most {num_stragglers} workers lost",
        lambda m: m.is_wrong and not m.found,
        "Are these the parts of these data? Does jaxwgc.studies.diagnose(code) fail?",
    ),
    (
        "something before the aggregator changes partial gradients one by one: two "
        "sets with the same sum give updates, or states behind it, that differ by "
        "{unequal:.0%}",
        lambda m: m.unequal > _SHARE,
        "Adam, clipping and the like follow: in optax.chain the aggregator is first",
    ),
    (
        "something before the aggregator adds to partial gradients: if all are zero, "
        "updates, or states behind it, differ by {added:.0%} between rounds in which "
        "all workers respond and none",
        lambda m: m.added > _SHARE,
        "Weight decay there is counted {total:.3g} times, once a part: in optax.chain "
        "the aggregator is first",
    ),
    (
        "parameters without a gradient are moved in a round that does not decode, "
        "{leaked:.2g} times as far as others: the code packs several entries of the "
        "gradient into one",
        lambda m: m.leaked > _SHARE,
        "Take a code that does not, such as fractional_repetition or binary",
    ),
    (
        "the state is not carried: step gives back that of the aggregator as it was "
        "given, so that every step loses the same workers",
        lambda m: m.is_dropped,
        "Return the state that optimizer.update gives, and hand it to the next step",
    ),
    (
        "{num_failed} of {num_rounds} rounds cannot be decoded: the same {most} of "
        "{num_workers} workers respond in each{took}, and the others never do",
        lambda m: m.is_constant,
        "Is the mask inverted? received and stragglers.fixed are True for workers that "
        "have responded. A deadline must be one that enough workers meet",
    ),
    (
        "{num_failed} of {num_rounds} rounds cannot be decoded: {responses} of "
        "{num_workers} workers respond{took}, and any {enough} are enough",
        lambda m: m.is_early,
        "The waiting rule ends rounds too early: one of another code? Take "
        "stragglers.fastest({enough}), stragglers.until_decodable(code) or a longer "
        "deadline",
    ),
)
