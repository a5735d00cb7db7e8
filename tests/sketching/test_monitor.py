"""The monitor of iterations that all solvers share."""

import jax
import jax.numpy as jnp

from jaxwgc.sketching._linalg.monitor import Monitor


def test_systems_converge_stagnate_and_run_out_of_iterations_one_by_one():
    monitor = Monitor.init(
        jnp.array([8.0, 8.0, 8.0, jnp.nan, 0.0]), 2, jnp.arange(5) == 4
    )
    assert monitor.is_running(2).tolist() == [True, True, True, False, False]

    @jax.jit
    def update(monitor, value, may_stop):
        return monitor.update(
            value,
            may_stop & (value <= 1),
            has_stagnated=value == 5,
        )

    value = jnp.array([0.5, 5.0, 4.0, jnp.inf, 0.0])
    untrusted = update(monitor, value, False)
    assert not untrusted.has_converged.any()
    monitor = update(monitor, value, True)
    assert monitor.has_converged.tolist() == [True, False, False, False, True]
    assert monitor.has_stagnated.tolist() == [False, True, False, True, False]
    assert monitor.is_running(2).tolist() == [False, False, True, False, False]
    assert not monitor.is_running(1).any()
    monitor = update(monitor, value / 2, True)
    assert monitor.history[:, 2].tolist() == [8.0, 4.0, 2.0]
    assert monitor.iteration.tolist() == [2] * 5


def test_a_monitor_without_history_still_counts():
    monitor = Monitor.init(jnp.array(1.0))
    monitor = monitor.update(jnp.array(0.5), jnp.array(False))
    assert monitor.history.shape == (0,)
    assert monitor.is_running(2) and not monitor.is_running(1)
