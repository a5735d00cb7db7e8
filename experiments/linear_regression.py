"""Table 2 and the data of figure 2: linear regression on uneven leverage scores."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxwgc
from experiments import descent, results
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
    (2, "weighted"): 107.55,
    (2, "unweighted"): 145.6,
    (4, "weighted"): 75.3,
    (4, "unweighted"): 84.4,
}
PUBLISHED_ERROR = {2: "O(10⁻⁵)", 4: "O(10⁻⁴)"}
# The protocols: what the gradient of the paper's objective is multiplied by in a step.
PROTOCOLS = {"literal": STEP_SIZE, "doubled": 2 * STEP_SIZE}


def squared_error(params: jax.Array, part: Any) -> jax.Array:
    """Sum of squared residuals: the paper's L_S, whose gradient has the factor 2."""
    features, responses = part
    return jnp.sum((features @ params - responses) ** 2)


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


def draw_sample(
    key: jax.Array, compression: int, rescaling: str = "paper"
) -> tuple[tuple[jax.Array, jax.Array], sketching.WeightedParts, jax.Array]:
    """The data, k sampled and rescaled parts of them, and the number of draws q."""
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
    small = sketching.weighted_parts(
        sample, parts, row_weights, rescaling=rescaling, scale="rows"
    )
    return data, small, sample.num_draws


def one_run(key: jax.Array, compression: int, step_size: float) -> dict[str, Any]:
    """One data set and sample, solved with the weights and without."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    data, small, num_draws = draw_sample(sample_key, compression)
    solution = least_squares_solution(*data)
    run: dict[str, Any] = {"draws_per_part": num_draws / descent.CODE.num_parts}
    for weighting, descent_key in zip(WEIGHTINGS, descent_keys, strict=True):
        found = descent.descend(
            descent_key,
            squared_error,
            jnp.zeros(NUM_FEATURES),
            small.parts,
            small.weights if weighting == "weighted" else jnp.ones_like(small.weights),
            step_size,
            STOP_NORM,
            MAX_ITERATIONS,
        )
        run[weighting] = {
            "iterations": found.iterations,
            "error": jnp.sum((found.params - solution) ** 2),
        }
    return run


def one_run_at_own_best_step(key: jax.Array, compression: int) -> dict[str, Any]:
    """Unbiased rescaling, each method at the step 2 / (mu + L) of its own Hessian."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    data, small, _ = draw_sample(sample_key, compression, rescaling="unbiased")
    solution = least_squares_solution(*data)
    run: dict[str, Any] = {}
    for weighting, descent_key in zip(WEIGHTINGS, descent_keys, strict=True):
        weights = small.weights
        if weighting == "unweighted":
            # As many draws in all, so that both objectives have the same size.
            weights = jnp.full_like(weights, weights.mean())
        features = small.parts[0] * jnp.sqrt(weights)[:, None, None]
        features = features.reshape(-1, NUM_FEATURES)
        curvatures = jnp.linalg.eigvalsh(2 * features.T @ features)
        found = descent.descend(
            descent_key,
            squared_error,
            jnp.zeros(NUM_FEATURES),
            small.parts,
            weights,
            2 / (curvatures[0] + curvatures[-1]),
            STOP_NORM,
            MAX_ITERATIONS,
        )
        run[weighting] = {
            "iterations": found.iterations,
            "error": jnp.sum((found.params - solution) ** 2),
            "condition": curvatures[-1] / curvatures[0],
        }
    return run


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
    folder = results.Results("Table 2, linear regression", out, runs)
    with jax.enable_x64(True), results.progress_bar() as progress:
        key = jax.random.key(seed)

        def collect(title, trial):
            trials = results.run_trials(progress, title, trial, key, runs, BATCH_SIZE)
            return jaxwgc.summarize(trials)

        cells = {
            (protocol, compression): collect(
                f"ρ = {compression}, {protocol} step",
                lambda key, c=compression, s=step_size: one_run(key, c, s),
            )
            for compression in COMPRESSIONS
            for protocol, step_size in PROTOCOLS.items()
        }
        best = {
            compression: collect(
                f"ρ = {compression}, own best step",
                lambda key, c=compression: one_run_at_own_best_step(key, c),
            )
            for compression in COMPRESSIONS
        }
    tables = {
        "table2.md": iterations_table(cells, runs),
        "table2_errors.md": errors_table(cells, runs),
        "table2_best_step.md": best_step_table(best, runs),
    }
    for name, table in tables.items():
        table.print()
        folder.add_table(name, table)
    results.console.print(note(cells, best), highlight=False)
    folder.add_json("table2.json", numbers(cells, best, runs, seed))
    folder.add_figure("table2.png", iterations_figure(cells))
    folder.save()


def note(cells, best) -> str:
    """Where the numbers differ from the published ones, in words."""
    lines = ["", "Where this differs from the paper:"]
    for compression in COMPRESSIONS:
        published = [PUBLISHED_ITERATIONS[compression, w] for w in WEIGHTINGS]
        literal, doubled = (
            [cells[protocol, compression][w]["iterations"].mean for w in WEIGHTINGS]
            for protocol in ("literal", "doubled")
        )
        own = [best[compression][w]["iterations"].mean for w in WEIGHTINGS]
        draws = cells["doubled", compression]["draws_per_part"].mean
        lines += [
            f"ρ = {compression}: read literally (the gradient of ‖S(Xθ − y)‖² and the "
            f"step 1e-7), descent takes {literal[0] / published[0]:.2f} and "
            f"{literal[1] / published[1]:.2f} times the published iterations, at the "
            f"ratio {literal[1] / literal[0]:.2f} without to with weights (published "
            f"{published[1] / published[0]:.2f}). At twice that step it takes "
            f"{doubled[0] / published[0]:.2f} and {doubled[1] / published[1]:.2f} "
            "times as many.",
            f"  The weights act as a longer step: their mean q/k is {draws:.2f}. With "
            f"each method at its own best step it takes {own[0]:.1f} iterations with "
            f"them and {own[1]:.1f} without.",
        ]
        errors = [cells["doubled", compression][w]["error"].mean for w in WEIGHTINGS]
        lines.append(
            f"  The squared error against X⁺y is {errors[0]:.1e} and {errors[1]:.1e} "
            f"(published {PUBLISHED_ERROR[compression]})."
        )
    return "\n".join(lines)


def iterations_table(cells, runs: int) -> results.ResultTable:
    """Published and reproduced counts."""
    table = results.ResultTable(
        f"Table 2: iterations, mean of {runs} runs with 95% confidence interval",
        [
            "ρ",
            "weights",
            "published (20 runs)",
            "step 2e-7",
            "difference",
            "step 1e-7 (literal)",
            "q/k",
        ],
    )
    for compression in COMPRESSIONS:
        for weighting in WEIGHTINGS:
            published = PUBLISHED_ITERATIONS[compression, weighting]
            doubled = cells["doubled", compression]
            literal = cells["literal", compression]
            iterations = doubled[weighting]["iterations"]
            ratio = results.interval(doubled["draws_per_part"], 3)
            table.add_row(
                str(compression),
                "yes" if weighting == "weighted" else "no",
                f"{published:g}",
                results.interval(iterations, 1),
                f"{100 * (iterations.mean / published - 1):+z.1f}%",
                results.interval(literal[weighting]["iterations"], 1),
                ratio if weighting == "weighted" else "",
            )
    return table


def errors_table(cells, runs: int) -> results.ResultTable:
    """Squared distance from the least-squares solution of all the data."""
    table = results.ResultTable(
        f"Table 2: squared error against X⁺y, mean of {runs} runs, step 2e-7",
        ["ρ", "published", "weighted", "unweighted"],
    )
    for compression in COMPRESSIONS:
        cell = cells["doubled", compression]
        table.add_row(
            str(compression),
            PUBLISHED_ERROR[compression],
            *(
                results.interval_power_of_ten(cell[weighting]["error"])
                for weighting in WEIGHTINGS
            ),
        )
    return table


def best_step_table(best, runs: int) -> results.ResultTable:
    """What is left of the weights' advantage at each method's own best step."""
    table = results.ResultTable(
        f"Unbiased rescaling, step 2/(μ + L) of each run's own Hessian; {runs} runs",
        ["ρ", "weights", "iterations", "squared error", "condition L/μ"],
    )
    for compression in COMPRESSIONS:
        for weighting in WEIGHTINGS:
            cell = best[compression][weighting]
            table.add_row(
                str(compression),
                "yes" if weighting == "weighted" else "no",
                results.interval(cell["iterations"], 2),
                results.interval_power_of_ten(cell["error"]),
                results.interval(cell["condition"], 3),
            )
    return table


def iterations_figure(cells):
    """Bars of our counts beside the published ones."""
    figure, axes = results.new_figure(figsize=(7, 4))
    labels = []
    shown = [cell for cell in PUBLISHED_ITERATIONS if cell[0] in COMPRESSIONS]
    for position, (compression, weighting) in enumerate(shown):
        labels.append(f"ρ = {compression}\n{weighting}")
        published = PUBLISHED_ITERATIONS[compression, weighting]
        axes.bar(position - 0.27, published, 0.25, color="0.6", label="published")
        for offset, protocol, color, label in (
            (0.0, "doubled", "tab:blue", "step 2e-7"),
            (0.27, "literal", "tab:orange", "step 1e-7 (literal)"),
        ):
            summary = cells[protocol, compression][weighting]["iterations"]
            half = (summary.high - summary.low) / 2
            axes.bar(
                position + offset,
                summary.mean,
                0.25,
                yerr=half,
                color=color,
                label=label,
                capsize=3,
                error_kw={"linewidth": 1},
            )
    axes.set_xticks(range(len(labels)), labels)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("iterations to ‖∇‖ < 0.1")
    axes.set_title("Table 2: linear regression (bars: mean, whiskers: 95% CI)")
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False)
    return figure


def numbers(cells, best, runs: int, seed: int) -> dict[str, Any]:
    """Everything, for JSON."""

    return {
        "command": "python -m experiments linear-regression "
        f"--runs {runs} --seed {seed}",
        "published_iterations": {
            f"rho={compression} {weighting}": value
            for (compression, weighting), value in PUBLISHED_ITERATIONS.items()
        },
        "reproduced": {
            f"rho={compression} {protocol}": results.summary_numbers(cell)
            for (protocol, compression), cell in cells.items()
        },
        "own_best_step": {
            f"rho={compression}": results.summary_numbers(cell)
            for compression, cell in best.items()
        },
    }
