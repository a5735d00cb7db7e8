"""Table 1: logistic regression on MNIST, 4 against 9, on sampled parts."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
PROTOCOLS = "paper", "unbiased", "plain"


class Digits(NamedTuple):
    """Images scaled to [0, 1] as rows of 784 pixels; labels 1 for a nine."""

    images: jax.Array
    labels: jax.Array


class Rule(NamedTuple):
    """Step size of a protocol, and the gradient norm that ends it."""

    step_size: float
    stop_norm: float


def load_digits() -> tuple[Digits, Digits]:
    """Returns 10,000 images to train and 1,791 to test, in a fixed order."""
    with np.load(DATA) as file:
        images = file["images"].reshape(-1, 784).astype(np.float32) / 255
        labels = (file["labels"] == 9).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    images = jnp.asarray(images[order])
    labels = jnp.asarray(labels[order])
    split = slice(NUM_TRAINING), slice(NUM_TRAINING, None)
    training, test = (Digits(images[part], labels[part]) for part in split)
    return training, test


def logistic_loss(params: jax.Array, part: Any) -> jax.Array:
    """Returns the sum of logistic losses of rows with weights and scales."""
    images, labels, row_weights, row_scales = part
    logits = row_scales * (images @ params)
    return jnp.sum(row_weights * (jax.nn.softplus(logits) - labels * logits))


def test_error(params: jax.Array, test: Digits) -> jax.Array:
    """Returns the percentage of misclassified test images."""
    return 100 * jnp.mean((test.images @ params > 0) != (test.labels > 0.5))


def draw_parts(key: jax.Array, data: Any, compression: int) -> tuple[Any, ...]:
    """Draws a random partition and a sample of its parts; `one_run` explains `data`.

    Returns:
        Images and labels of the sampled parts, which rows are no padding, the sample,
        and the scale of rows of each part in the paper.
    """
    training, _, scores = data
    order_key, sample_key = jax.random.split(key)
    order = jax.random.permutation(order_key, NUM_TRAINING)
    num_parts = compression * NUM_PARTS
    rows, row_weights = jaxwgc.partition(order, num_parts)
    probabilities = sketching.partition_probabilities(scores[order], num_parts)
    draw = sketching.sample_partitions
    sample = draw(sample_key, probabilities, num_distinct=NUM_PARTS)
    rows = rows[sample.indices]
    real_rows = row_weights[sample.indices]
    paper = sketching.rescaling_factors(sample, "paper", num_rows=jnp.sum(real_rows))
    return training.images[rows], training.labels[rows], real_rows, sample, paper


def trajectories(key: jax.Array, data: Any, compression: int) -> dict[str, jax.Array]:
    """Returns gradient norms and test errors (steps, 2, iterations) of the protocol.

    The second axis is with and without weights. No code is needed, since decoded
    gradients are exact.
    """
    images, labels, real_rows, sample, paper = draw_parts(key, data, compression)
    rows = (images * paper[:, None, None]).reshape(-1, 784)
    labels = labels.ravel()
    counts = sample.counts.astype(rows.dtype)
    test = data[1]
    both = jnp.stack([counts, jnp.ones_like(counts)])[:, :, None] * real_rows
    row_weights = both.reshape(2, -1)
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


def fit(key: jax.Array, data: Any, runs: int) -> Rule:
    """Fits step and threshold of the paper's protocol to its numbers."""
    misfit = np.zeros((len(FIT_NORMS), len(FIT_STEPS)))
    for compression in COMPRESSIONS:
        trial = functools.partial(trajectories, data=data, compression=compression)
        curves = jaxwgc.monte_carlo(trial, key, runs, batch_size=1)
        # Axes (thresholds, runs, steps, weightings, iterations).
        below = curves["norm"] < FIT_NORMS[:, None, None, None, None]
        last = FIT_ITERATIONS - 1
        ended = np.where(below.any(-1), below.argmax(-1), last)
        errors = np.take_along_axis(curves["error"][None], ended[..., None], -1)[..., 0]
        for index, weighting in enumerate(WEIGHTINGS):
            error, iterations = PUBLISHED[f"rho={compression} {weighting}"].values()
            off = errors[..., index].mean(1) - error, ended[..., index].mean(1)
            misfit += (off[0] / ERROR_UNIT) ** 2
            misfit += ((off[1] / iterations - 1) / ITERATIONS_UNIT) ** 2
    norm, step = np.unravel_index(np.argmin(misfit), misfit.shape)
    return Rule(float(FIT_STEPS[step]), float(FIT_NORMS[norm]))


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


def one_run(key: jax.Array, data: Any, rules: dict[str, Rule], compression: int) -> Any:
    """Descends on one random partition and sample in every protocol.

    All six descents, with and without weights, read the same images. `data` has both
    sets of images and the leverage scores of the training images.
    """
    test = data[1]
    sample_key, descent_key = jax.random.split(key)
    images, labels, real_rows, sample, paper = draw_parts(sample_key, data, compression)
    unbiased = sketching.rescaling_factors(sample, "unbiased")
    ones = jnp.ones_like(paper)
    counts = sample.counts.astype(ones.dtype)

    def descend(key, step_size, stop_norm, row_scale, loss_scale, weights):
        row_scales = jnp.broadcast_to(row_scale[:, None], real_rows.shape)
        part = images, labels, real_rows * loss_scale[:, None], row_scales
        end = descent.descend(
            key,
            logistic_loss,
            jnp.zeros(784),
            part,
            weights,
            step_size,
            stop_norm,
            MAX_ITERATIONS,
        )
        return {"error": test_error(end.params, test), "iterations": end.iterations}

    scales = {"paper": (paper, ones), "plain": (ones, ones)}
    scales["unbiased"] = ones, unbiased**2
    lanes = [(*rules[p], *scales[p], w) for p in PROTOCOLS for w in (counts, ones)]
    keys = jax.random.split(descent_key, len(lanes))
    ends = jax.vmap(descend)(keys, *map(jnp.stack, zip(*lanes, strict=True)))
    found: dict[str, Any] = {"draws_per_part": sample.num_draws / NUM_PARTS}
    for lane, protocol in enumerate(PROTOCOLS):
        both = jax.tree.map(lambda leaf, at=2 * lane: leaf[at : at + 2], ends)
        found[protocol] = {
            weighting: {name: leaf[second] for name, leaf in both.items()}
            for second, weighting in enumerate(WEIGHTINGS)
        } | {"error_saved": both["error"][1] - both["error"][0]}
    return found


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
        data = training, test, jax.jit(sketching.leverage_scores)(training.images)
        on_sum = calibrate(training, test)
        paper = fit(fit_key, data, min(runs, FIT_RUNS))
        return data, {"paper": paper, "unbiased": on_sum, "plain": on_sum}

    def trial(key, compression):
        return one_run(key, *prepared(), compression)

    return Study(
        {
            "rules": {"paper": Once(lambda: prepared()[1]["paper"])},
            "reproduced": {f"rho={c}": Trial(trial, c) for c in COMPRESSIONS},
        },
        key=key,
        runs=runs,
        batch_size=20,
        tables={"": main_table, "fit": fit_table, "weights": weights_table},
        figures={"": draw},
    )


def cells(numbers: Numbers) -> list[dict[str, Any]]:
    """Returns the rows of the paper's table, with the runs of each protocol."""
    return [
        {"ρ": compression.removeprefix("rho="), "weights": YES_NO[w == "weighted"]}
        | {"published": PUBLISHED[f"{compression} {w}"]}
        | {protocol: record[protocol][w] for protocol in PROTOCOLS}
        for compression, record in numbers["reproduced"].items()
        for w in WEIGHTINGS
    ]


SHOWN = "{%s[error]} / {%s[iterations]:1}"
main_table = table_of(
    "Table 1: test error in percent / iterations, mean of {runs} runs with 95% "
    "confidence interval",
    {
        "ρ": "{ρ}",
        "weights": "{weights}",
        "published (6 runs)": "{published[error]:g} / {published[iterations]:g}",
        **{name: SHOWN.replace("%s", name) for name in PROTOCOLS},
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
        return (
            *(cell["ρ"], cell["weights"], name),
            *(f"{published:g}", interval(summary, digits), f"{spread:.2f}"),
            f"{(published - summary.mean) / spread:+.1f}",
        )

    rule = numbers["rules"]["paper"]
    quantities = ("error", "error, %", 2), ("iterations", "iterations", 1)
    return ResultTable(
        f"Table 1 fitted: step {rule.step_size:.2g}, threshold {rule.stop_norm:.0f}, "
        "two parameters to twelve numbers. Deviations are in standard errors of a mean "
        "of six runs",
        ["ρ", "weights", "", "published", "fitted", "standard error", "deviation"],
        [row(cell, *quantity) for cell in cells(numbers) for quantity in quantities],
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
    looks = ("tab:blue", "o", -0.06), ("tab:red", "s", 0.06)
    for weighting, (color, marker, offset) in zip(WEIGHTINGS, looks):
        at = positions + offset
        published = [PUBLISHED[f"{name} {weighting}"]["error"] for name in names]
        runs = [numbers["reproduced"][name]["paper"] for name in names]
        errors = [run[weighting]["error"] for run in runs]
        look = {"marker": marker, "color": color}
        hollow = look | {"markerfacecolor": "white", "linestyle": ":"}
        hollow["label"] = f"published, {weighting} (6 runs)"
        axes.plot(at, published, **hollow)
        look["label"] = f"reproduced, {weighting} ({numbers['runs']} runs, 95% CI)"
        means, halves = zip(*((own.mean, tables.half_width(own)) for own in errors))
        axes.errorbar(at, means, yerr=halves, capsize=3, **look)
    look = {"xytext": (0, -4), "ha": "right", "va": "top", "linestyle": "--"}
    at = positions[-1] + 0.25
    figures.threshold(
        axes, PUBLISHED_UNCOMPRESSED_ERROR, "uncompressed, published", at, **look
    )
    axes.set_xticks(positions, [str(compression) for compression in COMPRESSIONS])
    axes.set_xlim(-0.3, positions[-1] + 0.3)
    axes.set_ylim(bottom=min(3.8, axes.get_ylim()[0]))
    axes.set(xlabel="compression factor ρ = N/r", ylabel="test error (%)")
    axes.set_title("Table 1: MNIST 4 vs 9, 29 of 50 workers lost in every iteration")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.46))
    return figure
