"""Drawn times of several loads."""

import jax
import numpy as np

from jaxwgc import codes, stragglers
from jaxwgc.simulation._rounds import Loads, draw_rounds


def test_loads_that_are_drawn_together_have_the_times_of_each_alone():
    replicated = [codes.replicated(4, 8, copies=copies) for copies in (1, 2)]
    all_loads = [Loads.of(code, np.float32) for code in (codes.uncoded(4), *replicated)]
    keys = jax.random.split(jax.random.key(0), (2, 3))
    delay = stragglers.affine(
        delay=stragglers.shifted_exponential(1.0, 1.0), overhead=0.5
    )
    together = draw_rounds(delay, keys, all_loads)
    for loads, drawn in zip(all_loads, together, strict=True):
        [alone] = draw_rounds(delay, keys, [loads])
        assert drawn.times.shape == (2, 3, *loads.shares.shape)
        np.testing.assert_allclose(drawn.times, alone.times, rtol=1e-6)
    whole, of_parts, _ = together
    np.testing.assert_allclose(of_parts.times[..., -1:], whole.times, rtol=1e-6)
