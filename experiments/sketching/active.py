"""Labels that cost: rows chosen by leverage scores, or as many of them uniformly."""

import jax
import numpy as np

from experiments.runner.figures import Figure, line, new_figure, sketch_sizes
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable
from experiments.sketching import data, logistic, samplers
from experiments.sketching.samplers import Sampler

# Every row is asked for once, so that there are as many labels as rows.
CHOICES = {
    "leverage": Sampler(method="without_replacement"),
    "uniform": Sampler("unif", "without_replacement"),
}
FACTORS, FEW_FACTORS = (2, 4, 8, 16, 32), (4, 16)
SHOWN_FACTORS = (4, 16)
KINDS = ("T3", "T1")
# Pixels are averaged in squares of so many by as many.
SQUARE = 4


def digits(effort: Effort) -> data.Regression:
    """Which of two digits an image shows, 1 or -1, from means of its pixels, and 1."""
    pixels, is_nine = logistic.load(effort)
    if pixels.shape[1] == 784:
        width = 28 // SQUARE
        squares = pixels.reshape(-1, width, SQUARE, width, SQUARE)
        pixels = squares.mean(axis=(2, 4)).reshape(len(pixels), -1)
    # Without the corners, where no image has ink.
    inked = pixels[:, pixels.any(axis=0)]
    matrix = np.column_stack([np.ones(len(inked)), inked])
    target = np.where(is_nine, 1.0, -1.0)
    basis, triangle = np.linalg.qr(matrix)
    coefficients = np.linalg.solve(triangle, basis.T @ target)
    scores = np.sum(basis**2, axis=1)
    label = "MNIST, 4 against 9"
    return data.Regression(label, matrix, target, coefficients, basis, scores)


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a kind of data; sizes are multiples of its columns."""
    data_key, run_key = jax.random.split(key)
    heavy = data.regressions(data_key, *data.sizes(effort))
    every = {kind: heavy[kind] for kind in KINDS}
    every["digits"] = digits(effort)
    factors = FACTORS if effort.is_full else FEW_FACTORS

    def cells(kind: str) -> Numbers:
        problem = every[kind]
        num_rows, num_columns = problem.matrix.shape
        sizes = [factor * num_columns for factor in factors]
        known = {
            "label": problem.label,
            "num_rows": num_rows,
            "num_columns": num_columns,
            "coherence": problem.coherence,
            "num_labels": sizes,
        }
        trial = Trial(samplers.one_run, {kind: problem}, sizes, CHOICES)
        return known | {"excess": trial}

    return Study(
        {"data": {kind: cells(kind) for kind in every}},
        key=run_key,
        runs=effort.runs,
        batch_size=25,
        x64=True,
        reduce=lambda trials: {
            choice: samplers.reduce(solutions, every[kind])
            for choice, by_kind in trials.items()
            for kind, solutions in by_kind.items()
        },
        tables={"active": tabulate},
        figures={"active": draw},
    )


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a kind of data and a number of labels."""

    def row(record, factor):
        at = record["num_labels"].index(factor * record["num_columns"])
        uniform = record["excess"]["uniform"]["median"][at]
        ratio = uniform / record["excess"]["leverage"]["median"][at]
        return (
            record["label"],
            f"{record['num_rows']:,} × {record['num_columns']}",
            f"{record['coherence']:.3g}",
            f"{factor}p = {record['num_labels'][at]:,}",
            *(samplers.median_cell(record["excess"][choice], at) for choice in CHOICES),
            f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}",
        )

    kinds = numbers["data"].values()
    return ResultTable(
        "Excess of the squared residual over all rows in percent of the smallest one, "
        f"median of {numbers['runs']} choices of rows and its 95% interval",
        ["data", "size", "coherence", "labels", *CHOICES, "uniform / leverage"],
        [
            row(record, factor)
            for record in kinds
            for factor in SHOWN_FACTORS
            if factor * record["num_columns"] in record["num_labels"]
        ],
    )


def draw(numbers: Numbers) -> Figure:
    """Log-log, a panel a kind of data."""
    every = numbers["data"].values()
    figure, panels = new_figure(11, 4.2, len(every), share_x=False)
    for axes, record in zip(panels, every, strict=True):
        labels = np.array(record["num_labels"])
        for index, (choice, excess) in enumerate(record["excess"].items()):
            band = excess["low"], excess["high"]
            line(axes, index, labels, excess["median"], band, label=choice)
        label = "p / (labels − p − 1)"
        num_columns = record["num_columns"]
        bound = num_columns / (labels - num_columns - 1)
        axes.plot(labels, bound, ":", color="0.3", label=label)
        sketch_sizes(axes, labels, num_columns)
        axes.set(yscale="log", title=record["label"], xlabel="labels")
    panels[0].set_ylabel("excess of the squared residual, median")
    panels[-1].legend()
    return figure
