"""Events that round engines handle, and actions that they return.

`number` is that of a round: its row in the trace. `call` identifies a call of a worker,
and returns with its response.
"""

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


class Response(NamedTuple):
    """A call of a worker has returned.

    Attributes:
      worker: Index of the worker.
      call: Identifier of the call.
      result: What the method returned: an `Answer`, a list of `Report`, or a sum, which
        is None if the worker has gone on to another round.
      seconds: Response time.
    """

    worker: int
    call: int
    result: Answer | list[Report] | np.ndarray | None
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


class Call(NamedTuple):
    """Call a method of a worker.

    Attributes:
      worker: Index of the worker.
      method: `"compute"`, which is given the parameters of the round first, `"report"`,
        `"answer"` or `"stop"`: see `PartWorker`.
      number: Round.
      arguments: Further arguments.
      call: Identifier, which `Fleet.call` sets.
    """

    worker: int
    method: str
    number: int
    arguments: tuple = ()
    call: int = -1


Event = Ready | Response | Lost
Action = Launch | Replace | Call
