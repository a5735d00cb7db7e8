"""Iterations on sketches: the iterative Hessian sketch, and block leverage."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import jaxwgc
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, at, interval, table_of
from jaxwgc import sketching

SHAPE = (1_000, 20)
SMALL_SHAPE = (200, 8)
RATIOS = (4, 8, 16)
NUM_ITERATIONS = 12
# Iteration from which theory holds with momentum.
LATE = 4

NEW = "new sketches"
MOMENTUM = "one sketch, momentum"
CONSTRAINED = "new sketches, θ ≥ 0"
METHODS: dict[str, dict[str, Any]] = {
    NEW: {},
    MOMENTUM: {"refresh": False},
    CONSTRAINED: {"projection": optax.projections.projection_non_negative},
}


def contraction(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per method and size."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    ratios = RATIOS if effort.is_full else RATIOS[:2]
    _, num_columns = shape
    with jax.enable_x64(True):
        matrix, target = system(jax.random.fold_in(key, 0), shape)
    cells = []
    for method in METHODS:
        solution = optimum(matrix, target, method)
        for ratio in ratios:
            size = ratio * num_columns
            trial = Trial(errors_of_sketch, matrix, target, solution, method, size)
            cells.append(
                {
                    "method": method,
                    "ratio": ratio,
                    "theory": theory(method, size, num_columns),
                    "": trial,
                }
            )
    table = table_of(
        "Iterative Hessian sketch of {shape[0]:,} × {shape[1]}, Gaussian sketches, "
        "{iterations} iterations, mean of {runs} runs",
        {
            "method": "{method}",
            "m / p": "{ratio}",
            "factor, measured": lambda row: (
                interval(row.factor, 4) if row.theory else ""
            ),
            "factor, theory": lambda row: f"{row.theory:.4f}" if row.theory else "",
            "last error: median": "{median_last:.0e}",
            "worst": "{worst_last:.0e}",
        },
        "measured",
    )
    return Study(
        {"shape": shape, "iterations": NUM_ITERATIONS, "measured": cells},
        key=jax.random.fold_in(key, 1),
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=with_median,
        tables={"contraction": table},
    )


def system(key: jax.Array, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a Gaussian matrix, and y = Xθ + noise with a θ of both signs."""
    num_rows, num_columns = shape
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    matrix = rng.standard_normal(shape)
    target = matrix @ rng.standard_normal(num_columns)
    return matrix, target + 0.1 * rng.standard_normal(num_rows)


def optimum(matrix: np.ndarray, target: np.ndarray, method: str) -> np.ndarray:
    """Returns θ*, by SciPy and NumPy."""
    if method == CONSTRAINED:
        solution, *_ = scipy.optimize.nnls(matrix, target)
    else:
        solution, *_ = np.linalg.lstsq(matrix, target)
    return solution


def theory(method: str, sketch_size: int, num_columns: int) -> float | None:
    """Returns the factor of ‖X(θ_t - θ*)‖² per iteration, if theory has one.

    The docstring of `iterative_hessian_sketch` has its source.
    """
    if method == CONSTRAINED:
        return None
    if method == MOMENTUM:
        return num_columns / sketch_size
    free = sketch_size - num_columns
    return 1 - free * (free - 3) / ((free - 1) * (sketch_size - 1))


def errors_of_sketch(
    key: jax.Array,
    matrix: np.ndarray,
    target: np.ndarray,
    optimum: np.ndarray,
    method: str,
    size: int,
) -> Numbers:
    """Returns ‖X(θ_t - θ*)‖² / ‖Xθ*‖² at the end, and its mean factor per iteration."""
    solved = sketching.iterative_hessian_sketch(
        key, matrix, target, size, NUM_ITERATIONS, **METHODS[method]
    )
    scale = np.sum((matrix @ optimum) ** 2)
    last = jnp.sum((matrix @ (solved.solution - optimum)) ** 2) / scale
    if method == CONSTRAINED:
        return {"last": last}
    # The residual of θ* is orthogonal to X.
    errors = solved.residual_history**2 - np.sum((target - matrix @ optimum) ** 2)
    if method == MOMENTUM:
        # Iterates oscillate, so that the factor is averaged over many of them.
        factor = (errors[-1] / errors[LATE]) ** (1 / (NUM_ITERATIONS - LATE))
    else:
        factor = jnp.mean(errors[1:] / errors[:-1])
    return {"last": last, "factor": factor}


def with_median(trials: dict[str, np.ndarray]) -> Numbers:
    """Returns means, and the median, which few diverging runs do not change."""
    last = trials["last"]
    numbers = dict(jaxwgc.summarize(trials))
    numbers["median_last"] = np.median(last)
    numbers["worst_last"] = last.max()
    return numbers


# Steps in the table; the last is the number of steps.
STEPS = (24, 218, 2_000)
FEW_STEPS = (2, 20, 200)
# n workers hold k sampled parts of K, each on d of them.
CODE = jaxwgc.codes.reed_solomon(num_workers=20, num_parts=10, copies=8)
NUM_PARTS = 80
ROWS_PER_PART = 10
NUM_COLUMNS = 10
# The step at iteration t is 1 / (t + delay); each method gets its best of these.
DELAYS = (2, 8, 32, 128)
SAMPLINGS = ("leverage", "uniform")


def block_leverage(effort: Effort, key: jax.Array) -> Study:
    """Returns one cell, in which all methods run on the same data."""
    steps = STEPS if effort.is_full else FEW_STEPS
    return Study(
        {"steps": steps, "": Trial(one_run, steps[-1])},
        key=key,
        runs=effort.runs,
        batch_size=10,
        x64=True,
        reduce=functools.partial(reduce, steps),
        tables={"block_leverage": tabulate},
    )


def draw_data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns X with orthonormal columns and few large parts, and y = Xθ + noise.

    Only the sampling then slows down gradient descent.
    """
    size_key, matrix_key, params_key, noise_key = jax.random.split(key, 4)
    shape = (NUM_PARTS, ROWS_PER_PART, NUM_COLUMNS)
    sizes = jnp.exp(1.5 * jax.random.normal(size_key, (NUM_PARTS, 1, 1)))
    matrix = sizes * jax.random.normal(matrix_key, shape)
    matrix, _ = jnp.linalg.qr(matrix.reshape(-1, NUM_COLUMNS))
    image = matrix @ jax.random.normal(params_key, (NUM_COLUMNS,))
    noise = jax.random.normal(noise_key, image.shape)
    return matrix, image + noise * jnp.linalg.norm(image) / jnp.linalg.norm(noise)


def loss(params: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Returns half the sum of squares."""
    rows, targets, weights = part
    return jnp.sum(weights * (rows @ params - targets) ** 2) / 2


def one_run(key: jax.Array, num_steps: int) -> Numbers:
    """Returns errors on one data set, with one sample per one-shot method."""
    data_key, *keys = jax.random.split(key, 1 + len(SAMPLINGS))
    matrix, target = draw_data(data_key)
    parts, row_weights = jaxwgc.partition((matrix, target), NUM_PARTS)
    # Columns are orthonormal.
    optimum = target @ matrix
    scores = jnp.sum(matrix**2, axis=1)
    leverage = jaxwgc.parts.partition_probabilities(scores, NUM_PARTS)
    uniform = jnp.full(NUM_PARTS, 1 / NUM_PARTS)
    whole = (*parts, row_weights)
    compare = functools.partial(one_sampling, whole, optimum, num_steps)
    measured = jax.vmap(compare)(jnp.stack(keys), jnp.stack([leverage, uniform]))
    numbers: Numbers = {}
    for quantity, by_kind in measured.items():
        numbers[quantity] = {}
        for kind, values in by_kind.items():
            for index, sampling in enumerate(SAMPLINGS):
                numbers[quantity][f"{kind}, {sampling}"] = values[index]
    return numbers


def one_sampling(
    whole: tuple[jax.Array, jax.Array, jax.Array],
    optimum: jax.Array,
    num_steps: int,
    key: jax.Array,
    probabilities: jax.Array,
) -> Numbers:
    """Returns errors of one-shot and iterative samples, and the one-shot limit."""
    sample_key, steps_key = jax.random.split(key)
    number = CODE.num_parts
    sample = jaxwgc.parts.sample_partitions(sample_key, probabilities, num_draws=number)
    all_rows, all_targets, row_weights = whole
    small = jaxwgc.parts.weighted_parts(sample, (all_rows, all_targets), row_weights)
    small_rows, small_targets = small.parts
    weights = small.row_weights * small.weights[:, None]
    scales = jnp.sqrt(weights)
    rows = (small_rows * scales[..., None]).reshape(-1, NUM_COLUMNS)
    responses = (small_targets * scales).reshape(-1)
    one_shot = jaxwgc.decoded_value_and_grad(loss, CODE)
    iterative = jaxwgc.sampled_value_and_grad(
        loss, CODE, probabilities, num_draws=number
    )

    def fixed(params, key, received):
        parts = (small_rows, small_targets, weights)
        _, gradient = one_shot(params, parts, received)
        return gradient

    def fresh(params, key, received):
        _, gradient = iterative(params, whole, key, received)
        return gradient

    def error(params):
        return jnp.sum((params - optimum) ** 2, axis=-1) / jnp.sum(optimum**2)

    # The best fixed step of a problem that stays the same.
    curvatures = jnp.linalg.eigvalsh(rows.T @ rows)
    fixed_sizes = jnp.full(num_steps, 2 / (curvatures[0] + curvatures[-1]))
    delays = jnp.array(DELAYS, float)[:, None]
    fresh_sizes = 1 / (jnp.arange(num_steps) + delays)
    fresh_paths = jax.vmap(lambda sizes: descend(steps_key, fresh, sizes))(fresh_sizes)
    one_shot_path = descend(steps_key, fixed, fixed_sizes)
    limit, *_ = jnp.linalg.lstsq(rows, responses)
    return {
        "errors": {"one-shot": error(one_shot_path), "iterative": error(fresh_paths)},
        "limits": {"one-shot": error(limit)},
    }


def descend(key: jax.Array, gradient, sizes: jax.Array) -> jax.Array:
    """Returns every θ from 0 on, (steps + 1, p), with random stragglers per step."""

    def step(params, carry):
        key, size = carry
        sample_key, straggler_key = jax.random.split(key)
        order = jax.random.permutation(straggler_key, CODE.num_workers)
        received = order >= CODE.num_stragglers
        params = params - size * gradient(params, sample_key, received)
        return params, params

    start = jnp.zeros(NUM_COLUMNS, sizes.dtype)
    keys = jax.random.split(key, len(sizes))
    _, path = jax.lax.scan(step, start, (keys, sizes))
    return jnp.concatenate([start[None], path])


def reduce(steps: tuple[int, ...], trials: Numbers) -> Numbers:
    """Returns means, with the delay that has the least mean error at the end."""
    delays = {}
    errors = {}
    for name, curves in trials["errors"].items():
        delays[name] = None
        if "iterative" in name:
            final = curves[:, :, -1].mean(axis=0)
            finite = np.where(np.isfinite(final), final, np.inf)
            index = int(np.argmin(finite))
            delays[name] = DELAYS[index]
            curves = curves[:, index]
        errors[name] = jaxwgc.summarize(curves[:, np.array(steps)])
    limits = jaxwgc.summarize(trials["limits"])
    return {"delays": delays, "errors": errors, "limits": limits}


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns errors at a few steps, and their limits."""

    def cell(summary):
        """Returns percent, to three digits of the mean."""
        exponent = int(np.floor(np.log10(100 * summary.mean)))
        return interval(summary, max(2 - exponent, 0), 100)

    heads = [f"step {step:,}" for step in numbers["steps"]]
    table = ResultTable(
        f"‖X(θ − θ*)‖² / ‖Xθ*‖² in percent, mean of {numbers['runs']} runs",
        ["parts", "delay", *heads, "limit"],
    )
    for name, summary in numbers["errors"].items():
        delay = numbers["delays"][name]
        limit = numbers["limits"].get(name)
        row = [name, str(delay) if delay else ""]
        for index in range(len(heads)):
            row.append(cell(at(summary, index)))
        row.append(cell(limit) if limit else "0")
        table.rows.append(row)
    return table
