"""Events that round engines handle, and actions that they return.

`number` is that of a round: its row in the trace. `call` identifies a call of a worker,
and returns with its response.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxwgc.distributed.ray._messages import Answer, Report


class Ready(NamedTuple):
    """The process of a worker has started.

    Attributes:
      worker: Index of the worker.
      pid: Its process; None on another machine.
      node: Ray's name of the machine.
      host: Name of the machine.
      signature: Structure, shapes and dtypes of a part.
    """

    worker: int
    pid: int | None
    node: str
    host: str
    signature: str = ""


class Message(NamedTuple):
    """A worker sent its message; `seconds` is its response time."""

    worker: int
    call: int
    answer: Answer
    seconds: float


class PartsDone(NamedTuple):
    """A worker sent reports of finished parts, maybe none."""

    worker: int
    call: int
    reports: Sequence[Report]


class Sum(NamedTuple):
    """A worker sent the sum of a `Request`; `vector` is None if it has none."""

    worker: int
    call: int
    vector: np.ndarray | None
    seconds: float


class Lost(NamedTuple):
    """A worker raised an error, or its process ended."""

    worker: int
    trouble: str
    error: Exception | None = None
    has_died: bool = True


class Launch(NamedTuple):
    """Start a process for a worker."""

    worker: int


class Replace(NamedTuple):
    """End the process of a worker, and issue a warning if there is one."""

    worker: int
    warning: str = ""


class Send(NamedTuple):
    """Send the parameters of the round, and further arguments of `compute`."""

    worker: int
    number: int
    arguments: tuple = ()
    call: int = -1


class Listen(NamedTuple):
    """Ask for the reports after the first `seen` ones: see `PartWorker.report`."""

    worker: int
    number: int
    seen: int
    taken: np.ndarray
    call: int = -1


class Request(NamedTuple):
    """Ask for the sum of a worker's messages, weighted by `weights`."""

    worker: int
    number: int
    weights: np.ndarray
    call: int = -1


class Stop(NamedTuple):
    """Tell a worker that the round is over."""

    worker: int
    number: int
    call: int = -1


Event = Ready | Message | PartsDone | Sum | Lost
Call = Send | Listen | Request | Stop
Action = Launch | Replace | Call
