"""What the constructors refuse: class of error, argument, value and rule."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import codes
from tests.zoo import KEY

CODE = codes.cyclic_mds(4, 1)
SEGMENTS = codes.communication_efficient(4, 1, 2)
TWO_MESSAGES = codes.partially_coded(CODE, 1)
BATCH = dataclasses.replace(CODE, encoding_matrix=jnp.zeros((5, 4, 4)))
HELD = np.array([[1, 1], [1, 0], [1, 1]], bool)
OF_N_AND_S = [
    ((5, 5), "num_stragglers must be less than"),
    ((5, -1), "num_stragglers must be at least 0; got -1"),
    ((0, 0), "num_workers must be at least 1; got 0"),
]
OF_REPLICATION = [
    ((10, 8, 0), "replication must be at least 1; got 0"),
    ((10, 80, 11), "replication must be at most num_workers; .* = 11"),
    ((0, 8, 1), "num_workers must be at least 1; got 0"),
    ((10, 0, 1), "num_parts must be at least 1; got 0"),
]
VALUES = {
    codes.uncoded: [
        ((0,), "num_workers must be at least 1"),
        ((3, 0), "num_parts must be at least 1; got 0"),
        (
            (3, 8),
            "num_parts must be a multiple of num_workers; got num_parts = 8 and "
            "num_workers = 3; the nearest that work are 6 and 9",
        ),
    ],
    codes.fractional_repetition: [
        *OF_N_AND_S,
        (
            (10, 2),
            r"num_stragglers \+ 1 must divide num_workers; got num_stragglers = 2 and "
            "num_workers = 10; the nearest that work are 1 and 4",
        ),
    ],
    codes.binary: OF_N_AND_S,
    functools.partial(codes.edge_graph, KEY): [
        ((1, 1), "num_parts must be at least 2; got 1"),
        ((7, 3), r"num_parts \* degree must be even"),
        (
            (6, 6),
            "degree must be from 1 to .*; for degree the nearest that works",
        ),
        ((6, 0), "degree must be from 1"),
    ],
    codes.ramanujan_graph: [
        (
            (7, 13),
            "prime must be a prime with remainder 1 modulo 4; got 7; .* 5 and 13",
        ),
        ((5, 21), "modulus must be a prime with remainder 1 modulo 4; got 21"),
        ((13, 13), "modulus must be another prime than prime"),
        ((13, 5), r"larger than 2 \* sqrt\(prime\); got modulus = 5 and prime = 13"),
    ],
    codes.cyclic_mds: OF_N_AND_S,
    functools.partial(codes.cyclic_repetition, KEY): OF_N_AND_S,
    codes.reed_solomon: [
        *OF_REPLICATION,
        ((50, 20, 11), r"num_workers \* parts_per_worker must equal"),
    ],
    functools.partial(codes.bernoulli, KEY): OF_REPLICATION,
    functools.partial(codes.regularized_bernoulli, KEY): OF_REPLICATION,
    codes.communication_efficient: [
        (
            (10, 6, 5),
            r"num_stragglers \+ num_segments must be at most num_workers; got 6 \+ 5 "
            "and 10; the nearest that works is num_segments = 4 or num_stragglers = 5",
        ),
        ((10, 6, 11), "the nearest that works is num_segments = 4$"),
        ((10, 10, 1), "num_stragglers must be less than"),
        ((10, 1, 0), "num_segments must be at least 1; got 0"),
    ],
    codes.clustered: [
        ((CODE, 0), "num_clusters must be at least 1; got 0"),
        ((BATCH, 2), "code must be one code"),
    ],
    codes.multi_message: [
        ((SEGMENTS,), "multi_message needs a code with num_segments"),
        ((TWO_MESSAGES,), "with messages_per_worker = 1; got .* = 2"),
    ],
    codes.partially_coded: [
        ((CODE, -1), "num_uncoded must be at least 0; got -1"),
        ((SEGMENTS, 1), "partially_coded needs a code with num_segments = 1"),
        ((TWO_MESSAGES, 1), "partially_coded needs a code with messages_per"),
        ((codes.clustered(CODE, 2), 1), "use clustered on the partial code instead"),
    ],
    codes.projective_plane: [
        ((6,), "order must be a prime .*got order = 6; the nearest .* are 5 and 7$"),
        ((4,), "the nearest that work are 3 and 5$"),
        ((1,), "the nearest that works is 2$"),
        ((-3,), "the nearest that works is 2$"),
    ],
    codes.paley: [
        ((8,), "got num_workers = 8; the nearest that work.* are 7 and 11$"),
        ((13,), "the nearest that work are 11 and 19$"),
        ((-1,), "the nearest that works is 3$"),
    ],
    functools.partial(codes.regular_graph, KEY): [
        ((1, 1), "num_workers must be at least 2; got 1"),
        ((4, 0), "replication must be from 1 to num_workers - 1.* got replication = 0"),
        ((5, 0), "for replication the nearest that works is 2$"),
        ((4, 4), "the nearest that works is 3, and for num_workers it is 5$"),
        ((5, 8), "the nearest that works is 4, and for num_workers it is 9$"),
    ],
    functools.partial(codes.any_placement, KEY): [
        ((HELD, 2), r"= 3 holders of every part; got part 1 on the workers \[0, 2\]$"),
        ((HELD & False, 0), r"got part 0 on the workers \[\]$"),
        ((HELD, 3), "num_stragglers must be less than num_workers"),
        ((HELD, -1), "num_stragglers must be at least 0; got -1"),
        ((HELD, 1, "lagrange"), "method must be one of .*'polynomials'.* 'lagrange'$"),
        ((HELD, 1, 3), "method must be one of"),
        ((HELD[0], 1), r"assignment must have 2 axes; got shape \(2,\)"),
        ((HELD[:0], 0), "assignment must have workers and parts"),
        ((HELD[:, :0], 0), "assignment must have workers and parts"),
    ],
    codes.proportional_placement: [
        (([1, 0, 1], 3, 1), r"speeds must be positive; got speeds\[1\] = 0"),
        (([1, -2.0], 3, 1), r"speeds must be positive; got speeds\[1\] = -2"),
        (([1, math.nan], 3, 1), "speeds must be finite"),
        (([1, math.inf], 3, 1), "speeds must be finite"),
        (([[1, 2]], 3, 1), "speeds must have 1 axis"),
        ((np.ones(0), 3, 1), "speeds must be of one worker at least"),
        (([1, 2], 0, 1), "num_parts must be at least 1; got 0"),
        (([1, 2], 3, 0), "copies must be at least 1; got 0"),
        (([1, 2], 3, 3), "copies must be at most num_workers; .* = 3 and"),
    ],
    codes.worst_rounding: [
        ((BATCH,), "code must be one code"),
        ((CODE, 0), "num_patterns must be at least 1; got 0"),
    ],
    functools.partial(codes.stochastic_block, KEY): [
        ((12, 18, 4, 0.5, 0.5), "num_clusters = 4, .*nearest that work are 3 and 6$"),
        ((12, 18, 0, 0.5, 0.5), "num_clusters must be at least 1; got 0"),
        ((4, 4, 2, 1.5, 0.5), "probability_inside must be at most 1; got 1.5"),
        ((4, 4, 2, 0.5, -0.5), "probability_across must be at least 0; got -0.5"),
        ((4, 4, 2, 0.5, math.nan), "probability_across must be a number; got nan"),
    ],
    functools.partial(codes.stochastic, KEY): [
        ((10, 4, 0, 0.1), "replication must be at least 1; got 0"),
        ((10, 4, (1, 2, 11, 3), 0.1), r"replication\[2\] must be at most .* = 11"),
        ((10, 4, (1, 2, 3), 0.1), "have num_parts entries; got 3 .* num_parts = 4"),
        ((10, 4, 2, 1.0), "straggler_probability must be less than 1; got 1"),
        ((10, 4, 2, 1.1), "straggler_probability must be at most 1; got 1.1"),
        ((10, 4, 2, -0.1), "straggler_probability must be at least 0; got -0.1"),
        ((2, 4, 2, [0, 1.0]), r"less than 1; got straggler_probability\[1\] = 1.0"),
        ((2, 4, 2, [0, 0.1, 0.2]), r"straggler_probability must have shape \(num_wo"),
    ],
    codes.unequal: [
        (([0.5, 0.0], 2), r"between 0 and 1; got straggler_probabilities\[1\] = 0.0"),
        (([1.0, 0.5], 2), r"between 0 and 1; got straggler_probabilities\[0\] = 1.0"),
        (([0.5, math.nan], 2), "straggler_probabilities must be finite"),
        (([], 2), r"straggler_probabilities must have shape \(num_workers,\)"),
        ((0.5, 2), "straggler_probabilities must have 1 axis"),
        (([0.5], 0), "num_parts must be at least 1; got 0"),
    ],
    lambda assignment, correlation=None, variance=0.0: codes.unequal(
        [0.5, 0.2],
        3,
        assignment=assignment,
        correlation=correlation,
        quantization_variance=variance,
    ): [
        ((np.ones((2, 2), bool),), r"assignment must have shape .* = \(2, 3\); got"),
        ((np.eye(2, 3, dtype=bool),), "every part on a worker; got part 2 on none"),
        ((None, 1.0), "correlation must make G positive definite.* eigenvalues from"),
        (
            (None, -0.6),
            r"correlation must be from -1 / \(num_parts - 1\) to 1; got -0.",
        ),
        ((None, math.nan), "correlation must be from"),
        ((None, np.eye(2)), r"correlation must have shape \(num_parts, num_parts\)"),
        ((None, np.ones((3, 3))), "correlation must make G positive definite"),
        ((None, -np.eye(3)), "correlation must be positive semidefinite; got an eig"),
        ((None, np.triu(np.ones((3, 3)))), "correlation must be symmetric"),
        ((None, None, [0.1]), r"quantization_variance must have shape \(num_workers,"),
        ((None, None, [0, -1.0]), r"at least 0; got quantization_variance\[1\] = -1.0"),
        ((None, None, math.inf), "quantization_variance must be finite and at least 0"),
    ],
    functools.partial(codes.ldgm, KEY): [
        ((4, 4, 2), "num_workers must be greater than num_parts; .* = 4 and"),
        ((3, 5, 2), "num_workers the nearest .* is 6, and for num_parts it is 2$"),
        ((1, 5, 2), "for num_workers the nearest that works is 6$"),
        ((6, 4, 0), "parity_degree must be at least 1; got 0"),
        ((6, 4, 5), "parity_degree must be at most num_parts; .* = 5 and"),
        ((6, 0, 1), "num_parts must be at least 1; got 0"),
    ],
    lambda workers, size, degree, c, delta: codes.batch_raptor(
        KEY, workers, 12, batch_size=size, max_degree=degree, c=c, delta=delta
    ): [
        ((20, 5, 1, 1, 1), "got batch_size = 5 .*nearest that work are 4 and 6$"),
        ((20, 0, 1, 1, 1), "batch_size must be at least 1; got 0"),
        ((20, 1, 0, 1, 1), "max_degree must .* 0 and 12 batches; the nearest .* is 1$"),
        ((20, 2, 7, 1, 1), "max_degree .* = 7 and 6 batches; the nearest .* is 6$"),
        ((20, 1, 1, -0.1, 1), "c must be at least 0; got -0.1"),
        ((20, 1, 1, math.inf, 1), "c must be finite; got inf"),
        ((20, 1, 1, 1, 0), "delta must be positive; got 0"),
        ((20, 1, 1, 1, 1.5), "delta must be at most 1; got 1.5"),
        ((0, 1, 1, 1, 1), "num_workers must be at least 1; got 0"),
    ],
}


@pytest.mark.parametrize(
    ("constructor", "arguments", "rule"),
    [(make, *case) for make, cases in VALUES.items() for case in cases],
)
def test_impossible_parameters(constructor, arguments, rule):
    with pytest.raises(ValueError, match=rule):
        constructor(*arguments)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: codes.uncoded(3, 6.0), "num_parts must be"),
        (lambda: codes.binary(5, True), "num_stragglers must be"),
        (lambda: codes.cyclic_mds(5.0, 1), "num_workers must be"),
        (lambda: codes.reed_solomon("2", 2, 1), "num_workers must be"),
        (lambda: codes.reed_solomon(None, 2, 1), "num_workers must be"),
        (lambda: codes.communication_efficient(5, 1, 2.0), "num_segments must be"),
        (lambda: codes.clustered(CODE, 2.0), "num_clusters must be"),
        (lambda: codes.partially_coded(CODE, 1.5), "num_uncoded must be"),
        (lambda: jax.jit(codes.multi_message)(CODE), "assignment must be concrete"),
        (lambda: codes.projective_plane(3.0), "order must be"),
        (lambda: codes.paley(None), "num_workers must be"),
        (lambda: codes.regular_graph(KEY, 4.0, 2), "num_workers must be"),
        (lambda: codes.bernoulli(KEY, 10, 10, 2.5), "replication must be"),
        (lambda: codes.regularized_bernoulli(KEY, 10, "10", 2), "num_parts must be"),
        (lambda: codes.stochastic_block(KEY, 4, 4, True, 1, 1), "num_clusters must be"),
        (lambda: codes.stochastic_block(KEY, 4, 4, 2, "p", 1), "probability_inside mu"),
        (
            lambda: codes.stochastic_block(KEY, 4, 4, 2, 1, np.array([1])),
            "probability_across must be",
        ),
        (lambda: codes.stochastic(KEY, 4, 2, (1, 2.0), 0.5), r"replication.* must be"),
        (lambda: codes.stochastic(KEY, 4, 2, "12", 0.5), "replication must be"),
        (lambda: codes.stochastic(KEY, 4, 2, None, 0.5), "replication must be"),
        (
            lambda: jax.jit(lambda d: codes.stochastic(KEY, 4, 2, d, 0.5))(2),
            "replication must be",
        ),
        (lambda: codes.unequal(["often"], 2), "straggler_probabilities must be real"),
        (lambda: jax.jit(codes.unequal, static_argnums=1)([0.5], 2), "must be concr"),
        (lambda: codes.unequal([0.5], 2.0), "num_parts must be"),
        (lambda: codes.unequal([0.5], 2, assignment=[[1, 1]]), "assignment must be"),
        (lambda: codes.unequal([0.5], 2, correlation="high"), "correlation must be"),
        (
            lambda: codes.unequal([0.5], 2, quantization_variance=None),
            "quantization_variance must be",
        ),
        (lambda: codes.stochastic(KEY, 2, 2, 1, ["a", "b"]), "straggler_probability"),
        (lambda: codes.any_placement(KEY, HELD.astype(int), 1), "assignment must be b"),
        (
            lambda: jax.jit(lambda held: codes.any_placement(KEY, held, 1))(HELD),
            "assignment must be concrete",
        ),
        (
            lambda: jax.jit(lambda key: codes.any_placement(key, HELD, 1))(KEY),
            "key must be concrete",
        ),
        (lambda: codes.any_placement(KEY, HELD, 1.0), "num_stragglers must be"),
        (lambda: codes.proportional_placement(["1"], 2, 1), "speeds must be real"),
        (lambda: codes.proportional_placement([1], 2.0, 1), "num_parts must be"),
        (lambda: codes.proportional_placement([1], 2, True), "copies must be"),
        (lambda: codes.worst_rounding(HELD), "code must be a GradientCode"),
        (lambda: jax.jit(codes.worst_rounding)(CODE), "code must be concrete"),
        (lambda: codes.ldgm(KEY, 6, 4, 2.0), "parity_degree must be"),
        (lambda: codes.batch_raptor(KEY, 20, 12, batch_size=2.0), "batch_size must be"),
        (lambda: codes.batch_raptor(KEY, 20, 12, max_degree=2.0), "max_degree must be"),
        (lambda: codes.batch_raptor(KEY, 20, 12, c="0.1"), "c must be"),
        (
            lambda: jax.jit(lambda c: codes.batch_raptor(KEY, 20, 12, c=c))(0.1),
            "c must be",
        ),
    ],
)
def test_wrong_types(call, rule):
    with pytest.raises(TypeError, match=rule):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda key: codes.cyclic_repetition(key, 4, 1),
        lambda key: codes.regular_graph(key, 4, 2),
        lambda key: codes.any_placement(key, HELD, 1),
        lambda key: codes.bernoulli(key, 6, 6, 2),
        lambda key: codes.regularized_bernoulli(key, 6, 6, 2),
        lambda key: codes.stochastic(key, 6, 6, 2, 0.2),
        lambda key: codes.stochastic_block(key, 6, 6, 2, 0.8, 0.1),
        lambda key: codes.ldgm(key, 6, 4, 2),
        lambda key: codes.batch_raptor(key, 20, 12),
    ],
)
def test_keys(make):
    for wrong in (0, np.zeros(2)):
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            make(wrong)
    with pytest.raises(ValueError, match="key must be one key"):
        make(jax.random.split(KEY))
