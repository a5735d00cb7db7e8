"""Least squares: how far from the optimum a solver ends, and how long it takes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import sklearn.linear_model

from experiments.runner import timing
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import YES_NO, ResultTable
from jaxwgc import sketching

SHAPE, SMALL_SHAPE = (100_000, 200), (4_000, 20)
CONDITIONS = {"ill": 1e8, "well": 10.0}
# Slow solvers are run less often: no further run after so many seconds.
REPEATS, BUDGET = 5, 5.0
# What the accuracy of the figures ends at: rounding below.
FLOOR = 1e-15
OURS = ("`preconditioned`", "`sketch_and_solve`", "`iterative")
# The norm of the noise over that of what it is added to.
NOISE = 0.1
MAX_LSQR_ITERATIONS = 200
PRODUCTS = "two products XᵀX"
# As (embedding, m / p).
SKETCHES = (
    *(("sparse_sign", factor) for factor in (2, 4, 16, 64)),
    *(("count_sketch", factor) for factor in (4, 16)),
    *(("srht", factor) for factor in (4, 16)),
    ("gaussian", 4),
)


class Entry(NamedTuple):
    """A solver at one setting; `run()` gives θ, or a `Solution`, or nothing."""

    family: str
    setting: str
    run: Callable[[], Any]
    is_compiled: bool = True


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a condition number."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    repeats = REPEATS if effort.is_full else 1
    with jax.enable_x64(True):
        left, right = orthonormal(jax.random.fold_in(key, 0), shape)

    def measure(condition: float) -> list[Numbers]:
        matrix, target = system(jax.random.fold_in(key, 1), left, right, condition)
        solvers = entries(jax.random.fold_in(key, 2), matrix, target, effort.is_full)
        return compare(solvers, matrix, target, repeats)

    return Study(
        {
            "shape": shape,
            "measured": {
                f"{condition:.0e}": Once(measure, condition)
                for condition in CONDITIONS.values()
            },
        },
        x64=True,
        tables={
            f"solvers_{name}": functools.partial(tabulate, condition)
            for name, condition in CONDITIONS.items()
        },
        figures={"solvers": draw},
    )


def orthonormal(key: jax.Array, shape: tuple[int, int]) -> Any:
    """U (N, p) and V (p, p), with orthonormal columns."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    shapes = shape, (shape[1], shape[1])
    return [np.linalg.qr(rng.standard_normal(shape))[0] for shape in shapes]


def system(key, left, right, condition) -> tuple[np.ndarray, np.ndarray]:
    """X with singular values evenly spaced in their logarithm, and y = Xθ + noise."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    matrix = (left * np.geomspace(1, 1 / condition, right.shape[0])) @ right.T
    target = matrix @ rng.standard_normal(right.shape[0])
    noise = rng.standard_normal(len(target))
    scale = NOISE * np.linalg.norm(target) / np.linalg.norm(noise)
    return matrix, target + noise * scale


def scipy_solution(matrix: np.ndarray, target: np.ndarray, driver: str) -> np.ndarray:
    """θ by LAPACK."""
    solved = scipy.linalg.lstsq(matrix, target, lapack_driver=driver)
    assert solved is not None
    return solved[0]


def entries(key, matrix, target, is_full) -> list[Entry]:
    """In the order of the table."""
    x, y = jnp.asarray(matrix), jnp.asarray(target)
    # LAPACK reads columns; without these it would copy X first, in the time measured.
    column_major = np.asfortranarray(matrix)
    num_columns = matrix.shape[1]
    products = jax.jit(lambda x: (x.T @ x, x.T @ (2 * x)))

    def ours(function, *arguments, **options):
        return functools.partial(function, key, x, y, *arguments, **options)

    solvers = [Entry(PRODUCTS, "", lambda: products(x))]
    for method in ("gram", "sketch"):
        run = ours(sketching.preconditioned, method=method)
        solvers.append(Entry("`preconditioned`", f'"{method}"', run))
    for name, factor in SKETCHES if is_full else SKETCHES[::4]:
        make = getattr(sketching, name)
        run = ours(sketching.sketch_and_solve, factor * num_columns, make)
        solvers.append(Entry(f"`sketch_and_solve`, {name}", f"{factor}p", run))
    for number in (1, 2, 4) if is_full else (2,):
        run = ours(
            sketching.iterative_hessian_sketch,
            8 * num_columns,
            number,
            embedding=sketching.sparse_sign,
        )
        solvers.append(Entry("`iterative_hessian_sketch`, 8p", f"{number} it.", run))
    lsqr = functools.partial(
        scipy.sparse.linalg.lsqr, atol=1e-15, btol=1e-15, iter_lim=MAX_LSQR_ITERATIONS
    )
    model = sklearn.linear_model.LinearRegression(fit_intercept=False)
    peers: dict[str, Callable[[], Any]] = {
        "scipy `lstsq`, gelsd": lambda: scipy_solution(column_major, target, "gelsd"),
        "scipy `lstsq`, gelsy": lambda: scipy_solution(column_major, target, "gelsy"),
        "scipy `lsqr`": lambda: lsqr(matrix, target),
        "numpy `lstsq`": lambda: np.linalg.lstsq(column_major, target)[0],
        "scikit-learn `LinearRegression`": lambda: model.fit(matrix, target).coef_,
    }
    solvers += [Entry(name, "", run, False) for name, run in peers.items()]
    solvers.append(Entry("`jax.numpy` `lstsq`", "", lambda: jnp.linalg.lstsq(x, y)[0]))
    return solvers


def compare(
    solvers: list[Entry], matrix: Any, target: Any, repeats: int
) -> list[Numbers]:
    """Every solver in turn; excess is against SciPy's default, as the bar is."""

    def norm(solution):
        return np.linalg.norm(target - matrix @ np.asarray(solution))

    best = norm(scipy_solution(matrix, target, "gelsd"))
    for entry in solvers:
        if entry.is_compiled:
            jax.block_until_ready(entry.run())
    timed = timing.measure_in_turn([entry.run for entry in solvers], repeats, BUDGET)
    measured = []
    for entry, (result, time) in zip(solvers, timed, strict=True):
        iterations = converged = None
        if isinstance(result, sketching.Solution):
            iterations, converged = int(result.num_iterations), bool(result.converged)
            result = result.solution
        elif "lsqr" in entry.family:
            # Reasons 3 and 7: the condition number, and the limit of iterations.
            iterations, converged = result[2], result[1] not in (3, 6, 7)
            result = result[0]
        is_solver = entry.family != PRODUCTS
        excess = float(norm(result) / best - 1) if is_solver else None
        measured.append(
            {
                "family": entry.family,
                "setting": entry.setting,
                "time": time,
                "excess": excess,
                "iterations": iterations,
                "converged": converged,
            }
        )
    return measured


def tabulate(condition: float, numbers: Numbers) -> ResultTable:
    """A row a solver and setting."""
    rows, columns = numbers["shape"]
    return ResultTable.of_records(
        f"{rows:,} × {columns}, float64, condition number {condition:,.0f}",
        lambda row: {
            "solver": f"{row.family} {row.setting}".strip(),
            "seconds": row.time.cell(),
            "runs": str(row.time.runs),
            "excess": "" if row.excess is None else f"{row.excess:.1e}",
            "iterations": "" if row.iterations is None else str(row.iterations),
            "converged": YES_NO[row.converged],
        },
        numbers["measured"][f"{condition:.0e}"],
    )


def draw(numbers: Numbers) -> Figure:
    """A panel a condition number."""
    measured = numbers["measured"]
    figure, panels = new_figure(11, 5, len(measured))
    families = list(dict.fromkeys(row.family for row in next(iter(measured.values()))))
    families.remove(PRODUCTS)
    num_ours = sum(f.startswith(OURS) for f in families)
    for axes, (condition, rows) in zip(panels, measured.items(), strict=True):
        for index, family in enumerate(families):
            points = [row for row in rows if row.family == family]
            # Filled and joined: ours; hollow: peers, in the same colours.
            is_ours = index < num_ours
            look = style(index if is_ours else index - num_ours)
            axes.plot(
                [row.time.median for row in points],
                [max(row.excess or 0.0, FLOOR) for row in points],
                markersize=6,
                markerfacecolor=look["color"] if is_ours else "white",
                linestyle="-" if "sketch" in family else "none",
                linewidth=1,
                label=family.replace("`", ""),
                **look,
            )
        (products,) = (row.time.median for row in rows if row.family == PRODUCTS)
        axes.axvline(products, color="0.4", linestyle=":", label=PRODUCTS)
        power = f"$10^{{{np.log10(float(condition)):.0f}}}$"
        axes.set(title=f"condition number {power}", xlabel="time (s), median")
        axes.set(xscale="log", yscale="log")
    panels[0].set_ylabel(f"relative excess of the residual (at least {FLOOR:.0e})")
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure
