"""Straggler models and delay models: base classes, inputs and results."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _validation
from jaxwgc._arrays import is_kind
from jaxwgc.stragglers._distributions import Distribution

# Number of rounded quantities, each off by at most half a machine epsilon: the finish
# time, the elapsed time, their ratio, and its product with the number of parts.
_ROUNDINGS = 4


class Arrivals(NamedTuple):
    """Responses of a round as seen by the server.

    Attributes:
      received: Workers with messages that are decoded, bool (num_workers,).
      times: When each worker finishes, float (num_workers,), in seconds for the delay
        models here; infinity without a response.
      elapsed: Duration of the round, float scalar, in the unit of times.
      joined: Workers that began with the parameters of this round, bool (num_workers,):
        at its start, or after a response to an earlier round. None if all did.
      late: Workers with a response to an earlier round that arrived in this round, bool
        (num_workers,). None if there are none.
    """

    received: jax.Array
    times: jax.Array
    elapsed: jax.Array
    joined: jax.Array | None = None
    late: jax.Array | None = None

    def finished(self, parts: Any) -> jax.Array:
        """Returns how many parts each worker had finished when the round ended.

        Workers compute their parts one by one, at constant speed. A worker has finished
        its last part if and only if it was received.

        Args:
          parts: Number of parts of each worker, int (num_workers,), e.g.
            `code.parts_per_worker`.

        Returns:
          int32 (..., num_workers).

        Raises:
          ValueError: If workers were busy with earlier rounds: workers with several
            messages stop between parts.
        """
        rule = 'be "cancelled" for a code of several messages per worker'
        _validation.require(self.joined is None, "late", rule, "busy")
        times, elapsed = map(_arrays.promoted, (self.times, self.elapsed))
        elapsed = jnp.asarray(elapsed)[..., None]
        # Fraction of the work that is done: 1 if the time is zero, 0 if it is infinite.
        share = jnp.where(times > 0, elapsed / jnp.where(times > 0, times, 1), 1)
        share = jnp.where(times < jnp.inf, jnp.clip(share, 0, 1), 0)
        # Rounding may make a finished part appear slightly unfinished.
        slack = _ROUNDINGS * max(jnp.finfo(each.dtype).eps for each in (times, elapsed))
        parts = jnp.asarray(parts)
        done = jnp.minimum(jnp.floor(parts * share * (1 + slack)), parts - 1)
        done = jnp.where(self.received, parts, jnp.maximum(done, 0))
        return done.astype(jnp.int32)


class Model(abc.ABC):
    """Base class of models that are sampled round by round, possibly with a state."""

    def init(self, num_workers: int) -> Any:
        """Returns the state before the first round, a pytree."""
        return ()

    @abc.abstractmethod
    def sample(self, key: jax.Array, state: Any, loads: jax.Array) -> tuple[Any, Any]:
        """Draws one round, and returns the round and the next state."""


class StragglerModel(Model):
    """Base class of straggler models: which workers respond in a round, and when.

    To write your own, define a frozen dataclass with `sample`, and with `init` if it
    has a state. Equal models share compiled programs.
    """

    @abc.abstractmethod
    def sample(
        self, key: jax.Array, state: Any, loads: jax.Array
    ) -> tuple[Arrivals, Any]:
        """Draws the arrivals of one round.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          loads: Load of each worker, (num_workers,), e.g. `code.loads`.

        Returns:
          The `Arrivals`, and the next state.
        """

    def warn_where_undecodable(self, code: Any, decoder: Any = None) -> None:
        """Warns if rounds are known to end before the code decodes."""

    @staticmethod
    def check(name: str, model: Any, loads: Any) -> None:
        """Raises TypeError unless a model returns rounds of the right size."""
        _validation.check_instance(name, model, StragglerModel)
        num_workers = len(loads)
        state = model.init(num_workers)
        drawn = jax.eval_shape(
            lambda *traced: model.sample(*traced, loads), jax.random.key(0), state
        )
        is_pair = isinstance(drawn, tuple) and len(drawn) == 2
        check_round(f"{name}.sample", drawn[0] if is_pair else drawn, num_workers)


class DelayModel(Model):
    """Base class of delay models, which simulate finish times.

    To write your own, define a frozen dataclass with `sample`, and with `init` if it
    has a state. Equal models share compiled programs.

    Attributes:
      shares_programs: Whether `sample` computes with the fields without branching on
        them, so that studies may compile one program for all values. False by default.
    """

    shares_programs: ClassVar[bool] = False

    @abc.abstractmethod
    def sample(
        self, key: jax.Array, state: Any, loads: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Draws the finish times (num_workers,) of a round.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          loads: Load of each worker, (num_workers,), e.g. `code.loads`.

        Returns:
          The times, and the next state.
        """

    def law(self, load: float) -> Distribution | None:
        """Returns the distribution of a worker's time at a load, or None if unknown.

        It is known only if workers are independent and identically distributed. It then
        gives the distribution of the f-th fastest worker.
        """
        return None

    def stopped(self, num_workers: int) -> dict[int, int]:
        """Returns the workers that do not respond any more at the end of a trace.

        Empty for parametric models, and if workers of the trace are drawn at random.

        Args:
          num_workers: n.

        Returns:
          For the index of each such worker, the first round without its responses.
        """
        return {}

    def stalls(self, tail: float) -> "Stalls | None":
        """Returns the `Stalls` that measured times cannot rule out.

        None for parametric models, which have a known tail.

        Args:
          tail: Length of a stall, as a multiple of the longest measured time.
        """
        return None


class Stalls(NamedTuple):
    """Stalls that are possible although a trace does not show them.

    Attributes:
      delay: Delay model of the trace, in which workers stall at random.
      probability: Probability of a stall per worker and round. A larger one would have
        shown in the measured times with probability 95% (rule of three).
      time: Length of a stall at load 1.
      num_rounds: Number of measured rounds.
    """

    delay: DelayModel
    probability: float
    time: float
    num_rounds: int


def check_round(name: str, arrivals: Any, num_workers: int) -> None:
    """Raises TypeError unless `name` returns arrivals with valid fields."""
    fields = (("received", "bools", (num_workers,)), ("elapsed", "real numbers", ()))
    for field, kind, shape in fields:
        given = getattr(arrivals, field, None)
        if np.shape(given) != shape or not is_kind(given, kind):
            rule = f"return (arrivals, state), with {field} {kind} {shape}"
            raise TypeError(f"{name} must {rule}; got {arrivals!r}")


def loads_of(loads: Any, state: jax.Array | None = None) -> jax.Array:
    """Checks loads and converts them to floats; invalid traced loads become NaN."""
    loads = _vector("loads", loads, "finite and at least 0", largest=np.inf)
    if state is not None:
        _validation.check_shape("loads", loads, "(num_workers,)", state.shape)
    return jnp.where((loads >= 0) & (loads < jnp.inf), loads, jnp.nan)


def times_of(times: Any) -> jax.Array:
    """Checks times and converts them to floats; negative traced times become NaN."""
    times = _vector("times", times, "at least 0, and infinity without a response")
    return jnp.where(times >= 0, times, jnp.nan)


def _vector(name, value, rule, largest=None):
    array = value if hasattr(value, "dtype") else np.asarray(value)
    if isinstance(array, jax.ShapeDtypeStruct):
        raise TypeError(f"{name} must be real numbers; got {array!r}")
    is_real = jnp.issubdtype(array.dtype, jnp.floating)
    if not (is_real or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be real numbers; got {array.dtype}")
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"{name} must have shape (num_workers,) and not be empty; got {array.shape}"
        )
    if not isinstance(array, jax.core.Tracer):
        values = np.asarray(array, np.float64)
        is_right = (values >= 0) & (values != largest)
        if not np.all(is_right):
            index = int(np.argmin(is_right))
            raise ValueError(
                f"{name} must be {rule}; got {name}[{index}] = {values[index]}"
            )
    return _arrays.promoted(array)
