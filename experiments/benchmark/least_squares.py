"""Time and error of least squares over many masks of a random code."""

import time

import jax
import numpy as np

import jaxwgc
from experiments import results
from experiments.benchmark._peers import numpy_lstsq
from experiments.timing import median_seconds

# Replication and stragglers of Bernoulli codes with 100 workers and parts.
BERNOULLI = ((10, 10), (10, 30), (4, 20))
NUM_STUDY_MASKS = 10_000


def section(repeats: int, seed: int, quick: bool):
    """Mean decoding error of Bernoulli codes over many masks, against a NumPy loop.

    NumPy's time is that of one pass, since it is long. "off" is the relative difference
    of the mean error from NumPy's.
    """
    number = 200 if quick else NUM_STUDY_MASKS
    table = results.ResultTable(
        f"Bernoulli codes by least squares, {number:,} masks: microseconds a mask",
        [
            "(n, k, d), s",
            "lstsq",
            "float32",
            "float64",
            "lstsq / float32",
            "lstsq / float64",
            "mean error",
            "off, float32",
            "off, float64",
        ],
    )
    numbers = []
    for replication, num_stragglers in BERNOULLI:
        code = jaxwgc.codes.bernoulli(jax.random.key(seed), 100, 100, replication)
        order = np.random.default_rng(seed).random((number, 100)).argsort(axis=1)
        masks = order.argsort(axis=1) >= num_stragglers
        # Pairs of (seconds a mask, mean error).
        measured = {"numpy": numpy_mean_error(code, masks)}
        for x64, name in ((False, "float32"), (True, "float64")):
            with jax.enable_x64(x64):
                errors = jax.jit(
                    lambda masks, code=code: jaxwgc.decoding_error(
                        code, masks, decoder=jaxwgc.decoders.LeastSquares
                    )
                )
                (seconds,) = median_seconds(repeats, lambda e=errors, m=masks: e(m))
                mean = float(np.asarray(errors(masks), np.float64).mean())
            measured[name] = seconds / number, mean
        peer, truth = measured["numpy"]
        ratios = [peer / measured[name][0] for name in ("float32", "float64")]
        misses = [abs(measured[name][1] / truth - 1) for name in ("float32", "float64")]
        numbers.append(
            {
                "code": (100, 100, replication),
                "num_stragglers": num_stragglers,
                "seconds": {name: own[0] for name, own in measured.items()},
                "mean_error": {name: own[1] for name, own in measured.items()},
                "ratios": ratios,
                "relative_differences": misses,
            }
        )
        table.add_row(
            f"(100, 100, {replication}), {num_stragglers}",
            *(f"{1e6 * seconds:.3g}" for seconds, _ in measured.values()),
            *(f"{ratio:.1f}" for ratio in ratios),
            f"{truth:.4f}",
            *(f"{miss:.0e}" for miss in misses),
        )
    return table, numbers


def numpy_mean_error(code: jaxwgc.GradientCode, masks: np.ndarray):
    """Seconds a mask and mean error of what people do without this library."""
    start = time.perf_counter()
    total = 0.0
    for mask in masks:
        reached = numpy_lstsq(code, mask) @ code.encoding_matrix[mask]
        total += np.sum((reached - 1) ** 2)
    return (time.perf_counter() - start) / len(masks), total / len(masks)
