"""Precision of messages on real processes."""

import jax
import numpy as np
import pytest

from jaxwgc import codes
from jaxwgc.distributed import RayCluster, Timeouts
from tests.distributed.ray_tasks import squares

pytestmark = pytest.mark.usefixtures("one_ray")

PARTS = np.random.default_rng(0).normal(size=(1, 5))
PARAMS = np.random.default_rng(1).normal(size=5)
# No worker is lost because the machine is busy.
PATIENT = Timeouts(response=60.0, replacement=300.0)


def test_workers_compute_in_64_bit_mode_if_the_coordinator_does(with_x64):
    with RayCluster(squares, codes.uncoded(1), PARTS, timeouts=PATIENT) as cluster:
        this_round = cluster.compute(PARAMS)
    expected = 2 * (PARAMS - PARTS[0])
    assert this_round.messages.dtype == np.float64
    np.testing.assert_allclose(this_round.messages[0], expected, rtol=1e-14)
    assert jax.config.jax_enable_x64
