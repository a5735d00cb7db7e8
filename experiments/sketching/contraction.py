"""The iterative Hessian sketch: how fast its error falls, and theory's factor."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import jaxwgc
from experiments import results
from experiments.sections import COLORS, MARKERS, Effort, Section, panels
from jaxwgc import sketching

SHAPE, SMALL_SHAPE = (1_000, 20), (200, 8)
RATIOS = (4, 8, 16)
NUM_ITERATIONS = 12
# With momentum, theory speaks of later iterations.
LATE = 4
BATCH_SIZE = 25
NON_NEGATIVE = optax.projections.projection_non_negative


class Method(NamedTuple):
    """A way to iterate."""

    name: str
    options: dict[str, Any]


NEW, MOMENTUM, CONSTRAINED = METHODS = (
    Method("new sketches", {}),
    Method("one sketch, momentum", {"refresh": False}),
    Method("new sketches, θ ≥ 0", {"projection": NON_NEGATIVE}),
)


def section(effort: Effort, key: jax.Array) -> Section:
    """Table and figure."""
    shape, ratios = (SHAPE, RATIOS) if effort.is_full else (SMALL_SHAPE, RATIOS[:2])
    with jax.enable_x64(True):
        matrix, target = system(jax.random.fold_in(key, 0), shape)
        found = {
            (method.name, ratio): jaxwgc.monte_carlo(
                functools.partial(
                    one_run,
                    matrix=matrix,
                    target=target,
                    optimum=optimum(matrix, target, method),
                    method=method,
                    sketch_size=ratio * shape[1],
                ),
                jax.random.fold_in(key, 1),
                effort.runs,
                batch_size=BATCH_SIZE,
            )
            for method in METHODS
            for ratio in ratios
        }
    return Section(
        numbers={
            "shape": shape,
            "iterations": NUM_ITERATIONS,
            "theory": {
                f"{method.name}, m = {ratio}p": theory(
                    method, ratio * shape[1], shape[1]
                )
                for method in (NEW, MOMENTUM)
                for ratio in ratios
            },
            "measured": {
                f"{name}, m = {ratio}p": results.summary_numbers(jaxwgc.summarize(own))
                | {"median_last": np.median(own["last"])}
                for (name, ratio), own in found.items()
            },
        },
        tables={"contraction": tabulate(found, shape, effort.runs)},
        figures={"contraction": draw(found, shape[1])},
    )


def system(key: jax.Array, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian, with noise, and a θ of both signs."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    matrix = rng.standard_normal(shape)
    target = matrix @ rng.standard_normal(shape[1])
    return matrix, target + 0.1 * rng.standard_normal(shape[0])


def optimum(matrix: np.ndarray, target: np.ndarray, method: Method) -> np.ndarray:
    """θ*, by SciPy and NumPy."""
    if "projection" in method.options:
        return scipy.optimize.nnls(matrix, target)[0]
    return np.linalg.lstsq(matrix, target)[0]


def theory(method: Method, sketch_size: int, num_columns: int) -> float:
    """The factor of ‖X(θ_t - θ*)‖² in the docstring of `iterative_hessian_sketch`."""
    if method == MOMENTUM:
        return num_columns / sketch_size
    free = sketch_size - num_columns
    return 1 - free * (free - 3) / ((free - 1) * (sketch_size - 1))


def one_run(
    key: jax.Array,
    matrix: np.ndarray,
    target: np.ndarray,
    optimum: np.ndarray,
    method: Method,
    sketch_size: int,
) -> dict[str, jax.Array]:
    """Errors ‖X(θ_t - θ*)‖² over ‖Xθ*‖², and the mean factor from one to the next."""
    found = sketching.iterative_hessian_sketch(
        key, matrix, target, sketch_size, NUM_ITERATIONS, **method.options
    )
    scale = np.sum((matrix @ optimum) ** 2)
    last = jnp.sum((matrix @ (found.solution - optimum)) ** 2) / scale
    if method == CONSTRAINED:
        return {"last": last}
    # The residual of θ* is orthogonal to X.
    square = found.residual_history**2 - np.sum((target - matrix @ optimum) ** 2)
    errors = square / scale
    if method == MOMENTUM:
        # Iterates swing, so only the mean factor over many of them says something.
        late = (errors[-1] / errors[LATE]) ** (1 / (NUM_ITERATIONS - LATE))
        return {"last": last, "errors": errors, "factor": late}
    return {
        "last": last,
        "errors": errors,
        "factor": jnp.mean(errors[1:] / errors[:-1]),
    }


def tabulate(found: dict[tuple[str, int], Any], shape: tuple[int, int], runs: int):
    """Measured factors beside those of theory."""
    table = results.ResultTable(
        f"Iterative Hessian sketch of {shape[0]:,} × {shape[1]}, Gaussian sketches, "
        f"{NUM_ITERATIONS} iterations, mean of {runs} runs",
        [
            "method",
            "m / p",
            "factor, measured",
            "factor, theory",
            "last error: median",
            "worst",
        ],
    )
    for method in METHODS:
        for ratio in sorted({ratio for _, ratio in found}):
            own = found[method.name, ratio]
            factor = jaxwgc.summarize(own["factor"]) if "factor" in own else None
            expected = theory(method, ratio * shape[1], shape[1])
            table.add_row(
                method.name,
                str(ratio),
                "" if factor is None else results.interval(factor, 4),
                "" if factor is None else f"{expected:.4f}",
                f"{np.median(own['last']):.0e}",
                f"{own['last'].max():.0e}",
            )
    return table


def draw(found: dict[tuple[str, int], Any], num_columns: int):
    """Errors by iteration, a panel a method.

    Medians with momentum, where few runs that diverge make up the mean.
    """
    figure, every = panels(2, 10, 4.6)
    iterations = np.arange(NUM_ITERATIONS + 1)
    for axes, method in zip(every, (NEW, MOMENTUM), strict=True):
        for index, ratio in enumerate(sorted({ratio for _, ratio in found})):
            errors = found[method.name, ratio]["errors"]
            if method == NEW:
                middle, low, high, _ = jaxwgc.summarize(errors)
            else:
                low, middle, high = np.quantile(errors, (0.1, 0.5, 0.9), axis=0)
            style = {"color": COLORS[index], "linewidth": 1}
            marker = {"marker": MARKERS[index], "markersize": 4}
            axes.plot(iterations, middle, label=f"m = {ratio}p", **marker, **style)
            axes.fill_between(iterations, low, high, alpha=0.2, **style)
            expected = theory(method, ratio * num_columns, num_columns)
            axes.plot(iterations, expected**iterations, ":", **style)
        axes.plot([], [], ":", color="0.4", label="theory's factor")
        axes.set_title(
            f"{method.name}: {'mean' if method == NEW else 'median, 10–90%'}",
            fontsize=10,
        )
        axes.set_yscale("log")
        axes.set_xlabel("iteration t")
        axes.set_xticks(iterations[::2])
        axes.legend(frameon=False, fontsize=9)
    every[0].set_ylabel("error ‖X(θ_t − θ*)‖² / ‖Xθ*‖²")
    return figure
