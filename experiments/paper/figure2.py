"""Figure 2: gradient norm by iteration at ρ = 2, with and without weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper import descent, linear_regression
from experiments.runner import figures
from experiments.runner.study import Numbers, Study, Trial, run
from experiments.runner.tables import ResultTable, at, interval_power_of_ten

COMPRESSION = 2
NUM_ITERATIONS = 200
COLORS = {"weighted": "tab:blue", "unweighted": "tab:red"}


def figure2(runs: int = 1_000, seed: int = 0, out: Path = Path("results")) -> None:
    """Figure 2: convergence of the gradient norm at ρ = 2, with and without weights.

    Args:
        runs: Data sets, each solved with both methods.
        seed: Seed of the random numbers.
        out: Folder for the numbers (JSON) and the figure (PNG).
    """
    study = Study(
        {"gradient_norm": Trial(one_run)},
        key=jax.random.key(seed),
        runs=runs,
        batch_size=250,
        x64=True,
        reduce=lambda norms: {name: reduce(norms[name]) for name in COLORS},
        tables={"": tabulate},
        figures={"": draw},
    )
    title = "Figure 2, convergence of linear regression"
    run("figure2", title, {"": lambda: study}, runs, seed, out)


def one_run(key: jax.Array) -> Numbers:
    """Returns gradient norms of both methods on one data set and sample."""
    sample_key, *descent_keys = jax.random.split(key, 3)
    _, (small,), _ = linear_regression.draw_sample(sample_key, COMPRESSION)
    problem = linear_regression.problem(small.parts)
    step_size = linear_regression.PROTOCOLS["doubled"]

    def norms(key, weights):
        return descent.gradient_norms(key, *problem, weights, step_size, NUM_ITERATIONS)

    both = jnp.stack([small.weights, jnp.ones_like(small.weights)])
    curves = jax.vmap(norms)(jnp.stack(descent_keys), both)
    return dict(zip(linear_regression.WEIGHTINGS, curves, strict=True))


def reduce(norms: np.ndarray) -> Numbers:
    """Returns the mean and the central 90% of the runs."""
    quantiles = np.quantile(norms, [0.05, 0.95], axis=0)
    return {"norm": jaxwgc.summarize(norms), "quantiles_5_95": quantiles}


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row for every fifty iterations."""
    norms = [record["norm"] for record in numbers["gradient_norm"].values()]
    level = linear_regression.STOP_NORM
    rows = [
        [str(step), *(interval_power_of_ten(at(norm, step)) for norm in norms)]
        for step in range(0, NUM_ITERATIONS, 50)
    ]
    below = [str(np.argmax(norm.mean < level)) for norm in norms]
    return ResultTable(
        f"Figure 2: mean gradient norm of {numbers['runs']:,} runs with 95% confidence "
        "interval",
        ["iteration", *numbers["gradient_norm"]],
        [*rows, [f"mean below {level:g} after", *below]],
    )


def draw(numbers: Numbers) -> figures.Figure:
    """Draws means with confidence bands, and the central 90% of the runs."""
    figure, (axes,) = figures.new_figure(7, 4.5)
    iterations = np.arange(NUM_ITERATIONS)
    for weighting, record in numbers["gradient_norm"].items():
        band = {"color": COLORS[weighting], "linewidth": 0}
        axes.fill_between(iterations, *record["quantiles_5_95"], alpha=0.15, **band)
        interval = figures.log_interval(record["norm"])
        axes.fill_between(iterations, *interval, alpha=0.35, **band)
        look = {"color": COLORS[weighting], "label": f"{weighting}, mean"}
        axes.plot(iterations, record["norm"].mean, **look)
    text = "termination, ‖∇‖ < 0.1"
    level = linear_regression.STOP_NORM
    figures.threshold(axes, level, text, 2, xytext=(0, 4), linestyle=":")
    axes.set_title(
        f"Figure 2: ρ = 2, {numbers['runs']} runs, 29 of 50 workers lost in every "
        "iteration\ndark band: 95% CI of the mean, light band: 90% of the runs"
    )
    axes.set(yscale="log", ylim=(1e-3, None), xlim=(0, NUM_ITERATIONS - 1))
    axes.set(xlabel="iteration", ylabel="norm of the decoded gradient")
    axes.legend()
    return figure
