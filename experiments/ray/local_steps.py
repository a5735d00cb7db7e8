"""Training a language model by local steps (DiLoCo) while workers are lost."""

import functools
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jaxwgc
from examples.diloco import (
    EPSILON,
    OUTER,
    RoundBatches,
    inner_optimizer,
    train_in_one_process,
)
from examples.train import mean_loss
from experiments.ray import language_model
from experiments.ray.language_model import (
    FaultInjector,
    Recorder,
    Text,
    Way,
    distance,
    planned_faults,
    ray_for_all,
)
from experiments.runner import figures
from experiments.runner.results import check_positive
from experiments.runner.study import Numbers, Once, Sections, Study, command
from experiments.runner.tables import table_of
from jaxwgc.distributed import Faults, Progress, RayCluster, Timeouts

NUM_WORKERS = 4
# Replicas of DiLoCo.
NUM_PARTS = 4
LOCAL_STEPS = (1, 10, 50)
# Seconds that a worker sleeps for each local step of a part.
SECONDS_PER_STEP = 0.02
# Local steps between checkpoints, if training restarts.
CHECKPOINT_EVERY = 20
# Local steps between evaluations.
EVALUATE_EVERY = 10
# Rounds of ten local steps that are compared with one process.
NUM_EXACT_ROUNDS = 60
NUM_EXACT_FAULTS = 10
# Epsilons of AdamW: that of all sections, and the default.
EPSILONS = (EPSILON, 1e-8)
NUM_SEEDS = 3
# Environment of programs that compute the same change.
PROGRAMS = {
    "the same program": "",
    "one thread instead of two": "--xla_cpu_multi_thread_eigen=false",
    "AVX2, as on processors since 2013": "--xla_cpu_max_isa=AVX2",
    "AVX, without fused multiply-add": "--xla_cpu_max_isa=AVX",
}


class LocalWay(NamedTuple):
    """A way to train, and its local steps per round; None for gradients."""

    way: Way
    num_local: int | None


def num_steps_named(num_steps: int) -> str:
    """Returns "1 step" or "10 steps"."""
    return "1 step" if num_steps == 1 else f"{num_steps} steps"


def codes() -> dict[str, jaxwgc.GradientCode]:
    """Returns codes that recover the mean of the changes of all parts."""
    by_name = {
        "requests": jaxwgc.codes.replicated(NUM_WORKERS, NUM_PARTS, copies=2),
        "messages": jaxwgc.codes.fractional_repetition(NUM_WORKERS, 1),
        "uncoded": jaxwgc.codes.uncoded(NUM_WORKERS, NUM_PARTS),
    }
    mean = np.full(NUM_PARTS, 1 / NUM_PARTS)
    return {name: jaxwgc.weighted(code, mean) for name, code in by_name.items()}


def ways() -> dict[str, LocalWay]:
    """Returns the ways to train by name."""
    code = codes()
    result = {
        "every step, on request": LocalWay(Way(code["requests"]), None),
        "10 steps, no faults": LocalWay(Way(code["uncoded"], has_faults=False), 10),
    }
    for num_local in LOCAL_STEPS:
        name = f"{num_steps_named(num_local)}, on request"
        result[name] = LocalWay(Way(code["requests"]), num_local)
    others = {
        "one message per worker": Way(code["messages"]),
        "restart from checkpoint": Way(code["uncoded"], restarts=True),
        "ignoring lost workers": Way(
            code["uncoded"], undecodable="least_squares", debias="share"
        ),
    }
    for name, way in others.items():
        result[f"10 steps, {name}"] = LocalWay(way, 10)
    return result


@command("local-steps", "Local steps of a language model among failures", count="steps")
def local_steps(steps: int = 300, fault_every: int = 100, seed: int = 0) -> Sections:
    """Trains a language model by local steps while workers are killed and frozen.

    Compares local steps with copies of parts, restarts and updates without the lost
    workers; the same training in one process; moments that are kept; and programs of
    unequal processors.

    Args:
        steps: Local steps of each part in all, a multiple of 50.
        fault_every: Local steps from one fault to the next.
    """
    check_positive(fault_every=fault_every)
    return {
        "ways": lambda: Study(
            {"steps": steps, "rows": Once(measure, steps, fault_every, seed)},
            tables={"": tabulate_ways},
            figures={"": draw},
        ),
        "exact": lambda: Study(
            {"rows": Once(compare_with_one_process, seed)}, tables={"": tabulate_exact}
        ),
        "moments": lambda: Study(
            {"steps": steps, "rows": Once(keep_moments, steps, seed)},
            tables={"": tabulate_moments},
        ),
        "programs": lambda: Study(
            {"rows": Once(compare_programs, seed)}, tables={"": tabulate_programs}
        ),
    }


class Traffic(Recorder):
    """Recorder that also counts bytes.

    Attributes:
        num_bytes: Bytes of params to all workers and of their messages, of each round.
    """

    def __init__(self, evaluate_every: int):
        super().__init__(evaluate_every)
        self.num_bytes: list[int] = []

    def __call__(self, progress: Progress) -> None:
        """Records a round."""
        super().__call__(progress)
        round = progress.round
        params = NUM_WORKERS * optax.tree.size(progress.state.params) * 4
        messages = int(round.received.sum()) * round.messages[0].nbytes
        self.num_bytes.append(params + messages)


def contribution_of(
    text: Text, num_local: int, epsilon: float = EPSILON
) -> Callable[..., Any]:
    """Returns the change of params by local steps, with their losses."""
    model = text.model

    # Sent to the workers by value, so that they do not import the experiments.
    def loss(params, rows):
        return mean_loss(model, params, rows)

    inner = inner_optimizer(language_model.LEARNING_RATE, epsilon)
    return jaxwgc.local_steps(loss, inner, num_local, returns_losses=True)


def cluster_of(way: LocalWay, text: Text) -> RayCluster:
    """Returns a cluster that trains in a way."""
    code = way.way.code
    num_held = 1
    if code.messages_per_worker == 1:
        num_held = int(np.asarray(code.assignment)[0].sum())
    seconds = SECONDS_PER_STEP * num_held * (way.num_local or 1)
    options: dict[str, Any] = {
        "undecodable": way.way.undecodable,
        "timeouts": way.way.timeouts,
        "spare": not way.way.restarts,
        "faults": Faults(delay=lambda worker, step: seconds),
    }
    if way.num_local is None:
        model = text.model

        def loss(params, rows):
            return mean_loss(model, params, rows)

        return RayCluster(loss, code, batches=text.training, **options)
    return RayCluster(
        code=code,
        contribution=contribution_of(text, way.num_local),
        batches=RoundBatches(text.training, way.num_local),
        has_aux=True,
        **options,
    )


def measure(steps: int, fault_every: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the record of each way."""
    with tempfile.TemporaryDirectory() as folder, ray_for_all():
        text = Text.write(Path(folder), seed)
        held_out = jnp.asarray(text.held_out(0, 0))
        evaluate = jax.jit(functools.partial(mean_loss, text.model, rows=held_out))
        for name, way in ways().items():
            num_local = way.num_local or 1
            planned = {}
            if way.way.has_faults:
                planned = planned_faults(steps, fault_every, seed)
            # The fault comes in the round of its local step.
            by_round = {step // num_local: fault for step, fault in planned.items()}
            record = Traffic(max(EVALUATE_EVERY // num_local, 1))
            faults = FaultInjector(by_round)
            with tempfile.TemporaryDirectory() as checkpoints, faults:
                params, num_restarts = language_model.train(
                    functools.partial(cluster_of, way, text),
                    language_model.optimizer() if way.num_local is None else OUTER,
                    text.params,
                    steps // num_local,
                    way=way.way,
                    folder=Path(checkpoints),
                    checkpoint_every=max(CHECKPOINT_EVERY // num_local, 1),
                    faults=faults,
                    record=record,
                )
            shown = np.array([step for step, _, _ in record.params])
            num_bytes = np.cumsum(record.num_bytes)
            places = [record.steps.index(step) for step in shown.tolist()]
            yield {
                "way": name,
                "seconds": record.seconds[-1],
                "kilobytes": num_bytes[-1] / steps / 1000,
                "restarts": num_restarts,
                "num_faults": len(faults.steps),
                "incomplete": record.is_complete.count(False),
                "loss": float(evaluate(params)),
                "times": [seconds for _, seconds, _ in record.params],
                "megabytes": (num_bytes[places] / 1e6).tolist(),
                "losses": [float(evaluate(params)) for *_, params in record.params],
            }


def compare_with_one_process(seed: int) -> Iterator[dict[str, Any]]:
    """Yields distances of params from those of one process, in two precisions.

    In one way, the same process adds the changes in another order: what rounding makes
    of the training itself.
    """
    with tempfile.TemporaryDirectory() as folder, ray_for_all():
        text = Text.write(Path(folder), seed)
        batches = RoundBatches(text.training, num_steps=10)
        for epsilon, x64 in itertools.product(EPSILONS, (False, True)):
            with jax.enable_x64(x64):
                dtype = jnp.float64 if x64 else jnp.float32
                params = optax.tree.cast(text.params, dtype)
                contribution = contribution_of(text, 10, epsilon)
                in_order = functools.partial(
                    train_in_one_process,
                    contribution,
                    batches,
                    params,
                    NUM_EXACT_ROUNDS,
                )
                expected = in_order(range(NUM_PARTS))
                backwards = in_order(range(NUM_PARTS)[::-1])
                setting = {"epsilon": epsilon, "x64": x64}
                yield setting | {
                    "way": "one process, other order of the sum",
                    "faults": 0,
                    "distance": distance(backwards, expected),
                }
                for name, code in exact_codes().items():
                    planned = planned_faults(
                        NUM_EXACT_ROUNDS, NUM_EXACT_ROUNDS // NUM_EXACT_FAULTS, seed
                    )
                    with FaultInjector(planned) as faults:
                        found = train_among_faults(
                            code, contribution, batches, params, faults
                        )
                    yield setting | {
                        "way": name,
                        "faults": len(faults.steps),
                        "distance": distance(found, expected),
                    }


def exact_codes() -> dict[str, jaxwgc.GradientCode]:
    """Returns codes that tolerate a straggler, by their names in the table."""
    code = codes()
    return {
        "one message per worker": code["messages"],
        "on request": code["requests"],
    }


def train_among_faults(
    code: jaxwgc.GradientCode,
    contribution: Callable[..., Any],
    batches: RoundBatches,
    params: Any,
    faults: FaultInjector,
) -> Any:
    """Returns params after rounds on workers; a change that is missing is an error."""
    with RayCluster(
        code=code,
        contribution=contribution,
        batches=batches,
        has_aux=True,
        undecodable="raise",
        timeouts=Timeouts(
            response=language_model.RESPONSE_SECONDS,
            replacement=language_model.REPLACEMENT_SECONDS,
        ),
    ) as cluster:
        inject = functools.partial(faults.inject, cluster)
        state = cluster.train(OUTER, params, NUM_EXACT_ROUNDS, callbacks=[inject])
    return state.params


def keep_moments(steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yields held-out losses with moments that start anew, and that are kept."""
    for num_local in LOCAL_STEPS[1:]:
        losses: dict[str, list[float]] = {"anew": [], "kept": []}
        for place in range(NUM_SEEDS):
            with tempfile.TemporaryDirectory() as folder:
                text = Text.write(Path(folder), seed + place)
                held_out = jnp.asarray(text.held_out(0, 0))
                for kind, of_kind in losses.items():
                    params = train_replicas(text, steps, num_local, kind == "kept")
                    of_kind.append(float(mean_loss(text.model, params, held_out)))
        yield {"num_local": num_local} | losses


def train_replicas(text: Text, steps: int, num_local: int, keeps: bool) -> Any:
    """Returns params of DiLoCo in one process.

    Args:
        text: Model and text.
        steps: Local steps in all.
        num_local: Local steps per round.
        keeps: Whether each replica keeps the state of its inner optimizer.
    """
    inner = inner_optimizer(language_model.LEARNING_RATE)

    def replica(params, state, rows_of_steps):
        def take_step(params_and_state, rows):
            params, state = params_and_state
            gradient = jax.grad(functools.partial(mean_loss, text.model))(params, rows)
            updates, state = inner.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (params, state if keeps else inner.init(params))
        (after, state), _ = jax.lax.scan(take_step, start, rows_of_steps)
        return jax.tree.map(jnp.subtract, params, after), state

    @jax.jit
    def run_round(params, outer_state, states, rows):
        changes, states = jax.vmap(replica, (None, 0, 0))(params, states, rows)
        mean = jax.tree.map(lambda leaf: leaf.mean(0), changes)
        updates, outer_state = OUTER.update(mean, outer_state, params)
        return optax.apply_updates(params, updates), outer_state, states

    batches = RoundBatches(text.training, num_local)
    params = text.params
    outer_state = OUTER.init(params)
    states = jax.tree.map(
        lambda leaf: jnp.stack(NUM_PARTS * [leaf]), inner.init(params)
    )
    for number in range(steps // num_local):
        rows = np.stack([batches(number, part) for part in range(NUM_PARTS)])
        params, outer_state, states = run_round(params, outer_state, states, rows)
    return params


def compare_programs(seed: int) -> Iterator[dict[str, Any]]:
    """Yields relative differences of the change of one part between programs."""
    with tempfile.TemporaryDirectory() as folder:
        reference = changes_of_program("", Path(folder), seed)
        for name, flags in PROGRAMS.items():
            changes = changes_of_program(flags, Path(folder), seed)
            yield {"program": name} | {
                f"after_{num_local}": float(
                    np.linalg.norm(changes[num_local] - expected)
                    / np.linalg.norm(expected)
                )
                for num_local, expected in reference.items()
            }


def changes_of_program(flags: str, folder: Path, seed: int) -> dict[int, np.ndarray]:
    """Returns the changes that a process with flags of XLA computes, by local steps."""
    path = folder / "changes.npz"
    code = f"from {__name__} import write_changes; write_changes({str(path)!r}, {seed})"
    environment = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with np.load(path) as arrays:
        return {num_local: arrays[str(num_local)] for num_local in LOCAL_STEPS}


def write_changes(path: str, seed: int) -> None:
    """Writes the changes of part 0 in the first round, in float64, to a file."""
    with tempfile.TemporaryDirectory() as folder:
        text = Text.write(Path(folder), seed)
        changes = {}
        for num_local in LOCAL_STEPS:
            rows = RoundBatches(text.training, num_local)(0, 0)
            change, _ = jax.jit(contribution_of(text, num_local))(text.params, rows)
            changes[str(num_local)] = np.asarray(ravel_pytree(change)[0], np.float64)
    np.savez(path, **changes)


def tabulate_ways(numbers: Numbers):
    """Returns a row per way."""
    steps = numbers["steps"]
    title = f"{steps} local steps of each of {NUM_PARTS} parts on {NUM_WORKERS} workers"
    columns = {
        "way": "{way}",
        "faults": "{num_faults}",
        "seconds": "{seconds:.0f}",
        "ms per local step": lambda own: f"{1000 * own['seconds'] / steps:.0f}",
        "kB per local step": "{kilobytes:,.0f}",
        "restarts": "{restarts}",
        "rounds with changes missing": "{incomplete}",
        "held-out loss": "{loss:.3f}",
    }
    return table_of(title, columns, "rows")(numbers)


def tabulate_exact(numbers: Numbers):
    """Returns a row per way, epsilon and precision."""
    title = (
        f"{NUM_EXACT_ROUNDS} rounds of ten local steps of AdamW: relative distance of "
        "the parameters from those of one process"
    )
    columns = {
        "way": "{way}",
        "epsilon of AdamW": "{epsilon:.0e}",
        "precision": lambda own: "float64" if own["x64"] else "float32",
        "kills and freezes": "{faults}",
        "distance": "{distance:.1e}",
    }
    return table_of(title, columns, "rows")(numbers)


def tabulate_moments(numbers: Numbers):
    """Returns a row per number of local steps."""
    title = (
        f"Held-out loss after {numbers['steps']} local steps, by the moments of the "
        f"inner optimizer: mean and range of {NUM_SEEDS} seeds"
    )

    def shown(kind, own):
        losses = np.array(own[kind])
        return f"{losses.mean():.3f} ({losses.min():.3f} to {losses.max():.3f})"

    columns = {
        "local steps per round": "{num_local}",
        "start anew": functools.partial(shown, "anew"),
        "kept": functools.partial(shown, "kept"),
    }
    return table_of(title, columns, "rows")(numbers)


def tabulate_programs(numbers: Numbers):
    """Returns a row per pair of programs."""
    columns = {"compared with": "{program}"}
    for num_local in LOCAL_STEPS:
        columns[f"after {num_steps_named(num_local)}"] = f"{{after_{num_local}:.1e}}"
    title = "Relative difference of the change of one part between two processes"
    return table_of(title, columns, "rows")(numbers)


def draw(numbers: Numbers) -> figures.Figure:
    """Draws held-out loss against seconds, and against bytes."""
    figure, axes = figures.new_figure(7.2, 3.8, 2, sharex=False)
    number = len(numbers["rows"])
    for index, own in enumerate(numbers["rows"]):
        for axis, values in zip(axes, (own["times"], own["megabytes"]), strict=True):
            figures.line(
                axis,
                index,
                values,
                own["losses"],
                label=own["way"],
                num_lines=number,
                markevery=[],
            )
    axes[0].set(xlabel="seconds", ylabel="loss of held-out text, nats per character")
    axes[1].set(xlabel="MB sent", xscale="log")
    axes[0].legend(fontsize="x-small")
    return figure
