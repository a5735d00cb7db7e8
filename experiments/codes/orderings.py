"""The orderings that the literature reports, held against the errors measured here."""

import numpy as np

from experiments import results
from experiments.codes.equal_load import Errors
from experiments.sections import ROUNDING, Section, half_width, percent

DESIGN = ("projective_plane",)
REPETITION = ("fractional_repetition",)
BERNOULLI = ("bernoulli", "regularized_bernoulli")
RANDOM = (*BERNOULLI, "regular_graph", "stochastic_block")
# What has the smaller error, and what the larger one; of several, each.
CLAIMS = (
    ("worst: block design < Bernoulli codes", "adversarial", DESIGN, BERNOULLI),
    ("worst: block design < every random code", "adversarial", DESIGN, RANDOM),
    ("worst: block design < repetition", "adversarial", DESIGN, REPETITION),
    ("worst: every random code < repetition", "adversarial", RANDOM, REPETITION),
    ("mean: repetition < block design", "random", REPETITION, DESIGN),
    ("mean: repetition < every random code", "random", REPETITION, RANDOM),
    ("mean: block design < Bernoulli codes", "random", DESIGN, BERNOULLI),
    ("mean: block design < every random code", "random", DESIGN, RANDOM),
)


def section(errors: Errors) -> Section:
    """A row an ordering, a column a number of stragglers."""
    table = results.ResultTable(
        "Published orderings at equal load: does it hold, errors in percent",
        ["ordering", *(f"s = {number}" for number in errors.stragglers)],
    )
    names = [entry.name.split("(")[0] for entry in errors.entries]
    # Arrays (codes, numbers of stragglers): errors, and half of their intervals.
    means = {
        "random": np.array([summary.mean for summary in errors.random]),
        "adversarial": errors.adversarial,
    }
    halves = {
        "random": np.array([half_width(summary) for summary in errors.random]),
        "adversarial": np.zeros_like(errors.adversarial),
    }
    numbers = []
    for claim, kind, smaller, larger in CLAIMS:
        cells = []
        for column, number in enumerate(errors.stragglers):
            error = dict(zip(names, means[kind][:, column], strict=True))
            half = dict(zip(names, halves[kind][:, column], strict=True))
            # The hardest pair of codes for the claim.
            own = max(smaller, key=error.__getitem__)
            other = min(larger, key=error.__getitem__)
            answer = compare(error[own], error[other], half[own], half[other])
            sign = {"yes": "<", "no": ">", "tie": "≈"}[answer]
            cells.append(
                f"{answer}: {_percent(error[own])} {sign} {_percent(error[other])}"
            )
            numbers.append(
                {
                    "ordering": claim,
                    "stragglers": number,
                    "smaller": {own: error[own]},
                    "larger": {other: error[other]},
                    "holds": answer,
                }
            )
        table.add_row(claim, *cells)
    return Section(numbers, {"orderings": table}, {})


def compare(own: float, other: float, own_half: float, other_half: float) -> str:
    """Whether `own` is smaller; a tie where the intervals of both allow either."""
    margin = max(float(np.hypot(own_half, other_half)), ROUNDING)
    if abs(other - own) <= margin:
        return "tie"
    return "yes" if own < other else "no"


def _percent(error: float) -> str:
    return percent(0.0 if error < ROUNDING else float(f"{error:.2g}"))
