"""Figure of the encoding matrices of all codes."""

import math

import jax
import numpy as np
from matplotlib.colors import FuncNorm, LinearSegmentedColormap

import jaxwgc
from experiments.runner.figures import COLORS, Figure
from experiments.runner.study import Effort, Study
from jaxwgc import codes, stragglers

# Neither end is dark, so that the ends differ from the middle on a dark page.
ENTRIES = LinearSegmentedColormap.from_list("entries", [COLORS[0], "white", COLORS[3]])


def small_codes(key: jax.Array, num_steps: int) -> dict[str, jaxwgc.GradientCode]:
    """Returns one code of each constructor for about twelve workers."""
    repetition = codes.fractional_repetition(6, 1)
    graph = codes.regular_graph(key, 12, 4)
    held = codes.proportional_placement(np.linspace(1, 4, 12), 12, copies=3)
    model = stragglers.bernoulli(0.2)
    learn = jaxwgc.studies.learn_entries
    return {
        "uncoded": codes.uncoded(12),
        "fractional_repetition": codes.fractional_repetition(12, 2),
        "binary": codes.binary(12, 4),
        "cyclic_repetition": codes.cyclic_repetition(key, 12, 3),
        "cyclic_mds": codes.cyclic_mds(12, 3),
        "reed_solomon": codes.reed_solomon(12, 12, 4),
        "any_placement": codes.any_placement(key, held, 2),
        "communication_efficient": codes.communication_efficient(12, 2, 2),
        "clustered": codes.clustered(codes.cyclic_mds(4, 1), 3),
        "partially_coded": codes.partially_coded(repetition, 1),
        "multi_message": codes.multi_message(repetition),
        "replicated": codes.replicated(6, 12, copies=2),
        "projective_plane": codes.projective_plane(3),
        "paley": codes.paley(11),
        "bernoulli": codes.bernoulli(key, 12, 12, 4),
        "regularized_bernoulli": codes.regularized_bernoulli(key, 12, 12, 2),
        "regular_graph": graph,
        "edge_graph": codes.edge_graph(key, 6, 4),
        "stochastic_block": codes.stochastic_block(key, 12, 12, 3, 0.8, 0.1),
        "stochastic": codes.stochastic(key, 12, 12, [2] * 6 + [5] * 6, 0.2),
        "unequal": codes.unequal(np.linspace(0.1, 0.8, 12), 12),
        "ldgm": codes.ldgm(key, 12, 8, 3),
        "batch_raptor": codes.batch_raptor(key, 12, 12, batch_size=2),
        "learn_entries": learn(graph, model, key, num_steps=num_steps),
    }


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns a study without numbers."""
    num_steps = 1500 if effort.is_full else 10
    shown = small_codes(jax.random.fold_in(key, 5), num_steps)
    return Study({}, figures={"matrices": lambda numbers: draw(shown)})


def draw(shown: dict[str, jaxwgc.GradientCode], columns: int = 5) -> Figure:
    """Draws a panel per code: rows are messages, columns are parts."""
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.3 * columns, 2.6 * rows))
    panels = figure.subplots(rows, columns).ravel()
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    # Square roots, so that small entries are visible beside large ones.
    scale = FuncNorm((_signed_root, _signed_square), vmin=-1, vmax=1)
    for axes, (name, code) in zip(panels, shown.items(), strict=False):
        matrix = np.real(np.asarray(code.encoding_matrix))
        axes.imshow(matrix / np.abs(matrix).max(), cmap=ENTRIES, norm=scale)
        axes.set_title(name, fontsize=9, family="monospace")
        num_messages, num_parts = matrix.shape
        size = f"{num_messages} × {num_parts}"
        if code.is_complex:
            size += ", real part"
        axes.set_xlabel(size, fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    figure.colorbar(
        panels[0].images[0],
        ax=panels,
        ticks=[-1, -0.25, -0.05, 0, 0.05, 0.25, 1],
        shrink=0.5,
        aspect=40,
        label="entry over the largest one",
    )
    return figure


def _signed_root(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values: np.ndarray) -> np.ndarray:
    return values * np.abs(values)
