"""Unbiased codes for unequal workers, compared with codes for one probability."""

import dataclasses
import functools
import itertools

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ROUNDING, ResultTable, at, half_width, with_half
from jaxwgc import codes, decoders

NUM_WORKERS = 10
# Worker i responds before a time τ with probability 1 - exp(-ψᵢ (τ - 1)).
RATES = np.random.default_rng(0).uniform(0.1, 2, NUM_WORKERS)
TIMES = (1.1, 1.5, 3.0)
# Masks per run: 100,000 masks by default.
MASKS_PER_RUN = 50


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per code and time; all codes have the same masks."""
    bits = np.asarray(jax.random.bits(jax.random.fold_in(key, 9), (4,)))
    num_masks = MASKS_PER_RUN * effort.runs
    draws = np.random.default_rng(bits).random((num_masks, NUM_WORKERS))
    probabilities = [np.exp(-RATES * (time - 1)) for time in TIMES]
    every = [codes_for(p) for p in probabilities]
    return Study(
        {
            "num_masks": num_masks,
            "mean_probabilities": [p.mean() for p in probabilities],
            "least": [NUM_WORKERS**2 / np.sum((1 - p) / p) for p in probabilities],
            "copies": {name: code.assignment.sum() for name, code in every[0].items()},
            "codes": {
                name: [
                    Once(measure, by_name[name], draws >= p)
                    for by_name, p in zip(every, probabilities, strict=True)
                ]
                for name in every[0]
            },
        },
        x64=True,
        tables={"unequal": tabulate},
    )


def codes_for(probabilities: np.ndarray) -> dict[str, jaxwgc.GradientCode]:
    """Returns codes by name; most have two parts per worker around a ring."""
    fill = codes.unequal(probabilities, NUM_WORKERS)
    ring = np.eye(NUM_WORKERS, dtype=bool)
    ring |= np.roll(ring, 1, axis=1)
    on_ring = functools.partial(codes.unequal, assignment=ring)

    def summed(shares):
        """Returns the code of shares α."""
        matrix = shares / (1 - probabilities)[:, None]
        return dataclasses.replace(fill, encoding_matrix=matrix, assignment=shares != 0)

    halves = summed(ring / 2)
    mean = np.full(NUM_WORKERS, probabilities.mean())
    one_step, nearest = (
        dataclasses.replace(halves, encoding_matrix=ring * 1.0, decoders=(decoder,))
        for decoder in (decoders.OneStep(NUM_WORKERS / 2), decoders.LeastSquares())
    )
    return {
        "`unequal`": fill,
        "sums of `unequal`, neighbours in a chain": summed(chain(probabilities)),
        "`unequal`, a ring given": on_ring(probabilities, NUM_WORKERS),
        "stochastic, ring, own p": halves,
        # With equal p, all coefficients are equal.
        "stochastic, ring, mean p": on_ring(mean, NUM_WORKERS),
        "one step, ring": one_step,
        "optimal decoding, ring": nearest,
    }


def chain(probabilities: np.ndarray) -> np.ndarray:
    """Returns α of either sign with the best row sums; neighbours share a part."""
    trust = (1 - probabilities) / probabilities
    sums = NUM_WORKERS * trust / trust.sum()
    first = 1 + np.arange(NUM_WORKERS) - (sums.cumsum() - sums)
    return np.diag(first) + np.diag((sums - first)[:-1], 1)


def measure(code: jaxwgc.GradientCode, masks: np.ndarray) -> Numbers:
    """Returns squared errors of the sum for equal and for uncorrelated parts."""
    off = np.asarray(jaxwgc.effective_weights(code, masks)) - 1
    errors = np.stack([off.sum(1) ** 2, np.sum(off**2, 1)], 1)
    means = jaxwgc.summarize(off)
    biases = np.abs(means.mean)
    return {
        # Biases within chance count as 0.
        "bias": np.where(biases > 4 * means.standard_error, biases, 0).max(),
        "errors": jaxwgc.summarize(errors),
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per code and a column per time, below the formula."""

    def row(name, cells):
        both = [[_interval(at(own.errors, kind)) for kind in (0, 1)] for own in cells]
        errors = map(" / ".join, both)
        biases = [cell.bias for cell in cells]
        bias = f"{min(biases):.2f}–{max(biases):.2f}" if any(biases) else "none seen"
        return name, str(numbers["copies"][name]), *errors, bias

    formula = [f"{least:.2f}" for least in numbers["least"]]
    means = zip(TIMES, numbers["mean_probabilities"], strict=True)
    heads = [f"τ = {time:g}, mean p = {mean:.2f}" for time, mean in means]
    return ResultTable(
        f"Ten workers and parts, mean of {numbers['num_masks']:,} rounds: squared "
        "error for equal parts / uncorrelated parts",
        ["code", "copies", *heads, "largest bias"],
        [
            ["minimum by the formula", "", *formula, ""],
            *itertools.starmap(row, numbers["codes"].items()),
        ],
    )


def _interval(summary: jaxwgc.Summary) -> str:
    is_zero = summary.mean < ROUNDING
    return "0" if is_zero else with_half(summary.mean, float(half_width(summary)))
