"""Straggler models with times from a delay model, or with rounds of one time unit."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import Array
from jaxwgc._common.tolerances import DECODES
from jaxwgc.codes import GradientCode
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.stragglers import _models
from jaxwgc.stragglers._independent_delay import IndependentDelay
from jaxwgc.stragglers._models import Arrivals, DelayModel, StragglerModel, loads_of
from jaxwgc.stragglers._selection import random_workers
from jaxwgc.stragglers._waiting_rules import WaitingRule, fastest

# Number of random orders of arrival on which a waiting rule is tested for a warning.
_NUM_ORDERS = 64


@dataclasses.dataclass(frozen=True)
class delayed(StragglerModel):
    """Straggler model that combines a delay model and a waiting rule.

    The delay model draws times, and the waiting rule ends rounds.

    Args:
      delay: Delay model, e.g. `shifted_exponential`, `pareto` or `bernoulli_slowdown`.
      wait: Waiting rule, e.g. `fastest`, `deadline` or `until_decodable`.
      late: What workers do that have not responded when a round ends. `"cancelled"`
        workers stop, and all begin each round together: for clusters that tell workers
        to stop, or that request finished parts. `"busy"` workers continue, respond
        late, and join the round in which they respond: for clusters that cannot
        interrupt workers, e.g. `jaxwgc.distributed.RayCluster` with one message per
        worker. A worker that would never finish is replaced, and joins the next round.

    Raises:
      ValueError: If late is neither of the two, or `"busy"` with a rule for a code with
        several messages per worker.
      TypeError: If delay is not a delay model or wait not a waiting rule, or (in
        `sample`) one of them returns invalid results.

    Example:
      >>> import jax, jaxwgc
      >>> from jaxwgc import stragglers
      >>> model = stragglers.delayed(
      ...     stragglers.shifted_exponential(shift=1.0, rate=2.0), stragglers.fastest(3)
      ... )
      >>> loads = jax.numpy.ones(5)
      >>> arrivals, _ = jax.jit(model.sample)(jax.random.key(0), model.init(5), loads)
      >>> int(arrivals.received.sum()), bool(arrivals.elapsed > 1.0)
      (3, True)

    References:
      Lee, Lam, Pedarsani, Papailiopoulos, Ramchandran, "Speeding up distributed
      machine learning using codes", 2018.
    """

    delay: DelayModel
    wait: WaitingRule
    late: str = "cancelled"

    def __post_init__(self):
        validation.check_choice("late", self.late, ("cancelled", "busy"))
        validation.check_instance("delay", self.delay, DelayModel)
        validation.check_instance("wait", self.wait, WaitingRule)
        code = self.wait.code
        if self.late == "busy" and code is not None and code.messages_per_worker > 1:
            raise ValueError(
                'late must be "cancelled" for a code of several messages per worker; '
                f"got {self.late}"
            )

    def init(self, num_workers):
        """Returns the state of `delay`.

        If late workers are busy, returns also the remaining time of each worker.
        """
        delay_state = self.delay.init(num_workers)
        if self.late == "cancelled":
            return delay_state
        return delay_state, jnp.zeros(num_workers, jnp.result_type(float))

    def sample(self, key, state, loads):
        """Draws finish times; returns the arrivals by the waiting rule, and a state."""
        loads = loads_of(loads)
        code = self.wait.code
        # The waiting rule of a code with several messages per worker needs the times of
        # parts.
        shares = np.ones((len(loads), 1)) if code is None else code.part_shares
        return self.sample_parts(key, state, loads, shares)

    def sample_parts(self, key, state, loads, shares):
        """Draws times of parts; returns arrivals by the waiting rule, and a state."""
        delay_key, wait_key = jax.random.split(key)
        loads = loads_of(loads)
        is_busy = self.late == "busy"
        if is_busy:
            delay_state, remaining = state
        else:
            delay_state = state
            remaining = 0
        times, part_times, delay_state = self._draw(
            delay_key, delay_state, loads, shares
        )
        code = self.wait.code
        if code is not None and code.messages_per_worker > 1:
            arrivals = self.wait.arrivals(wait_key, times, part_times)
        else:
            arrivals = self.wait.arrivals(wait_key, remaining + times)
        rule_name = type(self.wait).__name__
        _models.check_round(f"{rule_name}.arrivals", arrivals, len(loads))
        if not is_busy:
            return arrivals._replace(part_times=part_times), delay_state
        joined = remaining <= arrivals.elapsed
        arrivals = arrivals._replace(joined=joined, late=joined & (remaining > 0))
        response_times = jnp.where(joined, remaining + times, remaining)
        remaining = response_times - arrivals.elapsed
        # A worker that would never finish is replaced by a free worker.
        is_free = arrivals.received | ~jnp.isfinite(remaining)
        remaining = jnp.where(is_free, 0, remaining).astype(jnp.result_type(float))
        return arrivals, (delay_state, remaining)

    def _draw(
        self, key: jax.Array, state: Any, loads: jax.Array, shares: Array
    ) -> tuple[jax.Array, jax.Array | None, Any]:
        """Draws finish times, the times of parts, and the next state of the delays."""
        delay_name = type(self.delay).__name__
        if shares.shape[1] > 1:
            part_times, state = self.delay.part_times(key, state, loads, shares)
            validation.check_shape(
                f"part_times of {delay_name}",
                part_times,
                "(num_workers, parts)",
                shares.shape,
            )
            return part_times[:, -1], part_times, state
        times, state = self.delay.sample(key, state, loads)
        validation.check_shape(
            f"times of {delay_name}", times, "(num_workers,)", loads.shape
        )
        if isinstance(self.delay, IndependentDelay):
            # Times are proportional to the load, so times of parts follow from them.
            return times, None, state
        return times, times[:, None], state

    def warn_where_undecodable(
        self, code: GradientCode, decoder: DecoderLike = None
    ) -> None:
        """Warns if the waiting rule ends rounds before the code decodes.

        Rules that wait for too few workers, or for another code, are tested on random
        orders of arrival.
        """
        wait = self.wait
        num_workers = code.num_workers
        if array_validation.is_traced(code, wait) or code.messages_per_worker > 1:
            return
        num_stragglers = int(np.asarray(code.num_stragglers))
        num_enough = num_workers - num_stragglers
        if wait.code is not None:
            # Codes with equal assignments decode after equal responses, even if the
            # weights of their parts differ.
            is_early = not np.array_equal(wait.code.assignment, code.assignment)
        elif isinstance(wait, fastest) and num_stragglers > 0:
            is_early = wait.num_required < num_enough
        else:
            # For an approximate code, no number of responses is always enough.
            is_early = False
        if not is_early:
            return
        in_order = np.arange(num_workers, dtype=np.float32)
        orders = np.tile(in_order, (_NUM_ORDERS, 1))
        times = np.random.default_rng(0).permuted(orders, axis=1)
        # The test needs concrete values, even if it runs while a function is traced.
        with jax.core.eval_context():
            keys = jax.random.split(jax.random.key(0), _NUM_ORDERS)
            received = jax.vmap(wait.arrivals)(keys, jnp.asarray(times)).received
            num_decoded = int(code.decodes(received, DECODES, decoder).sum())
        if num_decoded <= _NUM_ORDERS / 10:
            warnings.warn(
                f"with model.wait = {wait}, code decodes in {num_decoded} of "
                f"{_NUM_ORDERS} random orders of arrival; other rounds count in "
                f"num_undecodable. Any {num_enough} responses are enough: use "
                f"stragglers.fastest({num_enough}), or until_decodable of this code",
                stacklevel=3,
            )


@dataclasses.dataclass(frozen=True)
class uniform(StragglerModel):
    """Straggler model with a fixed number of random stragglers per round.

    Exactly s random workers do not respond. Rounds take one time unit. Times are 1
    for workers that respond and infinity for the others, which have finished no
    parts.

    Args:
      num_stragglers: s, at least 0 and less than the number of workers.

    Raises:
      ValueError: If s is negative, or (in `sample`) not less than the number of
        workers.
      TypeError: If s is not an int.

    Example:
      >>> import jax, jaxwgc
      >>> model = jaxwgc.stragglers.uniform(2)
      >>> state = model.init(5)
      >>> arrivals, state = model.sample(jax.random.key(0), state, jax.numpy.ones(5))
      >>> int(arrivals.received.sum()), float(arrivals.elapsed)
      (3, 1.0)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.1 (any s workers may fail).
    """

    num_stragglers: int

    def __post_init__(self):
        validation.check_int("num_stragglers", self.num_stragglers, minimum=0)

    def sample(self, key, state, loads):
        """Draws the arrivals of one round; returns also the unchanged state."""
        num_workers = len(loads_of(loads))
        if self.num_stragglers >= num_workers:
            raise ValueError(
                "num_stragglers must be less than num_workers; got num_stragglers = "
                f"{self.num_stragglers} and num_workers = {num_workers}"
            )
        everyone = jnp.ones(num_workers, bool)
        lost = random_workers(key, everyone, self.num_stragglers)
        return _unit_round(~lost), state


@dataclasses.dataclass(frozen=True)
class bernoulli(StragglerModel):
    """Straggler model in which workers straggle independently of each other.

    Rounds take one time unit. Times are 1 for workers that respond and infinity for
    the others, which have finished no parts. The same key gives the same round
    whatever JAX's precision setting.

    Args:
      probability: Probability of straggling, from 0 to 1: one number, which may be
        traced, or (num_workers,).

    Raises:
      ValueError: If a probability is not from 0 to 1, or (in `init` or `sample`) its
        length is not the number of workers.
      TypeError: If probability is not real.

    Example:
      >>> import jax, jaxwgc
      >>> model = jaxwgc.stragglers.bernoulli(0.25)
      >>> state = model.init(1000)
      >>> loads = jax.numpy.ones(1000)
      >>> arrivals, state = jax.jit(model.sample)(jax.random.key(0), state, loads)
      >>> bool(abs(arrivals.received.mean() - 0.75) < 0.05)
      True

    References:
      Bitar, Wootters, El Rouayheb, "Stochastic gradient coding for straggler mitigation
      in distributed learning", 2020, section II (independent stragglers).
    """

    probability: float | jax.Array | np.ndarray | Sequence[float]

    def __post_init__(self):
        if np.ndim(self.probability) == 0:
            array_validation.check_fields(
                self, probability={"minimum": 0, "maximum": 1}
            )
            return
        values = array_validation.host_array(
            "probability", self.probability, "real numbers", num_workers="any"
        )
        is_probability = (values >= 0) & (values <= 1)
        validation.check_entries("probability", values, is_probability, "from 0 to 1")
        # Tuples can be compared, so that models with equal fields are equal.
        probabilities = tuple(values.astype(float).tolist())
        object.__setattr__(self, "probability", probabilities)

    def sample(self, key, state, loads):
        """Draws the arrivals of one round; returns also the unchanged state."""
        num_workers = len(loads_of(loads))
        if isinstance(self.probability, tuple):
            _check_as_many(num_workers, "probability", len(self.probability))
        draws = jax.random.uniform(key, (num_workers,), jnp.float32)
        probability = jnp.asarray(self.probability, jnp.float32)
        return _unit_round(draws >= probability), state


@dataclasses.dataclass(frozen=True, eq=False)
class fixed(StragglerModel):
    """Straggler model in which the same workers respond in every round.

    Rounds take one time unit. Times are 1 for workers that respond and infinity for
    the others, which have finished no parts. Keys are not used.

    Args:
      received: Workers that respond, bool (num_workers,). May be traced.

    Raises:
      ValueError: If received does not have exactly one axis, or (in `init` or `sample`)
        its length is not the number of workers.
      TypeError: If received is not bool.

    Example:
      >>> import jax, jaxwgc, numpy as np
      >>> model = jaxwgc.stragglers.fixed(np.array([True, False, True]))
      >>> arrivals, _ = model.sample(jax.random.key(0), model.init(3), np.ones(3))
      >>> arrivals.received
      Array([ True, False,  True], dtype=bool)
    """

    received: jax.Array | np.ndarray

    def __post_init__(self):
        array_validation.as_array("received", self.received, "bools", num_workers="any")

    def sample(self, key, state, loads):
        """Returns the arrivals, equal in every round, and the unchanged state."""
        _check_as_many(len(loads_of(loads)), "received", len(self.received))
        return _unit_round(jnp.asarray(self.received)), state


def _check_as_many(num_workers: int, name: str, length: int) -> None:
    """Raises ValueError unless the length of a vector is the number of workers."""
    if num_workers != length:
        raise ValueError(
            f"{name} must have one entry per worker; got {length} entries and "
            f"num_workers = {num_workers}"
        )


def _unit_round(received: jax.Array) -> Arrivals:
    """Returns the arrivals of a round that lasts one time unit."""
    times = jnp.where(received, 1.0, jnp.inf)
    return Arrivals(received=received, times=times, elapsed=jnp.ones(()))
