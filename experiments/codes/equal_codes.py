"""The codes that are compared at equal load: every construction, one shape."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import jaxwgc
from experiments.runner.study import Effort
from jaxwgc import codes as constructors
from jaxwgc import stragglers

# A projective plane of that order sets the size: 31 workers with 6 parts, or 13 with 4.
ORDER, SMALL_ORDER = 5, 3
FEW_CODES = (
    "uncoded",
    "fractional_repetition",
    "reed_solomon",
    "any_placement",
    "edge_graph",
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

    def fixed(construct, *arguments, is_exact=True):
        code = construct(*arguments)
        return Entry(_name(construct, *arguments), lambda key: code, is_exact)

    def drawn(construct, *arguments, is_exact=False):
        name = _name(construct, *arguments)
        return Entry(name, lambda key: construct(key, *arguments), is_exact, True)

    cluster = constructors.reed_solomon(2 * order, 2 * order, load)
    clustered = constructors.clustered(cluster, load // 2)
    draws = jax.random.uniform(key, (num_workers, num_workers))
    held = np.asarray(draws.argsort(0).argsort(0) < load)
    anywhere = constructors.any_placement(key, held, order)
    inside, across = PROBABILITY_INSIDE, probability_across(order)
    square = num_workers, num_workers
    every = [
        fixed(constructors.uncoded, num_workers),
        fixed(constructors.fractional_repetition, divisible, order),
        fixed(constructors.binary, num_workers, order),
        drawn(constructors.cyclic_repetition, num_workers, order, is_exact=True),
        fixed(constructors.cyclic_mds, num_workers, order),
        fixed(constructors.reed_solomon, *square, load),
        fixed(constructors.communication_efficient, num_workers, order - 1, 2),
        Entry(
            f"clustered(reed_solomon({2 * order}, {2 * order}, {load}), {load // 2})",
            lambda key: clustered,
            is_exact=True,
        ),
        Entry(
            f"any_placement(random, {order})",
            lambda key: anywhere,
            is_exact=True,
        ),
        fixed(constructors.projective_plane, order, is_exact=False),
        drawn(constructors.bernoulli, *square, load),
        drawn(constructors.regularized_bernoulli, *square, load),
        drawn(constructors.regular_graph, num_workers, load),
        # Workers hold two parts that are three times as large.
        drawn(constructors.edge_graph, 2 * order, load),
        drawn(
            constructors.stochastic_block, divisible, divisible, order, inside, across
        ),
        drawn(constructors.stochastic, *square, load, PROBABILITY),
    ]
    if not effort.is_full:
        return [entry for entry in every if entry.name.split("(")[0] in FEW_CODES]
    learned = jaxwgc.studies.learn_entries(
        constructors.regular_graph(key, num_workers, load),
        stragglers.bernoulli(PROBABILITY),
        key,
    )
    return [*every, Entry("learn_entries(regular_graph)", lambda key: learned, False)]


def _name(construct: Callable, *arguments: float) -> str:
    return f"{construct.__name__}({', '.join(f'{value:g}' for value in arguments)})"


def probability_across(order: int) -> float:
    """Makes the mean load order + 1, where `order` clusters have as many parts each."""
    return (1 - PROBABILITY_INSIDE) / (order - 1)
