"""Decoding of messages of few bits: least squares, and with the noise in mind."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import codes, coding, decoders

NUM_WORKERS = 20
NUM_STRAGGLERS = 4
STRAGGLER_PROBABILITY = 0.2
LENGTH = 100
BITS = (4, 6, 8)
FEW_BITS = (4,)
# Columns of the table: more bits resemble the second number.
SHOWN = slice(2)
MAX_PATTERNS = 500
# Quantile of the errors beside the median.
HIGH = 0.95


def noisy_codes(key: jax.Array) -> dict[str, jaxwgc.GradientCode]:
    """Returns codes of 20 workers with four or five parts per worker."""
    return {
        "fractional_repetition": codes.fractional_repetition(
            NUM_WORKERS, NUM_STRAGGLERS
        ),
        "regular_graph": codes.regular_graph(key, NUM_WORKERS, NUM_STRAGGLERS),
        "bernoulli": codes.bernoulli(key, NUM_WORKERS, NUM_WORKERS, NUM_STRAGGLERS),
        "cyclic_mds": codes.cyclic_mds(NUM_WORKERS, NUM_STRAGGLERS),
        "cyclic_repetition": codes.cyclic_repetition(key, NUM_WORKERS, NUM_STRAGGLERS),
    }


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns errors of the decoded gradient, by code and bits of the messages."""
    code_key, round_key = jax.random.split(jax.random.fold_in(key, 8))
    num_patterns = min(effort.runs, MAX_PATTERNS)
    bits_of_messages = BITS if effort.is_full else FEW_BITS
    return Study(
        {
            "patterns": num_patterns,
            "codes": {
                name: {
                    str(bits): Once(measure, code, bits, num_patterns, round_key)
                    for bits in bits_of_messages
                }
                for name, code in noisy_codes(code_key).items()
            },
        },
        tables={"noisy": tabulate},
    )


def measure(
    code: jaxwgc.GradientCode, bits: int, num_patterns: int, key: jax.Array
) -> Numbers:
    """Returns squared errors of random gradients, relative to that of no update.

    The median and a high quantile: errors of least squares have heavy tails.
    """
    noise = math.sqrt(coding.quantization_variance(LENGTH, bits))

    def one_round(key: jax.Array) -> dict[str, jax.Array]:
        gradient_key, mask_key, rounding_key = jax.random.split(key, 3)
        gradients = jax.random.normal(gradient_key, (code.num_parts, LENGTH))
        received = jax.random.bernoulli(
            mask_key, 1 - STRAGGLER_PROBABILITY, (code.num_workers,)
        )
        messages = coding.quantize(rounding_key, jaxwgc.encode(code, gradients), bits)
        gradient = gradients.sum(axis=0)

        def error(decoder: decoders.Decoder) -> jax.Array:
            decoded = jaxwgc.decode(code, messages, received, gradient, decoder)
            return jnp.sum((decoded - gradient) ** 2) / (code.num_parts * LENGTH)

        return {
            "least_squares": error(decoders.LeastSquares()),
            "ridge": error(decoders.Ridge(noise)),
        }

    errors = jax.jit(jax.vmap(one_round))(jax.random.split(key, num_patterns))
    return {
        name: {"median": np.median(values), "high": np.quantile(values, HIGH)}
        for name, values in errors.items()
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per code, and two columns per number of bits."""
    bits_of_messages = list(next(iter(numbers["codes"].values())))[SHOWN]
    columns = ["code"]
    for bits in bits_of_messages:
        columns += [f"{bits} bits: least squares", f"{bits} bits: `Ridge`"]

    def cell(errors):
        return f"{errors['median']:.2g} / {errors['high']:.2g}"

    rows = []
    for name, cells in numbers["codes"].items():
        row = [f"`{name}`"]
        for bits in bits_of_messages:
            row += [cell(cells[bits]["least_squares"]), cell(cells[bits]["ridge"])]
        rows.append(row)
    return ResultTable(
        "Messages of few bits: squared error relative to no update, median / "
        f"{HIGH:.0%} quantile, n = k = {NUM_WORKERS}, each worker straggles with "
        f"probability {STRAGGLER_PROBABILITY:g}, {numbers['patterns']} rounds",
        columns,
        rows,
    )
