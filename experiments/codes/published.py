"""Decoding errors that papers on approximate codes plot, at the sizes of the papers."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Effort, Numbers, Once, Study, Trial
from experiments.runner.tables import ROUNDING, ResultTable, percent, percents
from jaxwgc import codes, decoders

Code = jaxwgc.GradientCode
Make = Callable[[jax.Array], Code]

# Charles, Papailiopoulos and Ellenberg: workers, copies of each part, and stragglers.
NUM_WORKERS = 100
COPIES = (5, 10)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SHOWN_SHARES = (0.1, 0.5)
# Lower end of the axis of the figure.
LOWEST_SHOWN = 1e-4

# Glasgow and Wootters: prime and modulus of their larger graph, of degree prime + 1,
# and probabilities that a worker straggles.
GRAPH = (5, 13)
PROBABILITIES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
SHOWN_PROBABILITIES = (0.1, 0.2, 0.3, 0.4)
# A mask of this graph takes milliseconds, and its error hardly varies.
MAX_GRAPH_RUNS = 200

# Kadhe, Koyluoglu and Ramchandran: workers of Paley designs, and shares of stragglers.
PALEY = (11, 31)
DESIGN_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SHOWN_DESIGN_SHARES = (0.2, 0.5, 0.7)


def random_codes(effort: Effort, key: jax.Array) -> Study:
    """Compares one-step and optimal decoding of random codes and repetition."""
    cells = {}
    for copies in COPIES:
        for name, make in sparse_codes(copies).items():
            cells[f"{name}, {copies} copies"] = Trial(one_step_and_optimal, make)
    return Study(
        {"num_workers": NUM_WORKERS, "errors": cells},
        key=jax.random.fold_in(key, 10),
        runs=effort.runs,
        batch_size=200,
        x64=True,
        tables={"charles": tabulate_random_codes},
        figures={"charles": draw_random_codes},
    )


def sparse_codes(copies: int) -> dict[str, Make]:
    """Returns functions that draw codes with that many copies of each part."""
    repetition = codes.fractional_repetition(NUM_WORKERS, num_stragglers=copies - 1)
    return {
        "`fractional_repetition`": lambda key: repetition,
        "`bernoulli`": lambda key: codes.bernoulli(
            key, NUM_WORKERS, NUM_WORKERS, copies
        ),
        "`regular_graph`": lambda key: codes.regular_graph(key, NUM_WORKERS, copies),
    }


def one_step_and_optimal(key: jax.Array, make: Make) -> Numbers:
    """Returns errors per part of a drawn code, with nested sets of stragglers."""
    code_key, order_key = jax.random.split(key)
    code = make(code_key)
    rank = jax.random.permutation(order_key, NUM_WORKERS)
    num_stragglers = np.round(np.array(SHARES) * NUM_WORKERS)
    received = rank >= num_stragglers[:, None]
    one_step = jaxwgc.decoding(code, received, decoders.OneStep).error
    optimal = jaxwgc.decoding(code, received).error
    return {
        "one_step": one_step / code.num_parts,
        "optimal": optimal / code.num_parts,
    }


def tabulate_random_codes(numbers: Numbers) -> ResultTable:
    """Returns one-step beside optimal decoding."""
    table = ResultTable(
        f"{numbers['num_workers']} workers and parts, random stragglers: error per "
        "part in percent, one-step / optimal decoding",
        ["code", *heads_of(SHOWN_SHARES)],
    )
    for name, record in numbers["errors"].items():
        one_step = percents(record["one_step"])
        optimal = percents_seen(record["optimal"])
        row = [name]
        for share in SHOWN_SHARES:
            index = SHARES.index(share)
            row.append(f"{one_step[index]} / {optimal[index]}")
        table.rows.append(row)
    return table


def draw_random_codes(numbers: Numbers) -> Figure:
    """Draws a panel for each number of copies, on a logarithmic scale."""
    figure, panels = new_figure(10, 4.4, len(COPIES))
    for axes, copies in zip(panels, COPIES, strict=True):
        for index, name in enumerate(sparse_codes(copies)):
            record = numbers["errors"][f"{name}, {copies} copies"]
            label = name.strip("`")
            look = style(index)
            optimal = record["optimal"].mean
            # A logarithmic axis has no zero.
            seen = np.where(optimal > ROUNDING, optimal, np.nan)
            axes.plot(SHARES, seen, label=label, **look)
            axes.plot(SHARES, record["one_step"].mean, ":", color=look["color"])
        axes.plot([], [], ":", color="0.4", label="dotted: one-step decoding")
        axes.set(title=f"{copies} copies", xlabel="fraction of stragglers")
        axes.set(yscale="log", ylim=(LOWEST_SHOWN, 1))
    panels[0].set_ylabel("decoding error / number of parts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def expanders(effort: Effort, key: jax.Array) -> Study:
    """Compares workers on the edges of an expander with the bound p^d."""
    graph, degree = graph_and_degree(effort)
    num_workers = graph.num_workers // degree * degree
    repetition = codes.fractional_repetition(num_workers, num_stragglers=degree - 1)
    cells = {
        name: Trial(independent_stragglers, code)
        for name, code in {"edges": graph, "repetition": repetition}.items()
    }
    return Study(
        {
            "num_workers": graph.num_workers,
            "num_parts": graph.num_parts,
            "degree": degree,
            "errors": cells,
        },
        key=jax.random.fold_in(key, 11),
        runs=min(effort.runs, MAX_GRAPH_RUNS),
        batch_size=20,
        tables={"glasgow_wootters": tabulate_expanders},
    )


def graph_and_degree(effort: Effort) -> tuple[Code, int]:
    """Returns the code of the edges of a graph, and the degree of the graph."""
    prime, modulus = GRAPH
    if effort.is_full:
        return codes.ramanujan_graph(prime, modulus), prime + 1
    small = codes.edge_graph(jax.random.key(0), num_parts=20, degree=prime + 1)
    return small, prime + 1


def independent_stragglers(key: jax.Array, code: Code) -> jax.Array:
    """Returns errors per part, with nested sets of stragglers."""
    draws = jax.random.uniform(key, (code.num_workers,))
    received = draws >= jnp.array(PROBABILITIES)[:, None]
    return jaxwgc.decoding(code, received).error / code.num_parts


def tabulate_expanders(numbers: Numbers) -> ResultTable:
    """Returns both codes beside the bound, and workers without a code."""
    degree = numbers["degree"]
    probabilities = np.array(PROBABILITIES)
    bounds = [percent(error) for error in probabilities**degree]
    cells = {
        "edges of the graph": percents_seen(numbers["errors"]["edges"]),
        "`fractional_repetition`": percents_seen(numbers["errors"]["repetition"]),
        f"p to the power {degree}": bounds,
        "`uncoded`": [percent(error) for error in probabilities],
    }
    places = [PROBABILITIES.index(shown) for shown in SHOWN_PROBABILITIES]
    rows = [[name, *(row[place] for place in places)] for name, row in cells.items()]
    return ResultTable(
        f"{numbers['num_workers']:,} workers on the edges of a graph with "
        f"{numbers['num_parts']:,} parts and degree {degree}, each a straggler with "
        "probability p: error per part in percent",
        ["code", *(f"p = {shown:g}" for shown in SHOWN_PROBABILITIES)],
        rows,
    )


def designs(effort: Effort, key: jax.Array) -> Study:
    """Compares Paley designs with repetition of equal load."""
    sizes = PALEY if effort.is_full else PALEY[:1]
    cells = {}
    for num_workers in sizes:
        paley = codes.paley(num_workers)
        load = int(paley.parts_per_worker[0])
        repetition = codes.fractional_repetition(2 * load, num_stragglers=load - 1)
        cells[f"`paley({num_workers})`"] = cell_of(paley, load)
        cells[f"`fractional_repetition({2 * load}, {load - 1})`"] = cell_of(
            repetition, load
        )
    return Study(
        {"errors": cells},
        key=jax.random.fold_in(key, 12),
        runs=effort.runs,
        batch_size=500,
        x64=True,
        tables={"paley": tabulate_designs},
    )


def cell_of(code: Code, load: int) -> Numbers:
    """Returns the cells of a code: mean errors, and errors of the worst stragglers."""
    return {
        "load": load,
        "random": Trial(mean_error, code),
        "worst": Once(worst_errors, code),
    }


def mean_error(key: jax.Array, code: Code) -> jax.Array:
    """Returns errors per part, with nested sets of stragglers."""
    rank = jax.random.permutation(key, code.num_workers)
    received = rank >= stragglers_of(code)[:, None]
    return jaxwgc.decoding(code, received).error / code.num_parts


def worst_errors(code: Code) -> Iterable[float]:
    """Yields errors per part of the worst pattern that is found."""
    for number in stragglers_of(code):
        received = jaxwgc.simulation.worst_pattern(code, int(number))
        yield float(jaxwgc.decoding(code, received).error) / code.num_parts


def stragglers_of(code: Code) -> np.ndarray:
    """Returns the numbers of stragglers with these shares of the workers."""
    return np.round(np.array(DESIGN_SHARES) * code.num_workers)


def tabulate_designs(numbers: Numbers) -> ResultTable:
    """Returns mean errors beside the worst."""
    table = ResultTable(
        "Stragglers at random and at worst: error per part in percent, mean / worst",
        ["code", "load", *heads_of(SHOWN_DESIGN_SHARES)],
    )
    for name, record in numbers["errors"].items():
        means = percents_seen(record["random"])
        row = [name, str(record["load"])]
        for share in SHOWN_DESIGN_SHARES:
            index = DESIGN_SHARES.index(share)
            worst = record["worst"][index]
            mean = "0" if worst < ROUNDING else means[index]
            row.append(f"{mean} / {percent(worst)}")
        table.rows.append(row)
    return table


def heads_of(shares: Iterable[float]) -> list[str]:
    """Returns heads of columns for shares of stragglers."""
    return [f"{100 * share:.0f}% straggle" for share in shares]


def percents_seen(summary: jaxwgc.Summary) -> list[str]:
    """Returns errors in percent, with words instead of errors that never occurred."""
    return [
        cell if mean > ROUNDING else "none seen"
        for cell, mean in zip(percents(summary), summary.mean, strict=True)
    ]
