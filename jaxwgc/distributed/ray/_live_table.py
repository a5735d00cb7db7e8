"""Live table of training in the terminal, with one row per worker."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxwgc.distributed.ray._callbacks import Progress
from jaxwgc.distributed.ray._fleet import WorkerSlot
from jaxwgc.distributed.ray._session import find_extra
from jaxwgc.reports import StragglerReport


@contextlib.contextmanager
def live_table(
    num_steps: int,
    num_workers: int,
    workers: Callable[[], list[WorkerSlot]],
    make_report: Callable[[], StragglerReport],
) -> Iterator[list[Callable[[Progress], None]]]:
    """Shows a live table of workers in the terminal; yields callbacks that update it.

    Before the first step, it shows how many workers are ready. From step 8 on, it shows
    a straggler report, and a new one whenever the number of steps has doubled.

    Args:
      num_steps: Number of steps in all.
      num_workers: Number of workers.
      workers: Returns the state of each worker, or an empty list before the start.
      make_report: Returns the straggler report of the rounds so far.
    """
    display = find_extra("rich.live").Live
    new_table = find_extra("rich.table").Table
    start = time.monotonic()
    steps = 0
    num_missed = np.zeros(num_workers)
    table = None
    report = None

    def shown() -> Any:
        if table is not None:
            return table
        num_ready = sum(bool(slot.node) for slot in workers())
        return f"{num_ready} of {num_workers} workers are ready"

    with display(get_renderable=shown, refresh_per_second=4):

        def show(progress: Progress) -> None:
            nonlocal num_missed, steps, table, report
            metrics = progress.metrics()
            steps = steps + 1
            num_missed = num_missed + ~progress.round.received
            seconds_per_step = (time.monotonic() - start) / steps
            title = (
                f"step {progress.state.step} of {num_steps}: loss {progress.loss:.6g}, "
                f"{seconds_per_step:.3g} s a step"
            )
            is_power_of_two = steps.bit_count() == 1
            if steps >= 8 and is_power_of_two:
                # `make_report` raises ValueError if, e.g., no worker has responded.
                # The table then keeps the last report, if there is one.
                with contextlib.suppress(ValueError):
                    report = make_report()
            new = new_table(
                "worker",
                "straggled",
                "last response",
                "slowdown",
                "kind",
                "trouble",
                caption=None if report is None else report.advice,
            )
            new.title = title
            new.title_justify = "left"
            for worker, slot in enumerate(workers()):
                seconds = metrics[f"worker/{worker}/seconds"]
                slowdown = ""
                kind_of_worker = ""
                if report is not None:
                    slowdown = f"{report.slowdown[worker]:.2f}"
                    kind_of_worker = report.kind_texts[worker]
                new.add_row(
                    str(worker),
                    f"{num_missed[worker] / steps:.1%}",
                    f"{seconds:.3f} s" if seconds >= 0 else "none",
                    slowdown,
                    kind_of_worker,
                    slot.trouble,
                )
            table = new

        yield [show]
