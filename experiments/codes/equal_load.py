"""Decoding error at equal load, with random and with adversarial stragglers."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

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
# Columns of the table with both kinds of stragglers: beyond the tolerance of all codes.
SHOWN = slice(2, None, 2)
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
# Ends of labels in the figure.
LABEL_ENDS = {"uncoded": " (load 1)", "learn_entries": " (of a regular graph)"}

DESIGN = ("projective_plane",)
REPETITION = ("fractional_repetition",)
BERNOULLI = ("bernoulli", "regularized_bernoulli")
RANDOM = (*BERNOULLI, "regular_graph", "stochastic_block")


class Claim(NamedTuple):
    """A published ordering: the first codes have smaller errors than the second.

    Attributes:
        text: Text for the table.
        kind: Stragglers: "random", of which means count, or "adversarial".
        smaller: Names of the codes with the smaller errors.
        larger: Names of the codes with the larger errors.
    """

    text: str
    kind: str
    smaller: tuple[str, ...]
    larger: tuple[str, ...]


CLAIMS = (
    Claim("worst: block design < Bernoulli codes", "adversarial", DESIGN, BERNOULLI),
    Claim("worst: block design < every random code", "adversarial", DESIGN, RANDOM),
    Claim("worst: block design < repetition", "adversarial", DESIGN, REPETITION),
    Claim("worst: every random code < repetition", "adversarial", RANDOM, REPETITION),
    Claim("mean: repetition < block design", "random", REPETITION, DESIGN),
    Claim("mean: repetition < every random code", "random", REPETITION, RANDOM),
    Claim("mean: block design < Bernoulli codes", "random", DESIGN, BERNOULLI),
    Claim("mean: block design < every random code", "random", DESIGN, RANDOM),
)


class Entry(NamedTuple):
    """A code, or a construction that draws one: `make(key)`."""

    name: str
    make: Callable[[jax.Array], jaxwgc.GradientCode]
    is_exact: bool
    is_random: bool = False


def family(name: str) -> str:
    """Returns the name of the constructor in the name of an entry."""
    constructor, _, _ = name.partition("(")
    return constructor


def entries(effort: Effort, key: jax.Array) -> list[Entry]:
    """Returns every construction of that load, with n workers or n - 1."""
    order = ORDER if effort.is_full else SMALL_ORDER
    num_workers = order**2 + order + 1
    load = order + 1
    # A number of workers that `load` divides.
    divisible = num_workers - 1

    def name_of(construct, arguments):
        shown = ", ".join(f"{value:g}" for value in arguments)
        return f"{construct.__name__}({shown})"

    def entry_of(name, code, is_exact=True):
        return Entry(name, lambda key: code, is_exact)

    def fixed(construct, *arguments, is_exact=True):
        code = construct(*arguments)
        return entry_of(name_of(construct, arguments), code, is_exact)

    def drawn(construct, *arguments, is_exact=False):
        def make(key):
            return construct(key, *arguments)

        name = name_of(construct, arguments)
        return Entry(name, make, is_exact, is_random=True)

    cluster = codes.reed_solomon(2 * order, 2 * order, load)
    clustered = codes.clustered(cluster, load // 2)
    draws = jax.random.uniform(key, (num_workers, num_workers))
    held = np.asarray(draws.argsort(0).argsort(0) < load)
    anywhere = codes.any_placement(key, held, order)
    # With this probability of a part of another cluster, the mean load is order + 1.
    across = (1 - PROBABILITY_INSIDE) / (order - 1)
    nested = f"reed_solomon({2 * order}, {2 * order}, {load})"
    constructions = [
        fixed(codes.uncoded, num_workers),
        fixed(codes.fractional_repetition, divisible, order),
        fixed(codes.binary, num_workers, order),
        drawn(codes.cyclic_repetition, num_workers, order, is_exact=True),
        fixed(codes.cyclic_mds, num_workers, order),
        fixed(codes.reed_solomon, num_workers, num_workers, load),
        fixed(codes.communication_efficient, num_workers, order - 1, 2),
        entry_of(f"clustered({nested}, {load // 2})", clustered),
        entry_of(f"any_placement(random, {order})", anywhere),
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
        return [entry for entry in constructions if family(entry.name) in FEW_CODES]
    graph = codes.regular_graph(key, num_workers, load)
    model = stragglers.bernoulli(PROBABILITY)
    learned = jaxwgc.simulation.learn_entries(graph, model, key)
    name = "learn_entries(regular_graph)"
    return [*constructions, entry_of(name, learned, is_exact=False)]


def study(effort: Effort, key: jax.Array) -> Study:
    """Returns errors of all codes, in float64 so that exact codes are exact."""
    numbers = STRAGGLERS if effort.is_full else FEW_STRAGGLERS
    num_draws = NUM_DRAWS if effort.is_full else 1
    draw_keys = jax.random.split(jax.random.fold_in(key, 2), num_draws)
    num_workers = 0
    cells = {}
    for entry in entries(effort, jax.random.fold_in(key, 1)):
        code = entry.make(draw_keys[0])
        num_workers = max(num_workers, code.num_workers)
        keys = draw_keys if entry.is_random else draw_keys[:1]
        cells[entry.name] = {
            "exact_up_to": code.num_stragglers,
            "is_exact": entry.is_exact,
            "": Trial(one_run, entry, numbers),
            "adversarial": Once(worst_errors, entry, keys, numbers),
        }
    is_exhaustive = [
        math.comb(num_workers, number) <= MAX_PATTERNS for number in numbers
    ]
    return Study(
        {
            "num_workers": num_workers,
            "stragglers": numbers,
            "worst_pattern_is_exhaustive": is_exhaustive,
            "errors": cells,
        },
        key=jax.random.fold_in(key, 3),
        runs=effort.runs,
        batch_size=500,
        x64=True,
        tables={
            "equal_load": tabulate_both,
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
        "random": jaxwgc.decoding(code, received).error / code.num_parts,
    }


def worst_errors(
    entry: Entry, keys: jax.Array, numbers: tuple[int, ...]
) -> Iterator[float]:
    """Yields errors at patterns of `worst_pattern`, means over the codes drawn."""
    drawn = [entry.make(key) for key in keys]
    for number in numbers:
        errors = []
        for code in drawn:
            received = jaxwgc.simulation.worst_pattern(
                code, number, max_patterns=MAX_PATTERNS
            )
            # Not jitted: codes of the same size share the jitted functions inside.
            errors.append(jaxwgc.decoding(code, received).error)
        yield float(np.mean(errors) / drawn[0].num_parts)


tabulate_codes = tables.table_of(
    "Equal load: the codes",
    {
        "code": lambda row: f"`{family(row['name'])}`",
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
        return random_cells(row, numbers["stragglers"])

    heads = [f"s = {number}" for number in numbers["stragglers"]]
    return _tabulate(numbers, "random", "mean error", heads, cells)


def random_cells(row: Numbers, stragglers: Iterable[int]) -> Iterable[str]:
    """Returns mean errors of a code, by number of stragglers."""
    is_proven = np.array(stragglers) <= row["exact_up_to"]
    is_shown = (row["random"].mean > ROUNDING) | is_proven
    return np.where(is_shown, tables.percents(row["random"]), "none seen")


def tabulate_both(numbers: Numbers) -> ResultTable:
    """Returns some columns of the tables of random and of worst stragglers."""
    heads = [f"s = {number}" for number in numbers["stragglers"][SHOWN]]
    table = ResultTable(
        f"Equal load, s of about {numbers['num_workers']} workers straggle: mean error "
        "at random / error of the worst pattern, percent",
        ["code", *heads],
    )
    for name, row in numbers["errors"].items():
        means = list(random_cells(row, numbers["stragglers"]))[SHOWN]
        worst = [percent(error) for error in row["adversarial"][SHOWN]]
        cells = [f"{mean} / {error}" for mean, error in zip(means, worst, strict=True)]
        table.rows.append([f"`{name}`", *cells])
    return table


def tabulate_adversarial(numbers: Numbers) -> ResultTable:
    """Returns worst errors; heads show which searches were exhaustive."""
    heads = []
    is_exhaustive = numbers["worst_pattern_is_exhaustive"]
    for number, is_all in zip(numbers["stragglers"], is_exhaustive, strict=True):
        heads.append(f"s = {number} (all)" if is_all else f"s = {number}")

    def cells(row):
        return [percent(error) for error in row["adversarial"]]

    return _tabulate(numbers, "worst", "error", heads, cells)


def _tabulate(
    numbers: Numbers,
    kind: str,
    quantity: str,
    heads: list[str],
    cells: Callable[[Numbers], Iterable[str]],
) -> ResultTable:
    table = ResultTable(
        f"Equal load, {kind} stragglers of about {numbers['num_workers']}: {quantity}, "
        "percent",
        ["code", *heads],
    )
    for name, row in numbers["errors"].items():
        table.rows.append([f"`{family(name)}`", *cells(row)])
    return table


def tabulate_orderings(numbers: Numbers) -> ResultTable:
    """Returns a row per ordering: for which numbers of stragglers it holds."""
    records = {family(name): record for name, record in numbers["errors"].items()}
    table = ResultTable(
        "Published orderings at equal load: numbers of stragglers s for which they "
        "hold, and the others with their errors in percent",
        ["ordering", "holds", "does not hold"],
    )
    for claim in CLAIMS:
        verdicts = {
            number: check_claim(claim, records, column)
            for column, number in enumerate(numbers["stragglers"])
        }
        holds = [str(s) for s, text in verdicts.items() if text.startswith("yes")]
        others = [
            f"{s} ({text.partition(': ')[2]})"
            for s, text in verdicts.items()
            if not text.startswith("yes")
        ]
        if not holds:
            others = [f"{others[0]} to {others[-1]}"]
        table.rows.append([claim.text, ", ".join(holds), ", ".join(others)])
    return table


def check_claim(claim: Claim, records: dict[str, Numbers], column: int) -> str:
    """Returns whether a claim holds for a number of stragglers, with the errors."""
    is_mean = claim.kind == "random"

    def error_of(name):
        errors = records[name][claim.kind]
        return errors.mean[column] if is_mean else errors[column]

    # The hardest pair of codes for the claim.
    left = max(claim.smaller, key=error_of)
    right = min(claim.larger, key=error_of)
    margin = 0.0
    if is_mean:
        left_half = half_width(records[left]["random"])[column]
        right_half = half_width(records[right]["random"])[column]
        margin = float(np.hypot(left_half, right_half))
    holds = compare(error_of(left), error_of(right), margin)
    sign = {"yes": "<", "no": ">", "tie": "≈"}[holds]
    return f"{holds}: {rounded(error_of(left))} {sign} {rounded(error_of(right))}"


def rounded(error: float) -> str:
    """Returns an error in percent with two digits; rounding counts as 0."""
    two_digits = float(f"{error:.2g}")
    return percent(0.0 if two_digits < ROUNDING else two_digits)


def compare(left: float, right: float, margin: float) -> str:
    """Returns whether `left` is smaller, or "tie" within a margin; NaN is a tie."""
    is_different = abs(right - left) > np.maximum(margin, ROUNDING)
    if not is_different:
        return "tie"
    return "yes" if left < right else "no"


def draw(numbers: Numbers) -> Figure:
    """Draws random stragglers on the left, and the adversary on the right."""
    figure, panels = new_figure(11, 8, columns=2, rows=2)
    # Zero and smaller errors have a place of their own below the axis.
    floor = LOWEST_SHOWN / 2.5

    def draw_row(left, right, is_exact, title):
        """Draws the codes that are exact for few stragglers, or the others."""
        records = {
            family(name): record
            for name, record in numbers["errors"].items()
            if record["is_exact"] == is_exact
        }
        for index, (name, record) in enumerate(records.items()):
            label = name + LABEL_ENDS.get(name, "")
            mean = record["random"].mean
            worst = np.array(record["adversarial"])
            for axes, errors in ((left, mean), (right, worst)):
                raised = np.where(errors > LOWEST_SHOWN, errors, floor)
                axes.plot(numbers["stragglers"], raised, label=label, **style(index))
        right.legend(
            title=title, loc="center left", bbox_to_anchor=(1, 0.5), alignment="left"
        )
        left.set_ylabel("decoding error / number of parts")

    draw_row(panels[0], panels[1], True, "exact for few stragglers")
    draw_row(panels[2], panels[3], False, "approximate")
    panels[0].set_title("random stragglers, mean")
    panels[1].set_title("adversary: the worst pattern found")
    panels[0].set(yscale="log", ylim=(floor / 1.5, 1.2), xticks=numbers["stragglers"])
    powers = range(-5, 1)
    ticks = [floor, *(10.0**power for power in powers)]
    labels = ["less or 0", *(f"$10^{{{power}}}$" for power in powers)]
    panels[0].set_yticks(ticks, labels)
    for axes in panels:
        axes.minorticks_off()
    for axes in panels[2:]:
        axes.set_xlabel("stragglers s")
    return figure
