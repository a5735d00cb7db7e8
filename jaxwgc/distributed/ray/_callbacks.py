"""Callbacks of training: their arguments, and adapters for metric writers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxwgc.distributed.ray._messages import Round


class TrainingState(NamedTuple):
    """State of a training, with all that is needed to continue it.

    Attributes:
      params: a pytree.
      optimizer_state: that of `optax.chain(decode_aggregate(...), optimizer)`; its
        first entry counts the rounds that could not be decoded.
      key: of batches.
      step: how many have been taken.
    """

    params: Any
    optimizer_state: Any
    key: jax.Array
    step: int


class Progress(NamedTuple):
    """The argument of the callbacks of `RayCluster.train`, after a step.

    Attributes:
      state: `TrainingState` after the step.
      round: `Round` of the step.
      loss: Sum of the losses of the parts before the step. NaN if the loss of a part is
        not known.
      undecodable: Whether the round could not be decoded.
    """

    state: TrainingState
    round: Round
    loss: float
    undecodable: bool

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the step under names that are the same in all steps.

        `loss`; `step_seconds`, the duration of the round; `responded`, the number of
        workers that responded before its end; `corrupted`, the number of workers
        with rejected messages; `undecodable`, 1 if the round could not be decoded;
        `replaced`, the number of replacements of workers during the round;
        `worker/3/seconds`, the time from the start of the round to the response of
        worker 3, on request to its last part. NaN if the worker did not respond.
        """
        round = self.round
        times = np.where(np.isfinite(round.times), round.times, np.nan)
        seconds = np.fmax.reduce(times.reshape(len(times), -1), axis=1)
        values = {
            "loss": self.loss,
            "step_seconds": round.elapsed,
            "responded": np.isfinite(seconds).sum(),
            "corrupted": 0 if round.wrong is None else round.wrong.sum(),
            "undecodable": self.undecodable,
            "replaced": round.replaced,
        }
        values |= {f"worker/{index}/seconds": own for index, own in enumerate(seconds)}
        return {name: float(value) for name, value in values.items()}


class JsonLines:
    """Callback of `RayCluster.train` that appends one JSON object per step to a file.

    An object has `run`, an identifier of the run, `step`, the number of steps that have
    been taken, and `Progress.metrics()`, with null for what is not finite. The line of
    a step is written before the checkpoint of the step. If training resumes from a
    checkpoint, lines of later steps are removed.

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
        """Removes lines of steps after `step`; `train` calls this method first."""
        self._run = run
        size = 0
        start = json.dumps({"run": run, "step": 0}).removesuffix("0}").encode()
        self.path.touch()
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            # Only the start of a line is compared, because a killed process may leave
            # an incomplete line.
            if line[: len(start)] != start[: len(line)]:
                raise ValueError(
                    f"JsonLines needs a file of this run; line {number} of {self.path} "
                    "is not: name another file, or the checkpoint folder of that run"
                )
            if line[-1:] != b"\n" or json.loads(line)["step"] > step:
                break
            size += len(line)
        os.truncate(self.path, size)

    def __call__(self, progress: Progress) -> None:
        """Appends the line of a step."""
        metrics = progress.metrics().items()
        values = {name: own if np.isfinite(own) else None for name, own in metrics}
        line = json.dumps({"run": self._run, "step": progress.state.step, **values})
        with self.path.open("a") as file:
            file.write(line + "\n")


def begin(callbacks: Sequence[Any], run: str, step: int) -> list[Any]:
    """Prepares callbacks for a run that starts at `step`; returns them in order.

    JSON lines come first, so that a file has the line of a step even if another
    callback raises in that step.

    Raises:
      TypeError: If a callback is neither a function nor a metric writer.
    """
    methods = "__call__", "log", "write_scalars", "add_scalar"
    for callback in callbacks:
        if isinstance(callback, JsonLines):
            callback.begin(run, step)
        if not any(hasattr(callback, method) for method in methods):
            raise TypeError(
                "callbacks must be functions of a Progress, or have log(dict, step=), "
                "write_scalars(step, dict) or add_scalar(name, value, step); got "
                f"{callback!r}"
            )
    return sorted(callbacks, key=lambda each: not isinstance(each, JsonLines))


def call(callback: Any, progress: Progress) -> Any:
    """Calls a function with `progress`, or a metric writer with its metrics."""
    if callable(callback):
        return callback(progress)
    metrics = progress.metrics()
    step = progress.state.step
    if hasattr(callback, "log"):
        callback.log(metrics, step=step)
    elif hasattr(callback, "write_scalars"):
        callback.write_scalars(step, metrics)
    else:
        # NaNs are left out, because TensorBoard warns of each. Seconds of stragglers
        # are NaN.
        for name, value in metrics.items():
            if not np.isnan(value):
                callback.add_scalar(name, value, step)
    return None
