"""Options of a `RayCluster` that belong together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxwgc import _validation, coding
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.codes import GradientCode


@dataclasses.dataclass(frozen=True)
class Verification:
    """Options for the detection of corrupted messages by a `RayCluster`.

    Args:
      on_wrong: For codes with one message per worker: messages are compared before they
        are decoded, by the parity checks of the code (see `jaxwgc.locate_errors`).
        `"drop"` leaves corrupted messages out. `"arbitrate"`, for codes of copies such
        as `codes.fractional_repetition`, asks two workers that differ for sums over
        fewer and fewer of their parts, and recomputes the last one. `"raise"` raises an
        error that names worker and machine. A round is rejected if the corrupted
        messages cannot be told, or if there is nothing to compare with: nothing of it
        is used, and `undecodable` says what follows. A worker with messages that were
        corrupted in three rounds is replaced, with a warning. None compares nothing.
      audit: For rounds on request: probability, below 1, that a round asks for one part
        twice, the worker that sent it and another that holds it. If they differ, the
        part is recomputed, and the corrupted worker is left out of the round: the
        others finish its parts. It is replaced as with `on_wrong`. A worker that is
        always corrupted, and has a share of all parts, is unseen for
        1 / (audit * share) rounds on average. None and 0 never ask.
      noise: See `jaxwgc.locate_errors`.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.distributed.Verification(on_wrong="drop").noise
      0.0
    """

    on_wrong: str | None = None
    audit: float | None = None
    noise: float = 0.0

    def __post_init__(self):
        if self.on_wrong is not None:
            choices = ("drop", "arbitrate", "raise")
            _validation.check_choice("on_wrong", self.on_wrong, choices)
        if self.audit is not None:
            _validation.check_number("audit", self.audit, minimum=0, traceable=False)
            if self.audit >= 1:
                raise ValueError(
                    f"audit must be a probability below 1; got {self.audit}"
                )
        _validation.check_number("noise", self.noise, minimum=0, traceable=False)

    def locator(self, code: GradientCode) -> coding.ErrorLocator | None:
        """Returns the error locator of a code, None without `on_wrong`.

        Raises:
          ValueError: If an option does not fit the code.
        """
        if self.audit and code.messages_per_worker == 1:
            raise ValueError(
                "audit must be None for codes of one message per worker, for which "
                f"on_wrong is; got {self.audit}"
            )
        if self.on_wrong is None:
            return None
        if code.messages_per_worker > 1:
            raise ValueError(
                "on_wrong must be None for codes of several messages per worker, which "
                f"send no part twice (use audit); got {self.on_wrong!r}"
            )
        locator = coding.ErrorLocator.of(code)
        if self.on_wrong == "arbitrate" and locator.copies is None:
            raise ValueError(
                "on_wrong must be 'drop' or 'raise' unless all checks of the code are "
                "copies, as those of fractional_repetition; got 'arbitrate' for "
                f"{code}"
            )
        return locator


@dataclasses.dataclass(frozen=True)
class Faults:
    """Faults for experiments with a `RayCluster`; functions called on the workers.

    Args:
      delay: `delay(worker, step)`, seconds to sleep before a response, or on request
        before each part.
      corrupt: `corrupt(worker, step, message)`, a NumPy array like the message, sent in
        its place.

    Example:
      >>> import jaxwgc
      >>> faults = jaxwgc.distributed.Faults(delay=lambda worker, step: 0.1)
    """

    delay: Callable[[int, int], float] | None = None
    corrupt: Callable[[int, int, np.ndarray], np.ndarray] | None = None

    def __post_init__(self):
        for name, function in vars(self).items():
            if function is not None:
                _validation.check_callable(name, function)


# Former options, and their places.
_MOVED = {
    "callback": "callbacks=[...]",
    **{
        field.name: f"{option}={group.__name__}({field.name}=...)"
        for option, group in (
            ("decoding", DecodingOptions),
            ("verification", Verification),
            ("faults", Faults),
        )
        for field in dataclasses.fields(group)
    },
}


def reject_unknown(options: dict[str, Any]) -> None:
    """Raises TypeError for unknown options, and names the new place of old ones.

    Args:
      options: Options by name.
    """
    for name, value in options.items():
        if name not in _MOVED:
            raise TypeError(f"there is no option {name}; got {value!r}")
        raise TypeError(f"{name} is now {_MOVED[name]}; got {value!r}")
