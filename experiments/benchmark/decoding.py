"""Time of decoding, against NumPy: of exact codes, and by least squares."""

import functools
import time

import jax
import numpy as np

import jaxwgc
from experiments.benchmark import _reed_solomon
from experiments.benchmark._peers import numpy_lagrange, numpy_lstsq
from experiments.runner.study import Once, Study, timed
from experiments.runner.timing import median_seconds
from jaxwgc.decoders import LeastSquares

NUM_MASKS = 2_000
# Replication and stragglers of Bernoulli codes with 100 workers and parts.
BERNOULLI = ((10, 10), (10, 30), (4, 20))
NUM_STUDY_MASKS = 10_000
PRECISIONS = ("float32", "float64")


def exact(repeats: int, seed: int, quick: bool) -> Study:
    """Microseconds a mask, a batch of masks against NumPy one mask at a time."""
    number = 100 if quick else NUM_MASKS

    def measure(parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        masks = _reed_solomon.random_masks(seed, code, number)
        decode = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        # The peers take a mask at a time, so a part of the masks tells.
        few = masks[: 10 if quick else 2_000 // code.num_workers]
        peer_lstsq, peer_lagrange = median_seconds(
            repeats,
            lambda: [numpy_lstsq(code, mask) for mask in few],
            lambda: [numpy_lagrange(code, mask) for mask in few],
        )
        (single,) = median_seconds(repeats, lambda: decode(masks))
        with jax.enable_x64(True):
            (double,) = median_seconds(repeats, lambda: decode(masks))
        times = {
            "numpy_lstsq": peer_lstsq / len(few),
            "numpy_lagrange": peer_lagrange / len(few),
            "complex64": single / len(masks),
            "complex128": double / len(masks),
        }
        ratio = times["numpy_lstsq"] / times["complex64"]
        return {"code": parameters, "seconds": times, "ratio": ratio}

    return timed(
        [Once(measure, parameters) for parameters in _reed_solomon.CODES],
        f"Decoding {number:,} masks: microseconds a mask, median of {repeats}",
        lambda row: {
            "(n, k, d)": str(row["code"]),
            "NumPy lstsq": f"{1e6 * row['seconds']['numpy_lstsq']:.3g}",
            "NumPy Lagrange": f"{1e6 * row['seconds']['numpy_lagrange']:.3g}",
            "jaxwgc complex64": f"{1e6 * row['seconds']['complex64']:.3g}",
            "jaxwgc complex128": f"{1e6 * row['seconds']['complex128']:.3g}",
            "lstsq / complex64": f"{row['ratio']:,.0f}",
        },
    )


def least_squares(repeats: int, seed: int, quick: bool) -> Study:
    """Mean decoding error of Bernoulli codes over many masks, against a NumPy loop.

    NumPy's time is that of one pass, since it is long. "off" is the relative difference
    of the mean error from NumPy's.
    """
    number = 200 if quick else NUM_STUDY_MASKS

    def measure(replication, num_stragglers):
        code = jaxwgc.codes.bernoulli(jax.random.key(seed), 100, 100, replication)
        order = np.random.default_rng(seed).random((number, 100)).argsort(axis=1)
        masks = order.argsort(axis=1) >= num_stragglers
        error = jax.jit(jaxwgc.decoding_error, static_argnames="decoder")
        seconds, means = {}, {}
        seconds["numpy"], means["numpy"] = numpy_mean_error(code, masks)
        for name in PRECISIONS:
            with jax.enable_x64(name == "float64"):
                errors = functools.partial(error, code, masks, decoder=LeastSquares)
                (whole,) = median_seconds(repeats, errors)
                means[name] = float(np.asarray(errors(), np.float64).mean())
                seconds[name] = whole / number
        return {
            "code": (100, 100, replication),
            "num_stragglers": num_stragglers,
            "seconds": seconds,
            "mean_error": means,
            "ratios": [seconds["numpy"] / seconds[name] for name in PRECISIONS],
            "relative_differences": [
                abs(means[name] / means["numpy"] - 1) for name in PRECISIONS
            ],
        }

    return timed(
        [Once(measure, *setting) for setting in BERNOULLI],
        f"Mean error of Bernoulli codes over {number:,} masks, by least squares: "
        "microseconds a mask, and how far the mean is from NumPy's",
        lambda row: {
            "(n, k, d), s": f"{row['code']}, {row['num_stragglers']}",
            "lstsq": f"{1e6 * row['seconds']['numpy']:.3g}",
            "float32": f"{1e6 * row['seconds']['float32']:.3g}",
            "float64": f"{1e6 * row['seconds']['float64']:.3g}",
            "lstsq / float32": f"{row['ratios'][0]:.1f}",
            "lstsq / float64": f"{row['ratios'][1]:.1f}",
            "mean error": f"{row['mean_error']['numpy']:.4f}",
            "off, float32": f"{row['relative_differences'][0]:.0e}",
            "off, float64": f"{row['relative_differences'][1]:.0e}",
        },
    )


def numpy_mean_error(code: jaxwgc.GradientCode, masks: np.ndarray):
    """Seconds a mask and mean error of what people do without this library."""
    start = time.perf_counter()
    total = 0.0
    for mask in masks:
        reached = numpy_lstsq(code, mask) @ code.encoding_matrix[mask]
        total += np.sum((reached - 1) ** 2)
    return (time.perf_counter() - start) / len(masks), total / len(masks)
