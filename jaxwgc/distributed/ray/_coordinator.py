"""The coordinator, which starts worker processes and runs rounds."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import coding
from jaxwgc._common.leaves import by_name, difference
from jaxwgc.codes import GradientCode
from jaxwgc.decoders import Decoder
from jaxwgc.distributed.ray._driver import Driver
from jaxwgc.distributed.ray._fleet import Fleet, WorkerSlot
from jaxwgc.distributed.ray._interrupts import check_interrupt, noticed_interrupts
from jaxwgc.distributed.ray._launcher import Launcher
from jaxwgc.distributed.ray._messages import Layout, Round, is_finite, read, sent
from jaxwgc.distributed.ray._options import Verification
from jaxwgc.distributed.ray._request_plan import RequestPlan
from jaxwgc.distributed.ray._session import check_resources, session
from jaxwgc.distributed.ray._task import (
    COMPILATION_CACHE,
    SHARED_SETTINGS,
    Task,
    try_term,
)
from jaxwgc.distributed.ray._verification import (
    PartCopies,
    WorkersOfRound,
    verifier_of,
)
from jaxwgc.gradients._gradients import check_params


class Processes(NamedTuple):
    """Options of worker processes: Ray's address, actor options, and a spare process.

    Attributes:
      address: Address of a running Ray, or None for one of our own.
      options: Options of Ray's actors.
      has_spare: Whether a spare process waits for the next loss of a worker.
    """

    address: str | None
    options: Mapping[str, Any]
    has_spare: bool


class Coordinator:
    """Starts worker processes at the first round, and runs rounds.

    Args:
      code: Gradient code.
      decoder: Decoder of the code.
      task: Task of the workers, without the fields that depend on params.
      parts: Parts in the form in which they are sent, or None if workers load or read
        them.
      fleet: States of the workers.
      verification: Options for the detection of corrupted messages.
      locator: `ErrorLocator` of the code; None without parity checks.
      processes: Where the processes of workers run.
      raises: Whether an undecodable round raises an error.

    Attributes:
      driver: Driver of the workers; None before the first round.
      lock: Lock that is held during a round.
    """

    def __init__(
        self,
        code: GradientCode,
        decoder: Decoder,
        task: Task,
        parts: Any,
        fleet: Fleet,
        *,
        verification: Verification,
        locator: coding.ErrorLocator | None,
        processes: Processes,
        raises: bool,
    ):
        self._code = code
        self._decoder = decoder
        self._task = task
        self._parts = parts
        self._fleet = fleet
        self._verification = verification
        self._locator = locator
        self._processes = processes
        self._raises = raises
        self._has_warned = False
        self._params_like: Any = None
        self._stack: contextlib.ExitStack | None = None
        self.driver: Driver | None = None
        self.lock = threading.RLock()

    @property
    def workers(self) -> list[WorkerSlot]:
        """State of each worker; an empty list before the first round."""
        return self._fleet.slots if self.driver else []

    def open(self) -> None:
        """Allows rounds from now on; Ray and the workers start in the first round."""
        if self._stack is not None:
            raise RuntimeError(
                "this RayCluster is already open: enter its `with` block only once"
            )
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """Ends all workers, and Ray if this process started it."""
        if self.driver is not None:
            self.driver.is_closed.set()
        with self.lock:
            driver = self.driver
            stack = self._stack
            self.driver = None
            self._stack = None
            with stack or contextlib.nullcontext():
                if driver is not None:
                    driver.end()

    def compute(
        self,
        params: Any,
        step: int,
        key: jax.Array,
        *,
        owner: object,
        decodes: Callable[[np.ndarray], bool],
    ) -> Round:
        """Runs the round of a step, and returns it. Rounds of other threads wait.

        Args:
          params: Parameters.
          step: Number of the step.
          key: PRNG key of batches.
          owner: Owner of late messages, see `MessageRound`.
          decodes: Returns whether a mask of messages can be decoded. If it cannot, the
            cluster warns or raises.
        """
        with self.lock:
            driver = self.started(params, step, key)
            leaves = _finite_leaves(params, self._params_like)
            before = self._fleet.num_losses().sum()
            this_round = driver.run(step, leaves, sent(key), owner)
            num_replaced = int(self._fleet.num_losses().sum() - before)
            this_round = this_round._replace(replaced=num_replaced)
            self._check_decodes(this_round, step, decodes)
            return this_round

    def _check_decodes(
        self, this_round: Round, step: int, decodes: Callable[[np.ndarray], bool]
    ) -> None:
        """Warns about the first undecodable round, or raises RuntimeError.

        It raises if the cluster has `undecodable="raise"`, or if no worker responded.
        """
        mask = this_round.received
        if this_round.decoding is not None:
            mask = np.asarray(this_round.decoding.mask)
        is_empty = not this_round.received.any() and not this_round.rejected
        raises = is_empty or self._raises
        has_told = self._has_warned and not raises
        if has_told or decodes(mask):
            return
        why = self._fleet.why_undecodable(this_round)
        message = f"the round of step {step} cannot be decoded, since {why}"
        if raises:
            errors = (slot.error for slot in self.workers if slot.error)
            raise RuntimeError(message) from next(errors, None)
        warnings.warn(f"{message} (shown once)", stacklevel=4)
        self._has_warned = True

    def started(self, params: Any, step: int, key: jax.Array) -> Driver:
        """Returns the driver of rounds; the first call starts the workers."""
        if self._stack is None:
            raise RuntimeError(
                "compute and train must be called inside the `with` block of the "
                "RayCluster"
            )
        check_params(params)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)),
            params,
        )
        if self.driver is None:
            self._params_like = like
            if self._parts is not None:
                first = jax.tree.map(lambda leaf: leaf[:1], read(self._parts))
                try_term(self._task, like, first, key)
            # Python drops a Ctrl-C that arrives while Ray forks its processes.
            # `check_interrupt` raises it again.
            with noticed_interrupts():
                folder = self._stack.enter_context(session(self._processes.address))
                check_interrupt()
                num_processes = self._code.num_workers
                if self._processes.has_spare:
                    num_processes += 1
                check_resources(num_processes, self._processes.options)
                self.driver = self._make_driver(like, key, folder)
                try:
                    self.driver.start(step)
                except BaseException:
                    self.driver.end()
                    self.driver = None
                    raise
        if jax.tree.flatten(like) != jax.tree.flatten(self._params_like):
            before = by_name("params", self._params_like)
            differs = difference(before, by_name("params", like))
            raise ValueError(
                "params must have the structure, shapes and dtypes of the first round; "
                "got "
                f"{differs or jax.tree.structure(like)}"
            )
        return self.driver

    def _make_driver(self, like: Any, key: jax.Array, folder: str | None) -> Driver:
        """Returns a new driver of rounds, whose workers have not been started.

        Args:
          like: Shapes and dtypes of params.
          key: PRNG key of batches.
          folder: Folder of a Ray that this process has started, or None: see `session`.
        """
        code = self._code
        options = self._verification
        settings = {name: getattr(jax.config, name) for name in SHARED_SETTINGS}
        if settings[COMPILATION_CACHE] is None and folder is not None:
            # Workers share a compilation cache in this folder, so that a replacement
            # need not compile again.
            settings[COMPILATION_CACHE] = str(Path(folder, "compiled"))
        task = self._task._replace(params=like, key=sent(key), settings=settings)
        task = task._replace(has_queries=bool(options.on_wrong or options.audit))
        layout = Layout.of(code, like, task.message_dtype)
        plan = None
        if code.messages_per_worker > 1:
            plan = RequestPlan.of(code, layout, self._decoder)
            task = task._replace(report_size=plan.report_size)
        self._fleet.restart(code.num_workers)
        launcher = Launcher(
            code,
            layout,
            task,
            self._parts,
            self._processes.options,
            has_spare=self._processes.has_spare,
        )
        driver = Driver(self._fleet, layout, launcher, plan)
        workers = WorkersOfRound(driver.actors, self._fleet)
        driver.verifier = verifier_of(
            options,
            self._locator,
            PartCopies(code, task, self._parts, workers),
            key,
        )
        return driver


def _finite_leaves(params: Any, like: Any) -> list[np.ndarray]:
    """Returns the leaves of params in NumPy; raises ValueError if one is not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = []
    for (path, leaf), shape in zip(leaves, jax.tree.leaves(like)):
        array = np.asarray(leaf, shape.dtype)
        if not is_finite(array):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"params must be finite; got NaN or infinity in {name}")
        arrays.append(array)
    return arrays
