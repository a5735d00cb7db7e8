"""Events of a round, and the actions that they cause.

`number` is the number of a round, which is its row in the trace. `call` identifies a
call of a worker's method. A `Response` has the `call` to which it belongs.
"""

from typing import NamedTuple

import numpy as np

from jaxwgc.distributed.ray._messages import Progress, WorkerMessage


class Ready(NamedTuple):
    """Event: the process of a worker has started.

    Attributes:
      worker: Index of the worker.
      pid: Its process; None on another machine.
      node: Ray's name of the machine.
      host: Name of the machine.
      signature: Structure, shapes and dtypes of a part.
      origin: This part, in words.
      has_batches: Whether its data are batches that the worker reads in each step.
    """

    worker: int
    pid: int | None
    node: str
    host: str
    signature: str = ""
    origin: str = ""
    has_batches: bool = False


class Response(NamedTuple):
    """Event: a call of a worker's method has returned.

    Attributes:
      worker: Index of the worker.
      call: Identifier of the call.
      result: What the method returned: a `WorkerMessage`, a `Progress`, or a sum, which
        is None if the worker has gone on to another round.
      seconds: Response time.
    """

    worker: int
    call: int
    result: WorkerMessage | Progress | np.ndarray | None
    seconds: float


class Lost(NamedTuple):
    """Event: a worker raised an error, or its process ended.

    Attributes:
      worker: Index of the worker.
      trouble: Reason, in words.
      error: Exception of the worker if it raised one.
      has_died: Whether the process ended without an exception.
      ends_training: Whether the error is one of the user's data: another process would
        fail, too.
      number: Round of the call that raised; None if it was no call of a round.
    """

    worker: int
    trouble: str
    error: Exception | None = None
    has_died: bool = True
    ends_training: bool = False
    number: int | None = None


class Verdict(NamedTuple):
    """Event: the messages of a round have been verified.

    Attributes:
      right: bool (num_workers,), workers with messages to decode.
      wrong: bool (num_workers,), workers with corrupted messages.
      rejected: Whether the round is rejected: corrupted workers cannot be identified,
        or no message can be checked.
    """

    right: np.ndarray
    wrong: np.ndarray
    rejected: bool


class Launch(NamedTuple):
    """Action: start a process for a worker."""

    worker: int


class Replace(NamedTuple):
    """Action: end the process of a worker, and issue `warning` unless it is empty."""

    worker: int
    warning: str = ""


class Call(NamedTuple):
    """Action: call a method of a worker.

    Attributes:
      worker: Index of the worker.
      method: `"compute"`, which is given the parameters of the round first, `"report"`,
        `"send_sum"` or `"stop"`: see `PartWorker`.
      number: Round.
      arguments: Further arguments.
      call: Identifier, which `Fleet.call` sets.
    """

    worker: int
    method: str
    number: int
    arguments: tuple = ()
    call: int = -1


class Unverified(NamedTuple):
    """Messages of a round that wait for their verification.

    Attributes:
      number: Round.
      when: Round, in words.
      messages: (num_workers, length). Rows without a message have no meaning.
      received: bool (num_workers,), workers with messages.
      requests: On request, (num_workers, messages_per_worker), weights of the messages
        as sums; None for codes with one message per worker.
    """

    number: int
    when: str
    messages: np.ndarray
    received: np.ndarray
    requests: np.ndarray | None = None


WorkerEvent = Ready | Response | Lost
Event = WorkerEvent | Verdict
Action = Launch | Replace | Call
