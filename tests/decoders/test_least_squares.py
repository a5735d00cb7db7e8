"""Shared conjugate gradients with their fallback, against NumPy's pseudoinverse."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.tree_util import Partial

import jaxwgc
from jaxwgc._common.some_rows import masked_map
from jaxwgc.decoders import _least_squares, _systems
from jaxwgc.decoders._systems import System, scaled_rows
from tests.conftest import every_pattern, random_patterns
from tests.oracles import row_scales


@jax.jit
def nearest_weights(mask, matrix, target):
    """Weights for any target, without the column scales of weighted codes."""
    rows, norms = scaled_rows(matrix)
    system = System(rows, norms, target)
    weights, is_solved = _least_squares.nearest_weights(mask, system)
    return replace_poor(~is_solved, weights, mask, (system, system))


def replace_poor(is_poor, weights, mask, systems):
    one_by_one = Partial(_systems._decompose, systems=systems)
    together = Partial(_systems._factorise, systems=systems)
    return masked_map(is_poor, one_by_one, together, weights, mask)


# Every mask, so two batches of those that iterate side by side.
MASKS = every_pattern(8, 8)
SHAPE = 8, 6


def zeros_and_ones(seed, density=0.4):
    return (np.random.default_rng(seed).random(SHAPE) < density).astype(float)


def with_condition(number, seed=0):
    draw = np.random.default_rng(seed).normal
    left, _ = np.linalg.qr(draw(size=SHAPE))
    right, _ = np.linalg.qr(draw(size=(6, 6)))
    return left * np.geomspace(1, 1 / number, 6) @ right


def frame(seed):
    """A harmonic frame, turned: any of its rows have a condition number below 8."""
    angles = np.pi / 8 * np.outer(np.arange(8), [1, 3, 5])
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))
    return np.hstack([np.cos(angles), np.sin(angles)]) @ turn


gaussian = np.random.default_rng(0).normal(size=(2, *SHAPE))
gaussian = gaussian[0] + 1j * gaussian[1]


def zero_at(matrix, rows, columns):
    matrix = matrix.copy()
    matrix[rows] = 0
    matrix[:, columns] = 0
    return matrix


MATRICES = {
    "sparse": zeros_and_ones(0),
    "sparser": zeros_and_ones(1, 0.2),
    "frame": frame(2),
    "equal rows": np.tile(zeros_and_ones(3, 0.6)[:4], (2, 1)),
    "equal columns": np.tile(zeros_and_ones(4, 0.6)[:, :3], (1, 2)),
    "zero rows and columns": zero_at(zeros_and_ones(5, 0.6), [1, 4], [0, 3]),
    "rank one": np.ones(SHAPE),
    "nothing": np.zeros(SHAPE),
    "uncoded": np.eye(8)[:, :6],
    "tiny": 1e-9 * zeros_and_ones(6),
    "huge": 1e9 * zeros_and_ones(6),
    "rows of all sizes": np.geomspace(0.01, 100, 8)[:, None] * zeros_and_ones(7),
    "condition 1e3": with_condition(1e3),
    "complex": gaussian,
    "complex, deficient": np.vstack([gaussian[:5], 1j * gaussian[:3]]),
}
# Decoded to other targets than ones.
SPARSE = MATRICES["sparse"]
PART_WEIGHTS = np.array([2, 0, 1, 5, 0.25, 1])
TARGETS = {
    # Columns and target scaled together, one of the weights being zero.
    **{
        f"{name}, weighted": (MATRICES[name] * PART_WEIGHTS, PART_WEIGHTS[None])
        for name in ("sparse", "equal rows", "zero rows and columns")
    },
    # Each row on its own, one of them in reach and one not.
    "segments": (SPARSE, np.stack([SPARSE[0], SPARSE[1] - SPARSE[2], np.arange(6.0)])),
    "zero": (SPARSE, np.zeros((1, 6))),
    # Conjugate gradients converge at once for the first segment alone.
    "one of zeros": (with_condition(1e3), np.stack([np.zeros(6), np.ones(6)])),
}
# Three segments each, so that systems of one dtype share a compiled function.
SYSTEMS = {name: (matrix, np.ones((3, 6))) for name, matrix in MATRICES.items()} | {
    name: (matrix, np.resize(target, (3, 6)))
    for name, (matrix, target) in TARGETS.items()
}
HARD = "rows of all sizes", "condition 1e3", "one of zeros"


def by_numpy(matrix, target, masks):
    """Weights (T, num_segments, num_messages) of least norm, in float64.

    The norm is of the weights times the norms of the rows as powers of two.
    """
    norms = row_scales(matrix)
    rows = np.where(masks[:, :, None], matrix / norms[:, None], 0)
    weights = target @ np.linalg.pinv(rows, rcond=1e-10) / norms
    # Large weights leave rounding at the rows of zeros.
    return np.where(masks[:, None], weights, 0)


def miss(weights, matrix, target):
    """Squared residual of each segment, in float64."""
    return np.sum(np.abs(np.asarray(weights) @ matrix - target) ** 2, axis=-1)


def check(matrix, target, result, masks, dtype, hard=False):
    """The least error, and the weights of least norm that have it.

    NumPy's own error is above the least one where a code is badly conditioned, which
    only the error is compared for, and with less strictness.
    """
    matrix, target = (
        np.asarray(array, np.result_type(array, float)) for array in (matrix, target)
    )
    expected = by_numpy(matrix, target, masks)
    assert result.shape == expected.shape
    assert result.dtype == dtype
    single = np.finfo(dtype).bits == 32
    share = (1e-6 if hard else 1e-9) if single else (1e-12 if hard else 1e-18)
    tolerance = share * np.sum(np.abs(target) ** 2)
    minimum = miss(expected, matrix, target)
    excess = miss(result, matrix, target) - minimum
    assert np.all(excess <= tolerance + (2e-6 if single else 1e-11) * minimum)
    silent = np.broadcast_to(~masks[:, None], result.shape)
    np.testing.assert_array_equal(np.asarray(result)[silent], 0)
    if not hard:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            result, expected, rtol=0, atol=scale * (1e-4 if single else 1e-8)
        )


class TestAgainstNumpy:
    @pytest.mark.parametrize("name", SYSTEMS)
    def test_every_mask(self, name, x64):
        matrix, target = SYSTEMS[name]
        dtype = matrix.dtype if x64 else {"f": "f4", "c": "c8"}[matrix.dtype.kind]
        matrix = matrix.astype(dtype)
        target = target.astype(dtype)
        weights = nearest_weights(MASKS, matrix, target)
        check(matrix, target, weights, MASKS, np.dtype(dtype), hard=name in HARD)

    @settings(max_examples=40, deadline=None)
    @given(
        hnp.arrays(np.int8, SHAPE, elements=st.integers(-1, 2)),
        hnp.arrays(np.int8, (3, 6), elements=st.integers(-2, 2)),
    )
    def test_any_small_integers(self, matrix, target):
        """Ranks, zeros and equal rows of every kind."""
        matrix = matrix.astype(np.float32)
        target = target.astype(np.float32)
        weights = nearest_weights(MASKS, matrix, target)
        check(matrix, target, weights, MASKS, np.float32, hard=True)

    def test_where_conjugate_gradients_do_not_converge(self, with_x64):
        """The Gram matrix has the square of the code's condition: up to 1e13 here."""
        matrix = with_condition(1e5)
        target = np.ones((3, 6))
        weights = nearest_weights(MASKS, matrix, target)
        check(matrix, target, weights, MASKS, np.float64, hard=True)

    def test_wide_codes(self, with_x64):
        """More parts than messages."""
        matrix = zeros_and_ones(8).T
        masks = every_pattern(6, 6)
        target = np.ones((1, 8))
        check(matrix, target, nearest_weights(masks, matrix, target), masks, np.float64)


def test_large_bernoulli_code():
    """n = 100, the code that Monte Carlo studies decode by the thousands.

    Six digits of the mean error in float32, and no mask is decomposed.
    """
    code = jaxwgc.codes.bernoulli(jax.random.key(0), 100, 100, copies=10)
    masks = random_patterns(100, 30, 128)
    target = np.ones((1, 100))

    @jax.jit
    def iterate(matrix, target):
        matrix, _ = scaled_rows(matrix)
        return _least_squares._conjugate_gradients(masks, matrix, target)

    operands = code.encoding_matrix, target
    _, converged = iterate(*(operand.astype(np.float32) for operand in operands))
    assert converged.all()
    weights = by_numpy(code.encoding_matrix, target, masks)
    expected = miss(weights, code.encoding_matrix, target).mean()
    assert 0.1 < expected < 20
    decoder = jaxwgc.decoders.LeastSquares
    error = jax.jit(lambda received: jaxwgc.decoding(code, received, decoder).error)(
        masks
    )
    np.testing.assert_allclose(np.mean(error, dtype=float), expected, rtol=1e-6)


def primitives(jaxpr, skip=None):
    """Names of all primitives, save those inside of `skip`."""
    for equation in jaxpr.eqns:
        if equation.primitive.name != skip:
            yield equation.primitive.name
            for parameter in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner, skip)


class TestFallback:
    """Which masks are decomposed one by one."""

    MASKS = np.ones((len(MASKS), 8), bool)
    MASKS[:, 6:] = False
    MASKS[[3, 11], 6:] = True
    MASKS[[3, 11], 2] = False

    def test_only_masks_that_do_not_converge_are_decomposed(self):
        """The last rows make the code badly conditioned, the first ones do not."""
        matrix = np.float32(MATRICES["frame"])
        matrix[6] = matrix[0] + 3e-4 * matrix[6]
        matrix[7] = matrix[1] + 3e-4 * matrix[7]
        iterate = jax.jit(_least_squares._conjugate_gradients)
        target = np.ones((3, 6), np.float32)
        _, converged = iterate(self.MASKS, matrix, target)
        assert np.delete(converged, [3, 11]).all()
        weights = nearest_weights(self.MASKS, matrix, target)
        check(matrix, target, weights, self.MASKS, np.float32, hard=True)

    @pytest.mark.parametrize("mapped", [False, True])
    def test_decompositions_run_only_in_a_loop_over_unsolved_masks(self, mapped):
        """This holds under vmap too, which turns a plain condition into a select."""
        solve = (
            jax.vmap(nearest_weights, (0, None, None)) if mapped else nearest_weights
        )
        jaxpr = jax.make_jaxpr(solve)(
            self.MASKS, np.float32(MATRICES["frame"]), np.ones((1, 6), "f")
        ).jaxpr
        assert "svd" in set(primitives(jaxpr))
        assert "svd" not in set(primitives(jaxpr, skip="while"))


class TestDecodingError:
    """Its derivatives in the entries of B, those that are learned."""

    CODES = {
        "weighted": jaxwgc.weighted(
            # No rank changes along the way.
            jaxwgc.GradientCode.from_matrix(frame(4)),
            np.array([1.0, 3, 0, 2, 1, 0.5]),
        ),
        "complex": jaxwgc.codes.reed_solomon(6, 6, 3),
        "segments": jaxwgc.codes.communication_efficient(6, 2, 2),
    }

    @pytest.mark.parametrize("name", CODES)
    def test_gradient_is_that_of_finite_differences(self, name, with_x64):
        code = self.CODES[name]
        masks = random_patterns(code.num_workers, code.num_workers // 2 + 1, 5)
        draw = np.random.default_rng(0).normal
        direction = draw(size=code.encoding_matrix.shape) * (code.encoding_matrix != 0)

        @jax.jit
        @jax.value_and_grad
        def error(step):
            matrix = code.encoding_matrix + step * direction
            scaled = dataclasses.replace(code, encoding_matrix=matrix)
            return jaxwgc.decoding(
                scaled, masks, jaxwgc.decoders.LeastSquares
            ).error.mean()

        step = 1e-5
        difference = (error(step)[0] - error(-step)[0]) / (2 * step)
        assert abs(difference) > 1e-3
        np.testing.assert_allclose(error(0.0)[1], difference, rtol=1e-6)


def test_rows_whose_squares_leave_the_range_of_float32():
    sizes = np.array([1e-30, 1, 1e30])
    code = jaxwgc.GradientCode.from_matrix(np.diag(sizes))
    weights = jaxwgc.decoding(code, np.ones(3, bool)).weights[..., 0, :]
    np.testing.assert_allclose(weights, 1 / sizes, rtol=1e-5)


@pytest.mark.parametrize("promised", [2, 1, 0])
def test_masks_that_are_known_to_be_decodable(promised):
    """Weights that miss are those to decompose there; nothing is promised else."""
    # Phases, since a product without its conjugate would end conjugate gradients.
    matrix = np.diag(np.exp(1j * np.arange(4))).astype(np.complex64)
    mask = np.arange(4) >= np.arange(4)[:, None]
    _, is_poor = _least_squares.least_squares_weights(
        mask, matrix, np.ones((1, 4), np.float32), promised
    )
    # All but the first miss, and those beyond are as near as can be.
    lost = np.arange(4)
    np.testing.assert_array_equal(is_poor, (lost > 0) & (lost <= promised))


def test_many_masks_go_in_batches_and_few_at_once():
    """A loop over three batches of 128."""
    matrix = np.float32(MATRICES["sparse"])
    target = np.ones((1, 6), np.float32)
    for num_masks, in_batches in [(300, True), (128, False)]:
        masks = np.ones((num_masks, 8), bool)
        program = str(jax.make_jaxpr(nearest_weights)(masks, matrix, target))
        assert ("[3,128,8]" in program) == in_batches
        assert "[1,128,8]" not in program
