"""Workers on several nodes, which Ray's own utility starts on this machine."""

import collections
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.distributed import RayCluster, Timeouts
from jaxwgc.distributed.ray import _launcher, _session
from tests.distributed import ray_processes, ray_tasks

ray = pytest.importorskip("ray")

CODE = codes.cyclic_repetition(jax.random.key(0), 2, num_stragglers=1)
PARTS = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
PARAMS = jnp.zeros(4)
make_cluster = functools.partial(RayCluster, ray_tasks.squares, CODE, PARTS)


@pytest.fixture(scope="module")
def nodes():
    """Two, of two CPUs each; the last says that it has a GPU, too."""
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 2, "node_ip_address": "127.0.0.1"}
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        # Where the utility writes its address, in a folder that it takes for granted.
        patch.setenv("RAY_TMPDIR", folder)
        os.mkdir(f"{folder}/ray")
        # A busy machine takes long to answer the question whether Ray is there.
        patch.setattr(_session, "_SECONDS_TO_CONNECT", 300)
        common |= {"include_log_monitor": False}
        # A lost node is noticed after five checks, 3 seconds apart by default.
        head = {**common, "include_dashboard": False, "temp_dir": folder}
        head["_system_config"] = {"health_check_period_ms": 200}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**common, num_gpus=1)
            # Clusters that open meanwhile use it: to ask an address takes seconds.
            with _session.session(cluster.address):
                yield cluster
        finally:
            processes = ray_processes.descendants()
            cluster.shutdown()
            ray_processes.end_all(processes)


def test_claims_that_no_node_meets_are_said_at_once(nodes):
    for options, message in [
        ({"num_cpus": 3}, r"claim \{'CPU': 3\} each; got room for 0"),
        ({"num_cpus": 0, "num_gpus": 1}, r"claim \{'GPU': 1\} each; got room for 1"),
        ({"resources": {"TPU": 4}}, "got room for 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            arguments = {"address": nodes.address, "actor_options": options}
            with make_cluster(**arguments) as cluster:
                cluster.compute(PARAMS)


def test_workers_are_spread_and_a_lost_node_is_survived(nodes, caplog):
    """No machine holds more workers than the code tolerates."""
    options = {
        "undecodable": "raise",
        "actor_options": {"num_cpus": 0.5},
        # No worker is lost because the machine is busy.
        "timeouts": Timeouts(response=60.0, replacement=300.0),
    }
    with make_cluster(address=nodes.address, **options) as cluster:
        with caplog.at_level("INFO", "jaxwgc.distributed"):
            cluster.compute(PARAMS)
        workers = collections.Counter(slot.node for slot in cluster.workers)
        assert sorted(workers.values()) == [1, 1]
        assert all(node[:8] in caplog.text for node in workers)
        lost = nodes.worker_nodes.copy().pop()
        on_it = [slot for slot in cluster.workers if slot.node == lost.node_id]
        nodes.remove_node(lost, allow_graceful=False)

        def compute():
            round = cluster.compute(PARAMS)
            gradient = jaxwgc.decode(CODE, round.messages, round.received, PARAMS)
            np.testing.assert_allclose(gradient, -2 * PARTS.sum(0), rtol=1e-4)

        ray_processes.repeat_until(
            lambda: all(slot.node != lost.node_id for slot in on_it), compute
        )


def test_environment_without_claims():
    one = _launcher.environment({"num_cpus": 0.5, "num_gpus": 0.25})
    assert one["NPROC"] == "1"
    assert "multi_thread_eigen=false" in one["XLA_FLAGS"]
    assert one["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.188"
    assert one["JAX_PLATFORMS"] == ""
    four = _launcher.environment({"num_cpus": 4})
    assert "XLA_FLAGS" not in four
    assert (four["JAX_PLATFORMS"], four["OMP_NUM_THREADS"]) == ("cpu", "4")
