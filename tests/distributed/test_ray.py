"""Workers that are processes: right gradients whatever happens to them.

One Ray serves all tests of this file and of others.
"""

import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Timeouts
from jaxwgc.distributed.ray import _actors
from tests.distributed import ray_processes

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("one_ray")

NUM_WORKERS = 4
CODE = codes.reed_solomon(NUM_WORKERS, num_parts=NUM_WORKERS, replication=3)
PARTS = np.random.default_rng(0).normal(size=(NUM_WORKERS, 12, 5)).astype(np.float32)
KEY = jax.random.key(5)
PARAMS = {"w": jnp.arange(5.0), "b": jnp.ones(())}


def loss(params, part):
    return jnp.sum((part @ params["w"] + params["b"]) ** 2)


def draw(key, part):
    return jax.random.choice(key, part, (4,), replace=False)


@jax.jit
def losses_and_partial_gradients(params, step):
    """From the rows that all holders of a part are to draw."""
    key = jax.random.fold_in(KEY, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(NUM_WORKERS))
    return jaxwgc.partial_value_and_grad(loss)(params, jax.vmap(draw)(keys, PARTS))


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """A folder; a file `worker` in it says what that one does instead of its work."""
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def cluster(orders, one_ray):
    """Any two of four workers give the gradient; parts are loaded, batches drawn."""

    class Saboteur(_actors.Worker):
        """Does as it is told, once a file."""

        def compute(self, order):
            answer = super().compute(order)
            file = orders / str(self.worker)
            if not file.exists():
                return answer
            order = file.read_text()
            file.unlink()
            match order:
                case "raise":
                    raise ArithmeticError("as told")
                case "shape":
                    return answer._replace(message=answer.message[:, :-1])
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)

    parts = PARTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_actors, "Worker", Saboteur)
        with RayCluster(
            loss,
            CODE,
            lambda part: parts[part],
            wait=stragglers.fastest(2),
            key=KEY,
            batch=draw,
            decoding=DecodingOptions(undecodable="raise"),
            timeouts=Timeouts(answer=2.0),
        ) as cluster:
            cluster.compute(PARAMS)
            yield cluster


def check_round(cluster):
    """One round, whose messages, losses and gradient are right."""
    values, partials = losses_and_partial_gradients(PARAMS, cluster.step)
    round = cluster.compute(PARAMS)
    received, known = round.received, np.isfinite(round.losses)
    assert received.sum() == 2
    assert np.isfinite(round.times[received]).all()
    expected = jaxwgc.encode(CODE, partials)[received]
    np.testing.assert_allclose(round.messages[received], expected, rtol=1e-4, atol=1e-3)
    assert not round.messages[~received].any()
    np.testing.assert_allclose(round.losses[known], values[known], rtol=1e-5)
    assert known.sum() >= 3
    decoded = jaxwgc.decode(CODE, round.messages, received, PARAMS)
    for leaf, partial in zip(jax.tree.leaves(decoded), jax.tree.leaves(partials)):
        np.testing.assert_allclose(leaf, partial.sum(0), rtol=2e-4, atol=1e-3)


REASONS = {
    "raise": "ArithmeticError: as told",
    "shape": "its message has shape",
    "kill": "its process died",
    "freeze": "timeouts.answer is 2",
}


@pytest.mark.parametrize("whats", [("raise", "kill"), ("shape", "freeze")])
def test_bad_workers_are_stragglers_and_are_replaced(cluster, orders, whats, caplog):
    """The second and the third; no gradient is lost or wrong in the meantime."""
    caplog.set_level("INFO", "jaxwgc.distributed")
    slots = cluster.workers[1:3]
    before = {slot.pid for slot in slots}
    for slot, what in zip(slots, whats):
        (orders / "hidden").write_text(what)
        (orders / "hidden").rename(orders / str(slot.index))
    end = time.monotonic() + 60
    while any(slot.pid in before | {None} or slot.trouble for slot in slots):
        check_round(cluster)
        assert time.monotonic() < end
        time.sleep(0.05)
    for slot, what in zip(slots, whats):
        name = f"worker {slot.index} is "
        lost, back = (
            line
            for line in caplog.messages
            if line.startswith(name) and "suspected in" not in line
        )
        assert lost.startswith(f"{name}lost in step ")
        assert back.startswith(f"{name}back in step ")
        assert REASONS[what] in lost
        assert REASONS[what] in back
    # A frozen process does not stay.
    assert ray_processes.wait_until(
        lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in before), 20
    )


def test_undecodable_round_names_the_missing():
    def delay(worker, step):
        if worker == 1:
            raise ArithmeticError("as told")
        return 0.0

    options = {
        "timeouts": Timeouts(replacement=0.1),
        "faults": Faults(delay=delay),
        "decoding": DecodingOptions(undecodable="raise"),
    }
    with RayCluster(loss, codes.uncoded(2), PARTS[:2], **options) as cluster:
        message = (
            r"cannot be decoded, since only workers \[0\] responded; missing: worker 1 "
            r"\(ArithmeticError: as told\)"
        )
        with pytest.raises(RuntimeError, match=message):
            cluster.compute(PARAMS)


def test_keys_are_parts_and_nobody_waits_for_what_is_not_finite():
    """The second worker overflows where params are large, the first does not."""
    parts = {"key": jax.random.split(KEY, 2), "x": np.float32([[0, 0], [3, 4]])}

    def noisy(params, part):
        noise = jax.random.normal(part["key"])
        return noise * (params["w"] @ part["x"]) ** 2 + params["w"].sum()

    params, code = {"w": jnp.ones(2)}, codes.uncoded(2)
    with RayCluster(noisy, code, parts, timeouts=Timeouts(replacement=1e6)) as cluster:
        round = cluster.compute(params)
        values, partials = jaxwgc.partial_value_and_grad(noisy)(params, parts)
        np.testing.assert_allclose(round.losses, values, rtol=1e-5)
        expected = jaxwgc.encode(code, partials)
        np.testing.assert_allclose(round.messages, expected, rtol=1e-5)
        pid = cluster.workers[1].pid
        with pytest.warns(UserWarning, match="missing: worker 1 .*not finite") as seen:
            bad = cluster.compute({"w": jnp.full(2, 1e38)})
        assert seen[0].filename == __file__
        assert bad.received.tolist() == [True, False]
        again = cluster.compute(params)
        np.testing.assert_array_equal(again.messages, round.messages)
        assert cluster.workers[1].pid == pid


def test_params_keep_their_shapes(cluster):
    with pytest.raises(ValueError, match=r"w = float32\[5\], and now float32\[6\]$"):
        cluster.compute({"w": jnp.zeros(6), "b": jnp.ones(())})
    with pytest.raises(ValueError, match=r"got b = float32\[\], and now nothing"):
        cluster.compute({"w": jnp.zeros(5)})


def test_only_loopback_is_listened_on_and_signals_are_ours(cluster):
    addresses = ray_processes.listening_addresses(ray_processes.descendants())
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def no_file(part):
    raise FileNotFoundError(f"no {part}.npz")


@pytest.mark.parametrize(
    ("number", "load", "error", "message"),
    [
        (1, no_file, RuntimeError, r"worker \d .*loading part \d failed.*\d\.npz"),
        (
            *(2, lambda part: np.zeros((3 + part, 5), np.float32)),
            ValueError,
            r"^worker \d .*: parts must be alike; got float32\[[34], 5\]",
        ),
    ],
)
def test_parts_that_cannot_be_loaded(number, load, error, message):
    with RayCluster(loss, codes.uncoded(number), load) as cluster:
        with pytest.raises(error, match=message) as raised:
            cluster.compute(PARAMS)
        assert raised.type is error
