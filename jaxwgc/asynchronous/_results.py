"""Results of a race: losses against time, a table and a figure."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from jaxwgc._common import array_validation
from jaxwgc._common.text import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Race:
    """Result of `jaxwgc.race`; `print` shows the time of each method to each target.

    Times in the table are medians over seeds, with quartiles. A dash means that the
    median seed does not reach the target. Targets on a plateau of noise are reached by
    chance: see `times_to`.

    Attributes:
      methods: Names of the methods.
      seconds: Points of time, (points,), in the unit of the delay model.
      loss: Relative loss, (methods, seeds, points): 1 at the start, 0 at the solution.
      distance: Distance to the solution, (methods, seeds, points); NaN without one.
      num_updates: Number of updates in the race, (methods, seeds).
      step_sizes: Step size of each method, (methods,).
      offered_step_sizes: Step sizes to choose from.
      targets: Relative losses whose times are in the table.

    Example:
      >>> import numpy as np
      >>> from jaxwgc import asynchronous
      >>> results = asynchronous.Race(
      ...     methods=("wait",),
      ...     seconds=np.array([0.0, 1.0, 2.0]),
      ...     loss=np.array([[[1.0, 0.5, 0.05]]]),
      ...     distance=np.full((1, 1, 3), np.nan),
      ...     num_updates=np.array([[2]]),
      ...     step_sizes=np.array([0.1]),
      ...     offered_step_sizes=np.array([0.01, 0.1, 1.0]),
      ...     targets=(0.1, 0.01),
      ... )
      >>> results.times_to(0.1)["wait"]
      array([2.])
    """

    methods: tuple[str, ...]
    seconds: np.ndarray
    loss: np.ndarray
    distance: np.ndarray
    num_updates: np.ndarray
    step_sizes: np.ndarray
    offered_step_sizes: np.ndarray
    targets: tuple[float, ...]

    def times_to(self, target: float) -> dict[str, np.ndarray]:
        """Returns the times at which the seeds of each method reach a relative loss.

        From this time to the end of the race, the loss is at most the target. The time
        is infinity for seeds that do not reach the target.

        Args:
          target: Relative loss.

        Raises:
          ValueError: If target is not positive.
        """
        array_validation.check_number("target", target, positive=True, traceable=False)
        ends = np.append(self.seconds, np.inf)
        times = ends[place_of(self.loss, target)]
        return dict(zip(self.methods, times, strict=True))

    def plot(self) -> "Figure":
        """Draws the median loss of each method against time, with quartiles.

        Returns:
          A `matplotlib.figure.Figure`, which notebooks show; `savefig` writes it to a
          file.

        Raises:
          ImportError: If matplotlib (extra `plot`) is not installed.
        """
        from jaxwgc._common.notebook_figure import NotebookFigure

        figure = NotebookFigure((7.0, 4.0), layout="constrained")
        axes = figure.subplots()
        quartiles = np.quantile(self.loss, [0.25, 0.5, 0.75], axis=1)
        for name, low, median, high in zip(self.methods, *quartiles, strict=True):
            [line] = axes.plot(self.seconds, median, label=name)
            axes.fill_between(
                self.seconds, low, high, alpha=0.2, color=line.get_color()
            )
        axes.set(xlabel="time", ylabel="loss relative to the start", yscale="log")
        figure.legend(loc="outside right upper")
        return figure

    def __repr__(self) -> str:
        rows = [("method", "step size", "updates", *map("{:g}".format, self.targets))]
        limits = self.offered_step_sizes.min(), self.offered_step_sizes.max()
        for place, name in enumerate(self.methods):
            size = self.step_sizes[place]
            mark = " *" if size in limits and limits[0] < limits[1] else ""
            times = (self.times_to(target)[name] for target in self.targets)
            updates = f"{np.median(self.num_updates[place]):.0f}"
            rows.append((name, f"{size:.3g}{mark}", updates, *map(_quartiles, times)))
        text = (
            f"time to each loss relative to the start, median of {self.loss.shape[1]} "
            f"seeds [quartiles]; race of {self.seconds[-1]:.4g}\n\n{aligned(rows)}"
        )
        if "*" in text:
            text += "\n\n* The smallest or largest step size that was offered."
        is_infinite = ~np.isfinite(self.loss).all(axis=-1)
        for place, name in enumerate(self.methods):
            if not self.num_updates[place].any():
                text += f"\n\n{name} makes no update: it waits for workers that never "
                text += "respond, or for longer than the race."
            if is_infinite[place].any():
                text += f"\n\nParameters of {name} become infinite in "
                text += f"{is_infinite[place].sum()} seeds at its step size."
        return text


def place_of(losses: np.ndarray, target: float) -> np.ndarray:
    """Returns the index of the point from which all losses are at most a target.

    The number of points if the last loss is above the target.
    """
    from_the_end = np.flip(losses <= target, axis=-1)
    num_reached = np.logical_and.accumulate(from_the_end, axis=-1).sum(axis=-1)
    return losses.shape[-1] - num_reached


def _quartiles(times: np.ndarray) -> str:
    """Returns the median and quartiles of times as text; "-" if infinite."""
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75], method="nearest")
    if not np.isfinite(median):
        return "-"
    return f"{median:.4g} [{low:.3g}, {high:.3g}]"
