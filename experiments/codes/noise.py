"""Amplification of rounding by exact codes, and by codes for any placement."""

from collections.abc import Callable

import jax
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable, table_of
from jaxwgc import codes

NUM_WORKERS = (10, 20, 50, 100, 200)
FEW_WORKERS = (10,)
MAX_PATTERNS = 100
# Relative residual in float64 above which a code counts as not decodable.
DECODABLE = 1e-6
# Workers, parts and stragglers of codes for any placement.
SIZES = ((12, 12, 2), (20, 20, 4), (50, 50, 9), (50, 20, 29), (100, 100, 9))
FEW_SIZES = ((6, 6, 1),)
PLACEMENTS = ("random", "by speed")
PLACEMENT_PATTERNS = 300
METHODS = {"polynomials": "polynomials", "random_rows": "random rows"}
# Speed of the fastest worker relative to the slowest.
SPREAD = 4

# Makes a code from the numbers of workers n and of stragglers s.
Make = Callable[[int, int], jaxwgc.GradientCode]


def exact_codes(key: jax.Array) -> dict[str, Make]:
    """Returns constructors of exact codes by name."""

    def reed_solomon(n, s):
        return codes.reed_solomon(n, n, s + 1)

    def in_published_order(n, s):
        return codes.reed_solomon(n, n, s + 1, interleave=False)

    def communication_efficient(n, s):
        return codes.communication_efficient(n, s, num_segments=2)

    def cyclic_repetition(n, s):
        return codes.cyclic_repetition(key, n, s)

    return {
        "fractional_repetition": repetition,
        "binary": codes.binary,
        "reed_solomon": reed_solomon,
        "reed_solomon, published order": in_published_order,
        "communication_efficient, m = 2": communication_efficient,
        "cyclic_mds": codes.cyclic_mds,
        "cyclic_repetition": cyclic_repetition,
    }


def repetition(num_workers: int, num_stragglers: int) -> jaxwgc.GradientCode:
    """Returns the code with the least tolerance t ≥ s such that t + 1 divides n."""
    while num_workers % (num_stragglers + 1):
        num_stragglers += 1
    return codes.fractional_repetition(num_workers, num_stragglers)


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a cell per code and size."""
    sizes = NUM_WORKERS if effort.is_full else FEW_WORKERS
    num_patterns = min(effort.runs, MAX_PATTERNS)
    generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    masks = []
    for num_workers in sizes:
        ranks = _ranks(generator, num_patterns, num_workers)
        masks.append(ranks >= num_workers // 10)
    return Study(
        {
            "patterns": num_patterns,
            "codes": {
                name: [Once(measure, make, mask) for mask in masks]
                for name, make in exact_codes(jax.random.fold_in(key, 4)).items()
            },
        },
        tables={"noise": tabulate},
        figures={"noise": draw},
    )


def measure(make: Make, masks: np.ndarray) -> Numbers:
    """Decodes in both precisions; computes noise and residuals in float64."""
    num_workers = masks.shape[1]
    code = make(num_workers, num_workers // 10)
    decode = jax.jit(lambda code, masks: jaxwgc.decoding(code, masks).weights)
    with jax.enable_x64(True):
        weights = np.asarray(decode(code, masks))
    rounded = np.asarray(decode(code, masks))
    # Noise of the decoded gradient relative to the sum: see `simulation.Diagnosis`.
    sizes = np.sum(np.abs(code.encoding_matrix) ** 2, axis=1)
    square = (np.abs(weights) ** 2 @ sizes).reshape(len(weights), -1).sum(axis=1)
    noise = np.sqrt(square / (code.num_parts * code.num_segments))
    return {
        "num_workers": num_workers,
        "noise": np.median(noise),
        "miss_float64": residuals(code, weights).max(),
        "miss_float32": residuals(code, rounded).max(),
    }


def residuals(code: jaxwgc.GradientCode, weights: np.ndarray) -> np.ndarray:
    """Returns norms of aᵀB - target relative to the target."""
    shape = (len(weights), code.num_segments, code.num_messages)
    wide_weights = weights.astype(np.complex128).reshape(shape)
    target = np.kron(np.ones(code.num_parts), np.eye(code.num_segments))
    residual = wide_weights @ np.asarray(code.encoding_matrix) - target
    return np.linalg.norm(residual, axis=(1, 2)) / np.linalg.norm(target)


def tabulate(numbers: Numbers) -> ResultTable:
    """Returns a row per code, and a column per size."""

    def noise_of(record):
        if record.miss_float64 > DECODABLE:
            return "lost"
        if record.noise < 1000:
            return f"{record.noise:.3g}"
        return f"{record.noise:.0e}"

    def residual_of(record):
        if record.miss_float32 == 0:
            return "0"
        return f"{record.miss_float32:.0e}"

    heads = [f"n = {record.num_workers}" for record in numbers["codes"]["binary"]]
    table = ResultTable(
        f"Noise amplification, s = n / 10, median of {numbers['patterns']} patterns: "
        "float64 / worst residual in float32",
        ["code", *heads],
    )
    for name, records in numbers["codes"].items():
        label = name if " " in name else f"`{name}`"
        cells = [f"{noise_of(record)} / {residual_of(record)}" for record in records]
        table.rows.append([label, *cells])
    return table


def draw(numbers: Numbers) -> Figure:
    """Draws the noise of codes by number of workers if float64 decodes them."""
    figure, (axes,) = new_figure(8, 4.8)
    for index, (name, row) in enumerate(numbers["codes"].items()):
        shown = [cell for cell in row if cell.miss_float64 <= DECODABLE]
        shown_workers = [cell.num_workers for cell in shown]
        noise = [cell.noise for cell in shown]
        # Dashed, since another code has the same noise.
        dashes = "--" if name == "binary" else "-"
        line(axes, index, shown_workers, noise, linestyle=dashes, label=name)
    sizes = [cell.num_workers for cell in numbers["codes"]["binary"]]
    axes.set(xscale="log", yscale="log", ylabel="noise amplification, median")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("workers n, of which n / 10 straggle")
    figure.legend(loc="outside right upper")
    return figure


def any_placement(effort: Effort, key: jax.Array) -> Study:
    """Returns residuals of codes for any placement in float32, by construction."""
    num_patterns = min(effort.runs, PLACEMENT_PATTERNS)
    key = jax.random.fold_in(key, 6)
    cells = []
    for size in SIZES if effort.is_full else FEW_SIZES:
        for kind in PLACEMENTS:
            record = Once(measure_placement, key, size, kind, num_patterns)
            shown_size = ", ".join(map(str, size))
            cells.append({"size": shown_size, "placement": kind, "": record})
    columns = {"workers, parts, stragglers": "{size}", "placement": "{placement}"}
    for name, label in METHODS.items():
        columns[label] = f"{{{name}[median]:.0e}} / {{{name}[worst]:.0e}}"
    columns["chosen"] = "{taken}, {worst_rounding:.0e}"
    table = table_of(
        "Any placement in float32: median / worst residual of {patterns} patterns, and "
        "the chosen construction with its `worst_rounding`",
        columns,
        rows="codes",
    )
    numbers = {"patterns": num_patterns, "codes": cells}
    return Study(numbers, tables={"placement": table})


def measure_placement(
    key: jax.Array, size: tuple[int, int, int], kind: str, num_patterns: int
) -> Numbers:
    """Returns relative residuals of weights in float32 by construction."""
    num_workers, num_parts, num_stragglers = size
    copies = num_stragglers + 1
    speeds = np.linspace(1, SPREAD, num_workers)
    if kind == "random":
        holders = _ranks(np.random.default_rng(0), num_parts, num_workers) < copies
        held = holders.T
    else:
        held = codes.proportional_placement(speeds, num_parts, copies)
    ranks = _ranks(np.random.default_rng(1), num_patterns, num_workers)
    masks = ranks >= num_stragglers
    decode = jax.jit(lambda code, masks: jaxwgc.decoding(code, masks).weights)
    record = {}
    for method in METHODS:
        code = codes.any_placement(key, held, num_stragglers, method)
        norms = residuals(code, np.asarray(decode(code, masks)))
        record[method] = {"median": np.median(norms), "worst": norms.max()}
    chosen = codes.any_placement(key, held, num_stragglers)
    # Only polynomials make complex codes.
    construction = "polynomials" if chosen.is_complex else "random_rows"
    record["taken"] = METHODS[construction]
    record["worst_rounding"], _ = codes.worst_rounding(chosen)
    return record


def _ranks(generator: np.random.Generator, number: int, num_workers: int) -> np.ndarray:
    """Returns the ranks of workers in random orders, (number, num_workers)."""
    order = generator.random((number, num_workers)).argsort(axis=1)
    return order.argsort(axis=1)
