"""Table of the mistakes that `check_step` reports: symptoms, tests and advice."""

from types import SimpleNamespace
from typing import Any

import numpy as np

# Relative rounding error of a gradient, also in bfloat16.
TOLERANCE = 0.02
# Measurements that exist only with an optimizer, or if rounds cannot be decoded.
_OPTIONAL = ("unequal", "added", "is_dropped", "is_constant", "is_early")
# Fraction of an update that a forbidden dependence must exceed to be reported.
_SHARE = 0.1


def problems(measured: dict[str, Any]) -> tuple[str, ...]:
    """Returns the symptom and advice of each mistake found."""
    numbers = SimpleNamespace(found=[], **dict.fromkeys(_OPTIONAL, 0) | measured)
    for symptom, test, advice in _MISTAKES:
        if test(numbers):
            numbers.found.append(f"{symptom}. {advice}".format_map(measured))
    return tuple(numbers.found)


# Columns: symptom, with names of measurements in braces; test, a function of the
# measurements and of the problems found before; advice.
_MISTAKES = (
    (
        "the gradient of every part is zero: does loss use its params?",
        lambda m: not m.scale,
        "Take other params if the loss is flat at these",
    ),
    (
        "loss is a mean over the rows of a part: doubled rows have a gradient "
        "of equal size (Adam hides it)",
        lambda m: m.is_mean,
        "Return jnp.sum(row_weights * ...), divided by the total number of rows for a "
        "mean",
    ),
    (
        "loss is not a sum over the rows of a part: the gradient of doubled rows is "
        "off by {missed:.0%} of the gradients of both halves",
        lambda m: not m.is_sum and not m.is_mean,
        "Rows must not interact (batch normalisation, a square root or logarithm of "
        "the total), and the loss must not draw random numbers (dropout)",
    ),
    (
        "loss has a gradient of norm {constant:.3g} without any rows: a regulariser "
        "inside the loss, which is counted {total:g} times, once per part",
        lambda m: m.constant,
        "Add its gradient after the aggregator, e.g. by optax.add_decayed_weights",
    ),
    (
        "the loss of the {num_padding} rows of weight 0 has no finite gradient",
        lambda m: not np.isfinite(m.padding),
        "Select before you compute: jnp.where(row_weights > 0, x, 1) in place of x",
    ),
    (
        "the row weights are not used: {num_padding} padding rows add a gradient of "
        "norm {padding:.3g}, or other weights have no effect",
        lambda m: m.is_unweighted or 1e-6 * m.scale < m.padding < np.inf,
        "Multiply the loss of each row by its row weight (from jaxwgc.partition, or "
        "from jaxwgc.sketching.weighted_parts), as in jnp.sum(row_weights * ...)",
    ),
    (
        "a sample without its weights: the parts hold {num_held} of {num_rows} rows, "
        "which represent {represented:.3g} times all (standard error {deviation:.2g})",
        lambda m: m.is_sample and not m.is_weighted and not m.found,
        "Take parts and row_weights from jaxwgc.sketching.weighted_parts, and pass its "
        "weights to jaxwgc.weighted(code, weights)",
    ),
    (
        "the decoded gradient differs from the gradient of the loss on the data: "
        "relative error {error:.2g}, with at most {num_stragglers} stragglers",
        lambda m: m.is_wrong and not m.found,
        "Are these the parts of these data? Does jaxwgc.studies.diagnose(code) fail?",
    ),
    (
        "a transformation before the aggregator changes partial gradients one by one: "
        "two sets with equal sums give updates, or later states, that differ by "
        "{unequal:.0%}",
        lambda m: m.unequal > _SHARE,
        "Put the aggregator first in optax.chain; Adam, clipping and others follow it",
    ),
    (
        "a transformation before the aggregator adds to partial gradients: if all are "
        "zero, updates, or later states, differ by {added:.0%} between rounds in which "
        "all workers respond and rounds in which none responds",
        lambda m: m.added > _SHARE,
        "Weight decay there is counted {total:.3g} times, once per part: put the "
        "aggregator first in optax.chain",
    ),
    (
        "the state is not passed on: step returns the aggregator's state unchanged, so "
        "that the same workers are lost in every step",
        lambda m: m.is_dropped,
        "Return the state from optimizer.update, and pass it to the next step",
    ),
    (
        "{num_failed} of {num_rounds} rounds cannot be decoded: the same {most} of "
        "{num_workers} workers respond in each, and the others never do",
        lambda m: m.is_constant,
        "Is the mask inverted? received and stragglers.fixed are True for workers that "
        "respond. A deadline must be long enough for most workers",
    ),
    (
        "{num_failed} of {num_rounds} rounds cannot be decoded: {responses} of "
        "{num_workers} workers respond, and any {enough} are enough",
        lambda m: m.is_early,
        "Does the waiting rule belong to another code? It ends rounds too early. Take "
        "stragglers.fastest({enough}), stragglers.until_decodable(code) or a longer "
        "deadline",
    ),
)
