"""The types of straggler models and delay models, and of what they return."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _validation
from jaxwgc._arrays import is_kind
from jaxwgc.stragglers._distributions import Distribution

# Finish times, the time that has passed, their ratio and its product with the parts are
# rounded once or twice each, by half an eps.
_ROUNDINGS = 4


class Arrivals(NamedTuple):
    """The server's view of a round.

    Attributes:
      received: bool (num_workers,), whose messages it decodes.
      times: float (num_workers,), when each worker finishes, in seconds for the
        delay models here; infinity where never.
      elapsed: float scalar, how long the round took, in the unit of times.
      joined: bool (num_workers,), who began with the parameters of this round: at its
        start, or after an answer to an earlier one. None where everybody did.
      late: bool (num_workers,), whose answer to an earlier round came in this one. None
        where nobody's did.
    """

    received: jax.Array
    times: jax.Array
    elapsed: jax.Array
    joined: jax.Array | None = None
    late: jax.Array | None = None

    def finished(self, parts: Any) -> jax.Array:
        """Returns how many parts each worker had finished when the round ended.

        Workers go through their parts one by one, at constant speed. A worker has
        finished its last part if and only if it was received.

        Args:
          parts: int (num_workers,), the parts of each worker, such as
            `code.parts_per_worker`.

        Returns:
          int32 (..., num_workers).

        Raises:
          ValueError: If workers of earlier rounds were busy, since workers with several
            messages stop between two parts.
        """
        rule = 'be "cancelled" for a code of several messages per worker'
        _validation.require(self.joined is None, "late", rule, "busy")
        times, elapsed = map(_arrays.promoted, (self.times, self.elapsed))
        elapsed = jnp.asarray(elapsed)[..., None]
        # The share of the work that is done; none in no time where it takes forever.
        share = jnp.where(times > 0, elapsed / jnp.where(times > 0, times, 1), 1)
        share = jnp.where(times < jnp.inf, jnp.clip(share, 0, 1), 0)
        # Rounding may have left a little less than a part that is just finished.
        slack = _ROUNDINGS * max(jnp.finfo(each.dtype).eps for each in (times, elapsed))
        parts = jnp.asarray(parts)
        done = jnp.minimum(jnp.floor(parts * share * (1 + slack)), parts - 1)
        done = jnp.where(self.received, parts, jnp.maximum(done, 0))
        return done.astype(jnp.int32)


class Model(abc.ABC):
    """A model that is drawn round after round, from a state if it has one."""

    def init(self, num_workers: int) -> Any:
        """Returns the state before the first round, a pytree."""
        return ()

    @abc.abstractmethod
    def sample(self, key: jax.Array, state: Any, loads: jax.Array) -> tuple[Any, Any]:
        """Draws what a round has; returns it and the state after the round."""


class StragglerModel(Model):
    """Simulated rounds: who answers, and when.

    A model of one's own is a frozen dataclass of this class with a `sample`, and with
    an `init` where it has a state. Equal models share what is compiled.
    """

    @abc.abstractmethod
    def sample(
        self, key: jax.Array, state: Any, loads: jax.Array
    ) -> tuple[Arrivals, Any]:
        """Draws a round.

        Args:
          key: PRNG key of either kind.
          state: of `init`, or of the round before.
          loads: (num_workers,), the work of each worker, such as `code.loads`.

        Returns:
          The `Arrivals`, and the state after the round.
        """

    def warn_where_undecodable(self, code: Any, decoder: Any = None) -> None:
        """Warns where rounds end before the code decodes, as far as that is known."""

    @staticmethod
    def check(name: str, model: Any, loads: Any) -> None:
        """Raises TypeError unless a model gives rounds of as many workers."""
        _validation.check_instance(name, model, StragglerModel)
        num_workers = len(loads)
        state = model.init(num_workers)
        drawn = jax.eval_shape(
            lambda *traced: model.sample(*traced, loads), jax.random.key(0), state
        )
        is_pair = isinstance(drawn, tuple) and len(drawn) == 2
        check_round(f"{name}.sample", drawn[0] if is_pair else drawn, num_workers)


class DelayModel(Model):
    """Simulated finish times.

    A model of one's own is a frozen dataclass of this class with a `sample`, and with
    an `init` where it has a state. Equal models share what is compiled.
    """

    @abc.abstractmethod
    def sample(
        self, key: jax.Array, state: Any, loads: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Draws the times (num_workers,) of a round.

        Args:
          key: PRNG key of either kind.
          state: of `init`, or of the round before.
          loads: (num_workers,), the work of each worker, such as `code.loads`.

        Returns:
          The times, and the state after the round.
        """

    def law(self, load: float) -> Distribution | None:
        """Returns the distribution of a worker's time, if it has one.

        Only workers of a round that are independent and equal have: it then gives that
        of the f-th fastest.
        """
        return None

    def stalls(self, tail: float) -> "Stalls | None":
        """Returns the `Stalls` that measured times cannot rule out.

        None of models that say how likely long times are.

        Args:
          tail: how long a stall takes, over the longest time that was measured.
        """
        return None


class Stalls(NamedTuple):
    """Stalls that may happen though a trace does not show them.

    Attributes:
      delay: the delay model of the trace, whose workers now and then stall.
      probability: of a worker to stall in a round. What has it, or more, is seen in as
        many times as were measured with a probability of 95% (the rule of three).
      time: how long that takes at load 1.
      num_rounds: that were measured.
    """

    delay: DelayModel
    probability: float
    time: float
    num_rounds: int


def check_round(name: str, arrivals: Any, num_workers: int) -> None:
    """Raises TypeError unless `name` gives arrivals with the fields of a round."""
    fields = (("received", "bools", (num_workers,)), ("elapsed", "real numbers", ()))
    for field, kind, shape in fields:
        given = getattr(arrivals, field, None)
        if np.shape(given) != shape or not is_kind(given, kind):
            rule = f"give (arrivals, state), with {field} {kind} {shape}"
            raise TypeError(f"{name} must {rule}; got {arrivals!r}")
