"""Accuracy and time of decoding, compared with NumPy."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Once, Study, timed
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


# Climbs, which start from the worst masks of all kinds.
NUM_CLIMBS = 3
NUM_STEPS = 20
CODES = ((50, 20, 30), (100, 100, 10), (200, 200, 20))


def positions(code: jaxwgc.GradientCode) -> np.ndarray:
    """Returns the positions of workers on the circle of points."""
    return code.decoders_of(Lagrange)[0].positions


def random_masks(seed: int, code: jaxwgc.GradientCode, number: int, lost=None):
    """Draws masks that lose `lost` workers, by default as many as tolerated."""
    rng = np.random.default_rng(seed)
    order = rng.random((number, code.num_workers)).argsort(axis=1).argsort(axis=1)
    return order >= (code.num_stragglers if lost is None else lost)


def in_batches(function: Callable[..., Any], masks: np.ndarray, size: int = 256) -> Any:
    """Returns arrays of a function of masks, which runs on padded batches of one size.

    So one program serves any number of masks.
    """
    padded = np.ones((-(-len(masks) // size) * size, masks.shape[1]), bool)
    padded[: len(masks)] = masks
    pieces = [function(batch) for batch in np.split(padded, len(padded) // size)]
    return jax.tree.map(lambda *own: np.concatenate(own)[: len(masks)], *pieces)


def strides(code: jaxwgc.GradientCode) -> np.ndarray:
    """Returns masks that lose workers at equal distances, for every distance."""
    number = code.num_workers
    lost = np.arange(code.num_stragglers)
    sets = [step * lost % number for step in range(1, number)]
    return _losing(number, [group for group in sets if len(set(group)) == len(group)])


def neighbours(code: jaxwgc.GradientCode) -> np.ndarray:
    """Returns masks that lose one run or two runs of neighbours on the circle."""
    number = code.num_workers
    lost = np.arange(code.num_stragglers)
    around = np.argsort(positions(code))
    halves = lost + (lost >= len(lost) // 2) * (number // 2)
    places = [(place + at) % number for at in range(number) for place in (lost, halves)]
    return _losing(number, [around[place] for place in places])


def climb(seed, masks, error, num_steps, num_swaps=256) -> np.ndarray:
    """Returns each mask after swaps of stragglers that increase the error most.

    Climbs end if no swap increases the error, or after `num_steps` swaps.
    """
    rng = np.random.default_rng(seed)
    climbed = masks.copy()
    for mask in climbed:
        worst = error(mask[None])[0]
        for _ in range(num_steps):
            swapped = np.tile(mask, (num_swaps, 1))
            places = np.arange(num_swaps)
            swapped[places, rng.choice(np.flatnonzero(mask), num_swaps)] = False
            swapped[places, rng.choice(np.flatnonzero(~mask), num_swaps)] = True
            errors = error(swapped)
            best = errors.argmax()
            if not errors[best] > worst:
                break
            worst = errors[best]
            mask[:] = swapped[best]
    return climbed


def search(seed, code, masks, error, quick) -> dict[str, np.ndarray]:
    """Returns the masks, those of other kinds, and climbs from the worst of all."""
    kinds = {"random": masks, "strides": strides(code), "neighbours": neighbours(code)}
    every = np.concatenate([*kinds.values()])
    starts = every[np.argsort(-error(every))[: 1 if quick else NUM_CLIMBS]]
    steps = 2 if quick else NUM_STEPS
    return kinds | {"search": climb(seed, starts, error, steps)}


def _losing(number: int, sets: list[np.ndarray]) -> np.ndarray:
    return np.array([~np.isin(np.arange(number), lost) for lost in sets])


NUM_PATTERNS = 1_000
SPREAD = "{%[median]:.1e} / {%[percentile_99]:.1e} / {%[worst]:.1e}"


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
            return errors(code, masks, seed)[0]

        weights, gradient = errors(code, masks, seed)
        found = search(seed, code, masks, worst_error, quick)["search"]
        with jax.enable_x64(True):
            weights_float64, _ = errors(code, masks, seed)
        return {
            "code": parameters,
            "order": "interleaved" if interleave else "published",
            "largest_entry": float(np.abs(code.encoding_matrix).max()),
            "gradient_float32": spread(gradient),
            "weights_float32": spread(weights),
            "worst_found_float32": worst_error(found).max(),
            "weights_float64": spread(weights_float64),
        }

    cells = itertools.product(CODES, (True, False))
    return timed(
        [Once(measure, *cell) for cell in cells],
        f"Errors over {number:,} random patterns with exactly f responses: median / "
        "99th percentile / worst",
        {
            "(n, k, d)": "{code}",
            "order of points": "{order}",
            "largest entry of B": "{largest_entry:.1e}",
            "gradient, float32": SPREAD.replace("%", "gradient_float32"),
            "weights, float32": SPREAD.replace("%", "weights_float32"),
            "worst found": "{worst_found_float32:.1e}",
            "weights, float64": SPREAD.replace("%", "weights_float64"),
        },
    )


class Interpolation(Lagrange):
    """Lagrange's weights of any size."""

    def weights(self, matrix, target, mask):
        """Returns the weights of every mask."""
        alone, _, _ = self.interpolation(mask)
        return alone[..., None, :]


def errors(code: jaxwgc.GradientCode, masks: np.ndarray, seed: int):
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
    truth = gradients.astype(np.float64).sum(axis=0)
    off = np.linalg.norm(decoded.astype(np.float64) - truth, axis=1)
    return np.abs(reached - 1).max(axis=1), off / np.linalg.norm(truth)


@jax.jit
def decode(code, masks, gradients, decoder):
    """Returns decoding weights and decoded gradients."""
    messages = jaxwgc.encode(code, gradients)
    like = jax.ShapeDtypeStruct(gradients.shape[1:], gradients.dtype)
    decoded = jaxwgc.decode(code, messages, masks, like, decoder)
    return jaxwgc.decoding_weights(code, masks, decoder), decoded


def spread(errors: np.ndarray) -> dict[str, float]:
    """Returns median, 99th percentile and maximum."""
    names = "median", "percentile_99", "worst"
    return dict(zip(names, np.quantile(errors, (0.5, 0.99, 1.0))))


WORST_CODES = tuple(
    (number, number, replication)
    for number in (50, 100, 200)
    for replication in (number // 10, number // 5, number // 2)
) + ((50, 20, 30), (100, 50, 10))
NUM_RANDOM = 2_000


def worst_patterns(repeats: int, seed: int, quick: bool) -> Study:
    """Returns the largest ‖aᵀB - 1‖ / ‖1‖ by kind of pattern.

    B is rounded to float32, with which messages are encoded.
    """

    def measure(parameters):
        code = jaxwgc.codes.reed_solomon(*parameters)
        number = 20 if quick else NUM_RANDOM
        masks = random_masks(seed, code, number)
        error = relative_residual(code)
        kinds = search(seed, code, masks, error, quick)
        errors = {kind: error(masks) for kind, masks in kinds.items()}
        worst = kinds["search"][errors["search"].argmax()]
        largest = {kind: float(values.max()) for kind, values in errors.items()}
        return {"code": parameters, **largest, "lstsq": numpy_residual(code, worst)}

    return timed(
        [Once(measure, own) for own in WORST_CODES[: 1 if quick else None]],
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


def relative_residual(code: jaxwgc.GradientCode):
    """Returns a function of masks (number, num_workers) on the host."""
    decode = jax.jit(lambda masks: jaxwgc.decoding_weights(code, masks))
    matrix = code.encoding_matrix.astype(np.complex64).astype(np.complex128)

    def error(masks: np.ndarray) -> np.ndarray:
        weights = in_batches(decode, masks).astype(np.complex128)
        return np.linalg.norm(weights @ matrix - 1, axis=1) / np.sqrt(code.num_parts)

    return error


def numpy_residual(code: jaxwgc.GradientCode, mask: np.ndarray) -> float:
    """Returns the residual of NumPy's weights, rounded to complex64."""
    rows = code.encoding_matrix.astype(np.complex64)[mask].astype(np.complex128)
    norms = np.linalg.norm(rows, axis=1)
    solved = np.linalg.lstsq((rows / norms[:, None]).T, np.ones(code.num_parts))[0]
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
        decode = jax.jit(functools.partial(jaxwgc.decoding_weights, code))
        # NumPy decodes one mask at a time, so that a few masks are enough.
        few = masks[: 10 if quick else 2_000 // code.num_workers]
        lstsq, lagrange = median_seconds(
            repeats,
            lambda: [numpy_lstsq(code, mask) for mask in few],
            lambda: [numpy_lagrange(code, mask) for mask in few],
        )
        times = {"numpy_lstsq": lstsq / len(few), "numpy_lagrange": lagrange / len(few)}
        for name, is_double in (("complex64", False), ("complex128", True)):
            with jax.enable_x64(is_double):
                (seconds,) = median_seconds(repeats, lambda: decode(masks))
            times[name] = seconds / len(masks)
        ratio = times["numpy_lstsq"] / times["complex64"]
        return {"code": parameters, "seconds": times, "ratio": ratio}

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

    def measure(replication, num_stragglers):
        code = jaxwgc.codes.bernoulli(jax.random.key(seed), 100, 100, replication)
        masks = random_masks(seed, code, number, num_stragglers)
        error = jax.jit(jaxwgc.decoding_error, static_argnames="decoder")
        run = functools.partial(numpy_mean_error, code, masks)
        [(mean, timing)] = measure_in_turn([run], repeats=1)
        seconds = {"numpy": timing.median / number}
        means = {"numpy": mean}
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
