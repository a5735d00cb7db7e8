"""Solvers to compare: those of the library, QR, LAPACK, and randomised peers.

FOSSILS and SPIR are written here in NumPy, from their description in the paper. Their
reference implementation is in MATLAB.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from experiments.stability.problems import ROWS_PER_COLUMN, LeastSquares
from jaxwgc import sketching

PLAIN_ITERATIONS = 100
MAX_STAGE_ITERATIONS = 100
# Iterations between two estimates of the backward error, in the second stage.
CHECK_EVERY = 5


class Solved(NamedTuple):
    """θ, the number of iterations, and whether the solver reports convergence.

    Solvers without iterations or without a report have None.
    """

    solution: np.ndarray
    num_iterations: int | None = None
    converged: bool | None = None


Solver = Callable[[jax.Array, LeastSquares], Solved]


def economic_qr(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns Q and R in the precision of the matrix, unlike NumPy."""
    # The stub of SciPy knows only the factors with pivots.
    factors: Any = scipy.linalg.qr(matrix, mode="economic")
    basis, upper = factors
    return basis, upper


def householder_qr(key: jax.Array, problem: LeastSquares) -> Solved:
    """Solves by Householder QR."""
    del key
    basis, upper = economic_qr(problem.matrix)
    solution = scipy.linalg.solve_triangular(upper, basis.T @ problem.target)
    return Solved(solution)


def lapack(driver: str, key: jax.Array, problem: LeastSquares) -> Solved:
    """Solves by a driver of LAPACK for least squares."""
    del key
    # The stub of SciPy does not know the names of drivers.
    lstsq: Any = scipy.linalg.lstsq
    solution, *_ = lstsq(problem.matrix, problem.target, lapack_driver=driver)
    return Solved(solution)


def preconditioned(method: str, key: jax.Array, problem: LeastSquares) -> Solved:
    """Solves by `sketching.preconditioned`."""
    solved = sketching.preconditioned(
        key,
        problem.matrix,
        problem.target,
        ROWS_PER_COLUMN * problem.matrix.shape[1],
        method=method,
    )
    return Solved(
        solution=np.asarray(solved.solution),
        num_iterations=int(solved.num_iterations),
        converged=bool(solved.converged),
    )


def sketch_and_precondition(key: jax.Array, problem: LeastSquares) -> Solved:
    """Solves by LSQR from zero, with R of a sketch as its preconditioner."""
    matrix, target = problem
    embedding = _embedding(key, problem)
    _, upper = economic_qr(np.asarray(embedding @ matrix))

    def product(x):
        return matrix @ scipy.linalg.solve_triangular(upper, x)

    def transposed_product(y):
        return scipy.linalg.solve_triangular(upper, matrix.T @ y, trans=1)

    # The stub of SciPy does not know the arguments.
    make_operator: Any = scipy.sparse.linalg.LinearOperator
    operator = make_operator(
        matrix.shape, matvec=product, rmatvec=transposed_product, dtype=matrix.dtype
    )
    found, _, num_iterations, *_ = scipy.sparse.linalg.lsqr(
        operator, target, atol=0.0, btol=0.0, conlim=0.0, iter_lim=PLAIN_ITERATIONS
    )
    solution = scipy.linalg.solve_triangular(upper, found.astype(matrix.dtype))
    return Solved(solution, num_iterations)


def _embedding(key: jax.Array, problem: LeastSquares) -> sketching.Embedding:
    num_rows, num_columns = problem.matrix.shape
    return sketching.sparse_sign(key, ROWS_PER_COLUMN * num_columns, num_rows)


class Sketched(NamedTuple):
    """A problem with columns of norm 1, and the preconditioner V / s of its sketch.

    Attributes:
        matrix: X with columns of norm 1.
        target: y.
        values: Singular values s of the sketch.
        right: V, (p, k).
        preconditioner: V / s without the smallest values.
        ratio: p over the number of rows of the sketch.
    """

    matrix: np.ndarray
    target: np.ndarray
    values: np.ndarray
    right: np.ndarray
    preconditioner: np.ndarray
    ratio: float

    def whitened(self, vector: np.ndarray) -> np.ndarray:
        """Returns Pᵀ Xᵀ X P v."""
        image = self.matrix @ (self.preconditioner @ vector)
        return self.preconditioner.T @ (self.matrix.T @ image)

    def backward_error(self, solution: np.ndarray) -> float:
        """Returns Karlson and Waldén's estimate by the sketch, relative to ‖X‖."""
        residual = self.target - self.matrix @ solution
        norm = np.linalg.norm(self.values)
        relative = norm / np.linalg.norm(self.target)
        scale = relative / np.sqrt(1 + relative**2 * np.sum(solution**2))
        gradient = self.right.T @ (self.matrix.T @ residual)
        weight = self.values**2 + scale**2 * np.sum(residual**2)
        return float(scale * np.linalg.norm(gradient / np.sqrt(weight)) / norm)


# Yields the vector v and its change after each iteration for Pᵀ Xᵀ X P v = right.
Inner = Callable[[Sketched, np.ndarray], Any]


def heavy_ball(sketched: Sketched, right: np.ndarray):
    """Iterates Polyak's method, the inner solver of FOSSILS."""
    momentum = sketched.ratio
    damping = (1 - momentum) ** 2
    previous = right
    vector = right
    while True:
        update = damping * (right - sketched.whitened(vector))
        update += momentum * (vector - previous)
        previous = vector
        vector = vector + update
        yield vector, update


def conjugate_gradients(sketched: Sketched, right: np.ndarray):
    """Iterates conjugate gradients, the inner solver of SPIR."""
    vector = right
    residual = right - sketched.whitened(vector)
    direction = residual
    gamma = residual @ residual
    while True:
        image = sketched.whitened(direction)
        step = gamma / (direction @ image)
        vector = vector + step * direction
        yield vector, step * direction
        residual = residual - step * image
        new_gamma = residual @ residual
        direction = residual + new_gamma / gamma * direction
        gamma = new_gamma


def two_stages(inner: Inner, key: jax.Array, problem: LeastSquares) -> Solved:
    """Solves by sketch and solve, and two refinements by an inner solver.

    The first refinement ends when its steps are at the level of forward stability, the
    second at a backward error of machine epsilon.
    """
    scale = 1 / np.linalg.norm(problem.matrix, axis=0)
    matrix = problem.matrix * scale
    target = problem.target
    embedding = _embedding(key, problem)
    sketch = np.asarray(embedding @ matrix)
    left, values, rows = np.linalg.svd(sketch, full_matrices=False)
    eps = np.finfo(matrix.dtype).eps
    is_kept = values > 30 * eps * values[0]
    sketched = Sketched(
        matrix=matrix,
        target=target,
        values=values,
        right=rows.T,
        preconditioner=rows[is_kept].T / values[is_kept],
        ratio=sketch.shape[1] / sketch.shape[0],
    )
    sketched_target = np.asarray(embedding @ target)
    solution = sketched.preconditioner @ (left[:, is_kept].T @ sketched_target)
    residual_norm = np.linalg.norm(target - matrix @ solution)
    size = values[0] * np.linalg.norm(solution)
    condition = values[0] / values[-1]
    forward_stable = 10 * eps * (size + 0.04 * condition * residual_norm)
    num_iterations = 0
    for stage in range(2):
        residual = target - matrix @ solution
        right = sketched.preconditioner.T @ (matrix.T @ residual)
        start = solution
        iterates = inner(sketched, right)
        for iteration in range(1, MAX_STAGE_ITERATIONS + 1):
            vector, update = next(iterates)
            num_iterations += 1
            solution = start + sketched.preconditioner @ vector
            if stage == 0 and np.linalg.norm(update) <= forward_stable:
                break
            is_checked = stage == 1 and iteration % CHECK_EVERY == 0
            if is_checked and sketched.backward_error(solution) <= eps:
                break
        if sketched.backward_error(solution) <= eps:
            return Solved(solution * scale, num_iterations, True)
    return Solved(solution * scale, num_iterations, False)


QR = "Householder QR"
PLAIN = "sketch-and-precondition"
GRAM = '`preconditioned`, "gram"'
SKETCH = '`preconditioned`, "sketch"'
FACTOR = '`preconditioned`, "factor"'
SOLVERS: dict[str, Solver] = {
    PLAIN: sketch_and_precondition,
    SKETCH: functools.partial(preconditioned, "sketch"),
    GRAM: functools.partial(preconditioned, "gram"),
    FACTOR: functools.partial(preconditioned, "factor"),
    "FOSSILS": functools.partial(two_stages, heavy_ball),
    "SPIR": functools.partial(two_stages, conjugate_gradients),
    "LAPACK gelsd": functools.partial(lapack, "gelsd"),
    "LAPACK gelsy": functools.partial(lapack, "gelsy"),
    QR: householder_qr,
}
