"""Times of workers: traces of the repository, of a file, and simulated traces."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from experiments.runner.results import ExperimentError, Record
from jaxwgc import stragglers
from jaxwgc.traces._files import FileOptions, read_trace
from jaxwgc.traces._measured_times import measured_times

# Two trainings of language models, and four jobs on Alibaba's PAI. The README beside
# the files has their sources.
DATA = Path(__file__).parents[1] / "data"
LANGUAGE_MODELS = DATA / "llm_training_delays.npz"
PAI = DATA / "pai_delays.npz"
# Minimum number of rounds, so that both halves can be fitted and judged.
_FEWEST_ROUNDS = 8


def read_traces(path: Path | None = None) -> dict[str, np.ndarray]:
    """Returns times (rounds, workers) by name, infinity if there was no response.

    Args:
        path: File with a table of times, in a format of `python -m jaxwgc report`, or
            with several arrays. None for the six traces of the repository.
    """
    if path is None:
        return read_traces(LANGUAGE_MODELS) | read_traces(PAI)
    try:
        names = np.load(path).files if path.suffix == ".npz" else [path.stem]
        traces = {}
        for name in names:
            trace = read_trace(path, FileOptions(array=name))
            traces[name] = measured_times(trace.times, _FEWEST_ROUNDS)
        if any(times.shape[1] < 2 for times in traces.values()):
            raise ValueError("times must be of at least 2 workers")
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise ExperimentError(f"--trace {path}: {error}") from error
    for name, times in traces.items():
        if times.ndim == 3:
            # Times of microbatches, of which a worker computes all.
            traces[name] = times.sum(axis=-1)
    return traces


def halves(times: np.ndarray) -> list[np.ndarray]:
    """Returns the first half of the rounds and the second."""
    return np.split(times, [len(times) // 2])


def simulated(
    delay: stragglers.DelayModel, num_workers: int, num_rounds: int, keys: jax.Array
) -> np.ndarray:
    """Draws histories of rounds, (runs, rounds, workers)."""

    @jax.jit
    @jax.vmap
    def draw(key):
        def step(state, key):
            times, state = delay.sample(key, state, jnp.ones(num_workers))
            return state, times

        keys = jax.random.split(key, num_rounds)
        _, times = jax.lax.scan(step, delay.init(num_workers), keys)
        return times

    return np.asarray(draw(keys))


def label(choice: jaxwgc.planning.Choice | Record) -> str:
    """Returns code, copies and waiting rule of a `Choice`, or of its numbers."""
    code = f"`{choice.name}`"
    if choice.copies > 1:
        code += f" × {choice.copies:.3g}"
    return f"{code}, {choice.waits_for}"
