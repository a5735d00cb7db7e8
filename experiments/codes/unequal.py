"""Unbiased codes for unequal workers, compared with codes for one probability."""

import dataclasses

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
    means = []
    minima = []
    copies = {}
    cells: dict[str, list[Once]] = {}
    for time in TIMES:
        probabilities = np.exp(-RATES * (time - 1))
        means.append(probabilities.mean())
        minima.append(NUM_WORKERS**2 / np.sum((1 - probabilities) / probabilities))
        masks = draws >= probabilities
        for name, code in codes_for(probabilities).items():
            # The placement is the same at all times.
            copies.setdefault(name, code.assignment.sum())
            cells.setdefault(name, []).append(Once(measure, code, masks))
    return Study(
        {
            "num_masks": num_masks,
            "mean_probabilities": means,
            "least": minima,
            "copies": copies,
            "codes": cells,
        },
        x64=True,
        tables={"unequal": tabulate},
    )


def codes_for(probabilities: np.ndarray) -> dict[str, jaxwgc.GradientCode]:
    """Returns codes by name; most have two parts per worker around a ring."""
    fill = codes.unequal(probabilities, NUM_WORKERS)
    ring = np.eye(NUM_WORKERS, dtype=bool)
    ring |= np.roll(ring, 1, axis=1)

    def on_ring(probabilities):
        return codes.unequal(probabilities, NUM_WORKERS, assignment=ring)

    def summed(shares):
        """Returns the code of shares α."""
        matrix = shares / (1 - probabilities)[:, None]
        return dataclasses.replace(fill, encoding_matrix=matrix, assignment=shares != 0)

    halves = summed(ring / 2)

    def decoded_by(decoder):
        """Returns the code of sums of two neighbours with a decoder."""
        ones = ring.astype(float)
        return dataclasses.replace(halves, encoding_matrix=ones, decoders=(decoder,))

    # With equal p, all coefficients are equal.
    equal_probabilities = np.full(NUM_WORKERS, probabilities.mean())
    return {
        "`unequal`": fill,
        "sums of `unequal`, neighbours in a chain": summed(chain(probabilities)),
        "`unequal`, a ring given": on_ring(probabilities),
        "stochastic, ring, own p": halves,
        "stochastic, ring, mean p": on_ring(equal_probabilities),
        "one step, ring": decoded_by(decoders.OneStep(NUM_WORKERS / 2)),
        "optimal decoding, ring": decoded_by(decoders.LeastSquares()),
    }


def chain(probabilities: np.ndarray) -> np.ndarray:
    """Returns α of either sign with the best row sums; neighbours share a part."""
    trust = (1 - probabilities) / probabilities
    sums = NUM_WORKERS * trust / trust.sum()
    first = 1 + np.arange(NUM_WORKERS) - (sums.cumsum() - sums)
    return np.diag(first) + np.diag((sums - first)[:-1], 1)


def measure(code: jaxwgc.GradientCode, masks: np.ndarray) -> Numbers:
    """Returns squared errors of the sum for equal and for uncorrelated parts."""
    deviations = np.asarray(jaxwgc.decoding(code, masks).effective_weights) - 1
    of_equal_parts = deviations.sum(axis=1) ** 2
    of_uncorrelated_parts = np.sum(deviations**2, axis=1)
    errors = np.stack([of_equal_parts, of_uncorrelated_parts], axis=1)
    means = jaxwgc.summarize(deviations)
    biases = np.abs(means.mean)
    # Biases within chance count as 0.
    is_bias = biases > 4 * means.standard_error
    return {
        "bias": np.where(is_bias, biases, 0).max(),
        "errors": jaxwgc.summarize(errors),
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per code and a column per time, below the formula."""
    means = zip(TIMES, numbers["mean_probabilities"], strict=True)
    heads = [f"τ = {time:g}, mean p = {mean:.2f}" for time, mean in means]
    table = ResultTable(
        f"Ten workers and parts, mean of {numbers['num_masks']:,} rounds: squared "
        "error for equal parts / uncorrelated parts",
        ["code", "copies", *heads, "largest bias"],
    )
    formula = [f"{minimum:.2f}" for minimum in numbers["least"]]
    table.rows.append(["minimum by the formula", "", *formula, ""])
    for name, cells in numbers["codes"].items():
        row = [name, str(numbers["copies"][name])]
        for cell in cells:
            of_equal_parts = _interval(at(cell.errors, 0))
            of_uncorrelated_parts = _interval(at(cell.errors, 1))
            row.append(f"{of_equal_parts} / {of_uncorrelated_parts}")
        row.append(_range([cell.bias for cell in cells]))
        table.rows.append(row)
    return table


def _range(biases: list[float]) -> str:
    if not any(biases):
        return "none seen"
    return f"{min(biases):.2f}–{max(biases):.2f}"


def _interval(summary: jaxwgc.Summary) -> str:
    mean = float(summary.mean)
    if mean < ROUNDING:
        return "0"
    return with_half(mean, float(half_width(summary)))
