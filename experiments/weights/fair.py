"""Weights against none, each method at its own best step: least squares and MNIST."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper import linear_regression, mnist
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import (
    ResultTable,
    arrow,
    at,
    interval,
    verdict,
    with_half,
)
from experiments.weights import methods
from jaxwgc import sketching

NUM_ROWS = linear_regression.NUM_BLOCKS * linear_regression.ROWS_PER_BLOCK
NUM_FEATURES = linear_regression.NUM_FEATURES
COMPRESSIONS = (2, 4)
CHECKPOINTS = (5, 50)
# Degrees of freedom of t-distributed rows, from normal rows to heavy tails.
DEGREES = (np.inf, 5.0, 3.0, 2.0, 1.0)
# ‖Xθ‖ relative to the norm of the noise.
SIGNAL = 10.0
PAPER = "section 6.2"
KINDS = (PAPER, *(f"t, ν = {nu:g}".replace("inf", "∞") for nu in DEGREES))
SHOWN = (PAPER, KINDS[-1])


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per compression for all kinds of data."""
    compressions = COMPRESSIONS if effort.is_full else COMPRESSIONS[:1]
    return Study(
        {"compared": {f"rho={c}": Trial(one_run, c) for c in compressions}},
        key=key,
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=reduce,
        tables={
            "best_step": tabulate_best,
            "fixed_step": tabulate_fixed,
        },
        figures={"steps": draw_steps, "spread": draw_spread},
    )


def draw_all(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws rows (kinds, N, p) and responses (kinds, N) of every kind of data.

    The first kind is that of section 6.2. The others have orthonormal columns, which
    keeps the leverage scores, so that only sampling slows down descent.
    """
    paper_key, rows_key, width_key, params_key, noise_key = jax.random.split(key, 5)
    features, responses = linear_regression.draw_data(paper_key)
    params = jax.random.normal(params_key, (NUM_FEATURES,))
    noise = jax.random.normal(noise_key, (NUM_ROWS,))
    # χ² / ν, which tends to 1.
    degrees = jnp.minimum(jnp.array(DEGREES), 1e6)[:, None, None]
    shape = len(DEGREES), NUM_ROWS, 1
    squares = 2 * jax.random.gamma(width_key, degrees / 2, shape) / degrees
    rows = jax.random.normal(rows_key, features.shape) / jnp.sqrt(squares)
    basis, _ = jnp.linalg.qr(rows)
    images = basis @ params
    lengths = jnp.linalg.norm(images, axis=1, keepdims=True)
    targets = SIGNAL * jnp.linalg.norm(noise) / lengths * images + noise
    every_features = jnp.concatenate([features[None], basis])
    every_response = jnp.concatenate([responses[None], targets])
    return every_features, every_response


def one_run(key: jax.Array, compression: int) -> Numbers:
    """Returns the excess of every method on every kind of data."""
    data_key, run_key = jax.random.split(key)

    def run_kind(data):
        features, responses = data
        return one_kind(run_key, features, responses, compression)

    # Sequential, so that one program serves all kinds.
    return jax.lax.map(run_kind, draw_all(data_key))


def one_kind(key, features, responses, compression) -> Numbers:
    """Returns ‖X(θ - θ*)‖² relative to the minimum of ‖Xθ - y‖²."""
    num_parts = compression * methods.CODE.num_parts
    scores = sketching.leverage_scores(features, method="gram")
    probabilities = jaxwgc.parts.partition_probabilities(scores, num_parts)
    (rows, targets), _ = jaxwgc.partition((features, responses), num_parts)
    # Sufficient statistics of each part.
    grams = jnp.einsum("jmp,jmq->jpq", rows, rows)
    products = jnp.einsum("jmp,jm->jp", rows, targets)
    gram = grams.sum(axis=0)
    solution = jnp.linalg.solve(gram, products.sum(axis=0))
    smallest = jnp.sum((responses - features @ solution) ** 2)

    def excess(params):
        off = params - solution
        return off @ gram @ off / smallest

    return methods.run_all(
        key,
        parts=(grams, products),
        probabilities=probabilities,
        curvature=2 * jnp.linalg.eigvalsh(gram)[-1],
        loss=methods.squared_error,
        start=jnp.zeros(NUM_FEATURES),
        measure=excess,
        checkpoints=CHECKPOINTS,
    )


def reduce(trials: Numbers) -> Numbers:
    """Compares methods by kind of data; for two kinds at every step size."""
    records = {}
    for index, kind in enumerate(KINDS):
        errors = {name: error[:, index] for name, error in trials["measured"].items()}
        chosen = methods.choose_all(errors)
        records[kind] = {
            "spread": jaxwgc.summarize(trials["spread"][:, index]),
            "draws_per_part": jaxwgc.summarize(trials["draws_per_part"][:, index]),
            **methods.compare(errors, chosen),
        }
        if kind in SHOWN:
            records[kind]["by_step"] = methods.by_step(errors, chosen)
    return records


def cells(numbers: Numbers) -> list[tuple[str, str, Numbers]]:
    """Returns compression, kind and results of all kinds of data."""
    records = []
    for compression, by_kind in numbers["compared"].items():
        ratio = compression.removeprefix("rho=")
        for kind, record in by_kind.items():
            records.append((ratio, kind, record))
    return records


def tabulate_best(numbers: Numbers) -> ResultTable:
    """Returns errors after many steps, each method at its own best step."""
    others = [name for name in methods.METHODS if name != methods.BASELINE]
    table = ResultTable(
        f"Excess relative to unweighted after {CHECKPOINTS[-1]} steps, each method "
        f"at its own best step, geometric mean of {shown_runs(numbers)} paired runs",
        ["data", "ρ", "spread of Π", "excess of unweighted", *others],
    )
    for compression, kind, record in cells(numbers):
        baseline = record["error"][methods.BASELINE]
        row = [kind, compression]
        row.append(interval(record["spread"]))
        row.append(f"{baseline.mean[-1]:.2e}")
        for name in others:
            row.append(verdict(at(record["best_step"][name], -1)))
        table.rows.append(row)
    return table


def tabulate_fixed(numbers: Numbers) -> ResultTable:
    """Returns errors with one step size for all methods."""
    few = "weighted", "weighted, unbiased"
    pairs = [*itertools.product(range(len(CHECKPOINTS)), few)]

    def row(compression, kind, record):
        ratios = []
        for index, name in pairs:
            ratios.append(verdict(at(record["fixed_step"][name], index)))
        return kind, compression, *ratios

    heads = [f"{name}, {CHECKPOINTS[index]} steps" for index, name in pairs]
    return ResultTable(
        "Excess relative to unweighted at one step for both, 1/"
        f"{methods.FIXED_SHARE} of the best of unweighted for {CHECKPOINTS[0]} steps, "
        f"geometric mean of {shown_runs(numbers)} paired runs",
        ["data", "ρ", *heads],
        itertools.starmap(row, cells(numbers)),
    )


def shown_runs(numbers: Numbers) -> int:
    """Returns the number of runs that have not chosen the steps."""
    runs = numbers["runs"]
    return runs - runs // methods.TUNING_SHARE if runs > 1 else 1


def draw_steps(numbers: Numbers) -> Figure:
    """Draws the excess by step size, early and late."""
    by_kind = numbers["compared"][f"rho={COMPRESSIONS[0]}"]
    figure, panels = new_figure(10, 7, columns=2, rows=2)
    cells = itertools.product(SHOWN, enumerate(CHECKPOINTS))
    for axes, (kind, (column, steps)) in zip(panels, cells, strict=True):
        for index, name in enumerate(methods.METHODS):
            curve = at(by_kind[kind]["by_step"][name], slice(None), column)
            line(
                axes,
                index,
                x=methods.SIZES,
                y=curve.mean,
                band=(curve.low, curve.high),
                markersize=4,
                linewidth=1.2,
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlim=(0.04, 5), ylim=(1e-3, 1e6))
        axes.set_title(f"{kind}: after {steps} steps")
    for axes in panels[2:]:
        axes.set_xlabel("step · largest curvature of all the data")
    for axes in panels[::2]:
        axes.set_ylabel("excess ‖X(θ − θ*)‖² / ‖Xθ* − y‖²")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw_spread(numbers: Numbers) -> Figure:
    """Draws ratios to unweighted by the spread of the probabilities."""
    by_kind = numbers["compared"][f"rho={COMPRESSIONS[0]}"]
    records = [by_kind[kind] for kind in KINDS[1:]]
    records.sort(key=lambda record: record["spread"].mean)
    spreads = [record["spread"].mean for record in records]
    figure, panels = new_figure(10, 4.6, columns=2)

    def draw_ratios(axes, quantity, checkpoint, shown):
        for index, name in enumerate(methods.METHODS):
            if name not in shown or name == methods.BASELINE:
                continue
            ratios = [at(record[quantity][name], checkpoint) for record in records]
            means = [ratio.mean for ratio in ratios]
            lows = [ratio.low for ratio in ratios]
            highs = [ratio.high for ratio in ratios]
            line(axes, index, spreads, means, (lows, highs), label=name)

    few = ("weighted", "weighted, unbiased", "uniform")
    draw_ratios(panels[0], "fixed_step", 0, few)
    panels[0].set_title(f"one step for all, after {CHECKPOINTS[0]} steps")
    draw_ratios(panels[1], "best_step", -1, methods.METHODS)
    panels[1].set_title(f"best steps, after {CHECKPOINTS[-1]} steps")
    for axes in panels:
        axes.axhline(1, color="0.3", linewidth=1, linestyle=":")
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("spread of Π: standard deviation / mean")
    panels[0].set_ylabel("excess / excess of unweighted")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper")
    return figure


DIGIT_COMPRESSIONS = (4, 20)
DIGIT_CHECKPOINTS = (5, 30)
# Runs are divided by this, since ten thousand images take long.
FEWER = 5


class DigitData(NamedTuple):
    """The digits, leverage scores of the training images, and largest curvature."""

    training: mnist.Digits
    test: mnist.Digits
    scores: jax.Array
    curvature: float


def digits(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per compression."""
    compressions = DIGIT_COMPRESSIONS if effort.is_full else DIGIT_COMPRESSIONS[-1:]
    training, test = mnist.load_digits()
    scores = jax.jit(sketching.leverage_scores)(training.images)
    gram = training.images.T @ training.images
    # The curvature of the logistic loss is at most 1/4.
    curvature = float(jnp.linalg.eigvalsh(gram)[-1]) / 4
    data = DigitData(training, test, scores, curvature)
    return Study(
        {"compared": {f"rho={c}": Trial(digits_run, data, c) for c in compressions}},
        key=key,
        runs=max(effort.runs // FEWER, 2),
        batch_size=3,
        reduce=reduce_digits,
        tables={"digits": tabulate_digits},
    )


def digits_run(key: jax.Array, data: DigitData, compression: int) -> Numbers:
    """Returns training loss and test error of every method."""
    training = data.training
    order_key, run_key = jax.random.split(key)
    order = jax.random.permutation(order_key, mnist.NUM_TRAINING)
    num_parts = compression * mnist.NUM_PARTS
    parts = jaxwgc.partition(order, num_parts)

    def load(part):
        rows, row_weights = part
        return training.images[rows], training.labels[rows], row_weights, 1.0

    def measure(params):
        logits = training.images @ params
        losses = jax.nn.softplus(logits) - training.labels * logits
        error = mnist.test_error(params, data.test)
        return {"loss": jnp.mean(losses), "error": error}

    scores = data.scores[order]
    return methods.run_all(
        run_key,
        parts=parts,
        probabilities=jaxwgc.parts.partition_probabilities(scores, num_parts),
        curvature=jnp.asarray(data.curvature),
        loss=mnist.logistic_loss,
        start=jnp.zeros(784),
        measure=measure,
        checkpoints=DIGIT_CHECKPOINTS,
        load=load,
    )


def reduce_digits(trials: Numbers) -> Numbers:
    """Compares methods; steps are chosen by the training loss."""
    measured = trials["measured"]
    losses = {name: record["loss"] for name, record in measured.items()}
    errors = {name: record["error"] for name, record in measured.items()}
    chosen = methods.choose_all(losses)
    best = {
        name: chosen.take(errors[name], chosen.best[name]) for name in methods.METHODS
    }
    fixed = {name: chosen.take(errors[name], chosen.fixed) for name in methods.ONE_SHOT}

    def differences(by_name):
        base = by_name[methods.BASELINE]
        return jaxwgc.summarize({name: error - base for name, error in by_name.items()})

    return {
        "spread": jaxwgc.summarize(trials["spread"]),
        "draws_per_part": jaxwgc.summarize(trials["draws_per_part"]),
        **methods.compare(losses, chosen),
        "test_error": jaxwgc.summarize(best),
        "test_error_difference": differences(best),
        "test_error_difference_fixed": differences(fixed),
    }


def tabulate_digits(numbers: Numbers) -> ResultTable:
    """Returns loss and test error relative to unweighted."""

    rows = []
    scores = []
    for compression, record in numbers["compared"].items():
        ratio = compression.removeprefix("rho=")
        for name in methods.METHODS:
            rows.append([ratio, *digits_row(name, record)])
        spread = record["spread"].mean
        draws = record["draws_per_part"].mean
        scores.append(f"{spread:.2f} and {draws:.2f} at ρ = {ratio}")
    first, last = DIGIT_CHECKPOINTS
    return ResultTable(
        "MNIST, 4 against 9: ratio of mean training losses to unweighted, and "
        f"difference of test errors, {shown_runs(numbers)} paired runs; spread of Π "
        f"and q/k are {', '.join(scores)}",
        [
            "ρ",
            "method",
            f"same step, loss after {first}",
            "same step, test error, points",
            "best step",
            f"own best step, loss after {last}",
            "test error",
        ],
        rows,
    )


def digits_row(name: str, record: Numbers) -> list[str]:
    """Returns the cells of a method: same step, best step, loss and test error."""
    best_step = methods.step_of(record["lanes"][name][-1])
    if name == methods.BASELINE:
        loss = f"{at(record['error'][name], -1).mean:.4f}"
        error = interval(at(record["test_error"][name], -1)) + "%"
        return [name, "", "", best_step, loss, error]
    same_loss = ""
    same_error = ""
    if name in methods.ONE_SHOT:
        same_loss = verdict(at(record["fixed_step"][name], 0))
        same_error = difference(at(record["test_error_difference_fixed"][name], 0))
    loss = verdict(at(record["best_step"][name], -1))
    error = difference(at(record["test_error_difference"][name], -1))
    return [name, same_loss, same_error, best_step, loss, error]


def difference(summary: jaxwgc.Summary) -> str:
    """Returns a difference with its interval, and an arrow if it excludes 0."""
    low = float(summary.low)
    high = float(summary.high)
    text = with_half(float(summary.mean), (high - low) / 2, 2)
    return text + arrow(low, high, level=0)
