"""Accuracy and time of decoding, compared with NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.benchmark.patterns import (
    ErrorOf,
    in_batches,
    positions,
    random_masks,
    search,
)
from experiments.runner.study import Numbers, Once, Study, timed
from experiments.runner.timing import measure_in_turn, median_seconds
from jaxwgc.decoders import Lagrange, LeastSquares


def numpy_lstsq(code: jaxwgc.GradientCode, mask: np.ndarray) -> np.ndarray:
    """Returns the weights of one mask by least squares."""
    rows = code.encoding_matrix[mask]
    return np.linalg.lstsq(rows.T, np.ones(code.num_parts), rcond=None)[0]


def numpy_lagrange(code: jaxwgc.GradientCode, mask: np.ndarray) -> np.ndarray:
    """Returns the weights of one mask by Lagrange's formula."""
    points = np.exp(2j * np.pi * positions(code)[mask] / code.num_workers)
    differences = points - points[:, None]
    np.fill_diagonal(differences, 1)
    factors = points / differences
    np.fill_diagonal(factors, 1)
    return factors.prod(axis=1)


CODES = ((50, 20, 30), (100, 100, 10), (200, 200, 20))
NUM_PATTERNS = 1_000


def accuracy(repeats: int, seed: int, quick: bool) -> Study:
    """Returns errors of decoding weights and gradients for both orders of the points.

    The published order is decoded by Lagrange's formula alone, to show its accuracy,
    and the interleaved order by the library.
    """
    number = 20 if quick else NUM_PATTERNS

    def measure(parameters, interleave):
        code = jaxwgc.codes.reed_solomon(*parameters, interleave=interleave)
        masks = random_masks(seed, code, number)

        def worst_error(masks):
            weights, _ = errors(code, masks, seed)
            return weights

        weights, gradient = errors(code, masks, seed)
        kinds = search(seed, code, masks, worst_error, quick)
        with jax.enable_x64(True):
            weights_float64, _ = errors(code, masks, seed)
        return {
            "code": parameters,
            "order": "interleaved" if interleave else "published",
            "largest_entry": float(np.abs(code.encoding_matrix).max()),
            "gradient_float32": spread(gradient),
            "weights_float32": spread(weights),
            "worst_found_float32": worst_error(kinds["search"]).max(),
            "weights_float64": spread(weights_float64),
        }

    cells = []
    for parameters, interleave in itertools.product(CODES, (True, False)):
        cells.append(Once(measure, parameters, interleave))
    return timed(
        cells,
        f"Errors over {number:,} random patterns with exactly f responses: median / "
        "99th percentile / worst",
        {
            "(n, k, d)": "{code}",
            "order of points": "{order}",
            "gradient, float32": spread_template("gradient_float32"),
            "weights, float64": spread_template("weights_float64"),
        },
    )


class Interpolation(Lagrange):
    """Lagrange's weights of any size."""

    def weights(self, matrix, target, mask):
        """Returns the weights of every mask."""
        weights, _ = self.interpolation(mask)
        return weights[..., None, :]


def errors(
    code: jaxwgc.GradientCode, masks: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns per mask max |aᵀB - 1| and the relative error of a gradient."""
    points = positions(code)
    interpolation = None
    if (points == np.arange(len(points))).all():
        # The published order.
        interpolation = Interpolation(points, code.num_stragglers)
    gradients = np.random.default_rng(seed).normal(size=(code.num_parts, 100))
    gradients = gradients.astype(jnp.result_type(float))
    weights, decoded = in_batches(
        lambda batch: decode(code, batch, gradients, interpolation), masks
    )
    # In float64 from here on, so that only the library's rounding counts.
    reached = weights.astype(np.complex128) @ code.encoding_matrix
    weight_errors = np.abs(reached - 1).max(axis=1)
    truth = gradients.astype(np.float64).sum(axis=0)
    distances = np.linalg.norm(decoded.astype(np.float64) - truth, axis=1)
    return weight_errors, distances / np.linalg.norm(truth)


@jax.jit
def decode(code, masks, gradients, decoder):
    """Returns decoding weights and decoded gradients."""
    messages = jaxwgc.encode(code, gradients)
    like = jax.ShapeDtypeStruct(gradients.shape[1:], gradients.dtype)
    decoded = jaxwgc.decode(code, messages, masks, like, decoder)
    return jaxwgc.decoding(code, masks, decoder).weights[..., 0, :], decoded


def spread(errors: np.ndarray) -> dict[str, float]:
    """Returns median, 99th percentile and maximum."""
    median, percentile_99, worst = np.quantile(errors, (0.5, 0.99, 1.0))
    return {"median": median, "percentile_99": percentile_99, "worst": worst}


def spread_template(name: str) -> str:
    """Returns the template of a column of `spread`."""
    statistics = ("median", "percentile_99", "worst")
    return " / ".join(f"{{{name}[{statistic}]:.1e}}" for statistic in statistics)


# As (n, k, d).
WORST_CODES = (
    (50, 50, 5),
    (50, 50, 10),
    (50, 50, 25),
    (100, 100, 10),
    (100, 100, 20),
    (100, 100, 50),
    (200, 200, 20),
    (200, 200, 40),
    (200, 200, 100),
    (50, 20, 30),
    (100, 50, 10),
)
NUM_RANDOM = 2_000


def worst_patterns(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the largest ‖aᵀB - 1‖ / ‖1‖ by kind of pattern.

    B is rounded to float32, with which messages are encoded.
    """

    def measure(parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        number = 20 if quick else NUM_RANDOM
        masks = random_masks(seed, code, number)
        error_of = relative_residual(code)
        numbers: Numbers = {"code": parameters}
        kinds = search(seed, code, masks, error_of, quick)
        for kind, masks_of_kind in kinds.items():
            numbers[kind] = float(error_of(masks_of_kind).max())
        searched = kinds["search"]
        worst_mask = searched[error_of(searched).argmax()]
        numbers["lstsq"] = numpy_residual(code, worst_mask)
        return numbers

    chosen = WORST_CODES[:1] if quick else WORST_CODES
    return timed(
        [Once(measure, parameters) for parameters in chosen],
        "Reed–Solomon codes in float32: the largest relative residual of decoding "
        "weights for exactly d - 1 stragglers",
        {
            "(n, k, d)": "{code}",
            "at random": "{random:.1e}",
            "at equal distances": "{strides:.1e}",
            "side by side": "{neighbours:.1e}",
            "by search": "{search:.1e}",
            "NumPy lstsq there": "{lstsq:.1e}",
        },
    )


def relative_residual(code: jaxwgc.GradientCode) -> ErrorOf:
    """Returns a function of masks (number, num_workers) on the host."""
    decode = jax.jit(lambda masks: jaxwgc.decoding(code, masks).weights[..., 0, :])
    matrix = code.encoding_matrix.astype(np.complex64).astype(np.complex128)

    def error(masks: np.ndarray) -> np.ndarray:
        weights = in_batches(decode, masks).astype(np.complex128)
        residuals = np.linalg.norm(weights @ matrix - 1, axis=1)
        return residuals / np.sqrt(code.num_parts)

    return error


def numpy_residual(code: jaxwgc.GradientCode, mask: np.ndarray) -> float:
    """Returns the residual of NumPy's weights, rounded to complex64."""
    rows = code.encoding_matrix.astype(np.complex64)[mask].astype(np.complex128)
    norms = np.linalg.norm(rows, axis=1)
    unit_rows = rows / norms[:, None]
    solved, *_ = np.linalg.lstsq(unit_rows.T, np.ones(code.num_parts))
    weights = (solved / norms).astype(np.complex64).astype(np.complex128)
    return float(np.linalg.norm(weights @ rows - 1) / np.sqrt(code.num_parts))


NUM_MASKS = 2_000
# Replication and stragglers of Bernoulli codes with 100 workers and parts.
BERNOULLI = ((10, 10), (10, 30), (4, 20))
NUM_STUDY_MASKS = 10_000
PRECISIONS = ("float32", "float64")


def exact(repeats: int, seed: int, quick: bool) -> Study:
    """Returns microseconds per mask, in batches and by NumPy one mask at a time."""
    number = 100 if quick else NUM_MASKS

    def measure(parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        masks = random_masks(seed, code, number)
        decode = jax.jit(lambda masks: jaxwgc.decoding(code, masks).weights)
        # NumPy decodes one mask at a time, so that a few masks are enough.
        few = masks[: 10 if quick else 2_000 // code.num_workers]
        lstsq, lagrange = median_seconds(
            repeats,
            lambda: [numpy_lstsq(code, mask) for mask in few],
            lambda: [numpy_lagrange(code, mask) for mask in few],
        )
        seconds = {}
        seconds["numpy_lstsq"] = lstsq / len(few)
        seconds["numpy_lagrange"] = lagrange / len(few)
        for name, is_double in (("complex64", False), ("complex128", True)):
            with jax.enable_x64(is_double):
                [all_masks] = median_seconds(repeats, lambda: decode(masks))
            seconds[name] = all_masks / len(masks)
        ratio = seconds["numpy_lstsq"] / seconds["complex64"]
        return {"code": parameters, "seconds": seconds, "ratio": ratio}

    return timed(
        [Once(measure, parameters) for parameters in CODES],
        f"Decoding {number:,} masks: microseconds per mask, median of {repeats}",
        {
            "(n, k, d)": "{code}",
            "NumPy lstsq": "{seconds[numpy_lstsq]:1e6 .3g}",
            "NumPy Lagrange": "{seconds[numpy_lagrange]:1e6 .3g}",
            "jaxwgc complex64": "{seconds[complex64]:1e6 .3g}",
            "jaxwgc complex128": "{seconds[complex128]:1e6 .3g}",
            "lstsq / complex64": "{ratio:,.0f}",
        },
    )


def least_squares(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the mean decoding error of Bernoulli codes, and time relative to NumPy.

    NumPy is timed once, since it is slow.
    """
    number = 200 if quick else NUM_STUDY_MASKS

    def measure(copies, num_stragglers):
        code = jaxwgc.codes.bernoulli(jax.random.key(seed), 100, 100, copies)
        masks = random_masks(seed, code, number, num_stragglers)
        error = jax.jit(
            lambda code, masks: jaxwgc.decoding(code, masks, LeastSquares).error
        )
        run_numpy = functools.partial(numpy_mean_error, code, masks)
        [(mean, timing)] = measure_in_turn([run_numpy], repeats=1)
        seconds = {"numpy": timing.median / number}
        means = {"numpy": mean}
        run = functools.partial(error, code, masks)
        for name in PRECISIONS:
            with jax.enable_x64(name == "float64"):
                [all_masks] = median_seconds(repeats, run)
                errors = np.asarray(run(), np.float64)
            means[name] = float(errors.mean())
            seconds[name] = all_masks / number
        return {
            "code": (100, 100, copies),
            "num_stragglers": num_stragglers,
            "seconds": seconds,
            "mean_error": means,
            "ratios": [seconds["numpy"] / seconds[name] for name in PRECISIONS],
            "differences": [abs(means[name] / mean - 1) for name in PRECISIONS],
        }

    return timed(
        [Once(measure, *setting) for setting in BERNOULLI],
        f"Mean error of Bernoulli codes over {number:,} masks, by least squares: "
        "microseconds per mask, and relative difference of the mean from NumPy's",
        {
            "(n, k, d), s": "{code}, {num_stragglers}",
            "lstsq": "{seconds[numpy]:1e6 .3g}",
            "float32": "{seconds[float32]:1e6 .3g}",
            "float64": "{seconds[float64]:1e6 .3g}",
            "lstsq / float32": "{ratios[0]:.1f}",
            "lstsq / float64": "{ratios[1]:.1f}",
            "mean error": "{mean_error[numpy]:.4f}",
            "difference, float32": "{differences[0]:.0e}",
            "difference, float64": "{differences[1]:.0e}",
        },
    )


def numpy_mean_error(code: jaxwgc.GradientCode, masks: np.ndarray) -> float:
    """Returns the mean decoding error of a loop in NumPy."""
    total = 0.0
    for mask in masks:
        reached = numpy_lstsq(code, mask) @ code.encoding_matrix[mask]
        total += np.sum((reached - 1) ** 2)
    return total / len(masks)
