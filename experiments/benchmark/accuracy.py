"""Errors of decoding weights and of decoded gradients."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import results
from experiments.benchmark import _reed_solomon
from jaxwgc import _combining, _decoders, _weights

NUM_PATTERNS = 1_000


def section(repeats: int, seed: int, quick: bool):
    """Errors of decoding weights and of decoded gradients, both orders of the points.

    The published order is decoded by Lagrange's formula alone, so that its own accuracy
    shows; the interleaved one as the library does it.
    """
    del repeats
    table = results.ResultTable(
        f"Accuracy over {20 if quick else NUM_PATTERNS} random patterns with exactly f "
        "answers: median / 99% / worst",
        [
            "(n, k, d)",
            "order of points",
            "largest entry of B",
            "gradient, float32",
            "weights, float32",
            "weights, float64",
        ],
    )
    numbers = []
    for parameters in _reed_solomon.CODES:
        for interleave in (True, False):
            code = jaxwgc.codes.reed_solomon(*parameters, interleave=interleave)
            masks = _reed_solomon.random_masks(
                seed, code, 20 if quick else NUM_PATTERNS
            )
            weights, gradient = errors(code, masks, seed)
            with jax.enable_x64(True):
                weights_float64, _ = errors(code, masks, seed)
            largest = float(np.abs(code.encoding_matrix).max())
            order = "interleaved" if interleave else "published"
            numbers.append(
                {
                    "code": parameters,
                    "order": order,
                    "point_step": code.point_step,
                    "largest_entry": largest,
                    "gradient_float32": spread(gradient),
                    "weights_float32": spread(weights),
                    "weights_float64": spread(weights_float64),
                }
            )
            table.add_row(
                str(parameters),
                order,
                f"{largest:.1e}",
                show_spread(gradient),
                show_spread(weights),
                show_spread(weights_float64),
            )
    return table, numbers


def errors(code: jaxwgc.GradientCode, masks: np.ndarray, seed: int):
    """Per mask: largest entry of |a^T B - 1|, and relative error of a gradient."""

    @jax.jit
    def decode(masks, gradients):
        if code.point_step == 1:
            weights = _decoders.lagrange(masks, code.point_step)
        else:
            weights = _weights.solve(code, masks, code.decoder)
        messages = jaxwgc.encode(code, gradients)
        like = jax.ShapeDtypeStruct(gradients.shape[1:], gradients.dtype)
        return weights[:, 0], _combining.combine_messages(
            code, weights, messages, masks, like
        )

    gradients = np.random.default_rng(seed).normal(size=(code.num_parts, 100))
    gradients = gradients.astype(jnp.result_type(float))
    weights, decoded = decode(jnp.asarray(masks), gradients)
    # In float64 from here on, so that only the library's rounding counts.
    reached = np.asarray(weights, np.complex128) @ code.encoding_matrix
    truth = gradients.astype(np.float64).sum(axis=0)
    miss = np.linalg.norm(np.asarray(decoded, np.float64) - truth, axis=1)
    return np.abs(reached - 1).max(axis=1), miss / np.linalg.norm(truth)


def spread(errors: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and worst."""
    return {
        "median": float(np.median(errors)),
        "percentile_99": float(np.quantile(errors, 0.99)),
        "worst": float(errors.max()),
    }


def show_spread(errors: np.ndarray) -> str:
    """For a cell."""
    return " / ".join(f"{value:.1e}" for value in spread(errors).values())
