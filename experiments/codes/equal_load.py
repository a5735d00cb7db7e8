"""Decoding error at equal load, with random and with adversarial stragglers."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner import tables
from experiments.runner.figures import Figure, new_figure, style
from experiments.runner.study import Effort, Numbers, Once, Study, Trial
from experiments.runner.tables import ROUNDING, ResultTable, half_width, percent
from jaxwgc import codes, stragglers

STRAGGLERS = (2, 4, 6, 8, 10, 12, 15)
FEW_STRAGGLERS = (1, 3, 5)
# The order of a projective plane sets the size: 31 workers with 6 parts, or 13 with 4.
ORDER = 5
SMALL_ORDER = 3
FEW_CODES = (
    "uncoded fractional_repetition reed_solomon any_placement edge_graph "
    "projective_plane bernoulli regularized_bernoulli regular_graph stochastic_block"
).split()
# Straggling probability of each worker that stochastic and learned codes expect.
PROBABILITY = 0.2
# Probability in the stochastic block model that a worker has a part of its cluster.
PROBABILITY_INSIDE = 0.8
# Draws of each random construction for the adversary.
NUM_DRAWS = 5
MAX_PATTERNS = 50_000
# Lower end of the axis of the figure.
LOWEST_SHOWN = 1e-5

DESIGN = ("projective_plane",)
REPETITION = ("fractional_repetition",)
BERNOULLI = ("bernoulli", "regularized_bernoulli")
RANDOM = (*BERNOULLI, "regular_graph", "stochastic_block")
# Published orderings: each code of the first group has a smaller error than each code
# of the second group.
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


class Entry(NamedTuple):
    """A code, or a construction that draws one: `make(key)`."""

    name: str
    make: Callable[[jax.Array], jaxwgc.GradientCode]
    is_exact: bool
    is_random: bool = False


def entries(effort: Effort, key: jax.Array) -> list[Entry]:
    """Returns every construction of that load, with n workers or n - 1."""
    order = ORDER if effort.is_full else SMALL_ORDER
    num_workers = order**2 + order + 1
    load = order + 1
    # A number of workers that `load` divides.
    divisible = num_workers - 1

    def name_of(construct, arguments):
        return f"{construct.__name__}({', '.join(f'{value:g}' for value in arguments)})"

    def given(name, code, is_exact=True):
        return Entry(name, lambda key: code, is_exact)

    def fixed(construct, *arguments, is_exact=True):
        return given(name_of(construct, arguments), construct(*arguments), is_exact)

    def drawn(construct, *arguments, is_exact=False):
        name = name_of(construct, arguments)
        return Entry(name, lambda key: construct(key, *arguments), is_exact, True)

    cluster = codes.reed_solomon(2 * order, 2 * order, load)
    clustered = codes.clustered(cluster, load // 2)
    draws = jax.random.uniform(key, (num_workers, num_workers))
    held = np.asarray(draws.argsort(0).argsort(0) < load)
    anywhere = codes.any_placement(key, held, order)
    # With this probability of a part of another cluster, the mean load is order + 1.
    across = (1 - PROBABILITY_INSIDE) / (order - 1)
    nested = f"reed_solomon({2 * order}, {2 * order}, {load})"
    every = [
        fixed(codes.uncoded, num_workers),
        fixed(codes.fractional_repetition, divisible, order),
        fixed(codes.binary, num_workers, order),
        drawn(codes.cyclic_repetition, num_workers, order, is_exact=True),
        fixed(codes.cyclic_mds, num_workers, order),
        fixed(codes.reed_solomon, num_workers, num_workers, load),
        fixed(codes.communication_efficient, num_workers, order - 1, 2),
        given(f"clustered({nested}, {load // 2})", clustered),
        given(f"any_placement(random, {order})", anywhere),
        fixed(codes.projective_plane, order, is_exact=False),
        drawn(codes.bernoulli, num_workers, num_workers, load),
        drawn(codes.regularized_bernoulli, num_workers, num_workers, load),
        drawn(codes.regular_graph, num_workers, load),
        # Workers hold two parts that are three times as large.
        drawn(codes.edge_graph, 2 * order, load),
        drawn(
            codes.stochastic_block,
            divisible,
            divisible,
            order,
            PROBABILITY_INSIDE,
            across,
        ),
        drawn(codes.stochastic, num_workers, num_workers, load, PROBABILITY),
    ]
    if not effort.is_full:
        return [entry for entry in every if entry.name.split("(")[0] in FEW_CODES]
    graph = codes.regular_graph(key, num_workers, load)
    model = stragglers.bernoulli(PROBABILITY)
    learned = jaxwgc.studies.learn_entries(graph, model, key)
    return [*every, given("learn_entries(regular_graph)", learned, is_exact=False)]


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns errors of all codes, in float64 so that exact codes are exact."""
    every = entries(effort, jax.random.fold_in(key, 1))
    numbers = STRAGGLERS if effort.is_full else FEW_STRAGGLERS
    num_draws = NUM_DRAWS if effort.is_full else 1
    draw_keys = jax.random.split(jax.random.fold_in(key, 2), num_draws)

    def cells(entry):
        return {
            "exact_up_to": entry.make(draw_keys[0]).num_stragglers,
            "is_exact": entry.is_exact,
            "": Trial(one_run, entry, numbers),
            "adversarial": Once(
                worst_errors,
                entry,
                draw_keys if entry.is_random else draw_keys[:1],
                numbers,
            ),
        }

    num_workers = max(entry.make(draw_keys[0]).num_workers for entry in every)
    is_all = [math.comb(num_workers, number) <= MAX_PATTERNS for number in numbers]
    return Study(
        {
            "num_workers": num_workers,
            "stragglers": numbers,
            "worst_pattern_is_exhaustive": is_all,
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
            "orderings": tabulate_orderings,
        },
        figures={"equal_load": draw},
    )


def one_run(key: jax.Array, entry: Entry, numbers: tuple[int, ...]) -> Numbers:
    """Returns errors per part of a random code, with nested sets of stragglers."""
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
    drawn = [entry.make(key) for key in keys]
    search = jaxwgc.studies.worst_pattern
    most = MAX_PATTERNS
    for number in numbers:
        worst = [search(code, number, max_patterns=most) for code in drawn]
        # Not jitted: codes of the same size share the jitted functions inside.
        errors = map(jaxwgc.decoding_error, drawn, worst)
        yield float(np.mean(list(errors)) / drawn[0].num_parts)


tabulate_codes = tables.table_of(
    "Equal load: the codes",
    {
        "code": lambda row: f"`{row['name'].partition('(')[0]}`",
        "arguments": lambda row: row["name"].partition("(")[2].removesuffix(")"),
        "parts": "{parts.mean:.2f}",
        "copies": "{copies.mean:.2f}",
        "exact up to s": "{exact_up_to}",
    },
    "errors",
)


def tabulate_random(numbers: Numbers) -> ResultTable:
    """Returns means; 0 only for numbers of stragglers that a code tolerates."""

    def cells(row):
        is_proven = np.array(numbers["stragglers"]) <= row["exact_up_to"]
        seen = (row["random"].mean > ROUNDING) | is_proven
        return np.where(seen, tables.percents(row["random"]), "none seen")

    heads = [f"s = {number}" for number in numbers["stragglers"]]
    return _tabulate(numbers, "random", "mean error", heads, cells)


def tabulate_adversarial(numbers: Numbers) -> ResultTable:
    """Returns worst errors; heads show which searches were exhaustive."""
    pairs = zip(numbers["stragglers"], numbers["worst_pattern_is_exhaustive"])
    heads = [f"s = {number}{' (all)' if is_all else ''}" for number, is_all in pairs]

    def cells(row):
        return map(percent, row["adversarial"])

    return _tabulate(numbers, "worst", "error", heads, cells)


def _tabulate(numbers, kind, what, heads, cells) -> ResultTable:
    every = numbers["errors"].items()
    return ResultTable(
        f"Equal load, {kind} stragglers of about {numbers['num_workers']}: {what}, "
        "percent",
        ["code", *heads],
        [[f"`{name.split('(')[0]}`", *cells(row)] for name, row in every],
    )


def tabulate_orderings(numbers: Numbers) -> ResultTable:
    """Returns a row per ordering, and a column per number of stragglers."""
    every = {name.split("(")[0]: errors for name, errors in numbers["errors"].items()}

    def cell(column, kind, smaller, larger):
        is_mean = kind == "random"
        error = {
            name: (errors["random"].mean if is_mean else errors[kind])[column]
            for name, errors in every.items()
        }
        # The hardest pair of codes for the claim.
        of = error.__getitem__
        pair = max(smaller, key=of), min(larger, key=of)
        halves = [half_width(every[name]["random"])[column] for name in pair]
        margin = np.hypot(*halves) if is_mean else 0.0
        holds = compare(error[pair[0]], error[pair[1]], margin)
        sign = {"yes": " < ", "no": " > ", "tie": " ≈ "}[holds]
        rounded = [float(f"{error[name]:.2g}") for name in pair]
        shown = [percent(0.0 if each < ROUNDING else each) for each in rounded]
        return f"{holds}: {sign.join(shown)}"

    heads = [f"s = {number}" for number in numbers["stragglers"]]
    columns = range(len(heads))
    return ResultTable(
        "Published orderings at equal load: does it hold, errors in percent",
        ["ordering", *heads],
        [[claim, *(cell(at, *own) for at in columns)] for claim, *own in CLAIMS],
    )


def compare(left: float, right: float, margin: float) -> str:
    """Returns whether `left` is smaller, or "tie" within a margin; NaN is a tie."""
    if not abs(right - left) > np.maximum(margin, ROUNDING):
        return "tie"
    return "yes" if left < right else "no"


def draw(numbers: Numbers) -> Figure:
    """Draws random stragglers on the left, and the adversary on the right."""
    figure, panels = new_figure(11, 8, columns=2, rows=2)
    # Zero and smaller errors have a place of their own below the axis.
    floor = LOWEST_SHOWN / 2.5
    more = {"uncoded": " (load 1)", "learn_entries": " (of a regular graph)"}
    titles = {True: "exact for few stragglers", False: "approximate"}
    for (is_exact, title), row in zip(titles.items(), panels.reshape(2, 2)):
        every = numbers["errors"].items()
        shown = [(name, each) for name, each in every if each["is_exact"] == is_exact]
        for index, (name, record) in enumerate(shown):
            name = name.split("(")[0]
            look = style(index) | {"label": name + more.get(name, "")}
            curves = record["random"].mean, record["adversarial"]
            for axes, errors in zip(row, curves):
                raised = np.where(np.array(errors) > LOWEST_SHOWN, errors, floor)
                axes.plot(numbers["stragglers"], raised, **look)
        look = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "alignment": "left"}
        row[1].legend(title=title, **look)
        row[0].set_ylabel("decoding error / number of parts")
    panels[0].set_title("random stragglers, mean")
    panels[1].set_title("adversary: the worst pattern found")
    panels[0].set(yscale="log", ylim=(floor / 1.5, 1.2), xticks=numbers["stragglers"])
    ticks = {floor: "less or 0"}
    ticks |= {10.0**power: f"$10^{{{power}}}$" for power in range(-5, 1)}
    panels[0].set_yticks([*ticks], [*ticks.values()])
    for axes in panels:
        axes.minorticks_off()
    for axes in panels[2:]:
        axes.set_xlabel("stragglers s")
    return figure
