"""Weights against none, each method at its own best step: least squares and MNIST."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper import linear_regression, mnist
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, at, interval, verdict, with_half
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
        tables={"best_step": tabulate_best, "fixed_step": tabulate_fixed},
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
    pairs = (features, basis), (responses, targets)
    first, second = (jnp.concatenate([own[None], others]) for own, others in pairs)
    return first, second


def one_run(key: jax.Array, compression: int) -> Numbers:
    """Returns the excess of every method on every kind of data."""
    data_key, run_key = jax.random.split(key)
    kinds = draw_all(data_key)
    # Sequential, so that one program serves all kinds.
    return jax.lax.map(lambda d: one_kind(run_key, d[0], d[1], compression), kinds)


def one_kind(key, features, responses, compression) -> Numbers:
    """Returns ‖X(θ - θ*)‖² relative to the minimum of ‖Xθ - y‖²."""
    num_parts = compression * methods.CODE.num_parts
    scores = sketching.leverage_scores(features, method="gram")
    probabilities = sketching.partition_probabilities(scores, num_parts)
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

    curvature = 2 * jnp.linalg.eigvalsh(gram)[-1]
    loss = methods.squared_error
    return methods.run_all(
        key,
        (grams, products),
        probabilities,
        curvature,
        loss,
        jnp.zeros(NUM_FEATURES),
        excess,
        CHECKPOINTS,
    )


def reduce(trials: Numbers) -> Numbers:
    """Compares methods by kind of data; for two kinds at every step size."""
    records = {}
    for index, kind in enumerate(KINDS):
        errors = {name: found[:, index] for name, found in trials["found"].items()}
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
    """Returns compression, kind and results."""
    return [
        (compression.removeprefix("rho="), kind, record)
        for compression, every in numbers["compared"].items()
        for kind, record in every.items()
    ]


def tabulate_best(numbers: Numbers) -> ResultTable:
    """Returns errors after many steps, each method at its own best step."""
    others = [name for name in methods.METHODS if name != methods.BASELINE]

    def row(compression, kind, record):
        base = f"{record['error'][methods.BASELINE].mean[-1]:.2e}"
        summaries = interval(record["spread"]), interval(record["draws_per_part"])
        ratios = [verdict(at(record["best_step"][name], -1)) for name in others]
        return kind, compression, *summaries, base, *ratios

    return ResultTable(
        f"Excess relative to unweighted after {CHECKPOINTS[-1]} steps, each method "
        f"at its own best step, geometric mean of {shown_runs(numbers)} paired runs",
        ["data", "ρ", "spread of Π", "q/k", "excess of unweighted", *others],
        itertools.starmap(row, cells(numbers)),
    )


def tabulate_fixed(numbers: Numbers) -> ResultTable:
    """Returns errors with one step size for all methods."""
    few = "weighted", "weighted, unbiased"
    pairs = [*itertools.product(range(len(CHECKPOINTS)), few)]

    def row(compression, kind, record):
        ratios = [verdict(at(record["fixed_step"][name], i)) for i, name in pairs]
        best = (methods.step_of(n, record["lanes"][n][0]) for n in methods.ONE_SHOT[:3])
        return kind, compression, *ratios, " / ".join(best)

    heads = [f"{name}, {CHECKPOINTS[index]} steps" for index, name in pairs]
    return ResultTable(
        "Excess relative to unweighted at one step for both, 1/"
        f"{methods.FIXED_SHARE} of the best of unweighted for {CHECKPOINTS[0]} steps, "
        f"geometric mean of {shown_runs(numbers)} paired runs. Last column: best steps "
        "of weighted / unbiased / unweighted",
        ["data", "ρ", *heads, "best steps"],
        itertools.starmap(row, cells(numbers)),
    )


def shown_runs(numbers: Numbers) -> int:
    """Returns the number of runs that have not chosen the steps."""
    runs = numbers["runs"]
    return runs - runs // methods.TUNING_SHARE if runs > 1 else 1


def draw_steps(numbers: Numbers) -> Figure:
    """Draws the excess by step size, early and late."""
    every = numbers["compared"][f"rho={COMPRESSIONS[0]}"]
    figure, panels = new_figure(10, 7, columns=2, rows=2)
    cells = itertools.product(SHOWN, enumerate(CHECKPOINTS))
    for axes, (kind, (column, steps)) in zip(panels, cells):
        for index, name in enumerate(methods.METHODS):
            curves = every[kind]["by_step"][name]
            mean, *band, _ = at(curves, slice(None), column)
            look = {"markersize": 4, "linewidth": 1.2, "label": name}
            line(axes, index, methods.SIZES, mean, band, **look)
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
    every = numbers["compared"][f"rho={COMPRESSIONS[0]}"]
    order = sorted(KINDS[1:], key=lambda kind: every[kind]["spread"].mean)
    spreads = [every[kind]["spread"].mean for kind in order]
    figure, panels = new_figure(10, 4.6, columns=2)
    few = "weighted", "weighted, unbiased", "uniform"
    every_method = methods.METHODS
    columns = (
        ("fixed_step", 0, few, f"one step for all, after {CHECKPOINTS[0]} steps"),
        ("best_step", -1, every_method, f"best steps, after {CHECKPOINTS[-1]} steps"),
    )
    for axes, (quantity, at_step, shown, title) in zip(panels, columns, strict=True):
        for index, name in enumerate(every_method):
            if name in shown and name != methods.BASELINE:
                ratios = [at(every[kind][quantity][name], at_step) for kind in order]
                mean, *band, _ = zip(*ratios)
                line(axes, index, spreads, mean, band, label=name)
        axes.axhline(1, color="0.3", linewidth=1, linestyle=":")
        axes.set(xscale="log", yscale="log", title=title)
        axes.set_xlabel("spread of Π: standard deviation / mean")
    panels[0].set_ylabel("excess / excess of unweighted")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper")
    return figure


DIGIT_COMPRESSIONS = (4, 20)
DIGIT_CHECKPOINTS = (5, 30)
# Runs are divided by this, since ten thousand images take long.
FEWER = 5


def digits(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per compression."""
    compressions = DIGIT_COMPRESSIONS if effort.is_full else DIGIT_COMPRESSIONS[-1:]
    training, test = mnist.load_digits()
    scores = jax.jit(sketching.leverage_scores)(training.images)
    gram = training.images.T @ training.images
    # The curvature of the logistic loss is at most 1/4.
    curvature = float(jnp.linalg.eigvalsh(gram)[-1]) / 4
    data = training, test, scores, curvature
    return Study(
        {"compared": {f"rho={c}": Trial(digits_run, data, c) for c in compressions}},
        key=key,
        runs=max(effort.runs // FEWER, 2),
        batch_size=3,
        reduce=reduce_digits,
        tables={"digits": tabulate_digits},
    )


def digits_run(key: jax.Array, data: Any, compression: int) -> Numbers:
    """Returns training loss and test error of every method."""
    training, test, scores, curvature = data
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
        return {"loss": jnp.mean(losses), "error": mnist.test_error(params, test)}

    probabilities = sketching.partition_probabilities(scores[order], num_parts)
    return methods.run_all(
        run_key,
        parts,
        probabilities,
        jnp.asarray(curvature),
        mnist.logistic_loss,
        jnp.zeros(784),
        measure,
        DIGIT_CHECKPOINTS,
        load,
    )


def reduce_digits(trials: Numbers) -> Numbers:
    """Compares methods; steps are chosen by the training loss."""
    found = trials["found"].items()
    losses = {name: own["loss"] for name, own in found}
    errors = {name: own["error"] for name, own in found}
    chosen = methods.choose_all(losses)
    best = {n: chosen.take(errors[n], chosen.best[n]) for n in methods.METHODS}
    fixed = {n: chosen.take(errors[n], chosen.fixed) for n in methods.ONE_SHOT}

    def differences(every):
        base = every[methods.BASELINE]
        return jaxwgc.summarize({name: error - base for name, error in every.items()})

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

    def difference(summary):
        low = summary.low
        high = summary.high
        sign = " ↓" if high < 0 else " ↑" if low > 0 else ""
        return with_half(summary.mean, (high - low) / 2, 2) + sign

    def row(compression, name, record):
        is_base = name == methods.BASELINE
        same = ""
        same_error = ""
        if name in methods.ONE_SHOT and not is_base:
            same = verdict(at(record["fixed_step"][name], 0))
            same_error = difference(at(record["test_error_difference_fixed"][name], 0))
        if is_base:
            loss = f"{at(record['error'][name], -1).mean:.4f}"
            error = interval(at(record["test_error"][name], -1)) + "%"
        else:
            loss = verdict(at(record["best_step"][name], -1))
            error = difference(at(record["test_error_difference"][name], -1))
        step = methods.step_of(name, record["lanes"][name][-1])
        ratio = compression.removeprefix("rho=")
        return ratio, name, same, same_error, step, loss, error

    every = numbers["compared"].items()
    scores = ", ".join(
        f"{record['spread'].mean:.2f} and {record['draws_per_part'].mean:.2f} at "
        + compression.replace("rho=", "ρ = ")
        for compression, record in every
    )
    first, last = DIGIT_CHECKPOINTS
    return ResultTable(
        "MNIST, 4 against 9: ratio of mean training losses to unweighted, and "
        f"difference of test errors, {shown_runs(numbers)} paired runs; spread of Π "
        f"and q/k are {scores}",
        [
            *("ρ", "method", f"same step, loss after {first}"),
            *("same step, test error, points", "best step"),
            *(f"own best step, loss after {last}", "test error"),
        ],
        [row(c, name, record) for c, record in every for name in methods.METHODS],
    )
