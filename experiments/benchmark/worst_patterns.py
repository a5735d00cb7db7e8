"""The largest errors of decoding weights that a search finds, in float32."""

import jax
import numpy as np

import jaxwgc
from experiments.benchmark import _reed_solomon
from experiments.runner.study import Once, Study, timed

CODES = tuple(
    (number, number, replication)
    for number in (50, 100, 200)
    for replication in (number // 10, number // 5, number // 2)
) + ((50, 20, 30), (100, 50, 10))
NUM_RANDOM = 2_000


def study(repeats: int, seed: int, quick: bool) -> Study:
    """By kind of pattern: the norm of a^T B - 1 over that of 1, the largest found.

    With B rounded to float32, as messages are encoded with it.
    """
    del repeats

    def measure(parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        number = 20 if quick else NUM_RANDOM
        masks = _reed_solomon.random_masks(seed, code, number)
        error = relative_miss(code)
        kinds = _reed_solomon.search(seed, code, masks, error, quick)
        errors = {kind: error(masks) for kind, masks in kinds.items()}
        worst = kinds["search"][errors["search"].argmax()]
        largest = {kind: float(values.max()) for kind, values in errors.items()}
        return {"code": parameters, **largest, "lstsq": numpy_miss(code, worst)}

    return timed(
        [Once(measure, parameters) for parameters in (CODES[:1] if quick else CODES)],
        "Reed–Solomon codes in float32: the largest relative miss of decoding weights "
        "for exactly d - 1 stragglers",
        lambda row: {
            "(n, k, d)": str(row["code"]),
            "at random": f"{row['random']:.1e}",
            "at equal distances": f"{row['strides']:.1e}",
            "side by side": f"{row['neighbours']:.1e}",
            "by search": f"{row['search']:.1e}",
            "NumPy lstsq there": f"{row['lstsq']:.1e}",
        },
    )


def relative_miss(code: jaxwgc.GradientCode):
    """A function of masks (number, num_workers) on the host."""
    decode = jax.jit(lambda masks: jaxwgc.decoding_weights(code, masks))
    matrix = code.encoding_matrix.astype(np.complex64).astype(np.complex128)

    def error(masks: np.ndarray) -> np.ndarray:
        weights = [decode(batch) for batch in _reed_solomon.batches(masks)]
        weights = np.concatenate(weights)[: len(masks)].astype(np.complex128)
        miss = np.linalg.norm(weights @ matrix - 1, axis=1)
        return miss / np.sqrt(code.num_parts)

    return error


def numpy_miss(code: jaxwgc.GradientCode, mask: np.ndarray) -> float:
    """The same of NumPy's least squares, its weights rounded to complex64."""
    rows = code.encoding_matrix.astype(np.complex64)[mask].astype(np.complex128)
    norms = np.linalg.norm(rows, axis=1)
    solved = np.linalg.lstsq((rows / norms[:, None]).T, np.ones(code.num_parts))[0]
    weights = (solved / norms).astype(np.complex64).astype(np.complex128)
    return float(np.linalg.norm(weights @ rows - 1) / np.sqrt(code.num_parts))
