"""Exact codes survive every pattern of stragglers that they promise to, by NumPy."""

import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests.catalogue.codes import CODES, ROWS
from tests.catalogue.row import every_row
from tests.conftest import random_patterns
from tests.oracles import worst_miss
from tests.zoo import messages_sent, patterns_within

EXACT = [row for row in ROWS if row.exact is not None]


@every_row(EXACT)
@pytest.mark.parametrize("n", range(1, 9))
def test_every_pattern_of_all_parameters(row, n):
    for code in row.exact(n):
        received = patterns_within(n, code.num_stragglers)
        assert worst_miss(code, received).max() < 1e-9, code
        assert code.encoding_matrix.shape == (n, code.num_parts * code.num_segments)


# Workers, tolerances, constructors, and arguments beyond the number of workers.
LARGER = [
    (12, 1e-9, codes.cyclic_mds, [(2,), (5,), (11,)]),
    (12, 1e-9, codes.binary, [(4,), (6,)]),
    (12, 1e-9, codes.reed_solomon, [(8, 3), (12, 7), (9, 8)]),
    (12, 1e-9, codes.communication_efficient, [(0, 12), (3, 3), (4, 4)]),
    (12, 1e-9, codes.communication_efficient, [(7, 5), (11, 1)]),
    (100, 1e-9, codes.binary, [(10,), (50,)]),
    (100, 1e-9, codes.cyclic_mds, [(1,), (6,)]),
    # Rare runs of neighbours that straggle together cost more digits.
    (100, 1e-7, codes.cyclic_mds, [(10,), (11,)]),
    (100, 1e-9, codes.communication_efficient, [(10, 5), (10, 4), (5, 2)]),
]


@pytest.mark.parametrize(
    ("code", "tolerance"),
    [
        (make(n, *arguments), tolerance)
        for n, tolerance, make, rows in LARGER
        for arguments in rows
    ],
    ids=str,
)
def test_larger_codes_tolerate_their_stragglers(code, tolerance):
    """Every pattern of twelve workers, some of a hundred."""
    n = code.num_workers
    s = code.num_stragglers
    received = patterns_within(n, s) if n == 12 else random_patterns(n, s, 60)
    assert worst_miss(code, received).max() < tolerance


INNER = {
    name: CODES[name]
    for name in (
        "uncoded",
        "fractional_repetition",
        "binary",
        "cyclic_mds",
        "cyclic_mds, complex",
        "cyclic_repetition",
        "reed_solomon, slack",
        "weighted",
    )
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


@every_inner
def test_clustered_codes_tolerate_stragglers_in_each_cluster(inner):
    """Each cluster tolerates s stragglers."""
    for num_clusters in (1, 3):
        code = codes.clustered(inner, num_clusters)
        inner_patterns = patterns_within(inner.num_workers, inner.num_stragglers)
        draws = np.random.default_rng(0).integers(
            len(inner_patterns), size=(30, num_clusters)
        )
        assert worst_miss(code, inner_patterns[draws].reshape(30, -1)).max() < 1e-9


@every_inner
def test_several_messages_survive_what_the_code_survives(inner):
    code = codes.multi_message(inner)
    assert code.num_stragglers == inner.num_stragglers
    received = patterns_within(code.num_workers, code.num_stragglers)
    assert worst_miss(code, messages_sent(code, received)).max() < 1e-9


@every_inner
@pytest.mark.parametrize("num_uncoded", [0, 1, 3])
def test_second_messages_of_a_partial_code_may_be_missing(inner, num_uncoded):
    code = codes.partially_coded(inner, num_uncoded)
    assert code.num_stragglers == (0 if num_uncoded else inner.num_stragglers)
    done = patterns_within(inner.num_workers, inner.num_stragglers)
    parts = num_uncoded + inner.parts_per_worker
    finished = np.where(done, parts, num_uncoded)
    assert worst_miss(code, messages_sent(code, finished)).max() < 1e-9
    # A part short of everything is no second message.
    late = np.where(done, finished, parts - 1)
    np.testing.assert_array_equal(
        messages_sent(code, late), messages_sent(code, finished)
    )


@pytest.mark.parametrize("name", CODES)
def test_codes_are_built_on_the_host_in_double_precision(name):
    """Codes hold NumPy arrays, and every worker's parts have equal loads."""
    code = CODES[name]
    dtype = np.complex128 if code.is_complex else np.float64
    assert isinstance(code.encoding_matrix, np.ndarray)
    assert code.encoding_matrix.dtype == dtype
    assert isinstance(code.assignment, np.ndarray)
    assert code.assignment.dtype == np.bool_
    assert jaxwgc.GradientCode.check(code) is code
    blocks = code.encoding_matrix.reshape(
        code.num_workers, code.messages_per_worker, code.num_parts, code.num_segments
    )
    held = blocks.any((1, 3))
    weights = code.target if name == "weighted" else np.ones(code.num_parts)
    np.testing.assert_array_equal(held, code.assignment & (weights != 0))
    np.testing.assert_array_equal(code.target, weights)
    # A fair share is 1, so that their mean is that of the copies.
    assert code.loads.mean() == pytest.approx(code.assignment.sum(0).mean())
