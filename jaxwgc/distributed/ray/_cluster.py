"""Training on worker processes that Ray starts, on one machine or many."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc._common import array_validation, validation
from jaxwgc.aggregate import DecodingOptions, decode_aggregate
from jaxwgc.codes import GradientCode
from jaxwgc.distributed.ray import _training
from jaxwgc.distributed.ray._callbacks import Callback, TrainingState
from jaxwgc.distributed.ray._coordinator import Coordinator, Processes
from jaxwgc.distributed.ray._fleet import Fleet, WorkerSlot, filled, seconds_of_loads
from jaxwgc.distributed.ray._live_table import live_table
from jaxwgc.distributed.ray._messages import Round, sent
from jaxwgc.distributed.ray._options import Faults, Timeouts, Verification
from jaxwgc.distributed.ray._rules import decodes_of, rules_of
from jaxwgc.distributed.ray._session import (
    actor_options_of,
    check_installed,
    claimed_resources,
)
from jaxwgc.distributed.ray._task import Task
from jaxwgc.gradients._contributions import check_key_is_used, term_of
from jaxwgc.reports import StragglerReport, straggler_report
from jaxwgc.stragglers import WaitingRule


class RayCluster:
    """Trains on one process per worker, and decodes without waiting for stragglers.

    Every worker holds its assigned parts, or reads batches of them in each step. It
    forms its message from their gradients and sends it. The coordinator, the process
    that holds this object, sends parameters and collects messages until the waiting
    rule ends the round. `RayCluster` needs Ray, from the extra `ray`.

    A worker that raises, sends another shape, is killed, is frozen or lost with its
    machine is a straggler of that step. Another process takes its place in the
    background, loads the same parts and joins in; no step waits for it as long as the
    others decode. A worker that sends NaN or infinity is a straggler, too, and stays. A
    worker that responds after the end of its round is sent the newest parameters at
    once; its late response is used in the trace only. Workers' output is shown by the
    coordinator's process.

    The log `jaxwgc.distributed` has one line for each stage of the start, each loss
    with its reason, and each return. To see it, call `logging.basicConfig()` and
    `logging.getLogger("jaxwgc.distributed").setLevel("INFO")`. Steps are counted from
    0, and separately in `train` and `compute`. `Faults.delay` and the keys of batches
    use these numbers.

    With a code of several messages per worker, a round works **on request**: workers
    compute their parts one by one, keep each gradient and report each part in a few
    bytes. When the waiting rule ends the round, the coordinator requests one weighted
    sum from each worker. Once all sums are there, workers stop between two parts. The
    parts of a worker that is lost, freezes or sends NaN in the meantime are left to the
    others. A worker needs memory for a gradient of each part that it holds.

    Processes start at the first `compute` or `train`, after the loss has been tried on
    shapes. Ray is joined or started then, too. Without `address`, it runs on this
    machine for as long as the `with` block, without a dashboard and on 127.0.0.1 only.

    A code recovers a sum over parts. By default, the terms of the sum are the gradients
    of a loss. With `contribution`, they are any pytrees like params, such as changes of
    params by local steps: see `jaxwgc.local_steps`. Everything else is the same.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the part. If `has_aux` is True,
        it returns `(scalar, aux)`, and a `Round` has the aux of every part. None with
        `contribution`.
      code: Gradient code. It sets the number of workers and the parts of each. With
        several messages per worker (real, such as `codes.replicated`), rounds work on
        request.
      parts: Pytree, leaves (num_parts, ...); each worker is sent its own parts. Or a
        function that maps the index of a part to the part, a pytree of arrays. It is
        called on the workers, and again if a worker is replaced. None with `batches`.
      contribution: `contribution(params, part)` or `contribution(params, part, key)`, a
        pure function in place of `loss`. It returns the term of a part, a pytree with
        the structure, shapes and dtypes of params; if `has_aux` is True, a pair of that
        and aux. It is traced by JAX, and may depend on nothing but its arguments, so
        that all copies of a term agree. If it has an argument `key`, it needs `key`.
      batches: `batches(step, part)`, a Python function for data that do not fit into
        the memory of a worker. It returns the batch of a part in a step, a pytree of
        arrays. Step and part are ints, and all batches are alike in structure, shapes
        and dtypes. It is called on each worker that holds the part, and must return the
        same batch on all of them: it may depend on nothing but step and part. Batches
        of the next step are read in a thread while a step is computed, so `batches` is
        also called for the step after the last one; an error there has no effect. At
        most one thread of a process calls it at a time.
      has_aux: Whether the loss or contribution returns aux.
      batch: `batch(key, part)`, a pure function that draws the data of one step from a
        part, or changes a batch of `batches`. If it has an argument `step`, it gets the
        step, uint32, too. It is traced by JAX, and needs `key`.
      key: PRNG key of either kind. The key of a batch is
        k = fold_in(fold_in(key, step), part_index), and that of a contribution is
        fold_in(k, 1), so all holders of a part draw the same.
      wait: Waiting rule of `jaxwgc.stragglers`, such as `fastest(6)`. It sees seconds
        since the start of the round, and infinity for a worker that has not responded;
        on request, for one that has not finished all of its parts. `until_decodable`
        and `coverage` see each message. None waits until the messages decode; with
        `on_wrong`, for `fastest(num_workers - num_stragglers + 2)`, which leaves two
        checks, or for all workers if there are fewer.
      decoding: `jaxwgc.aggregate.DecodingOptions`: decoder, tolerance, and the dtype to
        which messages are rounded when sent.
      undecodable: Result of a round that cannot be decoded: `"least_squares"` takes the
        nearest gradient that the responses give, `"skip"` a zero update, and `"raise"`
        raises an error that names the missing workers.
      verification: `Verification`. By default, all messages are accepted.
      timeouts: `Timeouts`.
      address: Address of a running Ray cluster, as `"host:6379"`. `"auto"` stands for
        the environment variable RAY_ADDRESS, or the last `ray start` on this machine.
        None starts a cluster.
      actor_options: Claims of a worker, and other options of Ray's actors, such as
        `{"num_cpus": 0.5}` or `{"num_gpus": 1}`. A worker has as many threads as CPUs,
        at least one; JAX uses the CPU unless the worker claims an accelerator. Default:
        one CPU on a cluster of others, with workers spread over the machines, and no
        claim on our own.
      spare: Whether a spare process that has imported JAX waits for the next loss of a
        worker, and takes its place. Until then it has no data. It needs 110 MB. With
        claims, it claims what a worker does. None: True if `address` is None and
        workers claim no CPUs, GPUs or other resources.
      faults: `Faults` for experiments.

    Raises:
      ImportError: If Ray is not installed.
      ValueError: If not exactly one of loss and contribution is given, or of parts and
        batches; if key is given and neither batch nor contribution takes it, or one of
        them takes it and it is not given; if the leading axis of parts is not
        num_parts; if an integer in parts needs more than 32 bits and x64 is off; or if
        an option does not fit the code.
      TypeError: If an argument has the wrong type, e.g. loss is not a function.

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
      ...     this_round = cluster.compute({"w": jnp.zeros(2)})
      >>> this_round.received  # doctest: +SKIP
      array([ True, False,  True])

      Rows from a file of any size, 16 of each part in a step:

      >>> import numpy as np
      >>> def batches(step, part):
      ...     rows = np.load("rows.npy", mmap_mode="r")
      ...     start = (step * code.num_parts + part) * 16 % (len(rows) - 16)
      ...     return rows[start : start + 16]
      >>> cluster = jaxwgc.distributed.RayCluster(
      ...     lambda params, rows: jnp.sum(params["w"] * rows), code, batches=batches
      ... )

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2; Moritz et al., "Ray: a distributed framework
      for emerging AI applications", OSDI 2018.
    """

    step = 0

    def __init__(
        self,
        loss: Callable[..., Any] | None = None,
        code: GradientCode | None = None,
        parts: Any = None,
        *,
        contribution: Callable[..., Any] | None = None,
        batches: Callable[[int, int], Any] | None = None,
        has_aux: bool = False,
        batch: Callable[..., Any] | None = None,
        key: jax.Array | None = None,
        wait: WaitingRule | None = None,
        decoding: DecodingOptions = DecodingOptions(),
        undecodable: str = "least_squares",
        verification: Verification = Verification(),
        timeouts: Timeouts = Timeouts(),
        address: str | None = None,
        actor_options: Mapping[str, Any] | None = None,
        spare: bool | None = None,
        faults: Faults = Faults(),
    ):
        check_installed("ray")
        code = GradientCode.check(code)
        if code.messages_per_worker > 1:
            code.check_requests()
        term = term_of(loss, contribution, has_aux)
        check_key_is_used(key, batch, contribution)
        validation.check_instance("decoding", decoding, DecodingOptions)
        validation.check_choice(
            "undecodable", undecodable, ("least_squares", "skip", "raise")
        )
        validation.check_instance("verification", verification, Verification)
        validation.check_instance("timeouts", timeouts, Timeouts)
        validation.check_instance("faults", faults, Faults)
        self.code = code
        self.key = jax.random.key(0) if key is None else array_validation.check_key(key)
        parts_to_send = None
        load = None
        if batches is not None:
            validation.check_callable("batches", batches)
            if parts is not None:
                raise ValueError(
                    "batches= returns all data, so parts must not be given as well; "
                    f"got a {type(parts).__name__}"
                )
        elif parts is None:
            raise ValueError("parts or batches must be given; got neither")
        elif callable(parts):
            load = parts
        else:
            array_validation.check_leading_axis(
                "parts", parts, code.num_parts, "num_parts"
            )
            array_validation.check_dtypes("parts", parts, "numbers, bools or keys")
            array_validation.check_integers_are_kept("parts", parts)
            parts_to_send = sent(parts)
        # Fields that depend on params are set when the workers start.
        task = Task(
            term=term,
            load=load,
            batch=batch,
            delay=faults.delay,
            corrupt=faults.corrupt,
            message_dtype=array_validation.check_message_dtype(decoding.message_dtype),
            batches=batches,
            has_digests=batches is not None and verification.digests,
            has_keys=key is not None,
        )
        options = actor_options_of(address, actor_options)
        has_spare = address is None and not claimed_resources(options)
        if spare is not None:
            has_spare = validation.check_bool("spare", spare)
        self._undecodable = undecodable
        self._decoding = decoding
        # Called only for its error, which it raises if an option does not fit the code.
        self._aggregator(memory=False, debias=None)
        self._locator = verification.locator(code)
        self._decoder = code.choose_decoder(decoding.decoder)
        self._decodes = self._decodes_with(memory=False, debias=None)
        rules = rules_of(code, wait, self._decodes, self._locator)
        self._fleet = Fleet(code.num_workers, timeouts, rules)
        self._coordinator = Coordinator(
            code,
            self._decoder,
            task,
            parts_to_send,
            self._fleet,
            verification=verification,
            locator=self._locator,
            processes=Processes(address, options, has_spare),
            raises=undecodable == "raise",
        )

    def __enter__(self) -> "RayCluster":
        """Opens the cluster; Ray and the workers start in the first round."""
        self._coordinator.open()
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends all workers, and Ray if this process started it."""
        self.close()

    def close(self) -> None:
        """Ends all workers, and Ray if this process started it. May be called twice.

        Ray runs on while another cluster of this process is open. A round that is under
        way in another thread ends with a RuntimeError.
        """
        self._coordinator.close()

    def _aggregator(
        self, memory: bool, debias: str | float | None
    ) -> optax.GradientTransformationExtraArgs:
        """Returns `decode_aggregate` with the options of this cluster."""
        undecodable = self._undecodable
        if undecodable == "raise":
            # `compute` raises an error for an undecodable round, so the aggregator
            # never receives one.
            undecodable = "least_squares"
        return decode_aggregate(
            self.code,
            decoding=self._decoding,
            undecodable=undecodable,
            on_request=self.code.messages_per_worker > 1,
            memory=memory,
            debias=debias,
        )

    def _decodes_with(
        self, memory: bool, debias: str | float | None
    ) -> Callable[[np.ndarray], bool]:
        """Returns a function that tells whether a mask of messages can be decoded."""
        tolerance = self._decoding.tolerance_for(
            self._decoder, memory=memory, debias=debias
        )
        return decodes_of(self.code, self._decoder, tolerance)

    def compute(self, params: Any) -> Round:
        """Runs one round: sends params to the workers, and returns their messages.

        The first call starts all workers and waits for them. Rounds are counted from 0,
        and their number is the step in the keys of batches. `train` has a count of its
        own. A second thread waits until the round of the first is over.

        Args:
          params: Pytree of finite arrays of floats; with the same structure, shapes and
            dtypes in every call.

        Returns:
          A `Round`. It ends when the waiting rule says so. It also ends if all other
          workers are suspected or were replaced in this round, and the messages decode,
          or replacements have been missing for `timeouts.replacement` seconds.

        Raises:
          ValueError: If params have changed their structure, shapes or dtypes or are
            not finite, if parts are not alike, if a contribution is not like params, or
            if the cluster has too few resources.
          TypeError: If the loss returns no real scalar, or params are not floats.
          ConnectionError: If no Ray responds at `address`, or it requires a token.
          RuntimeError: If a worker fails to start at the beginning, if the `with` block
            has not begun or is over, if no worker responds, or if a round cannot be
            decoded and `undecodable` is `"raise"`. If `batches` raises an error, with
            the traceback of the worker, or returns different batches of a part on two
            workers. A batch with another structure, shape or dtype is a ValueError.
        """
        with self._coordinator.lock:
            this_round = self._coordinator.compute(
                params, self.step, self.key, owner=None, decodes=self._decodes
            )
            self.step += 1
            return this_round

    def train(
        self,
        optimizer: optax.GradientTransformation,
        params: Any,
        num_steps: int,
        *,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        checkpoint_fallback: bool = False,
        live: bool = False,
        memory: bool = False,
        debias: str | float | None = None,
    ) -> TrainingState:
        """Trains with an optax optimizer on decoded gradients; returns the final state.

        With `contribution`, decoded sums of contributions take the place of gradients.

        Args:
          optimizer: Optimizer, such as `optax.adam(1e-3)`; `jaxwgc.decode_aggregate` is
            put in front of it.
          params: Pytree of arrays of floats.
          num_steps: Number of steps in all, with those before a checkpoint, without
            those of earlier calls.
          callbacks: List of functions and metric writers, called after every step.
            A function gets a `Progress`. If it returns `"stop"`, training ends with a
            checkpoint. It may use the cluster: training has a count of steps of its
            own. `JsonLines(path)` writes a file. A metric writer is an object that
            cannot be called and has one of three methods: `log(dict, step=)`, such as a
            run of wandb, `write_scalars(step, dict)`, such as a writer of clu, or
            `add_scalar(name, value, step)`, such as a `SummaryWriter` of TensorBoard.
            It gets `Progress.metrics()`. If a callback raises, training ends with a
            checkpoint and this error.
          checkpoint: Folder. If it has a checkpoint, training continues from its
            params, optimizer state, key and step, also under another code, with a
            warning if the number of parts has changed. Written
            every `checkpoint_every` steps, at the end, and if an error, Ctrl-C or
            SIGTERM ends the run. Needs Orbax, which comes with the extra.
          checkpoint_every: Number of steps between checkpoints.
          checkpoint_fallback: Whether to continue from the newest intact checkpoint if
            newer ones are damaged, with a warning in the log. The folders of damaged
            ones are renamed. By default a damaged checkpoint is an error that names it.
          live: Whether to show how many workers have started, and then the loss, the
            seconds per step, the stragglers, and the slowdowns, kinds and advice of
            `report`.
          memory: Whether the newest message of each worker stands for a missing one.
            Late messages of steps of this call are stored as they come. Kept in
            checkpoints; empty if the code has changed.
          debias: Correction for lost parts, as in `jaxwgc.decode_aggregate`: `"share"`,
            or the mean weight of partial gradients.

        Returns:
          A named tuple of `params`, a pytree; `optimizer_state`, the state of
          `optax.chain(decode_aggregate(...), optimizer)`, whose first entry counts the
          rounds that could not be decoded; `key`, the key of batches; and `step`, the
          number of steps that have been taken.

        Raises:
          ValueError: If num_steps is below 0 or checkpoint_every below 1, or if memory
            or debias do not fit the code. If a checkpoint does not fit or is damaged,
            or the file of a `JsonLines` is of another run. Also see `compute`.
          FloatingPointError: If a step gives params that are not finite.
          TypeError: If an entry of `callbacks` is neither a function nor a metric
            writer. Also see `compute`.
          RuntimeError: If a round fails as in `compute`.
          ImportError: If Orbax or rich is needed and not installed.
        """
        validation.check_int("num_steps", num_steps, minimum=0)
        validation.check_int("checkpoint_every", checkpoint_every, minimum=1)
        validation.check_bool("checkpoint_fallback", checkpoint_fallback)
        validation.check_bool("live", live)
        validation.check_instance("callbacks", callbacks, Sequence, " of callbacks")
        if memory and self._locator is not None:
            raise ValueError(
                "memory must be False for a cluster with Verification(on_wrong=), "
                "since late messages arrive alone and cannot be compared with others; "
                "got memory=True"
            )
        if memory and self._undecodable == "raise":
            raise ValueError(
                "memory must be False for a cluster with undecodable='raise', which "
                "raises before stored messages can replace missing ones; got "
                "memory=True"
            )
        aggregate = self._aggregator(memory=memory, debias=debias)
        chain = optax.chain(aggregate, optimizer)
        # Late messages are stored only if they are of a round with this owner, which
        # stands for this call of `train`.
        owner = object() if memory else None
        decodes = self._decodes
        if memory or debias is not None:
            decodes = self._decodes_with(memory, debias)
        compute = functools.partial(
            self._coordinator.compute, owner=owner, decodes=decodes
        )
        params = jax.tree.map(jnp.asarray, params)
        state = TrainingState(
            params=params, optimizer_state=chain.init(params), key=self.key, step=0
        )
        table_callbacks = contextlib.nullcontext([])
        if live:
            table_callbacks = live_table(
                num_steps, self.code.num_workers, lambda: self.workers, self.report
            )
        with table_callbacks as callbacks_of_table:
            return _training.train(
                compute,
                self.code,
                chain,
                state,
                num_steps,
                callbacks=[*callbacks, *callbacks_of_table],
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                checkpoint_fallback=checkpoint_fallback,
                limit=self._fleet.limit,
            )

    def trace(self, *, stand_ins: bool = False) -> np.ndarray:
        """Returns the seconds that each worker took in each round.

        The array has shape (rounds, workers). On request, it has the seconds of each
        part, (rounds, workers, largest number of parts per worker). With
        `stand_ins=True`, `stragglers.empirical` and `stragglers.fit_delays` take the
        array, with `code.loads` as `loads`. `numpy.save` writes it to a file.

        A worker measures the seconds from the receipt of its task to the finished
        message by its own clock. The coordinator adds the travel time of task and
        message. If the coordinator was busy when a message came, for example with a
        callback, it adds the shortest travel time so far. It adds the time since it
        last looked if this is longer. On request no travel time is added, since reports
        travel while workers compute.

        Infinity stands for a worker that was lost. NaN stands for a worker that has not
        responded: it was busy with an earlier round, left the part to others, or is
        silent. A late response is in the row of its round.

        Args:
          stand_ins: Whether to replace NaN by times of the same worker in other rounds,
            for delay models, to which NaN is a lost response. If the worker was busy,
            or left a part to others, these are the seconds of its next responses; for
            the last rounds, in which it may still be busy, those of its first ones. NaN
            stays for a worker that has never responded, and for all rounds since the
            last response of a worker that has stopped: it is silent for at least 2
            rounds, and for longer than its silences before explain.
        """
        validation.check_bool("stand_ins", stand_ins)
        rows = self._fleet.rows
        if not rows:
            return np.zeros((0, self.code.num_workers))
        return filled(rows) if stand_ins else np.array(rows)

    def report(self) -> StragglerReport:
        """Returns a report of which workers are slow, and how much time they cost.

        Times are those of the workers' own loads: with unequal loads, a worker with
        more parts is slower. On request, the parts that a worker finished stand for
        those that it left to others. A round without a response of a worker is missing.
        See `jaxwgc.straggler_report`.

        Raises:
          ValueError: If there are fewer than 2 rounds or workers.
        """
        num_held = np.count_nonzero(np.asarray(self.code.assignment), axis=1)
        times = seconds_of_loads(self.trace(), num_held)
        return straggler_report(times, before_collective=True)

    def resume(self, step: int, key: jax.Array | None = None) -> None:
        """Sets step and key of the next `compute`, to continue an earlier run.

        Args:
          step: Step of the next `compute`.
          key: PRNG key of batches; None keeps the key of the cluster.
        """
        self.step = validation.check_int("step", step, minimum=0)
        if key is not None:
            self.key = array_validation.check_key(key)

    @property
    def workers(self) -> list[WorkerSlot]:
        """State of each worker; an empty list before the first round.

        A `WorkerSlot` has `index`, `pid`, `node`, `host`, `state` and `trouble`.
        """
        return self._coordinator.workers
