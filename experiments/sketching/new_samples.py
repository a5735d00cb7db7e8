"""Iterative block leverage: a new sample of parts at every step, or one for all."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, line, log_interval, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, half_width, with_half
from jaxwgc import sketching

NUM_STEPS, FEW_STEPS = 2_000, 200
# n workers hold k sampled parts of K, each on d of them.
CODE = jaxwgc.codes.reed_solomon(num_workers=20, num_parts=10, replication=8)
NUM_PARTS, ROWS_PER_PART, NUM_COLUMNS = 80, 10, 10
# The step at iteration t is 1 / (t + delay); each method gets its best of these.
DELAYS = (2, 8, 32, 128)
SAMPLINGS = ("leverage", "uniform")


def study(effort: Effort, key: jax.Array) -> Study:
    """One cell, in which all methods run on the same data."""
    steps = shown_steps(NUM_STEPS if effort.is_full else FEW_STEPS)
    return Study(
        {"steps": steps, "": Trial(one_run, int(steps[-1]))},
        key=key,
        runs=effort.runs,
        batch_size=10,
        x64=True,
        reduce=functools.partial(reduce, steps),
        tables={"block_leverage": tabulate},
        figures={"block_leverage": draw},
    )


def draw_data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X with orthonormal columns and few heavy parts, and y = Xθ + noise.

    All that slows gradient descent is then the sampling.
    """
    size_key, matrix_key, params_key, noise_key = jax.random.split(key, 4)
    shape = (NUM_PARTS, ROWS_PER_PART, NUM_COLUMNS)
    sizes = jnp.exp(1.5 * jax.random.normal(size_key, (NUM_PARTS, 1, 1)))
    matrix = sizes * jax.random.normal(matrix_key, shape)
    matrix = jnp.linalg.qr(matrix.reshape(-1, NUM_COLUMNS))[0]
    image = matrix @ jax.random.normal(params_key, (NUM_COLUMNS,))
    noise = jax.random.normal(noise_key, image.shape)
    return matrix, image + noise * jnp.linalg.norm(image) / jnp.linalg.norm(noise)


def loss(params: jax.Array, part: Any) -> jax.Array:
    """Half the sum of squares."""
    rows, targets, weights = part
    return jnp.sum(weights * (rows @ params - targets) ** 2) / 2


def one_run(key: jax.Array, num_steps: int) -> Numbers:
    """One data set, one sample for all steps of each one-shot method."""
    data_key, *keys = jax.random.split(key, 1 + len(SAMPLINGS))
    matrix, target = draw_data(data_key)
    parts, row_weights = jaxwgc.partition((matrix, target), NUM_PARTS)
    # Columns are orthonormal.
    optimum = target @ matrix
    scores = jnp.sum(matrix**2, axis=1)
    leverage = sketching.partition_probabilities(scores, NUM_PARTS)
    probabilities = jnp.stack([leverage, jnp.full(NUM_PARTS, 1 / NUM_PARTS)])
    whole = (*parts, row_weights)
    compare = functools.partial(one_sampling, whole, optimum, num_steps)
    measured = jax.vmap(compare)(jnp.stack(keys), probabilities)
    return {
        quantity: {
            f"{kind}, {sampling}": values[index]
            for kind, values in by_kind.items()
            for index, sampling in enumerate(SAMPLINGS)
        }
        for quantity, by_kind in measured.items()
    }


def one_sampling(whole, optimum, num_steps, key, probabilities) -> Numbers:
    """Errors of both kinds at every step, and where the one-shot kind ends."""
    sample_key, steps_key = jax.random.split(key)
    number = CODE.num_parts
    sample = sketching.sample_partitions(sample_key, probabilities, num_draws=number)
    *parts, row_weights = whole
    small = sketching.weighted_parts(sample, tuple(parts), row_weights)
    weights = small.row_weights * small.weights[:, None]
    rows = (small.parts[0] * jnp.sqrt(weights)[..., None]).reshape(-1, NUM_COLUMNS)
    responses = (small.parts[1] * jnp.sqrt(weights)).reshape(-1)
    one_shot = jaxwgc.decoded_value_and_grad(loss, CODE)
    iterative = jaxwgc.sampled_value_and_grad(
        loss, CODE, probabilities, num_draws=number
    )

    def fixed(params, key, received):
        return one_shot(params, (*small.parts, weights), received)[1]

    def fresh(params, key, received):
        return iterative(params, whole, key, received)[1]

    def error(params):
        return jnp.sum((params - optimum) ** 2, axis=-1) / jnp.sum(optimum**2)

    # The best fixed step of a problem that stays the same.
    curvatures = jnp.linalg.eigvalsh(rows.T @ rows)
    fixed_sizes = jnp.full(num_steps, 2 / (curvatures[0] + curvatures[-1]))
    fresh_sizes = 1 / (jnp.arange(num_steps) + jnp.array(DELAYS, float)[:, None])
    fresh_paths = jax.vmap(lambda sizes: descend(steps_key, fresh, sizes))(fresh_sizes)
    one_shot_path = descend(steps_key, fixed, fixed_sizes)
    return {
        "errors": {"one-shot": error(one_shot_path), "iterative": error(fresh_paths)},
        "limits": {"one-shot": error(jnp.linalg.lstsq(rows, responses)[0])},
    }


def descend(key: jax.Array, gradient, sizes: jax.Array) -> jax.Array:
    """Every θ from 0 on, (steps + 1, p), with random stragglers at every step."""

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


def shown_steps(num_steps: int) -> np.ndarray:
    """Evenly spaced in their logarithm, from 1, and 0."""
    return np.unique(np.append(0, np.geomspace(1, num_steps, 25).round())).astype(int)


def table_steps(num_steps: int) -> list[int]:
    """A few of them, to the last."""
    steps = shown_steps(num_steps)
    return [int(steps[np.searchsorted(steps, num_steps / f)]) for f in (100, 10, 1)]


def reduce(steps: np.ndarray, trials: Numbers) -> Numbers:
    """Means, with the delay of the smallest mean error at the end where there are."""
    delays, errors = {}, {}
    for name, curves in trials["errors"].items():
        delays[name] = None
        if "iterative" in name:
            final = curves[:, :, -1].mean(axis=0)
            index = int(np.argmin(np.where(np.isfinite(final), final, np.inf)))
            delays[name], curves = DELAYS[index], curves[:, index]
        errors[name] = jaxwgc.summarize(curves[:, steps])
    limits = jaxwgc.summarize(trials["limits"])
    return {"delays": delays, "errors": errors, "limits": limits}


def tabulate(numbers: Numbers) -> ResultTable:
    """Errors at a few steps, and where they end."""
    steps, limits = numbers["steps"], numbers["limits"]
    shown = table_steps(steps[-1])

    def row(name, summary):
        halves = half_width(summary)
        cells = [show(summary.mean[at], halves[at]) for at in map(steps.index, shown)]
        limit = limits.get(name)
        end = "0" if limit is None else show(limit.mean, half_width(limit))
        return name, str(numbers["delays"][name] or ""), *cells, end

    return ResultTable(
        f"‖X(θ − θ*)‖² / ‖Xθ*‖² in percent, mean of {numbers['runs']} runs",
        ["parts", "delay", *(f"step {step:,}" for step in shown), "limit"],
        itertools.starmap(row, numbers["errors"].items()),
    )


def show(mean: float, half: float) -> str:
    """In percent, to three digits of the mean."""
    digits = max(2 - int(np.floor(np.log10(100 * mean))), 0)
    return with_half(100 * mean, 100 * half, digits)


def draw(numbers: Numbers) -> Figure:
    """Log-log; the start is left out."""
    figure, (axes,) = new_figure(7.5, 4.6)
    steps = numbers["steps"][1:]
    for index, (name, summary) in enumerate(numbers["errors"].items()):
        band = [end[1:] for end in log_interval(summary)]
        line(axes, index, steps, summary.mean[1:], band, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="step")
    axes.set_ylabel("error ‖X(θ − θ*)‖² / ‖Xθ*‖²")
    axes.legend()
    return figure
