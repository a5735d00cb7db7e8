"""Learned entries compared with zeros and ones on the same assignment."""

import dataclasses
import math

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable, half_width, percent, ratio_of_means
from jaxwgc import codes, stragglers

NUM_WORKERS = 20
COPIES = 4
PROBABILITY = 0.3
FEW_ASSIGNMENTS = ("regular graph",)
Code = jaxwgc.GradientCode
# Fresh masks per run: 20,000 masks by default.
MASKS_PER_RUN = 10


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per assignment."""
    num_masks = MASKS_PER_RUN * effort.runs
    code_key, learn_key, mask_key = jax.random.split(jax.random.fold_in(key, 7), 3)
    model = stragglers.bernoulli(PROBABILITY)
    num_steps = 1500 if effort.is_full else 10

    def measure(code):
        better = jaxwgc.simulation.learn_entries(
            code, model, learn_key, num_steps=num_steps
        )
        return compare(code, better, mask_key, num_masks)

    cells = {
        name: Once(measure, code)
        for name, code in zeros_and_ones(code_key).items()
        if effort.is_full or name in FEW_ASSIGNMENTS
    }
    numbers = {"num_masks": num_masks, "assignments": cells}
    return Study(numbers, tables={"learned": tabulate})


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns errors before and after learning, and the reduction."""

    def row(name, record):
        before = record.zeros_and_ones
        before_cell = percent(before.mean, half_width(before))
        if record.unchanged:
            return [name, before_cell, "unchanged", "–"]
        after = record.learned
        after_cell = percent(after.mean, half_width(after))
        saved = percent(record.reduction, record.reduction_half_interval)
        return [name, before_cell, after_cell, f"{saved}%"]

    return ResultTable(
        f"Learned entries, n = k = {NUM_WORKERS}, d = {COPIES}, each worker "
        f"straggles with probability {PROBABILITY:g}: mean error in percent over "
        f"{numbers['num_masks']:,} fresh masks",
        ["assignment", "zeros and ones", "learned", "reduction, paired"],
        [row(name, record) for name, record in numbers["assignments"].items()],
    )


def zeros_and_ones(key: jax.Array) -> dict[str, Code]:
    """Returns codes of zeros and ones by name."""
    cyclic = codes.cyclic_repetition(key, NUM_WORKERS, COPIES - 1)
    ones = np.asarray(cyclic.assignment, np.float64)
    repetition = codes.fractional_repetition(NUM_WORKERS, COPIES - 1)
    return {
        "regular graph": codes.regular_graph(key, NUM_WORKERS, COPIES),
        "cyclic": dataclasses.replace(cyclic, encoding_matrix=ones, num_stragglers=0),
        "fractional repetition": repetition,
    }


def compare(code: Code, better: Code, key: jax.Array, num_masks: int) -> Numbers:
    """Compares both codes, decoded by least squares on the same masks."""
    with jax.enable_x64(True):
        study = jaxwgc.compare(
            {"zeros and ones": code, "learned": better},
            {"lost": stragglers.bernoulli_slowdown(PROBABILITY, slowdown=math.inf)},
            # Longer than the time of a worker, which is its load.
            {"deadline": stragglers.deadline(2.0 * COPIES)},
            key,
            num_masks,
            decoder=jaxwgc.decoders.LeastSquares(),
            keep_trials=True,
        )
    before, after = study.trials["error"][:, 0, 0]
    ratio = ratio_of_means(after, before)
    return {
        "zeros_and_ones": jaxwgc.summarize(before),
        "learned": jaxwgc.summarize(after),
        "reduction": float(1 - ratio.mean),
        "reduction_half_interval": float(half_width(ratio)),
        "unchanged": better is code,
    }
