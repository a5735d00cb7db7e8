"""Options of a `RayCluster` reach its driver, workers and optimizer: without any Ray.

The driver records what it is given, and each round is that of a function.
"""

import contextlib
import threading
import warnings

import jax
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.aggregate import DecodingOptions
from jaxwgc.distributed import Faults, RayCluster, Round, Timeouts, Verification
from jaxwgc.distributed.ray import _coordinator
from jaxwgc.distributed.ray._events import Lost, Ready
from jaxwgc.distributed.ray._messages import read
from jaxwgc.distributed.ray._verification import Audits, ParityChecks

pytest.importorskip("ray")

CODE = codes.uncoded(2)
COPIES = codes.fractional_repetition(2, num_stragglers=1)
ON_REQUEST = codes.replicated(2, copies=2)
PARTS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
PARAMS = np.zeros(2, np.float32)
ALL = np.ones(2, bool)
# The message of worker 1 is missing.
FIRST = np.array([True, False])
# Descent by the decoded gradient itself.
DESCENT = optax.sgd(1.0)


def loss(params, part):
    return params @ part


def round_of(received, **others):
    """Returns a round in which the messages are the parts."""
    return Round(
        messages=PARTS * received[:, None],
        received=received,
        times=np.where(received, 0.5, np.inf),
        seconds=np.where(received, 0.5, np.nan),
        elapsed=0.5,
        known=np.ones(2, bool),
        losses=np.zeros(2),
        aux=None,
        timings={},
        **others,
    )


class RecordingLauncher:
    """Records its arguments."""

    def __init__(self, code, layout, task, parts, options, *, has_spare):
        self.task = task
        self.options = options
        self.has_spare = has_spare


class RecordingDriver:
    """Records the arguments of rounds; all workers respond unless `respond` changes."""

    actors = None
    verifier = None

    def __init__(self, fleet, layout, launcher, plan):
        self.fleet = fleet
        self.launcher = launcher
        self.plan = plan
        self.is_closed = threading.Event()
        self.steps = []
        self.keys = []
        self.owners = []
        self.respond = lambda: round_of(ALL)

    def start(self, step):
        for worker in range(len(self.fleet.slots)):
            self.fleet.ready(Ready(worker, None, "", ""))

    def run(self, step, leaves, key, owner):
        self.steps.append(step)
        self.keys.append(read(key))
        self.owners.append(owner)
        return self.respond()

    def end(self):
        pass


@pytest.fixture
def open_cluster(monkeypatch):
    """Opens clusters whose drivers record, and starts them."""

    @contextlib.contextmanager
    def session(address):
        yield None

    monkeypatch.setattr(_coordinator, "session", session)
    monkeypatch.setattr(_coordinator, "check_resources", lambda number, options: None)
    monkeypatch.setattr(_coordinator, "Launcher", RecordingLauncher)
    monkeypatch.setattr(_coordinator, "Driver", RecordingDriver)
    with contextlib.ExitStack() as stack:

        def open_cluster(code=CODE, **options):
            cluster = RayCluster(loss, code, PARTS, **options)
            stack.enter_context(cluster)
            return cluster, cluster._coordinator.started(PARAMS, 0, cluster.key)

        yield open_cluster


def test_late_messages_have_one_owner_in_a_training_with_memory(open_cluster):
    """Those of another training are of other params."""
    cluster, driver = open_cluster()
    driver.respond = lambda: round_of(ALL, late=np.zeros(2, bool))
    for _ in range(2):
        cluster.train(DESCENT, PARAMS, 2, memory=True)
    first, second, third, fourth = driver.owners
    assert first is not None
    assert first is second
    assert third is fourth
    assert first is not third


def test_rounds_without_memory_have_no_owner(open_cluster):
    cluster, driver = open_cluster()
    cluster.train(DESCENT, PARAMS, 2)
    assert driver.owners == [None, None]


def test_late_message_stands_for_a_missing_one_with_memory(open_cluster):
    """Worker 1 responds late in the first step, with its part as its message."""
    cluster, driver = open_cluster()
    this_round = round_of(FIRST, late=~FIRST)._replace(messages=PARTS)
    driver.respond = lambda: this_round
    with pytest.warns(UserWarning, match="cannot be decoded"):
        state = cluster.train(DESCENT, PARAMS, 1, memory=True)
    np.testing.assert_allclose(state.params, -PARTS.sum(0), rtol=1e-6)


@pytest.mark.parametrize(("debias", "factor"), [(None, 1), ("share", 2), (0.25, 4)])
def test_gradients_are_debiased_in_training(open_cluster, debias, factor):
    """Worker 1 is missing, and with it half of the gradient."""
    cluster, driver = open_cluster()
    driver.respond = lambda: round_of(FIRST)
    # With `debias`, only a round that is no better than a zero update is undecodable.
    expected = contextlib.nullcontext()
    if debias is None:
        expected = pytest.warns(UserWarning, match="cannot be decoded")
    with warnings.catch_warnings(action="error"), expected:
        state = cluster.train(DESCENT, PARAMS, 1, debias=debias)
    np.testing.assert_allclose(state.params, -factor * PARTS[0], rtol=1e-6)
    assert int(state.optimizer_state[0].num_undecodable) == (debias is None)


def test_undecodable_rounds_are_skipped_in_training(open_cluster):
    cluster, driver = open_cluster(undecodable="skip")
    driver.respond = lambda: round_of(FIRST)
    with pytest.warns(UserWarning, match="cannot be decoded"):
        state = cluster.train(DESCENT, PARAMS, 1)
    np.testing.assert_array_equal(state.params, PARAMS)


@pytest.mark.parametrize("tolerance", [0.6, 0.8])
def test_tolerance_is_that_of_rounds_and_of_training(open_cluster, tolerance):
    """Half of the parts leave a relative residual of √(1/2)."""
    decoding = DecodingOptions(tolerance=tolerance)
    cluster, driver = open_cluster(decoding=decoding, undecodable="raise")
    driver.respond = lambda: round_of(FIRST)
    is_error = tolerance < 0.7
    expected = pytest.raises(RuntimeError, match="cannot be decoded")
    with expected if is_error else contextlib.nullcontext():
        state = cluster.train(DESCENT, PARAMS, 1)
        assert int(state.optimizer_state[0].num_undecodable) == 0


def test_workers_take_over_the_precision(open_cluster, x64):
    _, driver = open_cluster()
    assert driver.launcher.task.settings["jax_enable_x64"] is x64


def test_workers_take_over_the_kind_of_keys(open_cluster):
    with jax.default_prng_impl("rbg"):
        _, driver = open_cluster()
    assert driver.launcher.task.settings["jax_default_prng_impl"] == "rbg"


def test_workers_take_over_faults_and_dtype(open_cluster):
    faults = Faults(delay=lambda worker, step: 0.0, corrupt=lambda *message: None)
    decoding = DecodingOptions(message_dtype="bfloat16")
    _, driver = open_cluster(faults=faults, decoding=decoding)
    task = driver.launcher.task
    assert task.delay is faults.delay
    assert task.corrupt is faults.corrupt
    assert task.message_dtype == "bfloat16"


def test_replacements_are_those_of_the_round(open_cluster):
    """One worker is lost in the second of three rounds."""
    cluster, driver = open_cluster()

    def lose():
        driver.fleet.lose(Lost(0, "its process died"), 0.0)
        return round_of(ALL)

    driver.respond = lose
    second = cluster.compute(PARAMS)
    driver.respond = lambda: round_of(ALL)
    third = cluster.compute(PARAMS)
    assert (second.replaced, third.replaced) == (1, 0)


def test_timeouts_are_those_of_the_fleet(open_cluster):
    timeouts = Timeouts(response=5.0, start=7.0, replacement=9.0)
    _, driver = open_cluster(timeouts=timeouts)
    assert driver.fleet.timeouts == timeouts
    assert driver.fleet.limit.seconds == 5.0


def test_waiting_rule_ends_the_rounds(open_cluster):
    _, driver = open_cluster(COPIES, wait=stragglers.fastest(2))
    times = np.array([0.5, np.inf])
    assert driver.fleet.rules.ends(times) == np.inf
    _, driver = open_cluster(COPIES, wait=stragglers.fastest(1))
    assert driver.fleet.rules.ends(times) == 0.5


def test_default_rule_waits_until_the_messages_decode(open_cluster):
    _, driver = open_cluster(COPIES)
    assert driver.fleet.rules.ends(np.array([0.5, np.inf])) == 0
    assert driver.fleet.rules.ends(np.array([np.inf, np.inf])) == np.inf


@pytest.mark.parametrize("on_wrong", ["drop", "arbitrate", "raise"])
def test_options_of_parity_checks_reach_the_verifier(open_cluster, on_wrong):
    verification = Verification(on_wrong=on_wrong, noise=0.125)
    _, driver = open_cluster(COPIES, verification=verification)
    assert isinstance(driver.verifier, ParityChecks)
    assert driver.verifier._on_wrong == on_wrong
    assert driver.verifier._noise == 0.125
    assert driver.launcher.task.has_queries


def test_options_of_audits_reach_the_verifier(open_cluster):
    verification = Verification(audit=0.25, noise=0.125)
    _, driver = open_cluster(ON_REQUEST, verification=verification)
    assert isinstance(driver.verifier, Audits)
    assert driver.verifier._audit == 0.25
    assert driver.verifier._noise == 0.125
    assert driver.launcher.task.has_queries


def test_messages_are_not_verified_by_default(open_cluster):
    _, driver = open_cluster()
    assert driver.verifier is None
    assert not driver.launcher.task.has_queries


def test_rounds_on_request_have_a_plan(open_cluster):
    _, driver = open_cluster(ON_REQUEST)
    assert driver.plan.code is ON_REQUEST
    assert driver.launcher.task.report_size == driver.plan.report_size
    _, driver = open_cluster(COPIES)
    assert driver.plan is None


def test_steps_and_keys_of_a_resumed_cluster(open_cluster):
    cluster, driver = open_cluster()
    key = jax.random.key(3)
    cluster.compute(PARAMS)
    cluster.resume(7, key)
    cluster.compute(PARAMS)
    cluster.compute(PARAMS)
    assert driver.steps == [0, 7, 8]
    assert jax.random.key_data(driver.keys[0]).tolist() == [0, 0]
    assert jax.random.key_data(driver.keys[2]).tolist() == [0, 3]


def test_training_counts_its_own_steps(open_cluster):
    cluster, driver = open_cluster()
    cluster.train(DESCENT, PARAMS, 2)
    cluster.compute(PARAMS)
    assert driver.steps == [0, 1, 0]


def test_limits_of_a_checkpoint_are_those_of_the_cluster(open_cluster, tmp_path):
    """Ten times the longest response, of a run that is continued elsewhere."""
    cluster, driver = open_cluster()
    driver.fleet.limit.note(1, 0.5)
    cluster.train(DESCENT, PARAMS, 1, checkpoint=tmp_path)
    other, driver = open_cluster()
    other.train(DESCENT, PARAMS, 1, checkpoint=tmp_path)
    assert driver.fleet.limit.seconds == 5.0


def test_trained_params_are_decoded_with_the_weights_of_a_code(open_cluster):
    """Part 1 counts three times."""
    code = jaxwgc.weighted(CODE, np.array([1.0, 3.0]))
    cluster, driver = open_cluster(code)
    this_round = round_of(ALL)
    messages = np.float32(jaxwgc.encode(code, PARTS))
    driver.respond = lambda: this_round._replace(messages=messages)
    state = cluster.train(DESCENT, PARAMS, 1)
    np.testing.assert_allclose(state.params, -(PARTS[0] + 3 * PARTS[1]), rtol=1e-6)


def test_there_is_no_report_before_the_first_rounds():
    cluster = RayCluster(loss, codes.uncoded(2), PARTS)
    assert cluster.trace().shape == cluster.trace(stand_ins=True).shape == (0, 2)
    with pytest.raises(ValueError, match="with at least 2 rounds; got"):
        cluster.report()
