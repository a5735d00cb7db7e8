"""Time of decoding, against NumPy."""

import functools

import jax

import jaxwgc
from experiments import results
from experiments.benchmark import _reed_solomon
from experiments.benchmark._peers import numpy_lagrange, numpy_lstsq
from experiments.timing import median_seconds

NUM_MASKS = 2_000


def section(repeats: int, seed: int, quick: bool):
    """Microseconds a mask, a batch of masks against NumPy one mask at a time."""
    number = 100 if quick else NUM_MASKS
    table = results.ResultTable(
        f"Decoding {number} masks: microseconds a mask, median of {repeats}",
        [
            "(n, k, d)",
            "NumPy lstsq",
            "NumPy Lagrange",
            "jaxwgc complex64",
            "jaxwgc complex128",
            "lstsq / complex64",
        ],
    )
    numbers = []
    for parameters in _reed_solomon.CODES:
        code = jaxwgc.codes.reed_solomon(*parameters)
        masks = _reed_solomon.random_masks(seed, code, number)
        decode = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        # The peers take a mask at a time, so a part of the masks tells.
        few = masks[: 10 if quick else 2_000 // code.num_workers]
        peer_lstsq, peer_lagrange = median_seconds(
            repeats,
            lambda c=code, f=few: [numpy_lstsq(c, mask) for mask in f],
            lambda c=code, f=few: [numpy_lagrange(c, mask) for mask in f],
        )
        (single,) = median_seconds(repeats, lambda d=decode, m=masks: d(m))
        with jax.enable_x64(True):
            (double,) = median_seconds(repeats, lambda d=decode, m=masks: d(m))
        times = {
            "numpy_lstsq": peer_lstsq / len(few),
            "numpy_lagrange": peer_lagrange / len(few),
            "complex64": single / len(masks),
            "complex128": double / len(masks),
        }
        ratio = times["numpy_lstsq"] / times["complex64"]
        numbers.append({"code": parameters, "seconds": times, "ratio": ratio})
        table.add_row(
            str(parameters),
            *(f"{1e6 * seconds:.3g}" for seconds in times.values()),
            f"{ratio:,.0f}",
        )
    return table, numbers
