"""Functions of two parameters that take a simulation to evaluate, on many points.

The test problems of Shimizu, Cheng, Musco and Weare, "Improved active learning via
dependent leverage score sampling", ICLR 2024, section 4, after their description.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.polynomial import legendre

from experiments.sketching import data
from jaxwgc import sketching

# Seconds of the oscillator, and times at which its displacement is known.
DURATION = 20.0
NUM_TIMES = 400
# Points of the rod between its ends, and values of its largest eigenvalues.
NUM_CELLS = 60
# Steps of the surface reaction until time 4.
NUM_STEPS = 400


class Target(NamedTuple):
    """A regression, and the order of its rows in space.

    Attributes:
        order: The rows in the order of a k-d tree of their parameters, (N,).
        regression: Polynomials of both parameters, and the simulated values.
    """

    order: np.ndarray
    regression: data.Regression


def targets(num_per_axis: int, degree: int, seed: int) -> dict[str, Target]:
    """Returns the three problems of num_per_axis² points each."""
    axis = np.linspace(-1, 1, num_per_axis)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    normal = np.random.default_rng(seed).standard_normal((num_per_axis**2, 2))
    displacement = oscillator(stiffness=2 + grid[:, 0], drive=1 + grid[:, 1])
    values = {
        "oscillator": (grid, displacement),
        "heat": (grid, heat(axis).ravel()),
        "surface reaction": (normal / np.abs(normal).max(), reaction(normal)),
    }
    problems = {}
    for name, (points, target) in values.items():
        matrix = polynomials(points, degree)
        order = np.asarray(sketching.spatial_order(points))
        problems[name] = Target(order, data.Regression.of(name, matrix, target))
    return problems


def polynomials(points: np.ndarray, degree: int) -> np.ndarray:
    """Returns products of Legendre polynomials of total degree at most `degree`."""
    first, second = (legendre.legvander(points[:, i], degree) for i in range(2))
    degrees = itertools.product(range(degree + 1), repeat=2)
    columns = [first[:, i] * second[:, j] for i, j in degrees if i + j <= degree]
    return np.stack(columns, axis=1)


def oscillator(stiffness: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """Returns the largest displacement of a damped oscillator that starts at rest.

    x″ + x′ / 2 + stiffness x = cos(drive t) / 2, for `DURATION` seconds.
    """
    damping = 0.5
    force = 0.5
    frequency = np.sqrt(stiffness - damping**2 / 4)
    amplitude = force / (stiffness - drive**2 + 1j * damping * drive)
    largest = np.zeros(len(stiffness))
    # The free motion cancels displacement and velocity of the steady one at time 0.
    cosine = -amplitude.real
    velocity = (1j * drive * amplitude).real
    sine = (damping / 2 * cosine - velocity) / frequency
    for time in np.linspace(0, DURATION, NUM_TIMES):
        steady = (amplitude * np.exp(1j * drive * time)).real
        phase = frequency * time
        free = cosine * np.cos(phase) + sine * np.sin(phase)
        displacement = steady + np.exp(-damping / 2 * time) * free
        largest = np.maximum(largest, np.abs(displacement))
    return largest


def heat(axis: np.ndarray) -> np.ndarray:
    """Returns the largest temperature of a rod, by start frequency and time.

    π² u_t = u_xx on [0, 1], u(0, t) = 0, u_x(1, t) = -π exp(-t), u(x, 0) = sin(ω π x)
    with ω from 0 to 5, at times from 0 to 3.
    """
    frequencies = 2.5 * (1 + axis)
    times = 1.5 * (1 + axis)
    width = 1 / NUM_CELLS
    places = np.arange(1, NUM_CELLS + 1) * width
    # Second differences; the last point has a mirror image beyond the end.
    differences = np.diag(np.full(NUM_CELLS, -2.0))
    differences += np.diag(np.ones(NUM_CELLS - 1), 1)
    differences += np.diag(np.ones(NUM_CELLS - 1), -1)
    differences[-1, -2] = 2
    differences /= (np.pi * width) ** 2
    inflow = np.zeros(NUM_CELLS)
    inflow[-1] = -2 * np.pi * width / (np.pi * width) ** 2
    # u = forced exp(-t) + free, in which free solves the equation without inflow.
    forced = -np.linalg.solve(differences + np.eye(NUM_CELLS), inflow)
    eigenvalues, vectors = np.linalg.eig(differences)
    starts = np.sin(np.pi * places[:, None] * frequencies) - forced[:, None]
    coordinates = np.linalg.solve(vectors, starts)
    decays = np.exp(eigenvalues[:, None] * times)
    # Place × frequency × time.
    free = np.einsum("xk,kf,kt->xft", vectors, coordinates, decays, optimize=True)
    temperatures = free.real + forced[:, None, None] * np.exp(-times)
    # The end x = 0 has the temperature 0.
    return np.maximum(temperatures.max(axis=0), 0)


def reaction(normal: np.ndarray) -> np.ndarray:
    """Returns the coverage of a surface at time 4, from 0.9 at the start.

    ρ′ = α (1 - ρ) - γ ρ - 10 (1 - ρ)² ρ with α = 0.1 + exp(0.05 z₁) and γ = 0.001 +
    0.01 exp(0.05 z₂), for normal z.
    """
    adsorption = 0.1 + np.exp(0.05 * normal[:, 0])
    desorption = 0.001 + 0.01 * np.exp(0.05 * normal[:, 1])

    def slope(coverage: np.ndarray) -> np.ndarray:
        free = 1 - coverage
        return adsorption * free - desorption * coverage - 10 * free**2 * coverage

    coverage = np.full(len(normal), 0.9)
    step = 4 / NUM_STEPS
    for _ in range(NUM_STEPS):
        first = slope(coverage)
        second = slope(coverage + step / 2 * first)
        third = slope(coverage + step / 2 * second)
        fourth = slope(coverage + step * third)
        coverage = coverage + step / 6 * (first + 2 * second + 2 * third + fourth)
    return coverage
