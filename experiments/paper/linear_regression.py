"""Linear regression on uneven leverage scores: table 2 and figure 2."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper import descent
from experiments.runner import figures, tables
from experiments.runner.study import Numbers, Study, Trial, command
from experiments.runner.tables import YES_NO, ResultTable, interval, table_of
from jaxwgc import sketching

NUM_FEATURES = 20
NUM_BLOCKS = 20
ROWS_PER_BLOCK = 50
STOP_NORM = 0.1
MAX_ITERATIONS = 5_000
COMPRESSIONS = (2, 4)
WEIGHTINGS = ("weighted", "unweighted")
BATCH_SIZE = 250

# The paper's table 2.
PUBLISHED_ITERATIONS = {
    2: {"weighted": 107.55, "unweighted": 145.6},
    4: {"weighted": 75.3, "unweighted": 84.4},
}
PUBLISHED_ERROR = {"rho=2": "O(10⁻⁵)", "rho=4": "O(10⁻⁴)"}
# Step sizes of the protocols, which multiply the gradient of the paper's objective.
PROTOCOLS = {"literal": 1e-7, "doubled": 2e-7}
# Another protocol: unbiased rescaling, each method at step 2 / (μ + L) of its Hessian.
OWN_BEST = "own_best_step"


def squared_error(params: jax.Array, part: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns the sum of squared residuals L_S; its gradient has the factor 2."""
    features, responses = part
    return jnp.sum((features @ params - responses) ** 2)


def draw_data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws y = Xθ + e and shuffled integers X, uniform on [-15i, 15i] in block i."""
    entries_key, order_key, params_key, noise_key = jax.random.split(key, 4)
    blocks = jnp.repeat(jnp.arange(1, NUM_BLOCKS + 1), ROWS_PER_BLOCK)
    bound = 15 * blocks[:, None]
    shape = (len(blocks), NUM_FEATURES)
    features = jax.random.randint(entries_key, shape, -bound, bound + 1)
    features = jax.random.permutation(order_key, features).astype(float)
    params = jax.random.normal(params_key, (NUM_FEATURES,))
    noise = jax.random.normal(noise_key, (len(blocks),))
    return features, features @ params + noise


def draw_sample(
    key: jax.Array, compression: int, rescalings: Sequence[str] = ("paper",)
) -> tuple[tuple[jax.Array, jax.Array], list[jaxwgc.parts.WeightedParts], jax.Array]:
    """Returns data, k sampled parts in each rescaling, and the number of draws."""
    data_key, sample_key = jax.random.split(key)
    data = draw_data(data_key)
    num_parts = compression * descent.CODE.num_parts
    parts, row_weights = jaxwgc.partition(data, num_parts)
    scores = sketching.leverage_scores(data[0], method="gram")
    probabilities = jaxwgc.parts.partition_probabilities(scores, num_parts)
    number = descent.CODE.num_parts
    sample = jaxwgc.parts.sample_partitions(
        sample_key, probabilities, num_distinct=number
    )
    small = []
    for rescaling in rescalings:
        small.append(
            jaxwgc.parts.weighted_parts(
                sample, parts, row_weights, scale="rows", rescaling=rescaling
            )
        )
    return data, small, sample.num_draws


def one_run(
    key: jax.Array,
    compression: int,
    protocols: tuple[str, ...] = (*PROTOCOLS, OWN_BEST),
) -> Numbers:
    """Solves one data set and sample in each protocol, with and without weights."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    rescalings = [
        "unbiased" if protocol == OWN_BEST else "paper" for protocol in protocols
    ]
    data, small, num_draws = draw_sample(sample_key, compression, rescalings)
    features, responses = data
    solution = least_squares_solution(features, responses)
    constant_weights = []
    for protocol, sampled in zip(protocols, small, strict=True):
        # At its own best step, the unweighted method has the mean weight, so that both
        # objectives have the same size.
        is_best = protocol == OWN_BEST
        constant_weights.append(sampled.weights.mean() if is_best else 1.0)
    step_sizes = jnp.array([PROTOCOLS.get(protocol, jnp.nan) for protocol in protocols])

    def solve(lane):
        small, constant_weight, step_size = lane

        def descend(descent_key, weights):
            smallest, largest = extreme_curvatures(small.parts[0], weights)
            best_step = 2 / (smallest + largest)
            end = descent.descend(
                descent_key,
                squared_error,
                jnp.zeros(NUM_FEATURES),
                small.parts,
                weights,
                jnp.where(jnp.isnan(step_size), best_step, step_size),
                STOP_NORM,
                MAX_ITERATIONS,
            )
            return {
                "condition": largest / smallest,
                "iterations": end.iterations,
                "error": jnp.sum((end.params - solution) ** 2),
            }

        return by_weighting(descend, descent_keys, small.weights, constant_weight)

    # Sequential, so that one program serves all protocols.
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *small)
    solved = jax.lax.map(solve, (lanes, jnp.stack(constant_weights), step_sizes))
    numbers = {}
    for index, protocol in enumerate(protocols):
        numbers[protocol] = entry_of(solved, index)
        numbers[protocol]["draws_per_part"] = num_draws / descent.CODE.num_parts
    return numbers


def by_weighting(
    run: Callable[[jax.Array, jax.Array], Numbers],
    keys: list[jax.Array],
    weights: jax.Array,
    constant_weight: jax.Array | float = 1.0,
) -> dict[str, Numbers]:
    """Returns `run(key, weights)` with the weights, and with one weight for all."""
    # Vectorized, which compiles in half the time.
    constant = jnp.full_like(weights, constant_weight)
    solved = jax.vmap(run)(jnp.stack(keys), jnp.stack([weights, constant]))
    return {name: entry_of(solved, index) for index, name in enumerate(WEIGHTINGS)}


def entry_of(stacked: Numbers, index: int) -> Numbers:
    """Returns an entry of all arrays along their leading axes."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def extreme_curvatures(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the smallest and the largest curvature of weighted parts."""
    rows = (features * jnp.sqrt(weights)[:, None, None]).reshape(-1, NUM_FEATURES)
    curvatures = jnp.linalg.eigvalsh(2 * rows.T @ rows)
    return curvatures[jnp.array([0, -1])]


def least_squares_solution(features: jax.Array, responses: jax.Array) -> jax.Array:
    """Returns X⁺y; X has full rank and a condition number near one here."""
    return jnp.linalg.solve(features.T @ features, features.T @ responses)


def cells(numbers: Numbers) -> list[dict[str, Numbers]]:
    """Returns the rows of the paper's table, with the runs of each protocol."""
    rows = []
    for compression in COMPRESSIONS:
        record = numbers["reproduced"][f"rho={compression}"]
        for weighting in WEIGHTINGS:
            row = {protocol: record[protocol][weighting] for protocol in record}
            row["ρ"] = compression
            row["weighting"] = weighting
            row["published"] = PUBLISHED_ITERATIONS[compression][weighting]
            row["run"] = record["doubled"]
            rows.append(row)
    return rows


CELL = {"ρ": "{ρ}", "weights": lambda row: YES_NO[row["weighting"] == "weighted"]}


def difference(row: Numbers) -> str:
    """Returns the deviation from the published iterations."""
    ratio = row["doubled"]["iterations"].mean / row["published"]
    return f"{100 * (ratio - 1):+z.1f}%"


def draws(row: Numbers) -> str:
    """Returns q/k, once for both weightings."""
    if row["weighting"] == "weighted":
        return interval(row["run"]["draws_per_part"], 3)
    return ""


TABLES = {
    "": table_of(
        "Table 2: iterations, mean of {runs:,} runs with 95% confidence interval",
        {
            **CELL,
            "published (20 runs)": "{published:g}",
            "step 2e-7": "{doubled[iterations]:1}",
            "difference": difference,
            "step 1e-7 (literal)": "{literal[iterations]:1}",
            "q/k": draws,
        },
        cells,
    ),
    "errors": table_of(
        "Table 2: squared error against the least-squares solution of all data, mean "
        "of {runs:,} runs, step 2e-7",
        {
            "ρ": lambda row: row["name"].removeprefix("rho="),
            "published": lambda row: PUBLISHED_ERROR[row["name"]],
            **{name: f"{{doubled[{name}][error]:e}}" for name in WEIGHTINGS},
        },
        "reproduced",
    ),
    "best_step": table_of(
        "Unbiased rescaling, step 2/(μ + L) of each run's own Hessian; {runs:,} runs",
        {
            **CELL,
            "iterations": f"{{{OWN_BEST}[iterations]:2}}",
            "squared error": f"{{{OWN_BEST}[error]:e}}",
            "condition L/μ": f"{{{OWN_BEST}[condition]:3}}",
        },
        cells,
    ),
}


def iterations_figure(numbers: Numbers) -> figures.Figure:
    """Draws bars of reproduced counts beside the published ones."""
    figure, (axes,) = figures.new_figure(7, 4)
    rows = cells(numbers)
    positions = np.arange(len(rows))
    published = [row["published"] for row in rows]
    axes.bar(positions - 0.27, published, 0.25, color="0.6", label="published")

    def draw_bars(protocol, label, color, offset):
        counts = [row[protocol]["iterations"] for row in rows]
        axes.bar(
            positions + offset,
            [count.mean for count in counts],
            0.25,
            yerr=[tables.half_width(count) for count in counts],
            label=label,
            color=color,
            capsize=3,
            error_kw={"linewidth": 1},
        )

    draw_bars("doubled", "step 2e-7", "tab:blue", offset=0)
    draw_bars("literal", "step 1e-7 (literal)", "tab:orange", offset=0.27)
    axes.set_xticks(positions, [f"ρ = {row['ρ']}\n{row['weighting']}" for row in rows])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("iterations to ‖∇‖ < 0.1")
    axes.set_title("Table 2: linear regression (bars: mean, whiskers: 95% CI)")
    axes.legend()
    return figure


@command("linear-regression", "Table 2, linear regression", prefix="table2")
def linear_regression(runs: int = 2_000, seed: int = 0) -> Study:
    """Measures table 2: iterations of coded descent, with and without weights.

    In float64, since in float32 the gradient norm does not reach 0.1.

    Args:
        runs: Data sets, each solved in all cells.
    """
    return Study(
        {"reproduced": {f"rho={c}": Trial(one_run, c) for c in COMPRESSIONS}},
        key=jax.random.key(seed),
        runs=runs,
        batch_size=BATCH_SIZE,
        x64=True,
        tables=TABLES,
        figures={"": iterations_figure},
    )


FIGURE_COMPRESSION = 2
NUM_ITERATIONS = 200
COLORS = {"weighted": "tab:blue", "unweighted": "tab:red"}


@command("figure2", "Figure 2, convergence of linear regression")
def figure2(runs: int = 1_000, seed: int = 0) -> Study:
    """Measures figure 2: the gradient norm at ρ = 2, with and without weights.

    Args:
        runs: Data sets, each solved with both methods.
    """
    return Study(
        {"gradient_norm": Trial(norms_of_run)},
        key=jax.random.key(seed),
        runs=runs,
        batch_size=250,
        x64=True,
        reduce=reduce_norms,
        tables={"": figure_table},
        figures={"": draw_norms},
    )


def norms_of_run(key: jax.Array) -> Numbers:
    """Returns gradient norms of both methods on one data set and sample."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    _, (small,), _ = draw_sample(sample_key, FIGURE_COMPRESSION)

    def norms(key, weights):
        return descent.gradient_norms(
            key,
            squared_error,
            jnp.zeros(NUM_FEATURES),
            small.parts,
            weights,
            PROTOCOLS["doubled"],
            NUM_ITERATIONS,
        )

    return by_weighting(norms, descent_keys, small.weights)


def reduce_norms(norms: dict[str, np.ndarray]) -> Numbers:
    """Returns the mean and the central 90% of the runs of both methods."""
    numbers = {}
    for name in WEIGHTINGS:
        quantiles = np.quantile(norms[name], [0.05, 0.95], axis=0)
        mean = jaxwgc.summarize(norms[name])
        numbers[name] = {"norm": mean, "quantiles_5_95": quantiles}
    return numbers


def figure_table(numbers: Numbers) -> ResultTable:
    """Returns a row for every fifty iterations."""
    norms = [record["norm"] for record in numbers["gradient_norm"].values()]
    table = ResultTable(
        f"Figure 2: mean gradient norm of {numbers['runs']:,} runs with 95% confidence "
        "interval",
        ["iteration", *numbers["gradient_norm"]],
    )
    for step in range(0, NUM_ITERATIONS, 50):
        shown = [tables.interval_power_of_ten(tables.at(norm, step)) for norm in norms]
        table.rows.append([str(step), *shown])
    first_below = [str(np.argmax(norm.mean < STOP_NORM)) for norm in norms]
    table.rows.append([f"mean below {STOP_NORM:g} after", *first_below])
    return table


def draw_norms(numbers: Numbers) -> figures.Figure:
    """Draws means with confidence bands, and the central 90% of the runs."""
    figure, (axes,) = figures.new_figure(7, 4.5)
    iterations = np.arange(NUM_ITERATIONS)
    for weighting, record in numbers["gradient_norm"].items():
        color = COLORS[weighting]
        low, high = record["quantiles_5_95"]
        axes.fill_between(iterations, low, high, alpha=0.15, color=color, linewidth=0)
        low, high = figures.log_interval(record["norm"])
        axes.fill_between(iterations, low, high, alpha=0.35, color=color, linewidth=0)
        mean = record["norm"].mean
        axes.plot(iterations, mean, color=color, label=f"{weighting}, mean")
    label = "termination, ‖∇‖ < 0.1"
    figures.threshold(axes, STOP_NORM, label, at=2, linestyle=":", xytext=(0, 4))
    axes.set_title(
        f"Figure 2: ρ = 2, {numbers['runs']} runs, 29 of 50 workers lost in every "
        "iteration\ndark band: 95% CI of the mean, light band: 90% of the runs"
    )
    axes.set(yscale="log", ylim=(1e-3, None), xlim=(0, NUM_ITERATIONS - 1))
    axes.set(xlabel="iteration", ylabel="norm of the decoded gradient")
    axes.legend()
    return figure
