"""Ten to ten thousand workers: decoding, and bytes read by the coordinator."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc import GradientCode, codes

NUM_PARAMETERS = 1_000_000
BYTES_A_NUMBER = 4
# Fraction of stragglers; codes tolerate more, so that clusters do, too.
STRAGGLERS = 0.1
# Workers per cluster; its head decodes their messages and forwards one.
CLUSTER = 100


class Layout(NamedTuple):
    """Workers in clusters with a code each; a flat layout has one cluster."""

    name: str
    build: Callable[[int], GradientCode]
    num_workers: int
    num_clusters: int = 1


def repetition(num_workers: int) -> GradientCode:
    """Returns a code with each part on a fifth of the workers, at least on two."""
    return codes.fractional_repetition(num_workers, max(num_workers // 5, 2) - 1)


def reed_solomon(num_workers: int) -> GradientCode:
    """Returns a code that any four fifths of the workers decode."""
    return codes.reed_solomon(num_workers, num_workers, max(num_workers // 5, 2))


LAYOUTS = [
    *(Layout("reed_solomon", reed_solomon, number) for number in (10, 100, 1_000)),
    *(Layout("fractional_repetition", repetition, n) for n in (10, 100, 1_000)),
    *(
        Layout(f"reed_solomon, clusters of {CLUSTER}", reed_solomon, n, n // CLUSTER)
        for n in (1_000, 10_000)
    ),
]
QUICK = 100


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Returns milliseconds and bytes per round for a million parameters."""

    def measure(layout):
        size = layout.num_workers // layout.num_clusters
        start = time.perf_counter()
        code = layout.build(size)
        construction = time.perf_counter() - start
        generator = np.random.default_rng(seed)
        received = np.ones(layout.num_workers, bool)
        lost = generator.permutation(layout.num_workers)
        received[lost[: int(STRAGGLERS * layout.num_workers)]] = False
        received = received.reshape(layout.num_clusters, size)
        weights = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        (decoding,) = median_seconds(repeats, lambda: weights(received))
        error = jax.jit(functools.partial(jaxwgc.decoding_error, code))(received)
        # Complex messages have half as many numbers, of twice the size.
        message = BYTES_A_NUMBER * NUM_PARAMETERS
        read = message * (size - code.num_stragglers)
        is_flat = layout.num_clusters == 1
        return {
            "layout": layout.name,
            "num_workers": layout.num_workers,
            "load": float(np.max(code.loads)) / layout.num_workers,
            "construction": construction,
            "decoding": decoding,
            "error": float(np.sqrt(np.sum(np.asarray(error)) / layout.num_workers)),
            "coordinator": read if is_flat else message * layout.num_clusters,
            "head": 0 if is_flat else read,
        }

    chosen = [layout for layout in LAYOUTS if layout.num_workers <= QUICK or not quick]
    return timed(
        [Once(measure, layout) for layout in chosen],
        f"A round of {NUM_PARAMETERS:,} parameters, {100 * STRAGGLERS:g}% stragglers: "
        "share of the data per worker, and bytes that the coordinator reads",
        {
            "code": "`{layout}`",
            "workers": "{num_workers:,}",
            "data per worker": "{load:.2g}",
            "built in s": "{construction:.2g}",
            "decoded in ms": "{decoding:1e3 .3g}",
            "error": "{error:.0e}",
            "MB read": "{coordinator:1e-6 ,.0f}",
            "MB read by a head": "{head:1e-6 ,.0f}",
        },
    )
