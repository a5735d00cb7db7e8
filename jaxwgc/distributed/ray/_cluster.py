"""Workers that are processes, on this machine or on many: Ray starts and finds them."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc import _validation
from jaxwgc.aggregate import decode_aggregate
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import DecoderLike
from jaxwgc.distributed.ray import _training
from jaxwgc.distributed.ray._audits import Auditing
from jaxwgc.distributed.ray._coordinator import Coordinator
from jaxwgc.distributed.ray._messages import Layout, Round, is_finite
from jaxwgc.distributed.ray._on_request import OnRequest
from jaxwgc.distributed.ray._session import check_resources, find_ray, session
from jaxwgc.distributed.ray._slots import Timeouts, WorkerSlot, launcher
from jaxwgc.distributed.ray._trace import filled
from jaxwgc.distributed.ray._worker import SHARED_SETTINGS, Task, sent, try_loss
from jaxwgc.distributed.ray._wrong_answers import (
    Examining,
    Recomputation,
    check_audit,
    locator_of,
)
from jaxwgc.stragglers import StragglerModel, WaitingRule, fastest
from jaxwgc.studies import StragglerReport, straggler_report


class RayCluster:
    """A worker a process: the exact gradient from whoever answers, with no restart.

    Every worker holds its assigned parts, forms its message from their gradients, one
    part after the other, and sends it. The coordinator, in whose process this object
    lives, sends parameters out and collects messages until the waiting rule is content.
    It needs Ray, from the extra `ray`.

    A worker that raises, sends another shape, is killed, is frozen or lost with its
    machine is a straggler of that step. Another actor takes its place in the
    background, loads the same parts and joins in; no step waits for it as long as the
    others decode. One that sends NaN or infinity is a straggler, too, and stays. One
    that answers after the end of its round is given the newest parameters at once, and
    the late answer counts as a time in the trace only. What workers print appears here.

    The start of the workers, each loss with its reason and each return are lines in the
    log `jaxwgc.distributed`. They count steps as `delay` and the keys of batches do:
    from 0, and in `train` and `compute` by a count of their own.

    With a code of several messages a worker it works **on request**: workers go through
    their parts one by one, keep each gradient and report each part, in a few bytes. As
    soon as the rule is content, those who are needed are asked for one vector, a sum of
    what they have finished; when all sums are there, workers stop between two parts.
    Whoever dies, freezes or sends NaN in the meantime is done without: the others go on
    until then. What somebody else has finished is left for the end, where each message
    is of one part. A worker needs memory for a gradient of each part that it holds.

    Processes start at the first `compute` or `train`, after the loss has been tried on
    shapes. Without `address`, Ray starts then, too, and runs on this machine for as
    long as the `with` block, on 127.0.0.1 only and without a dashboard.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the part. With
      has_aux: `(scalar, aux)`, and a `Round` has the aux of every part, such as
        statistics of a normalisation.
      code: a gradient code; it sets how many workers there are and who holds what. With
        several messages a worker (real, such as `codes.replicated`), it works on
        request.
      parts: a pytree; leaves (num_parts, ...), from which each worker is sent its own.
        Or a function of the index of a part that gives the part, a pytree of arrays: it
        is called on the workers, and again where a worker is replaced.
      batch: `batch(key, part)`, a pure function that draws from a part what the loss is
        given in one step, with
      key: PRNG key of either kind. That of a batch is
        fold_in(fold_in(key, step), part_index), so all holders of a part draw the same.
      wait: a waiting rule of `jaxwgc.stragglers`, such as `fastest(6)`. It sees
        seconds since the start of the round, and infinity for who has not answered; on
        request, for who has not finished all of its parts, and `until_decodable` and
        `coverage` see each message. None waits until the answers decode; with
        `on_wrong`, for as many as leave two checks if there are so many workers, that
        is `fastest(num_workers - num_stragglers + 2)`: one wrong answer can be told.
        With fewer, as with two copies, for all; a worker that is being replaced is then
        waited for where its copy is not compared with anything else.
      undecodable: what a round that cannot be decoded gives: `"least_squares"` and
        `"skip"` as in `jaxwgc.decode_aggregate`; `"raise"` stops with an error that
        names the missing workers.
      tolerance: as for `jaxwgc.decode_aggregate`.
      decoder: as for `jaxwgc.decoding_weights`.
      on_wrong: with one message a worker, whether messages are compared before they are
        decoded, by what the code has to spare (see `jaxwgc.locate_errors`), and what is
        done with wrong ones. `"drop"` leaves them out. `"arbitrate"`, for codes of
        copies such as `codes.fractional_repetition`, asks two that differ for sums over
        fewer and fewer of their parts, and computes the last one here. `"raise"` stops
        with an error that names worker and machine. A round whose wrong messages cannot
        be told, or that has nothing to compare with, is refused: nothing of it is used,
        and `undecodable` says what follows. Whoever was wrong in three rounds is
        replaced, with a warning. None believes them all.
      audit: on request, the probability, below 1, that a round asks for one part twice:
        its sender, and another who holds it. Where they differ, the part is computed
        here, and whoever is wrong is left out of the round, whose parts the others
        finish, and replaced as with `on_wrong`. A worker that is always wrong, and
        whose parts are a share of all, is unseen for 1 / (audit * share) rounds on
        average, or less if it is asked as the other. None, and 0, never ask.
      noise: as for `jaxwgc.locate_errors`.
      message_dtype: what messages are rounded to on their way, such as `"bfloat16"`:
        half the bytes, and a relative error of up to 2^-8 in every entry of a message,
        times the decoding weights in the gradient. None sends them as they are.
      timeouts: `Timeouts`, how long a worker may take.
      address: of a running Ray cluster, as `"host:6379"` or `"auto"`. None starts one.
      actor_options: what a worker claims, and other options of Ray's actors, such as
        `{"num_cpus": 0.5}` or `{"num_gpus": 1}`. It has as many threads as CPUs, and at
        least one; JAX is kept to the CPU where no accelerator is claimed. By default a
        CPU on another's cluster, where workers are spread over the machines, and no
        claim on our own.
      delay: `delay(worker, step)`, seconds to sleep before an answer, or on request
        before each part; called on the workers. For experiments.
      corrupt: `corrupt(worker, step, message)`, a NumPy array like the message, sent in
        its place; called on the workers on what they send. For experiments.

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
        parts: Any,
        *,
        has_aux: bool = False,
        batch: Callable[[jax.Array, Any], Any] | None = None,
        key: jax.Array | None = None,
        wait: WaitingRule | None = None,
        undecodable: str = "least_squares",
        tolerance: float = 1e-3,
        decoder: DecoderLike = None,
        on_wrong: str | None = None,
        audit: float | None = None,
        noise: float = 0.0,
        message_dtype: Any = None,
        timeouts: Timeouts | None = None,
        address: str | None = None,
        actor_options: Mapping[str, Any] | None = None,
        delay: Callable[[int, int], float] | None = None,
        corrupt: Callable[[int, int, np.ndarray], np.ndarray] | None = None,
    ):
        find_ray()
        GradientCode.check(code)
        on_request = code.messages_per_worker > 1
        if on_request:
            code.check_requests()
        _validation.check_bool("has_aux", has_aux)
        _validation.check_callable("loss", loss)
        hooks = {"batch": batch, "delay": delay, "corrupt": corrupt}
        for name, function in hooks.items():
            if function is not None:
                _validation.check_callable(name, function)
        if (key is None) != (batch is None):
            raise ValueError(
                f"key and batch go together; got key = {key!r} and batch = {batch!r}"
            )
        choices = ("least_squares", "skip", "raise")
        _validation.check_choice("undecodable", undecodable, choices)
        message_dtype = _validation.check_message_dtype(message_dtype)
        load = parts if callable(parts) else None
        self._first_part = self._parts = None
        if load is None:
            _validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
            _validation.check_dtypes("parts", parts, "numbers, bools or keys")
            self._first_part = jax.tree.map(lambda leaf: leaf[:1], parts)
            self._parts = sent(parts)
        self.code = code
        self.key = jax.random.key(0) if key is None else _validation.check_key(key)
        self._timeouts = timeouts or Timeouts()
        _validation.check_instance("timeouts", self._timeouts, Timeouts)
        answer_within = self._timeouts.answer
        self._task = Task(
            loss, has_aux, load, batch, delay, corrupt, message_dtype, answer_within
        )
        self._address = address
        # Our own Ray has no one else to share its CPUs with. Its record of every task
        # would grow without bounds.
        self._options = {"num_cpus": 0, "enable_task_events": False}
        if address is not None:
            self._options |= {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
        self._options |= actor_options or {}
        self._raises = undecodable == "raise"
        self._aggregate = functools.partial(
            decode_aggregate,
            code,
            # A round that must not be used never gets there.
            undecodable="least_squares" if self._raises else undecodable,
            tolerance=tolerance,
            decoder=decoder,
            message_dtype=message_dtype,
            on_request=on_request,
        )
        self._aggregate()
        decoder = code.choose_decoder(decoder)
        # The code is a constant of both, so that NumPy's keeps its precision.
        decodes = jax.jit(lambda mask: code.decodes(mask, tolerance, decoder))
        self._find_weights = jax.jit(
            lambda mask: decoder.checked_weights(
                code.encoding_matrix, code.segment_targets, mask
            )
        )
        # The same masks are asked about by the rule and at the end, and come again.
        known = functools.lru_cache(maxsize=10_000)(
            lambda mask: bool(decodes(np.frombuffer(mask, bool)))
        )
        self._decodes = lambda mask: known(mask.tobytes())
        self._audit = check_audit(audit, code)
        self._locator = None if on_wrong is None else locator_of(code, on_wrong)
        self._on_wrong = on_wrong
        _validation.check_number("noise", noise, minimum=0, traceable=False)
        self._noise = noise
        if wait is None and on_wrong is not None:
            num_workers = code.num_workers
            wait = fastest(min(num_workers, num_workers - code.num_stragglers + 2))
        if wait is None:
            self._ends = lambda times: (
                0.0 if self._decodes(np.isfinite(times)) else np.inf
            )
        else:
            _check_rule(wait, code.num_workers)
            self._ends = lambda times: float(wait.ends(times))
        self._sees_workers = wait is not None and not (
            wait.code is not None
            and wait.code.messages_per_worker == code.messages_per_worker
        )
        self._stack: contextlib.ExitStack | None = None
        self._coordinator: Coordinator | None = None
        self._times: list[np.ndarray] = []
        self._params_like: Any = None
        self.step = 0
        self._has_warned = False
        self._sent_key: tuple[Any, Any] = None, None
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
        if (coordinator := self._coordinator) is not None:
            coordinator.is_closed.set()
        with self._lock:
            workers, stack = self.workers, self._stack
            self._coordinator = self._stack = None
            with stack or contextlib.nullcontext():
                for slot in workers:
                    slot.end()

    def compute(self, params: Any) -> Round:
        """Returns one round: parameters out, messages in.

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
          `timeouts.replacement` seconds.

        Raises:
          ValueError: where params have changed their structure, shapes or dtypes, or
            are not finite; parts are not alike, or the cluster has too few resources.
          TypeError: where the loss gives no scalar of real floats, or params are not
            floats.
          RuntimeError: where a worker fails to start at the beginning, the `with` block
            has not begun or is over, nobody answered, or a round cannot be decoded and
            `undecodable` is `"raise"`.
        """
        with self._lock:
            round = self._compute(params, self.step, self.key)
            self.step += 1
            return round

    def train(
        self,
        optimizer: optax.GradientTransformation,
        params: Any,
        num_steps: int,
        *,
        callbacks: Sequence[Any] = (),
        callback: None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        live: bool = False,
        memory: bool = False,
        debias: str | float | None = None,
    ) -> "_training.TrainingState":
        """Returns the state after steps of an optax optimizer on decoded gradients.

        Args:
          optimizer: such as `optax.adam(1e-3)`; `jaxwgc.decode_aggregate` is put in
            front of it.
          params: a pytree of arrays of floats.
          num_steps: until this many steps have been taken, those before a checkpoint
            included, and none of earlier calls.
          callbacks: List of functions and metric writers, called after every step.
            A function gets a `Progress`. If it returns `"stop"`, training ends with a
            checkpoint. It may use the cluster: training has a count of steps of its
            own. `JsonLines(path)` writes a file. An object that is no function is a
            metric writer if it has `log(dict, step=)`, such as a run of wandb,
            `write_scalars(step, dict)`, such as a writer of clu, or
            `add_scalar(name, value, step)`, such as a `SummaryWriter` of TensorBoard.
            It gets `Progress.metrics()` in another thread, while workers compute the
            next round. If a callback raises, training ends with a checkpoint and this
            error.
          callback: Old name of `callbacks`, rejected.
          checkpoint: a folder. If it has a checkpoint, training goes on from there:
            with its params, optimizer state, key and step, under this code, also where
            it was another's. Written every `checkpoint_every` steps, at the end, and
            where an error, Ctrl-C or SIGTERM ends the run. Needs Orbax, which comes
            with the extra.
          checkpoint_every: steps between checkpoints.
          live: shows how many workers have started, and then the loss, seconds a step,
            who straggles, and the slowdowns, kinds and advice of `report`.
          memory: as for `jaxwgc.decode_aggregate`: the newest message of each worker
            stands for one that is missing, and late answers, of steps of this call,
            are remembered as they come. Kept in checkpoints, and begun anew where the
            code has changed.
          debias: as for `jaxwgc.decode_aggregate`.

        Returns:
          A `TrainingState`.

        Raises:
          ValueError: where num_steps is not at least 0, or checkpoint_every 1, memory
            or debias do not fit the code, or a checkpoint does not fit; if the file of
            a `JsonLines` is of another run; and as for `compute`.
          FloatingPointError: where a step gives params that are not finite.
          TypeError: If an entry of `callbacks` is neither a function nor a metric
            writer; and as for `compute`.
          RuntimeError: as for `compute`.
          ImportError: where Orbax or rich is needed and not installed.
        """
        _validation.check_int("num_steps", num_steps, minimum=0)
        _validation.check_int("checkpoint_every", checkpoint_every, minimum=1)
        _validation.check_bool("live", live)
        if callback is not None:
            raise TypeError(f"callback is now callbacks=[...]; got {callback!r}")
        _validation.check_instance("callbacks", callbacks, Sequence, " of callbacks")
        if memory and self._locator is not None:
            raise ValueError(
                "memory must be False with on_wrong, since late answers are compared "
                "with nothing; got True"
            )
        aggregate = self._aggregate(memory=memory, debias=debias)
        chain = optax.chain(aggregate, optimizer)
        compute = functools.partial(self._compute, owner=object() if memory else None)
        params = jax.tree.map(jnp.asarray, params)
        state = _training.TrainingState(params, chain.init(params), self.key, 0)
        given = compute, self.code, chain, state, num_steps
        no_table = contextlib.nullcontext([])
        with _training.live_table(num_steps, self) if live else no_table as table:
            callbacks = [*callbacks, *table]
            return _training.train(*given, callbacks, checkpoint, checkpoint_every)

    def trace(self) -> np.ndarray:
        """Returns the seconds that workers took, (rounds, workers).

        On request the seconds of each part, (rounds, workers, turns). Both are what
        `stragglers.empirical` and `stragglers.fit_delays` take, with `code.loads` as
        `loads`. `numpy.save` keeps them.

        A worker measures the seconds from the receipt of its task to the finished
        message by its own clock. The time that both travel is added, as the coordinator
        sees it. If the coordinator was busy when a message came, such as with a
        callback, the shortest travel time so far is added, or a longer one if the
        message was not there when the coordinator last looked. On request none is
        added, since reports travel while workers compute.

        Infinity stands for a worker that was lost. A worker that was busy with an
        earlier round, or left a part to others, has the seconds of its next responses
        instead, and NaN if it has never responded.
        """
        if self._times:
            return filled(self._times)
        return np.zeros((0, self.code.num_workers))

    def report(self) -> StragglerReport:
        """Returns the straggler report of `trace`: slow workers and their cost.

        Times are those of the workers' own loads: with unequal loads, a worker with
        more parts is slower. See `jaxwgc.straggler_report`.

        Raises:
          ValueError: If there are fewer than 2 rounds or workers.
        """
        return straggler_report(self.trace())

    def resume(self, step: int, key: jax.Array | None = None) -> None:
        """Takes up the count of rounds, and the key of batches, of an earlier run.

        Args:
          step: of the next `compute`.
          key: in the place of the cluster's own; None keeps that.
        """
        self.step = _validation.check_int("step", step, minimum=0)
        if key is not None:
            self.key = _validation.check_key(key)

    @property
    def workers(self) -> list[WorkerSlot]:
        """The slots of the workers; none before the first round.

        A slot has `index`, `pid`, `node`, `host`, `state` and `trouble`.
        """
        return self._coordinator.slots if self._coordinator else []

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

    def _compute(
        self, params: Any, step: int, key: jax.Array, owner: Any = None
    ) -> Round:
        """Returns a round for a step that someone else counts."""
        with self._one_round():
            coordinator = self._started(params)
            likes = jax.tree.leaves(self._params_like)
            leaves = [
                np.asarray(leaf, like.dtype)
                for leaf, like in zip(jax.tree.leaves(params), likes)
            ]
            for index, leaf in enumerate(leaves):
                if not is_finite(leaf):
                    path, _ = jax.tree_util.tree_leaves_with_path(params)[index]
                    raise ValueError(
                        "params must be finite; got NaN or infinity in "
                        f"params{jax.tree_util.keystr(path)}"
                    )
            if key is not self._sent_key[0]:
                self._sent_key = key, sent(key)
            num_before = sum(slot.num_replaced for slot in self.workers)
            round = coordinator.run(step, leaves, self._sent_key[1], owner)
            num_replaced = sum(slot.num_replaced for slot in self.workers) - num_before
            round = round._replace(replaced=num_replaced)
            self._check_decodes(coordinator, round, step)
            return round

    def _check_decodes(self, coordinator: Coordinator, round: Round, step: int) -> None:
        """Warns of the first round that cannot be decoded, or refuses each."""
        received = round.received
        mask = received if round.decoding is None else np.asarray(round.decoding.mask)
        nobody = not (received.any() or round.refused)
        is_refused = nobody or self._raises
        if (self._has_warned and not is_refused) or self._decodes(mask):
            return
        if round.refused:
            why = "its answers contradict each other, or are too few to be compared"
        elif nobody:
            why = "nobody answered"
        else:
            why = f"only workers {np.flatnonzero(received).tolist()} answered"
            why += "" if self._locator is None else " and could be compared"
        answered = np.isfinite(round.times) if round.refused else received
        message = f"the round of step {step} cannot be decoded, since {why}"
        if missing := coordinator.missing(answered):
            message += f"; missing: {missing}"
        if is_refused:
            errors = (slot.error for slot in self.workers if slot.error)
            raise RuntimeError(message) from next(errors, None)
        warnings.warn(f"{message} (said once)", stacklevel=4)
        self._has_warned = True

    def _started(self, params: Any) -> Coordinator:
        """Returns the coordinator of workers who are started for the first params."""
        if self._stack is None:
            raise RuntimeError("a RayCluster computes inside of its `with` block")
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)),
            params,
        )
        if self._coordinator is None:
            self._params_like = like
            if self._first_part is not None:
                try_loss(self._task, like, self._first_part, self.key)
            self._connect(self._stack)
            settings = {name: getattr(jax.config, name) for name in SHARED_SETTINGS}
            task = self._task._replace(
                params=like, key=sent(self.key), settings=settings
            )
            layout = Layout.of(self.code, like, task.message_dtype)
            launch = launcher(self.code, layout, task, self._parts, self._options)
            given = (
                [WorkerSlot(index, launch) for index in range(self.code.num_workers)],
                layout,
                self._ends,
                self._decodes if self._locator is None else self._decodes_checked,
                self.code.num_stragglers,
                self._timeouts,
                self._times,
            )
            examines = self._noise, task.message_dtype, Recomputation(task, self._parts)
            requests = self.code, self._find_weights, self._sees_workers
            if self._locator is not None and self._on_wrong is not None:
                self._coordinator = Examining(
                    *given, self._locator, self._on_wrong, *examines
                )
            elif self.code.messages_per_worker == 1:
                self._coordinator = Coordinator(*given)
            elif self._audit:
                seed = int(jax.random.bits(self.key))
                self._coordinator = Auditing(
                    *given, *requests, self._audit, seed, *examines
                )
            else:
                self._coordinator = OnRequest(*given, *requests)
            try:
                self._coordinator.start()
            except BaseException:
                for slot in self.workers:
                    slot.end()
                self._coordinator = None
                raise
        if jax.tree.flatten(like) != jax.tree.flatten(self._params_like):
            differs = _training.difference(self._params_like, like)
            raise ValueError(
                "params must keep their structure, shapes and dtypes; got "
                f"{differs or jax.tree.structure(like)}"
            )
        return self._coordinator

    def _decodes_checked(self, mask: np.ndarray) -> bool:
        """Returns whether a mask decodes without what nobody could contradict."""
        assert self._locator is not None
        return self._decodes(self._locator.checked_by_others(mask))

    def _connect(self, stack: contextlib.ExitStack) -> None:
        """Joins a cluster, or starts one: that only when the loss has been tried."""
        stack.enter_context(session(self._address))
        check_resources(self.code.num_workers, self._options)


def _check_rule(wait: WaitingRule, num_workers: int) -> None:
    """Refuses what is no waiting rule, or none for that many workers."""
    if isinstance(wait, StragglerModel):
        raise TypeError(
            "wait must be a waiting rule, such as jaxwgc.stragglers.fastest(6), since "
            "real workers straggle by themselves; got a StragglerModel, which simulates"
        )
    _validation.check_instance("wait", wait, WaitingRule)
    # Whatever the rule has to say of the number of workers, it says here.
    if np.shape(wait.ends(np.full(num_workers, np.inf))) != ():
        raise TypeError(f"wait must give one time at which a round ends; got {wait!r}")
