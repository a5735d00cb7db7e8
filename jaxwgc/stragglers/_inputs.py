"""Checks the arguments of models and waiting rules, and makes them arrays of floats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _validation


def loads_of(loads: Any, state: jax.Array | None = None) -> jax.Array:
    """Loads in at least float32, as many as `state` has; NaN where none is possible."""
    loads = _vector("loads", loads, "finite and at least 0", largest=np.inf)
    if state is not None:
        _validation.check_shape("loads", loads, "(num_workers,)", state.shape)
    return jnp.where((loads >= 0) & (loads < jnp.inf), loads, jnp.nan)


def times_of(times: Any, name: str = "times") -> jax.Array:
    """Times in at least float32; NaN in the place of traced ones below 0."""
    times = _vector(name, times, "at least 0, and infinity where never")
    return jnp.where(times >= 0, times, jnp.nan)


def _vector(name, value, rule, largest=None):
    array = _validation.as_array(name, value, "real numbers", num_workers="any")
    if not _validation.is_traced(array):
        values = np.asarray(array, np.float64)
        is_right = (values >= 0) & (values != largest)
        _validation.check_entries(name, values, is_right, rule)
    return _arrays.promoted(array)
