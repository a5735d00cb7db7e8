"""What straggler models, delay models and waiting rules are, and what they give."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxwgc._dtypes import is_kind


class Arrivals(NamedTuple):
    """What the server sees of a round.

    Attributes:
      received: bool (num_workers,), whose messages it decodes.
      times: float (num_workers,), when each worker finishes, in seconds for the
        delay models here; infinity where never.
      elapsed: float scalar, how long the round took, in the unit of times.
      finished: int32 (num_workers,), the parts that each worker had finished when the
        round ended: all of them (its load, rounded up) where it was received, fewer
        where not (and 0 where it has none). None from models that do not report it.
    """

    received: jax.Array
    times: jax.Array
    elapsed: jax.Array
    finished: jax.Array | None = None


class StragglerModel(NamedTuple):
    """A pair of pure functions that simulate rounds.

    Attributes:
      init: `init(num_workers) -> state`, a pytree.
      sample: `sample(key, state, loads) -> (arrivals, state)`, with loads
        (num_workers,), the work of each worker in parts.
    """

    init: Callable[[int], Any]
    sample: Callable[[jax.Array, Any, jax.Array], tuple[Arrivals, Any]]

    @staticmethod
    def check(name: str, model: Any, loads: Any) -> None:
        """A straggler model that gives rounds of as many workers; nothing is drawn."""
        if not isinstance(model, StragglerModel):
            raise TypeError(f"{name} must be a StragglerModel; got {model!r}")
        num_workers = len(loads)
        state = model.init(num_workers)
        found = jax.eval_shape(
            lambda key: model.sample(key, state, loads), jax.random.key(0)
        )
        arrivals = found[0] if isinstance(found, tuple) and len(found) == 2 else None
        received, elapsed = (
            getattr(arrivals, field, None) for field in ("received", "elapsed")
        )
        if not (
            np.shape(received) == (num_workers,)
            and is_kind(received, "bools")
            and np.shape(elapsed) == ()
            and is_kind(elapsed, "real numbers")
        ):
            raise TypeError(
                f"{name} must be a StragglerModel, whose sample gives (arrivals, "
                f"state) with bools received ({num_workers},) and a real scalar "
                f"elapsed; got one that gives {found}: {model!r}"
            )


class Law(Protocol):
    """A law of finish times, as far as it is needed: SciPy's distributions are such."""

    def sf(self, x: Any, /) -> Any:
        """The probability of a longer time than x."""
        ...

    def isf(self, q: Any, /) -> Any:
        """The time that is exceeded with probability q."""
        ...


class DelayModel(NamedTuple):
    """A pair of pure functions that give finish times.

    Attributes:
      init: `init(num_workers) -> state`, a pytree.
      sample: `sample(key, state, loads) -> (times, state)`, with loads and times
        (num_workers,).
      law: `law(load)`, the law of a worker's time, on the host in float64. Only of
        models in which the workers of a round are independent and equal, so that it
        gives the law of the f-th fastest; None of others.
      stalls: `stalls(tail)`, the `Stalls` that a trace cannot rule out, `tail` times as
        long as its longest time. None of models that say how likely long times are.
    """

    init: Callable[[int], Any]
    sample: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]
    law: Callable[[float], Law] | None = None
    stalls: "Callable[[float], Stalls] | None" = None


class Stalls(NamedTuple):
    """What may happen though a trace does not show it.

    Attributes:
      delay: the delay model of the trace, whose workers now and then stall.
      probability: of a worker to stall in a round. What has it, or more, is seen in as
        many times as were measured with a probability of 95% (the rule of three).
      time: how long that takes at a load of one.
      num_rounds: that were measured.
    """

    delay: DelayModel
    probability: float
    time: float
    num_rounds: int


class WaitingRule(Protocol):
    """Finish times (num_workers,) to the arrivals that the server decodes.

    In a round that is under way, workers that have not answered have infinite times;
    the round is over once the `elapsed` that the rule gives has passed: see `is_over`.
    """

    def __call__(self, key: jax.Array, times: jax.Array) -> Arrivals:
        """Takes a PRNG key, for ties, and times (num_workers,)."""
        ...
