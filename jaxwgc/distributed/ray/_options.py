"""Options of a `RayCluster` for verification, timeouts and simulated faults."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxwgc import coding
from jaxwgc._common import array_validation, validation
from jaxwgc.codes import GradientCode

# Smallest time limit for a response, in seconds. A machine that starts processes may
# pause its other processes for up to a second.
SHORTEST_RESPONSE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Verification:
    """Options for the detection of corrupted messages by a `RayCluster`.

    Args:
      on_wrong: For codes with one message per worker. The parity checks of the code
        compare messages before they are decoded, as in `jaxwgc.locate_errors`. `"drop"`
        leaves corrupted messages out. `"arbitrate"` is for codes of copies, such as
        `codes.fractional_repetition`: two workers that differ are queried for sums over
        fewer and fewer of their parts, and the last part is recomputed. `"raise"`
        raises an error that names worker and machine. A round is rejected if its errors
        cannot be explained, or if too few messages arrived for any check. Nothing of a
        rejected round is used, and `undecodable` says what follows. A worker with
        corrupted messages in three rounds is replaced, with a warning. None compares
        nothing.
      audit: For rounds on request. Probability, below 1, that a round requests one part
        twice: from the worker that sent it, and from another that holds it. If they
        differ, the part is recomputed, and the corrupted worker is left out of the
        round: the others finish its parts. It is replaced as with `on_wrong`. A worker
        with a given share of all parts, all of them corrupted, is found after 1 /
        (audit * share) rounds on average. None and 0 disable audits.
      noise: Difference of honest copies of a message, relative to its norm, if it is
        larger than rounding, e.g. between two kinds of processors.
      digests: With `RayCluster(batches=...)`: workers send a digest of 64 bits of each
        batch with their responses. If two holders of a part have different batches,
        the round ends with an error that names step, part and workers, before its
        gradient is used. Batches of workers that do not respond in the round are not
        compared. Two batches that differ have equal digests with a probability of
        about 2^-64. False compares nothing.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.distributed.Verification(on_wrong="drop").noise
      0.0
    """

    on_wrong: str | None = None
    audit: float | None = None
    noise: float = 0.0
    digests: bool = True

    def __post_init__(self):
        validation.check_bool("digests", self.digests)
        if self.on_wrong is not None:
            choices = ("drop", "arbitrate", "raise")
            validation.check_choice("on_wrong", self.on_wrong, choices)
        if self.audit is not None:
            array_validation.check_number(
                "audit", self.audit, minimum=0, traceable=False
            )
            if self.audit >= 1:
                raise ValueError(f"audit must be below 1; got {self.audit}")
        array_validation.check_number("noise", self.noise, minimum=0, traceable=False)

    def locator(self, code: GradientCode) -> coding.ErrorLocator | None:
        """Returns the error locator of a code, or None if `on_wrong` is None.

        Raises:
          ValueError: If an option does not fit the code.
        """
        is_on_request = code.messages_per_worker > 1
        if self.audit and not is_on_request:
            raise ValueError(
                "audit must be None for a code with one message per worker; got "
                f"{self.audit}. Use on_wrong instead"
            )
        if self.on_wrong is None:
            return None
        if is_on_request:
            raise ValueError(
                "on_wrong must be None for a code with several messages per worker; "
                f"got {self.on_wrong!r}. Use audit instead"
            )
        locator = coding.ErrorLocator.of(code)
        if self.on_wrong == "arbitrate" and locator.copies is None:
            raise ValueError(
                "on_wrong='arbitrate' needs a code with groups of workers that send "
                f"equal messages, e.g. codes.fractional_repetition; got {code}. For "
                "other codes, use on_wrong='drop' or 'raise'"
            )
        return locator


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """Seconds that a `RayCluster` waits for a worker.

    Args:
      response: Seconds without a response to a step, or on request without a finished
        part, after which a worker is replaced; at least 2. None adapts it: 10 times the
        slowest of the last 20 responses of each worker, at least 2 and at most 60
        seconds, and 60 seconds for a worker that has not responded yet. A worker that
        is silent for half of this time is suspected: the round does not wait for it if
        the others decode. Once it responds, it is no longer suspected.
      start: Seconds for a worker to load its parts and to compile.
      replacement: Seconds that a round that cannot be decoded waits for a worker that
        is being replaced, from its loss on. A worker that does not come back in that
        time is not waited for in later rounds either. A rule that ends by the clock,
        such as `deadline`, ends an undecodable round at its own time.

    Raises:
      ValueError: If `response` is below 2, or another number is not positive.
      TypeError: If a value is not a number.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.distributed.Timeouts(response=5)
      Timeouts(response=5, start=300.0, replacement=60.0)
    """

    response: float | None = None
    start: float = 300.0
    replacement: float = 60.0

    def __post_init__(self):
        if self.response is not None:
            _check_seconds("response", self.response)
            if self.response < SHORTEST_RESPONSE_SECONDS:
                raise ValueError(
                    f"response must be at least {SHORTEST_RESPONSE_SECONDS:g} seconds; "
                    f"got {self.response}"
                )
        _check_seconds("start", self.start)
        _check_seconds("replacement", self.replacement)


def _check_seconds(name: str, seconds: float) -> None:
    array_validation.check_number(name, seconds, positive=True, traceable=False)


@dataclasses.dataclass(frozen=True)
class Faults:
    """Delays and corrupted messages for experiments with a `RayCluster`.

    Both functions are called on the workers.

    Args:
      delay: `delay(worker, step)`, seconds to sleep before a response, or on request
        before each part.
      corrupt: `corrupt(worker, step, message)`, a NumPy array like the message, sent in
        its place. The message has shape (length,) and real or complex numbers of at
        least 32 bits per component, also if messages are sent with fewer bits.

    Example:
      >>> import jaxwgc
      >>> faults = jaxwgc.distributed.Faults(delay=lambda worker, step: 0.1)
    """

    delay: Callable[[int, int], float] | None = None
    corrupt: Callable[[int, int, np.ndarray], np.ndarray] | None = None

    def __post_init__(self):
        if self.delay is not None:
            validation.check_callable("delay", self.delay)
        if self.corrupt is not None:
            validation.check_callable("corrupt", self.corrupt)
