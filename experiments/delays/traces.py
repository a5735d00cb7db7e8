"""Times of workers that were measured: read from a file, and drawn again."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.runner.results import ExperimentError
from jaxwgc import stragglers

# Compute times of data-parallel ranks in two trainings of language models; where they
# are from stands in the README beside them.
LANGUAGE_MODELS = Path(__file__).parents[1] / "data" / "llm_training_delays.npz"
# The name of the loads beside times.
LOADS = "loads"


class Trace(NamedTuple):
    """Times that were measured.

    Attributes:
        name: Of the array in the file.
        seconds: (loads, rounds, workers), NaN where no answer came.
        loads: (loads,), increasing, the least above 0 taken as 1: without a code.
    """

    name: str
    seconds: np.ndarray
    loads: np.ndarray

    def half(self, number: int) -> "Trace":
        """The first rounds, or the others."""
        middle = self.seconds.shape[1] // 2
        rounds = slice(middle, None) if number else slice(middle)
        return self._replace(seconds=self.seconds[:, rounds])

    def groups(self, num_workers: int) -> np.ndarray:
        """Rounds of fewer workers, each with others: (loads, rounds, num_workers)."""
        count = self.seconds.shape[2] // num_workers
        cut = self.seconds[:, :, : count * num_workers]
        return cut.reshape(len(self.loads), -1, num_workers)

    def fit(self) -> tuple[stragglers.DelayFit, ...]:
        """Fits all loads together."""
        num_rounds = self.seconds.shape[1]
        times = self.seconds.reshape(-1, self.seconds.shape[2])
        return stragglers.fit_delays(times, np.repeat(self.loads, num_rounds)[:, None])

    def delay(self, resample: str = "rounds") -> stragglers.DelayModel:
        """A delay model that draws all loads together."""
        return stragglers.empirical(
            self.seconds, resample, measured_at=self.loads, replace=True
        )


def simulated(
    model: stragglers.DelayModel | stragglers.StragglerModel,
    loads: jax.Array,
    num_rounds: int,
    keys: jax.Array,
) -> Any:
    """Draws rounds of a model that follow each other, leaves (runs, rounds, ...).

    Each run has a key, and workers of its own.
    """

    @jax.jit
    @jax.vmap
    def simulate(key):
        def step(state, key):
            arrivals, state = model.sample(key, state, loads)
            return state, arrivals

        keys = jax.random.split(key, num_rounds)
        return jax.lax.scan(step, model.init(len(loads)), keys)[1]

    return jax.tree.map(np.asarray, simulate(keys))


def read_traces(path: Path) -> dict[str, Trace]:
    """Every array of times in a file of NumPy, by its name.

    Arrays are (rounds, workers); (rounds, workers, parts), which are added; or (loads,
    rounds, workers) beside an array `loads`.
    """
    try:
        loaded = np.load(path)
        arrays = {path.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, EOFError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "which is none"
        raise ExperimentError(
            f"--trace must be a file of numpy.save or numpy.savez; got {path}, {reason}"
        ) from error
    loads = arrays.pop(LOADS, None)
    traces = {}
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.number) or array.ndim not in (2, 3):
            continue
        array = array.astype(float)
        if np.any(array <= 0):
            raise ExperimentError(
                "--trace must hold positive times, and NaN where no answer came; got "
                f"{np.nanmin(array):g} in {name} of {path}"
            )
        if loads is not None and array.ndim == 3 and loads.shape == array.shape[:1]:
            order, unit = np.argsort(loads), loads[loads > 0].min()
            traces[name] = Trace(name, array[order], loads[order] / unit)
        else:
            whole = array if array.ndim == 2 else array.sum(-1)
            traces[name] = Trace(name, whole[None], np.ones(1))
    fitting = [
        trace for trace in traces.values() if trace.seconds.shape[0] == np.size(loads)
    ]
    if loads is not None and not fitting:
        raise ExperimentError(
            "--trace must hold times (loads, rounds, workers) for its loads "
            f"{loads.shape}; got {path} with "
            f"{ {name: array.shape for name, array in arrays.items()} }"
        )
    if not traces:
        raise ExperimentError(
            "--trace must hold times (rounds, workers), (rounds, workers, parts) or "
            f"(loads, rounds, workers) with loads; got {path} with "
            f"{ {name: array.shape for name, array in arrays.items()} }"
        )
    for trace in traces.values():
        if not np.isfinite(trace.seconds).any() or trace.seconds.shape[1] < 8:
            raise ExperimentError(
                "--trace must have answers in at least 8 rounds; got "
                f"{trace.seconds.shape[1]} rounds of {trace.name} in {path}"
            )
    return traces
