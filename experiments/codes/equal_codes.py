"""The codes that are compared at equal load: every construction, one shape."""

from collections.abc import Callable
from typing import NamedTuple

import jax

import jaxwgc
from experiments.sections import Effort
from jaxwgc import codes as constructors
from jaxwgc import stragglers

# A projective plane of that order sets the size: 31 workers with 6 parts, or 13 with 4.
ORDER, SMALL_ORDER = 5, 3
FEW_CODES = (
    "uncoded",
    "fractional_repetition",
    "reed_solomon",
    "projective_plane",
    "bernoulli",
    "regularized_bernoulli",
    "regular_graph",
    "stochastic_block",
)
# What stochastic and learned codes are told to expect, of each worker.
PROBABILITY = 0.2
# In the stochastic block model, for a worker and a part of its cluster.
PROBABILITY_INSIDE = 0.8


class Entry(NamedTuple):
    """A code, or a construction that draws one: `make(key)`."""

    name: str
    make: Callable[[jax.Array], jaxwgc.GradientCode]
    is_exact: bool
    is_random: bool = False


def entries(effort: Effort, key: jax.Array) -> list[Entry]:
    """Every construction of that load, with as many workers or one fewer."""
    order = ORDER if effort.is_full else SMALL_ORDER
    num_workers, load = order**2 + order + 1, order + 1
    # As many as `load` divides.
    divisible = num_workers - 1

    def fixed(name, code, is_exact=True):
        return Entry(name, lambda key: code, is_exact)

    def drawn(name, construct, *arguments, is_exact=False):
        return Entry(name, lambda key: construct(key, *arguments), is_exact, True)

    every = [
        fixed(f"uncoded({num_workers})", constructors.uncoded(num_workers)),
        fixed(
            f"fractional_repetition({divisible}, {order})",
            constructors.fractional_repetition(divisible, order),
        ),
        fixed(
            f"binary({num_workers}, {order})", constructors.binary(num_workers, order)
        ),
        drawn(
            f"cyclic_repetition({num_workers}, {order})",
            constructors.cyclic_repetition,
            num_workers,
            order,
            is_exact=True,
        ),
        fixed(
            f"cyclic_mds({num_workers}, {order})",
            constructors.cyclic_mds(num_workers, order),
        ),
        fixed(
            f"reed_solomon({num_workers}, {num_workers}, {load})",
            constructors.reed_solomon(num_workers, num_workers, load),
        ),
        fixed(
            f"communication_efficient({num_workers}, {order - 1}, 2)",
            constructors.communication_efficient(num_workers, order - 1, 2),
        ),
        fixed(
            f"clustered(reed_solomon({2 * order}, {2 * order}, {load}), {load // 2})",
            constructors.clustered(
                constructors.reed_solomon(2 * order, 2 * order, load), load // 2
            ),
        ),
        fixed(
            f"projective_plane({order})",
            constructors.projective_plane(order),
            is_exact=False,
        ),
        drawn(
            f"bernoulli({num_workers}, {num_workers}, {load})",
            constructors.bernoulli,
            num_workers,
            num_workers,
            load,
        ),
        drawn(
            f"regularized_bernoulli({num_workers}, {num_workers}, {load})",
            constructors.regularized_bernoulli,
            num_workers,
            num_workers,
            load,
        ),
        drawn(
            f"regular_graph({num_workers}, {load})",
            constructors.regular_graph,
            num_workers,
            load,
        ),
        drawn(
            f"stochastic_block({divisible}, {divisible}, {order}, "
            f"{PROBABILITY_INSIDE:g}, {probability_across(order):g})",
            constructors.stochastic_block,
            divisible,
            divisible,
            order,
            PROBABILITY_INSIDE,
            probability_across(order),
        ),
        drawn(
            f"stochastic({num_workers}, {num_workers}, {load}, {PROBABILITY:g})",
            constructors.stochastic,
            num_workers,
            num_workers,
            load,
            PROBABILITY,
        ),
    ]
    if not effort.is_full:
        return [entry for entry in every if entry.name.split("(")[0] in FEW_CODES]
    learned = jaxwgc.studies.optimize(
        constructors.regular_graph(key, num_workers, load),
        stragglers.bernoulli(PROBABILITY),
        key,
    )
    return [*every, fixed("optimize(regular_graph)", learned, is_exact=False)]


def probability_across(order: int) -> float:
    """Makes the mean load order + 1, where `order` clusters have as many parts each."""
    return (1 - PROBABILITY_INSIDE) / (order - 1)
