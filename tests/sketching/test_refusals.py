"""Refusals: the class of the error, and the argument and rule that it names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from jaxwgc import sketching
from tests.sketching.arguments import (
    EMBEDDING,
    GOOD,
    KEY,
    MATRIX,
    SAMPLE,
    TARGET,
    kernel_of,
)

partial = functools.partial


def pad(vector):
    return jnp.pad(vector, (0, 16))


def operator(**changes):
    """MATRIX as two functions, some of which may be spoiled."""
    functions = {"matvec": pad, "rmatvec": lambda u: u[:4]}
    return sketching.LinearOperator(**{**functions, "shape": (20, 4), **changes})


OPERATOR = operator()
SPARSE = sparse.BCOO.fromdense(MATRIX)
BLOCKS = sketching.Blocks([MATRIX])
FEW = sketching.Blocks([MATRIX[:8]])
CALLS = {
    name: partial(getattr(sketching, name), **arguments)
    for name, arguments in GOOD.items()
}
linear = sketching.LinearOperator
leverage = CALLS["leverage_scores"]
approximate = CALLS["approximate_leverage_scores"]
rank_k = CALLS["rank_k_leverage_scores"]
lewis = CALLS["lewis_weights"]
bless = CALLS["bless"]
resistances = CALLS["effective_resistances"]
partition = CALLS["partition"]
part_chances = CALLS["partition_probabilities"]
row_chances = CALLS["row_probabilities"]
sample_rows = CALLS["sample_rows"]
sample_parts = CALLS["sample_partitions"]
drop_last = CALLS["drop_last_distinct"]
factors = CALLS["rescaling_factors"]
scale_rows = CALLS["scale_rows"]
weighted = CALLS["weighted_parts"]
gaussian = CALLS["gaussian"]
sparse_sign = CALLS["sparse_sign"]
sampling = CALLS["row_sampling"]
distortion = CALLS["embedding_distortion"]
size_of = CALLS["recommended_sketch_size"]
choose = CALLS["choose_ridge"]
sketched = CALLS["sketch_and_solve"]
precise = CALLS["preconditioned"]
hessian = CALLS["iterative_hessian_sketch"]
newton = CALLS["newton_sketch"]
logistic = CALLS["logistic_newton_sketch"]


def taking(*arguments):
    """Functions by the first of these arguments that they take."""
    pairs = [(name, argument) for name in GOOD for argument in arguments]
    return [(name, argument) for name, argument in pairs if argument in GOOD[name]]


def check_refusal(name, changes, error, message):
    with pytest.raises(error, match=message):
        CALLS[name](**changes)


KEYS = jax.random.split(KEY)
OF_MATRICES = [
    (np.ones(3), ValueError, r" must have shape \(N, p\) and .*; got \(3,\)"),
    (np.ones((0, 3)), ValueError, r".* not be empty; got \(0, 3\)"),
    (np.ones((3, 0)), ValueError, r".* not be empty; got \(3, 0\)"),
    (np.full((20, 4), np.nan), ValueError, " must be finite; got 80 NaN"),
    (np.ones((20, 4), complex), TypeError, " must be real"),
    ("no", TypeError, " must be real numbers; got str of <U2"),
]
OF_SCORES = [
    (np.array([1.0, -0.5]), ValueError, r".* not negative; got .*\[1\] = -0.5"),
    (np.array([np.nan, 0.5]), ValueError, r".*\[0\] = nan"),
    (np.array([np.inf, 0.5]), ValueError, r".*\[0\] = inf"),
    (np.zeros(2), ValueError, " must not all be zero"),
    (np.ones((2, 1)), ValueError, r" must have shape \(size,\)"),
    (np.ones(0), ValueError, ".* and not be empty"),
    (np.ones(2, complex), TypeError, " must be real"),
]
OF_TARGETS = [
    (np.full(20, np.inf), ValueError, " must be finite; got 20 NaN"),
    (np.ones(19), ValueError, r" must have shape .*; got \(19,\) with a matrix of"),
    (np.ones((20, 0)), ValueError, r" must have shape .*; got \(20, 0\)"),
    (np.ones((20, 1, 1)), ValueError, r" must have shape .*; got \(20, 1, 1\)"),
    ("abc", TypeError, " must be real numbers; got str of <U3"),
]
OF_KEYS = [
    (0, TypeError, " must be a PRNG key"),
    (KEYS, ValueError, " must be one key"),
]
OF_NUMBERS = [
    (0, ValueError, " must be at least 1; got 0"),
    (2.0, TypeError, " must be a Python int"),
    (True, TypeError, " must be an int"),
]
OF_CUTOFFS = [
    *((rcond, ValueError, " must be") for rcond in (-1.0, 1.0, np.nan)),
    (np.ones(2), TypeError, " must be a real scalar"),
]
OF_RIDGES = [
    (-1.0, ValueError, " must be at least 0"),
    (np.nan, ValueError, " must be a number"),
    (1e60, ValueError, " must be finite in float32"),
    ("1", TypeError, " must be a real scalar"),
]
OF_EMBEDDINGS = [
    ("gaussian", TypeError, r".* such as sketching.srht \(not its name\)"),
    (lambda *sizes: np.eye(3), TypeError, " must be a constructor"),
    (lambda *sizes: sketching.gaussian(KEY, 1, 2), ValueError, r".* got \(1, 2\)"),
    (sketching.gaussian(KEY, 1, 2), ValueError, r" must .* got \(1, 2\)"),
]

SOLVERS = list(GOOD)[list(GOOD).index("sketch_and_solve") :]
ARGUMENTS = [
    *((*pair, OF_MATRICES) for pair in taking("matrix", "features")),
    *((*pair, OF_SCORES) for pair in taking("scores", "probabilities")),
    *((*pair, OF_TARGETS) for pair in taking("target")),
    *((*pair, OF_KEYS) for pair in taking("key")),
    *((*pair, OF_NUMBERS) for pair in taking("sketch_size", "num_rows", "num_parts")),
    *((*pair, OF_NUMBERS) for pair in taking("num_draws", "sample_size")),
    *((*pair, OF_NUMBERS) for pair in taking("num_columns", "num_iterations")),
    ("rank_k_leverage_scores", "rank", OF_NUMBERS),
    ("lewis_weights", "max_iterations", OF_NUMBERS),
    ("newton_sketch", "max_iterations", OF_NUMBERS),
    ("iterative_hessian_sketch", "num_inner_steps", OF_NUMBERS),
    ("sparse_sign", "num_nonzeros", OF_NUMBERS),
    ("recommended_sketch_size", "num_nonzeros", OF_NUMBERS),
    *(
        (name, "rcond", OF_CUTOFFS)
        for name, _ in taking("matrix")
        if name not in ("iterative_hessian_sketch", "choose_ridge")
    ),
    *((name, "embedding", OF_EMBEDDINGS) for name in SOLVERS),
    *((name, "ridge", OF_RIDGES) for name in ("ridge_leverage_scores", *SOLVERS)),
]


@pytest.mark.parametrize(("name", "argument", "wrong"), ARGUMENTS)
def test_arguments_that_functions_share(name, argument, wrong):
    # row_sampling takes num_rows beside probabilities of as many.
    spare = {"probabilities": None} if wrong is OF_NUMBERS else {}
    spare = spare if name == "row_sampling" else {}
    for value, error, rule in wrong:
        check_refusal(name, {argument: value, **spare}, error, argument + rule)


@pytest.mark.parametrize(("name", "argument"), taking("matrix", "features"))
def test_kinds_without_rows(name, argument):
    if name not in ("sketch_and_solve", "preconditioned"):
        reason = "since rows are read|real numbers; got LinearOperator of object"
        check_refusal(name, {argument: OPERATOR}, TypeError, reason)
    if name in ("lewis_weights", "iterative_hessian_sketch", "logistic_newton_sketch"):
        check_refusal(name, {argument: BLOCKS}, TypeError, "real numbers; got Blocks")


def test_subnormal_scores_are_zero(with_x64):
    changes = {"scores": [1e-310, 3e-310]}
    check_refusal("row_probabilities", changes, ValueError, "must not all be zero")


three_rows = partial(sample_rows, method="without_replacement", sample_size=3)
three_parts = partial(sample_parts, num_draws=None, num_distinct=3)
VALUES = [
    (lambda: leverage(method="lu"), "method must be one of"),
    (lambda: leverage(matrix=SPARSE, method="svd"), "must be 'auto' or 'gram' for spa"),
    (lambda: leverage(matrix=BLOCKS, method="qr"), "must be 'auto' or 'gram' .* got '"),
    (lambda: approximate(epsilon=0.0), "epsilon must be between 0 and 1; got 0.0"),
    (lambda: rank_k(rank=5), r"got rank = 5 and min\(N, p\) = 4"),
    (lambda: rank_k(num_passes=2), "num_passes must be at least 3; got 2"),
    (lambda: rank_k(oversampling=-1), "oversampling must be at least 0"),
    (lambda: lewis(p=0.0), "p must be positive"),
    (lambda: lewis(p=np.inf), "p must be finite"),
    (lambda: lewis(tolerance=-1.0), "tolerance must be at least 0"),
    (lambda: bless(ridge=0.0), "ridge must be positive"),
    (lambda: bless(ridge=np.inf), "ridge must be finite"),
    (lambda: bless(ridge=1e-30), "ridge must be .* 8 machine epsilons"),
    (lambda: bless(step=1.0), "step must be more than 1"),
    (lambda: bless(oversampling=0), "oversampling must be positive"),
    (lambda: bless(data=np.zeros((0, 2))), "data must have a leading axis of n"),
    (lambda: bless(data=np.full((3, 2), np.nan)), "data must be finite"),
    (lambda: bless(kernel=lambda x, y: x @ x.T), "kernel must take"),
    (lambda: bless(kernel=kernel_of(-1.0)), r"kernel must be .* kernel\[0\] = -1"),
    (lambda: bless(kernel=kernel_of(jnp.inf)), "kernel must be finite"),
    (lambda: resistances(edges=np.ones((2, 3), int)), r"edges must have shape \(m, 2"),
    (lambda: resistances(edges=[[0, -1]]), "got -1 to 0"),
    (lambda: resistances(edges=[[0, 3]], num_vertices=3), "got 0 to 3 with num_vertic"),
    (lambda: resistances(weights=[1.0, 2.0]), r"weights must have shape \(m,\) = \(1,"),
    (lambda: resistances(weights=[0.0]), r"weights must be positive and finite; got "),
    (lambda: partition(data={"x": np.ones(4), "y": np.ones(5)}), r"data\['y'\].* N ="),
    (lambda: partition(num_parts=5), "num_parts = 5 and num_rows = 4"),
    (lambda: partition(data=np.float32(1)), "data must have a leading axis"),
    (lambda: partition(data={}), "data must have a leading axis"),
    (lambda: part_chances(num_parts=5), "num_parts = 5 and num_rows = 4"),
    (lambda: row_chances(rule="levunw"), "rule must be one of 'lev', 'unif'"),
    (lambda: row_chances(alpha=1.5), "alpha must be at most 1"),
    (lambda: sample_rows(method="gumbel"), "method must be one of"),
    (lambda: sample_rows(num_slots=2), "num_slots must be for m"),
    (lambda: sample_rows(method="poisson", num_slots=0), "num_slots must be at least"),
    (lambda: sample_rows(method="top_k", sample_size=4), "sample_size = 4 and num_row"),
    (lambda: three_rows(sample_size=4), "sample_size = 4 and num_rows = 3"),
    (lambda: sample_parts(num_draws=None), "exactly one of num_distinct and num_draws"),
    (lambda: sample_parts(num_distinct=1), "exactly one of num_distinct and num_draws"),
    (lambda: three_parts(num_distinct=0), "num_distinct must be at least 1"),
    (lambda: three_parts(num_distinct=4), "num_distinct = 4 and .* = 3"),
    (
        lambda: three_parts(probabilities=[0.5, 0.0, 0.5]),
        "num_distinct must be .* positive probabilities, 2 of 3; got 3: draw fewer",
    ),
    (
        lambda: three_parts(probabilities=np.float32([1.0, 1e-44, 0.5])),
        "num_distinct must be .* positive probabilities, 2 of 3; got 3: draw fewer",
    ),
    (lambda: drop_last(sample=SAMPLE._replace(counts=np.ones(1))), "at least 2 slots;"),
    (lambda: factors(rescaling="none"), "rescaling must be one of"),
    (lambda: factors(rescaling="paper"), "num_rows must be given if and only if"),
    (lambda: factors(rescaling="paper", num_rows=0), "num_rows must be positive"),
    (lambda: factors(num_rows=4), "num_rows must be given if and only if"),
    (lambda: scale_rows(factors=np.ones(3)), r"rows\['x'\].*len\(factors\) = 3"),
    (lambda: scale_rows(factors=np.ones((2, 1))), "factors must have shape"),
    (lambda: weighted(scale="columns"), "scale must be one of"),
    (lambda: weighted(row_weights=np.ones(3)), r"row_weights must have shape \(K, m\)"),
    (lambda: weighted(parts={"x": np.ones((2, 2))}), r"parts\['x'\]"),
    (lambda: weighted(parts={"x": np.ones((3, 1))}), r"parts\['x'\].*row_weights, \(3"),
    (lambda: weighted(sample=SAMPLE._replace(indices=np.array([0, 25]))), "parts must"),
    (lambda: sparse_sign(num_nonzeros=4), "num_nonzeros = 4 and sketch_size = 3"),
    (lambda: sampling(probabilities=np.ones(4)), r"\(num_rows,\) = \(5,\)"),
    (lambda: distortion(basis=np.ones((5, 1))), "basis must have orthonormal columns"),
    (lambda: distortion(basis=np.ones((4, 1))), r"= \(5, any\) .*; got \(4, 1\)"),
    (lambda: distortion(basis=np.ones((5, 0))), "basis must have shape"),
    (lambda: size_of(embedding=sketching.partition), "embedding must be one of"),
    (lambda: size_of(epsilon=0), "epsilon must be between 0 and 1"),
    (lambda: size_of(delta=0), "delta must be between 0 and 1"),
    (lambda: size_of(embedding=sketching.srht), "num_rows must be given for srht"),
    (lambda: size_of(embedding=sketching.row_sampling, coherence=2), "at least 3; got"),
    (lambda: sketched(sketch_size=3), r"sketch_size must .* = 4; got 3"),
    (lambda: sketched(matrix=OPERATOR), "operator.sketch must be given"),
    (lambda: precise(method="columns"), "must be 'gram' or 'sketch' or 'factor' for t"),
    (lambda: precise(matrix=SPARSE, method="gram"), "'columns' or 'sketch' for this k"),
    (lambda: precise(matrix=BLOCKS, method="gram"), "'factor' or 'sketch' for this k"),
    (lambda: precise(matrix=OPERATOR, method="sketch"), "must be 'columns' for this k"),
    (lambda: precise(matrix=operator(rmatvec=lambda u: 1.01 * u[:4])), "and adjoint"),
    (lambda: precise(matrix=operator(rmatvec=lambda u: u)), r"rmatvec must .* \(4,\)"),
    (lambda: precise(matrix=operator(matvec=lambda v: v / 0)), r"matvec must .* \(20,"),
    (lambda: precise(matrix=operator(matvec=lambda v: pad(v) / 0)), "be finite and"),
    (lambda: precise(matrix=operator(shape=(20, 0))), r"of positive ints; got \(20, 0"),
    (lambda: linear(pad), r"shape must be .* got \(0, 0\). Pass .*shape=\(N, p\)"),
    (lambda: precise(matrix=operator(sketch=lambda S: jnp.ones((5, 5)))), r"= \(32, 4"),
    (lambda: precise(sketch_size=3), r"sketch_size must be at least .* = 4; got 3"),
    (lambda: precise(method="qr"), "method must be one of"),
    (lambda: precise(tolerance=-1.0), "tolerance must be at least 0"),
    (lambda: precise(max_iterations=-1), "max_iterations must be at least 0"),
    (lambda: choose(matrix=FEW, target=TARGET[:8]), "at least four rows per column.*"),
    (lambda: choose(ridges=[1.0, -1.0]), r"not negative; got ridges\[1\] = -1"),
    (lambda: choose(ridges=1.0), r"ridges must have shape \(num_ridges,\)"),
    (lambda: choose(criterion="cv"), "criterion must be one of"),
    (lambda: hessian(sketch_size=7), r"sketch_size must be at least .* = 8; got 7"),
    (lambda: hessian(step_size=0.0), "step_size must be positive"),
    (lambda: hessian(refresh=False, projection=jnp.abs), "refresh must be True"),
    (lambda: newton(sketch_size=1), r"sketch_size must be at least .* = 2; got 1"),
    (lambda: newton(num_refinements=-1), "num_refinements must be at least 0"),
    (lambda: newton(square_root_hessian=lambda params: jnp.ones((9, 3))), "must retur"),
    (lambda: newton(params={}), "params must have at least one number"),
    (lambda: newton(params=jnp.array([1.0, jnp.nan])), "params must be finite"),
    (lambda: logistic(labels=np.ones(19)), "labels must have shape"),
    (lambda: logistic(labels=np.full(20, 2.0)), r"between 0 and 1; got labels\[0\] ="),
    (lambda: logistic(initial=np.ones(3)), "initial must have shape"),
    (lambda: logistic(initial=np.full(4, np.inf)), "initial must be finite"),
]
TYPES = [
    (lambda: precise(matrix=operator(dtype=complex)), "operator.dtype must be float32"),
    (lambda: precise(matrix=operator(rmatvec=1)), "operator.rmatvec must be a functio"),
    # Arguments in the order of other libraries: the constructor says which is wrong.
    (
        lambda: linear(pad, (20, 4)),
        r"rmatvec must be a fun.* got \(20, 4\).*by name: L",
    ),
    (lambda: linear((20, 4), pad), r"matvec must be a fun.* got \(20, 4\).*by name: L"),
    (lambda: linear(None, shape=(20, 4)), "matvec must be a function .*; got None"),
    (
        lambda: linear(pad, None, 20),
        r"shape must be the tuple \(N, p\); got 20.*by nam",
    ),
    (lambda: linear(pad, None, [20, 4]), r"shape must be the tuple .* got \[20, 4\]"),
    (
        lambda: linear(pad, None, (20, 4.0)),
        r"shape\[1\] must be a Python int.* got 4.0",
    ),
    (lambda: linear(pad, None, (20, 4), "no"), "dtype must be float32 or .* got 'no'"),
    (lambda: linear(pad, None, (20, 4), pad), "dtype must be .* got <function pad"),
    (lambda: linear(pad, None, (20, 4), jnp.float16), "dtype must be .*; got float16"),
    (lambda: operator(sketch=(20, 4)), r"sketch must be a function .* got \(20, 4\)"),
    (lambda: approximate(epsilon="0.5"), "epsilon must be a real sc"),
    (lambda: lewis(p="2"), "p must be a real scalar"),
    (lambda: bless(data="no"), "data must be real numbers; got str"),
    (lambda: resistances(edges=np.ones((2, 2))), "edges must be integers"),
    (lambda: resistances(weights=[1j]), "weights must be real"),
    (lambda: resistances(num_vertices=2.0), "num_vertices must be a Python int"),
    (lambda: row_chances(alpha="a"), "alpha must be a real scalar"),
    (lambda: sample_rows(weighted="no"), "weighted must be True or False"),
    (lambda: factors(rescaling="paper", num_rows=np.ones(2)), "num_rows must be a"),
    (lambda: distortion(basis=1j * np.ones((5, 1))), "basis must be real"),
    (lambda: distortion(embedding=np.eye(5)), "embedding must be an Embedding"),
    (lambda: size_of(delta="a"), "delta must be a real scalar"),
    (lambda: hessian(projection="box"), "projection must be a func"),
    (lambda: hessian(projection=lambda x: x[:2]), "dot_general requires|incompatible"),
    (lambda: newton(loss=1.0), "loss must be a function"),
    (lambda: newton(loss=lambda params: params), "scalar-output functions"),
    (lambda: newton(square_root_hessian=None), "square_root_hessian must be a functio"),
    (lambda: newton(params=jnp.ones(2, complex)), "params must be real"),
    (lambda: newton(args=np.ones(2)), "args must be a tuple"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [pytest.param(*row[:1], ValueError, *row[1:], id=row[1]) for row in VALUES]
    + [pytest.param(*row[:1], TypeError, *row[1:], id=row[1]) for row in TYPES],
)
def test_arguments_of_one_function(call, error, words):
    with pytest.raises(error, match=words), np.errstate(all="ignore"):
        call()


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("approximate_leverage_scores", "epsilon", "epsilon must be concrete"),
        ("recommended_sketch_size", "epsilon", "epsilon must be concrete"),
        ("bless", "ridge", "ridge must be concrete"),
        ("effective_resistances", "edges", "num_vertices must be given"),
    ],
)
def test_traced_values_that_set_shapes(name, argument, message):
    value = GOOD[name].get(argument, 0.5)
    with pytest.raises(TypeError, match=message):
        jax.make_jaxpr(lambda x: CALLS[name](**{argument: x}))(jnp.asarray(value))


def test_constants_of_a_traced_function_are_checked():
    matrix = jnp.full((4, 2), jnp.nan)
    with pytest.raises(ValueError, match="matrix must be finite; got 8 NaN"):
        jax.jit(lambda x: x * sketching.leverage_scores(matrix))(1.0)


def test_arrays_that_embeddings_do_not_take():
    embedding = sketching.count_sketch(**EMBEDDING)
    for tree, error, message in [
        ({"x": np.ones((4, 2))}, ValueError, r"tree\['x'\] must have a leading axis"),
        ({}, ValueError, "tree must have at least one array"),
        (np.array(["a"] * 5), TypeError, "tree must be"),
    ]:
        with pytest.raises(error, match=message):
            embedding @ tree
    with pytest.raises(ValueError, match="dtype must be real or complex; got"):
        embedding.matrix(np.int32)
    batch = jax.vmap(lambda key: sketching.gaussian(key, 3, 5))(KEYS)
    with pytest.raises(ValueError, match="embedding.key must be one key"):
        batch.apply(np.ones(5))
