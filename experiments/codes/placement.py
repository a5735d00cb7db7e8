"""Exact codes for any placement in float32: both methods, and which one is taken."""

import jax
import numpy as np

import jaxwgc
from experiments.codes.noise import relative_misses
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import codes as constructors

# Workers, parts and stragglers.
SIZES = ((12, 12, 2), (20, 20, 4), (50, 50, 9), (50, 20, 29), (100, 100, 9))
FEW_SIZES = ((6, 6, 1),)
MAX_PATTERNS = 300
METHODS = {"polynomials": "polynomials", "random_rows": "random rows"}
# Of the fastest worker over the slowest.
SPREAD = 4


def study(effort: Effort, key: jax.Array) -> Study:
    """A row a size and placement."""
    num_patterns = min(effort.runs, MAX_PATTERNS)
    cells = [
        {
            "workers": size[0],
            "parts": size[1],
            "stragglers": size[2],
            "placement": kind,
            "": Once(measure, jax.random.fold_in(key, 6), size, kind, num_patterns),
        }
        for size in (SIZES if effort.is_full else FEW_SIZES)
        for kind in ("random", "by speed")
    ]
    return Study(
        {"patterns": num_patterns, "codes": cells}, tables={"placement": tabulate}
    )


def placement(size: tuple[int, int, int], kind: str) -> np.ndarray:
    """With s + 1 holders a part, at random or loads in proportion to speeds."""
    num_workers, num_parts, num_stragglers = size
    copies = num_stragglers + 1
    if kind == "by speed":
        speeds = np.linspace(1, SPREAD, num_workers)
        return constructors.proportional_placement(speeds, num_parts, copies)
    order = np.random.default_rng(0).random((num_parts, num_workers)).argsort(1)
    return (order.argsort(1) < copies).T


def measure(
    key: jax.Array, size: tuple[int, int, int], kind: str, num_patterns: int
) -> Numbers:
    """Returns by how much weights in float32 miss the target, by method."""
    num_workers, _, num_stragglers = size
    held = placement(size, kind)
    order = np.random.default_rng(1).random((num_patterns, num_workers)).argsort(1)
    masks = order.argsort(1) >= num_stragglers
    decode = jax.jit(jaxwgc.decoding_weights)
    record = {}
    for method in METHODS:
        code = constructors.any_placement(key, held, num_stragglers, method)
        misses = relative_misses(code, np.asarray(decode(code, masks)))
        record[method] = {"median": np.median(misses), "worst": misses.max()}
    chosen = constructors.any_placement(key, held, num_stragglers)
    record["taken"] = "polynomials" if chosen.is_complex else "random_rows"
    record["worst_rounding"] = constructors.worst_rounding(chosen)[0]
    return record


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a size and placement, a column a method."""
    rows = []
    for record in numbers["codes"]:
        cells = [
            f"{record[method]['median']:.0e} / {record[method]['worst']:.0e}"
            for method in METHODS
        ]
        size = f"{record['workers']}, {record['parts']}, {record['stragglers']}"
        chosen = f"{METHODS[record['taken']]}, {record['worst_rounding']:.0e}"
        rows.append([size, record["placement"], *cells, chosen])
    return ResultTable(
        f"Any placement in float32: median / worst miss of {numbers['patterns']} "
        "patterns, and the method that is taken with its `worst_rounding`",
        ["workers, parts, stragglers", "placement", *METHODS.values(), "taken"],
        rows,
    )
