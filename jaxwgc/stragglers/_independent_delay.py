"""Independent times proportional to the load."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.stragglers._distributions import Distribution, Moved
from jaxwgc.stragglers._inputs import loads_of
from jaxwgc.stragglers._types import DelayModel


@dataclasses.dataclass(frozen=True)
class IndependentDelay(DelayModel, Distribution):
    """Family of delay models that are also the distribution of the time at load 1.

    To add one, write a frozen dataclass with `draw` and `isf`. For use in `fit_delays`,
    also define `logsf`, `logpdf` and `estimate`, otherwise `sf`.

    Attributes:
      has_least_time: Whether the first field is the lower end of the distribution. The
        likelihood estimates it by the minimum time, and is not smooth in it.
    """

    has_least_time: ClassVar[bool] = False
    # Bounds of the fields: keyword arguments of `_validation.check_number`.
    _rules: ClassVar[Any] = {}

    def __post_init__(self):
        _validation.check_fields(self, **self._rules)

    @abc.abstractmethod
    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws times at load 1."""

    def sample(self, key, state, loads):
        """Draws the times of a round, (num_workers,)."""
        loads = loads_of(loads)
        times = self.draw(key, loads.shape)
        # Zero load takes no time, for lost workers, too.
        return jnp.where(loads == 0, 0, loads * times), state

    def law(self, load: float) -> Distribution:
        """Returns the distribution of the time at a load."""
        return Moved(self, 0.0, load)

    def logsf(self, x: Any) -> Any:
        """Returns the log-probability of a time above x."""
        raise NotImplementedError(f"logsf is not defined by {self!r}")

    def sf(self, x: Any) -> Any:
        """Returns the probability of a time above x."""
        return np.exp(self.logsf(np.asarray(x)))


def log_times(times: Any) -> np.ndarray:
    """Returns logarithms, finite for times that are zero or negative."""
    return np.log(np.maximum(times, 1e-300))


def exponential_time(q: Any) -> np.ndarray:
    """Returns the standard exponential time that is exceeded with probability q."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(q)
