"""Decoders. A new decoder needs a row in `ROWS`, whether or not a code has it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import jaxwgc
from jaxwgc import decoders
from tests.catalogue.codes import CODES
from tests.catalogue.row import Row

# Computes aᵀB, (num_parts,), from a code and the mask of its messages.
Reference = Callable[[jaxwgc.GradientCode, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderRow(Row):
    """A decoder.

    Attributes:
      codes: Codes that it decodes, by their names in the catalogue, with a reference in
        NumPy. None for an optimal decoder: the reference is then least squares.
      tolerance: How far weights in batches, alone and in lanes of `jax.vmap` may
        differ, relative to the largest.
    """

    codes: Mapping[str, Reference | None]
    tolerance: float

    def call(self, arguments):
        """Decodes the first code: arguments are checked when the code is known."""
        code = CODES[next(iter(self.codes))]
        received = np.ones(code.num_workers, bool)
        return jaxwgc.decoding(code, received, self.make(**arguments)).weights[
            ..., 0, :
        ]

    def decoder_for(self, code) -> Any:
        """The class if the code has such a decoder, or else that of the arguments."""
        return self.make if code.decoders_of(self.make) else self.example


def fields_of(kind, name):
    """The fields of a code's own decoder of a class."""
    decoder = CODES[name].decoders_of(kind)[0]
    return {
        field.name: getattr(decoder, field.name)
        for field in dataclasses.fields(decoder)
    }


def one_step(weight):
    """Reference for equal weights: a function of their number."""

    def mixture(code, mask):
        return weight(max(mask.sum(), 1)) * mask @ code.encoding_matrix

    return mixture


def group_weights(code, mask):
    """1 for the first response of each group, of the family that loses least."""
    choices = []
    for family in np.asarray(code.decoders[0].groups):
        weights = np.zeros(code.num_workers)
        silent = 0.0
        for group in np.unique(family[family >= 0]):
            workers = np.flatnonzero(family == group)
            weights[workers[mask[workers]][:1]] = 1
            if not mask[workers].any():
                silent += np.sum(code.target[code.assignment[workers[0]]] ** 2)
        choices.append((silent, weights))
    return min(choices, key=lambda choice: choice[0])[1]


def of_groups(code, mask):
    """The messages of the first responses."""
    return group_weights(code, mask) @ code.encoding_matrix


def of_clusters(code, mask):
    """aᵀB of binary codes of three workers, side by side."""
    inner = jaxwgc.codes.binary(3, 1)
    return np.concatenate(
        [of_groups(inner, cluster_mask) for cluster_mask in mask.reshape(-1, 3)]
    )


def recovered_parts(rows):
    """Parts that peeling recovers: a queue of messages with one unknown part."""
    neighbours = [set(np.flatnonzero(row)) for row in rows]
    known = set()
    while alone := [unknown for unknown in neighbours if len(unknown) == 1]:
        [part] = alone[-1]
        known.add(part)
        for parts in neighbours:
            parts.discard(part)
    return sorted(known)


def of_peeling(code, mask):
    """k / k' at the k' recovered parts, 0 at the others."""
    known = recovered_parts(code.assignment[mask])
    mixture = np.zeros(code.num_parts)
    mixture[known] = code.num_parts / max(len(known), 1)
    return mixture


def of_ridge(noise):
    """Reference for noisy messages: regularised normal equations."""

    def mixture(code, mask):
        rows = code.encoding_matrix[mask]
        gram = rows @ rows.conj().T
        penalty = noise**2 * np.diag(np.diagonal(gram))
        normal = (gram + penalty).conj()
        # A message of no parts has a row of zeros, and the weight zero.
        weights, *_ = np.linalg.lstsq(normal, rows.conj() @ code.target)
        return weights @ rows

    return mixture


ROWS = (
    DecoderRow(
        make=decoders.LeastSquares,
        arguments={"num_missing": 0},
        rules={"num_missing": "at least 0"},
        codes={"bernoulli": None},
        tolerance=2e-5,
    ),
    DecoderRow(
        make=decoders.Ridge,
        arguments={"noise": 0.1},
        rules={"noise": "at least 0.01"},
        codes={"bernoulli": of_ridge(0.1), "cyclic_mds": of_ridge(0.1)},
        # Its systems have condition numbers up to 1,600: differences of 2.5e-5 occur.
        tolerance=3e-4,
    ),
    DecoderRow(
        make=decoders.Lagrange,
        arguments=fields_of(decoders.Lagrange, "reed_solomon, slack"),
        rules={"num_stragglers": "at least 0"},
        codes={"reed_solomon, slack": None},
        tolerance=2e-5,
    ),
    DecoderRow(
        make=decoders.Dual,
        arguments=fields_of(decoders.Dual, "any_placement, random_rows"),
        rules={"num_stragglers": "at least 0"},
        codes={"any_placement, random_rows": None},
        tolerance=2e-5,
    ),
    DecoderRow(
        make=decoders.Components,
        arguments=fields_of(decoders.Components, "edge_graph"),
        codes={"edge_graph": None},
        tolerance=1e-6,
    ),
    DecoderRow(
        make=decoders.OneCopy,
        arguments=fields_of(decoders.OneCopy, "replicated"),
        codes={"replicated": None},
        tolerance=0,
    ),
    DecoderRow(
        make=decoders.OneStep,
        arguments=fields_of(decoders.OneStep, "stochastic"),
        rules={"scale": ""},
        # The formulas of the literature.
        codes={
            "stochastic": one_step(lambda responses: 1.0),
            "bernoulli": one_step(lambda responses: 6 / (responses * 2)),
            "projective_plane": one_step(lambda responses: 7 / (responses * 3)),
        },
        tolerance=1e-6,
    ),
    DecoderRow(
        make=decoders.Group,
        arguments=fields_of(decoders.Group, "binary"),
        codes={"binary": of_groups},
        tolerance=0,
    ),
    DecoderRow(
        make=decoders.Clustered,
        arguments=fields_of(decoders.Clustered, "clustered, group"),
        rules={"num_clusters": "at least 1"},
        codes={"clustered, group": of_clusters},
        tolerance=0,
    ),
    DecoderRow(
        make=decoders.Peeling,
        arguments=fields_of(decoders.Peeling, "ldgm"),
        codes={"ldgm": of_peeling},
        tolerance=1e-6,
    ),
)
