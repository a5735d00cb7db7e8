"""Decoding error at equal load, against random stragglers and against an adversary."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.codes import orderings
from experiments.codes.equal_codes import Entry, entries
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Effort, Numbers, Once, Study, Trial
from experiments.runner.tables import ROUNDING, ResultTable, percent, percents

STRAGGLERS, FEW_STRAGGLERS = (2, 4, 6, 8, 10, 12, 15), (1, 3, 5)
# Codes that the adversary is set on, of each random construction.
NUM_DRAWS = 5
MAX_PATTERNS = 50_000
# In the figure.
LOWEST_SHOWN = 1e-5


def study(effort: Effort, key: jax.Array) -> Study:
    """In float64, so that exact codes show as exact."""
    every = entries(effort, jax.random.fold_in(key, 1))
    numbers = STRAGGLERS if effort.is_full else FEW_STRAGGLERS
    num_draws = NUM_DRAWS if effort.is_full else 1
    draw_keys = jax.random.split(jax.random.fold_in(key, 2), num_draws)

    def cells(entry):
        keys = draw_keys if entry.is_random else draw_keys[:1]
        return {
            "exact_up_to": entry.make(draw_keys[0]).num_stragglers,
            "is_exact": entry.is_exact,
            "": Trial(one_run, entry, numbers),
            "adversarial": Once(
                worst_errors, entry, keys, numbers, num_rows=len(numbers)
            ),
        }

    num_workers = max(entry.make(draw_keys[0]).num_workers for entry in every)
    return Study(
        {
            "num_workers": num_workers,
            "stragglers": numbers,
            "worst_pattern_is_exhaustive": [
                math.comb(num_workers, number) <= MAX_PATTERNS for number in numbers
            ],
            "errors": {entry.name: cells(entry) for entry in every},
        },
        key=jax.random.fold_in(key, 3),
        runs=effort.runs,
        batch_size=500,
        x64=True,
        tables={
            "equal_load_codes": tabulate_codes,
            "equal_load_random": tabulate_random,
            "equal_load_adversarial": tabulate_adversarial,
            "orderings": orderings.tabulate,
        },
        figures={"equal_load": draw},
    )


def one_run(key: jax.Array, entry: Entry, numbers: tuple[int, ...]) -> Numbers:
    """Errors over the number of parts, of a code that loses its workers in turn."""
    code_key, order_key = jax.random.split(key)
    code = entry.make(code_key)
    rank = jax.random.permutation(order_key, code.num_workers)
    received = rank >= jnp.array(numbers)[:, None]
    return {
        "parts": jnp.mean(jnp.asarray(code.parts_per_worker, float)),
        "copies": jnp.mean(jnp.asarray(code.assignment.sum(0), float)),
        "random": jaxwgc.decoding_error(code, received) / code.num_parts,
    }


def worst_errors(entry: Entry, keys: jax.Array, numbers: Any) -> Iterator[float]:
    """Yields errors at patterns of `worst_pattern`, means over the codes drawn."""
    codes = [entry.make(key) for key in keys]
    for number in numbers:
        patterns = [
            jaxwgc.studies.worst_pattern(code, number, max_patterns=MAX_PATTERNS)
            for code in codes
        ]
        # Not jitted: codes of one size share what is jitted inside.
        errors = map(jaxwgc.decoding_error, codes, patterns)
        yield float(np.mean(list(errors)) / codes[0].num_parts)


def tabulate_codes(numbers: Numbers) -> ResultTable:
    """A row a code: its arguments, parts, copies, and how far it is exact."""

    def row(name, record):
        code, _, values = name.partition("(")
        means = [f"{record[name].mean:.2f}" for name in ("parts", "copies")]
        return f"`{code}`", values.removesuffix(")"), *means, str(record["exact_up_to"])

    return ResultTable(
        "Equal load: the codes",
        ["code", "arguments", "parts", "copies", "exact up to s"],
        itertools.starmap(row, numbers["errors"].items()),
    )


def tabulate_random(numbers: Numbers) -> ResultTable:
    """Means; zero is proven only for as many stragglers as a code tolerates."""

    def cells(row):
        is_proven = np.array(numbers["stragglers"]) <= row["exact_up_to"]
        seen = (row["random"].mean > ROUNDING) | is_proven
        return map(str, np.where(seen, percents(row["random"]), "none seen"))

    heads = [f"s = {number}" for number in numbers["stragglers"]]
    return _tabulate(numbers, "random", "mean error", heads, cells)


def tabulate_adversarial(numbers: Numbers) -> ResultTable:
    """Which numbers of stragglers were searched exhaustively is in the head."""
    exhaustive = numbers["worst_pattern_is_exhaustive"]
    heads = [
        f"s = {number} (all)" if is_exhaustive else f"s = {number}"
        for number, is_exhaustive in zip(numbers["stragglers"], exhaustive)
    ]
    return _tabulate(
        numbers, "worst", "error", heads, lambda row: map(percent, row["adversarial"])
    )


def _tabulate(numbers, kind, what, heads, cells) -> ResultTable:
    return ResultTable(
        f"Equal load, {kind} stragglers of about {numbers['num_workers']}: {what}, "
        "percent",
        ["code", *heads],
        [
            [f"`{name.split('(')[0]}`", *cells(row)]
            for name, row in numbers["errors"].items()
        ],
    )


def draw(numbers: Numbers) -> Figure:
    """Random stragglers on the left, the adversary on the right."""
    figure, panels = new_figure(11, 8, columns=2, rows=2)
    # Zero, and whatever is as good, has a place of its own below the axis.
    floor = LOWEST_SHOWN / 2.5
    labels = {
        "uncoded": "uncoded (load 1)",
        "learn_entries": "learn_entries (of a regular graph)",
    }
    every = numbers["errors"].items()
    titles = {True: "exact for few stragglers", False: "approximate"}
    for (is_exact, title), (left, right) in zip(
        titles.items(), (panels[:2], panels[2:])
    ):
        shown = [(name, row) for name, row in every if row["is_exact"] == is_exact]
        for index, (name, row) in enumerate(shown):
            name = name.split("(")[0]
            look = style(index) | {"label": labels.get(name, name)}
            for axes, errors in (
                (left, row["random"].mean),
                (right, row["adversarial"]),
            ):
                raised = np.where(np.array(errors) > LOWEST_SHOWN, errors, floor)
                axes.plot(numbers["stragglers"], raised, **look)
        right.legend(
            title=title, alignment="left", loc="center left", bbox_to_anchor=(1, 0.5)
        )
        left.set_ylabel("decoding error / number of parts")
    panels[0].set_title("random stragglers, mean")
    panels[1].set_title("adversary: the worst pattern found")
    exponents = range(round(np.log10(LOWEST_SHOWN)), 1)
    panels[0].set(yscale="log", ylim=(floor / 1.5, 1.2), xticks=numbers["stragglers"])
    panels[0].set_yticks(
        [floor, *(10.0**exponent for exponent in exponents)],
        ["less or 0", *(f"$10^{{{exponent}}}$" for exponent in exponents)],
    )
    for axes in panels:
        axes.minorticks_off()
    for axes in panels[2:]:
        axes.set_xlabel("stragglers s")
    return figure
