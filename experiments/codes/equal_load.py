"""Decoding error at equal load, against random stragglers and against an adversary."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.lines import Line2D

import jaxwgc
from experiments import results
from experiments.codes.equal_codes import Entry, entries
from experiments.sections import (
    COLORS,
    MARKERS,
    ROUNDING,
    Effort,
    Section,
    half_width,
    panels,
    percent,
)
from jaxwgc import coding

STRAGGLERS, FEW_STRAGGLERS = (2, 4, 6, 8, 10, 12, 15), (1, 3, 5)
# Codes that the adversary is set on, of each random construction.
NUM_DRAWS = 5
MAX_PATTERNS = 50_000
BATCH_SIZE = 500
# In the figure.
LOWEST_SHOWN = 1e-5


class Errors(NamedTuple):
    """Decoding errors over the number of parts; columns are numbers of stragglers."""

    entries: list[Entry]
    codes: list[jaxwgc.GradientCode]
    loads: list[float]
    stragglers: tuple[int, ...]
    random: list[jaxwgc.Summary]
    adversarial: np.ndarray
    num_draws: int
    is_exhaustive: list[bool]


def measure(effort: Effort, key: jax.Array) -> Errors:
    """In float64, so that exact codes show as exact."""
    every = entries(effort, jax.random.fold_in(key, 1))
    numbers = STRAGGLERS if effort.is_full else FEW_STRAGGLERS
    num_draws = NUM_DRAWS if effort.is_full else 1
    draw_keys = jax.random.split(jax.random.fold_in(key, 2), num_draws)
    codes, loads, random, adversarial = [], [], [], []
    with jax.enable_x64(True):
        for entry in every:
            found = jaxwgc.monte_carlo(
                lambda key, entry=entry: one_run(key, entry, numbers),
                jax.random.fold_in(key, 3),
                effort.runs,
                batch_size=BATCH_SIZE,
            )
            random.append(jaxwgc.summarize(found["errors"]))
            loads.append(float(found["load"].mean()))
            draws = [
                entry.make(own)
                for own in (draw_keys if entry.is_random else draw_keys[:1])
            ]
            codes.append(draws[0])
            adversarial.append(
                np.mean([worst_errors(code, numbers) for code in draws], axis=0)
            )
    return Errors(
        entries=every,
        codes=codes,
        loads=loads,
        stragglers=numbers,
        random=random,
        adversarial=np.array(adversarial),
        num_draws=num_draws,
        is_exhaustive=[
            math.comb(max(code.num_workers for code in codes), number) <= MAX_PATTERNS
            for number in numbers
        ],
    )


def one_run(key: jax.Array, entry: Entry, numbers: tuple[int, ...]):
    """A code and an order in which its workers are lost."""
    code_key, order_key = jax.random.split(key)
    code = entry.make(code_key)
    rank = jax.random.permutation(order_key, code.num_workers)
    received = rank >= jnp.array(numbers)[:, None]
    return {
        "errors": jaxwgc.decoding_error(code, received) / code.num_parts,
        "load": jnp.mean(jnp.asarray(code.loads, float)),
    }


def worst_errors(code: jaxwgc.GradientCode, numbers: tuple[int, ...]) -> np.ndarray:
    """Of the patterns that `worst_pattern` finds."""
    received = np.stack(
        [
            coding.worst_pattern(code, number, max_patterns=MAX_PATTERNS)
            for number in numbers
        ]
    )
    return np.asarray(jax.jit(jaxwgc.decoding_error)(code, received)) / code.num_parts


def section(errors: Errors) -> Section:
    """The tables and the figure."""
    num_workers = max(code.num_workers for code in errors.codes)
    compared = results.ResultTable(
        "Equal load: the codes", ["code", "arguments", "load", "exact up to s"]
    )
    random = results.ResultTable(
        f"Equal load, random stragglers of about {num_workers}: mean error, percent",
        ["code", *(f"s = {s}" for s in errors.stragglers)],
    )
    adversarial = results.ResultTable(
        f"Equal load, worst stragglers of about {num_workers}: error, percent",
        [
            "code",
            *(
                f"s = {s}" + (" (all)" if exhaustive else "")
                for s, exhaustive in zip(
                    errors.stragglers, errors.is_exhaustive, strict=True
                )
            ),
        ],
    )
    for index, (entry, code) in enumerate(
        zip(errors.entries, errors.codes, strict=True)
    ):
        summary = errors.random[index]
        cells = []
        for number, mean, half in zip(
            errors.stragglers, summary.mean, half_width(summary), strict=True
        ):
            seen = mean > ROUNDING or number <= code.num_stragglers
            cells.append(percent(mean, half) if seen else "none seen")
        name, _, arguments = entry.name.partition("(")
        compared.add_row(
            f"`{name}`",
            arguments.removesuffix(")"),
            f"{errors.loads[index]:.2f}",
            str(code.num_stragglers),
        )
        random.add_row(f"`{name}`", *cells)
        adversarial.add_row(
            f"`{name}`", *(percent(error) for error in errors.adversarial[index])
        )
    return Section(
        numbers={
            "stragglers": errors.stragglers,
            "worst_pattern_is_exhaustive": errors.is_exhaustive,
            "codes_drawn_for_the_adversary": errors.num_draws,
            "errors": {
                entry.name: {
                    "load": errors.loads[index],
                    "random": results.summary_numbers(errors.random[index]),
                    "adversarial": errors.adversarial[index],
                }
                for index, entry in enumerate(errors.entries)
            },
        },
        tables={
            "equal_load_codes": compared,
            "equal_load_random": random,
            "equal_load_adversarial": adversarial,
        },
        figures={"equal_load": draw(errors)},
    )


def draw(errors: Errors):
    """Random stragglers on the left, the adversary on the right."""
    figure, (left, right) = panels(2, 11, 6)
    random = np.array([summary.mean for summary in errors.random])
    # Zero, and whatever is as good, has a place of its own below the axis.
    floor = LOWEST_SHOWN / 2.5
    handles = {True: [], False: []}
    for index, entry in enumerate(errors.entries):
        group = handles[entry.is_exact]
        style = {
            "color": COLORS[len(group)],
            "marker": MARKERS[len(group)],
            "linestyle": "-" if entry.is_exact else "--",
            "markersize": 5,
            "linewidth": 1.4,
            "label": entry.name.split("(")[0] if index else "uncoded (load 1)",
        }
        if entry.name.startswith("optimize"):
            style["label"] = "optimize (of a regular graph)"
        for axes, row in ((left, random[index]), (right, errors.adversarial[index])):
            shown = np.where(row > LOWEST_SHOWN, row, floor)
            (line,) = axes.plot(errors.stragglers, shown, **style)
        group.append(line)
    for axes, title in (
        (left, "random stragglers, mean"),
        (right, "adversary: the worst pattern found"),
    ):
        axes.set_yscale("log")
        axes.set_ylim(floor / 1.5, 1.2)
        exponents = range(round(np.log10(LOWEST_SHOWN)), 1)
        axes.set_yticks(
            [floor, *(10.0**exponent for exponent in exponents)],
            ["less or 0", *(f"$10^{{{exponent}}}$" for exponent in exponents)],
        )
        axes.minorticks_off()
        axes.set_xticks(errors.stragglers)
        axes.set_xlabel("stragglers s")
        axes.set_title(title)
    left.set_ylabel("decoding error / number of parts")
    figure.legend(
        handles=[
            Line2D([], [], linestyle="", label="exact for few stragglers:"),
            *handles[True],
            Line2D([], [], linestyle="", label="approximate:"),
            *handles[False],
        ],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        handlelength=3,
    )
    return figure
