"""The price of a step on request: calls, bytes, memory, and the coordinator's time."""

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
from experiments.runner.study import Numbers, Once, Study
from experiments.runner.tables import ResultTable
from jaxwgc import codes
from jaxwgc.distributed.ray._slots import WorkerSlot

NUM_WORKERS, PARTS_EACH, NUM_PARAMS = 8, 8, 1_000_000
# The first steps find memory and compile.
NUM_WARM = 5


def study(steps: int) -> Study:
    """Steps with empty work, without a code and on request."""
    num_parts = NUM_WORKERS * PARTS_EACH
    given = {
        # As many parts as on request, added up as they are computed.
        "uncoded": jaxwgc.GradientCode.from_matrix(
            np.eye(NUM_WORKERS).repeat(PARTS_EACH, 1)
        ),
        "on request, 1 copy": codes.replicated(NUM_WORKERS, num_parts, copies=1),
        "on request, 2 copies": codes.replicated(NUM_WORKERS, num_parts, copies=2),
    }

    def tabulate(numbers: Numbers) -> ResultTable:
        heads = {
            "milliseconds": "ms a step",
            "calls": "calls",
            "control_bytes": "bytes of control",
            "vectors": "vectors sent",
            "megabytes": "MB a worker",
        }
        rows = [
            [name, *(f"{counts[each]:,.0f}" for each in heads)]
            for name, counts in numbers.items()
        ]
        title = (
            f"A step with empty work, {NUM_WORKERS} workers with {PARTS_EACH} parts "
            f"each and their copies, {NUM_PARAMS:,} parameters in float32"
        )
        return ResultTable(title, ["code", *heads.values()], rows)

    cells = {name: Once(measure, code, steps) for name, code in given.items()}
    return Study(cells, tables={"": tabulate})


def measure(code: jaxwgc.GradientCode, steps: int) -> dict[str, Any]:
    """Median milliseconds of a step, means of what is sent, memory of a worker."""
    calls: collections.Counter[str] = collections.Counter()
    call, submit, result = WorkerSlot.call, WorkerSlot.submit, WorkerSlot.result

    def counted_call(slot, method, round, *arguments):
        calls["calls"] += 1
        # The order itself goes into the object store, as without a code.
        calls["control_bytes"] += len(pickle.dumps(arguments[-2:]))
        return call(slot, method, round, *arguments)

    def counted_submit(slot, order, round):
        calls["calls"] += 1
        return submit(slot, order, round)

    def counted_result(slot):
        answer = result(slot)
        if isinstance(answer, list):
            calls["control_bytes"] += len(pickle.dumps(answer))
        else:
            calls["vectors"] += 1
        return answer

    patches = {"call": counted_call, "submit": counted_submit, "result": counted_result}
    seconds = []
    parts = np.ones((code.num_parts, 1), np.float32)
    params = np.zeros(NUM_PARAMS, np.float32)
    with (
        jaxwgc.distributed.RayCluster(
            lambda params, part: jnp.sum(part) * params[0], code, parts
        ) as cluster,
        mock.patch.multiple(WorkerSlot, **patches),
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
