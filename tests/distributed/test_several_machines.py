"""The page "Several machines", run as a user runs it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.distributed import ray_processes

pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
# Namespaces of user, network and processes. All processes end with the first one.
ALONE = ["unshare", "--user", "--map-root-user", "--net"]
ALONE += ["--pid", "--fork", "--kill-child", "--mount-proc"]


def has_namespaces():
    """Returns whether this machine lets us create namespaces."""
    if shutil.which(ALONE[0]) is None:
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="needs namespaces of Linux")
@pytest.mark.weekly
def test_page_runs_on_two_nodes_and_survives_the_loss_of_one():
    """It also says how a program sends the token of Ray."""
    environment = dict(os.environ)
    # `conftest.py` sets the first of them to 0, which is for one machine only.
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [*ALONE, sys.executable, "-m", "tests.distributed.two_nodes", folder],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=5 * ray_processes.LONGEST_WAIT,
        )
    assert done.returncode == 0, done.stderr
