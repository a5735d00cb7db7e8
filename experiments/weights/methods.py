"""Coded descent on sampled parts, by method and over a grid of step sizes.

Each method is a vector of weights of the k parts of the code. Constants that a step
size absorbs are omitted: the paper's 1 / (rΠ) is 1 / (kΠ) here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper.descent import CODE
from experiments.runner.study import Numbers
from experiments.runner.tables import geometric_mean

ONE_SHOT = "weighted", "weighted, unbiased", "unweighted", "uniform"
# Methods with a new sample at every step.
ITERATIVE = "block leverage", "block uniform"
METHODS = (*ONE_SHOT, *ITERATIVE)
BASELINE = "unweighted"
# Step sizes in units of 1 / (largest curvature of all the data), and numbers of steps
# after which they halve.
SIZES = tuple(2.0 ** (exponent / 2) for exponent in range(-9, 13))
DELAYS = (np.inf, 10.0)
# The fixed step is 1 / FIXED_SHARE of the best step of the baseline at the first
# checkpoint, approximately as in section 6.2 of the paper.
FIXED_SHARE = 8
# Replaces errors that are NaN.
DIVERGED = 1e30
# One of so many runs chooses the step sizes; the others are shown.
TUNING_SHARE = 4

# Sum of the losses of a part, `loss(params, part)`.
Loss = Callable[[jax.Array, Any], jax.Array]


def squared_error(params: jax.Array, part: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the sum of squared residuals up to a constant, from XᵀX and Xᵀy."""
    gram, product = part
    return params @ gram @ params - 2 * params @ product


def schedules(delays: tuple[float, ...], num_steps: int) -> np.ndarray:
    """Returns step sizes (lanes, num_steps), constant if the delay is infinite."""
    steps = np.arange(num_steps)
    lanes = []
    for delay in delays:
        decrease = 1 + steps / delay
        for size in SIZES:
            lanes.append(size / decrease)
    return np.array(lanes)


def run_all(
    key: jax.Array,
    parts: Any,
    probabilities: jax.Array,
    curvature: jax.Array,
    loss: Loss,
    start: jax.Array,
    measure: Callable[[jax.Array], Numbers],
    checkpoints: tuple[int, ...],
    load: Callable[[Any], Any] | None = None,
) -> Numbers:
    """Returns `measure(params)` by method, (lanes, checkpoints).

    Args:
        key: Key of samples and stragglers.
        parts: All K parts of the data.
        probabilities: Probabilities of the parts to be drawn, (K,).
        curvature: Largest curvature of the loss of all the data.
        loss: `loss(params, part)`, summed over a part.
        start: Parameters.
        measure: A function of parameters.
        checkpoints: Numbers of steps after which to measure.
        load: Function that makes the argument of the loss from a part, or None.
    """
    sample_key, step_key, straggler_key = jax.random.split(key, 3)
    num_parts = len(probabilities)
    k = CODE.num_parts
    even = jnp.full(num_parts, 1 / num_parts, probabilities.dtype)

    def draw(key, probabilities):
        return jaxwgc.parts.sample_partitions(key, probabilities, num_distinct=k)

    def draw_unbiased(key, probabilities):
        sample = jaxwgc.parts.sample_partitions(key, probabilities, num_draws=k)
        factors = jaxwgc.parts.rescaling_factors(sample)
        return sample.indices, sample.counts * factors**2

    # The first sample is drawn by the scores, the second evenly.
    laws = jnp.stack([probabilities, even])
    samples = jax.vmap(draw)(jax.random.split(sample_key), laws)
    by_scores = samples.indices[0]
    evenly = samples.indices[1]
    counts = samples.counts[0].astype(even.dtype)
    drawn = samples.probabilities[0]
    q = samples.num_draws[0]
    weights = {
        "weighted": counts / (k * drawn),
        "weighted, unbiased": counts / (q * drawn),
        "unweighted": 1 / (k * drawn),
        "uniform": jnp.full(k, num_parts / k, even.dtype),
    }
    indices = [evenly if name == "uniform" else by_scores for name in ONE_SHOT]
    num_steps = checkpoints[-1]
    # Random stragglers, as many as the code tolerates, the same for all methods.
    order = functools.partial(jax.random.permutation, x=CODE.num_workers)
    ranks = jax.vmap(order)(jax.random.split(straggler_key, num_steps))
    decoded = jaxwgc.decoding(CODE, ranks >= CODE.num_stragglers).effective_weights

    def chosen(indices):
        few = jax.tree.map(lambda leaf: leaf[indices], parts)
        if load is None:
            return few
        return jax.vmap(load)(few)

    def one_shot(indices, weights):
        """Descends on the same parts at every step."""
        small = chosen(indices)

        def loss_at(params, effective):
            return loss_of(params, small, weights * effective)

        return descend(loss_at, schedules(DELAYS[:1], num_steps) / curvature, decoded)

    def iterative(probabilities):
        """Descends on a new sample at every step."""
        keys = jax.random.split(step_key, num_steps)
        samples = jax.vmap(draw_unbiased, in_axes=(0, None))(keys, probabilities)

        def loss_at(params, step):
            (indices, weights), effective = step
            return loss_of(params, chosen(indices), weights * effective)

        sizes = schedules(DELAYS, num_steps) / curvature
        return descend(loss_at, sizes, (samples, decoded))

    def loss_of(params, small, weights):
        """Returns the loss of theorem 4.1: effective weights times sample weights."""
        return weights.astype(start.dtype) @ jax.vmap(loss, (None, 0))(params, small)

    def descend(loss_at, sizes, steps):
        """Runs all schedules on the same samples and stragglers."""

        def step(lanes, carry):
            size, at_step = carry
            gradients = jax.vmap(jax.grad(loss_at), (0, None))(lanes, at_step)
            lanes = lanes - size[:, None].astype(start.dtype) * gradients
            return lanes, lanes

        lanes = jnp.broadcast_to(start, (len(sizes), *start.shape))
        _, path = jax.lax.scan(step, lanes, (sizes.T, steps))
        measured = jax.vmap(jax.vmap(measure))(path[np.array(checkpoints) - 1])
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), measured)

    # Vectorized, which compiles once.
    kept = jax.vmap(one_shot)(jnp.stack(indices), jnp.stack(list(weights.values())))
    fresh = jax.vmap(iterative)(laws)
    return {
        "measured": _by_name(ONE_SHOT, kept) | _by_name(ITERATIVE, fresh),
        "spread": jnp.std(probabilities) / jnp.mean(probabilities),
        "draws_per_part": q / k,
    }


def _by_name(names: tuple[str, ...], stacked: Numbers) -> dict[str, Numbers]:
    """Returns the entries along the leading axis by name."""
    by_name = {}
    for index, name in enumerate(names):
        by_name[name] = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
    return by_name


def choose(errors: np.ndarray) -> np.ndarray:
    """Returns lanes of the least error, (checkpoints,), of (runs, lanes, checkpoints).

    Errors of runs are averaged in logarithm.
    """
    logarithms = np.log(np.fmin(errors, DIVERGED))
    return np.argmin(logarithms.mean(axis=0), axis=0)


class Chosen(NamedTuple):
    """Runs that are shown, and the lanes that other runs have chosen (checkpoints,)."""

    shown: slice
    best: dict[str, np.ndarray]
    fixed: np.ndarray

    def take(self, values: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        """Returns (shown runs, checkpoints) of (runs, lanes, checkpoints)."""
        values = values[self.shown]
        return values[:, lanes, np.arange(len(lanes))]


def choose_all(errors: dict[str, np.ndarray]) -> Chosen:
    """Chooses a step per method, and one for all; errors (runs, lanes, checkpoints)."""
    runs = len(errors[BASELINE])
    tuning = max(runs // TUNING_SHARE, 1)
    shown = slice(tuning, None) if runs > tuning else slice(None)
    best = {name: choose(error[:tuning]) for name, error in errors.items()}
    shift = 2 * int(np.log2(FIXED_SHARE))
    fixed = max(best[BASELINE][0] - shift, 0)
    return Chosen(shown, best, np.full_like(best[BASELINE], fixed))


def compare(errors: dict[str, np.ndarray], chosen: Chosen) -> Numbers:
    """Errors and paired ratios of the runs that are shown.

    Errors are (runs, lanes, checkpoints) by method. Ratios are to the baseline at its
    best step, and to the baseline at the fixed step.
    """
    errors = {name: np.fmin(error, DIVERGED) for name, error in errors.items()}
    best = {name: chosen.take(errors[name], chosen.best[name]) for name in errors}
    fixed = {name: chosen.take(errors[name], chosen.fixed) for name in ONE_SHOT}

    def ratios(by_name):
        base = by_name[BASELINE]
        return {name: geometric_mean(error / base) for name, error in by_name.items()}

    return {
        "lanes": chosen.best,
        "error": {name: geometric_mean(error) for name, error in best.items()},
        "best_step": ratios(best),
        "fixed_step": ratios(fixed),
    }


def by_step(errors: dict[str, np.ndarray], chosen: Chosen) -> Numbers:
    """Returns mean errors of the runs that are shown, (constant steps, checkpoints)."""
    means = {}
    for name, error in errors.items():
        constant_steps = error[chosen.shown, : len(SIZES)]
        means[name] = geometric_mean(np.fmin(constant_steps, DIVERGED))
    return means


def step_of(lane: int) -> str:
    """Returns the step of a lane, for a table."""
    delay_index, size_index = divmod(int(lane), len(SIZES))
    size = f"{SIZES[size_index]:.2g}"
    if np.isinf(DELAYS[delay_index]):
        return size
    return f"{size}, halved after 10"
