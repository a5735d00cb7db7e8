"""Table 2 and the data of figure 2: linear regression on uneven leverage scores."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper import descent
from experiments.runner import figures
from experiments.runner.study import Numbers, Study, Trial, run
from experiments.runner.tables import (
    YES_NO,
    ResultTable,
    half_width,
    interval,
    interval_power_of_ten,
)
from jaxwgc import sketching

NUM_FEATURES = 20
ROWS_PER_BLOCK = 50
NUM_BLOCKS = 20
STEP_SIZE = 1e-7
STOP_NORM = 0.1
MAX_ITERATIONS = 5_000
COMPRESSIONS = (2, 4)
WEIGHTINGS = ("weighted", "unweighted")
BATCH_SIZE = 250

# The paper's table 2.
PUBLISHED_ITERATIONS = {
    "rho=2 weighted": 107.55,
    "rho=2 unweighted": 145.6,
    "rho=4 weighted": 75.3,
    "rho=4 unweighted": 84.4,
}
PUBLISHED_ERROR = {2: "O(10⁻⁵)", 4: "O(10⁻⁴)"}
# The protocols: what the gradient of the paper's objective is multiplied by in a step.
PROTOCOLS = {"literal": STEP_SIZE, "doubled": 2 * STEP_SIZE}
# Besides them unbiased rescaling, and each method at the step 2 / (mu + L) of its own
# Hessian.
OWN_BEST = "own_best_step"


def squared_error(params: jax.Array, part: Any) -> jax.Array:
    """Sum of squared residuals: the paper's L_S, whose gradient has the factor 2."""
    features, responses = part
    return jnp.sum((features @ params - responses) ** 2)


def problem(parts: Any) -> tuple[Any, Any, Any]:
    """Loss, start and parts, for `descent`."""
    return squared_error, jnp.zeros(NUM_FEATURES), parts


def draw_data(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X of integers, uniform on [-15i, 15i] in block i, shuffled; y = X theta + e."""
    entries_key, order_key, params_key, noise_key = jax.random.split(key, 4)
    blocks = jnp.repeat(jnp.arange(1, NUM_BLOCKS + 1), ROWS_PER_BLOCK)
    bound = 15 * blocks[:, None]
    shape = (len(blocks), NUM_FEATURES)
    features = jax.random.randint(entries_key, shape, -bound, bound + 1)
    features = jax.random.permutation(order_key, features).astype(float)
    params = jax.random.normal(params_key, (NUM_FEATURES,))
    noise = jax.random.normal(noise_key, (len(blocks),))
    return features, features @ params + noise


def draw_sample(key, compression, rescalings=("paper",)):
    """The data, k sampled parts of them in each rescaling, and the number of draws."""
    data_key, sample_key = jax.random.split(key)
    data = draw_data(data_key)
    num_parts = compression * descent.CODE.num_parts
    parts, row_weights = jaxwgc.partition(data, num_parts)
    scores = sketching.leverage_scores(data[0], method="gram")
    sample = sketching.sample_partitions(
        sample_key,
        sketching.partition_probabilities(scores, num_parts),
        num_distinct=descent.CODE.num_parts,
    )
    small = [
        sketching.weighted_parts(
            sample, parts, row_weights, rescaling=rescaling, scale="rows"
        )
        for rescaling in rescalings
    ]
    return data, small, sample.num_draws


def one_run(key, compression, protocols=(*PROTOCOLS, OWN_BEST)) -> Numbers:
    """One data set and sample, solved in each protocol with the weights and without."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    rescalings = ["unbiased" if name == OWN_BEST else "paper" for name in protocols]
    data, small, num_draws = draw_sample(sample_key, compression, rescalings)
    solution = least_squares_solution(*data)
    # At steps of their own as many draws in all, so that both objectives have the same
    # size.
    means = [
        sample.weights.mean() if protocol == OWN_BEST else 1.0
        for protocol, sample in zip(protocols, small, strict=True)
    ]
    step_sizes = jnp.array([PROTOCOLS.get(protocol, jnp.nan) for protocol in protocols])

    def solve(lane):
        small, mean, step_size = lane

        def descend(descent_key, weights):
            features = small.parts[0] * jnp.sqrt(weights)[:, None, None]
            features = features.reshape(-1, NUM_FEATURES)
            curvatures = jnp.linalg.eigvalsh(2 * features.T @ features)
            best = 2 / (curvatures[0] + curvatures[-1])
            own_step = jnp.where(jnp.isnan(step_size), best, step_size)
            rule = weights, own_step, STOP_NORM, MAX_ITERATIONS
            end = descent.descend(descent_key, *problem(small.parts), *rule)
            return {
                "condition": curvatures[-1] / curvatures[0],
                "iterations": end.iterations,
                "error": jnp.sum((end.params - solution) ** 2),
            }

        # Side by side, which compiles in half the time.
        both = jnp.stack([small.weights, jnp.full_like(small.weights, mean)])
        return jax.vmap(descend)(jnp.stack(descent_keys), both)

    # One after the other: one program serves all protocols.
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *small)
    solved = jax.lax.map(solve, (lanes, jnp.stack(means), step_sizes))

    def of(lane):
        return {"draws_per_part": num_draws / descent.CODE.num_parts} | {
            weighting: {name: leaf[lane, second] for name, leaf in solved.items()}
            for second, weighting in enumerate(WEIGHTINGS)
        }

    return {protocol: of(lane) for lane, protocol in enumerate(protocols)}


def all_runs(key: jax.Array) -> Numbers:
    """At each compression."""
    return {f"rho={c}": one_run(key, c) for c in COMPRESSIONS}


def least_squares_solution(features: jax.Array, responses: jax.Array) -> jax.Array:
    """X^+ y; X has full rank and condition of about one here."""
    return jnp.linalg.solve(features.T @ features, features.T @ responses)


def linear_regression(
    runs: int = 2_000, seed: int = 0, out: Path = Path("results")
) -> None:
    """Table 2: iterations of coded gradient descent, with and without weights.

    In float64: in float32 the gradient does not get as short as 0.1.

    Args:
        runs: Data sets, each solved in all cells.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and the figure (PNG).
    """
    sections = {"": functools.partial(study, runs, seed)}
    title = "Table 2, linear regression"
    run("linear-regression", title, sections, runs, seed, out, prefix="table2")


def study(runs: int, seed: int) -> Study:
    """Each protocol at each compression, and each method at its own best step."""
    return Study(
        {"reproduced": Trial(all_runs)},
        key=jax.random.key(seed),
        runs=runs,
        batch_size=BATCH_SIZE,
        x64=True,
        tables={"": iterations_table, "errors": errors_table, "best_step": best_table},
        figures={"": iterations_figure},
    )


def iterations_table(numbers: Numbers) -> ResultTable:
    """Published and reproduced counts."""

    def show(cell):
        compression, weighting = cell
        published = PUBLISHED_ITERATIONS[f"rho={compression} {weighting}"]
        by_protocol = numbers["reproduced"][f"rho={compression}"]
        literal, doubled = (by_protocol[protocol] for protocol in PROTOCOLS)
        iterations = doubled[weighting]["iterations"]
        is_weighted = weighting == "weighted"
        return {
            "ρ": str(compression),
            "weights": YES_NO[is_weighted],
            "published (20 runs)": f"{published:g}",
            "step 2e-7": interval(iterations, 1),
            "difference": f"{100 * (iterations.mean / published - 1):+z.1f}%",
            "step 1e-7 (literal)": interval(literal[weighting]["iterations"], 1),
            "q/k": interval(doubled["draws_per_part"], 3) if is_weighted else "",
        }

    runs = f"mean of {numbers['runs']:,} runs with 95% confidence interval"
    return ResultTable.of_records(f"Table 2: iterations, {runs}", show, cells())


def errors_table(numbers: Numbers) -> ResultTable:
    """Squared distance from the least-squares solution of all the data."""

    def row(compression):
        cell = numbers["reproduced"][f"rho={compression}"]["doubled"]
        errors = [interval_power_of_ten(cell[w]["error"]) for w in WEIGHTINGS]
        return [str(compression), PUBLISHED_ERROR[compression], *errors]

    return ResultTable(
        "Table 2: squared error against the least-squares solution of all data, mean "
        f"of {numbers['runs']:,} runs, step 2e-7",
        ["ρ", "published", *WEIGHTINGS],
        map(row, COMPRESSIONS),
    )


def best_table(numbers: Numbers) -> ResultTable:
    """Shows what is left of the weights' advantage at each method's own best step."""

    def show(cell):
        compression, weighting = cell
        record = numbers["reproduced"][f"rho={compression}"][OWN_BEST][weighting]
        return {
            "ρ": str(compression),
            "weights": YES_NO[weighting == "weighted"],
            "iterations": interval(record["iterations"], 2),
            "squared error": interval_power_of_ten(record["error"]),
            "condition L/μ": interval(record["condition"], 3),
        }

    return ResultTable.of_records(
        "Unbiased rescaling, step 2/(μ + L) of each run's own Hessian; "
        f"{numbers['runs']:,} runs",
        show,
        cells(),
    )


def cells() -> list[tuple[int, str]]:
    """Rows of the paper's table."""
    return [(c, w) for c in COMPRESSIONS for w in WEIGHTINGS]


def iterations_figure(numbers: Numbers) -> figures.Figure:
    """Bars of our counts beside the published ones."""
    figure, (axes,) = figures.new_figure(7, 4)
    positions = np.arange(len(cells()))
    published = [PUBLISHED_ITERATIONS[f"rho={c} {w}"] for c, w in cells()]
    axes.bar(positions - 0.27, published, 0.25, color="0.6", label="published")
    for offset, protocol, color, label in (
        (0.0, "doubled", "tab:blue", "step 2e-7"),
        (0.27, "literal", "tab:orange", "step 1e-7 (literal)"),
    ):
        runs = [numbers["reproduced"][f"rho={c}"][protocol][w] for c, w in cells()]
        look = {"color": color, "capsize": 3, "error_kw": {"linewidth": 1}}
        means = [run["iterations"].mean for run in runs]
        halves = [half_width(run["iterations"]) for run in runs]
        axes.bar(positions + offset, means, 0.25, yerr=halves, label=label, **look)
    axes.set_xticks(positions, [f"ρ = {c}\n{w}" for c, w in cells()])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("iterations to ‖∇‖ < 0.1")
    axes.set_title("Table 2: linear regression (bars: mean, whiskers: 95% CI)")
    axes.legend()
    return figure
