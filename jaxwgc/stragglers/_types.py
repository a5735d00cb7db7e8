"""What straggler models, delay models and waiting rules are, and what they give."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._dtypes import is_kind
from jaxwgc._validation import is_traced
from jaxwgc.stragglers._inputs import made_of_jax


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
      wait: the waiting rule in it, if there is one.
    """

    init: Callable[[int], Any]
    sample: Callable[[jax.Array, Any, jax.Array], tuple[Arrivals, Any]]
    wait: "WaitingRule | None" = None

    @staticmethod
    def check(name: str, model: Any, loads: Any) -> None:
        """A straggler model that gives rounds of as many workers; nothing is drawn."""
        if not isinstance(model, StragglerModel):
            raise TypeError(f"{name} must be a StragglerModel; got {model!r}")
        num_workers = len(loads)
        state = model.init(num_workers)
        with made_of_jax(name):
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

    def warn_where_undecodable(self, code: Any, decoder: Any = None) -> None:
        """Warns where the waiting rule ends rounds before the code decodes.

        Rules that wait for fewer workers than are always enough, or for another code,
        are tried on random orders of arrival.
        """
        wait = self.wait
        if wait is None or is_traced(code, wait) or code.messages_per_worker > 1:
            return
        num_workers = code.num_workers
        enough = num_workers - code.num_stragglers
        few = getattr(wait, "num_required", enough)
        other = getattr(wait, "code", code)
        # Approximate codes do not say how many answers are enough; those with one
        # assignment differ by the weights of their parts.
        if few < enough and code.num_stragglers:
            rule = f"for the {few} fastest of {num_workers} workers"
        elif not np.array_equal(other.assignment, code.assignment):
            rule = f"until another code decodes, {other}"
        else:
            return
        times = np.tile(np.arange(num_workers, dtype=np.float32), (_NUM_ORDERS, 1))
        times = np.random.default_rng(0).permuted(times, axis=1)
        # The model may be made while something else is traced.
        with jax.ensure_compile_time_eval():
            keys = jax.random.split(jax.random.key(0), _NUM_ORDERS)
            received = jax.vmap(wait)(keys, jnp.asarray(times)).received
            num_decoded = int(code.decodes(received, 1e-3, decoder).sum())
        if num_decoded > _NUM_ORDERS / 10:
            return
        warnings.warn(
            f"model waits {rule}; code then decodes in {num_decoded} of {_NUM_ORDERS} "
            "random orders of arrival: other rounds give an approximate gradient, and "
            f"count in num_undecodable. Any {enough} answers are enough: take "
            f"stragglers.fastest({enough}), or stragglers.until_decodable of this code",
            stacklevel=3,
        )


# On which a rule is tried that looks as if it could not decode.
_NUM_ORDERS = 64


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
