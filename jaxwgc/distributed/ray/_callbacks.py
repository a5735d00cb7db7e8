"""Callbacks of training: their arguments, and adapters for metric writers."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from jaxwgc.distributed.ray._messages import Round


class TrainingState(NamedTuple):
    """State of training: params, optimizer state, key and number of steps."""

    params: Any
    optimizer_state: Any
    key: jax.Array
    step: int


class Progress(NamedTuple):
    """Argument of the callbacks of `RayCluster.train`: state, round and loss of a step.

    Attributes:
      state: State after the step, as `RayCluster.train` returns it. It is a copy:
        training goes on with its own.
      round: `Round` of the step.
      loss: Sum of the losses of the parts before the step. NaN if the loss of a part is
        not known, or with `contribution`.
      undecodable: Whether the round could not be decoded.

    Example:
      A callback that ends the training once the loss is small:

      >>> import jax.numpy as jnp, jaxwgc, optax
      >>> cluster = jaxwgc.distributed.RayCluster(
      ...     lambda params, part: jnp.sum((params - part) ** 2),
      ...     jaxwgc.codes.cyclic_mds(3, num_stragglers=1),
      ...     jnp.array([1.0, 2.0, 6.0]),
      ... )
      >>> def stop_early(progress):
      ...     print(progress.state.step, progress.loss, progress.metrics()["responded"])
      ...     return "stop" if progress.loss < 15 else None
      >>> with cluster:  # doctest: +SKIP
      ...     state = cluster.train(
      ...         optax.sgd(0.1), jnp.zeros(()), 50, callbacks=[stop_early]
      ...     )
    """

    state: TrainingState
    round: Round
    loss: float
    undecodable: bool

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the step as a dict of floats.

        `loss`; `step_seconds`, the duration of the round; `responded`, the number of
        workers that responded before its end; `corrupted`, the number of workers
        with rejected messages; `undecodable`, 1 if the round could not be decoded;
        `replaced`, the number of replacements of workers during the round;
        `worker/3/seconds`, the seconds that worker 3 took, as in `Round.seconds`. NaN
        if the worker did not respond before the end of the round.
        """
        this_round = self.round
        num_corrupted = 0 if this_round.wrong is None else this_round.wrong.sum()
        metrics = {
            "loss": float(self.loss),
            "step_seconds": float(this_round.elapsed),
            "responded": float(np.isfinite(this_round.seconds).sum()),
            "corrupted": float(num_corrupted),
            "undecodable": float(self.undecodable),
            "replaced": float(this_round.replaced),
        }
        for worker, seconds_of_worker in enumerate(this_round.seconds.tolist()):
            metrics[f"worker/{worker}/seconds"] = seconds_of_worker
        return metrics


class JsonLines:
    """Callback of `RayCluster.train` that appends one JSON object per step to a file.

    An object has `run`, an identifier of the run, `step`, the number of steps that have
    been taken, and `Progress.metrics()`, with null for what is not finite. If workers
    have responded to earlier steps, `late` has their times: a list of [worker, step,
    seconds]. The line of a step is written before the checkpoint of the step. If
    training resumes from a checkpoint, lines of later steps are removed.

    Args:
      path: File of this run. It is created if it does not exist.

    Raises:
      ValueError: When training starts, if the file has lines of another run. A run ends
        with its process, unless it has a `checkpoint` folder.

    Example:
      >>> from jaxwgc.distributed import JsonLines
      >>> callbacks = [JsonLines("metrics.jsonl")]
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._run = ""

    def begin(self, run: str, step: int) -> None:
        """Prepares the file for a run from `step`: removes lines of later steps.

        `train` calls this method before the first step.
        """
        self._run = run
        size = 0
        start = json.dumps({"run": run, "step": 0}).removesuffix("0}").encode()
        self.path.touch()
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            # A killed process may leave an incomplete line. Only the characters that it
            # has are compared.
            if line[: len(start)] != start[: len(line)]:
                raise ValueError(
                    f"path must be a file of this run; line {number} of {self.path} is "
                    "of another run. Pass another path to JsonLines, or continue that "
                    "run with its checkpoint folder"
                )
            if line[-1:] != b"\n" or json.loads(line)["step"] > step:
                break
            size += len(line)
        os.truncate(self.path, size)

    def __call__(self, progress: Progress) -> None:
        """Appends the metrics of a step as one line of JSON."""
        fields: dict[str, Any] = {"run": self._run, "step": progress.state.step}
        for name, value in progress.metrics().items():
            fields[name] = value if np.isfinite(value) else None
        late = [
            [time.worker, progress.state.step - time.rounds_ago, time.seconds]
            for time in progress.round.late_times
        ]
        if late:
            fields["late"] = late
        line = json.dumps(fields)
        with self.path.open("a") as file:
            file.write(line + "\n")


class LogsMetrics(Protocol):
    """Metric writer with a `log` method, such as a run of wandb."""

    def log(self, metrics: dict[str, float], *, step: int) -> object:
        """Writes the metrics of a step."""
        ...


class WritesScalars(Protocol):
    """Metric writer with a `write_scalars` method, such as a writer of clu."""

    def write_scalars(self, step: int, metrics: dict[str, float]) -> object:
        """Writes the metrics of a step."""
        ...


class AddsScalar(Protocol):
    """Metric writer with an `add_scalar` method, e.g. TensorBoard's `SummaryWriter`."""

    def add_scalar(self, name: str, value: float, step: int) -> object:
        """Writes one metric of a step."""
        ...


# Names of the methods of metric writers. A writer has one of them.
_METHODS = ("log", "write_scalars", "add_scalar")
Callback: TypeAlias = (
    Callable[[Progress], object] | LogsMetrics | WritesScalars | AddsScalar
)


def begin(callbacks: Sequence[Callback], run: str, step: int) -> list[Callback]:
    """Prepares callbacks for a run from `step`, and returns them, `JsonLines` first.

    With this order, the file has the line of a step even if another callback raises in
    that step.

    Raises:
      TypeError: If a callback is neither a function nor a metric writer.
    """
    writers_of_lines = []
    others = []
    for callback in callbacks:
        if isinstance(callback, JsonLines):
            callback.begin(run, step)
            writers_of_lines.append(callback)
        elif callable(callback) or any(hasattr(callback, name) for name in _METHODS):
            others.append(callback)
        else:
            raise TypeError(
                "callbacks must be functions of a Progress, or have log(dict, step=), "
                "write_scalars(step, dict) or add_scalar(name, value, step); got "
                f"{callback!r}"
            )
    return [*writers_of_lines, *others]


def call(callback: Any, progress: Progress) -> object:
    """Calls a callback with `progress`, or a metric writer with its metrics.

    Returns the result of a callback that is a function, and None for a metric writer.
    """
    if callable(callback):
        return callback(progress)
    metrics = progress.metrics()
    step = progress.state.step
    # `hasattr` also finds methods that a writer provides by `__getattr__`. `isinstance`
    # with a Protocol does not.
    if hasattr(callback, "log"):
        callback.log(metrics, step=step)
    elif hasattr(callback, "write_scalars"):
        callback.write_scalars(step, metrics)
    else:
        # TensorBoard warns of each NaN, such as the seconds of a straggler. NaNs are
        # therefore left out.
        for name, value in metrics.items():
            if not np.isnan(value):
                callback.add_scalar(name, value, step)
    return None
