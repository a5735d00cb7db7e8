"""Workers that report parts and send sums of them, on a Ray of this machine."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Round, Timeouts, TrainingState
from jaxwgc.distributed.ray import _training, _worker
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._worker import Task, Worker, sent

pytest.importorskip("ray")

CODE = codes.replicated(4, num_parts=8, copies=2)


def test_memory_is_checkpointed(tmp_path):
    """The third worker answers in the first step, and late in the third."""

    def messages(step):
        return np.random.default_rng(step).normal(size=(3, 2)).astype(np.float32)

    def compute(params, step, key):
        received = np.array([True, True, step == 0])
        late = np.array([False, False, step == 2])
        losses = np.zeros(3)
        return Round(messages(step), received, losses, 1.0, losses, None, {}, late=late)

    def train(code, *arguments):
        aggregate = jaxwgc.decode_aggregate(code, memory=True)
        chain = optax.chain(aggregate, optax.sgd(0.1))
        params = jnp.zeros(2)
        start = TrainingState(params, chain.init(params), jax.random.key(0), 0)
        state = _training.train(compute, code, chain, start, *arguments)
        return state.params, state.optimizer_state[0].memory

    code = codes.uncoded(3)
    whole, memory = train(code, 6)
    np.testing.assert_array_equal(memory.messages[2], messages(2)[2])
    train(code, 3, (), tmp_path)
    resumed, again = train(code, 6, (), tmp_path)
    np.testing.assert_array_equal(resumed, whole)
    np.testing.assert_array_equal(again.messages, memory.messages)
    assert again.known.all()
    # What is remembered of another code is forgotten.
    other = jaxwgc.GradientCode.from_matrix(2 * np.eye(3))
    assert not train(other, 6, (), tmp_path)[1].known.any()


PARTS = np.random.default_rng(0).normal(size=(8, 12, 5)).astype(np.float32)
KEY = jax.random.key(5)
PARAMS = {"w": jnp.arange(5.0), "b": jnp.ones(())}


def loss(params, part):
    residuals = part @ params["w"] + params["b"]
    return jnp.sum(residuals**2), {"most": jnp.abs(residuals).max()}


def draw(key, part):
    return jax.random.choice(key, part, (4,), replace=False)


def drawn(step):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.fold_in(KEY, step), jnp.arange(8)
    )
    return jax.vmap(draw)(keys, PARTS)


def test_training_is_that_of_one_process(one_ray, tmp_path):
    """Minibatches, parts that are loaded, a worker killed and one frozen on the way."""
    optimizer, parts = optax.sgd(1e-3, momentum=0.9), PARTS
    seen = []

    def callback(progress):
        seen.append(progress)
        step = progress.state.step
        if step in (10, 25):
            number = signal.SIGKILL if step == 10 else signal.SIGSTOP
            if cluster.workers[step % 4].pid:
                os.kill(cluster.workers[step % 4].pid, number)

    with RayCluster(
        loss,
        CODE,
        lambda part: parts[part],
        has_aux=True,
        key=KEY,
        batch=draw,
        wait=stragglers.until_decodable(CODE),
        decoding=DecodingOptions(undecodable="raise"),
        timeouts=Timeouts(answer=3.0),
        faults=Faults(delay=lambda worker, step: 0.005),
    ) as cluster:
        first = cluster.compute(PARAMS)
        final = cluster.train(
            optimizer, PARAMS, 50, callbacks=[callback], checkpoint=tmp_path, live=True
        )
        trace = cluster.trace()
    values, aux = jax.vmap(loss, (None, 0))(PARAMS, drawn(0))
    np.testing.assert_allclose(first.losses, values, rtol=1e-5)
    np.testing.assert_allclose(first.aux["most"], aux["most"], rtol=1e-5)
    assert trace.shape == (51, 4, 4)
    assert np.isfinite(trace).any((1, 2)).all()
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(params, state, number):
        def total(params):
            return jax.vmap(loss, (None, 0))(params, drawn(number))[0].sum()

        updates, state = optimizer.update(jax.grad(total)(params), state, params)
        return optax.apply_updates(params, updates), state

    for number in range(50):
        params, state = step(params, state, number)
    for leaf, true in zip(jax.tree.leaves(final.params), jax.tree.leaves(params)):
        assert jnp.linalg.norm(leaf - true) < 1e-5 * jnp.linalg.norm(true)
    assert [progress.state.step for progress in seen] == list(range(1, 51))


def test_parts_finished_between_rounds_are_reported():
    """In the next round, with the seconds that they took."""

    def delay(worker, step):
        return 0.1

    like = jax.eval_shape(lambda: PARAMS)
    task = Task(loss, True, None, None, delay, None, None, like, sent(KEY))
    worker = PartWorker(0, np.arange(2), np.eye(2), None, task)
    worker.prepare([*PARTS[:2]])
    order, taken = (jax.tree.leaves(PARAMS), sent(KEY), 0), np.zeros(2, np.int8)
    worker.compute(order, 0, taken, 0)
    time.sleep(0.5)
    report = worker.compute(order, 1, taken, 1)[0]
    assert (report.number, report.turn) == (0, 1)
    assert 0.1 <= report.seconds < 0.4


@pytest.mark.parametrize("kind", [Worker, PartWorker])
def test_first_query_compiles_nothing(kind):
    """A worker that compiled in it would seem to be silent."""
    like = jax.eval_shape(lambda: PARAMS)
    task = Task(loss, True, None, None, None, None, None, like, sent(KEY))
    task = task._replace(has_queries=True)
    worker = kind(0, np.arange(2), np.eye(2)[: 1 + (kind is PartWorker)], None, task)
    worker.prepare([*PARTS[:2]])
    number = _worker._project._cache_size()
    order = jax.tree.leaves(PARAMS), sent(KEY), 0
    others = [-1] if kind is PartWorker else []
    key = sent(jax.random.key(3))
    assert worker.project(order, np.array([1]), key, *others).shape == (64,)
    assert _worker._project._cache_size() == number


def test_codes_that_cannot_be_asked():
    code = codes.multi_message(codes.cyclic_mds(3, num_stragglers=1))
    with pytest.raises(ValueError, match="be real with one segment for requests"):
        RayCluster(loss, code, PARTS[:3])
