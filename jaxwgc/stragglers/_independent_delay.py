"""Independent times in proportion to the load."""

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
    """A family of delay models: each is also the distribution of the time at load 1.

    A new one is a frozen dataclass with `draw` and `isf`, and with `logsf`, `logpdf`
    and `estimate` where `fit_delays` is to try it (or only `sf` where not).

    Attributes:
      has_least_time: whether the first field is the end of the distribution, which the
        likelihood takes to the least time and is not smooth in.
    """

    has_least_time: ClassVar[bool] = False
    # Bounds of the fields, as in `_validation.check_number`.
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
        # No work takes no time, of a dead worker too.
        return jnp.where(loads == 0, 0, loads * times), state

    def law(self, load: float) -> Distribution:
        """Returns the distribution of the time of a load."""
        return Moved(self, 0.0, load)

    def logsf(self, x: Any) -> Any:
        """Returns the logarithm of the probability of a longer time than x."""
        raise NotImplementedError(f"logsf is not defined by {self!r}")

    def sf(self, x: Any) -> Any:
        """Returns the probability of a longer time than x."""
        return np.exp(self.logsf(np.asarray(x)))


def log_times(times: Any) -> np.ndarray:
    """Returns their logarithms, finite where they are zero or less."""
    return np.log(np.maximum(times, 1e-300))


def exponential_time(q: Any) -> np.ndarray:
    """Returns the standard exponential time that is exceeded with probability q."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(q)
