"""The iterative Hessian sketch: how fast its error falls, and theory's factor."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import jaxwgc
from experiments.runner.figures import COLORS, Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, interval
from jaxwgc import sketching

SHAPE, SMALL_SHAPE = (1_000, 20), (200, 8)
RATIOS = (4, 8, 16)
NUM_ITERATIONS = 12
# With momentum, theory speaks of later iterations.
LATE = 4
NON_NEGATIVE = optax.projections.projection_non_negative


NEW, MOMENTUM = "new sketches", "one sketch, momentum"
CONSTRAINED = "new sketches, θ ≥ 0"
METHODS: dict[str, dict[str, Any]] = {
    NEW: {},
    MOMENTUM: {"refresh": False},
    CONSTRAINED: {"projection": NON_NEGATIVE},
}


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a method and a size."""
    shape, ratios = (SHAPE, RATIOS) if effort.is_full else (SMALL_SHAPE, RATIOS[:2])
    with jax.enable_x64(True):
        matrix, target = system(jax.random.fold_in(key, 0), shape)

    def trial(method: str, ratio: int) -> Trial:
        problem = matrix, target, optimum(matrix, target, method)
        return Trial(one_run, *problem, method, ratio * shape[1])

    return Study(
        {
            "shape": shape,
            "ratios": ratios,
            "iterations": NUM_ITERATIONS,
            "theory": {
                name_of(method, ratio): theory(method, ratio * shape[1], shape[1])
                for method in (NEW, MOMENTUM)
                for ratio in ratios
            },
            "measured": {
                name_of(method, ratio): trial(method, ratio)
                for method in METHODS
                for ratio in ratios
            },
        },
        key=jax.random.fold_in(key, 1),
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=reduce,
        tables={"contraction": tabulate},
        figures={"contraction": draw},
    )


def name_of(method: str, ratio: int) -> str:
    """Returns the name of a cell."""
    return f"{method}, m = {ratio}p"


def system(key: jax.Array, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian, with noise, and a θ of both signs."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    matrix = rng.standard_normal(shape)
    target = matrix @ rng.standard_normal(shape[1])
    return matrix, target + 0.1 * rng.standard_normal(shape[0])


def optimum(matrix: np.ndarray, target: np.ndarray, method: str) -> np.ndarray:
    """θ*, by SciPy and NumPy."""
    if method == CONSTRAINED:
        return scipy.optimize.nnls(matrix, target)[0]
    return np.linalg.lstsq(matrix, target)[0]


def theory(method: str, sketch_size: int, num_columns: int) -> float:
    """The factor of ‖X(θ_t - θ*)‖² in the docstring of `iterative_hessian_sketch`."""
    if method == MOMENTUM:
        return num_columns / sketch_size
    free = sketch_size - num_columns
    return 1 - free * (free - 3) / ((free - 1) * (sketch_size - 1))


def one_run(key, matrix, target, optimum, method, size) -> Numbers:
    """Errors ‖X(θ_t - θ*)‖² over ‖Xθ*‖², and the mean factor from one to the next."""
    solved = sketching.iterative_hessian_sketch(
        key, matrix, target, size, NUM_ITERATIONS, **METHODS[method]
    )
    scale = np.sum((matrix @ optimum) ** 2)
    last = jnp.sum((matrix @ (solved.solution - optimum)) ** 2) / scale
    if method == CONSTRAINED:
        return {"last": last}
    # The residual of θ* is orthogonal to X.
    square = solved.residual_history**2 - np.sum((target - matrix @ optimum) ** 2)
    errors = square / scale
    factor = jnp.mean(errors[1:] / errors[:-1])
    if method == MOMENTUM:
        # Iterates swing, so only the mean factor over many of them says something.
        factor = (errors[-1] / errors[LATE]) ** (1 / (NUM_ITERATIONS - LATE))
    return {"last": last, "errors": errors, "factor": factor}


def reduce(trials: dict[str, np.ndarray]) -> Numbers:
    """Means, and what a few runs that diverge do not move."""
    numbers = jaxwgc.summarize(trials) | {
        "median_last": np.median(trials["last"]),
        "worst_last": trials["last"].max(),
    }
    if "errors" in trials:
        deciles = np.quantile(trials["errors"], (0.1, 0.5, 0.9), axis=0)
        numbers["errors_10_50_90"] = deciles
    return numbers


def tabulate(numbers: Numbers) -> ResultTable:
    """Measured factors beside those of theory."""
    rows, columns = numbers["shape"]

    def show(cell):
        method, ratio = cell
        record = numbers["measured"][name_of(*cell)]
        factor = interval(record["factor"], 4) if "factor" in record else ""
        expected = numbers["theory"][name_of(*cell)] if factor else None
        return {
            "method": method,
            "m / p": str(ratio),
            "factor, measured": factor,
            "factor, theory": "" if expected is None else f"{expected:.4f}",
            "last error: median": f"{record['median_last']:.0e}",
            "worst": f"{record['worst_last']:.0e}",
        }

    return ResultTable.of_records(
        f"Iterative Hessian sketch of {rows:,} × {columns}, Gaussian sketches, "
        f"{NUM_ITERATIONS} iterations, mean of {numbers['runs']} runs",
        show,
        itertools.product(METHODS, numbers["ratios"]),
    )


def draw(numbers: Numbers) -> Figure:
    """Errors by iteration, a panel a method.

    Medians with momentum, where few runs that diverge make up the mean.
    """
    figure, panels = new_figure(10, 4.6, columns=2)
    iterations = np.arange(NUM_ITERATIONS + 1)
    for axes, method in zip(panels, (NEW, MOMENTUM), strict=True):
        for index, ratio in enumerate(numbers["ratios"]):
            record = numbers["measured"][name_of(method, ratio)]
            middle, low, high, _ = record["errors"]
            if method == MOMENTUM:
                low, middle, high = record["errors_10_50_90"]
            look = {"linewidth": 1, "markersize": 4, "label": f"m = {ratio}p"}
            line(axes, index, iterations, middle, (low, high), **look)
            expected = numbers["theory"][name_of(method, ratio)] ** iterations
            axes.plot(iterations, expected, ":", color=COLORS[index], linewidth=1)
        axes.plot([], [], ":", color="0.4", label="theory's factor")
        shown = "mean" if method == NEW else "median, 10–90%"
        axes.set(title=f"{method}: {shown}", yscale="log")
        axes.set(xlabel="iteration t", xticks=iterations[::2])
        axes.legend()
    panels[0].set_ylabel("error ‖X(θ_t − θ*)‖² / ‖Xθ*‖²")
    return figure
