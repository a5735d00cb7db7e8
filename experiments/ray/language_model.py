"""Training a language model while workers are lost, in the usual ways and coded."""

import contextlib
import dataclasses
import functools
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxwgc
from examples.train import TextBatches, Transformer, mean_loss, write_text
from experiments.ray.chaos import send, working
from experiments.runner import figures
from experiments.runner.results import check_positive
from experiments.runner.study import Numbers, Once, Study, command
from experiments.runner.tables import table_of
from jaxwgc.distributed import Progress, RayCluster, Timeouts

NUM_WORKERS = 4
NUM_PARTS = 8
COPIES = 2
# Model of 0.12 million parameters: a step computes for 0.1 seconds on two cores.
CONTEXT = 64
WIDTH = 64
NUM_LAYERS = 2
NUM_HEADS = 4
ROWS_PER_PART = 4
LEARNING_RATE = 3e-3
# Seconds that a worker sleeps for each part. With computation alone, four workers on
# two cores would lose nothing if one of them is lost.
SECONDS_PER_PART = 0.1
# Seconds until a silent worker counts as lost. Collectives of accelerators often wait
# for minutes.
RESPONSE_SECONDS = 3.0
# Seconds for which a step waits for the replacement of a worker that it needs.
REPLACEMENT_SECONDS = 60.0
# Such a time where a step does not wait for a replacement, as short as possible.
NO_REPLACEMENT_SECONDS = 1e-3
CHECKPOINT_EVERY = 20
EVALUATE_EVERY = 5
# Rows of held-out text.
NUM_EVALUATED = 64


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to train among failures.

    Attributes:
        code: Gradient code.
        has_faults: Whether workers are killed and frozen.
        undecodable: Result of a round without some gradients: see `RayCluster`.
        debias: See `RayCluster.train`.
        restarts: Whether all processes start again, from the last checkpoint, if a
            worker is lost.
    """

    code: jaxwgc.GradientCode
    has_faults: bool = True
    undecodable: str = "raise"
    debias: str | None = None
    restarts: bool = False

    @property
    def timeouts(self) -> Timeouts:
        """Returns timeouts; only exact rounds of one job wait for a replacement."""
        waits = self.debias is None and not self.restarts
        seconds = REPLACEMENT_SECONDS if waits else NO_REPLACEMENT_SECONDS
        return Timeouts(response=RESPONSE_SECONDS, replacement=seconds)


NO_FAULTS = "no faults"


def ways() -> dict[str, Way]:
    """Returns the ways to train by name, first the one without faults."""
    uncoded = jaxwgc.codes.uncoded(NUM_WORKERS, NUM_PARTS)
    coded = jaxwgc.codes.replicated(NUM_WORKERS, NUM_PARTS, COPIES)
    return {
        NO_FAULTS: Way(uncoded, has_faults=False),
        "on request, 2 copies": Way(coded),
        "restart from checkpoint": Way(uncoded, restarts=True),
        "ignoring lost workers": Way(
            uncoded, undecodable="least_squares", debias="share"
        ),
    }


@command("language-model", "Steps of a language model among failures", count="steps")
def language_model(steps: int = 120, fault_every: int = 20, seed: int = 0) -> Study:
    """Trains a language model while workers are killed and frozen: loss by time.

    Compares sums on request, a restart from the last checkpoint, and updates
    without the lost workers with a run without faults.

    Args:
        steps: Training steps, on 4 processes of this machine.
        fault_every: Steps from one fault to the next: SIGKILL and SIGSTOP in turn.
    """
    check_positive(fault_every=fault_every)
    return Study(
        {
            "num_steps": steps,
            "fault_every": fault_every,
            "ways": Once(measure, steps, fault_every, seed),
        },
        derive=summarize,
        tables={"": tabulate},
        figures={"": draw},
    )


class Text(NamedTuple):
    """Model, first parameters, and batches of the text for training and evaluation."""

    model: Transformer
    params: Any
    training: TextBatches
    held_out: TextBatches

    @classmethod
    def write(cls, folder: Path, seed: int) -> "Text":
        """Writes the text into a folder, and returns it with the model."""
        training, held_out = write_text(folder)
        model = Transformer(WIDTH, NUM_LAYERS, NUM_HEADS, CONTEXT)
        characters = jnp.zeros((1, CONTEXT), jnp.int32)
        return cls(
            model=model,
            params=model.init(jax.random.key(seed), characters),
            training=TextBatches(training, ROWS_PER_PART, CONTEXT + 1, seed),
            held_out=TextBatches(held_out, NUM_EVALUATED, CONTEXT + 1, seed),
        )


class Fault(NamedTuple):
    """A signal to a worker, that many seconds after the start of a step."""

    worker: int
    number: int
    seconds: float


def planned_faults(steps: int, fault_every: int, seed: int) -> dict[int, Fault]:
    """Returns faults by step: SIGKILL and SIGSTOP in turn, halfway between others."""
    random = np.random.default_rng(seed)
    faults = {}
    for step in range((fault_every + 1) // 2, steps, fault_every):
        faults[step] = Fault(
            worker=int(random.integers(NUM_WORKERS)),
            number=signal.SIGSTOP if len(faults) % 2 else signal.SIGKILL,
            seconds=random.uniform(0, SECONDS_PER_PART),
        )
    return faults


class FaultInjector:
    """Sends the planned signals, each once, also if its step is repeated.

    At the end of a `with` block, frozen processes that still exist continue.

    Attributes:
        steps: Steps with faults so far.
    """

    def __init__(self, planned: dict[int, Fault]):
        self._planned = dict(planned)
        self._hit: set[int] = set()
        self._timers: list[threading.Timer] = []
        self.steps: list[int] = []

    def __enter__(self) -> "FaultInjector":
        return self

    def __exit__(self, *error: Any) -> None:
        for timer in self._timers:
            timer.join()
        for pid in self._hit:
            send(pid, signal.SIGCONT)

    def inject(self, cluster: RayCluster, progress: Progress) -> None:
        """Sends the signal of the next step, if there is one; a callback of `train`."""
        step = progress.state.step
        if step not in self._planned:
            return
        fault = self._planned.pop(step)
        self.steps.append(step)
        pids = working(cluster, self._hit)
        # If the worker is away, the signal is for the next worker.
        worker = min(pids, key=lambda index: (index - fault.worker) % NUM_WORKERS)
        self._hit.add(pids[worker])
        timer = threading.Timer(fault.seconds, send, (pids[worker], fault.number))
        timer.start()
        self._timers.append(timer)


class Recorder:
    """Callback of training that keeps times, and parameters for later evaluation.

    Attributes:
        steps: Finished steps, also repeated ones.
        seconds: Times of their ends, from the end of the first step.
        is_complete: Whether all parts contributed to them.
        params: Parameters after every `evaluate_every` steps, and times, as triples
            with the step.
    """

    def __init__(self, evaluate_every: int):
        self._evaluate_every = evaluate_every
        self.steps: list[int] = []
        self.seconds: list[float] = []
        self.is_complete: list[bool] = []
        self.params: list[tuple[int, float, Any]] = []
        self._start = 0.0

    def __call__(self, progress: Progress) -> None:
        """Records a step."""
        now = time.monotonic()
        if not self.steps:
            self._start = now
        step = progress.state.step
        self.steps.append(step)
        self.seconds.append(now - self._start)
        self.is_complete.append(bool(progress.round.known.all()))
        if step % self._evaluate_every == 0:
            self.params.append((step, self.seconds[-1], progress.state.params))


def measure(steps: int, fault_every: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the record of each way."""
    planned = planned_faults(steps, fault_every, seed)
    with tempfile.TemporaryDirectory() as folder, ray_for_all():
        text = Text.write(Path(folder), seed)
        held_out = jnp.asarray(text.held_out(0, 0))
        evaluate = jax.jit(functools.partial(mean_loss, text.model, rows=held_out))
        reference = None
        for name, way in ways().items():
            faults = FaultInjector(planned if way.has_faults else {})
            record = Recorder(EVALUATE_EVERY)
            with tempfile.TemporaryDirectory() as checkpoints, faults:
                params, num_restarts = train(
                    functools.partial(cluster_of, way, text),
                    optimizer(),
                    text.params,
                    steps,
                    way=way,
                    folder=Path(checkpoints),
                    checkpoint_every=CHECKPOINT_EVERY,
                    faults=faults,
                    record=record,
                )
            if reference is None:
                reference = params
            yield {
                "way": name,
                "num_params": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "seconds": record.seconds[-1],
                "restarts": num_restarts,
                "repeated": len(record.steps) - steps,
                "incomplete": record.is_complete.count(False),
                "loss": float(evaluate(params)),
                "distance": distance(params, reference),
                "fault_steps": faults.steps,
                "steps": [step for step, _, _ in record.params],
                "times": [seconds for _, seconds, _ in record.params],
                "losses": [float(evaluate(params)) for *_, params in record.params],
            }


@contextlib.contextmanager
def ray_for_all() -> Iterator[None]:
    """Keeps one Ray for all ways, so that a restart does not have to start it."""

    def loss(params, part):
        return params[0] * part[0]

    code = jaxwgc.codes.uncoded(1)
    with RayCluster(loss, code, np.ones((1, 1), np.float32), spare=False) as cluster:
        cluster.compute(jnp.zeros(1))
        yield


def optimizer() -> optax.GradientTransformation:
    """Returns the optimizer of the language model."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.1)
    )


def cluster_of(way: Way, text: Text) -> RayCluster:
    """Returns a cluster that trains in a way."""
    model = text.model

    # Sent to the workers by value, so that they do not import the experiments.
    def loss(params, rows):
        # Losses of the parts are summed.
        return mean_loss(model, params, rows) / NUM_PARTS

    return RayCluster(
        loss,
        way.code,
        batches=text.training,
        undecodable=way.undecodable,
        timeouts=way.timeouts,
        # A restart starts all processes again.
        spare=not way.restarts,
        faults=jaxwgc.distributed.Faults(delay=delay_of(way.code)),
    )


def train(
    make_cluster: Callable[[], RayCluster],
    optimizer: optax.GradientTransformation,
    params: Any,
    steps: int,
    *,
    way: Way,
    folder: Path,
    checkpoint_every: int,
    faults: FaultInjector,
    record: Recorder,
) -> tuple[Any, int]:
    """Returns the parameters after the last step, and how often training restarted."""
    num_restarts = 0
    num_known_faults = 0
    while True:
        try:
            with make_cluster() as cluster:
                state = cluster.train(
                    optimizer,
                    params,
                    steps,
                    callbacks=[record, functools.partial(faults.inject, cluster)],
                    checkpoint=folder if way.restarts else None,
                    checkpoint_every=checkpoint_every,
                    debias=way.debias,
                )
            return state.params, num_restarts
        except RuntimeError:
            # Without a fault since the last restart, the error has another cause.
            if not way.restarts or num_known_faults == len(faults.steps):
                raise
            num_known_faults = len(faults.steps)
            num_restarts += 1
            remove_checkpoint_of_failure(folder, checkpoint_every)


def delay_of(code: jaxwgc.GradientCode):
    """Returns `Faults.delay`: seconds for a part on request, else for all parts."""
    num_parts = 1 if code.messages_per_worker > 1 else NUM_PARTS // NUM_WORKERS
    seconds = num_parts * SECONDS_PER_PART
    return lambda worker, step: seconds


def remove_checkpoint_of_failure(folder: Path, checkpoint_every: int) -> None:
    """Removes the checkpoint of the step that failed.

    `RayCluster.train` writes it, because its coordinator survives. A job that ends with
    one of its workers has only the regular checkpoints.
    """
    for path in folder.iterdir():
        if path.name.isdigit() and int(path.name) % checkpoint_every:
            shutil.rmtree(path)


def distance(params: Any, reference: Any) -> float:
    """Returns the norm of the difference over that of the reference."""
    difference = jax.tree.map(jnp.subtract, params, reference)
    off, _ = ravel_pytree(difference)
    whole, _ = ravel_pytree(reference)
    return float(jnp.linalg.norm(off) / jnp.linalg.norm(whole))


def summarize(numbers: Numbers) -> dict[str, Any]:
    """Returns the seconds that each way takes longer than the run without faults."""
    without_faults = numbers["ways"][0]["seconds"]
    lost = {own["way"]: own["seconds"] - without_faults for own in numbers["ways"]}
    return {"seconds_lost": lost}


def tabulate(numbers: Numbers):
    """Returns a row per way."""
    [num_params] = {own["num_params"] for own in numbers["ways"]}
    title = (
        f"{numbers['num_steps']} steps of a language model, {num_params:,} parameters, "
        f"{NUM_WORKERS} workers, one killed or frozen every "
        f"{numbers['fault_every']} steps"
    )
    columns = {
        "way": "{way}",
        "seconds": "{seconds:.0f}",
        "seconds lost": lambda own: f"{numbers['seconds_lost'][own['way']]:.0f}",
        "restarts": "{restarts}",
        "steps repeated": "{repeated}",
        "steps with gradients missing": "{incomplete}",
        "held-out loss": "{loss:.4f}",
        "distance of the parameters": "{distance:.1g}",
    }
    return table_of(title, columns, "ways")(numbers)


def draw(numbers: Numbers) -> figures.Figure:
    """Draws held-out loss against seconds: markers at faults, gaps at restarts."""
    figure, [axes] = figures.new_figure(7.2, 3.8)
    number = len(numbers["ways"])
    for index, own in enumerate(numbers["ways"]):
        steps = np.asarray(own["steps"])
        restarts = np.flatnonzero(np.diff(steps) <= 0) + 1
        figures.line(
            axes,
            index,
            np.insert(own["times"], restarts, np.nan),
            np.insert(own["losses"], restarts, np.nan),
            label=own["way"],
            num_lines=number,
            markevery=[],
        )
        hit = []
        for step in own["fault_steps"]:
            # The first loss after the fault; none, if training ended before.
            hit += np.flatnonzero(steps >= step)[:1].tolist()
        axes.plot(
            np.asarray(own["times"])[hit],
            np.asarray(own["losses"])[hit],
            **figures.style(index) | {"linestyle": ""},
        )
    axes.set(xlabel="seconds", ylabel="loss of held-out text, nats per character")
    axes.legend()
    return figure
