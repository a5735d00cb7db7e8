"""Which columns of a table hold steps, workers and seconds, by their names."""

import pytest

from jaxwgc.traces._column_names import FileOptions, LongForm, WideForm, form_of

LONG = [
    ("step worker seconds", 1),
    ("Iteration Rank Step_Time", 1),
    ("global_step host duration_ms", 1e3),
    ("round node time_us", 1e6),
    ("iter process Step-Time(ns)", 1e9),
    ("step device time_seconds", 1),
]


@pytest.mark.parametrize(("names", "units_per_second"), LONG)
def test_names_of_the_long_form(names, units_per_second):
    form = form_of(names.split())
    assert form == LongForm(*names.split(), units_per_second)


def test_order_and_other_columns_of_the_long_form():
    form = form_of(["loss", "time_ms", "epoch", "rank", "step"])
    assert form == LongForm("step", "rank", "time_ms", units_per_second=1e3)


WIDE = [
    ("host0 host1 host10", "host0 host1 host10", ""),
    ("step rank-0 rank-1", "rank-0 rank-1", ""),
    ("worker_0 worker_1", "0 1", ""),
    ("host-a host-b host-c", "host-a host-b host-c", ""),
    ("Step lr tokens host0 host1", "host0 host1", "lr tokens"),
    ("0 1 2", "0 1 2", ""),
    ("iteration 1 2", "1 2", ""),
    ("step loss worker/0/seconds worker/1/seconds", "0 1", "loss"),
    ("exp/rank.3/step_time exp/rank.7/step_time", "rank.3 rank.7", ""),
    # Other quantities of workers are not times.
    ("rank0_loss rank0_time rank1_loss rank1_time", "rank0 rank1", "rank0_loss"),
    ("host0 host1 master", "host0 host1", "master"),
    ("rank_0_ms rank_1_ms", "rank_0 rank_1", ""),
]


@pytest.mark.parametrize(("names", "workers", "skipped"), WIDE)
def test_numbered_workers_of_the_wide_form(names, workers, skipped):
    form = form_of(names.split())
    assert isinstance(form, WideForm)
    assert list(form.workers.values()) == workers.split()
    assert set(skipped.split()) <= set(form.skipped)
    assert bool(form.skipped) == bool(skipped)


def test_a_column_per_wandb_run_has_no_range():
    names = ["Step"]
    for rank in range(3):
        run = f"rank-{rank} - step_time_ms"
        names += [run, f"{run}__MIN", f"{run}__MAX"]
    form = form_of(names)
    assert form.workers == {
        f"rank-{rank} - step_time_ms": f"rank-{rank}" for rank in range(3)
    }
    assert form.step == "Step"
    assert form.units_per_second == 1e3
    assert not form.skipped


UNKNOWN = [
    "a b c",
    "step lr tokens",
    "Wall-time Step Value",
    "rank0_loss rank1_loss",
    "layer0 layer1 layer2",
    # Neither the number of a worker nor a name of one.
    "host_name process_count",
]


@pytest.mark.parametrize("names", UNKNOWN)
def test_columns_are_never_guessed_to_be_workers(names):
    with pytest.raises(ValueError, match="no column is known to hold .*--workers "):
        form_of(names.split())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("step rank host seconds", "got 'rank', 'host'. Choose .* --worker COL"),
        ("step rank time duration", "got 'time', 'duration'. Choose .* --seconds"),
        ("step iter rank seconds", "got 'step', 'iter'. Choose .* --step COLUMN"),
        ("rank seconds", "must have a column of steps, .* 'rank', 'seconds'. Choose"),
        ("rank0_time rank0_step_time", "several groups of columns may hold times"),
        (
            "rank loss step",
            "with a row per time must have .* a column of seconds; .* 'loss'",
        ),
        ("host 0 1 2", "with a row per time must .* transpose the table"),
        ("rank0 rank1 rank_n", "several groups of columns"),
        ("host0 host0", "each column must have its own name; got 'host0' twice"),
        ("rank0 Rank-0 rank1", "worker must have one column; got .* 'rank0', 'Rank-0'"),
        ("host0_ms host1_ns", "several groups of columns"),
        ("host0_time_ms host1_time_us", "several groups of columns"),
    ],
)
def test_ambiguous_columns_are_rejected(names, message):
    with pytest.raises(ValueError, match=message):
        form_of(names.split())


def test_long_form_that_is_chosen():
    names = ["a", "b", "c_ms", "rank"]
    options = FileOptions(step="a", worker="b", seconds="c_ms")
    assert form_of(names, options) == LongForm("a", "b", "c_ms", 1e3)


def test_wide_form_that_is_chosen():
    names = ["step", "a1_ms", "b1_ms", "lr"]
    form = form_of(names, FileOptions(workers="*1_ms"))
    workers = {"a1_ms": "a1_ms", "b1_ms": "b1_ms"}
    assert form == WideForm(workers, 1e3, step="step", skipped=("lr",))
    form = form_of(names, FileOptions(workers="?1_ms", step="lr"))
    assert (form.step, form.skipped) == ("lr", ())
    # A step is no worker.
    assert form_of(names, FileOptions(workers="[!l]*")).workers == workers


def test_host_names_are_no_units():
    names = ["gpu0.company.us", "gpu1.company.us"]
    assert form_of(names, FileOptions(workers="gpu*")).units_per_second == 1
    for names in (["host0.us", "host1.us"], ["host0-us", "host1-us"]):
        with pytest.raises(ValueError, match="no column is known"):
            form_of(names)


@pytest.mark.parametrize(
    "name", ["latency (\u00b5s)", "latency \u03bcs", "t_us", "lag_usec"]
)
def test_units_of_a_chosen_column(name):
    names = ["step", "rank", name]
    assert form_of(names, FileOptions(seconds=name)).units_per_second == 1e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": "x*"}, "'x[*]' matches none of 'step', 'a', 'b'$"),
        ({"workers": "a", "seconds": "b"}, "choose one form"),
        ({"worker": "x"}, "--worker must name a column, one of 'step', 'a', .*'x'"),
        ({"step": "x"}, "--step must name a column"),
        ({"worker": "a"}, "must have a column of steps, a column of workers"),
    ],
)
def test_choices_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        form_of(["step", "a", "b"], FileOptions(**options))


def test_waits_have_names_of_their_own():
    names = ["step", "rank", "step_time", "wait_time_ms"]
    assert form_of(names).seconds == "step_time"
    form = form_of(names, FileOptions(waits=True))
    assert (form.seconds, form.units_per_second) == ("wait_time_ms", 1e3)
    names = ["rank0_time", "rank1_time", "rank0_wait", "rank1_wait"]
    assert list(form_of(names).workers) == names[:2]
    assert list(form_of(names, FileOptions(waits=True)).workers) == names[2:]
    # The duration of a step is no wait.
    with pytest.raises(ValueError, match="a column of seconds"):
        form_of(["step", "rank", "step_time"], FileOptions(waits=True))
    with pytest.raises(ValueError, match="no column is known"):
        form_of(["rank0_step_time", "rank1_step_time"], FileOptions(waits=True))
    assert list(form_of(["rank0", "rank1"], FileOptions(waits=True)).workers) == [
        "rank0",
        "rank1",
    ]


def test_messages_list_some_of_many_columns():
    names = [f"column{number}" for number in range(100)]
    with pytest.raises(ValueError, match="'column11' and 88 more"):
        form_of(names)
