"""Stability of least squares: `python -m experiments stability`, a module per section.

The sections are Table 1 and Figures 2 and 3 of Epperly, Meier and Nakatsukasa, "Fast
randomized least-squares solvers can be just as accurate and stable as classical direct
solvers", 2024.
"""

from experiments.runner.study import Effort, Sections, command, sections_of
from experiments.stability import difficulty, grid, orthogonality

SECTIONS = {
    "difficulty": difficulty.study,
    "grid": grid.study,
    "orthogonality": orthogonality.study,
}


@command("stability", "Stability of least squares. Random problems")
def stability(runs: int = 100, seed: int = 0) -> Sections:
    """Errors of solvers by condition number and residual, against QR and LAPACK.

    Args:
        runs: Random problems for each median of the table of ‖Xᵀr‖; below 20, also
            smaller and fewer problems, to see that everything runs.
    """
    return sections_of(SECTIONS, Effort(runs, is_full=runs >= 20), seed)
