"""Trains a small language model by local steps (DiLoCo) on workers that may be lost.

    pip install ".[ray]" flax tyro             # in a checkout of the repository
    python -m examples.diloco --folder run     # about 0.6 million parameters

In each round, every part takes `local_steps` steps of AdamW, and sends the change of
the parameters once. Each part is on `copies` workers. `--faults 10` kills and freezes
ten of them on the way: the result is that of a run in which nothing fails. `--compare`
trains the same model in one process, too, and prints how far apart both results are.
"""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxwgc
from examples.train import (
    NUM_EVALUATED,
    TextBatches,
    Transformer,
    mean_loss,
    write_text,
)
from jaxwgc.distributed import JsonLines, Progress, RayCluster, Timeouts

# Epsilon of AdamW. The first local step starts without moments, and is nearly the sign
# of the gradient: with the default of 1e-8 also of entries that are rounding errors.
EPSILON = 1e-4
# Outer optimizer of DiLoCo.
OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)
# Seconds until a silent worker counts as lost.
RESPONSE_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class RoundBatches:
    """Batches of all local steps of a part in a round.

    Attributes:
      of_step: `of_step(step, part)`, the batch of a local step.
      num_steps: Local steps per round.
    """

    of_step: TextBatches
    num_steps: int

    def __call__(self, number: int, part: int) -> np.ndarray:
        """Returns the batches of a round, uint8 (num_steps, num_rows, length)."""
        first = number * self.num_steps
        steps = range(first, first + self.num_steps)
        return np.stack([self.of_step(step, part) for step in steps])


def inner_optimizer(
    learning_rate: float, epsilon: float = EPSILON
) -> optax.GradientTransformation:
    """Returns the optimizer of local steps."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate, eps=epsilon, weight_decay=0.1),
    )


def train_in_one_process(
    contribution: Callable[..., Any],
    batches: RoundBatches,
    params: Any,
    rounds: int,
    parts: Sequence[int],
) -> Any:
    """Returns the params that `RayCluster.train` returns, up to rounding.

    Args:
        contribution: Changes and losses of a part.
        batches: Batches of the rounds.
        params: First params.
        rounds: Number of rounds.
        parts: Parts in the order in which their changes are added.
    """
    change_of = jax.jit(contribution)

    @jax.jit
    def update(params, state, changes):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *changes)
        updates, state = OUTER.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    state = OUTER.init(params)
    for number in range(rounds):
        results = [change_of(params, batches(number, part)) for part in parts]
        params, state = update(params, state, [change for change, _ in results])
    return params


def train(
    folder: Path = Path("run"),
    *,
    rounds: int = 60,
    local_steps: int = 10,
    workers: int = 4,
    parts: int = 4,
    copies: int = 2,
    rows: int = 4,
    context: int = 128,
    width: int = 128,
    layers: int = 3,
    heads: int = 4,
    learning_rate: float = 1e-3,
    faults: int = 0,
    compare: bool = False,
    seed: int = 0,
    address: str | None = None,
) -> float:
    """Trains the model, and returns its loss on held-out text, in nats per character.

    Args:
        folder: Folder of the text, the checkpoints and metrics.jsonl.
        rounds: Number of rounds, with those before a checkpoint.
        local_steps: Local steps per round.
        workers: Number of workers.
        parts: Number of parts; the replicas of DiLoCo.
        copies: Number of workers that compute each part.
        rows: Rows of a part in a local step.
        context: Characters that the model sees.
        width: Width of the model.
        layers: Number of layers.
        heads: Number of heads per layer.
        learning_rate: Learning rate of the local steps.
        faults: Number of workers to kill and to freeze, in turn, at equal distances.
        compare: Whether to train in one process, too, and to compare the parameters.
        seed: Seed of parameters and rows.
        address: Address of a running Ray cluster, whose machines share the folder.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = write_text(folder)
    model = Transformer(width, layers, heads, context)
    params = model.init(jax.random.key(seed), jnp.zeros((1, context), jnp.int32))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{num_params:,} parameters")

    def loss(params, rows):
        return mean_loss(model, params, rows)

    contribution = jaxwgc.local_steps(
        loss, inner_optimizer(learning_rate), local_steps, returns_losses=True
    )
    code = jaxwgc.codes.replicated(workers, num_parts=parts, copies=copies)
    # The mean of the changes, instead of their sum.
    code = jaxwgc.weighted(code, np.full(parts, 1 / parts))
    batches = RoundBatches(TextBatches(training, rows, context + 1, seed), local_steps)
    of_held_out = TextBatches(held_out, NUM_EVALUATED, context + 1, seed)
    evaluated = jax.jit(functools.partial(mean_loss, model, rows=of_held_out(0, 0)))
    fault_every = max(rounds // max(faults, 1), 1)
    hit: list[int] = []

    def fail(progress: Progress) -> None:
        pids = [slot.pid for slot in cluster.workers]
        is_due = progress.state.step % fault_every == fault_every // 2
        if is_due and len(hit) < faults:
            worker = len(hit) % workers
            number = signal.SIGSTOP if len(hit) % 2 else signal.SIGKILL
            hit.append(worker)
            if (pid := pids[worker]) is not None:
                print(f"{number.name} to worker {worker}")
                os.kill(pid, number)

    def show(progress: Progress) -> None:
        print(
            f"round {progress.state.step}: mean loss of the local steps "
            f"{progress.round.aux.mean():.3f}, of held-out text "
            f"{evaluated(progress.state.params):.3f} nats per character"
        )

    with RayCluster(
        code=code,
        contribution=contribution,
        batches=batches,
        has_aux=True,
        timeouts=Timeouts(response=RESPONSE_SECONDS if faults else None),
        address=address,
    ) as cluster:
        if (folder / "checkpoints").exists():
            print(f"continues the run in {folder}; choose another --folder for another")
        state = cluster.train(
            OUTER,
            params,
            rounds,
            callbacks=[JsonLines(folder / "metrics.jsonl"), show, fail],
            checkpoint=folder / "checkpoints",
        )
    if compare:
        expected = train_in_one_process(
            contribution, batches, params, rounds, range(parts)
        )
        difference = optax.tree.norm(optax.tree.sub(state.params, expected))
        relative = float(difference / optax.tree.norm(expected))
        print(f"relative distance from one process: {relative:.1e}")
    return float(evaluated(state.params))


if __name__ == "__main__":
    tyro.cli(train)
