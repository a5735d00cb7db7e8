"""Simulated targets of polynomial fits, against SciPy's integrator."""

import numpy as np
import pytest
import scipy.integrate

from experiments.sketching import pivotal, targets


def integrated(slope, start, duration, num_times=401):
    """The solution at equal distances of time, (num_times, len(start))."""
    times = np.linspace(0, duration, num_times)
    solution = scipy.integrate.solve_ivp(
        slope,
        (0, duration),
        start,
        t_eval=times,
        method="LSODA",
        rtol=1e-8,
        atol=1e-10,
    )
    return solution.y.T


@pytest.mark.parametrize(("stiffness", "drive"), [(1.0, 0.0), (2.0, 1.4), (3.0, 2.0)])
def test_oscillator(stiffness, drive):
    def slope(time, state):
        place, velocity = state
        force = np.cos(drive * time) / 2
        return [velocity, force - velocity / 2 - stiffness * place]

    states = integrated(slope, [0, 0], targets.DURATION, targets.NUM_TIMES)
    largest = targets.oscillator(np.array([stiffness]), np.array([drive]))
    np.testing.assert_allclose(largest, np.abs(states[:, 0]).max(), rtol=1e-5)


def test_heat():
    """By differences at twice as many places, which are off by a quarter as much."""
    axis = np.array([-1, -0.5, 0.3, 1])
    largest = targets.heat(axis)
    num_cells = 2 * targets.NUM_CELLS
    places = np.linspace(0, 1, num_cells + 1)
    for i, frequency in enumerate(2.5 * (1 + axis)):

        def slope(time, inner):
            mirror = inner[-2] - 2 * np.pi * np.exp(-time) / num_cells
            padded = np.concatenate([[0], inner, [mirror]])
            return np.diff(padded, 2) * (num_cells / np.pi) ** 2

        start = np.sin(np.pi * frequency * places[1:])
        states = integrated(slope, start, 3.0, 41)
        # Times 0, 0.75, 1.95 and 3.
        expected = np.maximum(states[[0, 10, 26, 40]].max(axis=1), 0)
        np.testing.assert_allclose(largest[i], expected, atol=1e-3)


def test_reaction():
    normal = np.array([[0.0, 0.0], [-2.0, 3.0], [3.0, -1.0]])
    adsorption = 0.1 + np.exp(0.05 * normal[:, 0])
    desorption = 0.001 + 0.01 * np.exp(0.05 * normal[:, 1])

    def slope(time, state):
        free = 1 - state
        return adsorption * free - desorption * state - 10 * free**2 * state

    expected = integrated(slope, np.full(3, 0.9), 4.0)[-1]
    np.testing.assert_allclose(targets.reaction(normal), expected, rtol=1e-6)


def test_polynomials_span_all_of_their_degree():
    points = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    matrix = targets.polynomials(points, 3)
    assert matrix.shape == (50, 10)
    x, y = points.T
    monomials = np.stack([x**3, x**2 * y, x * y**2, y**3, x * y, np.ones(50)], axis=1)
    _, residuals, rank, _ = np.linalg.lstsq(matrix, monomials)
    assert rank == 10 and np.all(residuals < 1e-20)


def test_rows_for_an_excess_are_interpolated():
    rows = pivotal.rows_for(0.1, [10, 20, 40], [1.0, 0.4, 0.025])
    # A line in logarithms from (20, 0.4) to (40, 0.025): half way down.
    np.testing.assert_allclose(rows, 20 * np.sqrt(2))
    assert np.isnan(pivotal.rows_for(0.01, [10, 20], [1.0, 0.4]))
    assert np.isnan(pivotal.rows_for(2.0, [10, 20], [1.0, 0.4]))
