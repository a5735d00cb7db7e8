"""Functions `batches(step, part)`, which workers import without the tests."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

# Step and part in which a batch is wrong.
WRONG_STEP = 2
WRONG_PART = 1


def loss(params, batch):
    return jnp.sum((batch["x"] @ params) ** 2)


def batches(step, part):
    x = np.random.default_rng([step, part]).normal(size=(8, 5))
    return {"x": x.astype(np.float32)}


def raising(batch):
    raise FileNotFoundError("no 2.npz")


def shorter(batch):
    return {"x": batch["x"][:4]}


def half(batch):
    return {"x": batch["x"].astype(np.float16)}


def changed(batch):
    """Differs in one bit, and in which one by process."""
    words = batch["x"].view(np.uint32)
    words[0, 0] ^= np.uint32(os.getpid())
    return batch


# Changes of the wrong batch, by name.
CHANGES = {
    "raising": raising,
    "shorter": shorter,
    "half": half,
    "changed": changed,
    "nothing": lambda batch: batch,
}


class DirectedBatches:
    """Batches of which one is changed, as the text of a file says.

    Args:
      path: File with the name of a change.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __call__(self, step, part):
        batch = batches(step, part)
        if step == WRONG_STEP and part == WRONG_PART:
            return CHANGES[self.path.read_text()](batch)
        return batch


class RowsOfFile:
    """Rows of a memory map in the order of a permutation, another in each epoch.

    The rows of a step do not depend on how many workers there are.
    """

    def __init__(self, path: pathlib.Path, num_parts: int, rows_per_part: int):
        self.path = path
        self.num_parts = num_parts
        self.rows_per_part = rows_per_part

    def __call__(self, step, part):
        rows = np.load(self.path, mmap_mode="r")
        rows_per_step = self.num_parts * self.rows_per_part
        epoch, step_of_epoch = divmod(step, len(rows) // rows_per_step)
        order = np.random.default_rng(epoch).permutation(len(rows))
        start = step_of_epoch * rows_per_step + part * self.rows_per_part
        return {"x": rows[order[start : start + self.rows_per_part]]}


class Examples:
    """Examples by index, as `grain.MapDataset` has them; batches are made of them."""

    def __init__(self, dataset, num_parts, rows_per_part):
        self.dataset = dataset
        self.num_parts = num_parts
        self.rows_per_part = rows_per_part

    def __call__(self, step, part):
        start = (step * self.num_parts + part) * self.rows_per_part
        examples = [self.dataset[start + row] for row in range(self.rows_per_part)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def missing_file(step, part):
    return np.load(f"missing-{step}.npy")


def fill(buffer, step, part):
    buffer[:] = step + part
    return {"x": buffer}


def rows_by_part(step, part):
    return {"x": np.ones((2 + part, 5), np.float32)}
