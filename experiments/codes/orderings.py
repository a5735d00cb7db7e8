"""The orderings that the literature reports, held against the errors measured here."""

import numpy as np

from experiments.runner.study import Numbers
from experiments.runner.tables import ROUNDING, ResultTable, half_width, percent

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


def tabulate(numbers: Numbers) -> ResultTable:
    """A row an ordering, a column a number of stragglers."""
    every = {name.split("(")[0]: errors for name, errors in numbers["errors"].items()}
    halves = {name: half_width(errors["random"]) for name, errors in every.items()}

    def cell(kind, smaller, larger, column):
        error = {
            name: (errors["random"].mean if kind == "random" else errors[kind])[column]
            for name, errors in every.items()
        }
        # The hardest pair of codes for the claim.
        left = max(smaller, key=error.__getitem__)
        right = min(larger, key=error.__getitem__)
        both = [halves[c][column] if kind == "random" else 0.0 for c in (left, right)]
        holds = compare(error[left], error[right], *both)
        sign = {"yes": "<", "no": ">", "tie": "≈"}[holds]
        return f"{holds}: {_percent(error[left])} {sign} {_percent(error[right])}"

    stragglers = numbers["stragglers"]
    return ResultTable(
        "Published orderings at equal load: does it hold, errors in percent",
        ["ordering", *(f"s = {number}" for number in stragglers)],
        [
            [claim, *(cell(kind, less, more, at) for at in range(len(stragglers)))]
            for claim, kind, less, more in CLAIMS
        ],
    )


def compare(left: float, right: float, left_half: float, right_half: float) -> str:
    """Says whether `left` is smaller; a tie where the intervals of both allow either.

    So does an interval from a single run, which is NaN.
    """
    margin = max(float(np.hypot(left_half, right_half)), ROUNDING)
    if not abs(right - left) > margin:
        return "tie"
    return "yes" if left < right else "no"


def _percent(error: float) -> str:
    return percent(0.0 if error < ROUNDING else float(f"{error:.2g}"))
