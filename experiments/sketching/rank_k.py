"""Scores in leading directions: what passes bring, and who keeps the rare cells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runner.figures import COLORS, Figure, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study, Trial
from experiments.runner.tables import ResultTable, interval
from jaxwgc import sketching

# Passes.
RANK, NUM_PASSES = 20, (3, 4, 5, 6, 8)
SHAPE, FEW_SHAPE = (4_000, 500), (400, 80)
KRYLOV, POWER = "block Krylov", "power iterations"

# Cells.
NUM_CELLS, FEW_CELLS = 100_000, 10_000
NUM_GENES, NUM_TYPES, RARE_SHARE, SAMPLE_SIZE = 200, 10, 0.001, 2_000
# Between as many centres and the mean.
NUM_DIRECTIONS = NUM_TYPES - 1
NOISE = 0.3
RULES = ("rank-k scores", "leverage scores", "uniform")


def passes(effort: Effort, key: jax.Array) -> Study:
    """The error of rows above the median score, by passes, of both kinds of space."""
    shape = SHAPE if effort.is_full else FEW_SHAPE
    rank = RANK if effort.is_full else 5
    seed = int(jax.random.bits(key) >> 1)
    return Study(
        {
            "rank": rank,
            "shape": shape,
            "matrices": {
                name: Once(errors, make(np.random.default_rng(seed), *shape), rank, key)
                for name, make in MATRICES.items()
            },
        },
        x64=True,
        tables={"rank_k": tabulate_passes},
    )


def of_values(values, rng, num_rows, num_columns) -> np.ndarray:
    """A matrix with these singular values, by their number."""
    left = np.linalg.qr(rng.standard_normal((num_rows, num_columns)))[0]
    right = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))[0]
    return left * values(np.arange(1, num_columns + 1)) @ right


def counts(rng, num_rows, num_columns) -> np.ndarray:
    """Words of 20 topics, about 100 a row."""
    topics = rng.dirichlet(np.full(num_columns, 0.05), 20)
    shares = rng.dirichlet(np.full(20, 0.1), num_rows)
    return rng.poisson(100 * shares @ topics).astype(float)


MATRICES = {
    "σ = 1 / j": functools.partial(of_values, lambda j: 1 / j),
    "σ = 1 / √j": functools.partial(of_values, lambda j: j**-0.5),
    "counts": counts,
}


def errors(matrix: np.ndarray, rank: int, key: jax.Array) -> Numbers:
    """The worst relative error, and the bound, by passes."""
    left = np.linalg.svd(matrix, full_matrices=False)[0]
    exact = np.sum(left[:, :rank] ** 2, axis=1)
    is_large = exact > np.median(exact)

    def worst(scores):
        return float(np.max(np.abs(np.asarray(scores) / exact - 1)[is_large]))

    misses = {KRYLOV: [], POWER: [], "bound": []}
    for number in NUM_PASSES:
        ours = sketching.rank_k_leverage_scores(key, matrix, rank, num_passes=number)
        misses[KRYLOV].append(worst(ours.scores))
        misses[POWER].append(worst(by_power_iterations(key, matrix, rank, number)))
        misses["bound"].append(float(ours.error_bound))
    return misses


def by_power_iterations(key, matrix, rank: int, num_passes: int) -> np.ndarray:
    """As many passes, as many columns, and no memory of those before."""
    num_columns = matrix.shape[1]
    shape = num_columns, min(2 * rank + 10, num_columns)
    basis = np.linalg.qr(jax.random.normal(key, shape))[0]
    values = np.ones(rank)
    for _ in range(num_passes - 1):
        rows = np.linalg.qr(matrix @ basis)[0]
        basis, values, _ = np.linalg.svd(matrix.T @ rows, full_matrices=False)
    image = matrix @ basis[:, :rank] / values[:rank]
    return np.sum(image**2, axis=1)


def tabulate_passes(numbers: Numbers) -> ResultTable:
    """A row a matrix and kind of space."""
    num_rows, num_columns = numbers["shape"]
    return ResultTable(
        f"Scores in {numbers['rank']} directions of {num_rows:,} × {num_columns:,}: "
        "the worst relative error of rows above the median score, by passes over the "
        "rows",
        ["matrix", "", *map(str, NUM_PASSES)],
        [
            [name, kind if kind != "bound" else "`error_bound`"]
            + [f"{value:.0e}" for value in values]
            for name, misses in numbers["matrices"].items()
            for kind, values in misses.items()
        ],
    )


def cells(effort: Effort, key: jax.Array) -> Study:
    """One data set, and samples of it by every rule."""
    num_cells = NUM_CELLS if effort.is_full else FEW_CELLS
    sample_size = SAMPLE_SIZE * num_cells // NUM_CELLS
    data_key, score_key, run_key = jax.random.split(key, 3)
    matrix, kinds = draw_cells(data_key, num_cells)
    rank_k = sketching.rank_k_leverage_scores(score_key, matrix, NUM_DIRECTIONS)
    scores = {
        "rank-k scores": rank_k.scores,
        "leverage scores": sketching.leverage_scores(matrix),
        "uniform": jnp.ones(num_cells),
    }
    num_rare = int(jnp.sum(kinds == 0))
    return Study(
        {
            "num_cells": num_cells,
            "num_rare": num_rare,
            "sample_size": sample_size,
            "gap": float(rank_k.gap),
            "error_bound": float(rank_k.error_bound),
            "shares": {
                rule: float(jnp.sum(jnp.where(kinds == 0, values, 0)) / jnp.sum(values))
                for rule, values in scores.items()
            },
            "kept": Trial(one_run, scores, kinds == 0, sample_size),
            "picture": Once(picture, run_key, matrix, kinds, scores, sample_size),
        },
        key=run_key,
        runs=effort.runs,
        batch_size=1,
        tables={"cells": tabulate_cells},
        figures={"cells": draw},
    )


def draw_cells(key: jax.Array, num_cells: int) -> tuple[jax.Array, jax.Array]:
    """Clusters of unequal sizes around centres, the first of which is rare; centred.

    The centres are sparse in the genes, as types of cells are told by markers.
    """
    centre_key, marker_key, kind_key, noise_key = jax.random.split(key, 4)
    shape = NUM_TYPES, NUM_GENES
    markers = jax.random.uniform(marker_key, shape) < 0.1
    centres = 3 * markers * jnp.abs(jax.random.normal(centre_key, shape))
    common = np.geomspace(1, 8, NUM_TYPES - 1)
    shares = jnp.append(RARE_SHARE, (1 - RARE_SHARE) * common / common.sum())
    kinds = jax.random.choice(kind_key, NUM_TYPES, (num_cells,), p=shares)
    noise = jax.random.normal(noise_key, (num_cells, NUM_GENES))
    matrix = centres[kinds] + NOISE * noise
    return matrix - matrix.mean(axis=0), kinds


def one_run(key, scores, is_rare, sample_size) -> Numbers:
    """How many of the rare ones are kept, each at most once."""
    return {
        rule: jnp.sum(is_rare[draw_sample(key, values, sample_size)])
        for rule, values in scores.items()
    }


def draw_sample(key, scores, sample_size) -> jax.Array:
    """Indices of different cells."""
    sample = sketching.sample_rows(
        key, scores, sample_size, method="without_replacement"
    )
    return sample.indices


def picture(key, matrix, kinds, scores, sample_size) -> Numbers:
    """Two coordinates, in which the rare ones are apart, of samples by two rules."""
    mean = jnp.mean(matrix[kinds == 0], axis=0)
    first = mean / jnp.linalg.norm(mean)
    rest = matrix - jnp.outer(matrix @ first, first)
    second = jnp.linalg.eigh(rest.T @ rest)[1][:, -1]
    shown = {}
    for rule in ("rank-k scores", "uniform"):
        indices = draw_sample(key, scores[rule], sample_size)
        places = matrix[indices] @ jnp.stack([second, first], axis=1)
        # To what a picture shows.
        shown[rule] = {
            "places": np.round(np.asarray(places, float), 2),
            "is_rare": np.asarray(kinds[indices] == 0),
        }
    return shown


def tabulate_cells(numbers: Numbers) -> ResultTable:
    """A row a rule."""
    kept, uniform = numbers["kept"], numbers["kept"]["uniform"].mean
    return ResultTable(
        f"{numbers['sample_size']:,} of {numbers['num_cells']:,} cells: how many of "
        f"the {numbers['num_rare']} of the rare type are kept, mean of "
        f"{numbers['runs']} samples",
        ["sampled by", "share of all scores, percent", "rare cells kept", "/ uniform"],
        [
            [
                rule,
                f"{100 * numbers['shares'][rule]:.2f}",
                interval(kept[rule], 1),
                f"{kept[rule].mean / uniform:.1f}",
            ]
            for rule in RULES
        ],
    )


def draw(numbers: Numbers) -> Figure:
    """A panel a rule; the rare cells stand out."""
    figure, panels = new_figure(8, 3.8, columns=2)
    for axes, (rule, shown) in zip(panels, numbers["picture"].items()):
        places, is_rare = np.asarray(shown["places"]), np.asarray(shown["is_rare"])
        for group, color, size in ((~is_rare, "0.6", 4), (is_rare, COLORS[3], 14)):
            axes.scatter(*places[group].T, s=size, color=color, linewidths=0)
        axes.set_title(f"{rule}: {is_rare.sum()} of {numbers['num_rare']} rare cells")
        axes.set_xlabel("leading direction of the rest")
    panels[0].set_ylabel("towards the rare type")
    return figure
