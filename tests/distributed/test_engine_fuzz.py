"""Any order of responses, losses, restarts, stale reports and clock steps.

`python -m pytest tests/distributed/test_engine_fuzz.py --hypothesis-profile=thorough`
runs 20,000 sequences per engine.
"""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jaxwgc.distributed.ray._events import Response
from jaxwgc.distributed.ray._messages import Progress, Report, WorkerMessage
from jaxwgc.distributed.ray._part_states import FINISHED, PartStatus
from tests.distributed import simulated

WRONG = np.full((1, simulated.LENGTH), 1e6, np.float32)
SECONDS = st.sampled_from([0.0, 0.01, 0.6, 1.5, 5.0, 70.0])


class RoundMachine(RuleBasedStateMachine):
    """Rounds of a world in which anything happens, in any order."""

    on_request = False
    num_workers = simulated.NUM_WORKERS
    make_fleet = staticmethod(simulated.message_fleet)

    def __init__(self):
        super().__init__()
        self.world = simulated.World(
            self.make_fleet(), self.on_request, simulated.USUAL
        )
        self.step = -1
        self.owner = object()
        # Time of the first loss of each worker since its last good response.
        self.lost_at = [None] * self.num_workers
        self.num_losses = np.zeros(self.num_workers, int)
        # Newest requests of sums, and `lost_at` when they were decided.
        self.requests = None
        self.lost_at_decision = self.lost_at
        self.next_round()

    def next_round(self):
        self.step += 1
        self.world.begin(self.step, self.owner if self.step % 3 else None)

    @rule(worker=st.integers(0, 4), num_parts=st.integers(0, 4), late=SECONDS)
    def respond(self, worker, num_parts, late):
        self.world.respond(worker % self.num_workers, late, num_parts)

    @rule(worker=st.integers(0, 4))
    def respond_with_nan(self, worker):
        self.world.respond(worker % self.num_workers, is_finite=False)

    @rule(worker=st.integers(0, 4), num_parts=st.integers(1, 4), late=SECONDS)
    def compute(self, worker, num_parts, late):
        """Such reports come with the next ones, maybe a round later."""
        worker %= self.num_workers
        process = self.world.workers[worker]
        if self.on_request and process is not None and process.number >= 0:
            self.world.compute(worker, late, num_parts)

    @rule(worker=st.integers(0, 4))
    def lose(self, worker):
        worker %= self.num_workers
        if self.world.workers[worker] is not None:
            self.world.lose(worker)

    @rule(worker=st.integers(0, 4), age=st.integers(1, 6), kind=st.integers(0, 2))
    def send_stale(self, worker, age, kind):
        """Wrong content of a call that has been replaced, or of none."""
        worker %= self.num_workers
        call = self.world.fleet.slots[worker].call - age
        if not self.on_request:
            message = WorkerMessage(WRONG, np.ones(1), None, 0.1)
            self.world.handle(Response(worker, call, message, 0.1))
        elif kind == 0:
            self.world.handle(Response(worker, call, WRONG, 0.1))
        else:
            reports = [
                Report(self.world.engine.number, position, np.nan, None, True, 0.1)
                for position in range(4)
            ]
            self.world.handle(Response(worker, call, Progress(reports), 0.1))

    @rule(seconds=SECONDS)
    def let_time_pass(self, seconds):
        self.world.poll(seconds)

    @invariant()
    def requests_are_out_or_answered(self):
        engine = self.world.engine
        if not self.on_request or engine.requests is None or engine.result:
            return
        for worker in np.flatnonzero(engine._missing):
            call = self.world.calls[worker]
            assert simulated.is_call(call, "send_sum")
            assert call.number == engine.number
            assert self.world.fleet.slots[worker].state == "computing"
            [weights] = call.arguments
            np.testing.assert_array_equal(weights, engine.requests[worker])

    @invariant()
    def statuses_are_those_of_the_processes(self):
        """Reported parts are finished, lost processes have none, and none is idle."""
        engine = self.world.engine
        if not self.on_request or engine.result:
            return
        states = engine._parts
        for slot in self.world.fleet.slots:
            worker = slot.index
            process = self.world.workers[worker]
            if slot.state in ("lost", "starting"):
                assert not states.have_round[worker]
                continue
            finished = np.flatnonzero(states.are(FINISHED)[worker])
            if len(finished):
                assert process.number == engine.number
                assert {*finished.tolist()} <= {*process.done}
            if engine.requests is None and states.have_open[worker]:
                is_resting = engine._rest_until[worker] > self.world.now
                assert slot.state == "computing" or is_resting
        claims = states.are([PartStatus.COMPUTING]).sum(1)
        assert claims.max() <= max(2, simulated.PLAN.report_size)

    @invariant()
    def missing_sums_are_of_reported_parts(self):
        engine = self.world.engine
        if not self.on_request or engine.requests is None or engine.result:
            return
        support = simulated.PLAN.support & (engine.requests != 0)[:, :, None]
        is_requested = support.any(1) & engine._missing[:, None]
        assert not (is_requested & ~engine._parts.is_reported).any()

    @invariant()
    def rounds_are_right(self):
        self.note_losses()
        while (result := self.world.engine.result) is not None:
            self.check(result)
            self.check_waited_for_replacements()
            self.next_round()

    def note_losses(self):
        num_losses = self.world.fleet.num_losses()
        for slot in self.world.fleet.slots:
            worker = slot.index
            if not slot.trouble:
                self.lost_at[worker] = None
            elif num_losses[worker] > self.num_losses[worker]:
                if self.lost_at[worker] is None:
                    self.lost_at[worker] = self.world.now
        self.num_losses = num_losses
        engine = self.world.engine
        if self.on_request and engine.requests is not self.requests:
            self.requests = engine.requests
            self.lost_at_decision = [*self.lost_at]

    def check_waited_for_replacements(self):
        """An undecodable round has waited `timeouts.replacement` seconds from a loss.

        A lost worker that has come back, and has sent NaN, is not waited for.
        """
        fleet = self.world.fleet
        engine = self.world.engine
        mask = engine.result.received
        decided_at = self.world.now
        lost_at_decision = self.lost_at
        if self.on_request:
            # Workers may be lost while the round waits for sums.
            mask = engine._mask.ravel()
            decided_at = engine._requested_at
            lost_at_decision = self.lost_at_decision
        if fleet.rules.decodes(mask):
            return
        for slot in fleet.slots:
            lost_at = self.lost_at[slot.index]
            is_same_loss = lost_at == lost_at_decision[slot.index]
            if slot.state != "idle" and lost_at is not None and is_same_loss:
                away = decided_at - lost_at
                assert away >= fleet.timeouts.replacement, engine.result.reason

    def check(self, result):
        engine = self.world.engine
        assert np.isfinite(result.messages).all()
        if self.on_request:
            weights = np.asarray(result.decoding.effective_weights)
            expected = weights @ simulated.GRADIENTS
            np.testing.assert_allclose(result.messages.sum(0), expected, rtol=1e-6)
            assert {*weights.tolist()} <= {0.0, 1.0}
            known = np.isfinite(result.losses)
            assert known[weights == 1].all()
            np.testing.assert_array_equal(
                result.losses[known], np.arange(1.0, 9.0)[known]
            )
            return
        expected = np.arange(1.0, 1 + self.num_workers) + 10 * engine.number
        for worker, message in enumerate(result.messages):
            if result.received[worker]:
                assert (message == expected[worker]).all()
            elif result.late is None or not result.late[worker]:
                assert not message.any()
            else:
                assert (message < expected[worker]).all()
                assert message[0] % 10 == worker + 1
        assert np.isfinite(result.losses).tolist() == result.received.tolist()

    def teardown(self):
        """Any round ends once all workers respond."""
        self.check(self.world.finish())


class RequestRoundMachine(RoundMachine):
    """Rounds on request."""

    on_request = True
    num_workers = 4
    make_fleet = staticmethod(simulated.request_fleet)


class SingleWorkerMachine(RoundMachine):
    """Rounds of one worker, which is needed."""

    num_workers = 1
    make_fleet = staticmethod(simulated.single_fleet)


TestMessageRound = RoundMachine.TestCase
TestSingleWorker = SingleWorkerMachine.TestCase
TestRequestRound = RequestRoundMachine.TestCase
