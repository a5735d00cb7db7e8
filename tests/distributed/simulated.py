"""Simulated workers for tests of round engines: no Ray, no clock, no threads."""

import types

import jax
import numpy as np

from jaxwgc import codes
from jaxwgc.distributed import Timeouts
from jaxwgc.distributed.ray import _events
from jaxwgc.distributed.ray._fleet import Fleet
from jaxwgc.distributed.ray._messages import (
    Layout,
    Progress,
    Report,
    Round,
    WorkerMessage,
)
from jaxwgc.distributed.ray._request_plan import RequestPlan
from jaxwgc.distributed.ray._request_round import ExpectedSums, RequestRound
from jaxwgc.distributed.ray._rounds import MessageRound, RoundStart, StartUp
from jaxwgc.distributed.ray._rules import Rules, decodes_of

CODE = codes.replicated(4, num_parts=8, copies=2)
LENGTH = 2
LAYOUT = Layout.of(CODE, jax.ShapeDtypeStruct((LENGTH,), np.float32), None)
# Sums of powers of two tell which parts are in them.
GRADIENTS = np.stack([np.arange(8.0) + 1, 2.0 ** np.arange(8)], 1).astype(np.float32)
PLAN = RequestPlan.of(CODE, LAYOUT, CODE.choose_decoder())
USUAL = PLAN.requests(np.ones((4, 4), bool))
UNEXPECTED = np.zeros((4, 4))
decodes = decodes_of(CODE, CODE.choose_decoder(), 1e-3)
NUM_WORKERS = 5
NUM_STRAGGLERS = 3


def message_layout(num_workers):
    """Layout of one part and one message per worker."""
    return Layout(
        held=[np.array([worker]) for worker in range(num_workers)],
        num_parts=num_workers,
        shape=(num_workers, LENGTH),
        dtype=np.dtype(np.float32),
    )


def until_decodable(decodes):
    return lambda times: 0.0 if decodes(np.isfinite(times)) else np.inf


def enough(mask):
    return bool(mask.sum() >= NUM_WORKERS - NUM_STRAGGLERS)


def message_fleet(ends=None, **timeouts):
    """Any two of five messages decode."""
    rules = Rules(ends or until_decodable(enough), enough, False, NUM_STRAGGLERS)
    return Fleet(NUM_WORKERS, Timeouts(**timeouts), rules)


def single_fleet(**timeouts):
    """Fleet of one worker, whose message is needed."""
    rules = Rules(until_decodable(np.all), np.all, False, num_stragglers=0)
    return Fleet(1, Timeouts(**timeouts), rules)


def request_fleet(**timeouts):
    """Two copies of eight parts on four workers."""
    rules = Rules(until_decodable(decodes), decodes, False, CODE.num_stragglers)
    return Fleet(4, Timeouts(**timeouts), rules)


def round_of_messages(messages, received, losses, **others):
    """Round in which all workers respond after as many seconds as their losses."""
    return Round(
        messages=messages,
        received=received,
        times=losses,
        seconds=losses,
        elapsed=1.0,
        known=received,
        losses=losses,
        aux=None,
        timings={},
        **others,
    )


class Verifier:
    """Finds that worker 1 is corrupted in round 0."""

    def check(self, this_round):
        wrong = (np.arange(len(this_round.messages)) == 1) & (this_round.number == 0)
        return _events.Verdict(~wrong, wrong, False)


def is_call(action, method):
    return isinstance(action, _events.Call) and action.method == method


class Worker:
    """Simulates what a process does with its calls."""

    def __init__(self):
        self.number = -1
        self.done = []
        self.reports = []
        self.expected = np.zeros(4)

    def begin(self, action):
        _, _, seen, self.expected = action.arguments
        self.reports = self.reports[seen:]
        self.number = action.number
        self.done = []

    def expected_sum(self, worker, is_finite):
        """The sum that the coordinator expects, once its parts are finished."""
        positions = np.flatnonzero(self.expected).tolist()
        if not positions or not {*positions} <= {*self.done}:
            return None
        expected = self.expected
        self.expected = np.zeros(4)
        return sum_of(worker, expected, is_finite)


def sum_of(worker, weights, is_finite):
    """A sum as it is sent."""
    vector = weights @ GRADIENTS[LAYOUT.held[worker]]
    vector = vector if is_finite else np.full(LENGTH, np.nan)
    return vector[None].astype(np.float32)


class World:
    """Performs the actions of engines, and makes events; the clock is `now`.

    `log` has all actions. Those that no engine may return fail. `usual` is that of
    `ExpectedSums`.
    """

    def __init__(self, fleet, on_request=False, usual=UNEXPECTED):
        self.fleet = fleet
        self.on_request = on_request
        self.now = 0.0
        self.engine = None
        self.verifier = None
        self.workers = [None] * len(fleet.slots)
        self.calls = [None] * len(fleet.slots)
        self.log = []
        self.due = {}
        self.expected = ExpectedSums(usual)
        self.engine = StartUp(fleet, self.now)
        self.poll()
        for worker in range(len(fleet.slots)):
            self.ready(worker)
        self.poll()
        assert self.engine.result

    def begin(self, step=0, owner=None, verifier=None):
        """Starts a round."""
        self.verifier = verifier
        if isinstance(self.engine, RequestRound):
            self.expected.note(self.engine.requests)
        num_workers = len(self.workers)
        memory = np.full((num_workers, LENGTH), np.nan, np.float32)
        start = RoundStart(step, self.now, memory, is_verified=verifier is not None)
        if self.on_request:
            self.engine = RequestRound(self.fleet, PLAN, start, self.expected.weights)
        else:
            layout = message_layout(num_workers)
            self.engine = MessageRound(self.fleet, layout, start, owner)
        self.perform(self.fleet.actions())

    def perform(self, actions):
        self.log.extend(actions)
        for action in actions:
            worker = action.worker
            process = self.workers[worker]
            match action:
                case _events.Launch():
                    assert process is None
                    self.workers[worker] = Worker()
                case _events.Replace():
                    assert process is not None
                    self.workers[worker] = self.calls[worker] = None
                    continue
                case _events.Call() if self.on_request:
                    if action.method == "compute":
                        process.begin(action)
                    assert process.number == action.number
            if is_call(action, "send_sum"):
                asked = np.flatnonzero(action.arguments[0])
                assert {*asked.tolist()} <= {*process.done}
            self.calls[worker] = action
        if (unverified := self.engine.unverified) is not None:
            self.handle(self.verifier.check(unverified))

    def handle(self, event):
        if self.engine.result is None:
            self.perform(self.engine.handle(event, self.now))

    def poll(self, seconds=0.0):
        """Lets time pass."""
        self.now += seconds
        if self.engine.result is None:
            self.perform(self.engine.poll(self.now))

    def ready(self, worker):
        self.handle(_events.Ready(worker, None, "elsewhere", f"host{worker}"))

    def lose(self, worker, trouble="its process died", error=None):
        self.handle(_events.Lost(worker, trouble, error))

    def compute(self, worker, seconds=0.0, num_parts=1, is_finite=True):
        """A process finishes some parts of its round, and does not report them yet."""
        process = self.workers[worker]
        left = [position for position in range(4) if position not in process.done]
        for position in left[:num_parts]:
            process.done.append(position)
            loss = 1.0 + LAYOUT.held[worker][position]
            process.reports.append(
                Report(process.number, position, loss, None, is_finite, seconds)
            )

    def respond(self, worker, seconds=0.0, num_parts=1, is_finite=True):
        """The newest call of a worker returns; on request with some finished parts."""
        action = self.calls[worker]
        self.calls[worker] = None
        if action is None:
            return
        if isinstance(action, _events.Launch):
            self.ready(worker)
        elif not self.on_request:
            value = worker + 1.0 + 10 * action.number
            message = np.full((1, LENGTH), value if is_finite else np.nan, np.float32)
            sent = WorkerMessage(message, np.ones(1), None, seconds)
            self.handle(_events.Response(worker, action.call, sent, seconds))
        elif is_call(action, "send_sum"):
            vector = sum_of(worker, action.arguments[0], is_finite)
            self.handle(_events.Response(worker, action.call, vector, seconds))
        elif is_call(action, "stop"):
            self.handle(_events.Response(worker, action.call, Progress(), seconds))
        else:
            self.compute(worker, seconds, num_parts, is_finite)
            seen = action.arguments[0] if is_call(action, "report") else 0
            process = self.workers[worker]
            expected_sum = process.expected_sum(worker, is_finite)
            progress = Progress(process.reports[seen:], expected_sum)
            self.handle(_events.Response(worker, action.call, progress, seconds))

    def run(self, seconds, step=0, owner=None, verifier=None):
        """Returns a round whose calls take `seconds(worker, action)`, or never end."""
        self.begin(step, owner, verifier)
        while self.engine.result is None:
            for worker, action in enumerate(self.calls):
                if action is not None and self.due.get(worker, [None])[0] is not action:
                    duration = seconds(worker, action)
                    self.due[worker] = action, self.now + duration, duration
            times = {
                worker: due
                for worker, (action, due, _) in self.due.items()
                if self.calls[worker] is action
            }
            first = min(times, key=times.get, default=None)
            end = np.clip(self.engine.poll_at, self.now, self.now + 0.1)
            if first is not None and times[first] <= end:
                self.now = max(self.now, times[first])
                self.respond(first, self.due[first][2])
            else:
                self.now = float(end)
            self.poll()
        return self.engine.result

    def finish(self):
        """All workers respond at once until the round ends."""
        for _ in range(300):
            for worker, action in enumerate(self.calls):
                if action is not None and self.engine.result is None:
                    self.respond(worker)
            self.poll(0.5)
            if self.engine.result is not None:
                return self.engine.result
        raise AssertionError("the round does not end")


class SimulatedRay:
    """Ray with a clock, and one actor, which starts at once.

    Args:
      away: Seconds for which the coordinator is away after each call.
      travelled: Seconds that calls travel, and responses.
      worked: Seconds that the worker takes.
    """

    def __init__(self, away=0, travelled=0, worked=0):
        self.now = 0
        self.due = []
        self.results = []
        self.away = away
        self.travelled = travelled
        self.worked = worked
        self.start = types.SimpleNamespace(remote=self._start)
        self.compute = types.SimpleNamespace(remote=self._compute)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def _start(self):
        return self._call(_events.Ready(0, None, "", ""))

    def _compute(self, *arguments):
        message = np.zeros((1, LENGTH), np.float32)
        return self._call(WorkerMessage(message, np.zeros(1), None, self.worked))

    def _call(self, result):
        self.due.append(self.now + 2 * self.travelled + self.worked)
        self.results.append(result)
        self.now += self.away
        return len(self.due) - 1

    def wait(self, tasks, num_returns=1, timeout=0.0):
        if timeout:
            self.now = max(self.now, min(self.due[task] for task in tasks))
        return [task for task in tasks if self.due[task] <= self.now], []

    def get(self, task, timeout):
        return self.results[task]

    def is_initialized(self):
        return True

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: "elsewhere")


class SimulatedLauncher:
    """Launches one actor of a simulated Ray, without a spare process."""

    def __init__(self, ray):
        self.ray = ray
        self.num_spares = 0

    def launch(self, worker, step):
        return self.ray, self.ray.start.remote()

    def prepare_spare(self):
        self.num_spares += 1

    def end_spare(self):
        self.num_spares = 0
