"""Workers that are processes, on this machine or on many: Ray starts and finds them."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _validation
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.distributed import _ray_training
from jaxwgc.distributed._ray_hiring import Hiring, in_numpy
from jaxwgc.distributed._ray_places import Place
from jaxwgc.distributed._ray_rounds import Patience, Round, Rounds, is_finite
from jaxwgc.distributed._ray_runtime import find_ray, session
from jaxwgc.stragglers import StragglerModel, WaitingRule

UNDECODABLE = ("least_squares", "skip", "raise")


class RayCluster:
    """A worker a process: the exact gradient from whoever answers, with no restart.

    Every worker holds its assigned parts, forms its message from their gradients and
    sends it. The coordinator, in whose process this object lives, sends parameters out
    and collects messages until the waiting rule is content. It needs Ray, from the
    extra `ray`.

    A worker that raises, sends another shape, is killed, is frozen or lost with its
    machine is a straggler of that step. Another actor takes its place in the
    background, loads the same parts and joins in; no step waits for it as long as the
    others decode. One that sends NaN or infinity is a straggler, too, and stays. A
    worker has one task at a time: one that answers after the end of its round is given
    the newest parameters at once, and the late answer counts as a time in the trace
    only. It computes its parts one after the other, and holds one gradient at a time.

    Each loss of a worker and each return is a line in the log `jaxwgc.distributed`,
    with the reason; what workers print appears here.

    Processes start at the first `compute` or `train`, after the loss has been tried on
    shapes. Without `address`, Ray starts then, too, and runs on this machine for as
    long as the `with` block, listens on 127.0.0.1 only, without a dashboard, and every
    worker computes with one thread.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the part. With
      has_aux: `(scalar, aux)`, and a `Round` has the aux of every part, such as
        statistics of a normalisation.
      code: a gradient code; it sets how many workers there are and who holds what. A
        worker sends its messages at the end, also where they are several.
      parts: a pytree; leaves (num_parts, ...), from which each worker is sent its own.
        None with
      load: `load(part_index)` gives one part, a pytree of arrays. It is called on the
        workers, for the parts of each, and again where a worker is replaced.
      wait: a waiting rule of `jaxwgc.stragglers`, such as `fastest(6)`. It sees
        seconds since the start of the round, and infinity for who has not answered.
        None waits until the answers decode.
      key: PRNG key of either kind, for batches.
      batch: `batch(key, part)`, a pure function that draws from a part what the loss is
        given in one step. The key is fold_in(fold_in(key, step), part_index), so all
        holders of a part draw the same.
      address: of a running Ray cluster, as `"host:6379"` or `"auto"`. None starts one.
      message_dtype: what messages are rounded to on their way, such as `"bfloat16"`:
        half the bytes, and a relative error of up to 2^-8 in every entry of a message,
        times the decoding weights in the gradient. None sends them as they are.
      undecodable: what a round that cannot be decoded gives: `"least_squares"` and
        `"skip"` as in `jaxwgc.decode_aggregate`; `"raise"` stops with an error that
        names the missing workers.
      tolerance: as for `jaxwgc.decode_aggregate`.
      decoder: as for `jaxwgc.decoding_weights`.
      restart_after: seconds without an answer to a step, after which a worker counts as
        frozen and is replaced. More than the slowest step takes.
      start_within: seconds in which a worker must have loaded its parts and compiled.
      undecodable_after: seconds after its loss for which a round that cannot be decoded
        waits for a worker that is being replaced; who does not come back in that time
        is not waited for in later rounds either. A rule that ends by the clock, such as
        `deadline`, ends undecodable rounds, too, at its own time.
      actor_options: for Ray, such as `{"num_cpus": 0.5}` or `{"num_gpus": 1}`. A worker
        has as many threads as CPUs, and at least one; JAX is kept to the CPU where no
        accelerator is claimed. By default a CPU a worker on another's cluster, where
        workers are spread over the machines, and no claim on our own.
      delay: `delay(worker, step)`, seconds to sleep before an answer, called on the
        workers. For experiments.

    Raises:
      ImportError: where Ray is not installed.
      ValueError, TypeError: where an argument breaks its rule.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> parts = jnp.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
      >>> cluster = jaxwgc.distributed.RayCluster(
      ...     lambda params, part: jnp.sum(params["w"] * part),
      ...     code,
      ...     parts,
      ...     wait=jaxwgc.stragglers.fastest(2),
      ... )
      >>> with cluster:  # doctest: +SKIP
      ...     round = cluster.compute({"w": jnp.zeros(2)})
      >>> round.received  # doctest: +SKIP
      array([ True, False,  True])

    References:
      The paper's section 2.2. Ray: Moritz et al., "Ray: a distributed framework for
      emerging AI applications", OSDI 2018.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        code: GradientCode,
        parts: Any = None,
        *,
        has_aux: bool = False,
        wait: WaitingRule | None = None,
        load: Callable[[int], Any] | None = None,
        key: jax.Array | None = None,
        batch: Callable[[jax.Array, Any], Any] | None = None,
        address: str | None = None,
        message_dtype: Any = None,
        undecodable: str = "least_squares",
        tolerance: float = 1e-3,
        decoder: DecoderLike = None,
        restart_after: float = 60.0,
        start_within: float = 300.0,
        undecodable_after: float = 60.0,
        actor_options: Mapping[str, Any] | None = None,
        delay: Callable[[int, int], float] | None = None,
    ):
        find_ray()
        _validation.check_callable("loss", loss)
        _validation.check_bool("has_aux", has_aux)
        GradientCode.check(code)
        for name, function in {"load": load, "batch": batch, "delay": delay}.items():
            if function is not None:
                _validation.check_callable(name, function)
        if (parts is None) == (load is None):
            raise ValueError(
                "parts or load must be given, and not both; got "
                f"{'neither' if parts is None else 'both'}"
            )
        if parts is not None:
            _validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
            _validation.check_dtypes("parts", parts, "numbers, bools or keys")
            parts = jax.tree.map(in_numpy, parts)
        if (key is None) != (batch is None):
            raise ValueError(
                f"key and batch go together; got key = {key!r} and batch = {batch!r}"
            )
        _validation.check_choice("undecodable", undecodable, UNDECODABLE)
        _validation.check_number("tolerance", tolerance, minimum=0)
        patience = Patience(restart_after, start_within, undecodable_after)
        for name, seconds in patience._asdict().items():
            _validation.check_number(name, seconds, positive=True, traceable=False)

        self.code = code
        self.tolerance, self.decoder = tolerance, code.choose_decoder(decoder)
        self.message_dtype = _validation.check_message_dtype(message_dtype)
        self.undecodable = undecodable
        self.key = jax.random.key(0) if key is None else _validation.check_key(key)
        self._patience = patience
        self._address = address
        # Our own Ray has no one else to share its CPUs with. Its record of every task
        # would grow without bounds.
        options = {"num_cpus": 0, "enable_task_events": False}
        if address is not None:
            options |= {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
        options |= actor_options or {}
        self._hiring = Hiring(
            code,
            loss,
            has_aux,
            parts,
            load,
            batch,
            delay,
            self.message_dtype,
            options,
        )
        # The code is a constant of it, so that NumPy's keeps its precision.
        decodes = jax.jit(
            lambda received: code.decodes(
                received.repeat(code.messages_per_worker), tolerance, self.decoder
            )
        )
        # The same masks are asked about by the rule and at the end, and come again.
        self._decodes = functools.lru_cache(maxsize=10_000)(
            lambda received: bool(decodes(np.frombuffer(received, bool)))
        )
        if wait is None:
            self._wait = self._wait_until_decodable
        else:
            self._wait = _compiled(wait, code.num_workers)
        self._stack: contextlib.ExitStack | None = None
        self._is_connected = False
        self._rounds: Rounds | None = None
        self._times: list[np.ndarray] = []
        self._params: Any = None
        self._step = 0
        self._has_warned = False
        self._last_key: Any = None
        self._last_key_data = np.zeros(0)
        # Held for a round. The flag is for whom it lets in, the same thread.
        self._lock = threading.RLock()
        self._is_computing = False

    def __enter__(self) -> "RayCluster":
        """Connects to Ray, where it is running; no worker starts yet."""
        if self._stack is not None:
            raise RuntimeError("this RayCluster is open already")
        with contextlib.ExitStack() as stack:
            if self._address is not None:
                self._connect(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends all workers, and Ray if it was started here."""
        self.close()

    def close(self) -> None:
        """Ends all workers, and Ray if it was started here. May be called twice.

        A round that is under way in another thread ends with a RuntimeError.
        """
        if (rounds := self._rounds) is not None:
            rounds.is_closed.set()
        with self._lock:
            rounds, stack = self._rounds, self._stack
            self._rounds = self._stack = None
            self._is_connected = False
            try:
                for place in rounds.places if rounds else []:
                    place.end()
            finally:
                if stack is not None:
                    stack.close()

    def compute(self, params: Any) -> Round:
        """One round: parameters out, messages in.

        The first call starts the workers, and waits for all of them. Rounds are counted
        from 0, and their number is the step in the keys of batches; those of `train`
        have their own count. A second thread waits until the round of the first is
        over.

        Args:
          params: a pytree of arrays of floats, all finite; of the same structure,
            shapes and dtypes in every call.

        Returns:
          A `Round`. It ends when the waiting rule is content; or when nobody is left to
          wait for whom this round has not replaced already, and either the answers
          decode or those who are being replaced have been away for
          `undecodable_after` seconds.

        Raises:
          ValueError: where params have changed their structure, shapes or dtypes, or
            are not finite; parts are not alike, or the cluster has too few resources.
          TypeError: where the loss gives no scalar of real floats, or params are not
            floats.
          RuntimeError: where a worker fails to start at the beginning, the `with` block
            has not begun or is over, nobody answered, or a round cannot be decoded and
            `undecodable` is `"raise"`.
        """
        with self._one_round():
            found = self._compute(params, self._step, self.key)
            self._step += 1
            return found

    def train(
        self,
        optimizer: optax.GradientTransformation,
        params: Any,
        num_steps: int,
        *,
        callback: Callable[["_ray_training.Progress"], Any] | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        live: bool = False,
    ) -> "_ray_training.TrainingState":
        """Steps of an optax optimizer on gradients from the cluster.

        Args:
          optimizer: such as `optax.adam(1e-3)`; `jaxwgc.decode_aggregate` is put in
            front of it.
          params: a pytree of arrays of floats.
          num_steps: until this many steps have been taken, those before a checkpoint
            included, and none of earlier calls.
          callback: called after every step with a `Progress`. It may use the cluster:
            training has a count of steps of its own.
          checkpoint: a folder. If it has a checkpoint, training goes on from there:
            with its params, optimizer state, key and step, under this code, also where
            it was another's. Written every `checkpoint_every` steps, at the end, and
            where an error, Ctrl-C or SIGTERM ends the run. Needs Orbax, which comes
            with the extra.
          checkpoint_every: steps between checkpoints.
          live: shows the loss, seconds a step and who straggles, while it runs.

        Returns:
          A `TrainingState`.

        Raises:
          ValueError: where num_steps is not at least 0, or checkpoint_every 1, a
            checkpoint does not fit; and as for `compute`.
          FloatingPointError: where a step gives params that are not finite.
          TypeError, RuntimeError: as for `compute`.
          ImportError: where Orbax or rich is needed and not installed.
        """

        def compute(params, step, key):
            with self._one_round():
                return self._compute(params, step, key)

        return _ray_training.train(
            self,
            compute,
            optimizer,
            params,
            num_steps,
            callback=callback,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            live=live,
        )

    def trace(self) -> np.ndarray:
        """When each answer came, (rounds, workers): seconds since its round began.

        Answers after the end of their round count, too. Infinity where there was none:
        the worker was dead, or still busy with an earlier round. `numpy.save` keeps it.
        """
        return np.array(self._times).reshape(len(self._times), self.code.num_workers)

    def decodes(self, received: np.ndarray) -> bool:
        """Whether the gradient follows from these answers, within the tolerance."""
        return self._decodes(np.asarray(received, bool).tobytes())

    def continue_from(self, step: int, key: jax.Array | None = None) -> None:
        """Takes up the count of rounds, and the key of batches, of an earlier run.

        Args:
          step: of the next `compute`.
          key: in the place of the cluster's own; None keeps that.
        """
        self._step = _validation.check_int("step", step, minimum=0)
        if key is not None:
            self.key = _validation.check_key(key)

    @property
    def step(self) -> int:
        """Of the next `compute`."""
        return self._step

    @property
    def places(self) -> list[Place]:
        """Of the workers, once they have started."""
        return self._rounds.places if self._rounds else []

    @property
    def seconds(self) -> dict[str, float]:
        """What the last round spent on the broadcast and on reading answers."""
        return dict(self._rounds.seconds) if self._rounds else {}

    @contextlib.contextmanager
    def _one_round(self) -> Iterator[None]:
        """Lets one round in at a time: other threads wait for its end."""
        with self._lock:
            if self._is_computing:
                raise RuntimeError(
                    "a RayCluster computes one round at a time; this thread has asked "
                    "for another in the middle of one"
                )
            self._is_computing = True
            try:
                yield
            finally:
                self._is_computing = False

    def _compute(self, params: Any, step: int, key: jax.Array) -> Round:
        """A round for a step that someone else counts."""
        rounds = self._started(params)
        leaves = [
            np.asarray(leaf, like.dtype)
            for leaf, like in zip(
                jax.tree.leaves(params), jax.tree.leaves(self._params)
            )
        ]
        for index, leaf in enumerate(leaves):
            if not is_finite(leaf):
                path, _ = jax.tree_util.tree_leaves_with_path(params)[index]
                raise ValueError(
                    "params must be finite; got NaN or infinity in "
                    f"params{jax.tree_util.keystr(path)}"
                )
        if key is not self._last_key:
            self._last_key, self._last_key_data = key, _key_data(key)
        found = rounds.run(step, leaves, self._last_key_data)
        nobody = not found.received.any()
        is_strict = nobody or self.undecodable == "raise"
        if (is_strict or not self._has_warned) and not self.decodes(found.received):
            who = np.flatnonzero(found.received).tolist()
            message = (
                f"the round of step {step} cannot be decoded, since "
                f"{'nobody answered' if nobody else f'only workers {who} answered'}; "
                f"missing: {rounds.missing(found.received)}"
            )
            if is_strict:
                raise RuntimeError(message) from rounds.error
            warnings.warn(f"{message} (said once)", stacklevel=3)
            self._has_warned = True
        return found

    def _started(self, params: Any) -> Rounds:
        """The workers, who are started for the shapes of the first params."""
        if self._stack is None:
            raise RuntimeError("a RayCluster computes inside of its `with` block")
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)),
            params,
        )
        if self._rounds is None:
            layout = self._hiring.layout(like, self.key)
            self._connect(self._stack)
            hire = self._hiring.hirer(like, layout, self.key)
            places = [Place(index, hire) for index in range(self.code.num_workers)]
            rounds = Rounds(
                places,
                layout,
                self._wait,
                self.decodes,
                self.code.num_stragglers,
                self._patience,
                self._times,
            )
            self._rounds, self._params = rounds, like
            try:
                rounds.start(_key_data(self.key))
            except BaseException:
                self._rounds = None
                for place in places:
                    place.end()
                raise
        _check_unchanged(like, self._params)
        return self._rounds

    def _connect(self, stack: contextlib.ExitStack) -> None:
        """Joins a cluster, or starts one: that only when the loss has been tried."""
        if not self._is_connected:
            stack.enter_context(session(self._address))
            self._hiring.check_resources()
            self._is_connected = True

    def _wait_until_decodable(self, times: np.ndarray) -> tuple[Any, Any]:
        """A rule, as `_compiled` gives it, that shares what is known of masks."""
        answered = np.isfinite(times)
        return answered, 0.0 if self.decodes(answered) else np.inf


def _key_data(key: jax.Array) -> np.ndarray:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(key))
    return np.asarray(key)


def _check_unchanged(like: Any, first: Any) -> None:
    """Params are as they were in the first round, or the first leaf that is not."""
    if jax.tree.flatten(like) == jax.tree.flatten(first):
        return
    found, expected = (
        {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (like, first)
    )
    for path in found | expected:
        own, before = found.get(path, "nothing"), expected.get(path, "nothing")
        if own != before:
            break
    else:
        # A tuple stands for a list, or the like.
        path, own, before = "", jax.tree.structure(like), jax.tree.structure(first)
    raise ValueError(
        "params must keep their structure, shapes and dtypes; got "
        f"params{path} = {own}, and {before} at first"
    )


def _compiled(
    wait: WaitingRule, num_workers: int
) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """Who is received and when the round ends, by times so far, infinity where none."""
    if isinstance(wait, StragglerModel):
        raise TypeError(
            "wait must be a waiting rule, such as jaxwgc.stragglers.fastest(6), since "
            "real workers straggle by themselves; got a StragglerModel, which simulates"
        )
    if not isinstance(wait, WaitingRule):
        raise TypeError(f"wait must be a waiting rule; got {wait!r}")

    def decide(times: np.ndarray) -> tuple[Any, Any]:
        times = times.astype(np.float32)
        ends = np.asarray(wait.ends(times))
        return np.isfinite(times) & (times <= ends), ends

    # Whatever the rule has to say of the number of workers, it says here.
    if np.shape(decide(np.full(num_workers, np.inf))[1]) != ():
        raise TypeError(f"wait must give one time at which a round ends; got {wait!r}")
    return decide
