"""Parts from sources with different noise, weighted by inverse variances."""

import jax
import jax.numpy as jnp

import jaxwgc
from experiments.paper import descent
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import at, entries, ratio_of_means, table_of, verdict
from experiments.weights import methods
from jaxwgc import coding, sketching

# A part of the paper's code is a source.
NUM_SOURCES = descent.CODE.num_parts
NUM_FEATURES = 10
# Ratios of the largest to the smallest standard deviation, and rows per source.
SPREADS = (1, 2, 3, 5, 10, 20, 50, 100)
SPREAD = 10
ROW_COUNTS = (5, 10, 20, 50, 100, 200)
ROW_COUNT = 50
SETTINGS = [
    *((spread, ROW_COUNT) for spread in SPREADS),
    *((SPREAD, count) for count in ROW_COUNTS if count != ROW_COUNT),
]
# Fits after the unweighted one, with variances estimated from the fit before.
ESTIMATES = ("estimated once", "estimated twice")
METHODS = ("unweighted", *ESTIMATES, "known")
# Spreads that are left out of the table.
ONLY_DRAWN = (2, 5, 50)
MAX_ITERATIONS = 2_000


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns one cell for all settings, which share random numbers."""
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


def deviations(spread: jax.Array) -> jax.Array:
    """Returns standard deviations of noise, evenly spaced in logarithm around 1."""
    return jnp.asarray(spread, float) ** jnp.linspace(-0.5, 0.5, NUM_SOURCES)


def one_run(key: jax.Array) -> Numbers:
    """Returns squared errors of all methods in every setting."""
    spreads = jnp.array([spread for spread, _ in SETTINGS])
    counts = jnp.array([count for _, count in SETTINGS])
    return jax.vmap(one_setting, in_axes=(None, 0, 0))(key, spreads, counts)


def one_setting(key: jax.Array, spread: jax.Array, count: jax.Array) -> Numbers:
    """Runs coded descent on one data set with the weights of each method."""
    *data_keys, descent_key = jax.random.split(key, 4)
    num_rows = max(ROW_COUNTS)
    shape = (NUM_SOURCES, num_rows)
    row_weights = jnp.broadcast_to(jnp.arange(num_rows) < count, shape).astype(float)
    features = jax.random.normal(data_keys[0], (*shape, NUM_FEATURES))
    features = features * row_weights[..., None]
    truth = jax.random.normal(data_keys[1], (NUM_FEATURES,))
    noise = deviations(spread)[:, None] * jax.random.normal(data_keys[2], shape)
    responses = row_weights * (features @ truth + noise)
    # Sufficient statistics of each part.
    grams = jnp.einsum("jmp,jmq->jpq", features, features)
    products = jnp.einsum("jmp,jm->jp", features, responses)
    known = coding.inverse_variance_weights(deviations(spread) ** 2)

    def estimate(params, weights):
        """Estimates weights from the residuals of a fit."""
        rows = features * jnp.sqrt(weights)[:, None, None]
        rows = rows.reshape(-1, NUM_FEATURES)
        scores = sketching.leverage_scores(rows, method="gram")
        residuals = responses - features @ params
        variances = coding.source_variances(
            residuals, scores.reshape(shape), row_weights
        )
        return coding.inverse_variance_weights(variances)

    def fit(estimated, key_and_method):
        key, method = key_and_method
        is_known = method == METHODS.index("known")
        weights = jnp.where(is_known, known, estimated)
        hessian = 2 * jnp.einsum("j,jpq->pq", weights, grams)
        curvatures = jnp.linalg.eigvalsh(hessian)
        step_size = 2 / (curvatures[0] + curvatures[-1])
        end = descent.descend(
            key,
            methods.squared_error,
            jnp.zeros(NUM_FEATURES),
            (grams, products),
            weights,
            step_size,
            stop_norm=1e-7 * curvatures[0],
            max_iterations=MAX_ITERATIONS,
        )
        error = jnp.sum((end.params - truth) ** 2)
        return estimate(end.params, weights), error

    keys = jax.random.split(descent_key, len(METHODS))
    indices = jnp.arange(len(METHODS))
    _, errors = jax.lax.scan(fit, jnp.ones(NUM_SOURCES), (keys, indices))
    # The Gauss-Markov solution with true variances, and its expected squared error.
    precisions = deviations(spread) ** -2
    covariance = jnp.linalg.inv(jnp.einsum("j,jpq->pq", precisions, grams))
    oracle = covariance @ jnp.einsum("j,jp->p", precisions, products)
    return {
        "errors": dict(zip(METHODS, errors, strict=True)),
        "oracle": jnp.sum((oracle - truth) ** 2),
        "law": jnp.trace(covariance),
    }


def reduce(trials: Numbers) -> Numbers:
    """Returns means in each setting, and ratios of means."""
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


def settings(numbers: Numbers) -> list[dict[str, Numbers]]:
    """Returns a record per setting of the table."""
    record = {
        "spread": [spread for spread, _ in SETTINGS],
        "count": [count for _, count in SETTINGS],
        "over_last": numbers["unweighted_over_last"],
        "oracle": numbers["oracle"],
        "law": numbers["law"],
        **numbers["over_oracle"],
    }
    return [row for row in entries(record) if row["spread"] not in ONLY_DRAWN]


tabulate = table_of(
    "Noisy sources: squared error of the oracle, and of coded descent relative to the "
    "oracle, {runs:,} runs",
    {
        "σ max / min": "{spread}",
        "rows": "{count}",
        "oracle": "{oracle:e}",
        **{name: lambda row, name=name: verdict(row[name]) for name in METHODS[:-1]},
        "unweighted / estimated twice": "{over_last:2}",
    },
    settings,
)


def draw(numbers: Numbers) -> Figure:
    """Draws errors relative to the oracle by spread and by rows."""
    figure, panels = new_figure(10, 4.4, columns=2, sharex=False)

    def draw_panel(axes, values, settings, ticks):
        """Draws the errors of some settings at the values of what varies."""
        chosen = [SETTINGS.index(setting) for setting in settings]
        for index, name in enumerate(METHODS):
            over = at(numbers["over_oracle"][name], chosen)
            line(axes, index, values, over.mean, (over.low, over.high), label=name)
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()

    spreads = sorted(spread for spread, count in SETTINGS if count == ROW_COUNT)
    draw_panel(panels[0], spreads, [(s, ROW_COUNT) for s in spreads], ticks=SPREADS)
    counts = sorted(count for spread, count in SETTINGS if spread == SPREAD)
    draw_panel(panels[1], counts, [(SPREAD, c) for c in counts], ticks=ROW_COUNTS)
    panels[0].set(xlabel="largest / smallest standard deviation of the noise")
    panels[0].set(title=f"{ROW_COUNT} rows per source", ylabel="error / oracle's error")
    panels[1].set(xlabel="rows per source", title=f"spread {SPREAD}")
    levels = (1, 1.5, 2, 3, 5, 10, 20, 50, 100)
    panels[0].set_yticks(levels, [f"{level:g}" for level in levels])
    panels[0].legend()
    return figure
