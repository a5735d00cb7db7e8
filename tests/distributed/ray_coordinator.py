"""A coordinator that is interrupted or killed; its arguments are those of `main`."""

import hashlib
import os
import signal
import sys

import jax
import numpy as np
import optax

import jaxwgc


def digest(state):
    """Of all that training needs to go on."""
    found = hashlib.sha256()
    key = jax.random.key_data(state.key)
    for leaf in jax.tree.leaves(state._replace(key=key)):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def make_cluster(num_workers=2):
    """A small regression, in minibatches."""
    code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), num_workers, 1)
    rows = np.random.default_rng(0).normal(size=(num_workers, 16, 4))

    def loss(params, part):
        return ((part @ params["w"] - 1.0) ** 2).sum()

    def batch(key, part):
        return jax.random.choice(key, part, (8,), replace=False)

    wait, key = jaxwgc.stragglers.fastest(num_workers - 1), jax.random.key(7)
    given = loss, code, rows.astype(np.float32)
    return jaxwgc.distributed.RayCluster(*given, wait=wait, key=key, batch=batch)


OPTIMIZER = optax.adam(0.01)
PARAMS = {"w": np.zeros(4, np.float32)}


def main(folder, freeze, checkpoint_every):
    """Says the digest after every step, until it is stopped."""
    with make_cluster() as cluster:

        def say(progress):
            step = progress.state.step
            if step == 3 and freeze:
                os.kill(cluster.workers[1].pid, signal.SIGSTOP)
            print(step, digest(progress.state), flush=True)

        saved = {"checkpoint": folder, "checkpoint_every": checkpoint_every}
        cluster.train(OPTIMIZER, PARAMS, 10**9, callbacks=[say], **saved)


if __name__ == "__main__":
    # pytest-xdist ignores Ctrl-C, and so do those whom its processes start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1], sys.argv[2] == "freeze", int(sys.argv[3]))
