"""Base class of delay laws with independent times, proportional to the load."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation
from jaxwgc.stragglers._distributions import Distribution, Moved
from jaxwgc.stragglers._models import DelayModel, loads_of
from jaxwgc.stragglers._part_times import at_constant_speed

# Bounds of the numbers in fields: for the name of each field, keyword arguments of
# `array_validation.check_number`.
Rules = Mapping[str, Mapping[str, float]]
# Weight below which a time is ignored in fits.
NO_WEIGHT = 1e-9


class Sample(NamedTuple):
    """Times to which a distribution is fitted.

    Attributes:
      times: Values of the times.
      weights: Weights of the times.
      is_whole: Whether the time is complete; otherwise it is a lower bound (censored).
      kept: Fraction of the degrees of freedom that is not used up by the speeds of the
        workers, which are estimated from these times, too.
    """

    times: np.ndarray
    weights: np.ndarray
    is_whole: np.ndarray
    kept: float = 1.0

    @property
    def counts(self) -> np.ndarray:
        """Mask of the times whose weight is not negligible."""
        return self.weights > NO_WEIGHT

    @property
    def least_time(self) -> float:
        """Shortest complete time; infinity if there is none."""
        used = self.is_whole & self.counts
        return float(np.min(self.times, where=used, initial=np.inf))


@dataclasses.dataclass(frozen=True)
class IndependentDelay(DelayModel, Distribution):
    """Base class of delay laws: independent times, proportional to the load.

    An instance is a delay model, and also the distribution of the time at load 1. To
    write your own, define a frozen dataclass with `draw`, `sf` and `isf`. To fit it
    with `fit_delays`, define `logpdf` and `logsf`; `sf` then follows. All of them but
    `draw` take and return NumPy arrays, in float64.

    Attributes:
      rules: What each number in a field must be, by the name of the field, e.g.
        `{"scale": {"positive": True}, "probability": {"minimum": 0, "maximum": 1}}`.
      least_time: Name of the field that is the lower end of the distribution, if its
        estimate is the minimum time, e.g. the shift of an exponential time. None by
        default.

    Example:
      A law with a single number, fitted to times of 8 workers:

      >>> import dataclasses
      >>> import jax, numpy as np
      >>> from jaxwgc import stragglers
      >>> @dataclasses.dataclass(frozen=True)
      ... class rayleigh(stragglers.IndependentDelay):
      ...     scale: float
      ...     rules = {"scale": {"positive": True}}
      ...
      ...     def draw(self, key, shape):
      ...         return jax.random.rayleigh(key, self.scale, shape)
      ...
      ...     def logpdf(self, x):
      ...         return np.log(x / self.scale**2) + self.logsf(x)
      ...
      ...     def logsf(self, x):
      ...         return -((x / self.scale) ** 2) / 2
      ...
      ...     def isf(self, q):
      ...         return self.scale * np.sqrt(-2 * np.log(q))
      >>> times = np.random.default_rng(0).rayleigh(3.0, (200, 8))
      >>> fit = stragglers.fit_delays(times, families=[rayleigh])[0]
      >>> fit.name, round(fit.parameters["scale"], 1)
      ('rayleigh, proportional to the load', 3.0)
      >>> drawn, _ = rayleigh(3.0).sample(jax.random.key(0), (), np.ones(4))
      >>> drawn.shape
      (4,)
    """

    rules: ClassVar[Rules] = {}
    least_time: ClassVar[str | None] = None

    def __post_init__(self):
        array_validation.check_fields(self, **self.rules)

    @abc.abstractmethod
    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws times at load 1."""

    def sample(self, key, state, loads):
        """Draws the finish times of a round; returns also the unchanged state."""
        loads = loads_of(loads)
        times = self.draw(key, loads.shape)
        # Zero load takes no time, even for a lost worker (infinite time at load 1).
        return jnp.where(loads == 0, 0, loads * times), state

    def part_times(self, key, state, loads, shares):
        """Draws finish times of parts at constant speed; returns also the state."""
        times, state = self.sample(key, state, loads)
        return at_constant_speed(times, jnp.asarray(shares, times.dtype)), state

    def law(self, load: float) -> Distribution:
        """Returns the distribution of the time at a load."""
        return Moved(self, shift=0.0, scale=load)

    def logsf(self, x: float | np.ndarray) -> np.ndarray:
        """Returns the log-probability of a time above x."""
        raise NotImplementedError(
            f"{type(self).__name__} must define logsf; got {self!r} without it"
        )

    def sf(self, x: float | np.ndarray) -> np.ndarray:
        """Returns the probability of a time above x."""
        return np.exp(self.logsf(np.asarray(x)))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Returns the names of the fields, which `fit_delays` estimates."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def estimate(cls, sample: Sample) -> tuple[float, ...] | None:
        """Returns maximum-likelihood estimates of the fields, None if not closed-form.

        By default None: `fit_delays` searches with `logpdf` and `logsf`. A subclass may
        use a closed form.

        Args:
          sample: Times, weights, and which times are complete.
        """
        return None
