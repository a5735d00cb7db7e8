"""How much exact codes amplify rounding, against the number of workers."""

import itertools
from collections.abc import Callable

import jax
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, line, new_figure
from experiments.runner.study import Effort, Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import codes as constructors

NUM_WORKERS, FEW_WORKERS = (10, 20, 50, 100, 200), (10,)
MAX_PATTERNS = 100
# Relative misses in float64 above that: the code cannot be decoded, and its noise
# says nothing.
DECODABLE = 1e-6


# Of n and s.
Construct = Callable[[int, int], jaxwgc.GradientCode]


def exact_codes(key: jax.Array) -> dict[str, Construct]:
    """By name."""
    return {
        "fractional_repetition": repetition,
        "binary": constructors.binary,
        "reed_solomon": lambda n, s: constructors.reed_solomon(n, n, s + 1),
        "reed_solomon, published order": lambda n, s: constructors.reed_solomon(
            n, n, s + 1, interleave=False
        ),
        "communication_efficient, m = 2": lambda n, s: (
            constructors.communication_efficient(n, s, 2)
        ),
        "cyclic_mds": constructors.cyclic_mds,
        "cyclic_repetition": lambda n, s: constructors.cyclic_repetition(key, n, s),
    }


def repetition(num_workers: int, num_stragglers: int) -> jaxwgc.GradientCode:
    """Returns the code of the least tolerance that is enough, where s + 1 divides n."""
    while num_workers % (num_stragglers + 1):
        num_stragglers += 1
    return constructors.fractional_repetition(num_workers, num_stragglers)


def study(effort: Effort, key: jax.Array) -> Study:
    """A cell a code and a size."""
    sizes = NUM_WORKERS if effort.is_full else FEW_WORKERS
    num_patterns = min(effort.runs, MAX_PATTERNS)
    generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    orders = [generator.random((num_patterns, n)).argsort(axis=1) for n in sizes]
    masks = [order.argsort(axis=1) >= n // 10 for n, order in zip(sizes, orders)]
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


def measure(make: Construct, masks: np.ndarray) -> Numbers:
    """With the library's decoder in both precisions; the rest in float64."""
    num_workers = masks.shape[1]
    code = make(num_workers, num_workers // 10)
    decode = jax.jit(jaxwgc.decoding_weights)
    with jax.enable_x64(True):
        weights = np.asarray(decode(code, masks))
    rounded = np.asarray(decode(code, masks))
    return {
        "num_workers": num_workers,
        "noise": np.median(noise_of(code, weights)),
        "miss_float64": relative_misses(code, weights).max(),
        "miss_float32": relative_misses(code, rounded).max(),
    }


def noise_of(code: jaxwgc.GradientCode, weights: np.ndarray) -> np.ndarray:
    """Noise of the decoded gradient over that of the sum: see `studies.Diagnosis`."""
    sizes = np.sum(np.abs(code.encoding_matrix) ** 2, axis=1)
    square = (np.abs(weights) ** 2 @ sizes).reshape(len(weights), -1).sum(axis=1)
    return np.sqrt(square / (code.num_parts * code.num_segments))


def relative_misses(code: jaxwgc.GradientCode, weights: np.ndarray) -> np.ndarray:
    """The norm of a^T B - target over that of the target."""
    shape = len(weights), code.num_segments, code.num_messages
    exactly = weights.astype(np.complex128).reshape(shape)
    target = np.kron(np.ones(code.num_parts), np.eye(code.num_segments))
    misses = exactly @ np.asarray(code.encoding_matrix) - target
    return np.linalg.norm(misses, axis=(1, 2)) / np.linalg.norm(target)


def tabulate(numbers: Numbers) -> ResultTable:
    """A row a code, a column a size."""

    def row(name, cells):
        shown = (f"{_noise(c)} / {_scientific(c.miss_float32)}" for c in cells)
        return name if " " in name else f"`{name}`", *shown

    return ResultTable(
        f"Noise amplification, s = n / 10, median of {numbers['patterns']} patterns: "
        "float64 / worst miss in float32",
        ["code", *(f"n = {cell.num_workers}" for cell in numbers["codes"]["binary"])],
        itertools.starmap(row, numbers["codes"].items()),
    )


def _noise(cell: Numbers) -> str:
    if cell.miss_float64 > DECODABLE:
        return "lost"
    return f"{cell.noise:.3g}" if cell.noise < 1000 else _scientific(cell.noise)


def _scientific(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def draw(numbers: Numbers) -> Figure:
    """Log-log; codes that float64 cannot decode are left out."""
    figure, (axes,) = new_figure(8, 4.8)
    for index, (name, row) in enumerate(numbers["codes"].items()):
        shown = [cell for cell in row if cell.miss_float64 <= DECODABLE]
        points = [c.num_workers for c in shown], [c.noise for c in shown]
        # Two codes that amplify nothing lie on each other.
        dashes = "--" if name == "binary" else "-"
        line(axes, index, *points, linestyle=dashes, label=name)
    sizes = [cell.num_workers for cell in numbers["codes"]["binary"]]
    axes.set(xscale="log", yscale="log", ylabel="noise amplification, median")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("workers n, of which n / 10 straggle")
    figure.legend(loc="outside right upper")
    return figure
