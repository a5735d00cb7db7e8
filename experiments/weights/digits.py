"""Weights against none, each at its own best step: logistic regression on MNIST."""

from typing import Any

import jax
import jax.numpy as jnp

import jaxwgc
from experiments.paper import mnist
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, at, interval, with_half
from experiments.weights import methods
from experiments.weights.fair import shown_runs
from experiments.weights.ratios import verdict
from jaxwgc import sketching

COMPRESSIONS = (4, 20)
CHECKPOINTS = (5, 30)
# Ten thousand images take their time.
FEWER = 5


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a compression."""
    compressions = COMPRESSIONS if effort.is_full else COMPRESSIONS[-1:]
    training, test = mnist.load_digits()
    scores = jax.jit(sketching.leverage_scores)(training.images)
    gram = training.images.T @ training.images
    # The logistic loss is curved by a quarter at most.
    curvature = float(jnp.linalg.eigvalsh(gram)[-1]) / 4
    data = training, test, scores, curvature
    return Study(
        {"compared": {f"rho={c}": Trial(one_run, data, c) for c in compressions}},
        key=key,
        runs=max(effort.runs // FEWER, 2),
        batch_size=3,
        reduce=reduce,
        tables={"digits": tabulate},
    )


def one_run(key: jax.Array, data: Any, compression: int) -> Numbers:
    """Mean loss of all training images and test error, of every method."""
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

    return methods.run_all(
        run_key,
        parts,
        sketching.partition_probabilities(scores[order], num_parts),
        jnp.asarray(curvature),
        mnist.logistic_loss,
        jnp.zeros(784),
        measure,
        CHECKPOINTS,
        load,
    )


def reduce(trials: Numbers) -> Numbers:
    """Steps are chosen by the training loss."""
    names = methods.METHODS
    losses = {name: trials["found"][name]["loss"] for name in names}
    errors = {name: trials["found"][name]["error"] for name in names}
    chosen = methods.choose_all(losses)
    best = {name: chosen.take(errors[name], chosen.best[name]) for name in names}
    fixed = {n: chosen.take(errors[n], chosen.fixed) for n in methods.ONE_SHOT}

    def differences(every):
        base = every[methods.BASELINE]
        return {name: jaxwgc.summarize(error - base) for name, error in every.items()}

    return {
        "spread": jaxwgc.summarize(trials["spread"]),
        "draws_per_part": jaxwgc.summarize(trials["draws_per_part"]),
        **methods.compare(losses, chosen),
        "test_error": {name: jaxwgc.summarize(error) for name, error in best.items()},
        "test_error_difference": differences(best),
        "test_error_difference_fixed": differences(fixed),
    }


def tabulate(numbers: Numbers) -> ResultTable:
    """Loss and test error beside those of unweighted."""
    last = len(CHECKPOINTS) - 1

    def difference(summary):
        low, high = summary.low, summary.high
        sign = " ↓" if high < 0 else " ↑" if low > 0 else ""
        return with_half(summary.mean, (high - low) / 2, 2) + sign

    def show(cell):
        compression, name, record = cell
        is_base = name == methods.BASELINE
        row = {"ρ": compression.removeprefix("rho="), "method": name}
        fixed = "", ""
        if name in methods.ONE_SHOT and not is_base:
            saved = at(record["test_error_difference_fixed"][name], 0)
            fixed = verdict(at(record["fixed_step"][name], 0)), difference(saved)
        row[f"same step, loss after {CHECKPOINTS[0]}"] = fixed[0]
        row["there test error, points"] = fixed[1]
        row["best step"] = methods.step_of(name, record["lanes"][name][last])
        loss = at(record["error"][name], last)
        row[f"own best step, loss after {CHECKPOINTS[last]}"] = (
            f"{loss.mean:.4f}"
            if is_base
            else verdict(at(record["best_step"][name], last))
        )
        row["test error"] = (
            interval(at(record["test_error"][name], last)) + "%"
            if is_base
            else difference(at(record["test_error_difference"][name], last))
        )
        return row

    every = [
        (compression, name, record)
        for compression, record in numbers["compared"].items()
        for name in methods.METHODS
    ]
    scores = ", ".join(
        f"{record['spread'].mean:.2f} and {record['draws_per_part'].mean:.2f} at "
        + compression.replace("rho=", "ρ = ")
        for compression, record in numbers["compared"].items()
    )
    return ResultTable.of_records(
        "MNIST, 4 against 9: mean training loss over, and test error minus, that of "
        f"unweighted, {shown_runs(numbers)} paired runs; spread of Π and q/k are "
        f"{scores}",
        show,
        every,
    )
