"""Errors of public functions that depend on several arguments, or on shapes.

Errors of one argument are tested for each row of `tests/catalogue`. The tests of
sketching and of distributed have tables of their own.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, coding, corruptions, decoders, stragglers, studies
from jaxwgc.decoders import Clustered, Group, Lagrange, LeastSquares, OneCopy, OneStep
from tests.catalogue.codes import CODES

partial = functools.partial
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY)
NAN = math.nan
INF = math.inf

CODE = codes.cyclic_mds(4, 1)
SEGMENTS = codes.communication_efficient(4, 1, 2)
MESSAGES = codes.partially_coded(CODE, 1)
REAL = codes.cyclic_repetition(KEY, 4, 1)
PLAIN = codes.uncoded(3, 9)
SIX = CODES["uncoded"]
COMPLEX = CODES["reed_solomon"]
GRAPH = CODES["regular_graph"]
OTHER = jaxwgc.decoding(CODES["weighted"], np.ones(6, bool))
BATCH = jax.vmap(lambda key: codes.cyclic_repetition(key, 4, 1))(KEYS)
HELD = np.array([[1, 1], [1, 0], [1, 1]], bool)
ROWS = [[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]]
ALL = np.ones(6, bool)
MANY = np.ones((6, 2), np.float32)
SHAPE = jax.ShapeDtypeStruct((4,), np.int32)
ZEROS = np.zeros((6, 3), np.complex64)
PARAMS = np.zeros(4, np.float32)
NINE = np.ones((9, 2), np.float32)
EVEN = np.ones(9, np.float32)
FULL = np.float32([[[0.5] * 6, [last] * 6] for last in (1 - 1e-7, 1)])
THREE = np.ones(3)
HALVES = np.full(3, 0.5)
EYE = np.eye(3)
ONE = np.array([0, 1, 0])
ROUNDS = np.arange(1.0, 19).reshape(6, 3)
# Seven of fifteen times, and one of the five of the last worker.
FEW = np.where(np.arange(5)[:, None] < [3, 3, 1], ROUNDS[:5], NAN)
TABLE = np.ones((2, 3))
PARETO = stragglers.pareto(1.0, 2.0)
UNIFORM = stragglers.uniform(2)
WAIT = stragglers.fastest(2)

from_matrix = partial(codes.GradientCode.from_matrix, ROWS)
unequal = partial(codes.unequal, [0.5, 0.2], 3)
UNEQUAL = codes.unequal([0.1, 0.2, 0.5], 2)
expected_error = partial(studies.expected_error, UNEQUAL, straggler_probabilities=0.1)
decoded = partial(jaxwgc.decoding_weights, PLAIN)
graph_with = partial(jaxwgc.decoding_weights, GRAPH, ALL)
received_by = partial(jaxwgc.decode_aggregate, code=REAL)


def flip(bit):
    return partial(corruptions.bit_flip(UNIFORM, bit).corrupted, KEY)


measured = partial(stragglers.empirical, TABLE[ONE, None])
located = partial(
    jaxwgc.locate_errors,
    code=CODES["cyclic_mds"],
    messages=np.zeros((6, 4)),
    received=ALL,
    key=KEY,
)
aggregate = partial(jaxwgc.coded_aggregate, model=UNIFORM, key=KEY)
diagnose = partial(studies.diagnose, SIX, key=KEY, num_stragglers=1)
learn = partial(studies.learn_entries, code=REAL, key=KEY)
monte_carlo = partial(jaxwgc.monte_carlo, lambda key: 1.0, key=KEY, num_trials=3)
EXPONENTIAL = stragglers.shifted_exponential(1.0, 0.5)
plan = partial(jaxwgc.plan, delay=EXPONENTIAL, num_workers=4, key=KEY)
report = partial(jaxwgc.straggler_report, names=None)


def check(**fields):
    """A code whose fields do not fit, in a function that takes a code."""
    matrix = np.array(ROWS)
    fields = {"assignment": matrix != 0, "target": np.ones(3), **fields}
    fields = {"encoding_matrix": matrix, "num_stragglers": 1, **fields}
    jaxwgc.encode(jaxwgc.GradientCode(**fields), np.ones((3, 2)))


def decode_with(code, decoder):
    code = CODES[code] if isinstance(code, str) else code
    jaxwgc.decoding_weights(code, np.ones(code.num_workers, bool), decoder)


def waited(code, wait):
    return aggregate(code, model=stragglers.delayed(PARETO, wait))


def update(updates=MANY, **extra):
    transform = aggregate(COMPLEX)
    return transform.update(updates, transform.init(None), None, **extra)


def receive(messages=ZEROS[:, :2], params=PARAMS, **extra):
    transform = jaxwgc.decode_aggregate(COMPLEX)
    extra = {"received": ALL, **extra}
    return transform.update(messages, transform.init(PARAMS), params, **extra)


def combine(messages, params):
    return jaxwgc.decoding(COMPLEX, ALL).combine(messages, params)


def collapse(gradients, mask=ALL):
    return jaxwgc.decoding(SIX, mask).collapse(gradients)


def sample(model, loads, key=KEY):
    return model.sample(key, (), loads)


def gradient(parts, params=PARAMS[:2], received=ALL):
    loss = lambda params, part: jnp.sum(params * part)  # noqa: E731
    return jaxwgc.decoded_value_and_grad(loss, COMPLEX)(params, parts, received)


def partial_gradients(parts):
    return jaxwgc.partial_value_and_grad(lambda params, part: jnp.sum(part))(1.0, parts)


def traced(function, *arguments):
    """The function inside of jit, of arguments that are all traced."""
    return jax.jit(lambda *own: function(*own) and 0)(*arguments)


def block_leverage(probabilities, **options):
    code = codes.fractional_repetition(4, 1)
    return jaxwgc.block_leverage_aggregate(code, UNIFORM, KEY, probabilities, **options)


def sampled(probabilities=EVEN, parts=NINE, key=KEY, held=ALL):
    loss = lambda params, part: jnp.sum(params * part)  # noqa: E731
    step = jaxwgc.sampled_value_and_grad(loss, SIX, probabilities)
    return step(np.ones(2, np.float32), parts, key, held)


class Negative(stragglers.DelayModel):
    def sample(self, key, state, loads):
        return -loads, state


class Short(stragglers.DelayModel):
    def sample(self, key, state, loads):
        return loads[1:], state


class NoArrivals(stragglers.WaitingRule):
    def arrivals(self, key, times):
        return times


class ManyBools(stragglers.WaitingRule):
    def is_over(self, times, now):
        return times <= now


class NoArrays(stragglers.StragglerModel):
    def sample(self, key, state, loads):
        return loads > 0, state


class Returning(decoders.Decoder):
    """Gives whatever it is told to."""

    result: decoders.Static[str]

    def weights(self, matrix, target, mask):
        weights = {"complex": 1j * jnp.ones((*mask.shape[:-1], 1, len(matrix)))}
        return {"short": jnp.ones(mask.shape), **weights}.get(self.result)


def peeling(num_messages, num_batches):
    return decoders.Peeling(np.ones((num_messages, num_batches), bool))


SHORT = Returning("short")
CLUSTERS = codes.clustered(PLAIN, 2)
UNTIL = stragglers.until_decodable(codes.replicated(3))
SEVERAL = codes.multi_message(codes.uncoded(6, 12))
CHOICE = plan(replications=[1], waiting=[stragglers.fastest(4)], num_rounds=40).best
BUSY = dataclasses.replace(CHOICE, code=codes.replicated(4, 8, 2), late="busy")
STOCHASTIC = codes.stochastic(KEY, 4, 4, 2, 0.2)

# Arguments and words of the message, for several functions.
EXACT = (codes.binary, codes.cyclic_mds, codes.fractional_repetition)
EXACT += (partial(codes.cyclic_repetition, KEY),)
DRAWN_CODES = partial(codes.bernoulli, KEY), partial(codes.regularized_bernoulli, KEY)
ARRIVALS = stragglers.Arrivals(ALL, MANY[:, 0], np.float32(1), joined=ALL)
TRACED = [
    lambda code: studies.diagnose(code, KEY, 1),
    lambda code: studies.learn_entries(code, UNIFORM, KEY),
    lambda code: studies.worst_pattern(code, 1),
    lambda code: studies.expected_error(code, 0.1),
    lambda code: studies.adversarial(code, 1),
]


def refused(function, words, *values):
    return [(partial(function, own), words) for own in values]


def each_of(functions, rows):
    return [(partial(own, *some), words) for own in functions for some, words in rows]


# Classes of decoders that a code has not.
UNFIT = [
    *[(name, Lagrange) for name in ("cyclic_mds", "bernoulli", "multi_message")],
    *[("communication_efficient", Lagrange), ("uncoded", decoders.Components)],
    *[(name, OneStep) for name in ("reed_solomon", "cyclic_repetition", "ldgm")],
    *[
        ("partially_coded", OneStep),
        ("partially_coded", Group),
        ("cyclic_mds", decoders.Dual),
    ],
    *[(name, decoders.Peeling) for name in ("stochastic", "multi_message")],
    *[(name, Group) for name in ("bernoulli", "cyclic_mds", "multi_message")],
]

# Arguments of a wrong shape.
SHAPES = [
    ("assignment", lambda own: codes.any_placement(KEY, own, 0), (HELD[0], HELD[:0])),
    ("assignment", lambda own: codes.any_placement(KEY, own, 0), (HELD[:, :0],)),
    ("bits", partial(coding.quantize, KEY, EYE[:1]), ([4, 4],)),
    ("correlation", lambda own: unequal(correlation=own), (EYE[:2, :2],)),
    ("encoding_matrix", codes.GradientCode.from_matrix, (THREE, TABLE[:0])),
    ("loads", partial(codes.replicated, 3, 3, 2), ([1, 1],)),
    ("loads", partial(codes.uncoded, 3, 8), ([1, 2],)),
    ("matrix_rows", lambda own: coding.form_messages(own, TABLE), (THREE, EYE, [EYE])),
    ("messages", lambda own: combine(own * 1j, PARAMS), (MANY[:5],)),
    ("messages", lambda own: coding.quantize(KEY, own, 4), (THREE, TABLE[:0])),
    ("messages", lambda own: located(messages=own), (MANY[:5],)),
    ("messages", lambda own: receive(messages=own), (ZEROS, ZEROS[:5, :2], ZEROS[0])),
    ("parts", partial_gradients, (None, {}, 3.0, [np.float32(1)])),
    ("probabilities", lambda p: expected_error(straggler_probabilities=p), ([0.1],)),
    ("probabilities", lambda own: codes.unequal(own, 2), ([], 0.5)),
    ("probabilities", lambda own: coding.allocate_bits(own, 8, 4), ([],)),
    ("quantization_variance", lambda v: unequal(quantization_variance=v), ([0.1],)),
    ("received", decoded, (ALL[:3, None], np.bool_(True), ALL[:4])),
    ("received", lambda own: gradient(MANY, received=own), (ALL[None],)),
    ("received", lambda own: located(received=own), (ALL[:5],)),
    ("received", lambda own: receive(received=own), (ALL[:5],)),
    ("received", lambda m: jax.eval_shape(partial(sampled, held=m)), (ALL[:5],)),
    ("received", stragglers.fixed, (TABLE > 0,)),
    ("received", studies.straggler_probabilities, (ALL, ALL[:0, None])),
    ("replication", lambda d: codes.stochastic(KEY, 10, 4, d, 0.1), ((1, 2, 3),)),
    ("residuals", coding.source_variances, (THREE, TABLE[:, :0])),
    ("results", jaxwgc.summarize, ({}, 1.0, TABLE[:0])),
    ("speeds", lambda own: codes.proportional_placement(own, 3, 1), ([[1, 2]], [])),
    ("speeds", partial(stragglers.unequal_speeds, PARETO), ([], 1.0)),
    ("target", lambda own: from_matrix(target=own), ([1, 2],)),
    ("times", report, (THREE,)),
    ("times", stragglers.empirical, (THREE,)),
    ("times", stragglers.fit_delays, (ROUNDS[0],)),
    ("variances", coding.inverse_variance_weights, (1.0, [], [[1.0, 2.0]])),
    ("weights", partial(jaxwgc.weighted, SIX), (2.0, [1] * 4, [[1] * 6])),
]

# Calls, and words of the ValueError.
VALUES = [
    *[
        (partial(function, own), f"{name} must have (shape|a leading axis)")
        for name, function, wrong in SHAPES
        for own in wrong
    ],
    # Codes.
    *each_of(EXACT, [((5, 5), "num_stragglers must be less than num_workers; .* = 5")]),
    *[
        (partial(own, 10, 80, 11), "replication must be at most num_workers; .* = 11")
        for own in (codes.reed_solomon, *DRAWN_CODES)
    ],
    *refused(partial(stragglers.coverage, PLAIN), "share must be", 0, -0.1, 1.1, NAN),
    *refused(
        lambda model: model.sample(KEY, model.init(5), TABLE[0]),
        r"loads must have shape .* \(5,\); got \(3,\)",
        stragglers.empirical(np.ones((3, 5))),
        stragglers.unequal_speeds(PARETO, np.ones(5)),
        stragglers.markov(PARETO, PARETO, 0.1, 0.2),
    ),
    (lambda: codes.fractional_repetition(10, 2), "num_stragglers .* = 10; got 2"),
    (lambda: codes.reed_solomon(50, 20, 11), "replication.* num_workers; got 11"),
    (lambda: codes.uncoded(3, 8), "num_parts.* = 3; got 8"),
    (lambda: codes.replicated(3, 3, 4), "copies.* = 4 and"),
    (lambda: codes.replicated(3, 3, 2, [1, -1, 1]), "loads must be at least 0"),
    (lambda: codes.edge_graph(KEY, 1, 1), "num_parts must be at least 2; got 1"),
    (lambda: codes.edge_graph(KEY, 7, 3), "degree.*= 7 .*; got 3"),
    (lambda: codes.edge_graph(KEY, 6, 6), "degree.* 1 to 5.* got 6"),
    (lambda: codes.regular_graph(KEY, 1, 1), "num_workers must be at least 2; got 1"),
    (lambda: codes.regular_graph(KEY, 9, 7), "replication.*even.*; got 7"),
    (lambda: codes.regular_graph(KEY, 5, 8), "replication.*1 to 4.*; got 8"),
    (lambda: codes.ramanujan_graph(7, 13), "prime must be a prime with.*; got 7"),
    (lambda: codes.ramanujan_graph(5, 21), "modulus.*got 21"),
    (lambda: codes.ramanujan_graph(13, 13), "modulus must differ from prime"),
    (lambda: codes.ramanujan_graph(13, 5), "larger.*got modulus = 5 and prime"),
    (lambda: codes.projective_plane(4), "order must be a prime; got 4"),
    (lambda: codes.paley(15), "num_workers must be a prime.*; got 15"),
    (lambda: codes.paley(13), "remainder 3 modulo 4; got 13"),
    (lambda: codes.communication_efficient(10, 6, 5), "num_segments.* = 4; got 5"),
    (lambda: codes.communication_efficient(10, 10, 1), "num_stragglers must be less"),
    (lambda: codes.multi_message(SEGMENTS), "code.num_segments.*got 2"),
    (lambda: codes.multi_message(MESSAGES), "code.messages_per_worker.*got 2"),
    (lambda: codes.partially_coded(SEGMENTS, 1), "code.num_segments must be 1 for"),
    (lambda: codes.partially_coded(MESSAGES, 1), "code.messages_per_worker must be 1"),
    (lambda: codes.partially_coded(codes.clustered(CODE, 2), 1), "apply clustered to"),
    (lambda: codes.any_placement(KEY, HELD, 2), "assignment.*got 2 .* of part 1$"),
    (lambda: codes.any_placement(KEY, HELD, 3), "num_stragglers must be less than"),
    (lambda: codes.proportional_placement([1, 0, 1], 3, 1), r"speeds.*speeds\[1\] = 0"),
    (lambda: codes.proportional_placement([1, NAN], 3, 1), "speeds must be finite"),
    (lambda: codes.proportional_placement([1, 2], 3, 3), "copies.* = 3 and"),
    (lambda: codes.stochastic_block(KEY, 12, 18, 4, 0.5, 0.5), "clusters.*18; got 4"),
    (lambda: codes.stochastic_block(KEY, 4, 4, 2, 1.5, 0.5), "probability_inside.*1.5"),
    (lambda: codes.stochastic(KEY, 10, 4, (1, 2, 11, 3), 0.1), "got.*= 11"),
    (lambda: codes.stochastic(KEY, 2, 4, 2, [0, 1.0]), "less.*= 1.0"),
    (lambda: codes.stochastic(KEY, 2, 4, 2, [0, 0.1, 0.2]), "straggler_probability"),
    (lambda: codes.unequal([0.5, 0.0], 2), "between.*= 0"),
    (lambda: codes.unequal([1.0, 0.5], 2), "between.*= 1"),
    (lambda: codes.unequal([0.5, NAN], 2), "straggler_probabilities must be finite"),
    (lambda: unequal(assignment=np.ones((2, 2), bool)), r"assignment.*= \(2, 3\); got"),
    (lambda: unequal(assignment=np.eye(2, 3) > 0), "every.*got none for part 2"),
    (lambda: unequal(correlation=1.0), "correlation must make G .* eigenvalues from"),
    (lambda: unequal(correlation=-0.6), "correlation.* to 1; got -0.6"),
    (lambda: unequal(correlation=NAN), "correlation must be from"),
    (lambda: unequal(correlation=-np.eye(3)), "correlation must be positive"),
    (lambda: unequal(correlation=np.tri(3)), "correlation must be finite and"),
    (lambda: unequal(quantization_variance=[0, -1.0]), r"quantization_variance\[1\]"),
    (lambda: unequal(quantization_variance=INF), "quantization_variance must be"),
    (lambda: codes.ldgm(KEY, 4, 4, 2), "num_workers.*= 4; got 4"),
    (lambda: codes.ldgm(KEY, 6, 4, 5), "parity_degree.* = 5 and"),
    (lambda: codes.batch_raptor(KEY, 20, 12, 5), "batch_size.*= 12; got 5"),
    (lambda: codes.batch_raptor(KEY, 20, 12, 2, 7), "max_degree.* = 7 and .* 6"),
    (lambda: codes.batch_raptor(KEY, 20, 12, 1, 1, INF), "c must be finite; got inf"),
    (lambda: codes.batch_raptor(KEY, 20, 12, 1, 1, 1, 1.5), "delta.*got 1.5"),
    (lambda: codes.GradientCode.from_matrix([[NAN]]), "encoding_matrix must be finite"),
    (lambda: from_matrix(assignment=[[True]]), r"assignment must .* \(3, 3\)"),
    (lambda: from_matrix(assignment=np.eye(3) > 0), "False; got others at .*0, 1"),
    (lambda: from_matrix(target=[1, 2, INF]), "target must be finite; got"),
    (lambda: from_matrix(num_stragglers=3), "num_stragglers must be less than num"),
    (lambda: check(target=np.ones(4)), r"code.target must have shape \(3,\)"),
    (lambda: check(assignment=np.ones((3, 4), bool)), r"code.assignment.*got \(3, 4\)"),
    (lambda: check(encoding_matrix=ROWS), "code.encoding_matrix must have shape"),
    (lambda: check(num_stragglers=-1), "code.num_stragglers must be at least"),
    (lambda: check(num_segments=0), "code.num_segments must be at least 1"),
    (lambda: check(num_segments=2), "code.encoding_matrix must have shape"),
    (lambda: check(messages_per_worker=3), r"code.assignment must have shape \(1, 3\)"),
    (lambda: check(messages_per_worker=3, assignment=ALL[None, :3]), "required"),
    (lambda: CODE.decodes(np.ones(5, bool)), r"mask must have shape .*, 4\); got"),
    # Coding.
    (lambda: decoded(), "received or finished must be given, and not both"),
    (lambda: decoded(received=ALL[:3], finished=np.ones(3, int)), "and not both"),
    (lambda: decoded(received=[[True], [True, False]]), "inhomogeneous"),
    (lambda: decoded(finished=np.array([3, 0, -1])), "finished must be from 0 to"),
    (lambda: decoded(finished=np.array([3, 0, 2**32 + 1])), "finished must be from"),
    (lambda: jaxwgc.weighted(PLAIN, [NAN] * 9), "weights must be finite"),
    (lambda: jaxwgc.encode(SIX, {"w": np.ones((4, 2))}), r"partial_gradients\['w'\]"),
    (lambda: jaxwgc.encode(SIX, {}), "partial_gradients must have at least one array"),
    (lambda: combine(np.ones((6, 4), complex), np.zeros(4)), "messages.* 6, 2"),
    (lambda: combine(np.ones((6, 2), complex), None), "params must be given with"),
    (lambda: collapse(np.ones((3, 2))), "partial_gradients.* = 6"),
    (lambda: collapse(np.ones(6), ALL[None]), "mask must be of one round"),
    (lambda: jaxwgc.decoding(SIX, OTHER), "received must be a decoding of the same"),
    (lambda: coding.form_messages(np.ones((1, 2)), np.float32(1)), "partial_gradients"),
    (lambda: coding.form_messages(TABLE[:1, :2], [ONE[:2], ONE]), "num_held = 2; got"),
    (lambda: coding.answer_request(np.ones(3), np.ones((2, 5))), "messages must have"),
    (lambda: coding.decode_answers(np.ones((2, 5)), np.ones(4)), "answers.* 4"),
    (lambda: coding.source_variances(MANY.T, leverage=np.ones(6)), "leverage must"),
    (lambda: coding.source_variances(MANY.T, row_weights=1.0), "row_weights must have"),
    (lambda: coding.source_variances(MANY.T, row_weights=-MANY.T), "row_weights.*-1"),
    (lambda: coding.source_variances(MANY.T, leverage=-1.0), "leverage.* = -1"),
    (lambda: coding.source_variances(MANY.T, leverage=1.5), "leverage.* = 1.5"),
    *refused(partial(coding.source_variances, MANY.T), "must leave.*source 1", *FULL),
    (lambda: coding.source_variances(np.array([[1.0], [NAN]])), "residuals must be"),
    (lambda: coding.quantize(KEY, np.ones((1, 2)), 0), r"bits.*got bits\[0\] = 0"),
    (lambda: coding.quantize(KEY, np.ones((1, 2)), 25), r"bits.*got bits\[0\] = 25"),
    (lambda: coding.quantization_variance(8, [4, 1]), r"bits.*got bits\[1\] = 1"),
    (lambda: coding.allocate_bits([0.5, 1.0], 8, 4), r"straggler_probabilities\[1\]"),
    (lambda: coding.allocate_bits([0.5], 8, 1), "total_bits must be at least 2"),
    (lambda: located(messages=np.zeros((1, 6, 4))), "messages must be of one"),
    (lambda: located(received=ALL[None]), "received must be of one round"),
    (lambda: located(code=SIX, messages=MANY), "code must have parity checks for all"),
    # Decoders.
    *[
        (partial(decode_with, name, own), f"decoder {own.__name__} needs a code")
        for name, own in UNFIT
    ],
    (lambda: decode_with("uncoded", OneCopy(np.zeros((5, 2), int), 3)), "copies must"),
    (lambda: graph_with(Group(np.zeros((1, 5), int))), r"groups must .* = \(any, 6\)"),
    (lambda: graph_with(peeling(5, 6)), r"assignment must have shape .* = \(6, any\)"),
    (lambda: graph_with(Lagrange(np.arange(5), 2)), "positions must have shape"),
    (lambda: graph_with(Lagrange(np.arange(6), 6)), "num_stragglers must be less than"),
    (lambda: graph_with(decoders.Dual(MANY.T[:, 1:], 1)), r"rows must .* \(any, 6\)"),
    (lambda: graph_with(decoders.Dual(np.ones((2, 6)), 2)), r"\+ 1 must be at most"),
    (lambda: graph_with(LeastSquares(-1)), "num_missing must be at least 0; got -1"),
    (lambda: graph_with(Clustered(LeastSquares(), 4)), "num_clusters.* got 4"),
    (lambda: graph_with(SHORT), r"weights.* = \(1, 6\); got \(6,\)"),
    (lambda: decode_with(dataclasses.replace(GRAPH, decoders=()), None), "be given"),
    (lambda: decode_with(CLUSTERS, Clustered(SHORT, 2)), r"Returning .*; got \(3,\)"),
    (lambda: decode_with("communication_efficient", peeling(6, 6)), "num_segments"),
    (lambda: graph_with(Clustered(LeastSquares(), 0)), "num_clusters must be at least"),
    # Aggregators, gradients and corruptions.
    (lambda: aggregate(COMPLEX, model=stragglers.uniform(6)), "num_stragglers must be"),
    (lambda: waited(COMPLEX, stragglers.fastest(7)), "num_required.*num_workers = 6"),
    (lambda: aggregate(COMPLEX, correct_errors=True), 'method must be "messages" with'),
    (lambda: waited(codes.uncoded(3), stragglers.relative_deadline(2, 4)), "quorum.*3"),
    (lambda: waited(codes.uncoded(3), stragglers.until_decodable(CODE)), "times must"),
    (lambda: update(updates={"w": np.ones(())}), r"updates\['w'\].*num_parts = 6; got"),
    (lambda: update(updates={"w": MANY[1:]}), r"updates\['w'\].*= 6; got .*5"),
    (lambda: update(updates={}), "updates must have at least one array"),
    (lambda: update(elapsed=2.0), "elapsed must be None without received; got 2.0"),
    (lambda: update(received=ALL, elapsed=-1.0), "elapsed must be at least 0; got -1"),
    (lambda: update(received=ALL[None]), r"received must have shape \(num_workers,\)"),
    (lambda: received_by(memory=True, undecodable="skip"), "undecodable must not be"),
    (lambda: received_by(memory=True, debias="share"), "debias must be None with"),
    (lambda: received_by(debias="all"), "debias must be one of 'share'"),
    (lambda: received_by(debias=0), "debias must be positive"),
    (lambda: received_by(correct_errors=True, memory=True), "correct_errors must be"),
    (lambda: received_by(key=KEY), "correct_errors must be True with key"),
    (lambda: received_by(message_dtype="float64"), "message_dtype must be bfloat16"),
    (lambda: received_by(on_request=True, memory=True), "memory must be False on"),
    (lambda: received_by(on_request=True, correct_errors=True), "correct_errors must"),
    (lambda: received_by(code=COMPLEX, on_request=True), "code must be"),
    (lambda: received_by(code=MESSAGES, correct_errors=True), "got none for messages"),
    (lambda: receive(messages={"w": MANY}), "updates must be one array, the messages"),
    (lambda: gradient(parts={"x": MANY[:5]}), r"parts\['x'\].*num_parts = 6; got .*5"),
    (lambda: gradient(parts={}), "parts must have at least one array"),
    (lambda: gradient(parts=MANY, params={}), "params must have at least one array"),
    (lambda: partial_gradients({"x": MANY, "y": MANY[1:]}), r"parts\['y'\] must have"),
    (lambda: block_leverage(np.array([1, 1, 1, 1, 0])), "code.num_parts must be less"),
    (lambda: block_leverage(probabilities=np.ones(6), num_draws=5), "code.num_parts"),
    (lambda: sampled(parts=MANY), "parts must have a leading axis of K = 9"),
    (lambda: sampled(probabilities=np.ones(6)), "code.num_parts must be less than 6"),
    (lambda: block_leverage(np.zeros(6)), "probabilities must not all be zero"),
    (lambda: block_leverage(np.array([1, NAN])), r"probabilities\[1\] = nan"),
    (lambda: block_leverage(probabilities=np.ones(6), method="a"), "method must be"),
    (lambda: corruptions.bit_flip(UNIFORM, 32).sample(KEY, (), MANY, 6), "bit.*got 32"),
    (lambda: jax.jit(flip(-1))(MANY), "bit must be from 0 to 31 .* float32; got -1"),
    (
        lambda: flip(16)(MANY.astype(jnp.bfloat16)),
        "bit must be from 0 to 15 .*; got 16",
    ),
    # Stragglers.
    (lambda: stragglers.bernoulli(1.5), "probability must be at most 1; got 1.5"),
    (lambda: stragglers.bernoulli([0.5, 1.5]), r"from 0 to 1; got probability\[1\]"),
    (lambda: stragglers.bernoulli_slowdown(1.1, 2), "probability must be at most 1"),
    (lambda: stragglers.bernoulli_slowdown(0.5, 0.9), "slowdown must be at least 1"),
    (lambda: stragglers.markov(PARETO, PARETO, 1.1, 0), "become_slow must be at most"),
    (lambda: stragglers.markov(PARETO, PARETO, 0, 0), "become_slow.*got 0"),
    (lambda: stragglers.unequal_speeds(PARETO, [1, 0.0]), r"speeds.*speeds\[1\] = 0"),
    (lambda: stragglers.empirical([[1.0, 0.0]]), "times must be positive"),
    (lambda: stragglers.empirical(TABLE[:0]), "times must have shape .* 1 rounds"),
    (lambda: stragglers.empirical(TABLE, loads=0.0), "loads must be positive"),
    (lambda: stragglers.empirical(TABLE, measured_at=1.0), "measured_at must have"),
    (lambda: measured(measured_at=[1.0, 2.0]), "measured_at must be increasing"),
    (lambda: measured(measured_at=-ONE), "measured_at must be increasing"),
    (lambda: measured(measured_at=[1.0, 2.0, 3.0], loads=2.0), "loads must be 1 with"),
    (lambda: stragglers.relative_deadline(0.5, 1), "factor must be at least 1"),
    (lambda: stragglers.delayed(PARETO, UNTIL, "busy"), 'late must be "cancelled" for'),
    (lambda: jaxwgc.decoding(SEVERAL, ARRIVALS), 'late must be "cancelled" for a code'),
    (lambda: stragglers.fit_delays(ROUNDS[:3]), "times must have .* at least 4 rounds"),
    (
        lambda: stragglers.fit_delays(ROUNDS[:, :0]),
        r"times must .*not empty .* got \(6, 0\)",
    ),
    (lambda: stragglers.fit_delays(ROUNDS - 1), "times must be positive.*got 0"),
    (
        lambda: stragglers.fit_delays(ROUNDS * NAN),
        "half of all rounds × .* got 0%, and",
    ),
    (lambda: stragglers.fit_delays(FEW), "got 47%, and 20% of worker 2. Leave out the"),
    (
        lambda: stragglers.fit_delays(ROUNDS * np.where(ONE, NAN, 1)),
        r"workers \[1\]. L",
    ),
    (lambda: stragglers.fit_delays(np.ones((6, 3))), "times must differ"),
    (
        lambda: stragglers.fit_delays(np.where(ROUNDS > 15, NAN, ROUNDS)),
        r"ds \[5\]. Lea",
    ),
    (lambda: stragglers.fit_delays(ROUNDS, 0.0), "loads must be .* not all 0"),
    (lambda: stragglers.fit_delays(ROUNDS, held_out=1.0), "held_out.*0 and 1"),
    (lambda: stragglers.fastest(4).ends(np.ones(3)), "num_required must be at most"),
    (lambda: sample(stragglers.uniform(4), ALL[:4] * 1.0), "num_stragglers must"),
    (lambda: sample(stragglers.bernoulli([0.5, 0.1]), TABLE[0]), "num_workers must be"),
    (lambda: sample(stragglers.fixed(ALL), TABLE[0]), "num_workers must be 6, the le"),
    (lambda: sample(PARETO, [1, INF, 1]), r"loads must be finite and .*loads\[1\] = i"),
    (lambda: stragglers.empirical(TABLE).init(4), "the trace must have at least 4"),
    (lambda: stragglers.deadline(1.0).arrivals(KEY, [1, -1.0]), r"times\[1\] = -1"),
    (lambda: aggregate(SIX, model=stragglers.delayed(Short(), WAIT)), "times of Short"),
    # Studies.
    (lambda: expected_error(straggler_probabilities=[0.1, 1.1, 0]), r"\[1\] = 1.1"),
    (lambda: expected_error(correlation=1.5), "correlation must be from -1 / "),
    (lambda: expected_error(quantization_variance=-1.0), "quantization_variance must"),
    (lambda: studies.expected_error(codes.uncoded(3), 0.1), "code must be real, with"),
    (lambda: studies.expected_error(CODE, 0.1), "code must be real, with OneStep"),
    (lambda: studies.expected_error(codes.replicated(3), 0.1), "messages_per_worker"),
    (lambda: studies.adversarial(SIX, 6), "num_stragglers must be less than"),
    (lambda: diagnose(num_stragglers=6), "num_stragglers must be less than"),
    (lambda: diagnose(num_stragglers=[]), "num_stragglers must be at least one num"),
    (lambda: diagnose(num_patterns=1), "num_patterns must be at least 2; got 1"),
    *refused(lambda own: diagnose(quantile_levels=own), "Quantiles must", [1.1], [NAN]),
    (lambda: learn(code=COMPLEX, model=UNIFORM), "code must be real"),
    (lambda: learn(code=SEGMENTS, model=UNIFORM), "code.num_segments must be 1"),
    (lambda: learn(code=MESSAGES, model=UNIFORM), "code.messages_per_worker must be 1"),
    (lambda: learn(model=stragglers.uniform(4)), "num_stragglers must be less"),
    (lambda: plan(target=1.0), "target must be between"),
    (lambda: plan(condition=0.5), "condition must be at least 1"),
    (lambda: plan(heterogeneity=INF), "heterogeneity must be finite"),
    (lambda: plan(replications=[5]), "replications must be at most num_workers"),
    (lambda: plan(codes={"own": SIX}), "code 'own'.*= 4; got 6"),
    (lambda: plan(codes={}, replications=[1]), "replications must be None with codes"),
    (lambda: plan(choices=[]), "choices must have at least one entry"),
    (lambda: plan(waiting=[]), "waiting must have at least one entry"),
    (lambda: plan(waiting=[stragglers.fastest(5)]), "num_required must be at most"),
    (lambda: plan(memory=True, late="cancelled"), "memory must be False with late"),
    (lambda: plan(choices=[BUSY]), "late of .* must be one of 'cancelled'"),
    (lambda: plan(num_rounds=10), "num_rounds must be at least 40"),
    (lambda: plan(tail=INF), "tail must be finite"),
    (lambda: plan(delay=stragglers.empirical(TABLE)), "the trace must have at least 4"),
    (lambda: plan(delay=Negative(), replications=[1]), "delay must return times of at"),
    (lambda: studies.worst_pattern(SIX, 6), "num_stragglers.* = 6 and .* = 6"),
    *refused(partial(jaxwgc.summarize, THREE), "confidence.*0 and 1", 0.0, 1.0, 95),
    (lambda: jaxwgc.summarize({"a": ALL, "b": MANY[1:]}), r"results\['b'\].*= 6; got"),
    (lambda: report([[1.0, 2.0]]), r"times.* at least 2 rounds; got \(1, 2\)"),
    (lambda: report([[1.0], [2.0]]), r"times.* at least 2 workers; got \(2, 1\)"),
    (lambda: report([[1, 2], [3, -1]]), r"times.*got -1.0 at \[1, 1\]"),
    (lambda: report(np.full((3, 2), NAN)), "times.*got none"),
    (lambda: report(times=ROUNDS, names=["a"]), r"names must have shape .* = \(3,\)"),
    (lambda: studies.straggler_probabilities(ALL[:, None], 1.0), "confidence.*0 and 1"),
]
# The same of the TypeError.
TYPES = [
    (lambda: coding.answer_request(["a"] * 6, MANY), "request must be real numbers"),
    (lambda: coding.answer_request(ALL, MANY * 1j), "messages must be real numbers"),
    (lambda: coding.decode_answers(MANY, ALL), "params must be real or complex"),
    (lambda: decode_with("uncoded", decoders.Components(MANY)), "incident must be"),
    (lambda: graph_with(OneStep(1.0, shared="no")), "shared must be True or False"),
    (lambda: received_by(message_dtype="float3"), "message_dtype must be a dtype"),
    (lambda: stragglers.bernoulli(["0.5"]), "probability must be real numbers"),
    *[(partial(traced, own, REAL), "code must be concrete") for own in TRACED],
    (lambda: traced(codes.multi_message, CODE), "code.assignment must be concrete"),
    (lambda: traced(lambda p: codes.unequal(p, 2), [0.5]), "_probabilities must be"),
    (lambda: traced(lambda d: codes.stochastic(KEY, 4, 2, d, 0.5), 2), "replication"),
    (lambda: traced(lambda held: codes.any_placement(KEY, held, 1), HELD), "concrete"),
    (lambda: traced(lambda key: codes.any_placement(key, HELD, 1), KEY), "key must be"),
    (lambda: traced(lambda c: codes.batch_raptor(KEY, 20, 12, c=c), 0.1), "c must be"),
    (lambda: traced(lambda m: from_matrix(assignment=m), HELD), "assignment must be"),
    (lambda: traced(codes.worst_rounding, CODE), "code must be concrete"),
    (lambda: traced(lambda b: coding.quantization_variance(8, b), 4), "bits must be"),
    (lambda: traced(lambda t: stragglers.empirical(t).init(3), TABLE), "times must be"),
    (lambda: traced(lambda n: stragglers.uniform(n).init(3), 1), "num_stragglers must"),
    (lambda: traced(lambda c: jaxwgc.summarize(np.ones(3), c), 0.9), "confidence must"),
    (lambda: traced(lambda key: diagnose(key=key), KEY), "key must be concrete"),
    (lambda: traced(lambda key: plan(key=key), KEY), "key must be concrete"),
    (lambda: from_matrix(target=[1j, 2, 3]), "target must be real numbers or bools"),
    (lambda: check(target=np.array(["a"] * 3)), "code.target must be real numbers"),
    (lambda: check(num_stragglers="1"), "code.num_stragglers must be a Python int"),
    (lambda: check(decoders="lagrange"), "code.decoders must be a Decoder; got 'l'"),
    (lambda: CODE.decodes(np.ones(4)), "mask must be bools; got float64"),
    (lambda: decoded(received=np.ones(3)), "received must be a bool mask; got float"),
    (lambda: decoded(finished=np.ones(3)), "finished must be integers; got float64"),
    (lambda: jaxwgc.weighted(SIX, np.ones(6, complex)), "weights must be real numbers"),
    (lambda: combine(np.ones((6, 2)), np.zeros(4)), "messages must be complex"),
    (lambda: combine(np.full((6, 2), "a"), np.zeros(4)), "messages must be numbers or"),
    (lambda: combine(ZEROS[:, :2], {"b": SHAPE}), r"params\['b'\] must .* got int32"),
    (lambda: combine(np.ones((6, 2), complex), 12), "params must be real or complex"),
    (lambda: jaxwgc.decoding(SIX, ALL).failed("x"), "tolerance must be a real scalar"),
    (lambda: coding.inverse_variance_weights(ALL), "variances must be real numbers"),
    (lambda: coding.source_variances(MANY * 1j), "residuals must be real numbers"),
    (lambda: coding.quantize(KEY, [[1, 2]], 4), "messages must be real or complex"),
    (lambda: coding.quantize(KEY, np.ones((1, 2)), 4.0), "bits must be integers"),
    (lambda: located(messages=np.zeros((6, 4), complex)), "messages must be real"),
    (lambda: graph_with(decoders.Peeling(np.ones((6, 6)))), "assignment must be bools"),
    (lambda: graph_with(OneStep("1")), "scale must be a real scalar"),
    (lambda: graph_with(decoders.Dual("rows", 1)), "rows must be numbers or bools"),
    (lambda: graph_with(LeastSquares(0.5)), "num_missing must be integers"),
    (lambda: graph_with(Clustered("x", 2)), "inner must be a Decoder; got 'x'"),
    (lambda: graph_with(Returning("complex")), "weights of Returning must be real"),
    (lambda: jaxwgc.decoding_weights(COMPLEX, ALL, Lagrange(np.ones(6), 2)), "integer"),
    (lambda: aggregate(COMPLEX, model=NoArrays()), "model.sample must return .arr"),
    (lambda: waited(COMPLEX, NoArrivals()), "NoArrivals.arrivals must return .arr"),
    (lambda: waited(COMPLEX, ManyBools()), "is_over of .*ManyBools.* must return one"),
    (lambda: aggregate(COMPLEX, corrupt=0.1, method="messages"), "corrupt must be a"),
    (lambda: update(received=ALL, elapsed=np.ones(6)), "elapsed must be a real scalar"),
    (lambda: update(updates={"w": MANY.astype(int)}), r"updates\['w'\] must be real"),
    (lambda: receive(messages=np.full((6, 2), "a")), "messages must be numbers or"),
    (lambda: receive(received=np.ones(6)), "received must be a bool mask"),
    (lambda: receive(params=np.zeros(4, int)), "params must be real or complex floats"),
    (lambda: gradient({"x": np.array(["a"] * 6)}), r"parts\['x'\] must be numbers"),
    (lambda: gradient(MANY, np.ones(2, int)), "params must be real or complex floats"),
    (lambda: jaxwgc.partial_value_and_grad(3.0), "loss must be a function"),
    (lambda: sampled(key=0), "key must be a PRNG key"),
    (lambda: unequal(correlation="high"), "correlation must be real numbers"),
    (lambda: corruptions.bit_flip(UNIFORM, 1.5), "bit must be integers"),
    (lambda: corruptions.scaling(UNIFORM, "x"), "factor must be a real scalar"),
    (lambda: stragglers.until_decodable(None), "code must be a GradientCode"),
    (lambda: sample(PARETO, ["a"] * 4), "loads must be real numbers; got <U1"),
    (lambda: stragglers.fastest(2).arrivals(KEY, ["a"] * 4), "times.*got <U1"),
    (lambda: diagnose(quantile_levels=[True]), "quantile_levels must be real numbers"),
    (lambda: learn(model=NoArrays()), "model.sample must return .arrivals, state."),
    (lambda: plan(codes={"own": "mds"}), "code 'own' must be a GradientCode"),
    (lambda: plan(choices=["all"]), "choices must be a Candidate"),
    (lambda: plan(waiting=["patience"]), "waiting must be a WaitingRule, or a"),
    (lambda: plan(waiting=[repr]), "waiting for code 'uncoded' must be a waiting rule"),
    (lambda: plan(waiting=[NoArrivals()]), "NoArrivals.arrivals must return .arrivals"),
    (lambda: jaxwgc.summarize(np.ones(3) + 0j), "results must be real numbers or"),
]


def rows(error, table):
    return [pytest.param(error, call, words, id=words) for call, words in table]


@pytest.mark.parametrize(
    ("error", "call", "words"), rows(ValueError, VALUES) + rows(TypeError, TYPES)
)
def test_refusals(error, call, words):
    with pytest.raises(error, match=words):
        call()
