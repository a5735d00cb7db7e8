"""Trains a small character-level language model on workers that may be lost.

    pip install ".[ray]" flax tyro             # in a checkout of the repository
    python examples/train.py --folder run      # about 0.6 million parameters

The text is that of Python's own help topics, so nothing is downloaded. Every part of a
step is on `copies` workers: kill a worker while it trains, and no step is lost. A run
that is started again with the same folder goes on where it stopped, also with another
number of workers. `--address host:6379` uses a Ray cluster of several machines.
"""

import dataclasses
import functools
import pydoc_data.topics
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jaxwgc
from jaxwgc.distributed import JsonLines, Progress, RayCluster

# Characters are bytes.
VOCABULARY = 256
# Share of the text for training. The rest is held out.
TRAINING_SHARE = 0.9
NUM_EVALUATED = 64


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps activations (rows, context, width) to activations."""
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        attention = nn.MultiHeadDotProductAttention(self.num_heads)
        x += attention(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(hidden)


class Transformer(nn.Module):
    """Decoder-only transformer: logits of the next character."""

    width: int
    num_layers: int
    num_heads: int
    context: int

    @nn.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        """Maps characters (rows, context) to logits (rows, context, VOCABULARY)."""
        embedding = nn.Embed(VOCABULARY, self.width)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (self.context, self.width)
        )
        x = embedding(characters) + positions
        for _ in range(self.num_layers):
            x = Block(self.num_heads)(x)
        return embedding.attend(nn.LayerNorm()(x))


def mean_loss(model: Transformer, params: Any, rows: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats of rows (rows, context + 1)."""
    rows = rows.astype(jnp.int32)
    logits = model.apply(params, rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    return losses.mean()


@dataclasses.dataclass(frozen=True)
class TextBatches:
    """Random rows of a text in a file, the same on every worker.

    Attributes:
      path: File of characters, uint8, written by `numpy.save`.
      num_rows: Rows of a part in a step.
      length: Characters of a row.
      seed: Seed of the rows.
    """

    path: Path
    num_rows: int
    length: int
    seed: int

    def __call__(self, step: int, part: int) -> np.ndarray:
        """Returns the rows of a part in a step, uint8 (num_rows, length)."""
        text = np.load(self.path, mmap_mode="r")
        random = np.random.default_rng([self.seed, step, part])
        starts = random.integers(0, len(text) - self.length, self.num_rows)
        return text[starts[:, None] + np.arange(self.length)]


def write_text(folder: Path) -> tuple[Path, Path]:
    """Writes the text for training and the held-out text; returns both files."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    characters = np.frombuffer(text, np.uint8)
    end = int(TRAINING_SHARE * len(characters))
    paths = folder / "training.npy", folder / "held_out.npy"
    for path, some in zip(paths, (characters[:end], characters[end:]), strict=True):
        np.save(path, some)
    return paths


def train(
    folder: Path = Path("run"),
    *,
    steps: int = 1000,
    workers: int = 4,
    parts: int = 8,
    copies: int = 2,
    rows: int = 4,
    context: int = 128,
    width: int = 128,
    layers: int = 3,
    heads: int = 4,
    learning_rate: float = 1e-3,
    evaluate_every: int = 50,
    seed: int = 0,
    address: str | None = None,
    live: bool = True,
) -> float:
    """Trains the model, and returns its loss on held-out text, in nats per character.

    Args:
        folder: Folder of the text, the checkpoints and metrics.jsonl.
        steps: Number of steps, with those before a checkpoint.
        workers: Number of workers.
        parts: Number of parts of a step.
        copies: Number of workers that compute each part.
        rows: Rows of a part in a step.
        context: Characters that the model sees.
        width: Width of the model.
        layers: Number of layers.
        heads: Number of heads per layer.
        learning_rate: Largest learning rate.
        evaluate_every: Steps between evaluations on held-out text.
        seed: Seed of parameters and rows.
        address: Address of a running Ray cluster, whose machines share the folder.
        live: Whether to show a table of the workers.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = write_text(folder)
    model = Transformer(width, layers, heads, context)
    params = model.init(jax.random.key(seed), jnp.zeros((1, context), jnp.int32))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{num_params:,} parameters")

    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=max(steps // 20, 1),
        decay_steps=steps,
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1)
    )

    def loss(params, rows):
        # Losses of the parts are summed.
        return mean_loss(model, params, rows) / parts

    of_held_out = TextBatches(held_out, NUM_EVALUATED, context + 1, seed)
    evaluated = jax.jit(functools.partial(mean_loss, model, rows=of_held_out(0, 0)))

    def evaluate(progress: Progress) -> None:
        step = progress.state.step
        if step % evaluate_every == 0 or step == steps:
            value = evaluated(progress.state.params)
            print(f"step {step}: {value:.3f} nats per character of held-out text")

    code = jaxwgc.codes.replicated(workers, num_parts=parts, copies=copies)
    batches = TextBatches(training, rows, context + 1, seed)
    with RayCluster(loss, code, batches=batches, address=address) as cluster:
        state = cluster.train(
            optimizer,
            params,
            steps,
            callbacks=[JsonLines(folder / "metrics.jsonl"), evaluate],
            checkpoint=folder / "checkpoints",
            live=live,
        )
    return float(evaluated(state.params))


if __name__ == "__main__":
    tyro.cli(train)
