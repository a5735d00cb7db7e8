"""Experiments on real workers, in short."""

import contextlib

import numpy as np
import pytest

from experiments.benchmark import cluster_start, large_messages, recovery
from experiments.benchmark import coordinator as benchmark
from experiments.ray import chaos, steps, wrong_workers
from experiments.ray import cluster as cluster_experiment
from jaxwgc import codes, stragglers
from jaxwgc.distributed import Timeouts, Verification

# No verdict depends on how long a process takes to start or to respond.
PATIENT = Timeouts(response=60.0, replacement=300.0)
pytestmark = [pytest.mark.usefixtures("one_ray"), pytest.mark.weekly]


def test_chaos_experiment_runs_with_two_workers(monkeypatch):
    """This is `python -m experiments chaos` with less data."""
    for name, value in (("NUM_WORKERS", 2), ("NUM_ROWS", 400), ("NUM_COLUMNS", 20)):
        monkeypatch.setattr(chaos, name, value)
    monkeypatch.setattr(chaos, "RESPONSE_SECONDS", 60.0)
    monkeypatch.setattr(chaos, "REPLACEMENT_SECONDS", 300.0)
    records = list(chaos.measure(8, kill_every=5, freeze_every=7, work=0.1, seed=0))
    assert len(records) == 8
    assert sum(record["signals"] for record in records) == 2
    assert max(record["error"] for record in records) < 1e-5


def test_wrong_workers_in_short(monkeypatch):
    """One of two copies has flipped bits: it is seen, and nothing of it is applied."""
    (table,) = wrong_workers.bits(10, seed=0).tables.values()
    monkeypatch.setattr(wrong_workers, "NUM_WORKERS", 2)
    monkeypatch.setattr(wrong_workers, "WRONG_WORKER", 1)
    handling = {
        "code": codes.fractional_repetition(2, num_stragglers=1),
        "verification": Verification("arbitrate"),
        "timeouts": PATIENT,
    }
    record = wrong_workers.train(handling, steps=10, seed=0)
    assert record["flipped"] == record["named"] > 0
    assert record["applied"] == record["blamed"] == record["rejected"] == 0
    assert len(table({"arbitrated": record}).rows) == 1


def test_overhead_is_split_and_compared(monkeypatch):
    """All measurements use one cluster."""
    monkeypatch.setattr(benchmark, "NUM_WORKERS", 1)
    monkeypatch.setattr(benchmark, "NUM_AWAITED", 1)
    with benchmark._cluster(codes.uncoded(1), "bfloat16") as cluster:
        opened = contextlib.nullcontext(cluster)
        monkeypatch.setattr(benchmark, "_cluster", lambda *arguments: opened)
        record = benchmark.measure(1_000, 3, "bfloat16")
        times = benchmark.compare(1_000, num_blocks=2, num_steps=3)
    assert set(record) == {"all", *benchmark.SHARES}
    assert min(record.values()) > 0
    assert list(times) == ["RayCluster", "plain Ray", "shared memory"]


def test_start_in_short(monkeypatch):
    """Ray runs already."""
    monkeypatch.setattr(cluster_start, "IMPORTS", "pass")
    started = cluster_start.start_of(num_workers=2)
    assert started["ray"] == 0
    assert min(started[name] for name in ("workers", "decoder", "step")) > 0
    (table,) = cluster_start.start(1, seed=0, quick=True).tables.values()
    assert len(table([{"num_workers": 2} | started]).rows) == 1


def test_large_messages_in_short(monkeypatch):
    """Shares of a step and memory of the processes, with one worker."""
    monkeypatch.setattr(large_messages, "NUM_WORKERS", 1)
    monkeypatch.setattr(large_messages, "NUM_WARM", 1)
    own = large_messages.measure(1, "bfloat16", is_small=True)
    shares = [own[name] for name in ("broadcast", "waiting", "transfer", "update")]
    assert min(shares) > 0
    assert sum(shares) == pytest.approx(own["seconds"])
    assert own["worker"] > 0 and own["all_gib"] > 0
    (table,) = large_messages.study(1, seed=0, quick=True).tables.values()
    assert len(table({"bfloat16": own}).rows) == 1


def test_recovery_in_short(monkeypatch):
    """There is one kill, and one step with a fault."""
    monkeypatch.setattr(recovery, "NUM_WORKERS", 3)
    monkeypatch.setattr(recovery, "REST_SECONDS", 0.1)
    monkeypatch.setattr(recovery, "FAULT_EVERY", 2)
    record = recovery.measure(1, 2, seed=0, is_busy=True, spare=True)
    assert min(record.values()) > 0
    assert record["longest_back"] >= record["back"]
    (table,) = recovery.study(1, seed=0, quick=True).tables.values()
    assert len(table({"idle": record}).rows) == 1


def test_experiment_in_short(monkeypatch):
    """Three steps with one worker, which is killed once, are measured and shown."""
    names = list(cluster_experiment.entries())
    monkeypatch.setattr(cluster_experiment, "NUM_WORKERS", 1)
    monkeypatch.setattr(cluster_experiment, "SECONDS_A_SHARE", 0.01)
    monkeypatch.setattr(cluster_experiment, "REPLACEMENT_SECONDS", 300.0)
    entry = cluster_experiment.Entry(codes.uncoded(1), stragglers.fastest(1))
    record = cluster_experiment.measure(entry, 1, 3, 0)
    assert set(record) == set(cluster_experiment.SCENARIOS)
    for records in record.values():
        [seconds] = records["seconds"]
        [errors] = records["errors"]
        assert (np.diff(seconds) > 0).all()
        assert errors[-1] < 45
    numbers = {"codes": dict.fromkeys(names, record)}
    numbers |= cluster_experiment.summarize(numbers)
    assert len(cluster_experiment.tabulate(numbers).rows) == len(numbers["codes"])
    assert len(cluster_experiment.draw(numbers).axes) == len(record)


def test_loads_by_speed_in_short(monkeypatch):
    """The plan ends all workers together, and no step of one worker is shorter."""
    monkeypatch.setattr(steps, "SPEEDS", np.array([40.0, 20.0]))
    monkeypatch.setattr(steps, "SPEED_PARTS", 6)
    monkeypatch.setattr(steps, "TIMEOUTS", PATIENT)
    entries = steps.entries()
    code = entries["2 copies, by speed"]
    np.testing.assert_array_equal(code.parts_per_worker, [6, 6])
    code = entries["1 copy, by speed"]
    np.testing.assert_array_equal(code.parts_per_worker, [4, 2])
    assert steps.planned(code) == pytest.approx(0.1, rel=1e-5)
    monkeypatch.setattr(steps, "SPEEDS", np.array([10.0]))
    assert steps.measure_loads(codes.uncoded(1), 3)["mean"] > 0.1
    monkeypatch.setattr(steps, "entries", lambda: {"by speed": code})
    (table,) = steps.loads_by_speed(3).tables.values()
    record = {"bound": 0.1, "planned": 0.1, "measured": {"mean": 0.11, "half": 0.0}}
    assert table({"by speed": record}).rows[0][-2:] == ["1.000", "1.100"]
