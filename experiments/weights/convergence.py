"""Convergence of coded descent, and its distance from the whole solution."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.paper import descent, linear_regression
from experiments.runner import tables
from experiments.runner.figures import COLORS, Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Study, Trial
from experiments.runner.tables import ResultTable, at, interval

# Thresholds on the norm of the gradient, over six decades.
THRESHOLDS = tuple(10.0 ** (4 - decade) for decade in range(7))
COMPRESSIONS = (2, 4)
STEP_SIZE = linear_regression.PROTOCOLS["doubled"]
MAX_ITERATIONS = 2_000
WEIGHTINGS = linear_regression.WEIGHTINGS
# Sketches: parts of ten rows, and numbers of draws.
NUM_PARTS = 100
DRAWS = tuple(40 * 2**doubling for doubling in range(9))


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per compression, and one for sketches of growing size."""
    compressions = COMPRESSIONS if effort.is_full else COMPRESSIONS[:1]
    return Study(
        {
            "descent": {f"rho={c}": Trial(descend, c) for c in compressions},
            "sketches": {"": Trial(sketch)},
        },
        key=key,
        runs=effort.runs,
        batch_size=100,
        x64=True,
        reduce=reduce,
        tables={"iterations": tabulate_iterations, "distance": tabulate_distance},
        figures={"iterations": draw_iterations, "distance": draw_distance},
    )


def descend(key: jax.Array, compression: int) -> Numbers:
    """Returns iterations to each threshold, and distances from the whole solution."""
    sample_key, *keys = jax.random.split(key, 3)
    (features, responses), (small,), _ = linear_regression.draw_sample(
        sample_key, compression
    )
    solution = linear_regression.least_squares_solution(features, responses)
    residual = jnp.sum((responses - features @ solution) ** 2)

    def solve(key, weights):
        ends = linear_regression.extreme_curvatures(small.parts[0], weights)
        rate = jnp.max(jnp.abs(1 - STEP_SIZE * ends))

        def until(threshold):
            end = descent.descend(
                key,
                linear_regression.squared_error,
                jnp.zeros(linear_regression.NUM_FEATURES),
                small.parts,
                weights,
                STEP_SIZE,
                threshold,
                MAX_ITERATIONS,
            )
            off = features @ (end.params - solution)
            return end.iterations, jnp.sqrt(jnp.sum(off**2) / residual)

        iterations, distance = jax.vmap(until)(jnp.array(THRESHOLDS))
        return {
            "iterations": iterations,
            "distance": distance,
            "per_decade": (iterations[-1] - iterations[0]) / (len(THRESHOLDS) - 1),
            "asymptotic": -jnp.log(10.0) / jnp.log(rate),
        }

    return linear_regression.by_weighting(solve, keys, small.weights)


def sketch(key: jax.Array) -> Numbers:
    """Returns distortion and distance of the solution of samples of growing size.

    The distortion is that of X with the residual of the whole solution as a column.
    """
    data_key, sample_key = jax.random.split(key)
    features, responses = linear_regression.draw_data(data_key)
    basis = jnp.linalg.qr(features)[0]
    residual = responses - basis @ (basis.T @ responses)
    norm = jnp.linalg.norm(residual)
    columns = jnp.concatenate([basis, residual[:, None] / norm], axis=1)
    (rows,), _ = jaxwgc.partition((columns,), NUM_PARTS)
    grams = jnp.einsum("jmp,jmq->jpq", rows, rows)
    scores = jnp.sum(basis**2, axis=1)
    probabilities = jaxwgc.parts.partition_probabilities(scores, NUM_PARTS)

    def count(key):
        sample = jaxwgc.parts.sample_partitions(key, probabilities, num_draws=DRAWS[0])
        return jnp.zeros(NUM_PARTS).at[sample.indices].add(sample.counts)

    # Each sample extends the last one to twice the number of draws.
    keys = jax.random.split(sample_key, DRAWS[-1] // DRAWS[0])
    cumulative = jnp.cumsum(jax.vmap(count)(keys), axis=0)
    counts = cumulative[np.array(DRAWS) // DRAWS[0] - 1]

    def measure(counts):
        weights = counts / (counts.sum() * probabilities)
        gram = jnp.einsum("j,jpq->pq", weights, grams)
        deviations = jnp.linalg.eigvalsh(gram - jnp.eye(len(gram)))
        off = jnp.linalg.solve(gram[:-1, :-1], gram[:-1, -1])
        return {
            "distortion": jnp.max(jnp.abs(deviations)),
            "distance": jnp.linalg.norm(off),
        }

    return jax.vmap(measure)(counts)


def reduce(trials: Numbers) -> Numbers:
    """Returns means, and for sketches the bound."""
    if "distortion" not in trials:
        return jaxwgc.summarize(trials)
    distortion = np.asarray(trials["distortion"])
    distance = np.asarray(trials["distance"])
    is_bounded = distortion < 1
    bound = np.full_like(distortion, np.nan)
    bound[is_bounded] = distortion[is_bounded] / (1 - distortion[is_bounded])
    shares = (0.1, 0.5, 0.9)
    deciles = {
        name: np.quantile(values, shares, axis=0) for name, values in trials.items()
    }
    return {
        **jaxwgc.summarize(trials),
        "deciles": deciles,
        "speaks": is_bounded.mean(axis=0),
        "violations": (distance > bound * (1 + 1e-9)).sum(axis=0),
        "bound_over_distance": np.nanmedian(bound / distance, axis=0),
    }


def tabulate_iterations(numbers: Numbers) -> ResultTable:
    """Returns iterations by threshold, and those that O(1/ε) allows."""
    records = curves(numbers)
    weighted = numbers["descent"]["rho=2"]["weighted"]
    first = weighted["iterations"].mean[0]
    table = ResultTable(
        f"Iterations to a norm of the gradient with step {STEP_SIZE:g}, and distance "
        f"from θ_ols there, mean of {numbers['runs']:,} runs",
        ["‖g‖ ≤", *records, "C/ε from the first row", "distance, weighted, ρ = 2"],
    )
    for index, threshold in enumerate(THRESHOLDS):
        if index % 2:  # The figure has every threshold.
            continue
        row = [f"{threshold:g}"]
        for record in records.values():
            row.append(interval(at(record["iterations"], index), 1))
        row.append(f"{first * THRESHOLDS[0] / threshold:,.0f}")
        row.append(tables.interval_power_of_ten(at(weighted["distance"], index)))
        table.rows.append(row)
    for quantity, name in (
        ("per_decade", "per decade, measured"),
        ("asymptotic", "per decade, slowest direction"),
    ):
        counts = [interval(record[quantity], 1) for record in records.values()]
        table.rows.append([name, *counts, "", ""])
    return table


def curves(numbers: Numbers) -> dict[str, Numbers]:
    """Returns the measurements of descent by label."""
    records = {}
    for compression, by_name in numbers["descent"].items():
        ratio = compression.replace("rho=", "ρ = ")
        for name in WEIGHTINGS:
            records[f"{name}, {ratio}"] = by_name[name]
    return records


def draws(numbers: Numbers) -> list[dict[str, Numbers]]:
    """Returns a record per number of draws."""
    record = {"draws": DRAWS, **numbers["sketches"]}
    del record["deciles"]
    return tables.entries(record)


tabulate_distance = tables.table_of(
    f"The sampled solution, weighted parts of {NUM_PARTS}, {{runs:,}} runs",
    {
        "draws q": "{draws:,}",
        "distortion ε": "{distortion:3}",
        "distance ‖X(θ̃ − θ_ols)‖ / ‖r‖": "{distance:4}",
        "ε / (1 − ε) / distance, median": "{bound_over_distance:.1f}",
    },
    draws,
)


def draw_iterations(numbers: Numbers) -> Figure:
    """Draws iterations with their bound, and distances."""
    figure, panels = new_figure(10, 4.4, columns=2, sharey=False)
    for index, (label, record) in enumerate(curves(numbers).items()):
        for axes, quantity in zip(panels, ("iterations", "distance"), strict=True):
            curve = record[quantity]
            line(
                axes,
                index,
                x=THRESHOLDS,
                y=curve.mean,
                band=(curve.low, curve.high),
                label=label,
                markersize=4,
            )
    first = numbers["descent"]["rho=2"]["weighted"]["iterations"].mean[0]
    bound = first * THRESHOLDS[0] / np.array(THRESHOLDS)
    panels[0].plot(THRESHOLDS, bound, ":", color="0.3", label="O(1/ε) from there")
    panels[0].set(ylim=(0, 300), ylabel="iterations")
    panels[1].set(yscale="log", ylabel="distance ‖X(θ − θ_ols)‖ / ‖Xθ_ols − y‖")
    for axes in panels:
        axes.set(xscale="log", xlabel="norm of the gradient ε")
    panels[0].invert_xaxis()
    panels[0].legend()
    return figure


def draw_distance(numbers: Numbers) -> Figure:
    """Draws distance by distortion, with deciles of both."""
    figure, (axes,) = new_figure(7, 4.6)
    deciles = numbers["sketches"]["deciles"]
    left, x, right = deciles["distortion"]
    low, y, high = deciles["distance"]
    axes.errorbar(
        x,
        y,
        yerr=(y - low, high - y),
        xerr=(x - left, right - x),
        fmt="o",
        color=COLORS[0],
        label="median, 10–90% of the runs",
        capsize=2,
    )
    shown = np.geomspace(left.min(), 0.98, 200)
    axes.plot(shown, shown / (1 - shown), ":", color="0.3", label="bound ε / (1 − ε)")
    for num_draws, point in zip(DRAWS, zip(x, y, strict=True), strict=True):
        axes.annotate(
            f"q = {num_draws:,}",
            point,
            textcoords="offset points",
            xytext=(6, -12),
            fontsize=8,
            color="0.3",
        )
    axes.set(xscale="log", yscale="log", xlabel="distortion ε of the sample")
    axes.set_ylabel("distance ‖X(θ̃ − θ_ols)‖ / ‖Xθ_ols − y‖")
    axes.legend()
    return figure
