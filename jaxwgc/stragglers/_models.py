"""Straggler models and delay models: base classes, inputs and results."""

import abc
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common import arrays, validation
from jaxwgc._common.arrays import Array, is_kind
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.stragglers._distributions import Distribution
from jaxwgc.stragglers._part_times import finished_parts


class Arrivals(NamedTuple):
    """Responses of a round: which workers have responded, and when.

    Attributes:
      received: Workers with messages that are decoded, bool (num_workers,).
      times: When each worker finishes, float (num_workers,), in seconds for the delay
        models here; infinity without a response.
      elapsed: Duration of the round, float scalar, in the unit of times.
      joined: Workers that began with the parameters of this round, bool (num_workers,):
        at its start, or after a response to an earlier round. None if all did.
      late: Workers with a response to an earlier round that arrived in this round, bool
        (num_workers,). None if there are none.
      part_times: When each worker has finished its first, second, ... part,
        (num_workers, parts), never decreasing; from then on its finish time. None if
        workers take equal times for their parts.

    Example:
      Worker 1 has finished 4 of its 5 parts when the round ends after 2 seconds:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> wait = jaxwgc.stragglers.deadline(2.0)
      >>> arrivals = wait.arrivals(jax.random.key(0), jnp.array([1.0, 2.5, 1.5]))
      >>> arrivals.received, float(arrivals.elapsed)
      (Array([ True, False,  True], dtype=bool), 2.0)
      >>> arrivals.finished(parts=jnp.array([5, 5, 5]))
      Array([5, 4, 5], dtype=int32)
    """

    received: jax.Array
    times: jax.Array
    elapsed: jax.Array
    joined: jax.Array | None = None
    late: jax.Array | None = None
    part_times: jax.Array | None = None

    def finished(self, parts: ArrayLike) -> jax.Array:
        """Returns how many parts each worker had finished when the round ended.

        Workers compute their parts one by one. A worker has finished its last part if
        and only if it was received.

        Args:
          parts: Number of parts of each worker, int (num_workers,), e.g.
            `code.parts_per_worker`.

        Returns:
          int32 (..., num_workers).

        Raises:
          ValueError: If workers were busy with earlier rounds: workers with several
            messages stop between parts. If the round was drawn without times of parts,
            by a delay model whose times are not in proportion to the load.
        """
        if self.joined is not None:
            raise ValueError(
                'late must be "cancelled" for a code of several messages per worker; '
                "got busy"
            )
        times = arrays.promoted(self.times)
        elapsed = jnp.asarray(arrays.promoted(self.elapsed))[..., None]
        finished = finished_parts(times, self.part_times, elapsed, parts)
        parts = jnp.asarray(parts)
        unfinished = jnp.clip(finished, 0, jnp.maximum(parts - 1, 0))
        return jnp.where(self.received, parts, unfinished).astype(jnp.int32)


class Model(abc.ABC):
    """Base class of straggler and delay models, which draw one round after another."""

    def init(self, num_workers: int) -> Any:
        """Returns the state before the first round."""
        return ()

    @abc.abstractmethod
    def sample(self, key: jax.Array, state: Any, loads: jax.Array) -> tuple[Any, Any]:
        """Draws one round, and returns the round and the next state."""


class StragglerModel(Model):
    """Base class of straggler models: which workers respond in a round, and when.

    To write your own, define a frozen dataclass with `sample`, and with `init` if it
    has a state. Equal models share compiled programs.

    Example:
      A model in which worker 0 never responds:

      >>> import dataclasses
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import stragglers
      >>> @dataclasses.dataclass(frozen=True)
      ... class first_is_lost(stragglers.StragglerModel):
      ...     def sample(self, key, state, loads):
      ...         times = jnp.ones(len(loads)).at[0].set(jnp.inf)
      ...         received = jnp.isfinite(times)
      ...         arrivals = stragglers.Arrivals(received, times, elapsed=jnp.ones(()))
      ...         return arrivals, state
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> aggregate = jaxwgc.coded_aggregate(code, first_is_lost(), jax.random.key(0))
      >>> state = aggregate.init(jnp.zeros(2))
      >>> gradient, state = aggregate.update(jnp.ones((4, 2)), state)
      >>> state.received
      Array([False,  True,  True,  True], dtype=bool)
    """

    @abc.abstractmethod
    def sample(
        self, key: jax.Array, state: Any, loads: jax.Array
    ) -> tuple[Arrivals, Any]:
        """Draws the arrivals of one round, and the next state.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          loads: Load of each worker, (num_workers,), e.g. `code.loads`.

        Returns:
          The `Arrivals`, and the next state.
        """

    def sample_parts(
        self, key: jax.Array, state: Any, loads: jax.Array, shares: Array
    ) -> tuple[Arrivals, Any]:
        """Draws arrivals for a code with several messages per worker, and a state.

        By default, these are the arrivals of `sample`: without `part_times`, workers
        take equal times for their parts.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          loads: Load of each worker, (num_workers,), e.g. `code.loads`.
          shares: Share of the load after each part, (num_workers, parts), e.g.
            `code.part_shares`.

        Returns:
          The `Arrivals`, and the next state.
        """
        del shares
        return self.sample(key, state, loads)

    def warn_where_undecodable(
        self, code: GradientCode, decoder: DecoderLike = None
    ) -> None:
        """Warns if rounds are known to end before the code decodes.

        By default, there is no warning.
        """

    @staticmethod
    def check(name: str, model: Any, loads: jax.Array | np.ndarray) -> None:
        """Raises TypeError unless a model draws rounds with one bool per worker."""
        validation.check_instance(name, model, StragglerModel)
        num_workers = len(loads)
        state = model.init(num_workers)

        def sample(key, state):
            return model.sample(key, state, loads)

        sampled = jax.eval_shape(sample, jax.random.key(0), state)
        is_pair = isinstance(sampled, tuple) and len(sampled) == 2
        arrivals = sampled[0] if is_pair else sampled
        check_round(f"{name}.sample", arrivals, num_workers)


class DelayModel(Model):
    """Base class of delay models, which simulate finish times.

    To write your own, define a frozen dataclass with `sample`, and with `init` if it
    has a state. Studies compile a program for each object.

    Example:
      Seconds between half of a longest time and the whole of it, in proportion to the
      load:

      >>> import dataclasses
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import stragglers
      >>> @dataclasses.dataclass(frozen=True)
      ... class uniform_times(stragglers.DelayModel):
      ...     longest: float
      ...
      ...     def sample(self, key, state, loads):
      ...         share = jax.random.uniform(key, loads.shape, minval=0.5, maxval=1.0)
      ...         return self.longest * loads * share, state
      >>> delay = uniform_times(longest=4.0)
      >>> times, _ = delay.sample(jax.random.key(0), delay.init(3), jnp.ones(3))
      >>> bool(jnp.all((times >= 2) & (times <= 4)))
      True
    """

    @abc.abstractmethod
    def sample(
        self, key: jax.Array, state: Any, loads: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Draws the finish times of a round, and the next state.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          loads: Load of each worker, (num_workers,), e.g. `code.loads`.

        Returns:
          The times, and the next state.
        """

    def part_times(
        self, key: jax.Array, state: Any, loads: jax.Array, shares: Array
    ) -> tuple[jax.Array, Any]:
        """Draws the times at which workers finish their parts, and the next state.

        By default, `sample` draws the times at the loads of the parts with the same
        key. This is right if times with the same key never decrease with the load.

        Args:
          key: PRNG key of either kind.
          state: State from `init` or the previous round.
          loads: Load of each worker, (num_workers,), e.g. `code.loads`.
          shares: Share of the load after each part, (num_workers, parts), increasing
            to 1, e.g. `code.part_shares`.

        Returns:
          Times (num_workers, parts) that never decrease from part to part. The last is
          the time that `sample` draws with the same key. And the next state.
        """
        _, next_state = self.sample(key, state, loads)

        def at_share(share):
            times, _ = self.sample(key, state, loads * share)
            return times

        times = jax.vmap(at_share, in_axes=1, out_axes=1)(jnp.asarray(shares))
        return times, next_state

    def law(self, load: float) -> Distribution | None:
        """Returns the distribution of a worker's time at a load, or None if unknown.

        It is known only if workers are independent and identically distributed. Its
        methods `sf`, `isf` and `logpdf` are as in SciPy, `fastest_mean` and
        `fastest_quantile` are for the f-th fastest worker.
        """
        return None

    def measured_loads(self) -> tuple[float, ...]:
        """Returns the loads at which finish times were measured, in increasing order.

        With one load, times are taken to be proportional to the load. Empty for
        parametric models, and for measured times of parts.
        """
        return ()

    def stopped(self, num_workers: int) -> dict[int, int]:
        """Maps workers that stopped responding to the first round without response.

        Empty for parametric models, and if workers of the trace are drawn at random.

        Args:
          num_workers: Number of workers, n.

        Returns:
          For the index of each such worker, the first round without its responses.
        """
        return {}

    def stalls(self, tail: float) -> "Stalls | None":
        """Returns rare stalls that the measured times do not rule out.

        None for parametric models, which have a known tail.

        Args:
          tail: Length of a stall, as a multiple of the longest measured time.

        Returns:
          A NamedTuple. Its `delay` is the delay model of the trace, in which workers
          stall at random, with a `probability` per worker and round. A larger one would
          have shown in the measured times with probability 95% (rule of three). Its
          `time` is the length of a stall at load 1, and `num_rounds` the number of
          measured rounds.
        """
        return None


class DelayOfParts(DelayModel):
    """Base class of delay models whose `sample` follows from `part_times`."""

    def sample(self, key, state, loads):
        """Draws the finish times of a round, and the next state."""
        one_part = np.ones((len(loads_of(loads)), 1))
        times, state = self.part_times(key, state, loads, one_part)
        return times[:, 0], state

    @abc.abstractmethod
    def part_times(
        self, key: jax.Array, state: Any, loads: jax.Array, shares: Array
    ) -> tuple[jax.Array, Any]:
        """Draws the times at which workers finish their parts, and the next state."""


class Stalls(NamedTuple):
    """Delay model with stalls that a trace does not rule out: `DelayModel.stalls`."""

    delay: DelayModel
    probability: float
    time: float
    num_rounds: int


def check_round(name: str, arrivals: Any, num_workers: int) -> None:
    """Raises TypeError unless `received` and `elapsed` of arrivals are valid."""
    received = getattr(arrivals, "received", None)
    if np.shape(received) != (num_workers,) or not is_kind(received, "bools"):
        raise TypeError(
            f"{name} must return (arrivals, state) with arrivals.received of dtype "
            f"bool and shape (num_workers,) = ({num_workers},); got {arrivals!r}"
        )
    elapsed = getattr(arrivals, "elapsed", None)
    if np.shape(elapsed) != () or not is_kind(elapsed, "real numbers"):
        raise TypeError(
            f"{name} must return (arrivals, state) with a real number as "
            f"arrivals.elapsed; got {arrivals!r}"
        )


def loads_of(loads: ArrayLike, state: jax.Array | None = None) -> jax.Array:
    """Converts loads to floats; raises ValueError if a load is negative or infinite.

    Invalid traced loads become NaN.
    """
    vector = _vector("loads", loads, "finite and at least 0", is_finite=True)
    if state is not None:
        validation.check_shape("loads", vector, "(num_workers,)", state.shape)
    return jnp.where((vector >= 0) & (vector < jnp.inf), vector, jnp.nan)


def times_of(times: ArrayLike) -> jax.Array:
    """Converts times to floats; raises ValueError if a time is negative.

    Negative traced times become NaN.
    """
    vector = _vector("times", times, "at least 0, and infinity without a response")
    return jnp.where(vector >= 0, vector, jnp.nan)


def _vector(
    name: str, value: Any, requirement: str, is_finite: bool = False
) -> jax.Array:
    """Converts a vector to floats; raises ValueError if an entry is negative.

    With `is_finite`, infinite entries raise ValueError, too.
    """
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
        is_valid = values >= 0
        if is_finite:
            is_valid &= np.isfinite(values)
        if not np.all(is_valid):
            index = int(np.argmin(is_valid))
            raise ValueError(
                f"{name} must be {requirement}; got {name}[{index}] = {values[index]}"
            )
    return arrays.promoted(array)
