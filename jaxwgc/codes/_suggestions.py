"""The nearest parameters that work, for errors about those that do not."""

import itertools
from collections.abc import Callable


def nearest(
    value: int, works: Callable[[int], bool], minimum: int, maximum: int | None = None
) -> str:
    """Such as "the nearest that work are 5 and 7": those below and above `value`.

    Only one where nothing works on the other side of `value` between minimum and
    maximum. Without a maximum something above must work.
    """
    highest = value - 1 if maximum is None else min(value - 1, maximum)
    below = range(highest, minimum - 1, -1)
    lowest = max(value + 1, minimum)
    above = itertools.count(lowest) if maximum is None else range(lowest, maximum + 1)
    neighbours = [next(filter(works, side), None) for side in (below, above)]
    named = [str(other) for other in neighbours if other is not None]
    verb = "work are" if len(named) == 2 else "works is"
    return f"the nearest that {verb} {' and '.join(named)}"
