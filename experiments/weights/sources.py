"""Parts from sources with different noise, weighted by the inverse of its variance."""

from typing import Any

import jax
import jax.numpy as jnp

import jaxwgc
from experiments.paper import descent
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import (
    ResultTable,
    at,
    interval,
    interval_power_of_ten,
    ratio_of_means,
    verdict,
)
from experiments.weights import methods
from jaxwgc import coding, sketching

# A part of the paper's code is a source.
NUM_SOURCES = descent.CODE.num_parts
NUM_FEATURES = 10
# The largest standard deviation over the smallest, and rows of a source.
SPREADS, SPREAD = (1, 2, 3, 5, 10, 20, 50, 100), 10
ROW_COUNTS, ROW_COUNT = (5, 10, 20, 50, 100, 200), 50
SETTINGS = [
    *((spread, ROW_COUNT) for spread in SPREADS),
    *((SPREAD, count) for count in ROW_COUNTS if count != ROW_COUNT),
]
# Fits after the unweighted one, each with the variances estimated from the one before.
ESTIMATES = ("estimated once", "estimated twice")
METHODS = ("unweighted", *ESTIMATES, "known")
MAX_ITERATIONS = 2_000


def study(effort: Effort, key: jax.Array) -> Study:
    """One cell: all settings on the same random numbers."""
    return Study(
        {"": Trial(one_run)},
        key=key,
        runs=effort.runs,
        batch_size=50,
        x64=True,
        reduce=reduce,
        tables={"sources": tabulate},
        figures={"sources": draw},
    )


def deviations(spread: Any) -> jax.Array:
    """Standard deviations of the noise, evenly spaced in their logarithm around 1."""
    return jnp.asarray(spread, float) ** jnp.linspace(-0.5, 0.5, NUM_SOURCES)


def one_run(key: jax.Array) -> Numbers:
    """Squared errors of all methods in every setting."""
    spreads, counts = map(jnp.array, zip(*SETTINGS, strict=True))
    return jax.vmap(one_setting, in_axes=(None, 0, 0))(key, spreads, counts)


def one_setting(key: jax.Array, spread: jax.Array, count: jax.Array) -> Numbers:
    """Coded descent on one data set, with the weights of each method."""
    *data_keys, descent_key = jax.random.split(key, 4)
    shape = NUM_SOURCES, max(ROW_COUNTS)
    row_weights = jnp.broadcast_to(jnp.arange(shape[1]) < count, shape).astype(float)
    features = jax.random.normal(data_keys[0], (*shape, NUM_FEATURES))
    features = features * row_weights[..., None]
    truth = jax.random.normal(data_keys[1], (NUM_FEATURES,))
    noise = deviations(spread)[:, None] * jax.random.normal(data_keys[2], shape)
    responses = row_weights * (features @ truth + noise)
    # All that least squares needs of a part.
    grams = jnp.einsum("jmp,jmq->jpq", features, features)
    products = jnp.einsum("jmp,jm->jp", features, responses)
    known = coding.inverse_variance_weights(deviations(spread) ** 2)

    def estimate(params, weights):
        """Weights by the residuals of a fit with other weights."""
        rows = features * jnp.sqrt(weights)[:, None, None]
        scores = sketching.leverage_scores(
            rows.reshape(-1, NUM_FEATURES), method="gram"
        )
        variances = coding.source_variances(
            responses - features @ params, scores.reshape(shape), row_weights
        )
        return coding.inverse_variance_weights(variances)

    def fit(estimated, turn):
        key, is_known = turn
        weights = jnp.where(is_known, known, estimated)
        hessian = 2 * jnp.einsum("j,jpq->pq", weights, grams)
        curvatures = jnp.linalg.eigvalsh(hessian)
        end = descent.descend(
            key,
            methods.squared_error,
            jnp.zeros(NUM_FEATURES),
            (grams, products),
            weights,
            2 / (curvatures[0] + curvatures[-1]),
            1e-7 * curvatures[0],
            MAX_ITERATIONS,
        )
        error = jnp.sum((end.params - truth) ** 2)
        return estimate(end.params, weights), error

    is_known = jnp.arange(len(METHODS)) == METHODS.index("known")
    turns = jax.random.split(descent_key, len(METHODS)), is_known
    _, errors = jax.lax.scan(fit, jnp.ones(NUM_SOURCES), turns)
    # Gauss and Markov: the exact solution with the true variances, and its law.
    precisions = deviations(spread) ** -2
    covariance = jnp.linalg.inv(jnp.einsum("j,jpq->pq", precisions, grams))
    oracle = covariance @ jnp.einsum("j,jp->p", precisions, products)
    return {
        "errors": dict(zip(METHODS, errors, strict=True)),
        "oracle": jnp.sum((oracle - truth) ** 2),
        "law": jnp.trace(covariance),
    }


def reduce(trials: Numbers) -> Numbers:
    """Means in each setting, and ratios of means."""
    return {
        "oracle": jaxwgc.summarize(trials["oracle"]),
        "law": trials["law"].mean(axis=0),
        "over_oracle": {
            name: ratio_of_means(error, trials["oracle"])
            for name, error in trials["errors"].items()
        },
        "unweighted_over_last": ratio_of_means(
            trials["errors"]["unweighted"], trials["errors"][ESTIMATES[-1]]
        ),
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """Errors over the oracle's, and what weights save."""

    def show(index):
        spread, count = SETTINGS[index]
        over = {
            name: verdict(at(numbers["over_oracle"][name], index)) for name in METHODS
        }
        saved = at(numbers["unweighted_over_last"], index)
        return {
            "σ max / min": str(spread),
            "rows": str(count),
            "oracle": interval_power_of_ten(at(numbers["oracle"], index)),
            "its law": f"{numbers['law'][index]:.2e}",
            **over,
            "unweighted / estimated twice": interval(saved, 2),
        }

    return ResultTable.of_records(
        f"Noisy sources: squared error of the oracle, and of coded descent over the "
        f"oracle's, {numbers['runs']:,} runs",
        show,
        range(len(SETTINGS)),
    )


def draw(numbers: Numbers) -> Figure:
    """Over the oracle's error: against the spread, and against the rows."""
    figure, panels = new_figure(10, 4.4, columns=2, share_x=False)
    chosen = (
        ([s for s, c in SETTINGS if c == ROW_COUNT], 0, SPREADS),
        ([c for s, c in SETTINGS if s == SPREAD], 1, ROW_COUNTS),
    )
    for axes, (_, varied, ticks) in zip(panels, chosen, strict=True):
        fixed = (SPREAD, ROW_COUNT)[1 - varied]
        every = [i for i, cell in enumerate(SETTINGS) if cell[1 - varied] == fixed]
        every.sort(key=lambda index: SETTINGS[index][varied])
        values = [SETTINGS[index][varied] for index in every]
        for index, name in enumerate(METHODS):
            over = at(numbers["over_oracle"][name], every)
            line(axes, index, values, over.mean, (over.low, over.high), label=name)
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    panels[0].set(xlabel="largest / smallest standard deviation of the noise")
    panels[0].set(title=f"{ROW_COUNT} rows a source", ylabel="error / oracle's error")
    panels[1].set(xlabel="rows a source", title=f"spread {SPREAD}")
    levels = (1, 1.5, 2, 3, 5, 10, 20, 50, 100)
    panels[0].set_yticks(levels, [f"{level:g}" for level in levels])
    panels[0].legend()
    return figure
