"""The steps of conjugate gradients that decoders and solvers share."""

import jax.numpy as jnp
import numpy as np

from jaxwgc._common.conjugate_gradients import (
    cg_start,
    cg_step,
    conjugate_gradients,
    step_length,
)


def positive_definite(size, rng):
    root = rng.normal(size=(size, size))
    return np.eye(size) + root @ root.T / size


def test_as_many_steps_as_unknowns_solve_a_system():
    rng = np.random.default_rng(0)
    matrix = positive_definite(6, rng)
    right = rng.normal(size=(6, 2))
    solution = conjugate_gradients(lambda x: matrix @ x, jnp.asarray(right), 12)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, right), rtol=1e-4)


def test_iterations_stop_at_the_tolerance_and_at_their_maximum():
    rng = np.random.default_rng(1)
    matrix = positive_definite(20, rng)
    right = jnp.asarray(rng.normal(size=20))

    def error(max_iterations, tolerance):
        solution = conjugate_gradients(
            lambda x: matrix @ x, right, max_iterations, tolerance
        )
        return np.linalg.norm(right - matrix @ solution) / np.linalg.norm(right)

    assert error(0, 0.0) == 1
    # A step divides the error by at most ten.
    assert 1e-5 < error(20, 1e-4) <= 1e-4 < error(1, 0.0) < 1


def test_a_right_hand_side_in_the_null_space_gives_zero():
    matrix = np.diag([1.0, 0.0])
    right = jnp.array([0.0, 1.0])
    assert not conjugate_gradients(lambda x: matrix @ x, right, 5).any()


def test_steps_take_complex_systems_along_the_last_axis():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(8, 4)) + 1j * rng.normal(size=(8, 4))
    matrix = np.eye(4) + root.conj().T @ root / 8
    right = jnp.asarray(rng.normal(size=(3, 4)) + 1j * rng.normal(size=(3, 4)))
    x = jnp.zeros_like(right)
    state = cg_start(right, axis=-1)
    for _ in range(4):
        image = state.p @ matrix.T
        alpha = step_length(state, jnp.sum((state.p.conj() * image).real, axis=-1))
        x = x + alpha[:, None] * state.p
        state = cg_step(state, state.s - alpha[:, None] * image, axis=-1)
    np.testing.assert_allclose(x @ matrix.T, right, atol=1e-4)
