"""Errors of decoding weights and of decoded gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.benchmark import _reed_solomon
from experiments.runner.study import Once, Study, timed
from jaxwgc.decoders import Lagrange

NUM_PATTERNS = 1_000


def study(repeats: int, seed: int, quick: bool) -> Study:
    """Errors of decoding weights and of decoded gradients, both orders of the points.

    The published order is decoded by Lagrange's formula alone, so that its own accuracy
    shows; the interleaved one as the library does it.
    """
    del repeats
    number = 20 if quick else NUM_PATTERNS

    def measure(parameters, interleave):
        code = jaxwgc.codes.reed_solomon(*parameters, interleave=interleave)
        masks = _reed_solomon.random_masks(seed, code, number)
        weights, gradient = errors(code, masks, seed)
        with jax.enable_x64(True):
            weights_float64, _ = errors(code, masks, seed)
        return {
            "code": parameters,
            "order": "interleaved" if interleave else "published",
            "largest_entry": float(np.abs(code.encoding_matrix).max()),
            "gradient_float32": spread(gradient),
            "weights_float32": spread(weights),
            "worst_found_float32": worst_found(code, masks, seed, quick),
            "weights_float64": spread(weights_float64),
        }

    cells = itertools.product(_reed_solomon.CODES, (True, False))
    return timed(
        [Once(measure, *cell) for cell in cells],
        f"Errors over {number:,} random patterns with exactly f answers: median / "
        "99th percentile / worst",
        lambda row: {
            "(n, k, d)": str(row["code"]),
            "order of points": row["order"],
            "largest entry of B": f"{row['largest_entry']:.1e}",
            "gradient, float32": show_spread(row["gradient_float32"]),
            "weights, float32": show_spread(row["weights_float32"]),
            "worst found": f"{row['worst_found_float32']:.1e}",
            "weights, float64": show_spread(row["weights_float64"]),
        },
    )


def worst_found(code: jaxwgc.GradientCode, masks, seed: int, quick: bool) -> float:
    """The largest error of weights in float32 over all kinds of patterns, by search."""

    def error(masks):
        return errors(code, masks, seed)[0]

    kinds = _reed_solomon.search(seed, code, masks, error, quick)
    return float(error(kinds["search"]).max())


class Interpolation(Lagrange):
    """Lagrange's weights, however large."""

    def weights(self, matrix, target, mask):
        """Returns those of every mask."""
        return self.closed_form(mask)


def errors(code: jaxwgc.GradientCode, masks: np.ndarray, seed: int):
    """Per mask: largest entry of |a^T B - 1|, and relative error of a gradient."""
    positions = _reed_solomon.positions(code)
    interpolation = None
    if (positions == np.arange(len(positions))).all():
        # In the published order.
        interpolation = Interpolation(positions, code.num_stragglers)
    gradients = np.random.default_rng(seed).normal(size=(code.num_parts, 100))
    gradients = gradients.astype(jnp.result_type(float))
    batches = _reed_solomon.batches(masks)
    pairs = [decode(code, batch, gradients, interpolation) for batch in batches]
    # In float64 from here on, so that only the library's rounding counts.
    weights, decoded = (
        np.concatenate(pieces)[: len(masks)].astype(dtype)
        for pieces, dtype in zip(zip(*pairs), (np.complex128, np.float64))
    )
    reached = weights @ code.encoding_matrix
    truth = gradients.astype(np.float64).sum(axis=0)
    miss = np.linalg.norm(decoded - truth, axis=1)
    return np.abs(reached - 1).max(axis=1), miss / np.linalg.norm(truth)


@jax.jit
def decode(code, masks, gradients, decoder):
    """Decoding weights and decoded gradients."""
    messages = jaxwgc.encode(code, gradients)
    like = jax.ShapeDtypeStruct(gradients.shape[1:], gradients.dtype)
    decoded = jaxwgc.decode(code, messages, masks, like, decoder)
    return jaxwgc.decoding_weights(code, masks, decoder), decoded


def spread(errors: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and worst."""
    return {
        "median": float(np.median(errors)),
        "percentile_99": float(np.quantile(errors, 0.99)),
        "worst": float(errors.max()),
    }


def show_spread(spread: dict[str, float]) -> str:
    """For a cell."""
    return " / ".join(f"{value:.1e}" for value in spread.values())
