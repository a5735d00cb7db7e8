"""Gradient codes. A new constructor needs a row in `ROWS`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

import jaxwgc
from jaxwgc import codes
from tests.catalogue.row import Row, examples_of
from tests.conftest import bools


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeRow(Row):
    """A constructor of codes.

    Attributes:
      codes: Small codes for the shared tests by what is special, "" for the first one:
        of six workers if possible, of fewer if they send several messages.
      is_ever_exact: Whether some rounds decode exactly. They do not if the code leaves
        out a part, or weighs parts unequally.
      exact: Gives the codes of n workers and at most eight parts that tolerate every
        pattern of s stragglers, with all parameters. None for other codes.
    """

    codes: Mapping[str, codes.GradientCode]
    is_ever_exact: bool = True
    checks_keys: bool = False
    exact: Callable[[int], Iterable[codes.GradientCode]] | None = None

    @property
    def examples(self) -> dict[str, Any]:
        """Codes by name."""
        return {
            f"{self.name}, {label}" if label else self.name: code
            for label, code in self.codes.items()
        }


def tolerances(n):
    """Every number of stragglers of n workers."""
    return range(n)


KEY = jax.random.key(0)
# Two to four holders a part, one to five parts a worker.
PLACEMENT = bools("111101 010000 101010 100110 001001 100000")
# Three workers, two parts.
HELD = bools("11 10 11")
# Rows of very different norms, twice: of the shape of the other codes.
SCALED_ROWS = np.kron(
    np.eye(2), np.diag([1e-3, 1, 1e3]) @ [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
)
UNEQUAL = np.array([0.5, 0.1, 0.3, 0.2, 0.6, 0.05])
SMALL = codes.cyclic_mds(4, 1)
in_two_clusters = functools.partial(codes.clustered, num_clusters=2)


def reed_solomon_codes(n):
    """Codes with at most eight parts."""
    for num_parts in range(1, 9):
        for copies in range(1, n + 1):
            if num_parts * copies % n == 0:
                yield codes.reed_solomon(n, num_parts, copies)


def cyclic_repetition_codes(n):
    """Codes of few sizes, since each shape of a draw compiles a function."""
    if n in (1, 2, 3, 4, 8):
        yield from (codes.cyclic_repetition(KEY, n, s) for s in tolerances(n))


ROWS = (
    CodeRow(
        make=codes.uncoded,
        arguments={"num_workers": 3, "num_parts": 9, "loads": np.ones(3)},
        rules={"num_workers": "at least 1", "num_parts": "at least 1"},
        codes={"": codes.uncoded(6)},
    ),
    CodeRow(
        make=codes.fractional_repetition,
        arguments={"num_workers": 6, "num_stragglers": 2},
        rules={"num_workers": "at least 1", "num_stragglers": "at least 0"},
        codes={"": codes.fractional_repetition(6, 2)},
        exact=lambda n: [
            codes.fractional_repetition(n, s) for s in tolerances(n) if n % (s + 1) == 0
        ],
    ),
    CodeRow(
        make=codes.cyclic_repetition,
        arguments={"key": KEY, "num_workers": 6, "num_stragglers": 2},
        rules={"num_workers": "at least 1", "num_stragglers": "at least 0"},
        codes={"": codes.cyclic_repetition(KEY, 6, 2)},
        exact=cyclic_repetition_codes,
    ),
    CodeRow(
        make=codes.reed_solomon,
        arguments={
            "num_workers": 6,
            "num_parts": 6,
            "copies": 3,
            "interleave": True,
        },
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "copies": "at least 1",
        },
        codes={"": codes.reed_solomon(6, 6, 3), "slack": codes.reed_solomon(6, 3, 4)},
        exact=reed_solomon_codes,
    ),
    CodeRow(
        make=codes.cyclic_mds,
        arguments={"num_workers": 6, "num_stragglers": 2},
        rules={"num_workers": "at least 1", "num_stragglers": "at least 0"},
        codes={"": codes.cyclic_mds(6, 3), "complex": codes.cyclic_mds(6, 2)},
        exact=lambda n: [codes.cyclic_mds(n, s) for s in tolerances(n)],
    ),
    CodeRow(
        make=codes.binary,
        arguments={"num_workers": 6, "num_stragglers": 2},
        rules={"num_workers": "at least 1", "num_stragglers": "at least 0"},
        # Four does not divide six: there are two families.
        codes={"": codes.binary(6, 3)},
        exact=lambda n: [codes.binary(n, s) for s in tolerances(n)],
    ),
    CodeRow(
        make=codes.communication_efficient,
        arguments={"num_workers": 6, "num_stragglers": 1, "num_segments": 2},
        rules={
            "num_workers": "at least 1",
            "num_stragglers": "at least 0",
            "num_segments": "at least 1",
        },
        codes={
            "": codes.communication_efficient(6, 2, 2),
            "odd": codes.communication_efficient(6, 1, 3),
        },
        exact=lambda n: [
            codes.communication_efficient(n, s, m)
            for s in tolerances(n)
            for m in range(1, n - s + 1)
        ],
    ),
    CodeRow(
        make=codes.clustered,
        arguments={"code": SMALL, "num_clusters": 2},
        rules={"num_clusters": "at least 1"},
        codes={
            "": in_two_clusters(codes.cyclic_mds(3, 1)),
            "lagrange": in_two_clusters(codes.reed_solomon(3, 3, 2)),
            "group": in_two_clusters(codes.binary(3, 1)),
            "segments": in_two_clusters(codes.communication_efficient(3, 0, 3)),
        },
    ),
    CodeRow(
        make=codes.multi_message,
        arguments={"code": SMALL},
        codes={
            "": codes.multi_message(codes.fractional_repetition(4, 1)),
            "uncoded": codes.multi_message(codes.uncoded(3, 9)),
        },
    ),
    CodeRow(
        make=codes.partially_coded,
        arguments={"code": SMALL, "num_uncoded": 1},
        rules={"num_uncoded": "at least 0"},
        codes={
            "": codes.partially_coded(codes.cyclic_repetition(KEY, 3, 1), 1),
            "complex": codes.partially_coded(codes.cyclic_mds(3, 1), 1),
        },
    ),
    CodeRow(
        make=codes.replicated,
        arguments={"num_workers": 3, "num_parts": 6, "copies": 2, "loads": np.ones(3)},
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "copies": "at least 1",
        },
        codes={"": codes.replicated(3, 5, copies=2, loads=[1, 3, 1])},
    ),
    CodeRow(
        make=codes.bernoulli,
        arguments={"key": KEY, "num_workers": 6, "num_parts": 6, "copies": 2},
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "copies": "at least 1",
        },
        codes={"": codes.bernoulli(KEY, 6, 6, copies=2)},
        is_ever_exact=False,
    ),
    CodeRow(
        make=codes.regularized_bernoulli,
        arguments={"key": KEY, "num_workers": 6, "num_parts": 6, "copies": 2},
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "copies": "at least 1",
        },
        codes={"": codes.regularized_bernoulli(KEY, 6, 6, copies=2)},
    ),
    CodeRow(
        make=codes.regular_graph,
        arguments={"key": KEY, "num_workers": 6, "copies": 2},
        rules={"num_workers": "at least 2", "copies": "from 1 to"},
        codes={"": codes.regular_graph(KEY, 6, copies=3)},
    ),
    CodeRow(
        make=codes.ramanujan_graph,
        arguments={"prime": 5, "modulus": 13},
        rules={"prime": "a prime", "modulus": "a prime"},
        codes={},  # The smallest has more than a thousand workers.
    ),
    CodeRow(
        make=codes.edge_graph,
        arguments={"key": KEY, "num_parts": 6, "degree": 3},
        rules={"num_parts": "at least 2", "degree": "from 1 to"},
        codes={"": codes.edge_graph(KEY, 4, degree=3)},
    ),
    CodeRow(
        make=codes.stochastic,
        arguments={
            "key": KEY,
            "num_workers": 6,
            "num_parts": 4,
            "copies": 2,
            "straggler_probability": 0.1,
        },
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "copies": "from 1 to",
            "straggler_probability": "at least 0 and less than 1",
        },
        codes={"": codes.stochastic(KEY, 6, 6, 2, 0.2)},
        is_ever_exact=False,
    ),
    CodeRow(
        make=codes.stochastic_block,
        arguments={
            "key": KEY,
            "num_workers": 6,
            "num_parts": 6,
            "num_clusters": 2,
            "probability_inside": 0.5,
            "probability_across": 0.5,
        },
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "num_clusters": "at least 1",
            "probability_inside": "at least 0",
            "probability_across": "at least 0",
        },
        codes={"": codes.stochastic_block(KEY, 6, 6, 2, 0.8, 0.1)},
        is_ever_exact=False,
    ),
    CodeRow(
        make=codes.unequal,
        arguments={
            "straggler_probabilities": np.full(3, 0.5),
            "num_parts": 2,
            "assignment": HELD,
            "quantization_variance": np.full(3, 0.5),
        },
        rules={"num_parts": "at least 1"},
        codes={
            "": codes.unequal(UNEQUAL, 6),
            "assignment": codes.unequal(
                UNEQUAL,
                6,
                assignment=codes.cyclic_mds(6, 2).assignment,
            ),
        },
        is_ever_exact=False,
    ),
    CodeRow(
        make=codes.ldgm,
        arguments={"key": KEY, "num_workers": 6, "num_parts": 4, "parity_degree": 2},
        rules={
            "num_workers": "greater than num_parts = 4",
            "num_parts": "at least 1",
            "parity_degree": "at least 1",
        },
        codes={"": codes.ldgm(KEY, 6, 4, 2)},
    ),
    CodeRow(
        make=codes.batch_raptor,
        arguments={
            "key": KEY,
            "num_workers": 20,
            "num_parts": 12,
            "batch_size": 2,
            "max_degree": 3,
        },
        rules={
            "num_workers": "at least 1",
            "num_parts": "at least 1",
            "batch_size": "at least 1",
            "max_degree": "at least 1",
        },
        codes={"": codes.batch_raptor(KEY, 6, 6, batch_size=2)},
        is_ever_exact=False,
    ),
    CodeRow(
        make=codes.projective_plane,
        arguments={"order": 2},
        rules={"order": "a prime"},
        codes={"": codes.projective_plane(2)},
    ),
    CodeRow(
        make=codes.paley,
        arguments={"num_workers": 7},
        rules={"num_workers": "a prime"},
        codes={"": codes.paley(7)},
    ),
    CodeRow(
        make=codes.any_placement,
        arguments={
            "key": KEY,
            "assignment": HELD,
            "num_stragglers": 1,
            "method": "polynomials",
        },
        rules={"num_stragglers": "at least 0"},
        codes={
            "polynomials": codes.any_placement(KEY, PLACEMENT, 1, "polynomials"),
            "random_rows": codes.any_placement(KEY, PLACEMENT, 1, "random_rows"),
        },
    ),
    CodeRow(
        make=jaxwgc.GradientCode.from_matrix,
        arguments={
            "encoding_matrix": np.eye(3),
            "num_stragglers": 0,
            "assignment": np.eye(3) > 0,
            "target": np.ones(3),
            "check_patterns": 1,
        },
        rules={"num_stragglers": "at least 0", "check_patterns": "at least 0"},
        codes={"": jaxwgc.GradientCode.from_matrix(SCALED_ROWS, num_stragglers=1)},
    ),
    CodeRow(
        make=jaxwgc.weighted,
        arguments={"code": codes.uncoded(6), "weights": np.ones(6)},
        codes={
            "": jaxwgc.weighted(
                codes.reed_solomon(6, 6, 3), np.array([2.0, 0, 1, 3, 0.5, 1])
            )
        },
    ),
)
CODES = examples_of(ROWS)
# Names of codes that decode no round exactly.
NEVER_EXACT = {name for row in ROWS if not row.is_ever_exact for name in row.examples}
