"""Figure 2: the gradient norm by iteration at rho = 2, with and without weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import descent, linear_regression, results

COMPRESSION = 2
NUM_ITERATIONS = 200
BATCH_SIZE = 250
COLORS = {"weighted": "tab:blue", "unweighted": "tab:red"}


def one_run(key: jax.Array) -> dict[str, jax.Array]:
    """Gradient norms of both methods on one data set and sample."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    _, small, _ = linear_regression.draw_sample(sample_key, COMPRESSION)
    weights = {
        "weighted": small.weights,
        "unweighted": jnp.ones_like(small.weights),
    }
    return {
        weighting: descent.gradient_norms(
            descent_key,
            linear_regression.squared_error,
            jnp.zeros(linear_regression.NUM_FEATURES),
            small.parts,
            weights[weighting],
            linear_regression.PROTOCOLS["doubled"],
            NUM_ITERATIONS,
        )
        for weighting, descent_key in zip(weights, descent_keys, strict=True)
    }


def figure2(runs: int = 1_000, seed: int = 0, out: Path = Path("results")) -> None:
    """Figure 2: convergence of the gradient norm at ρ = 2, with and without weights.

    Args:
        runs: Data sets, each solved with both methods.
        seed: Of the random numbers.
        out: Folder for the numbers (JSON) and the figure (PNG).
    """
    folder = results.Results("Figure 2, convergence of linear regression", out, runs)
    with jax.enable_x64(True), results.progress_bar() as progress:
        norms = results.run_trials(
            progress,
            f"gradient norms, {NUM_ITERATIONS} iterations",
            one_run,
            jax.random.key(seed),
            runs,
            BATCH_SIZE,
        )
    summaries = jaxwgc.summarize(norms)
    summaries = {weighting: summaries[weighting] for weighting in COLORS}
    crossings = {
        weighting: int(np.argmax(summary.mean < linear_regression.STOP_NORM))
        for weighting, summary in summaries.items()
    }
    table = results.ResultTable(
        f"Figure 2: mean gradient norm of {runs} runs with 95% confidence interval",
        ["iteration", *summaries],
    )
    for iteration in range(0, NUM_ITERATIONS, 50):
        table.add_row(
            str(iteration),
            *(
                results.interval_power_of_ten(
                    jaxwgc.Summary(*(field[iteration] for field in summary))
                )
                for summary in summaries.values()
            ),
        )
    table.add_row(
        f"mean below {linear_regression.STOP_NORM:g} after",
        *(str(crossing) for crossing in crossings.values()),
    )
    table.print()
    folder.add_table("figure2.md", table)
    folder.add_json(
        "figure2.json",
        {
            "command": f"python -m experiments figure2 --runs {runs} --seed {seed}",
            "mean_below_stop_norm_after": crossings,
            "gradient_norm": results.summary_numbers(summaries),
        },
    )
    folder.add_figure("figure2.png", draw(norms, summaries, runs))
    folder.save()


def draw(norms, summaries, runs: int):
    """Means with their confidence band, and where 90% of the runs lie."""
    figure, axes = results.new_figure(figsize=(7, 4.5))
    iterations = np.arange(NUM_ITERATIONS)
    for weighting, summary in summaries.items():
        color = COLORS[weighting]
        low, high = np.quantile(norms[weighting], [0.05, 0.95], axis=0)
        axes.fill_between(iterations, low, high, color=color, alpha=0.15, linewidth=0)
        axes.fill_between(
            iterations,
            np.maximum(summary.low, summary.mean / 10),
            summary.high,
            color=color,
            alpha=0.35,
            linewidth=0,
        )
        axes.plot(iterations, summary.mean, color=color, label=f"{weighting}, mean")
    axes.axhline(linear_regression.STOP_NORM, color="0.3", linestyle=":", linewidth=1)
    axes.annotate(
        "termination, ‖∇‖ < 0.1",
        (2, linear_regression.STOP_NORM),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
        color="0.3",
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-3)
    axes.set_xlim(0, NUM_ITERATIONS - 1)
    axes.set_xlabel("iteration")
    axes.set_ylabel("norm of the decoded gradient")
    axes.set_title(
        f"Figure 2: ρ = 2, {runs} runs, 29 of 50 workers lost in every iteration\n"
        "dark band: 95% CI of the mean, light band: 90% of the runs",
        fontsize=10,
    )
    axes.legend(frameon=False)
    return figure
