"""Table 1: logistic regression on MNIST, 4 against 9, on sampled parts."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import jaxwgc
from experiments.paper import descent
from experiments.runner import figures, tables
from experiments.runner.study import Numbers, Once, Study, Trial, command
from experiments.runner.tables import YES_NO, ResultTable, interval, table_of
from jaxwgc import sketching

DATA = Path(__file__).parents[1] / "data" / "mnist_4_9.npz"
NUM_TRAINING = 10_000
NUM_PARTS = descent.CODE.num_parts
COMPRESSIONS = (4, 10, 20)
WEIGHTINGS = ("weighted", "unweighted")
MAX_ITERATIONS = 500

# The paper's table 1: test error in percent, iterations; means of six runs.
PUBLISHED = {
    "rho=4 weighted": {"error": 7.09, "iterations": 25.5},
    "rho=4 unweighted": {"error": 9.08, "iterations": 24.67},
    "rho=10 weighted": {"error": 7.78, "iterations": 14.67},
    "rho=10 unweighted": {"error": 8.32, "iterations": 14.67},
    "rho=20 weighted": {"error": 8.17, "iterations": 12.5},
    "rho=20 unweighted": {"error": 8.5, "iterations": 12.67},
}
# Percentage points that weights save, by these numbers.
PUBLISHED_SAVING = {"rho=4": 1.99, "rho=10": 0.54, "rho=20": 0.33}
PUBLISHED_UNCOMPRESSED_ERROR = 4.37
# Neither step nor threshold is published. For the paper's protocol, both are fitted to
# the twelve numbers above over these grids. The units of the misfit are half a point,
# about two standard errors of a mean of six runs, and a tenth of the published
# iterations.
FIT_STEPS = np.geomspace(2e-4, 2e-3, 13)
FIT_NORMS = np.geomspace(30.0, 600.0, 80)
FIT_RUNS = 24
FIT_ITERATIONS = 100
ERROR_UNIT = 0.5
ITERATIONS_UNIT = 0.1
# For the other protocols, the step on the mean loss is the longest of these with which
# the uncompressed loss falls at every iteration.
STEP_SIZES = (1.0, 0.5, 0.2, 0.1)
# Rows rescaled by 1/√(rΠ) as in section 3.2; losses rescaled by 1/(qΠ), which is
# unbiased; no rescaling.
PROTOCOLS = ("paper", "unbiased", "plain")


class Digits(NamedTuple):
    """Images scaled to [0, 1] as rows of 784 pixels; labels 1 for a nine."""

    images: jax.Array
    labels: jax.Array


class Data(NamedTuple):
    """Images to train and to test, and leverage scores of the training images."""

    training: Digits
    test: Digits
    scores: jax.Array


class Rule(NamedTuple):
    """Step size of a protocol, and the gradient norm that ends it."""

    step_size: float
    stop_norm: float


class DrawnParts(NamedTuple):
    """Sampled parts of a random partition.

    Attributes:
        images: Images of the parts, (parts, rows, 784).
        labels: Labels of the images, (parts, rows).
        real_rows: 1 for an image, 0 for padding, (parts, rows).
        sample: The sample of the parts.
        paper_scales: Scale of the rows of each part in the paper, (parts,).
    """

    images: jax.Array
    labels: jax.Array
    real_rows: jax.Array
    sample: jaxwgc.parts.PartitionSample
    paper_scales: jax.Array


class Lane(NamedTuple):
    """One descent: its rule, scales of rows and losses by part, and weights."""

    rule: Rule
    row_scale: jax.Array
    loss_scale: jax.Array
    weights: jax.Array


def load_digits() -> tuple[Digits, Digits]:
    """Returns 10,000 images to train and 1,791 to test, in a fixed order."""
    with np.load(DATA) as file:
        images = file["images"].reshape(-1, 784).astype(np.float32) / 255
        labels = (file["labels"] == 9).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    images = jnp.asarray(images[order])
    labels = jnp.asarray(labels[order])
    training = Digits(images[:NUM_TRAINING], labels[:NUM_TRAINING])
    test = Digits(images[NUM_TRAINING:], labels[NUM_TRAINING:])
    return training, test


def logistic_loss(
    params: jax.Array, part: tuple[jax.Array, jax.Array, ArrayLike, ArrayLike]
) -> jax.Array:
    """Returns the sum of logistic losses of rows with weights and scales."""
    images, labels, row_weights, row_scales = part
    logits = row_scales * (images @ params)
    return jnp.sum(row_weights * (jax.nn.softplus(logits) - labels * logits))


def test_error(params: jax.Array, test: Digits) -> jax.Array:
    """Returns the percentage of misclassified test images."""
    return 100 * jnp.mean((test.images @ params > 0) != (test.labels > 0.5))


def draw_parts(key: jax.Array, data: Data, compression: int) -> DrawnParts:
    """Draws a random partition and a sample of its parts."""
    order_key, sample_key = jax.random.split(key)
    order = jax.random.permutation(order_key, NUM_TRAINING)
    num_parts = compression * NUM_PARTS
    rows, row_weights = jaxwgc.partition(order, num_parts)
    probabilities = jaxwgc.parts.partition_probabilities(data.scores[order], num_parts)
    sample = jaxwgc.parts.sample_partitions(
        sample_key, probabilities, num_distinct=NUM_PARTS
    )
    rows = rows[sample.indices]
    real_rows = row_weights[sample.indices]
    num_rows = jnp.sum(real_rows)
    return DrawnParts(
        images=data.training.images[rows],
        labels=data.training.labels[rows],
        real_rows=real_rows,
        sample=sample,
        paper_scales=jaxwgc.parts.rescaling_factors(sample, "paper", num_rows=num_rows),
    )


def trajectories(key: jax.Array, data: Data, compression: int) -> dict[str, jax.Array]:
    """Returns gradient norms and test errors (steps, 2, iterations) of the protocol.

    The second axis is with and without weights. No code is needed, since decoded
    gradients are exact.
    """
    drawn = draw_parts(key, data, compression)
    rows = (drawn.images * drawn.paper_scales[:, None, None]).reshape(-1, 784)
    labels = drawn.labels.ravel()
    counts = drawn.sample.counts.astype(rows.dtype)
    test = data.test
    part_weights = jnp.stack([counts, jnp.ones_like(counts)])
    row_weights = (part_weights[:, :, None] * drawn.real_rows).reshape(2, -1)
    steps = jnp.asarray(FIT_STEPS, rows.dtype)[:, None, None]

    def iterate(params, _):
        residuals = row_weights * (jax.nn.sigmoid(params @ rows.T) - labels)
        gradients = residuals @ rows
        wrong = (params @ test.images.T > 0) != (test.labels > 0.5)
        norms = jnp.linalg.norm(gradients, axis=-1)
        return params - steps * gradients, (norms, 100 * wrong.mean(axis=-1))

    start = jnp.zeros((len(FIT_STEPS), 2, 784), rows.dtype)
    _, (norms, errors) = jax.lax.scan(iterate, start, length=FIT_ITERATIONS)
    return {"norm": jnp.moveaxis(norms, 0, -1), "error": jnp.moveaxis(errors, 0, -1)}


def fit(key: jax.Array, data: Data, runs: int) -> Rule:
    """Fits step and threshold of the paper's protocol to its numbers."""
    misfit = np.zeros((len(FIT_NORMS), len(FIT_STEPS)))
    for compression in COMPRESSIONS:
        trial = functools.partial(trajectories, data=data, compression=compression)
        curves = jaxwgc.monte_carlo(trial, key, runs, batch_size=1)
        # Axes (thresholds, runs, steps, weightings, iterations).
        is_below = curves["norm"] < FIT_NORMS[:, None, None, None, None]
        first_below = is_below.argmax(axis=-1)
        ends = np.where(is_below.any(axis=-1), first_below, FIT_ITERATIONS - 1)
        all_errors = curves["error"][None]
        errors = np.take_along_axis(all_errors, ends[..., None], axis=-1)[..., 0]
        for index, weighting in enumerate(WEIGHTINGS):
            published = PUBLISHED[f"rho={compression} {weighting}"]
            mean_error = errors[..., index].mean(axis=1)
            mean_end = ends[..., index].mean(axis=1)
            error_deviation = mean_error - published["error"]
            end_deviation = mean_end / published["iterations"] - 1
            misfit += (error_deviation / ERROR_UNIT) ** 2
            misfit += (end_deviation / ITERATIONS_UNIT) ** 2
    norm_index, step_index = np.unravel_index(np.argmin(misfit), misfit.shape)
    return Rule(
        step_size=float(FIT_STEPS[step_index]),
        stop_norm=float(FIT_NORMS[norm_index]),
    )


def calibrate(training: Digits, test: Digits) -> Rule:
    """Returns step and stopping norm on the sum of losses from the uncompressed run.

    The step is the longest in the grid with which the loss falls at every iteration.
    The norm is that at which the test error first reaches the published 4.37%.
    """

    @jax.jit
    def evaluate(params):
        part = training.images, training.labels, 1 / NUM_TRAINING, 1.0
        loss, gradient = jax.value_and_grad(logistic_loss)(params, part)
        return loss, gradient, test_error(params, test)

    for step_size in STEP_SIZES:
        params = jnp.zeros(784)
        last = np.inf
        for _ in range(MAX_ITERATIONS):
            loss, gradient, error = evaluate(params)
            if loss >= last:
                break
            if error <= PUBLISHED_UNCOMPRESSED_ERROR:
                norm = float(jnp.linalg.norm(gradient))
                return Rule(step_size / NUM_TRAINING, norm * NUM_TRAINING)
            params = params - step_size * gradient
            last = loss
    raise AssertionError("no step size of the grid reaches the published error")


def one_run(
    key: jax.Array, data: Data, rules: dict[str, Rule], compression: int
) -> Numbers:
    """Descends on one random partition and sample in every protocol.

    All six descents, with and without weights, read the same images.
    """
    sample_key, descent_key = jax.random.split(key)
    drawn = draw_parts(sample_key, data, compression)
    unbiased = jaxwgc.parts.rescaling_factors(drawn.sample, "unbiased")
    ones = jnp.ones_like(drawn.paper_scales)
    counts = drawn.sample.counts.astype(ones.dtype)

    def descend(key, lane):
        row_scales = jnp.broadcast_to(lane.row_scale[:, None], drawn.real_rows.shape)
        row_weights = drawn.real_rows * lane.loss_scale[:, None]
        end = descent.descend(
            key,
            logistic_loss,
            jnp.zeros(784),
            parts=(drawn.images, drawn.labels, row_weights, row_scales),
            weights=lane.weights,
            step_size=lane.rule.step_size,
            stop_norm=lane.rule.stop_norm,
            max_iterations=MAX_ITERATIONS,
        )
        error = test_error(end.params, data.test)
        return {"error": error, "iterations": end.iterations}

    row_scales = {"paper": drawn.paper_scales, "unbiased": ones, "plain": ones}
    loss_scales = {"paper": ones, "unbiased": unbiased**2, "plain": ones}
    lanes = []
    for protocol in PROTOCOLS:
        for weights in (counts, ones):
            lanes.append(
                Lane(
                    rule=rules[protocol],
                    row_scale=row_scales[protocol],
                    loss_scale=loss_scales[protocol],
                    weights=weights,
                )
            )
    keys = jax.random.split(descent_key, len(lanes))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    ends = jax.vmap(descend)(keys, stacked)
    ends = jax.tree.map(lambda leaf: leaf.reshape(len(PROTOCOLS), 2), ends)
    numbers: Numbers = {"draws_per_part": drawn.sample.num_draws / NUM_PARTS}
    for row, protocol in enumerate(PROTOCOLS):
        numbers[protocol] = {
            weighting: {name: leaf[row, column] for name, leaf in ends.items()}
            for column, weighting in enumerate(WEIGHTINGS)
        }
        weighted_error, unweighted_error = ends["error"][row]
        numbers[protocol]["error_saved"] = unweighted_error - weighted_error
    return numbers


@command("mnist", "Table 1, MNIST 4 against 9", prefix="table1")
def mnist(runs: int = 200, seed: int = 0) -> Study:
    """Measures table 1: test error and iterations on MNIST, by weights.

    Args:
        runs: Random partitions and samples for each compression factor.
    """
    # The fit has other runs than the tables.
    fit_key, key = jax.random.split(jax.random.key(seed))

    @functools.cache
    def prepared():
        training, test = load_digits()
        scores = jax.jit(sketching.leverage_scores)(training.images)
        data = Data(training, test, scores)
        on_sum = calibrate(training, test)
        paper = fit(fit_key, data, min(runs, FIT_RUNS))
        return data, {"paper": paper, "unbiased": on_sum, "plain": on_sum}

    def fitted_rule():
        _, rules = prepared()
        return rules["paper"]

    def trial(key, compression):
        data, rules = prepared()
        return one_run(key, data, rules, compression)

    return Study(
        {
            "rules": {"paper": Once(fitted_rule)},
            "reproduced": {f"rho={c}": Trial(trial, c) for c in COMPRESSIONS},
        },
        key=key,
        runs=runs,
        batch_size=20,
        tables={"": main_table, "fit": fit_table, "weights": weights_table},
        figures={"": draw},
    )


def cells(numbers: Numbers) -> list[dict[str, Numbers]]:
    """Returns the rows of the paper's table, with the runs of each protocol."""
    rows = []
    for compression, record in numbers["reproduced"].items():
        for weighting in WEIGHTINGS:
            row = {protocol: record[protocol][weighting] for protocol in PROTOCOLS}
            row["ρ"] = compression.removeprefix("rho=")
            row["weights"] = YES_NO[weighting == "weighted"]
            row["published"] = PUBLISHED[f"{compression} {weighting}"]
            rows.append(row)
    return rows


main_table = table_of(
    "Table 1: test error in percent / iterations, mean of {runs} runs with 95% "
    "confidence interval",
    {
        "ρ": "{ρ}",
        "weights": "{weights}",
        "published (6 runs)": "{published[error]:g} / {published[iterations]:g}",
        **{name: f"{{{name}[error]}} / {{{name}[iterations]:1}}" for name in PROTOCOLS},
    },
    cells,
)


def fit_table(numbers: Numbers) -> ResultTable:
    """Returns the paper's protocol with fitted step and threshold, by number."""

    def row(cell, quantity, name, digits):
        published = cell["published"][quantity]
        summary = cell["paper"][quantity]
        # The standard error of a mean of six runs.
        spread = summary.standard_error * np.sqrt(numbers["runs"] / 6)
        deviation = (published - summary.mean) / spread
        return [
            cell["ρ"],
            cell["weights"],
            name,
            f"{published:g}",
            interval(summary, digits),
            f"{spread:.2f}",
            f"{deviation:+.1f}",
        ]

    rows = []
    for cell in cells(numbers):
        rows.append(row(cell, "error", "error, %", digits=2))
        rows.append(row(cell, "iterations", "iterations", digits=1))
    rule = numbers["rules"]["paper"]
    return ResultTable(
        f"Table 1 fitted: step {rule.step_size:.2g}, threshold {rule.stop_norm:.0f}, "
        "two parameters to twelve numbers. Deviations are in standard errors of a mean "
        "of six runs",
        ["ρ", "weights", "", "published", "fitted", "standard error", "deviation"],
        rows,
    )


weights_table = table_of(
    "Test error that the weights save, percentage points, {runs} paired runs",
    {
        "ρ": lambda row: row["name"].removeprefix("rho="),
        "published": lambda row: f"{PUBLISHED_SAVING[row['name']]:.2f}",
        **{name: f"{{{name}[error_saved]:3}}" for name in PROTOCOLS},
        "q/k": "{draws_per_part:3}",
    },
    "reproduced",
)


def draw(numbers: Numbers) -> figures.Figure:
    """Draws test errors of the paper's protocol and the published ones."""
    figure, (axes,) = figures.new_figure(7, 4.2)
    positions = np.arange(len(COMPRESSIONS))
    names = [f"rho={c}" for c in COMPRESSIONS]

    def draw_errors(weighting, color, marker, offset):
        published = [PUBLISHED[f"{name} {weighting}"]["error"] for name in names]
        axes.plot(
            positions + offset,
            published,
            color=color,
            marker=marker,
            markerfacecolor="white",
            linestyle=":",
            label=f"published, {weighting} (6 runs)",
        )
        runs = [numbers["reproduced"][name]["paper"] for name in names]
        errors = [run[weighting]["error"] for run in runs]
        axes.errorbar(
            positions + offset,
            [error.mean for error in errors],
            yerr=[tables.half_width(error) for error in errors],
            capsize=3,
            color=color,
            marker=marker,
            label=f"reproduced, {weighting} ({numbers['runs']} runs, 95% CI)",
        )

    draw_errors("weighted", "tab:blue", "o", offset=-0.06)
    draw_errors("unweighted", "tab:red", "s", offset=0.06)
    figures.threshold(
        axes,
        PUBLISHED_UNCOMPRESSED_ERROR,
        "uncompressed, published",
        at=positions[-1] + 0.25,
        linestyle="--",
        xytext=(0, -4),
        ha="right",
        va="top",
    )
    axes.set_xticks(positions, [str(compression) for compression in COMPRESSIONS])
    axes.set_xlim(-0.3, positions[-1] + 0.3)
    axes.set_ylim(bottom=min(3.8, axes.get_ylim()[0]))
    axes.set(xlabel="compression factor ρ = N/r", ylabel="test error (%)")
    axes.set_title("Table 1: MNIST 4 vs 9, 29 of 50 workers lost in every iteration")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.46))
    return figure
