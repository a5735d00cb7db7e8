"""Workers that report parts and send sums of them: on a simulated Ray, and on one."""

import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.distributed import RayCluster, Round, Timeouts, TrainingState
from jaxwgc.distributed.ray import _coordinator, _on_request, _slots, _training
from jaxwgc.distributed.ray._messages import Layout, Report
from jaxwgc.distributed.ray._on_request import OnRequest
from jaxwgc.distributed.ray._part_worker import PartWorker, turns_left
from jaxwgc.distributed.ray._slots import RoundTimes, WorkerSlot
from jaxwgc.distributed.ray._worker import Started, Task, sent
from tests.distributed import test_ray_rounds
from tests.distributed.test_ray_rounds import NEVER, SimulatedRay, died

pytest.importorskip("ray")

CODE = codes.replicated(4, num_parts=8, copies=2)
LAYOUT = Layout.of(CODE, jax.ShapeDtypeStruct((2,), np.float32), None)
GRADIENTS = np.stack([np.arange(8.0) + 1, 2.0 ** np.arange(8)], 1).astype(np.float32)


class Simulation(SimulatedRay):
    """And who does what: seconds a part, and when a worker dies or freezes."""

    def __init__(self):
        super().__init__()
        self.seconds = [1.0, 1.0, 1.0, 1.0]
        self.dies, self.freezes = {}, {}
        self.extra, self.answers = [], []

    def wait(self, tasks, timeout, num_returns=1):
        if num_returns == 1:
            return super().wait(tasks, timeout)
        ready = [task for task in tasks if task.done_at <= self.now]
        return ready, [task for task in tasks if task not in ready]

    def launch(self, worker):
        """A worker goes through its parts at one speed, and skips none."""
        begin = {}

        def task(seconds, result):
            done_at = self.now + seconds
            if done_at >= self.dies.get(worker, np.inf):
                return test_ray_rounds.Task(max(self.now, self.dies[worker]), died())
            if done_at >= self.freezes.get(worker, np.inf):
                return test_ray_rounds.Task(NEVER, None)
            return test_ray_rounds.Task(done_at, result)

        def start():
            for events in (self.dies, self.freezes):
                if events.get(worker, np.inf) < self.now:
                    del events[worker]
            return task(0.5, Started(1, "elsewhere", f"host{worker}", "alike"))

        def compute(order, number, taken, seen):
            begin[number] = self.now
            return report(number, 0, taken)

        def report(number, seen, taken):
            ends = begin[number] + self.seconds[worker] * np.arange(1, 5)
            done_at = max(self.now, ends[seen])
            reports = [
                Report(number, turn, 1.0 + LAYOUT.held[worker][turn], None, True, 1.0)
                for turn in range(seen, 4)
                if ends[turn] <= done_at
            ]
            extra = self.extra if worker == 0 and seen == 0 else []
            return task(done_at - self.now, [*extra, *reports])

        def answer(number, request):
            self.answers.append(worker)
            vector = (request @ GRADIENTS[LAYOUT.held[worker]])[None]
            return task(0.01, vector.astype(np.float32))

        methods = {"start": start, "compute": compute, "report": report}
        methods |= {"answer": answer, "stop": lambda number: task(0.0, [])}
        return types.SimpleNamespace(
            **{
                name: types.SimpleNamespace(remote=method)
                for name, method in methods.items()
            }
        )


@pytest.fixture
def simulated(monkeypatch):
    simulation = Simulation()
    for module in (_coordinator, _slots):
        monkeypatch.setattr(module, "find_ray", lambda: simulation)
    for module in (_coordinator, _slots, _on_request):
        monkeypatch.setattr(module, "time", simulation)
    monkeypatch.setattr(_coordinator, "check_connected", lambda: None)
    return simulation


@jax.jit
def decodes(mask):
    return CODE.decodes(mask)


@jax.jit
def find_weights(mask):
    decoder = CODE.choose_decoder()
    return decoder.checked_weights(CODE.encoding_matrix, CODE.segment_targets, mask)


def start(simulated):
    coordinator = OnRequest(
        [WorkerSlot(worker, simulated.launch) for worker in range(4)],
        LAYOUT,
        lambda times: 0.0 if decodes(np.isfinite(times)) else np.inf,
        lambda mask: bool(decodes(mask)),
        CODE.num_stragglers,
        Timeouts(answer=60.0, start=300.0, replacement=20.0),
        [],
        CODE,
        find_weights,
        sees_workers=False,
    )
    coordinator.start()
    return coordinator


def run(coordinator, step=0):
    """A round, whose sums are what its decoding says, whatever has happened."""
    round = coordinator.run(step, [], np.zeros(2))
    weights = np.asarray(round.decoding.effective_weights)
    np.testing.assert_allclose(round.messages.sum(0), weights @ GRADIENTS, rtol=1e-6)
    assert set(weights.tolist()) <= {0.0, 1.0}
    return round


def test_owner_and_helper_meet(simulated):
    """The second worker takes three times as long: the first does one part for it."""
    simulated.seconds[1] = 3.0
    coordinator = start(simulated)
    round = run(coordinator)
    assert round.decoding.requests.tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]
    assert 3.0 <= round.elapsed < 3.2
    assert sorted(simulated.answers) == [0, 1, 2, 3]
    np.testing.assert_array_equal(round.losses, np.arange(1, 9))
    assert round.times[0].tolist() == [1, 2, 3, np.inf]


def test_two_helpers_share_the_work_of_a_slow_worker():
    """With three copies, of four parts a worker; the first has finished none of its."""
    code = codes.replicated(4, num_parts=16, copies=3)
    layout = Layout.of(code, jax.ShapeDtypeStruct((2,), np.float32), None)
    coordinator = OnRequest(
        [WorkerSlot(worker, lambda worker: None) for worker in range(4)],
        layout,
        lambda times: np.inf,
        lambda mask: False,
        2,
        Timeouts(),
        [],
        code,
        find_weights,
        sees_workers=False,
    )
    times = np.full((4, 12), np.inf)
    this = RoundTimes(0.0, times, times)
    round = _on_request.PartRound(coordinator, this, 0, None)

    def next_part(worker):
        taken = coordinator._take_turns(worker, round)
        turn = turns_left(taken, round.reported[worker])[0]
        return layout.held[worker][turn]

    for worker in range(4):
        next_part(worker)
    round.done[1:, :4] = round.reported[1:, :4] = True
    # Both hold its parts 3, 2, 1 and 0; the one does two of them, the other the rest.
    assert [next_part(worker) for worker in (3, 2)] == [3, 1]
    # Its own part comes before all that it could help with, and is left to it.
    assert next_part(0) == 0


@pytest.mark.parametrize(("what", "seconds"), [("dies", 4.1), ("freezes", 4.8)])
def test_lost_between_report_and_sum(simulated, what, seconds):
    """Its helper goes on, and has both parts after four seconds."""
    coordinator = start(simulated)
    getattr(simulated, what)[1] = simulated.now + 2.005
    round = run(coordinator)
    assert round.messages.sum(0).tolist() == GRADIENTS.sum(0).tolist()
    assert not round.received[1]
    assert 4.0 <= round.elapsed < seconds
    # Who was asked already is asked anew only where the request has changed.
    assert simulated.answers.count(2) == 1


def test_reports_of_others_are_dropped(simulated, caplog):
    """Of a part that the worker does not hold, and of a round that there never was."""
    coordinator = start(simulated)
    places = (0, 9), (5, 0)
    simulated.extra = [Report(*place, 7.0, None, True, 1.0) for place in places]
    round = run(coordinator)
    assert "worker 0 reports turn 9 of trace row 0: dropped" in caplog.text
    assert "worker 0 reports turn 0 of trace row 5: dropped" in caplog.text
    assert round.messages.sum(0).tolist() == GRADIENTS.sum(0).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_nothing_is_counted_twice(simulated, seed):
    random = np.random.default_rng(seed)
    coordinator = start(simulated)
    num_exact = 0
    for step in range(30):
        simulated.seconds = random.exponential(1.0, 4) + 0.1
        kinds = simulated.dies, simulated.freezes
        kinds[random.integers(2)][int(random.integers(4))] = (
            simulated.now + random.uniform(0, 3)
        )
        before = simulated.now
        num_exact += not run(coordinator, step).decoding.failed()
        assert simulated.now - before < 200
    assert num_exact >= 25


def test_late_answers_are_kept_for_their_owner(simulated):
    """That of the third of five workers comes a second into the next round."""
    coordinator = test_ray_rounds.start(
        simulated, lambda worker, *_: (1.0 + worker, None)
    )
    owner = object()
    for step in range(2):
        round = coordinator.run(step, [], np.zeros(2), owner)
    assert round.received.tolist() == [True, True, False, False, False]
    assert round.late.tolist() == [False, False, True, False, False]
    assert round.messages[:, 0].tolist() == [1, 2, 3, 0, 0]
    round = coordinator.run(2, [], np.zeros(2), object())
    assert not round.late.any()
    assert round.messages[:, 0].tolist() == [1, 2, 0, 0, 0]


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
        undecodable="raise",
        timeouts=Timeouts(answer=3.0),
        delay=lambda worker, step: 0.005,
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
    task = Task(loss, True, None, None, delay, None, None, 60.0, like, sent(KEY))
    worker = PartWorker(0, np.arange(2), np.eye(2), None, task)
    worker.prepare([*PARTS[:2]])
    order, taken = (jax.tree.leaves(PARAMS), sent(KEY), 0), np.zeros(2, np.int8)
    worker.compute(order, 0, taken, 0)
    time.sleep(0.5)
    report = worker.compute(order, 1, taken, 1)[0]
    assert (report.number, report.turn) == (0, 1)
    assert 0.1 <= report.seconds < 0.4


def test_codes_that_cannot_be_asked():
    code = codes.multi_message(codes.cyclic_mds(3, num_stragglers=1))
    with pytest.raises(ValueError, match="requests need a real code"):
        RayCluster(loss, code, PARTS[:3])
