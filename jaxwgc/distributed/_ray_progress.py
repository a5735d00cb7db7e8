"""What is seen of a training while it runs."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxwgc.distributed._ray_cluster import RayCluster


@contextlib.contextmanager
def show(num_steps: int, cluster: "RayCluster") -> Iterator[Callable[[Any], None]]:
    """A function of a `Progress`, which shows it in the terminal."""
    try:
        from rich.live import Live
    except ImportError as error:
        raise ImportError(
            "live needs rich, which is an extra: in a checkout of jaxwgc, "
            "pip install '.[ray]'"
        ) from error
    num_workers = cluster.code.num_workers
    missed = np.zeros(num_workers, int)
    steps = 0
    start = time.monotonic()
    with Live(refresh_per_second=4) as live:

        def report(progress: Any) -> None:
            nonlocal steps
            steps += 1
            missed[~progress.round.received] += 1
            live.update(
                table(
                    f"step {progress.state.step} of {num_steps}: loss "
                    f"{progress.loss:.6g}, {(time.monotonic() - start) / steps:.3g} s "
                    "a step",
                    missed / steps,
                    progress.round.times,
                    [place.trouble for place in cluster.places],
                )
            )

        yield report


def table(title: str, missed: np.ndarray, times: np.ndarray, troubles: list) -> Any:
    """A row a worker: how often it was a straggler, and how it is now."""
    from rich.table import Table

    found = Table(title=title, title_justify="left")
    for column in ("worker", "straggled", "last answer"):
        found.add_column(column, justify="right")
    found.add_column("trouble")
    for worker, (share, seconds) in enumerate(zip(missed, times)):
        answer = f"{seconds:.3f} s" if np.isfinite(seconds) else "none"
        found.add_row(str(worker), f"{share:.1%}", answer, troubles[worker])
    return found
