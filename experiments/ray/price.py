"""The overhead of a step on request: calls, bytes, memory and time."""

import collections
import os
import pickle
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.study import Once, Study, timed
from jaxwgc import codes
from jaxwgc.distributed.ray._actors import Actors
from jaxwgc.distributed.ray._events import PartsDone

NUM_WORKERS, PARTS_EACH, NUM_PARAMS = 8, 8, 1_000_000
# Steps before the measurement: they allocate memory and compile.
NUM_WARM = 5


def study(steps: int) -> Study:
    """Returns the overhead of steps with empty work, without a code and on request."""
    num_parts = NUM_WORKERS * PARTS_EACH
    given = {
        # As many parts as on request, added up as they are computed.
        "uncoded": jaxwgc.GradientCode.from_matrix(
            np.eye(NUM_WORKERS).repeat(PARTS_EACH, 1)
        ),
        "on request, 1 copy": codes.replicated(NUM_WORKERS, num_parts, copies=1),
        "on request, 2 copies": codes.replicated(NUM_WORKERS, num_parts, copies=2),
    }
    return timed(
        {name: Once(measure, code, steps) for name, code in given.items()},
        f"A step with empty work, {NUM_WORKERS} workers with {PARTS_EACH} parts "
        f"each and their copies, {NUM_PARAMS:,} parameters in float32",
        {
            "code": "{name}",
            "ms per step": "{milliseconds:,.0f}",
            "calls": "{calls:,.0f}",
            "control bytes": "{control_bytes:,.0f}",
            "vectors sent": "{vectors:,.0f}",
            "MB per worker": "{megabytes:,.0f}",
        },
    )


def measure(code: jaxwgc.GradientCode, steps: int) -> dict[str, Any]:
    """Median milliseconds of a step, means of what is sent, memory of a worker."""
    calls: collections.Counter[str] = collections.Counter()
    perform, next_event = Actors.perform, Actors.next_event

    def counted_perform(actors, actions):
        calls["calls"] += len(actions)
        # Parameters go into the object store, as without a code.
        calls["control_bytes"] += sum(len(pickle.dumps(action)) for action in actions)
        perform(actors, actions)

    def counted_event(actors, seconds):
        event = next_event(actors, seconds)
        if isinstance(event, PartsDone):
            calls["control_bytes"] += len(pickle.dumps(event.reports))
        elif event is not None:
            calls["vectors"] += 1
        return event

    patches = {"perform": counted_perform, "next_event": counted_event}
    seconds = []
    parts = np.ones((code.num_parts, 1), np.float32)
    params = np.zeros(NUM_PARAMS, np.float32)
    with (
        jaxwgc.distributed.RayCluster(
            lambda params, part: jnp.sum(part) * params[0], code, parts
        ) as cluster,
        mock.patch.multiple(Actors, **patches),
    ):
        for step in range(NUM_WARM + steps):
            if step == NUM_WARM:
                calls.clear()
            begin = time.perf_counter()
            cluster.compute(params)
            if step >= NUM_WARM:
                seconds.append(time.perf_counter() - begin)
        pages = [
            int(Path(f"/proc/{slot.pid}/statm").read_text().split()[1])
            - int(Path(f"/proc/{slot.pid}/statm").read_text().split()[2])
            for slot in cluster.workers
        ]
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    return {
        "milliseconds": 1e3 * float(np.median(seconds)),
        "megabytes": float(np.mean(pages)) * page,
        **{name: calls[name] / steps for name in ("calls", "control_bytes", "vectors")},
    }
