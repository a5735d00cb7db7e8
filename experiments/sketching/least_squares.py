"""A least-squares problem, and the solvers that are compared on it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import sklearn.linear_model

from jaxwgc import sketching

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


def orthonormal(
    key: jax.Array, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """U (N, p) and V (p, p), with orthonormal columns."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    return (
        np.linalg.qr(rng.standard_normal(shape))[0],
        np.linalg.qr(rng.standard_normal((shape[1], shape[1])))[0],
    )


def system(
    key: jax.Array, left: np.ndarray, right: np.ndarray, condition: float
) -> tuple[np.ndarray, np.ndarray]:
    """X with singular values evenly spaced in their logarithm, and y = Xθ + noise."""
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    matrix = (left * np.geomspace(1, 1 / condition, right.shape[0])) @ right.T
    target = matrix @ rng.standard_normal(right.shape[0])
    noise = rng.standard_normal(len(target))
    return matrix, target + noise * (
        NOISE * np.linalg.norm(target) / np.linalg.norm(noise)
    )


def scipy_solution(matrix: np.ndarray, target: np.ndarray, driver: str) -> np.ndarray:
    """θ by LAPACK."""
    found = scipy.linalg.lstsq(matrix, target, lapack_driver=driver)
    assert found is not None
    return found[0]


def entries(
    key: jax.Array, matrix: np.ndarray, target: np.ndarray, is_full: bool
) -> list[Entry]:
    """In the order of the table."""
    x, y = jnp.asarray(matrix), jnp.asarray(target)
    # LAPACK reads columns; without these it would copy X first, in the time measured.
    column_major = np.asfortranarray(matrix)
    num_columns = matrix.shape[1]
    products = jax.jit(lambda x: (x.T @ x, x.T @ (2 * x)))

    def own(function, *arguments, **options):
        return functools.partial(function, key, x, y, *arguments, **options)

    found = [Entry(PRODUCTS, "", lambda: products(x))]
    for method in ("gram", "sketch"):
        run = own(sketching.preconditioned, method=method)
        found.append(Entry("`preconditioned`", f'"{method}"', run))
    for name, factor in SKETCHES if is_full else SKETCHES[::4]:
        run = own(sketching.sketch_and_solve, factor * num_columns, name)
        found.append(Entry(f"`sketch_and_solve`, {name}", f"{factor}p", run))
    for number in (1, 2, 4) if is_full else (2,):
        run = own(
            sketching.iterative_hessian_sketch,
            8 * num_columns,
            number,
            embedding="sparse_sign",
        )
        found.append(Entry("`iterative_hessian_sketch`, 8p", f"{number} it.", run))
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
    found += [Entry(name, "", run, False) for name, run in peers.items()]
    found.append(Entry("`jax.numpy` `lstsq`", "", lambda: jnp.linalg.lstsq(x, y)[0]))
    return found
