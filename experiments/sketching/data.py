"""Least-squares problems with rows of even and of uneven leverage scores."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.runner.study import Effort

# Standard deviation of the noise of the target.
DEVIATION = 3.0
# Correlation of neighbouring columns.
CORRELATION = 0.5


class Regression(NamedTuple):
    """Least squares in float64, and what its exact solution is made of.

    Attributes:
        label: Label in tables.
        basis: Q of a QR factorization of X, (N, p).
        target: y, (N,).
        scores: Leverage scores of the rows, (N,): squared norms of rows of Q.
    """

    label: str
    basis: np.ndarray
    target: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, label: str, matrix: np.ndarray, target: np.ndarray) -> "Regression":
        """Returns the problem of a matrix (N, p) and a target."""
        basis, _ = np.linalg.qr(matrix)
        return cls(label, basis, target, np.sum(basis**2, axis=1))

    @property
    def coherence(self) -> float:
        """Returns N / p times the largest leverage score, from 1 to N / p."""
        num_rows, num_columns = self.basis.shape
        return float(self.scores.max() * num_rows / num_columns)

    @property
    def coordinates(self) -> np.ndarray:
        """Returns the exact solution in the basis: Xθ = Q coordinates."""
        return self.basis.T @ self.target

    @property
    def squared_residual(self) -> float:
        """Returns the smallest ‖Xθ - y‖²."""
        return float(np.sum((self.target - self.basis @ self.coordinates) ** 2))


class Kind(NamedTuple):
    """Degrees of freedom of the rows, None for normal rows; a misfit of the target."""

    label: str
    degrees: int | None = None
    is_curved: bool = False


KINDS = {
    "GA": Kind("GA, incoherent"),
    "GA curved": Kind("GA, curved target", is_curved=True),
    "T3": Kind("T3, somewhat coherent", degrees=3),
    "T1": Kind("T1, coherent", degrees=1),
}


def regressions(
    key: jax.Array, num_rows: int, num_columns: int
) -> dict[str, Regression]:
    """Draws problems of all kinds from the same normal rows, noise and coefficients.

    As in Ma, Mahoney and Yu, "A statistical perspective on algorithmic leveraging",
    JMLR 16 (2015), section 4.1: rows 1 + g √(ν / χ²_ν), with normal g of the covariance
    2 · 0.5^|i - j|; coefficients are 1 in the first and the last fifth, and 0.1
    between. A curved target, which is not theirs, has the square of the first column
    added, which no linear model fits.
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
        widths = np.ones((num_rows, 1))
        if kind.degrees is not None:
            squares = generator.chisquare(kind.degrees, (num_rows, 1))
            widths = np.sqrt(kind.degrees / squares)
        matrix = 1 + normal * widths
        misfit = matrix[:, 0] ** 2 if kind.is_curved else 0
        target = matrix @ coefficients + misfit + noise
        drawn[name] = Regression.of(kind.label, matrix, target)
    return drawn


def sizes(effort: Effort) -> tuple[int, int]:
    """Returns N and p of full and of small matrices."""
    return (8192, 20) if effort.is_full else (512, 5)
