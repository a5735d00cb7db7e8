"""Matrices whose rows matter alike, or not at all alike, each with a target."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.runner.study import Effort

# Of the noise of the target.
DEVIATION = 3.0
# Of the correlation of neighbouring columns.
CORRELATION = 0.5


class Regression(NamedTuple):
    """Least squares in float64: the data, and what the exact solution is made of.

    Attributes:
        label: For tables and figures.
        matrix: X, (N, p).
        target: y, (N,).
        coefficients: β of y = Xβ + noise.
        basis: Q of a QR factorisation of X, (N, p).
        scores: Leverage scores of the rows, (N,): squared norms of rows of Q.
    """

    label: str
    matrix: np.ndarray
    target: np.ndarray
    coefficients: np.ndarray
    basis: np.ndarray
    scores: np.ndarray

    @property
    def coherence(self) -> float:
        """N times the largest leverage score over p: 1 at least, N / p at most."""
        num_rows, num_columns = self.matrix.shape
        return float(self.scores.max() * num_rows / num_columns)

    @property
    def coordinates(self) -> np.ndarray:
        """The exact solution in the basis: Xθ = Q coordinates."""
        return self.basis.T @ self.target

    @property
    def squared_residual(self) -> float:
        """The smallest ‖Xθ - y‖²."""
        return float(np.sum((self.target - self.basis @ self.coordinates) ** 2))


class Kind(NamedTuple):
    """Degrees of freedom of the rows, none where normal; a misfit for the target."""

    label: str
    degrees: int | None = None
    is_curved: bool = False


KINDS = {
    "GA": Kind("GA, incoherent"),
    "GA curved": Kind("GA, curved target", is_curved=True),
    "T3": Kind("T3, somewhat coherent", degrees=3),
    "T1": Kind("T1, coherent", degrees=1),
}


def regressions(key, num_rows, num_columns) -> dict[str, Regression]:
    """All kinds, of the same normal rows, noise and coefficients.

    As in Ma, Mahoney and Yu, "A statistical perspective on algorithmic leveraging",
    JMLR 16 (2015), section 4.1: rows 1 + g √(ν / χ²_ν), with normal g of the covariance
    2 · 0.5^|i - j|; coefficients are 1 in the first and the last fifth, and 0.1
    between. Not theirs: a curved target has the square of the first column added, which
    no linear model fits.
    """
    generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    columns = np.arange(num_columns)
    covariance = 2 * CORRELATION ** np.abs(columns[:, None] - columns)
    normal = generator.standard_normal((num_rows, num_columns))
    normal = normal @ np.linalg.cholesky(covariance).T
    noise = DEVIATION * generator.standard_normal(num_rows)
    fifth = num_columns // 5
    is_outer = (columns < fifth) | (columns >= num_columns - fifth)
    coefficients = np.where(is_outer, 1.0, 0.1)
    drawn = {}
    for name, kind in KINDS.items():
        widths: Any = 1.0
        if kind.degrees is not None:
            squares = generator.chisquare(kind.degrees, (num_rows, 1))
            widths = np.sqrt(kind.degrees / squares)
        matrix = 1 + normal * widths
        basis, _ = np.linalg.qr(matrix)
        misfit = matrix[:, 0] ** 2 if kind.is_curved else 0
        drawn[name] = Regression(
            kind.label,
            matrix,
            matrix @ coefficients + misfit + noise,
            coefficients,
            basis,
            np.sum(basis**2, axis=1),
        )
    return drawn


def sizes(effort: Effort) -> tuple[int, int]:
    """N and p of full and of small matrices."""
    return (8192, 20) if effort.is_full else (512, 5)
