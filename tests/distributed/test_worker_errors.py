"""Exceptions of workers, all of which reach the coordinator as text."""

import pickle
import re
import threading
import traceback

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxwgc.distributed.ray import _errors
from jaxwgc.distributed.ray._errors import WorkerError, line_of, reporting
from jaxwgc.distributed.ray._events import Lost
from jaxwgc.distributed.ray._launcher import actor_class
from jaxwgc.distributed.ray._messages import sent
from jaxwgc.distributed.ray._part_worker import PartWorker
from jaxwgc.distributed.ray._rounds import StartUp
from jaxwgc.distributed.ray._task import Assignment, Task
from jaxwgc.distributed.ray._worker import Worker
from jaxwgc.gradients._contributions import term_of
from tests.distributed.ray_tasks import OfTwoArguments, draw, squares
from tests.distributed.simulated import message_fleet

PARAMS = jnp.zeros(4)
KEY = jax.random.key(0)
LIKE = jax.eval_shape(lambda: PARAMS)
PARTS = np.ones((2, 16, 4), np.float32)


class Locked(RuntimeError):
    """An exception with what cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Silent(RuntimeError):
    """An exception without a text."""

    def __str__(self):
        raise KeyError("no text")


def raised(error):
    """Returns what reaches the coordinator of an exception that a method raises."""

    def fail():
        raise error

    with pytest.raises(WorkerError) as info:
        reporting(fail)()
    return pickle.loads(pickle.dumps(info.value))


GROUP = ExceptionGroup("many", [KeyError("a"), ExceptionGroup("b", [OSError("c")])])
ERRORS = {
    "two arguments": (OfTwoArguments("as", "told"), "OfTwoArguments: as told"),
    "lock": (Locked("as told"), "Locked: as told"),
    "no text": (Silent(), "Silent: (its text raises KeyError)"),
    "group": (
        GROUP,
        "ExceptionGroup: many (2 sub-exceptions): KeyError: 'a'; "
        "ExceptionGroup: b (1 sub-exception): OSError: c",
    ),
    "interrupt": (KeyboardInterrupt(), "KeyboardInterrupt: "),
    "exit": (SystemExit(3), "SystemExit: 3"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_exception_arrives(name):
    """Errors keep their class, their text and the place where they were raised."""
    error, reason = ERRORS[name]
    arrived = raised(error)
    assert arrived.reason == reason
    # Lines of a group have margins.
    lines = [line.strip(" |") for line in arrived.traceback_text.splitlines()]
    assert lines[lines.index("raise error") - 1].endswith("in fail")
    assert reason in str(arrived)
    assert arrived.traceback_text in str(arrived)


def test_value_errors_stay_value_errors():
    assert isinstance(raised(ValueError("as told")), ValueError)
    assert not isinstance(raised(TypeError("as told")), ValueError)


@pytest.mark.parametrize("write", [lambda x: x.fill(0), lambda x: np.add(x, 1, out=x)])
def test_writing_into_a_read_only_array_says_what_to_do(write):
    array = np.ones(3)
    array.flags.writeable = False
    with pytest.raises(ValueError) as info:
        write(array)
    assert raised(info.value).reason.endswith(
        "copy them in the function, e.g. by np.array"
    )
    assert "copy" not in raised(OSError("the disk is read-only")).reason


def test_errors_are_converted_once():
    error = WorkerError("KeyError: 'a'", "of another thread")
    assert raised(error).traceback_text == "of another thread"


def test_huge_texts_lack_their_middle():
    arrived = raised(RuntimeError(f"begin{'x' * 10**6}end"))
    assert arrived.traceback_text.endswith("xend\n")
    assert re.search(r"x\n\.\.\. 99\d{4} characters \.\.\.\nx", arrived.traceback_text)
    assert len(pickle.dumps(arrived)) < 3 * _errors._LONGEST_TEXT
    assert arrived.reason == f"RuntimeError: begin{'x' * 495} ..."


def test_reason_is_in_the_first_line_or_below_a_header():
    assert line_of("") == ""
    assert line_of("\n the reason\nSee https://example.org\n") == "the reason"
    assert line_of("expected:\n  3\n  4") == "expected: 4"
    assert line_of("expected:") == "expected:"
    chain = "INTERNAL: call: Traceback (most recent call last):\n  File\nKeyError: 3\n"
    assert line_of(chain) == "INTERNAL: call: KeyError: 3"


# Texts of exceptions: their first line is in the reason, and ends in no colon.
LINES = st.text("abc 0159_'()", min_size=1).map(str.strip).filter(bool)
TEXTS = st.lists(LINES, min_size=1, max_size=3).map("\n".join)


@given(
    text=TEXTS,
    causes=st.lists(TEXTS, max_size=3),
    preface=LINES,
    depth=st.integers(0, 3),
)
def test_reason_is_below_the_frames_of_the_last_traceback(text, causes, preface, depth):
    """Texts of several lines, with causes, from callbacks in callbacks."""
    error = None
    for reason in [*causes, text]:
        cause = error
        try:
            raise KeyboardInterrupt(reason) from cause
        except KeyboardInterrupt as raised_error:
            error = raised_error
    chain = "".join(traceback.format_exception(error))
    line = f"KeyboardInterrupt: {text.splitlines()[0]}"
    for _ in range(depth):
        chain = f"{preface}: Traceback (most recent call last):\n  File 'a'\nE: {chain}"
    first = f"{preface}: " * bool(depth)
    assert line_of(chain) == f"{first}{line}"


def test_reason_of_a_long_traceback_in_a_text_is_below_it():
    """A recursion in a callback has thousands of frames, which JAX does not shorten."""
    frames = "".join(f'  File "{place}.py", line 1, in f\n' for place in range(10_000))
    text = f"INTERNAL: Traceback (most recent call last):\n{frames}RecursionError: deep"
    assert raised(RuntimeError(text)).reason == (
        "RuntimeError: INTERNAL: RecursionError: deep"
    )


def make_worker(kind=Worker, **fields):
    task = Task(
        term_of(squares),
        load=PARTS.__getitem__,
        params=LIKE,
        key=sent(KEY),
        has_keys=True,
    )
    task = task._replace(**fields)
    return actor_class(kind)(Assignment(0, np.arange(2), np.ones((1, 2))), task)


def test_numpy_in_a_batch_is_named():
    """A traced key cannot be used by NumPy: an exception that cannot be pickled."""

    def batch(key, part):
        return part[np.asarray(jax.random.key_data(key))]

    with pytest.raises(WorkerError) as info:
        make_worker(batch=batch).start()
    reason = pickle.loads(pickle.dumps(info.value)).reason
    name = "TracerArrayConversionError: The numpy.ndarray conversion method"
    assert reason.startswith(name)


def test_error_in_a_callback_is_named():
    """JAX puts the traceback into the text; the reason is in its last line."""

    def fail(part):
        raise ZeroDivisionError("as told")

    def batch(key, part):
        return jax.pure_callback(fail, part, part)

    worker = make_worker(batch=batch)
    worker.prepare([*PARTS])
    with pytest.raises(WorkerError) as info:
        worker.compute(([PARAMS], sent(KEY), 0))
    assert info.value.reason.endswith("ZeroDivisionError: as told (in parts 0, 1)")
    assert "\n" not in info.value.reason


# JAX warns that it will raise an error of its own for iterators.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("part", [(row for row in PARTS), "train.npz"])
def test_part_that_is_no_tree_of_arrays_is_named(part):
    with pytest.raises(WorkerError) as info:
        make_worker(load=lambda index: [PARTS[0], part]).start()
    assert info.value.reason.startswith("RuntimeError: loading part 0 failed: TypeErro")
    assert "part 0[1] must be numbers, bools or keys; got " in info.value.reason


@pytest.mark.parametrize("error", [OfTwoArguments("as", "told"), SystemExit(3)])
def test_errors_in_the_thread_of_parts_are_reported(error):
    def delay(worker, step):
        raise error

    worker = make_worker(PartWorker, delay=delay, batch=draw)
    worker.prepare([*PARTS])
    worker.start_thread()
    with pytest.raises(WorkerError) as info:
        order = [PARAMS], sent(KEY), 0
        worker.compute(order, 0, np.zeros(2, np.int8), 0, np.zeros(1))
    assert info.value.reason.startswith(f"{type(error).__name__}: ")


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError, ValueError), (OSError, RuntimeError)]
)
def test_failed_start_shows_the_workers_traceback(error, kind):
    arrived = raised(error("as told"))
    engine = StartUp(message_fleet(), 0.0)
    engine.poll(0.0)
    why = f"worker 2 failed to start: {error.__name__}: as told"
    with pytest.raises(kind, match=why) as info:
        engine.handle(Lost(2, arrived.reason, arrived, has_died=False), 1.0)
    assert "in fail\n    raise error\n" in str(info.value.__cause__)
