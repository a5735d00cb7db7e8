"""Learned entries against zeros and ones on the same assignment."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import results
from experiments.sections import Effort, Section, half_width, percent
from jaxwgc import codes as constructors
from jaxwgc import stragglers

NUM_WORKERS, REPLICATION, PROBABILITY = 20, 4, 0.3
FEW_ASSIGNMENTS = ("regular graph",)
# Fresh masks for each of the runs: 20,000 by default.
MASKS_PER_RUN = 10


class Comparison(NamedTuple):
    """Mean errors over the number of parts; the reduction, and half its interval."""

    before: jaxwgc.Summary
    after: jaxwgc.Summary
    reduction: float
    half: float
    is_unchanged: bool


def section(effort: Effort, key: jax.Array) -> Section:
    """The table."""
    num_masks = MASKS_PER_RUN * effort.runs
    code_key, learn_key, mask_key = jax.random.split(jax.random.fold_in(key, 7), 3)
    model = stragglers.bernoulli(PROBABILITY)
    codes = zeros_and_ones(code_key)
    if not effort.is_full:
        codes = {name: codes[name] for name in FEW_ASSIGNMENTS}
    num_steps = 1500 if effort.is_full else 10
    masks = jaxwgc.monte_carlo(
        lambda key: model.sample(key, (), jnp.ones(NUM_WORKERS))[0].received,
        mask_key,
        num_masks,
    )
    table = results.ResultTable(
        f"Learned entries, n = k = {NUM_WORKERS}, d = {REPLICATION}, each worker "
        f"straggles with probability {PROBABILITY:g}: mean error in percent over "
        f"{num_masks:,} fresh masks",
        ["assignment", "zeros and ones", "learned", "less, paired"],
    )
    found = {}
    for name, code in codes.items():
        better = jaxwgc.studies.optimize(code, model, learn_key, num_steps=num_steps)
        found[name] = own = compare(code, better, masks)
        table.add_row(
            name,
            percent(own.before.mean, float(half_width(own.before))),
            "unchanged"
            if own.is_unchanged
            else percent(own.after.mean, float(half_width(own.after))),
            "–" if own.is_unchanged else f"{percent(own.reduction, own.half)}%",
        )
    return Section(
        numbers={
            "num_masks": num_masks,
            "assignments": {
                name: {
                    "zeros_and_ones": results.summary_numbers(own.before),
                    "learned": results.summary_numbers(own.after),
                    "reduction": own.reduction,
                    "reduction_half_interval": own.half,
                    "unchanged": own.is_unchanged,
                }
                for name, own in found.items()
            },
        },
        tables={"learned": table},
        figures={},
    )


def zeros_and_ones(key: jax.Array) -> dict[str, jaxwgc.GradientCode]:
    """Codes of zeros and ones, by what they are called in the table."""
    cyclic = constructors.cyclic_repetition(key, NUM_WORKERS, REPLICATION - 1)
    return {
        "regular graph": constructors.regular_graph(key, NUM_WORKERS, REPLICATION),
        "cyclic": dataclasses.replace(
            cyclic,
            encoding_matrix=np.asarray(cyclic.assignment, np.float64),
            num_stragglers=0,
        ),
        "fractional repetition": constructors.fractional_repetition(
            NUM_WORKERS, REPLICATION - 1
        ),
    }


def compare(
    code: jaxwgc.GradientCode, better: jaxwgc.GradientCode, masks: np.ndarray
) -> Comparison:
    """Both decoded by least squares, on the same masks."""
    with jax.enable_x64(True):
        error = jax.jit(jaxwgc.decoding_error, static_argnames="decoder")
        before, after = (
            np.asarray(error(own, masks, decoder=jaxwgc.decoders.LeastSquares))
            / code.num_parts
            for own in (code, better)
        )
    # The ratio of two means, by the delta method.
    ratio = after.mean() / before.mean()
    spread = jaxwgc.summarize((after - ratio * before) / before.mean())
    return Comparison(
        before=jaxwgc.summarize(before),
        after=jaxwgc.summarize(after),
        reduction=float(1 - ratio),
        half=float(half_width(spread)),
        is_unchanged=better is code,
    )
