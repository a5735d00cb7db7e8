"""Solvers of least squares and of logistic regression: time and accuracy."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import sklearn.linear_model

from experiments.paper import mnist
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import YES_NO, ResultTable, table_of
from experiments.runner.timing import measure_in_turn
from jaxwgc import sketching

SHAPE = (100_000, 200)
SMALL_SHAPE = (4_000, 20)
CONDITIONS = {"ill": 1e8, "well": 10.0}
# Runs of each solver; no further run after so many seconds.
REPEATS = 5
BUDGET = 5.0
# Norm of the noise relative to Xθ.
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


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per condition number."""
    shape = SHAPE if effort.is_full else SMALL_SHAPE
    repeats = REPEATS if effort.is_full else 1

    def measure(condition: float) -> list[Numbers]:
        matrix, target = system(key, shape, condition)
        solvers = entries(jax.random.fold_in(key, 2), matrix, target, effort.is_full)
        return compare(solvers, matrix, target, repeats)

    cells = {}
    tables = {}
    for name, condition in CONDITIONS.items():
        cells[f"{condition:.0e}"] = Once(measure, condition)
        tables[f"solvers_{name}"] = tabulate(condition)
    return Study({"shape": shape, "measured": cells}, x64=True, tables=tables)


def generator(key: jax.Array) -> np.random.Generator:
    """Returns NumPy's generator with random bits of the key as its seed."""
    return np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))


def system(
    key: jax.Array, shape: tuple[int, int], condition: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns X with logarithmically spaced singular values, and y = Xθ + noise."""
    _, num_columns = shape
    rng = generator(jax.random.fold_in(key, 0))
    noise_rng = generator(jax.random.fold_in(key, 1))
    left, _ = np.linalg.qr(rng.standard_normal(shape))
    right, _ = np.linalg.qr(rng.standard_normal((num_columns, num_columns)))
    values = np.geomspace(1, 1 / condition, num_columns)
    matrix = (left * values) @ right.T
    target = matrix @ noise_rng.standard_normal(num_columns)
    noise = noise_rng.standard_normal(len(target))
    scale = NOISE * np.linalg.norm(target) / np.linalg.norm(noise)
    return matrix, target + noise * scale


def scipy_solution(matrix: np.ndarray, target: np.ndarray, driver: str) -> np.ndarray:
    """Returns θ by LAPACK."""
    solved = scipy.linalg.lstsq(matrix, target, lapack_driver=driver)
    assert solved is not None
    return solved[0]


def entries(
    key: jax.Array, matrix: np.ndarray, target: np.ndarray, is_full: bool
) -> dict[str, Callable[[], Any]]:
    """Returns solvers by name and setting; they return θ, a `Solution`, or nothing."""
    x = jnp.asarray(matrix)
    y = jnp.asarray(target)
    # LAPACK reads columns; without these it would copy X first, in the time measured.
    column_major = np.asfortranarray(matrix)
    num_columns = matrix.shape[1]
    products = jax.jit(lambda x: [x.T @ x, x.T @ (2 * x)])

    def ours(function, *arguments, **options):
        return functools.partial(function, key, x, y, *arguments, **options)

    solvers: dict[str, Callable[[], Any]] = {PRODUCTS: lambda: products(x)}
    for method in ("gram", "sketch"):
        run = ours(sketching.preconditioned, method=method)
        solvers[f'`preconditioned` "{method}"'] = run
    for name, factor in SKETCHES if is_full else SKETCHES[::4]:
        size = factor * num_columns
        embedding = getattr(sketching, name)
        run = ours(sketching.sketch_and_solve, size, embedding)
        solvers[f"`sketch_and_solve`, {name} {factor}p"] = run
    for number in (1, 2, 4) if is_full else (2,):
        run = ours(
            sketching.iterative_hessian_sketch,
            8 * num_columns,
            number,
            embedding=sketching.sparse_sign,
        )
        solvers[f"`iterative_hessian_sketch`, 8p {number} it."] = run
    for driver in ("gelsd", "gelsy"):
        run = functools.partial(scipy_solution, column_major, target, driver)
        solvers[f"scipy `lstsq`, {driver}"] = run
    solvers["scipy `lsqr`"] = functools.partial(
        scipy.sparse.linalg.lsqr,
        matrix,
        target,
        atol=1e-15,
        btol=1e-15,
        iter_lim=MAX_LSQR_ITERATIONS,
    )
    solvers["numpy `lstsq`"] = lambda: np.linalg.lstsq(column_major, target)[0]
    model = sklearn.linear_model.LinearRegression(fit_intercept=False)
    name = "scikit-learn `LinearRegression`"
    solvers[name] = lambda: model.fit(matrix, target).coef_
    solvers["`jax.numpy` `lstsq`"] = lambda: jnp.linalg.lstsq(x, y)[0]
    return solvers


def compare(
    solvers: dict[str, Callable[[], Any]],
    matrix: np.ndarray,
    target: np.ndarray,
    repeats: int,
) -> list[Numbers]:
    """Times all solvers in turn; the excess is relative to SciPy's default."""

    def norm(solution):
        return np.linalg.norm(target - matrix @ np.asarray(solution))

    best = norm(scipy_solution(matrix, target, "gelsd"))
    timed = measure_in_turn([*solvers.values()], repeats, BUDGET, warm=True)
    measured = []
    for name, (result, time) in zip(solvers, timed, strict=True):
        solution, counts = unpacked(result)
        excess = None if name == PRODUCTS else float(norm(solution) / best - 1)
        measured.append({"solver": name, "time": time, "excess": excess, **counts})
    return measured


def unpacked(result: Any) -> tuple[np.ndarray, dict[str, int | bool | None]]:
    """Returns the solution of a solver, its iterations, and whether it converged."""
    iterations = None
    converged = None
    if isinstance(result, sketching.Solution):
        iterations = int(result.num_iterations)
        converged = bool(result.converged)
        result = result.solution
    elif isinstance(result, tuple):
        result, reason, iterations, *_ = result
        # Reasons of `lsqr`: the condition number (3 and 6), and the iteration limit.
        converged = reason not in (3, 6, 7)
    elif isinstance(result, sklearn.linear_model.LogisticRegression):
        iterations = int(result.n_iter_[0])
        result = result.coef_[0]
    return np.asarray(result), {"iterations": iterations, "converged": converged}


def tabulate(condition: float) -> Callable[[Numbers], ResultTable]:
    """Returns a table with a row per solver and setting."""
    return table_of(
        "{shape[0]:,} × {shape[1]}, float64, condition number " + f"{condition:,.0f}",
        {
            "solver": "{solver}",
            "seconds": "{time}",
            "runs": "{time.runs}",
            "excess": lambda row: "" if row.excess is None else f"{row.excess:.1e}",
            "iterations": lambda row: str(row.iterations or ""),
            "converged": lambda row: YES_NO[row.converged],
        },
        lambda numbers: numbers["measured"][f"{condition:.0e}"],
    )


RIDGE = 1e-3
# Images of a quick run, whose pixels are means of 4 × 4.
SMALL_IMAGES = 1_000
LOGISTIC_REPEATS = 3
LOGISTIC_BUDGET = 10.0
MAX_STEPS = 40
# As (m / p, num_refinements).
SETTINGS = ((2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2))
# Solvers of scikit-learn and their tolerances. The first takes exact Newton steps to
# the last digit, and is the reference.
PEERS = {"newton-cholesky": 1e-13, "lbfgs": 1e-10}


def logistic(effort: Effort, key: jax.Array) -> Study:
    """Returns a row per solver."""
    features, labels = load(effort)
    repeats = LOGISTIC_REPEATS if effort.is_full else 1
    cell = Once(compare_logistic, key, features, labels, repeats)
    numbers = {"shape": features.shape, "measured": cell}
    return Study(numbers, x64=True, tables={"logistic": tabulate_logistic})


def load(effort: Effort) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, and whether they show a nine."""
    with np.load(mnist.DATA) as file:
        images = file["images"].reshape(-1, 784) / 255
        labels = file["labels"] == 9
    if effort.is_full:
        return images, labels
    order = np.random.default_rng(0).permutation(len(images))[:SMALL_IMAGES]
    return coarse(images[order]), labels[order]


def coarse(images: np.ndarray) -> np.ndarray:
    """Returns means of 4 × 4 pixels, (images, 49)."""
    return images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49)


def logistic_solvers(
    key: jax.Array, features: np.ndarray, labels: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """Returns solvers by name; the first is the reference."""
    num_rows, num_columns = features.shape
    solvers: dict[str, Callable[[], Any]] = {}
    for solver, tolerance in PEERS.items():
        model = sklearn.linear_model.LogisticRegression(
            C=1 / (num_rows * RIDGE),
            fit_intercept=False,
            solver=solver,
            tol=tolerance,
            max_iter=10_000,
        )
        fit = functools.partial(model.fit, features, labels)
        solvers[f"scikit-learn, {solver}"] = fit
    x, y = jax.device_put((features, labels))
    for factor, refinements in SETTINGS:
        name = f"`logistic_newton_sketch`, {factor}p"
        if refinements:
            name += f", {refinements} ref."
        solvers[name] = functools.partial(
            sketching.logistic_newton_sketch,
            key,
            x,
            y,
            sketch_size=factor * num_columns,
            num_refinements=refinements,
            max_iterations=MAX_STEPS,
            ridge=RIDGE,
        )
    return solvers


def compare_logistic(
    key: jax.Array, features: np.ndarray, labels: np.ndarray, repeats: int
) -> Iterator[Numbers]:
    """Yields time and distance from the reference of every solver."""
    solvers = logistic_solvers(key, features, labels)
    timed = measure_in_turn([*solvers.values()], repeats, LOGISTIC_BUDGET, warm=True)
    reference, _ = timed[0]
    optimum, _ = unpacked(reference)
    for name, (solved, time) in zip(solvers, timed, strict=True):
        params, counts = unpacked(solved)
        difference = params - optimum
        relative = np.linalg.norm(difference) / np.linalg.norm(optimum)
        yield {
            "name": name,
            "time": time,
            **counts,
            "largest_difference": np.abs(difference).max(),
            "relative_difference": relative,
        }


def scientific(name: str, otherwise: str = "") -> Callable[[Numbers], str]:
    """Returns the column of a number, which is 0 for the reference."""

    def column(row):
        return f"{row[name]:.1e}" if row[name] else otherwise

    return column


tabulate_logistic = table_of(
    f"Logistic regression on {{shape[0]:,}} × {{shape[1]}}, ridge {RIDGE}",
    {
        "solver": "{name}",
        "steps": "{iterations}",
        "largest difference": scientific("largest_difference", "reference"),
        "relative difference": scientific("relative_difference"),
        "seconds": "{time}",
        "runs": "{time.runs}",
        "converged": lambda row: YES_NO[row.converged],
    },
    "measured",
)
