"""Table 1: logistic regression on MNIST, 4 against 9, on sampled parts."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments import descent, results
from jaxwgc import sketching

DATA = Path(__file__).parent / "data" / "mnist_4_9.npz"
NUM_TRAINING = 10_000
NUM_PARTS = descent.CODE.num_parts
COMPRESSIONS = (4, 10, 20)
WEIGHTINGS = ("weighted", "unweighted")
MAX_ITERATIONS = 500
BATCH_SIZE = 20

# The paper's table 1: test error in percent, iterations; means of six runs.
PUBLISHED = {
    (4, "weighted"): (7.09, 25.5),
    (4, "unweighted"): (9.08, 24.67),
    (10, "weighted"): (7.78, 14.67),
    (10, "unweighted"): (8.32, 14.67),
    (20, "weighted"): (8.17, 12.5),
    (20, "unweighted"): (8.5, 12.67),
}
PUBLISHED_UNCOMPRESSED_ERROR = 4.37
# The step is not published: the longest of these, times the mean loss, with which the
# uncompressed loss falls at every iteration.
STEP_SIZES = (1.0, 0.5, 0.2, 0.1)
PROTOCOLS = {
    "paper": "rows rescaled by 1/√(rΠ), as in section 3.2",
    "unbiased": "losses rescaled by 1/(qΠ), so that they stand for all the data",
    "plain": "no rescaling",
}


class Digits(NamedTuple):
    """Images scaled to [0, 1] as rows of 784 pixels; labels 1 for a nine."""

    images: jax.Array
    labels: jax.Array


class Rule(NamedTuple):
    """When a protocol steps how far, and the gradient norm that ends it."""

    step_size: float
    stop_norm: float


def load_digits() -> tuple[Digits, Digits]:
    """10,000 images to train and 1,791 to test, in an order that is always the same."""
    with np.load(DATA) as file:
        images = file["images"].reshape(-1, 784).astype(np.float32) / 255
        labels = (file["labels"] == 9).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = jnp.asarray(images[order]), jnp.asarray(labels[order])
    return (
        Digits(images[:NUM_TRAINING], labels[:NUM_TRAINING]),
        Digits(images[NUM_TRAINING:], labels[NUM_TRAINING:]),
    )


def logistic_loss(params: jax.Array, part: Any) -> jax.Array:
    """Sum of the logistic losses of the rows, each with its weight and scale."""
    images, labels, row_weights, row_scales = part
    logits = row_scales * (images @ params)
    return jnp.sum(row_weights * (jax.nn.softplus(logits) - labels * logits))


def test_error(params: jax.Array, test: Digits) -> jax.Array:
    """Share of the test images on the wrong side, in percent."""
    return 100 * jnp.mean((test.images @ params > 0) != (test.labels > 0.5))


def calibrate(training: Digits, test: Digits) -> tuple[dict[str, Rule], dict[str, Any]]:
    """Step and stopping norm from the uncompressed run alone, one pair a protocol.

    The step is the longest in the grid with which the loss falls at every iteration;
    descent stops at the gradient norm where the test error first reaches the published
    4.37%. In the protocol of the paper the uncompressed run is the one with rho = 1:
    all twenty parts, rescaled by 1/sqrt(N Pi) = sqrt(20 / N), up to the differences of
    the leverage of parts. That scales rows, so parameters by the inverse, steps by its
    square and gradients by itself.
    """

    @jax.jit
    def evaluate(params):
        def mean_loss(params):
            part = (training.images, training.labels, 1.0, 1.0)
            return logistic_loss(params, part) / NUM_TRAINING

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        return loss, gradient, test_error(params, test)

    for step_size in STEP_SIZES:
        params = jnp.zeros(784)
        last = np.inf
        for iterations in range(MAX_ITERATIONS):
            loss, gradient, error = evaluate(params)
            if loss >= last:
                break
            if error <= PUBLISHED_UNCOMPRESSED_ERROR:
                norm = float(jnp.linalg.norm(gradient))
                on_sum = Rule(step_size / NUM_TRAINING, norm * NUM_TRAINING)
                scale = np.sqrt(NUM_PARTS / NUM_TRAINING)
                on_rows = Rule(on_sum.step_size / scale**2, on_sum.stop_norm * scale)
                rules = {"paper": on_rows, "unbiased": on_sum, "plain": on_sum}
                return rules, {
                    "step_on_mean_loss": step_size,
                    "iterations": iterations,
                    "error_percent": float(error),
                    "mean_gradient_norm": norm,
                }
            params, last = params - step_size * gradient, loss
    raise AssertionError("no step size of the grid reaches the published error")


def one_run(
    key: jax.Array,
    training: Digits,
    test: Digits,
    scores: jax.Array,
    rules: dict[str, Rule],
    compression: int,
) -> dict[str, Any]:
    """One random partition and sample, descended in every protocol, with and without.

    All six descents read the same images, side by side.
    """
    order_key, sample_key, descent_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, NUM_TRAINING)
    num_parts = compression * NUM_PARTS
    rows, row_weights = jaxwgc.partition(order, num_parts)
    sample = sketching.sample_partitions(
        sample_key,
        sketching.partition_probabilities(scores[order], num_parts),
        num_distinct=NUM_PARTS,
    )
    rows, real_rows = rows[sample.indices], row_weights[sample.indices]
    images, labels = training.images[rows], training.labels[rows]

    num_rows = jnp.sum(real_rows)
    paper = sketching.rescaling_factors(sample, "paper", num_rows=num_rows)
    unbiased = sketching.rescaling_factors(sample, "unbiased")
    ones = jnp.ones_like(paper)
    counts = sample.counts.astype(ones.dtype)

    def descend(key, step_size, stop_norm, row_scale, loss_scale, weights):
        part = (
            images,
            labels,
            real_rows * loss_scale[:, None],
            jnp.broadcast_to(row_scale[:, None], real_rows.shape),
        )
        found = descent.descend(
            key,
            logistic_loss,
            jnp.zeros(784),
            part,
            weights,
            step_size,
            stop_norm,
            MAX_ITERATIONS,
        )
        return {"error": test_error(found.params, test), "iterations": found.iterations}

    scales = {
        "paper": (paper, ones),
        "unbiased": (ones, unbiased**2),
        "plain": (ones, ones),
    }
    lanes = [
        (*rules[protocol], *scales[protocol], weights)
        for protocol in PROTOCOLS
        for weights in (counts, ones)
    ]
    keys = jax.random.split(descent_key, len(lanes))
    found = jax.vmap(descend)(keys, *map(jnp.stack, zip(*lanes, strict=True)))
    cells = [(p, weighting) for p in PROTOCOLS for weighting in WEIGHTINGS]
    run: dict[str, Any] = {p: {} for p in PROTOCOLS}
    for lane, (protocol, weighting) in enumerate(cells):
        run[protocol][weighting] = jax.tree.map(lambda leaf, i=lane: leaf[i], found)
    for protocol in PROTOCOLS:
        difference = run[protocol]["unweighted"]["error"]
        difference -= run[protocol]["weighted"]["error"]
        run[protocol]["error_saved"] = difference
    run["draws_per_part"] = sample.num_draws / NUM_PARTS
    return run


def mnist(runs: int = 200, seed: int = 0, out: Path = Path("results")) -> None:
    """Table 1: test error and iterations on MNIST, with and without weights.

    Args:
        runs: Random partitions and samples for each compression factor.
        seed: Of the random numbers.
        out: Folder for the tables (JSON and Markdown) and the figure (PNG).
    """
    folder = results.Results("Table 1, MNIST 4 against 9", out, runs)
    training, test = load_digits()
    rules, uncompressed = calibrate(training, test)
    results.console.print(
        f"Uncompressed: test error {uncompressed['error_percent']:.2f}% (published "
        f"{PUBLISHED_UNCOMPRESSED_ERROR}%) after {uncompressed['iterations']} "
        f"iterations with the step {uncompressed['step_on_mean_loss']} on the mean "
        "loss. That run gives step and stopping norm of all others.",
        highlight=False,
    )
    scores = jax.jit(sketching.leverage_scores)(training.images)
    summaries = {}
    with results.progress_bar() as progress:
        for compression in COMPRESSIONS:
            trial = functools.partial(
                one_run,
                training=training,
                test=test,
                scores=scores,
                rules=rules,
                compression=compression,
            )
            trials = results.run_trials(
                progress,
                f"ρ = {compression}",
                trial,
                jax.random.key(seed),
                runs,
                BATCH_SIZE,
            )
            summaries[compression] = jaxwgc.summarize(trials)
    tables = {"table1.md": main_table(summaries, runs)}
    tables["table1_weights.md"] = weights_table(summaries, runs)
    for name, table in tables.items():
        table.print()
        folder.add_table(name, table)
    results.console.print(note(summaries), highlight=False)
    folder.add_json("table1.json", numbers(summaries, uncompressed, rules, runs, seed))
    folder.add_figure("table1.png", draw(summaries, runs))
    folder.save()


def main_table(summaries, runs: int) -> results.ResultTable:
    """Published and reproduced, error and iterations in one cell."""
    table = results.ResultTable(
        f"Table 1: test error in percent / iterations, mean of {runs} runs with 95% "
        "confidence interval",
        ["ρ", "weights", "published (6 runs)", "paper", "unbiased", "plain"],
    )
    for (compression, weighting), published in PUBLISHED.items():
        if compression not in summaries:
            continue
        cells = [summaries[compression][protocol][weighting] for protocol in PROTOCOLS]
        table.add_row(
            str(compression),
            "yes" if weighting == "weighted" else "no",
            f"{published[0]:g} / {published[1]:g}",
            *(
                f"{results.interval(cell['error'])} / "
                f"{results.interval(cell['iterations'], 1)}"
                for cell in cells
            ),
        )
    return table


def weights_table(summaries, runs: int) -> results.ResultTable:
    """What the weights save, paired by run."""
    table = results.ResultTable(
        f"Test error that the weights save, percentage points, {runs} paired runs",
        ["ρ", "published", "paper", "unbiased", "plain", "q/k"],
    )
    for compression in COMPRESSIONS:
        cells = summaries[compression]
        saved = (
            PUBLISHED[compression, "unweighted"][0]
            - PUBLISHED[compression, "weighted"][0]
        )
        table.add_row(
            str(compression),
            f"{saved:.2f}",
            *(results.interval(cells[p]["error_saved"], 3) for p in PROTOCOLS),
            results.interval(cells["draws_per_part"], 3),
        )
    return table


def note(summaries) -> str:
    """Where the numbers differ from the published ones."""
    lines = ["", "Protocols:"]
    lines += [f"  {name}: {text}" for name, text in PROTOCOLS.items()]
    lines += ["", "Where this differs from the paper, by more than the interval:"]
    for (compression, weighting), (error, iterations) in PUBLISHED.items():
        if compression not in summaries:
            continue
        cell = summaries[compression]["paper"][weighting]
        for quantity, published in (("error", error), ("iterations", iterations)):
            summary = cell[quantity]
            if not summary.low <= published <= summary.high:
                lines.append(
                    f"  ρ = {compression}, {weighting}: {quantity} "
                    f"{summary.mean:.2f}, published {published:g}"
                )
    return "\n".join(lines)


def draw(summaries, runs: int):
    """Test errors of the paper's protocol and the published ones."""
    figure, axes = results.new_figure(figsize=(7, 4.2))
    styles = {
        "weighted": ("tab:blue", "o", -0.06),
        "unweighted": ("tab:red", "s", 0.06),
    }
    positions = np.arange(len(COMPRESSIONS))
    for weighting, (color, marker, offset) in styles.items():
        published = [PUBLISHED[c, weighting][0] for c in COMPRESSIONS]
        axes.plot(
            positions + offset,
            published,
            marker=marker,
            markerfacecolor="white",
            color=color,
            linestyle=":",
            label=f"published, {weighting} (6 runs)",
        )
        cells = [summaries[c]["paper"][weighting]["error"] for c in COMPRESSIONS]
        means = np.array([cell.mean for cell in cells])
        halves = np.array([(cell.high - cell.low) / 2 for cell in cells])
        axes.errorbar(
            positions + offset,
            means,
            yerr=halves,
            marker=marker,
            color=color,
            capsize=3,
            label=f"reproduced, {weighting} ({runs} runs, 95% CI)",
        )
    axes.axhline(PUBLISHED_UNCOMPRESSED_ERROR, color="0.3", linestyle="--", linewidth=1)
    axes.annotate(
        "uncompressed, published",
        (positions[-1] + 0.25, PUBLISHED_UNCOMPRESSED_ERROR),
        xytext=(0, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
        color="0.3",
    )
    axes.set_xticks(positions, [str(compression) for compression in COMPRESSIONS])
    axes.set_xlim(-0.3, positions[-1] + 0.3)
    axes.set_ylim(bottom=min(3.8, axes.get_ylim()[0]))
    axes.set_xlabel("compression factor ρ = N/r")
    axes.set_ylabel("test error (%)")
    axes.set_title("Table 1: MNIST 4 vs 9, 29 of 50 workers lost in every iteration")
    axes.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1, 0.46))
    return figure


def numbers(summaries, uncompressed, rules, runs: int, seed: int) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "command": f"python -m experiments mnist --runs {runs} --seed {seed}",
        "protocols": PROTOCOLS,
        "rules": {protocol: rule._asdict() for protocol, rule in rules.items()},
        "uncompressed": uncompressed,
        "published": {
            f"rho={compression} {weighting}": {"error": error, "iterations": iterations}
            for (compression, weighting), (error, iterations) in PUBLISHED.items()
        },
        "reproduced": {
            f"rho={compression}": results.summary_numbers(cells)
            for compression, cells in summaries.items()
        },
    }
