"""A coordinator that is interrupted or killed; its arguments are those of `main`."""

import hashlib
import logging
import os
import signal
import sys
import time

import jax
import numpy as np
import optax

import jaxwgc
from jaxwgc.distributed import RayCluster, Timeouts
from tests.distributed.ray_tasks import draw, squares


def digest(state):
    """Digest of all that training needs to continue."""
    result = hashlib.sha256()
    key = jax.random.key_data(state.key)
    for leaf in jax.tree.leaves(state._replace(key=key)):
        result.update(np.asarray(leaf).tobytes())
    return result.hexdigest()


def never_load(part):
    """A part that does not come before the test is over."""
    time.sleep(3600)


def make_cluster(num_workers, is_held=False):
    """Squared distances of rows, in minibatches; one of the workers is enough.

    Workers that are held do not become ready.
    """
    code = jaxwgc.codes.fractional_repetition(num_workers, num_workers - 1)
    rows = np.random.default_rng(0).normal(size=(num_workers, 16, 4))
    # A frozen worker stays frozen.
    options = {"key": jax.random.key(7), "timeouts": Timeouts(response=60.0)}
    parts = never_load if is_held else np.float32(rows)
    return RayCluster(squares, code, parts, batch=draw, **options)


OPTIMIZER = optax.adam(0.01)
PARAMS = np.zeros(4, np.float32)


def main(folder, num_workers, checkpoint_every, is_held):
    """Says the digest after every step, until it is stopped; freezes worker 1.

    The log is said, too.
    """
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("jaxwgc.distributed").setLevel("INFO")
    with make_cluster(num_workers, is_held) as cluster:

        def say(progress):
            step = progress.state.step
            if step == 3 and num_workers > 1:
                os.kill(cluster.workers[1].pid, signal.SIGSTOP)
            print(step, digest(progress.state), flush=True)

        saved = {"checkpoint": folder, "checkpoint_every": checkpoint_every}
        cluster.train(OPTIMIZER, PARAMS, 10**9, callbacks=[say], **saved)


if __name__ == "__main__":
    # pytest-xdist ignores Ctrl-C, and so do those whom its processes start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "held" in sys.argv[4:])
