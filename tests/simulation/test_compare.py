"""Comparisons against NumPy, closed forms, enumeration and models sampled by hand."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.simulation._comparison import summary_of_rounds
from jaxwgc.stragglers import deadline, fastest, until_decodable
from tests import oracles

KEY = jax.random.key(7)
N = 6
NUM_TRIALS = 3000
CODES = {
    "uncoded": codes.uncoded(N),
    "repetition": codes.fractional_repetition(N, num_stragglers=2),
    "cyclic": codes.cyclic_mds(N, num_stragglers=2),
    "bernoulli": codes.bernoulli(jax.random.key(3), N, N, copies=3),
}
DELAYS = {
    "exponential": stragglers.shifted_exponential(shift=1.0, rate=2.0),
    "slow": stragglers.bernoulli_slowdown(probability=0.3, slowdown=4.0),
}
WAITING = {
    "first 4": fastest(4),
    "first 5": fastest(5),
    "2.5 s": deadline(2.5),
    "decodable": until_decodable,
}
QUANTITIES = ("time", "error", "share", "exact", "messages", "work")


def draws_of(name, generator, shape):
    """Times at load 1 as NumPy draws them."""
    if name == "exponential":
        return 1 + generator.exponential(0.5, shape)
    return np.where(generator.random(shape) < 0.3, 4.0, 1.0)


def first_rounds(model, loads, number):
    """Returns arrivals of independent rounds, those of the trials of a study."""

    def sample(index):
        return model.sample(jax.random.fold_in(KEY, index), (), loads)[0]

    return jax.jit(jax.vmap(sample))(np.arange(number))


# One program in place of one for each operation.
decoding = jax.jit(jaxwgc.decoding)


@pytest.fixture(scope="module")
def study():
    return jaxwgc.compare(CODES, DELAYS, WAITING, KEY, NUM_TRIALS, keep_trials=True)


@pytest.fixture(scope="module")
def errors():
    """Error of every mask, by its number in binary, in float64."""
    masks = np.array(list(itertools.product([False, True], repeat=N)))
    return {
        name: oracles.squared_errors(oracles.best_mixtures(code, masks), code) / N
        for name, code in CODES.items()
    }


def simulated_in_numpy(name, delay, wait, errors, num_trials):
    """Trials of each quantity of a cell, from NumPy's own draws."""
    generator = np.random.default_rng(CELLS.index((name, delay, wait)))
    loads = np.asarray(CODES[name].loads, float)
    times = loads * draws_of(delay, generator, (num_trials, N))
    # Ties are in random order.
    order = np.lexsort((generator.random(times.shape), times), axis=1)
    rank = order.argsort(axis=1)
    last = np.sort(times, axis=1)
    binary = 2 ** np.arange(N)[::-1]
    if wait.startswith("first"):
        number = int(wait[-1])
        mask = rank < number
        elapsed = last[:, number - 1]
    elif wait == "2.5 s":
        elapsed = np.minimum(last[:, -1], 2.5)
        mask = times <= elapsed[:, None]
    else:
        elapsed = last[:, -1].copy()
        for number in range(N, 0, -1):
            received = times <= last[:, number - 1, None]
            decodes = errors[name][received @ binary] <= 1e-6
            elapsed = np.where(decodes, last[:, number - 1], elapsed)
        mask = times <= elapsed[:, None]
    error = errors[name][mask @ binary]
    done = np.minimum(elapsed[:, None] / times, 1)
    return {
        "time": elapsed,
        "error": error,
        # An optimal decoder recovers what it does not lose.
        "share": 1 - error,
        "exact": error <= 1e-6,
        "messages": mask.sum(axis=1),
        "work": (loads * done).sum(axis=1) / N,
    }


CELLS = list(itertools.product(CODES, DELAYS, WAITING))


@pytest.mark.parametrize(("name", "delay", "wait"), CELLS)
def test_means_are_those_of_numpy(study, errors, name, delay, wait):
    """Within five standard errors of the two studies together."""
    cell = study.codes.index(name), study.delays.index(delay), study.waiting.index(wait)
    trials = simulated_in_numpy(name, delay, wait, errors, 20_000)
    for quantity, expected in trials.items():
        summary = getattr(study, quantity)
        spread = np.std(expected) * math.sqrt(1 / NUM_TRIALS + 1 / len(expected))
        np.testing.assert_allclose(
            summary.mean[cell], expected.mean(), rtol=1e-5, atol=5 * spread + 1e-6
        )
        if quantity == "time" and np.ptp(study.trials["time"][cell]) == 0:
            assert np.isnan([summary.low[cell], summary.high[cell]]).all()
            continue
        assert summary.low[cell] <= summary.mean[cell] + 1e-12
        assert summary.high[cell] >= summary.mean[cell] - 1e-12
        # The interval is about as wide as NumPy's spread says.
        half = (summary.high[cell] - summary.low[cell]) / 2
        assert half <= 2.6 * np.std(expected) / math.sqrt(NUM_TRIALS) + 2e-3


def test_order_statistics_have_a_closed_form(study):
    """The f-th fastest of n shifted exponential times, and the mean of all."""
    for place, code in enumerate(CODES.values()):
        loads = np.asarray(code.loads, float)
        if np.any(loads != loads[0]):
            continue
        for rule, number in enumerate((4, 5)):
            harmonic = sum(1 / (N - index) for index in range(number))
            expected = loads[0] * (1 + harmonic / 2)
            result = study.time.mean[place, 0, rule]
            error = study.time.standard_error[place, 0, rule]
            assert abs(result - expected) < 5 * error


def test_errors_are_those_of_all_masks(study, errors):
    """With equal loads, each set of f workers is equally likely to be the fastest."""
    masks = np.array(list(itertools.product([False, True], repeat=N)))
    for place, name in enumerate(("uncoded", "repetition", "cyclic")):
        for rule, number in enumerate((4, 5)):
            expected = errors[name][masks.sum(axis=1) == number]
            result = study.error.mean[place, :, rule]
            tolerance = 5 * expected.std() / math.sqrt(NUM_TRIALS) + 1e-7
            np.testing.assert_allclose(result, expected.mean(), atol=tolerance)


@pytest.mark.parametrize("wait", WAITING)
def test_a_trial_is_a_sample_of_delayed(study, wait):
    """Its key is fold_in(key, i)."""
    loads = jnp.asarray(CODES["cyclic"].loads)
    for place, delay in enumerate(DELAYS.values()):
        rule = WAITING[wait]
        rule = (
            rule if isinstance(rule, stragglers.WaitingRule) else rule(CODES["cyclic"])
        )
        model = stragglers.delayed(delay, rule)
        arrivals = first_rounds(model, loads, 40)
        cell = study.codes.index("cyclic"), place, study.waiting.index(wait)
        trials = {name: values[cell][:40] for name, values in study.trials.items()}
        np.testing.assert_allclose(trials["time"], arrivals.elapsed, rtol=1e-6)
        messages = np.asarray(arrivals.received).sum(axis=1)
        np.testing.assert_array_equal(trials["messages"], messages)
        decoded = decoding(CODES["cyclic"], arrivals.received)
        np.testing.assert_allclose(trials["error"], decoded.error / N, atol=1e-6)


def test_trials_are_summarized(study):
    for quantity in QUANTITIES:
        trials = study.trials[quantity]
        assert trials.shape == (len(CODES), len(DELAYS), len(WAITING), NUM_TRIALS)
        mean = getattr(study, quantity).mean
        np.testing.assert_allclose(mean, trials.mean(axis=-1), rtol=1e-12)


def test_equal_codes_have_equal_rows_and_more_trials_extend_a_study():
    code = CODES["cyclic"]
    rules = [fastest(4), until_decodable]
    compare = functools.partial(
        jaxwgc.compare,
        [code, code],
        [DELAYS["exponential"]],
        rules,
        KEY,
        keep_trials=True,
    )
    few = compare(num_trials=30)
    more = compare(num_trials=70, batch_size=32)
    assert few.codes == ("LeastSquares, 3 copies (1)", "LeastSquares, 3 copies (2)")
    assert few.waiting == ("first 4", "until_decodable")
    for quantity in QUANTITIES:
        trials = more.trials[quantity]
        np.testing.assert_array_equal(trials[0], trials[1])
        first = few.trials[quantity]
        np.testing.assert_allclose(first, trials[..., :30], rtol=1e-5, atol=1e-6)


def test_studies_share_programs(compilations):
    """Numbers of trials, numbers in rules and equal codes change no program."""

    made = [codes.bernoulli(jax.random.key(seed), N, N, 3) for seed in (1, 2)]

    def run(num_trials, code, scale):
        delays = {"pareto": stragglers.pareto(scale=scale, shape=3.0)}
        waiting = {"first": fastest(int(2 + scale)), "until": deadline(3.0 * scale)}
        return jaxwgc.compare({"code": code}, delays, waiting, KEY, num_trials)

    run(50, made[0], scale=1.0)
    compilations.clear()
    run(333, made[1], scale=2.0)
    assert not compilations


def test_studies_run_in_double_precision(x64):
    code = CODES["cyclic"]
    waiting = {"4": fastest(4), "3": fastest(3), "done": until_decodable}
    study = jaxwgc.compare(
        {"cyclic": code}, DELAYS, waiting, KEY, 300, keep_trials=True
    )
    assert np.all(study.exact.mean[:, :, [0, 2]] == 1)
    # Rounding does not count as an error.
    assert np.all(study.error.mean[:, :, [0, 2]] == 0)
    lost = [mask for mask in itertools.product([0, 1], repeat=N) if sum(mask) == 3]
    mixtures = oracles.best_mixtures(code, np.array(lost, bool))
    expected = oracles.squared_errors(mixtures, code) / N
    tolerance = 5 * expected.std() / math.sqrt(300)
    np.testing.assert_allclose(
        study.error.mean[0, :, 1], expected.mean(), atol=tolerance
    )
    assert study.time.mean.dtype == np.float64
    # Each error is that of a mask, in the precision of this thread.
    trials = study.trials["error"][0, :, 1].ravel()
    distance = np.abs(trials[:, None] - expected).min(axis=1)
    assert distance.max() < (1e-13 if x64 else 1e-6)


def test_finished_parts_count():
    """Codes with several messages per worker, beside a code with one."""
    code = codes.replicated(4, num_parts=8, copies=2)
    study = jaxwgc.compare(
        {"replicated": code, "plain": codes.uncoded(4)},
        [DELAYS["exponential"]],
        {"first 3": fastest(3), "done": until_decodable},
        KEY,
        200,
        keep_trials=True,
    )
    for rule, wait in enumerate((fastest(3), until_decodable(code))):
        model = stragglers.delayed(DELAYS["exponential"], wait)
        arrivals = first_rounds(model, code.loads, 200)
        finished = arrivals.finished(code.parts_per_worker)
        decoded = decoding(code, finished=finished)
        trials = {name: values[0, 0, rule] for name, values in study.trials.items()}
        np.testing.assert_array_equal(trials["messages"], decoded.mask.sum(axis=1))
        np.testing.assert_allclose(trials["error"], decoded.error / 8, atol=1e-6)
        np.testing.assert_allclose(trials["work"], finished.sum(axis=1) / 8, atol=1e-6)
        assert np.any(trials["messages"] > 4)
    assert np.all(study.exact.mean[:, 0, 1] == 1)
    # Whole rounds of a code with one message per worker.
    assert np.all(study.trials["messages"][1, 0, 0] == 3)


MARKOV = stragglers.markov(
    stragglers.log_normal(1.0, 0.1),
    stragglers.log_normal(4.0, 0.1),
    become_slow=0.1,
    become_fast=0.3,
)


@pytest.mark.parametrize("late", ["cancelled", "busy"])
def test_clusters_of_dependent_rounds(late):
    """Are those of `delayed`, scanned by hand; intervals are those of clusters.

    Rounds of a delay model without a state are independent unless workers are busy.
    """
    code = CODES["repetition"]
    num_rounds = 5
    study = jaxwgc.compare(
        {"code": code},
        {"markov": MARKOV, "exponential": DELAYS["exponential"]},
        {"first 4": fastest(4), "decodable": until_decodable},
        KEY,
        # Rounded up to three clusters.
        num_trials=13,
        late=late,
        num_rounds=num_rounds,
        keep_trials=True,
    )
    assert study.num_trials == 15
    for place, delay in enumerate((MARKOV, DELAYS["exponential"])):
        for rule, wait in enumerate((fastest(4), until_decodable(code))):
            times, received, work = by_hand(code, delay, wait, late, num_rounds)
            cell = 0, place, rule
            np.testing.assert_allclose(study.trials["time"][cell], times, rtol=1e-5)
            np.testing.assert_array_equal(study.trials["messages"][cell], received)
            np.testing.assert_allclose(study.trials["work"][cell], work, rtol=1e-5)
            is_dependent = delay is MARKOV or late == "busy"
            of_clusters = np.reshape(times, (3, num_rounds)).mean(axis=1)
            summary = jaxwgc.summarize(of_clusters if is_dependent else times)
            for name in ("mean", "standard_error"):
                result = getattr(study.time, name)[cell]
                np.testing.assert_allclose(result, getattr(summary, name), rtol=1e-5)


def by_hand(code, delay, wait, late, num_rounds):
    """Times, numbers of messages and work of three clusters."""
    model = stragglers.delayed(delay, wait, late)
    sample = jax.jit(model.sample)
    draw = jax.jit(delay.sample)
    rounds = []
    for index in range(3 * num_rounds):
        if index % num_rounds == 0:
            state = model.init(N)
            delay_state = delay.init(N)
        key = jax.random.fold_in(KEY, index)
        arrivals, state = sample(key, state, jnp.asarray(code.loads))
        delay_key = jax.random.split(key)[0]
        times, delay_state = draw(delay_key, delay_state, jnp.asarray(code.loads))
        if late == "busy":
            done = arrivals.joined
        else:
            done = np.minimum(arrivals.elapsed / times, 1)
        work = np.sum(code.loads * np.asarray(done)) / N
        rounds.append((float(arrivals.elapsed), int(arrivals.received.sum()), work))
    return tuple(np.array(values) for values in zip(*rounds))


def test_decoders_of_single_codes():
    code = CODES["bernoulli"]
    study = jaxwgc.compare(
        {"optimal": code, "one step": code},
        [DELAYS["exponential"]],
        [fastest(4)],
        KEY,
        500,
        decoder={"one step": decoders.OneStep},
    )
    optimal, one_step = study.error.mean[:, 0, 0]
    assert optimal < one_step
    alone = jaxwgc.compare(
        [code],
        [DELAYS["exponential"]],
        [fastest(4)],
        KEY,
        500,
        decoder=decoders.OneStep,
    )
    np.testing.assert_allclose(alone.error.mean[0, 0, 0], one_step, rtol=1e-6)


def test_weighted_codes():
    """Errors are relative to the squared norm of the target."""
    weighted = jaxwgc.weighted(CODES["cyclic"], np.arange(1.0, N + 1))
    half = jaxwgc.weighted(CODES["cyclic"], np.full(N, 0.5))
    study = jaxwgc.compare(
        {"weighted": weighted, "half": half, "plain": CODES["cyclic"]},
        [DELAYS["exponential"]],
        [fastest(3)],
        KEY,
        100,
        keep_trials=True,
    )
    model = stragglers.delayed(DELAYS["exponential"], fastest(3))
    arrivals = first_rounds(model, weighted.loads, 100)
    decoded = decoding(weighted, arrivals.received)
    trials = {name: values[:, 0, 0] for name, values in study.trials.items()}
    expected = decoded.error / np.sum(np.arange(1.0, N + 1) ** 2)
    np.testing.assert_allclose(trials["error"][0], expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(trials["share"][0], decoded.share, rtol=1e-4)
    np.testing.assert_allclose(trials["error"][1], trials["error"][2], atol=1e-5)


def test_rules_without_tolerance():
    """Rounding is a residual for a rule with tolerance 0, as in `delayed`."""

    def strict(code):
        return until_decodable(code, tolerance=0.0)

    study = compare(codes=[CODES["cyclic"]], waiting=[strict], num_trials=50)
    assert study.messages.mean[0, 0, 0] > 4
    assert study.error.mean[0, 0, 0] == 0


def test_masks_of_more_than_64_messages_are_distinguished():
    """Masks of more than 64 messages are told apart by bytes."""
    code = codes.uncoded(70)
    waiting = {"most": fastest(60), "deadline": deadline(2.5)}
    delay = {"slow": DELAYS["slow"]}
    study = jaxwgc.compare([code], delay, waiting, KEY, 300, keep_trials=True)
    error = study.trials["error"][0, 0]
    messages = study.trials["messages"][0, 0]
    np.testing.assert_allclose(error, 1 - messages / 70, atol=1e-6)
    assert np.all(messages[0] == 60)
    assert len(np.unique(messages[1])) > 5


def test_lost_workers_and_rounds_that_never_end():
    lost = stragglers.bernoulli_slowdown(probability=0.5, slowdown=math.inf)
    waiting = {"all": fastest(N), "2 s": deadline(2.0)}
    study = jaxwgc.compare(
        {"uncoded": CODES["uncoded"]}, {"lost": lost}, waiting, KEY, 200
    )
    assert study.time.mean[0, 0, 0] == math.inf
    assert abs(study.messages.mean[0, 0, 1] - N / 2) < 0.5
    assert abs(study.work.mean[0, 0, 1] - 0.5) < 0.1
    assert "inf" in str(study)


def test_rounds_that_do_not_decode_wait_for_all():
    """A lost worker then makes them infinite, as in `delayed`."""
    code = CODES["repetition"]
    lost = stragglers.bernoulli_slowdown(probability=0.4, slowdown=math.inf)
    waiting = {"done": until_decodable}
    study = jaxwgc.compare([code], [lost], waiting, KEY, 100, keep_trials=True)
    model = stragglers.delayed(lost, until_decodable(code))
    arrivals = first_rounds(model, code.loads, 100)
    times = study.trials["time"][0, 0, 0]
    np.testing.assert_array_equal(times, arrivals.elapsed)
    assert 0 < np.isinf(times).sum() < 100
    messages = study.trials["messages"][0, 0, 0]
    np.testing.assert_array_equal(messages, arrivals.received.sum(axis=1))


def test_the_table_has_a_row_for_each_code_and_rule(study):
    text = str(study)
    assert text.startswith("3,000 rounds per row")
    # The times of a deadline that always passes are equal, which a note explains.
    assert text.count("\n\n") == len(DELAYS) + 1
    assert len(text.splitlines()) == 3 + 2 * (1 + 2 + len(CODES) * len(WAITING))
    assert "  2.5 *  " in text
    row = next(line for line in text.splitlines() if line.startswith("uncoded"))
    assert f"{study.time.mean[0, 0, 0]:.4g} ± " in row
    assert "0.3333 ± 0 " in row


def test_dataframe(study):
    frame = study.to_dataframe()
    assert len(frame) == len(CELLS)
    assert [*frame.columns[:6]] == [
        *("code", "delay", "waiting", "time", "time_low", "time_high")
    ]
    row = frame[
        (frame.code == "cyclic") & (frame.delay == "slow") & (frame.waiting == "2.5 s")
    ]
    cell = study.codes.index("cyclic"), 1, study.waiting.index("2.5 s")
    assert row.error.item() == study.error.mean[cell]
    assert row.work_high.item() == study.work.high[cell]
    assert row.time_standard_error.item() == study.time.standard_error[cell]


@pytest.mark.parametrize(
    ("y", "panels", "lines"), [("error", 2, 4), ("time", 2, 4), ("exact", 2, 4)]
)
def test_figures_have_a_panel_per_delay_model_and_a_line_per_code(
    study, y, panels, lines
):
    figure = study.plot(y)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == panels
    for axes in shown:
        markers = [points.get_marker() for points, *_ in axes.containers]
        assert len(markers) == len(set(markers)) == lines
    assert {axes.get_xlabel() for axes in shown} == {"waiting"}
    for axes in shown:
        is_leftmost = axes.get_subplotspec().is_first_col()
        assert axes.get_ylabel() == (y if is_leftmost else "")
    figure.canvas.draw()


def test_a_study_has_one_round_and_one_trial_at_least():
    study = compare(num_rounds=1, num_trials=1)
    assert study.num_trials == 1
    assert np.isfinite(study.time.mean).all()


def test_names_that_are_numbers_are_an_axis():
    waiting = {number: fastest(number) for number in (6, 2)}
    study = jaxwgc.compare([CODES["uncoded"]], [DELAYS["slow"]], waiting, KEY, 20)
    [axes] = study.plot(log=True).axes
    [line, *_] = axes.containers[0]
    np.testing.assert_array_equal(line.get_xdata(), [2, 6])
    frame = study.to_dataframe()
    assert [*frame.waiting] == [6, 2]
    assert axes.get_yscale() == "log"
    with pytest.raises(ValueError, match="y must be one of 'time'"):
        study.plot(y="speed")


@pytest.mark.parametrize("names", [("1_000", "1e3"), ("1", "1.0"), ("1_2", "3")])
def test_names_that_are_no_different_numbers_stay_names(names):
    waiting = dict.fromkeys(names, fastest(6))
    study = jaxwgc.compare([CODES["uncoded"]], [DELAYS["slow"]], waiting, KEY, 20)
    assert [*study.to_dataframe().waiting] == [*names]


def test_progress():
    calls = []
    jaxwgc.compare(
        [CODES["uncoded"]],
        [DELAYS["slow"]],
        [fastest(4)],
        KEY,
        50,
        batch_size=20,
        progress=lambda *done: calls.append(done),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@dataclasses.dataclass(frozen=True)
class Broken(stragglers.DelayModel):
    def sample(self, key, state, loads):
        return loads * jnp.nan, state


@dataclasses.dataclass(frozen=True)
class SecondMore(stragglers.WaitingRule):
    def is_over(self, times, now):
        return now >= times.min() + 1


def test_rules_of_ones_own():
    """All workers need one second, or all four, or the round ends after two."""
    study = compare(waiting={"own": SecondMore()}, num_trials=300, keep_trials=True)
    times = study.trials["time"][0, 0, 0]
    assert {1.0, 2.0} <= {*times} <= {1.0, 2.0, 4.0}
    all_fast = study.trials["messages"][0, 0, 0] == N
    np.testing.assert_array_equal(times == 2.0, ~all_fast)


@dataclasses.dataclass(frozen=True)
class EndsAtNaN(stragglers.WaitingRule):
    def ends(self, times):
        return times.max() * jnp.nan


@dataclasses.dataclass(frozen=True)
class EndsBefore(stragglers.WaitingRule):
    def ends(self, times):
        return times.max() * 0 - 1


class Slower(stragglers.bernoulli_slowdown):
    """A law of the library with an `__init__` and an attribute of its own."""

    def __init__(self, factor):
        super().__init__(probability=0.0, slowdown=1.0)
        object.__setattr__(self, "factor", factor)

    def sample(self, key, state, loads):
        times, state = super().sample(key, state, loads)
        return self.factor * times, state


class Later(stragglers.deadline):
    """A rule of the library with another attribute."""

    def ends(self, times):
        return super().ends(times) + self.later


def later(seconds):
    rule = Later(1.5)
    object.__setattr__(rule, "later", seconds)
    return rule


@dataclasses.dataclass(frozen=True)
class Times(stragglers.DelayModel):
    """All objects are equal, and arrays have no hash."""

    times: np.ndarray = dataclasses.field(compare=False)

    def sample(self, key, state, loads):
        return loads * jnp.asarray(self.times), state


@dataclasses.dataclass(frozen=True)
class EndsAt(stragglers.WaitingRule):
    """Objects with 1 and 1.0 are equal."""

    second: object
    seconds: np.ndarray = dataclasses.field(compare=False)

    def is_over(self, times, now):
        return now >= self.seconds[0] + isinstance(self.second, float)


@pytest.mark.parametrize("late", ["cancelled", "busy"])
def test_classes_of_ones_own_compute_with_all_their_attributes(late):
    delays = {
        "1": Slower(1.0),
        "5": Slower(5.0),
        "2": Times(np.full(N, 2.0)),
        "7": Times(np.full(N, 7.0)),
        "3": stragglers.affine(Times(np.full(N, 3.0))),
        "4": stragglers.affine(Times(np.full(N, 4.0))),
    }
    waiting = {
        "all": fastest(N),
        "0.25 s": EndsAt(1, np.array([0.25])),
        "0.5 s": EndsAt(1, np.array([0.5])),
        "1.5 s": EndsAt(1.0, np.array([0.5])),
    }
    # The first rounds, in which no worker is late. All take at least a second.
    study = compare(
        codes={"uncoded": codes.uncoded(N)},
        delays=delays,
        waiting=waiting,
        late=late,
        num_trials=4,
        num_rounds=1,
        keep_trials=True,
    )
    first = study.trials["time"][0, :, :, 0]
    slowest = np.array([float(name) for name in delays])
    np.testing.assert_allclose(first[:, 0], slowest, rtol=1e-5)
    for place, end in enumerate([0.25, 0.5, 1.5], start=1):
        np.testing.assert_allclose(first[:, place], np.minimum(slowest, end), rtol=1e-5)


def test_rules_that_inherit_compute_with_their_attributes():
    times = {"0": later(0.0), "2": later(2.0)}
    study = compare(delays=[Times(np.full(N, 9.0))], waiting=times, num_trials=4)
    np.testing.assert_allclose(study.time.mean[0, 0], [1.5, 3.5], rtol=1e-5)


def test_eager_ends_of_equal_rules_differ():
    ends = [EndsAt(1, np.array([end])).ends(np.arange(1.0, 7)) for end in (2.0, 3.0)]
    np.testing.assert_allclose(ends, [2.0, 3.0], rtol=1e-5)


# One code with one message per worker and one with several, for equal assignments.
BINARY = CODES["cyclic"]
PARTS = codes.multi_message(BINARY)


@dataclasses.dataclass(frozen=True)
class Draws(stragglers.DelayModel):
    """Returns what a function makes of loads and state, which begins as a number."""

    function: object
    start: object = ()

    def init(self, num_workers):
        return self.start

    def sample(self, key, state, loads):
        return self.function(loads, state)


@pytest.mark.parametrize(
    ("function", "start", "message"),
    [
        (lambda loads, state: (loads[:3], state), (), r"\(6,\).* got float32 \(3,\)"),
        (lambda loads, state: (jnp.tile(loads, 2), state), (), r"got float32 \(12,\)"),
        (lambda loads, state: (loads[None], state), (), r"got float32 \(1, 6\)"),
        (lambda loads, state: (loads * 1j, state), (), r"got complex64 \(6,\)"),
        (lambda loads, state: (1.0, state), (), r"shape .*\(6,\).* got 1.0"),
        (lambda loads, state: loads, (), "pair .times, state.; got .*float32"),
        (
            lambda loads, state: (loads, state + 0.5),
            np.int32(0),
            r"carry.* int32\[\].* float32\[\]",
        ),
        (lambda loads, state: (loads, None), (), r"carry.* structure"),
    ],
)
def test_delay_models_that_return_something_else(function, start, message):
    """They are named, also if the rule decodes on the host."""
    delay = Draws(function, start)
    with pytest.raises(
        ValueError, match=rf"(?s)delays\['own'\] failed to draw times.*{message}"
    ):
        compare(delays={"own": delay}, waiting=[until_decodable])


def test_states_may_begin_as_python_numbers():
    """A loop gives them the dtype of the states after them."""
    delay = Draws(lambda loads, state: (loads + state, state + 0.5), 0)
    study = compare(delays={"own": delay}, num_rounds=5, keep_trials=True)
    times = study.trials["time"][0, 0, 0]
    np.testing.assert_array_equal(times[:5], [1.0, 1.5, 2.0, 2.5, 3.0])


def test_rules_of_the_code_without_weights():
    """A weighted code decodes from the messages that decode the code itself.

    The first part has weight 0. The other way around, a rule would end rounds early.
    """
    weights = np.arange(N)
    weighted = jaxwgc.weighted(BINARY, weights)
    waiting = {"own": until_decodable, "plain": until_decodable(BINARY)}
    study = compare(
        codes={"weighted": weighted}, waiting=waiting, num_trials=50, keep_trials=True
    )
    times, plain = study.trials["time"][0, 0]
    np.testing.assert_array_equal(times, plain)
    with pytest.raises(ValueError, match="for another code"):
        compare(codes=[BINARY], waiting=[until_decodable(weighted)])


def test_rules_decode_by_the_decoder_of_the_study():
    """One-step decoding needs more workers, and labels of codes name it."""
    code = CODES["repetition"]
    by_hand = until_decodable(code, decoder=decoders.OneStep)
    study = compare(
        codes=[code],
        waiting={"study": until_decodable, "by hand": by_hand},
        decoder=decoders.OneStep,
        num_trials=30,
    )
    of_study, expected = study.messages.mean[0, 0]
    assert of_study == expected > 5
    assert study.codes == ("OneStep, 3 copies",)


def test_functions_of_a_code_choose_among_its_decoders():
    """Decoders that the study does not use may be chosen, too."""
    code = codes.reed_solomon(N, N, copies=3)
    seen = []

    def rule(code):
        seen.append([str(one) for one in code.decoders])
        return until_decodable(code, decoder=decoders.Lagrange)

    compare(codes=[code], waiting=[rule], decoder=decoders.LeastSquares)
    [names] = seen
    assert names[0].startswith("LeastSquares") and "Lagrange" in names


def test_rounding_is_exact_for_every_tolerance():
    study = compare(codes=[BINARY], tolerance=1e-12, num_trials=50)
    assert study.error.mean[0, 0, 0] == 0
    assert study.exact.mean[0, 0, 0] == 1


@dataclasses.dataclass(frozen=True)
class RareLoss(stragglers.DelayModel):
    """The first worker is slow with a probability; all others take one second."""

    probability: float
    time: float = 9.0

    def sample(self, key, state, loads):
        is_slow = jax.random.bernoulli(key, self.probability)
        return jnp.ones(len(loads)).at[0].set(jnp.where(is_slow, self.time, 1.0)), state


def test_intervals_of_rare_errors():
    """No error: up to the limit of the probability. Few: times their mean size."""
    delays = {"never": RareLoss(0.0), "rarely": RareLoss(0.004), "often": RareLoss(0.5)}
    study = compare(
        delays=delays, waiting=[deadline(2.0)], num_trials=500, keep_trials=True
    )
    trials = study.trials["error"][0, :, 0]
    assert study.error.high[0, 0, 0] == jaxwgc.summarize(trials[0] > 0).high
    assert 0 < np.count_nonzero(trials[1]) < 10
    limit = jaxwgc.summarize(trials[1] > 0).high
    np.testing.assert_allclose(study.error.high[0, 1, 0], limit / N, rtol=1e-5)
    assert study.error.high[0, 2, 0] == jaxwgc.summarize(trials[2]).high


def test_rare_times_that_were_not_seen_have_no_interval():
    """One of 4,000 rounds takes a thousand times as long, and 20 rounds are drawn."""
    rare = RareLoss(1 / 4000, time=1000.0)
    study = compare(delays=[rare], waiting=[fastest(N)], num_trials=20)
    assert study.time.mean[0, 0, 0] == 1
    assert np.isnan([study.time.low, study.time.high]).all()
    assert study.time_events[0, 0, 0] == study.to_dataframe().time_events[0] == 0
    text = str(study)
    assert "  1 *  " in text
    assert "\n\n* All rounds took equally long, or fewer than 10 in effect " in text


def test_intervals_of_few_slow_rounds_are_those_of_a_poisson_variable():
    study = compare(
        delays=[RareLoss(0.004)],
        waiting=[fastest(N)],
        num_trials=1000,
        keep_trials=True,
    )
    num_slow = np.count_nonzero(study.trials["time"] > 1)
    assert 1 < num_slow < 9
    assert study.time_events[0, 0, 0] == pytest.approx(num_slow, rel=0.05)
    ends = [
        stats.chi2.ppf(0.025, 2 * num_slow) / 2,
        stats.chi2.ppf(0.975, 2 * num_slow + 2) / 2,
    ]
    # A slow round takes 8 seconds more than the others.
    expected = 1 + 8 * np.array(ends) / 1000
    result = [study.time.low[0, 0, 0], study.time.high[0, 0, 0]]
    np.testing.assert_allclose(np.subtract(result, 1), expected - 1, rtol=0.05)
    row = str(study).splitlines()[-3]
    assert f" [{result[0]:.4g}, {result[1]:.4g}] *  " in row


def test_intervals_of_times_hold_in_95_percent_of_studies():
    """Five slow rounds are expected; Student's interval holds in 86% of studies."""
    generator = np.random.default_rng(0)
    for trials, mean in (
        (1 + 999.0 * (generator.random((2000, 1000)) < 0.005), 1 + 999 * 0.005),
        (1 - 0.9 * (generator.random((2000, 1000)) < 0.005), 1 - 0.9 * 0.005),
        (generator.exponential(size=(2000, 20)), 1.0),
        (generator.random((2000, 20)), 0.5),
    ):
        summaries = [summary_of_rounds(row) for row in trials]
        holds = [summary.low <= mean <= summary.high for summary in summaries]
        # The standard error of this share is 0.5%.
        assert np.mean(holds) > 0.93


def test_intervals_without_skewness_are_those_of_student():
    trials = np.append(np.arange(20.0), 0.5)
    trials -= trials.mean()
    symmetric = np.concatenate([10 + trials, 10 - trials])
    expected = jaxwgc.summarize(symmetric)
    np.testing.assert_allclose(summary_of_rounds(symmetric), expected, rtol=1e-9)


def test_equal_trials_have_an_end_in_tables_and_no_bar_in_figures():
    study = compare(codes=[CODES["repetition"]], num_trials=1000)
    row = str(study).splitlines()[-1]
    assert "  < 0.0048  " in row and "  > 0.9952  " in row
    [axes] = study.plot().axes
    [bars] = axes.containers[0].lines[2]
    np.testing.assert_array_equal(bars.get_segments()[0], [[0, 0], [0, 0]])


def test_a_mean_of_0_is_a_gap_of_logarithmic_figures():
    waiting = {number: fastest(number) for number in (3, 6)}
    study = compare(waiting=waiting, num_trials=20)
    [axes] = study.plot(log=True).axes
    line = axes.containers[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.5, np.nan], rtol=1e-6)


def test_a_representation_is_the_table():
    study = compare()
    assert repr(study) == str(study)
    assert "array" not in repr(study)


def test_notebooks_show_figures():
    assert compare().plot()._repr_png_().startswith(b"\x89PNG")


def test_long_titles_are_wrapped():
    study = compare(delays=[MARKOV])
    title = study.plot().axes[0].get_title()
    assert len(title.splitlines()) == 3
    assert max(map(len, title.splitlines())) <= 38


def test_labels_of_partial_functions():
    rules = [functools.partial(until_decodable, tolerance=0.5)]
    assert compare(waiting=rules).waiting == ("until_decodable(tolerance=0.5)",)


def test_iterables_are_lists():
    study = compare(
        codes={"uncoded": CODES["uncoded"]}.values(),
        waiting=(fastest(number) for number in (4, 5)),
    )
    assert study.codes == ("Group, 1 copy",)
    assert study.waiting == ("first 4", "first 5")


def test_traced_codes_are_named():
    @jax.jit
    def study(code):
        return compare(codes=[code])

    with pytest.raises(TypeError, match=r"codes\[0\] must be concrete"):
        study(CODES["uncoded"])


def test_times_of_padding_are_not_checked():
    """A batch of 10 trials is padded to 4096, of which some are NaN."""
    delays = {"rarely": RareLoss(0.01, time=math.nan)}
    assert np.isfinite(compare(delays=delays).time.mean).all()
    with pytest.raises(
        ValueError, match=r"delays\['rarely'\] must return times.* got nan"
    ):
        compare(delays=delays, num_trials=4000)


class EarlyTimes(stragglers.DelayModel):
    """Half a second, and less than nothing for the last worker."""

    def sample(self, key, state, loads):
        return jnp.full(len(loads), 0.5).at[-1].set(-0.5), state


def test_times_that_are_named_as_invalid_are_below_zero():
    delays = {"early": EarlyTimes()}
    with pytest.raises(ValueError, match=r"delays\['early'\] must .* got -0.5"):
        compare(delays=delays)


def compare(**changes):
    arguments = {
        "codes": {"uncoded": CODES["uncoded"]},
        "delays": [DELAYS["slow"]],
        "waiting": [fastest(4)],
        "key": KEY,
        "num_trials": 10,
    }
    return jaxwgc.compare(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"codes": {"six": CODES["uncoded"], "four": codes.uncoded(4)}},
            ValueError,
            "same number of workers; got {'six': 6, 'four': 4}",
        ),
        (
            {"waiting": {"seven": fastest(7)}},
            ValueError,
            r"waiting\['seven'\] for codes\['uncoded'\] does not fit.*num_required",
        ),
        (
            {"waiting": {"other": until_decodable(CODES["cyclic"])}},
            ValueError,
            r"waiting\['other'\] for codes\['uncoded'\].*another code",
        ),
        (
            {"waiting": {"class": fastest}},
            ValueError,
            r"waiting\['class'\] for codes\['uncoded'\].*function raised.*num_required",
        ),
        (
            {"waiting": {"text": "all"}},
            TypeError,
            r"waiting\['text'\] must be a waiting rule, e.g. .* got 'all'",
        ),
        (
            {
                "codes": {"parts": codes.replicated(4, num_parts=8, copies=2)},
                "waiting": {"done": until_decodable},
                "late": "busy",
            },
            ValueError,
            r"late must be 'cancelled' .*'done'.* codes\['parts'\]",
        ),
        (
            {"delays": [DELAYS["slow"], DELAYS["slow"]]},
            ValueError,
            "delays must have different names; got .*2 times",
        ),
        (
            {"waiting": [fastest(4), fastest(4)]},
            ValueError,
            "waiting must have different names; got 'first 4' 2 times",
        ),
        ({"waiting": {1: fastest(4), "1": fastest(5)}}, ValueError, "different names"),
        ({"num_trials": 0}, ValueError, "num_trials must be at least 1; got 0"),
        ({"num_trials": 1.5}, TypeError, "num_trials"),
        (
            {"delays": {"broken": Broken()}},
            ValueError,
            r"delays\['broken'\] must .* got nan",
        ),
        (
            {"delays": {"none": fastest(3)}},
            TypeError,
            r"delays\['none'\] must be a Del",
        ),
        ({"codes": CODES["uncoded"]}, TypeError, "codes must be a dict .* or a list"),
        ({"codes": []}, ValueError, "codes must not be empty"),
        ({"codes": ["uncoded"]}, TypeError, r"codes\[0\] must be a GradientCode"),
        ({"waiting": range(4, 6)}, TypeError, r"waiting\[0\] must be .* got 4"),
        ({"progress": True}, TypeError, "progress must be a function; got True"),
        (
            {"waiting": {"lookup": lambda code: {}[code.num_workers]}},
            ValueError,
            r"waiting\['lookup'\] for codes\['uncoded'\].*raised KeyError: 6",
        ),
        (
            {"waiting": {"done": until_decodable(PARTS)}, "codes": {"one": BINARY}},
            ValueError,
            r"waiting\['done'\] for codes\['one'\].*another code",
        ),
        (
            {"waiting": {"done": until_decodable(BINARY)}, "codes": {"parts": PARTS}},
            ValueError,
            r"waiting\['done'\] for codes\['parts'\].*another code",
        ),
        (
            {
                "waiting": {"done": until_decodable(CODES["cyclic"])},
                "codes": {"random": codes.cyclic_repetition(KEY, N, 2)},
            },
            ValueError,
            r"waiting\['done'\] for codes\['random'\].*another code",
        ),
        (
            {"codes": {"parts": PARTS}, "late": "busy"},
            ValueError,
            r"late must be 'cancelled' .*'first 4'.* codes\['parts'\]",
        ),
        (
            {"waiting": {"nan": EndsAtNaN()}},
            ValueError,
            r"waiting\['nan'\] must end rounds at times of at least 0.* at nan",
        ),
        (
            {"waiting": {"before": EndsBefore()}},
            ValueError,
            r"waiting\['before'\] must end rounds at times of at least 0.* at -1.0",
        ),
        ({"late": "lazy"}, ValueError, "late must be one of"),
        ({"decoder": {"coded": None}}, ValueError, r"names of codes \['uncoded'\]"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0"),
        ({"key": 3}, TypeError, "key must be a PRNG key"),
    ],
)
def test_wrong_arguments_are_rejected(changes, error, message):
    with pytest.raises(error, match=message):
        compare(**changes)


def test_rules_of_one_code_with_other_decoders_are_other_rules():
    """Busy workers, so that compiled functions apply the rules."""
    delay = stragglers.shifted_exponential(shift=1.0, rate=2.0)
    code = codes.fractional_repetition(6, 1)
    waiting = {
        "group": stragglers.until_decodable(code, 0.1, decoders.Group),
        "one step": stragglers.until_decodable(code, 0.1, decoders.OneStep),
    }
    times = {
        name: jaxwgc.compare(
            {"code": code}, [delay], rules, jax.random.key(0), 500, late="busy"
        ).time.mean[0, 0, -1]
        for name, rules in {
            "both": waiting,
            "alone": {"one step": waiting["one step"]},
        }.items()
    }
    assert times["both"] == pytest.approx(times["alone"], rel=1e-6)
