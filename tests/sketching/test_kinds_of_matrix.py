"""Every function and every kind of matrix: right, or rejected by name at the call.

What is not rejected must not be converted entry by entry, which takes minutes.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse

import jaxwgc
from jaxwgc import codes, sketching, stragglers
from tests.sketching.test_bad_input import GOOD, KEY

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.standard_normal((20, 4)) * (RANDOM.random((20, 4)) < 0.6)
MATRIX = MATRIX.astype(np.float32)
TARGET = RANDOM.standard_normal(20).astype(np.float32)


def entries(dense):
    """Values and places of a matrix in order, with two explicit zeros."""
    is_stored = dense != 0
    is_stored.flat[np.flatnonzero(~is_stored)[:2]] = True
    return dense[is_stored], np.nonzero(is_stored)


def disordered(dense):
    """Every entry in two parts, in any order."""
    values, places = entries(dense)
    half = values if values.dtype == bool else values // 2
    rest = values if values.dtype == bool else values - half
    order = np.random.default_rng(1).permutation(2 * len(values))
    return np.concatenate([half, rest])[order], np.tile(places, 2)[:, order]


def bcoo(dense):
    values, places = entries(dense)
    in_order = {"indices_sorted": True, "unique_indices": True}
    return sparse.BCOO(
        (values, np.stack(places, axis=1)), shape=dense.shape, **in_order
    )


def disordered_bcoo(dense):
    """With padding, which lies out of bounds."""
    values, places = disordered(dense)
    num_rows, num_columns = dense.shape
    padding = [[num_rows, num_columns], [num_rows, 0], [0, num_columns], [-1, 1]]
    entries = np.append(values, [5] * 4), np.concatenate([places.T, padding])
    return sparse.BCOO(jax.device_put(entries), shape=dense.shape)


def disordered_csr(dense):
    values, (row, column) = disordered(dense)
    order = np.argsort(row, kind="stable")
    starts = np.searchsorted(row[order], np.arange(len(dense) + 1))
    return scipy.sparse.csr_matrix((values[order], column[order], starts), dense.shape)


def of_scipy(make, form, of=entries):
    return lambda dense: make(of(dense), dense.shape).asformat(form)


COO = scipy.sparse.coo_array, scipy.sparse.coo_matrix
KINDS = {
    "BCOO": bcoo,
    "disordered BCOO": disordered_bcoo,
    "disordered COO": of_scipy(COO[0], "coo", disordered),
    "disordered CSR": disordered_csr,
    **{
        f"{form} {make.__name__}": of_scipy(make, form)
        for make in COO
        for form in ("csr", "csc", "coo")
    },
}
SOLVERS = ("sketch_and_solve", "preconditioned")
SCORES = (
    "leverage_scores",
    "numerical_rank",
    "rank_k_leverage_scores",
    "ridge_leverage_scores",
)
ARRAYS = [
    (name, argument)
    for name, arguments in GOOD.items()
    for argument, value in arguments.items()
    if name not in SCORES + SOLVERS or argument != "matrix"
    if isinstance(value, np.ndarray | list | dict)
]


def first_of(result):
    """The scores, the solution or the rank."""
    return np.asarray(jax.tree.leaves(result)[0])


def check_all_kinds(function, dense, **tolerance):
    expected = function(dense)
    for kind, make in KINDS.items():
        found = function(make(dense))
        np.testing.assert_allclose(
            first_of(found), first_of(expected), err_msg=kind, **tolerance
        )


def test_all_functions_are_here():
    functions = {name: getattr(sketching, name) for name in sketching.__all__}
    names = {name for name in functions if inspect.isfunction(functions[name])}
    assert names == {*GOOD, "rademacher", "count_sketch"}


@pytest.mark.parametrize(
    ("name", "dense"),
    [
        *((name, MATRIX) for name in SCORES + SOLVERS),
        *((name, MATRIX.T) for name in SCORES),
    ],
)
def test_those_that_are_taken(name, dense):
    given = GOOD[name] | ({"target": TARGET} if name in SOLVERS else {})
    function = getattr(sketching, name)
    check_all_kinds(lambda x: function(**given | {"matrix": x}), dense, atol=1e-5)


@pytest.mark.parametrize(("name", "argument"), ARRAYS)
def test_those_that_are_not(name, argument):
    value = GOOD[name][argument]
    is_tree = isinstance(value, dict)
    dense = np.atleast_2d(np.asarray(value["x"] if is_tree else value))
    for make in KINDS.values():
        matrix = make(dense.reshape(len(dense), -1))
        given = {argument: {"x": matrix} if is_tree else matrix}
        with pytest.raises(TypeError, match=f"^{argument}.* must be a dense array; go"):
            getattr(sketching, name)(**GOOD[name] | given)


STREAMS = {
    "scores": sketching.streaming_leverage_scores,
    "leading": lambda blocks: sketching.rank_k_leverage_scores(KEY, blocks, 2),
    "solution": lambda blocks: sketching.streaming_least_squares(KEY, blocks),
}


@pytest.mark.parametrize("name", STREAMS)
def test_blocks(name):
    def result(make):
        blocks = [make(block) for block in np.split(MATRIX, [7])]
        if name == "solution":
            blocks = list(zip(blocks, np.split(TARGET, [7])))
        return first_of(STREAMS[name](lambda: blocks))

    expected = result(np.asarray)
    for kind, make in KINDS.items():
        np.testing.assert_allclose(result(make), expected, atol=1e-5, err_msg=kind)
        # A matrix is not an iterable of its rows.
        with pytest.raises(TypeError, match=r"blocks\(\) must be an iterable of "):
            STREAMS[name](lambda make=make: make(MATRIX))


@pytest.mark.parametrize(
    "make",
    [
        sketching.gaussian,
        sketching.rademacher,
        sketching.srht,
        sketching.count_sketch,
        sketching.sparse_sign,
        sketching.row_sampling,
    ],
)
def test_embeddings(make):
    embedding = make(KEY, 8, 20)
    if make in (sketching.gaussian, sketching.rademacher, sketching.srht):
        for kind in KINDS.values():
            with pytest.raises(TypeError, match="embedding must be count_sketch, spar"):
                embedding @ {"x": kind(MATRIX), "y": TARGET}
    else:
        check_all_kinds(lambda x: embedding @ {"x": x, "y": TARGET}, MATRIX, atol=1e-6)


def test_sampled_rows():
    # Row 0, of which unused slots are, is drawn for sure.
    sample = sketching.sample_rows(KEY, np.r_[40, :19], 8, "poisson")
    assert 0 < np.count_nonzero(sample.counts) < len(sample.counts)
    expected = MATRIX[sample.indices] * np.asarray(sample.scale)[:, None]
    apply = jax.jit(lambda sample, matrix: sample.apply(matrix))
    for kind, make in {"dense": np.asarray, **KINDS}.items():
        found = sample.apply({"x": make(MATRIX), "y": TARGET})
        np.testing.assert_allclose(found["x"], expected, atol=1e-6, err_msg=kind)
        np.testing.assert_allclose(found["y"], TARGET[sample.indices] * sample.scale)
        if "BCOO" in kind:
            np.testing.assert_array_equal(apply(sample, make(MATRIX)), found["x"])
    with pytest.raises(ValueError, match="tree must be what the sample was drawn from"):
        sample.apply(MATRIX[:10])
    # All NaN, of zeros too, as the scale says.
    lost = sample._replace(scale=sample.scale * np.nan)
    assert np.isnan(lost.apply(bcoo(MATRIX))).all()


def test_data_of_newton_sketch():
    """What JAX makes of a BCOO in the functions of the caller is for JAX to say."""

    def loss(params, matrix):
        return jnp.sum((matrix @ params - TARGET) ** 2) / 2

    given = KEY, loss, lambda _, matrix: matrix.todense(), np.zeros(4, np.float32), 20
    found = sketching.newton_sketch(*given, args=(disordered_csr(MATRIX),))
    expected = np.linalg.lstsq(MATRIX, TARGET)[0]
    np.testing.assert_allclose(found.solution, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float64])
def test_other_dtypes(dtype):
    dense = (2 * MATRIX).astype(dtype)
    expected = sketching.leverage_scores(dense)
    for kind in ("BCOO", "disordered COO", "disordered CSR", "csc coo_matrix"):
        found = sketching.leverage_scores(KINDS[kind](dense))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_taken():
    def boxed(dense):
        matrix = scipy.sparse.csr_array(dense)
        matrix.data = matrix.data.astype(object)
        return matrix

    nan = np.full((20, 4), np.nan, np.float32)
    calls = [
        sketching.leverage_scores,
        lambda x: sketching.preconditioned(KEY, x, TARGET),
        lambda x: sketching.count_sketch(KEY, 8, 20) @ x,
        lambda x: sketching.streaming_leverage_scores(lambda: [x]),
    ]
    for matrix, error, message in [
        (scipy.sparse.coo_array(MATRIX * 1j), TypeError, "must be real; .* of complex"),
        (bcoo(MATRIX * 1j), TypeError, "must be real; got an array of complex64"),
        (boxed(MATRIX), TypeError, "must be real; got csr_array of object"),
        (
            scipy.sparse.coo_array(TARGET),
            ValueError,
            r"must have shape .*; got \(20,\)",
        ),
        (sparse.BCSR.fromdense(MATRIX), TypeError, "BCOO.from_scipy_sparse .* BCSR"),
        (sparse.BCOO.fromdense(MATRIX, n_batch=1), ValueError, "n_batch = 1"),
        (sparse.BCOO.fromdense(TARGET), ValueError, "two axes"),
        (bcoo(nan), ValueError, "must be finite"),
        (scipy.sparse.csr_array(nan), ValueError, "must be finite"),
    ]:
        for call in calls:
            with pytest.raises(error, match=message):
                call(matrix)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("partial_gradients", lambda x: jaxwgc.encode(codes.uncoded(20), x)),
        (
            r"parts\['x'\]",
            lambda x: jaxwgc.partial_value_and_grad(lambda params, part: params)(
                1.0, {"x": x}
            ),
        ),
        ("times", stragglers.empirical),
        ("assignment", lambda x: codes.any_placement(KEY, x, 1)),
    ],
)
def test_outside_of_sketching(name, call):
    for make in KINDS.values():
        with pytest.raises(TypeError, match=f"^{name} must be a dense array; got "):
            call(make(MATRIX))
