"""Refusals: the class of the error, and the argument and rule that it names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from jaxwgc import sketching

KEY = jax.random.key(0)
MATRIX, TARGET = np.eye(20)[:, :4], np.ones(20)
SYSTEM = {"key": KEY, "matrix": MATRIX, "target": TARGET}
EMBEDDING = {"key": KEY, "sketch_size": 3, "num_rows": 5}
SAMPLE = sketching.PartitionSample(
    indices=np.array([0, 1]),
    counts=np.array([1, 1]),
    probabilities=np.array([0.5, 0.5]),
    num_draws=np.array(2),
)


def operator(**changes):
    """MATRIX as two functions, some of which may be spoiled."""
    functions = {"matvec": lambda v: jnp.pad(v, (0, 16)), "rmatvec": lambda u: u[:4]}
    return sketching.LinearOperator(**{**functions, "shape": (20, 4), **changes})


OPERATOR = operator()
SPARSE = sparse.BCOO.fromdense(MATRIX)
BLOCKS = sketching.Blocks([MATRIX])


def kernel_of(value):
    return lambda x, y: jnp.full((len(x), len(y)), value)


# Good arguments of every function; the tests below spoil one or two of them.
GOOD = {
    "leverage_scores": {"matrix": MATRIX},
    "numerical_rank": {"matrix": MATRIX},
    "approximate_leverage_scores": {"key": KEY, "matrix": MATRIX},
    "rank_k_leverage_scores": {"key": KEY, "matrix": MATRIX, "rank": 2},
    "ridge_leverage_scores": {"matrix": MATRIX, "ridge": 1.0},
    "lewis_weights": {"matrix": MATRIX, "p": 1.0},
    "bless": {"key": KEY, "kernel": kernel_of(1.0), "data": MATRIX, "ridge": 1.0},
    "effective_resistances": {"edges": [[0, 1]]},
    "partition": {"data": np.ones(4), "num_parts": 2},
    "partition_probabilities": {"scores": np.ones(4), "num_parts": 2},
    "row_probabilities": {"scores": np.ones(2)},
    "sample_rows": {"key": KEY, "probabilities": np.ones(3), "sample_size": 1},
    "sample_partitions": {"key": KEY, "probabilities": np.ones(3), "num_draws": 1},
    "drop_last_distinct": {"sample": SAMPLE},
    "rescaling_factors": {"sample": SAMPLE},
    "scale_rows": {"rows": {"x": np.ones((2, 3))}, "factors": np.ones(2)},
    "weighted_parts": {
        "sample": SAMPLE,
        "parts": {"x": np.ones((3, 2, 4))},
        "row_weights": np.ones((3, 2)),
    },
    "gaussian": EMBEDDING,
    "srht": EMBEDDING,
    "sparse_sign": EMBEDDING,
    "row_sampling": {**EMBEDDING, "probabilities": np.ones(5)},
    "embedding_distortion": {
        "basis": np.eye(5)[:, :2],
        "embedding": sketching.gaussian(KEY, 3, 5),
    },
    "recommended_sketch_size": {
        "embedding": sketching.gaussian,
        "num_columns": 3,
        "epsilon": 0.5,
    },
    "choose_ridge": {"matrix": MATRIX, "target": TARGET, "ridges": [1.0]},
    "sketch_and_solve": {**SYSTEM, "sketch_size": 8},
    "preconditioned": SYSTEM,
    "iterative_hessian_sketch": {**SYSTEM, "sketch_size": 16, "num_iterations": 2},
    "newton_sketch": {
        "key": KEY,
        "loss": lambda params: jnp.sum(params**2),
        "square_root_hessian": lambda params: jnp.ones((9, 2)),
        "params": jnp.ones(2),
        "sketch_size": 4,
    },
    "logistic_newton_sketch": {
        "key": KEY,
        "features": MATRIX,
        "labels": TARGET,
        "sketch_size": 8,
    },
}


def taking(*arguments):
    """Functions by the first of these arguments that they take."""
    pairs = [(name, argument) for name in GOOD for argument in arguments]
    return [(name, argument) for name, argument in pairs if argument in GOOD[name]]


def check_refusal(name, changes, error, message):
    with pytest.raises(error, match=message):
        getattr(sketching, name)(**{**GOOD[name], **changes})


@pytest.mark.parametrize(("name", "argument"), taking("matrix", "features"))
def test_matrices(name, argument):
    for matrix, error, rule in [
        (np.ones(3), ValueError, r" must have shape \(N, p\) and .*; got \(3,\)"),
        (np.ones((0, 3)), ValueError, r".* not be empty; got \(0, 3\)"),
        (np.ones((3, 0)), ValueError, r".* not be empty; got \(3, 0\)"),
        (np.full((20, 4), np.nan), ValueError, " must be finite; got 80 NaN"),
        (np.ones((20, 4), complex), TypeError, " must be real"),
        ("no", TypeError, " must be an array"),
    ]:
        check_refusal(name, {argument: matrix}, error, argument + rule)


@pytest.mark.parametrize(("name", "argument"), taking("matrix", "features"))
def test_kinds_without_rows(name, argument):
    if name not in ("sketch_and_solve", "preconditioned"):
        reason = "since rows are read|must be an array of real numbers; got LinearOpera"
        check_refusal(name, {argument: OPERATOR}, TypeError, reason)
    if name in ("lewis_weights", "iterative_hessian_sketch", "logistic_newton_sketch"):
        check_refusal(name, {argument: BLOCKS}, TypeError, "must be an .* got Blocks")


@pytest.mark.parametrize(("name", "argument"), taking("scores", "probabilities"))
def test_vectors_of_scores(name, argument):
    for values, error, rule in [
        ([1.0, -0.5], ValueError, r".* not negative; got .*\[1\] = -0.5"),
        ([np.nan, 0.5], ValueError, r".*\[0\] = nan"),
        ([np.inf, 0.5], ValueError, r".*\[0\] = inf"),
        ([0.0, 0.0], ValueError, " must not all be zero"),
        (np.ones((2, 1)), ValueError, r" must have shape \(size,\)"),
        (np.ones(0), ValueError, ".* and not be empty"),
        (np.ones(2, complex), TypeError, " must be real"),
    ]:
        changes = {argument: np.asarray(values)}
        check_refusal(name, changes, error, argument + rule)


def test_subnormal_scores_are_zero(with_x64):
    changes = {"scores": [1e-310, 3e-310]}
    check_refusal("row_probabilities", changes, ValueError, "must not all be zero")


@pytest.mark.parametrize(("name", "argument"), taking("target"))
def test_targets(name, argument):
    for target, error, rule in [
        (np.full(20, np.inf), ValueError, " must be finite; got 20 NaN"),
        (np.ones(19), ValueError, " must have as many rows as matrix"),
        (np.ones((20, 0)), ValueError, " must not be empty"),
        (np.ones((20, 1, 1)), ValueError, " must have shape"),
        ("abc", TypeError, " must be an array"),
    ]:
        check_refusal(name, {argument: target}, error, argument + rule)


@pytest.mark.parametrize(("name", "argument"), taking("key"))
def test_keys(name, argument):
    check_refusal(name, {argument: 0}, TypeError, "key must be a PRNG key")
    keys = jax.random.split(KEY)
    check_refusal(name, {argument: keys}, ValueError, "key must be one key")


@pytest.mark.parametrize(
    "name",
    [
        *(
            name
            for name, _ in taking("matrix")
            if name not in ("iterative_hessian_sketch", "choose_ridge")
        )
    ],
)
def test_cutoffs(name):
    for rcond in (-1.0, 1.0, np.nan):
        check_refusal(name, {"rcond": rcond}, ValueError, "rcond must be")
    check_refusal(name, {"rcond": np.ones(2)}, TypeError, "rcond must be a real scalar")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *taking("sketch_size", "num_rows", "num_parts", "num_draws", "sample_size"),
        *taking("num_columns", "num_iterations"),
        ("rank_k_leverage_scores", "rank"),
        ("lewis_weights", "max_iterations"),
        ("newton_sketch", "max_iterations"),
        ("iterative_hessian_sketch", "num_inner_steps"),
        ("sparse_sign", "num_nonzeros"),
        ("recommended_sketch_size", "num_nonzeros"),
    ],
)
def test_positive_numbers(name, argument):
    spare = {"probabilities": None} if name == "row_sampling" else {}
    for value, error, rule in [
        (0, ValueError, " must be at least 1; got 0"),
        (2.0, TypeError, " must be a Python int"),
        (True, TypeError, " must be an int"),
    ]:
        check_refusal(name, {argument: value, **spare}, error, argument + rule)


TWO_OF_THREE = np.array([1.0, 0, 1])
SUBNORMAL_SHARE = np.array([1, 1, 1.2e-38], np.float32)
THREE_ROWS = {"method": "without_replacement", "sample_size": 3}
THREE_PARTS = {"num_draws": None, "num_distinct": 3}
WRONG_VALUES = {
    "leverage_scores": [
        ({"method": "lu"}, "method must be one of"),
        ({"matrix": SPARSE, "method": "svd"}, "must be 'auto' or 'gram' for sparse"),
        ({"matrix": BLOCKS, "method": "qr"}, "must be 'auto' or 'gram' .* got 'qr'"),
        ({"matrix": SPARSE, "rcond": 1.0}, "rcond must be less than 1"),
    ],
    "approximate_leverage_scores": [
        ({"epsilon": 0.0}, "epsilon must be between 0 and 1; got 0.0"),
        ({"epsilon": 1.0}, "epsilon must be between 0 and 1; got 1.0"),
    ],
    "rank_k_leverage_scores": [
        ({"rank": 5}, r"at most min\(N, p\); got rank = 5 and \(20, 4\)"),
        ({"num_passes": 2}, "num_passes must be at least 3; got 2"),
        ({"oversampling": -1}, "oversampling must be at least 0"),
    ],
    "ridge_leverage_scores": [
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"ridge": np.nan}, "ridge must be a number"),
        ({"ridge": 1e60}, "ridge must be finite in float32"),
        ({"ridge": 1e-50}, "ridge must not vanish in float32"),
    ],
    "lewis_weights": [
        ({"p": 0.0}, "p must be positive"),
        ({"p": np.inf}, "p must be finite"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
    ],
    "bless": [
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"ridge": np.inf}, "ridge must be finite"),
        ({"ridge": 1e-30}, "ridge must be .* 8 machine epsilons"),
        ({"step": 1.0}, "step must be more than 1"),
        ({"oversampling": 0}, "oversampling must be positive"),
        ({"data": np.zeros((0, 2))}, "data must have at least one point"),
        ({"data": np.full((3, 2), np.nan)}, "data must be finite"),
        ({"kernel": lambda x, y: x @ x.T}, "kernel must take"),
        ({"kernel": kernel_of(-1.0)}, r"kernel must be .* kernel\[0\] = -1"),
        ({"kernel": kernel_of(0.0)}, "kernel must not be zero"),
        ({"kernel": kernel_of(jnp.inf)}, "kernel must be finite"),
    ],
    "effective_resistances": [
        ({"edges": np.ones((2, 3), int)}, r"edges must have shape \(m, 2\)"),
        ({"edges": [[0, -1]]}, "got -1 to 0"),
        ({"edges": [[0, 3]], "num_vertices": 3}, "got 0 to 3 with num_vertices = 3"),
        ({"weights": [1.0, 2.0]}, r"weights must have shape \(m,\) = \(1,\)"),
        ({"weights": [0.0]}, r"weights must be positive .* weights\[0\] = 0.0"),
        ({"weights": [np.nan]}, "weights must be positive and finite"),
    ],
    "partition": [
        ({"data": {"x": np.ones(4), "y": np.ones(5)}}, r"data\['y'\].* N = 4"),
        ({"num_parts": 5}, "num_parts = 5 and num_rows = 4"),
        ({"data": np.float32(1)}, "data must have a leading axis"),
        ({"data": {}}, "data must have at least one array"),
    ],
    "partition_probabilities": [({"num_parts": 5}, "num_parts = 5 and num_rows = 4")],
    "row_probabilities": [
        ({"rule": "levunw"}, "rule must be one of 'lev', 'unif'"),
        ({"alpha": 1.5}, "alpha must be at most 1"),
    ],
    "sample_rows": [
        ({"method": "gumbel"}, "method must be one of"),
        ({"num_slots": 2}, "num_slots is for method"),
        ({"method": "poisson", "num_slots": 0}, "num_slots must be at least 1"),
        ({"method": "top_k", "sample_size": 4}, "sample_size = 4 and 3 positive"),
        (THREE_ROWS | {"probabilities": TWO_OF_THREE}, "3 and 2 positive prob"),
        (THREE_ROWS | {"probabilities": SUBNORMAL_SHARE}, "3 and 2 positive prob"),
    ],
    "sample_partitions": [
        ({"num_draws": None}, "exactly one of num_distinct and num_draws"),
        ({"num_distinct": 1}, "exactly one of num_distinct and num_draws"),
        (THREE_PARTS | {"num_distinct": 0}, "num_distinct must be at least 1"),
        (THREE_PARTS | {"num_distinct": 4}, "num_distinct = 4 and .* = 3"),
        (THREE_PARTS | {"probabilities": TWO_OF_THREE}, "3 and 2 positive prob"),
        (THREE_PARTS | {"probabilities": SUBNORMAL_SHARE}, "3 and 2 positive prob"),
    ],
    "drop_last_distinct": [
        ({"sample": SAMPLE._replace(counts=np.ones(1))}, "at least 2 slots; got 1")
    ],
    "rescaling_factors": [
        ({"rescaling": "none"}, "rescaling must be one of"),
        ({"rescaling": "paper"}, "num_rows must be given"),
        ({"rescaling": "paper", "num_rows": 0}, "num_rows must be positive"),
        ({"num_rows": 4}, "num_rows is for rescaling"),
    ],
    "scale_rows": [
        ({"factors": np.ones(3)}, r"rows\['x'\].*len\(factors\) = 3"),
        ({"factors": np.ones((2, 1))}, "factors must have one axis"),
    ],
    "weighted_parts": [
        ({"rescaling": "none"}, "rescaling must be one of"),
        ({"scale": "columns"}, "scale must be one of"),
        ({"row_weights": np.ones(3)}, r"row_weights must have shape \(K, m\)"),
        ({"parts": {"x": np.ones((2, 2))}}, r"parts\['x'\]"),
        ({"parts": {"x": np.ones((3, 1))}}, r"parts\['x'\].*row_weights, \(3, 2\)"),
        ({"sample": SAMPLE._replace(indices=np.array([0, 25]))}, "parts must be what"),
    ],
    "sparse_sign": [({"num_nonzeros": 4}, "num_nonzeros = 4 and sketch_size = 3")],
    "row_sampling": [({"probabilities": np.ones(4)}, r"\(num_rows,\) = \(5,\)")],
    "embedding_distortion": [
        ({"basis": np.ones((5, 1))}, "basis must have orthonormal columns"),
        ({"basis": np.ones((4, 1))}, r"= \(5, any\) .*; got \(4, 1\)"),
        ({"basis": np.ones(5)}, "basis must have shape"),
        ({"basis": np.ones((5, 0))}, "basis must have shape"),
    ],
    "recommended_sketch_size": [
        ({"embedding": sketching.partition}, "embedding must be one of"),
        ({"epsilon": 0}, "epsilon must be between 0 and 1"),
        ({"delta": 0}, "delta must be between 0 and 1"),
        ({"embedding": sketching.srht}, "num_rows must be given for 'srht'"),
        ({"embedding": sketching.row_sampling, "coherence": 2}, "at least 3; got 2"),
    ],
    "sketch_and_solve": [
        ({"sketch_size": 3}, r"sketch_size must .* = 4; got 3"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"matrix": OPERATOR}, "operator.sketch must be given"),
    ],
    "preconditioned": [
        ({"method": "columns"}, "must be 'gram' or 'sketch' or 'factor' for an array"),
        ({"matrix": SPARSE, "method": "gram"}, "'columns' or 'sketch' for a sparse"),
        ({"matrix": BLOCKS, "method": "gram"}, "'factor' or 'sketch' for Blocks"),
        ({"matrix": OPERATOR, "method": "sketch"}, "must be 'columns' for an operator"),
        (
            {"matrix": operator(rmatvec=lambda u: 1.01 * u[:4])},
            "operator.matvec and operator.rmatvec must be adjoint",
        ),
        ({"matrix": operator(rmatvec=lambda u: u)}, r"rmatvec must .* \(4,\) for"),
        (
            {"matrix": operator(matvec=lambda v: jnp.ones((20, 3)) @ v)},
            r"matvec must take .* \(4,\), as",
        ),
        ({"matrix": operator(matvec=lambda v: v / 0)}, r"matvec must .* \(20,\) for"),
        (
            {"matrix": operator(matvec=lambda v: jnp.pad(v, (0, 16)) / 0)},
            "operator must be finite",
        ),
        ({"matrix": operator(shape=(20,))}, r"operator.shape must be \(N, p\)"),
        (
            {"matrix": operator(shape=(20, 0))},
            r"operator.shape\[1\] must be at least 1",
        ),
        (
            {"matrix": operator(sketch=lambda S: jnp.ones((5, 5)))},
            r"operator.sketch must have shape \(m, p\) = \(32, 4\)",
        ),
        ({"sketch_size": 3}, r"sketch_size must be at least .* = 4; got 3"),
        ({"method": "qr"}, "method must be one of"),
        ({"ridge": np.inf}, "ridge must be finite"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"max_iterations": -1}, "max_iterations must be at least 0"),
    ],
    "choose_ridge": [
        (
            {"matrix": sketching.Blocks([MATRIX[:8]]), "target": TARGET[:8]},
            "at least four rows per column, or be an array .* got BlockRows",
        ),
        ({"ridges": [1.0, -1.0]}, r"not negative; got ridges\[1\] = -1"),
        ({"ridges": [1.0, 1e-42]}, r"0 or at least 1.1.*e-38; got ridges\[1\]"),
        ({"ridges": 1.0}, r"ridges must have shape \(num_ridges,\)"),
        ({"criterion": "cv"}, "criterion must be one of"),
    ],
    "iterative_hessian_sketch": [
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"sketch_size": 7}, r"sketch_size must be at least .* = 8; got 7"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"refresh": False, "projection": jnp.abs}, "refresh must be True"),
        ({"projection": lambda x: x[:2]}, "projection must return"),
    ],
    "newton_sketch": [
        ({"sketch_size": 1}, r"sketch_size must be at least .* = 2; got 1"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"num_refinements": -1}, "num_refinements must be at least 0"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"loss": lambda params: params}, "loss must return a scalar"),
        ({"square_root_hessian": lambda params: jnp.ones((9, 3))}, "must return a pyt"),
        ({"params": {}}, "params must have at least one number"),
        ({"params": jnp.array([1.0, jnp.nan])}, "params must be finite"),
    ],
    "logistic_newton_sketch": [
        ({"labels": np.ones(19)}, "labels must have shape"),
        ({"labels": np.full(20, 2.0)}, r"between 0 and 1; got labels\[0\] = 2"),
        ({"initial": np.ones(3)}, "initial must have shape"),
        ({"initial": np.full(4, np.inf)}, "initial must be finite"),
    ],
}
WRONG_TYPES = {
    "preconditioned": [
        ({"ridge": "1"}, "ridge must be a real scalar"),
        ({"matrix": operator(dtype=complex)}, "operator.dtype must be float32 or"),
        ({"matrix": operator(rmatvec=1)}, "operator.rmatvec must be a function"),
    ],
    "approximate_leverage_scores": [({"epsilon": "0.5"}, "epsilon must be a real sc")],
    "ridge_leverage_scores": [({"ridge": "1"}, "ridge must be a real scalar")],
    "lewis_weights": [({"p": "2"}, "p must be a real scalar")],
    "bless": [({"data": "no"}, "data must be an array")],
    "effective_resistances": [
        ({"edges": np.ones((2, 2))}, "edges must be integers"),
        ({"weights": [1j]}, "weights must be real"),
        ({"num_vertices": 2.0}, "num_vertices must be a Python int"),
    ],
    "row_probabilities": [({"alpha": "a"}, "alpha must be a real scalar")],
    "sample_rows": [({"weighted": "no"}, "weighted must be True or False")],
    "rescaling_factors": [
        ({"rescaling": "paper", "num_rows": np.ones(2)}, "num_rows must be a")
    ],
    "embedding_distortion": [
        ({"basis": 1j * np.ones((5, 1))}, "basis must be real"),
        ({"embedding": np.eye(5)}, "embedding must be an Embedding"),
    ],
    "recommended_sketch_size": [
        ({"embedding": "gaussian"}, "embedding must be one of"),
        ({"delta": "a"}, "delta must be a real scalar"),
    ],
    "iterative_hessian_sketch": [({"projection": "box"}, "projection must be a func")],
    "newton_sketch": [
        ({"loss": 1.0}, "loss must be a function"),
        ({"square_root_hessian": None}, "square_root_hessian must be a function"),
        ({"params": jnp.ones(2, complex)}, "params must be real"),
        ({"args": np.ones(2)}, "args must be a tuple"),
    ],
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values(name):
    for changes, message in WRONG_VALUES[name]:
        with np.errstate(all="ignore"):
            check_refusal(name, changes, ValueError, message)


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_types(name):
    for changes, message in WRONG_TYPES[name]:
        check_refusal(name, changes, TypeError, message)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("approximate_leverage_scores", "epsilon", "epsilon must be concrete"),
        ("recommended_sketch_size", "epsilon", "epsilon must be concrete"),
        ("bless", "ridge", "bless must not be traced"),
        ("effective_resistances", "edges", "num_vertices must be given"),
    ],
)
def test_traced_values_that_set_shapes(name, argument, message):
    value = GOOD[name].get(argument, 0.5)
    with pytest.raises(TypeError, match=message):
        jax.make_jaxpr(
            lambda value: getattr(sketching, name)(**{**GOOD[name], argument: value})
        )(jnp.asarray(value))


def test_constants_of_a_traced_function_are_checked():
    matrix = jnp.full((4, 2), jnp.nan)
    with pytest.raises(ValueError, match="matrix must be finite; got 8 NaN"):
        jax.jit(lambda x: x * sketching.leverage_scores(matrix))(1.0)


@pytest.mark.parametrize("name", list(GOOD)[list(GOOD).index("sketch_and_solve") :])
def test_embeddings(name):
    for embedding, error, message in [
        ("gaussian", TypeError, r"such as sketching.srht \(not its name\)"),
        (lambda *sizes: np.eye(3), TypeError, "embedding must be a constructor"),
        (lambda *sizes: sketching.gaussian(KEY, 1, 2), ValueError, r"got \(1, 2\)"),
        (sketching.gaussian(KEY, 1, 2), ValueError, r"embedding must .* got \(1, 2\)"),
    ]:
        check_refusal(name, {"embedding": embedding}, error, message)


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
    keys = jax.random.split(KEY)
    batch = jax.vmap(lambda key: sketching.gaussian(key, 3, 5))(keys)
    with pytest.raises(ValueError, match="embedding.key must be one key"):
        batch.apply(np.ones(5))
