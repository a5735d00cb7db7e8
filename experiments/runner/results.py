"""What experiments write: whole files or none."""

import json
import math
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import jaxwgc
from experiments.runner import interrupts
from experiments.runner.tables import ResultTable, console
from experiments.runner.timing import Timing

# What JSON has no numbers for, by the names of Protocol Buffers.
NOT_FINITE = {json.dumps(value): value for value in (math.inf, -math.inf, math.nan)}


class ExperimentError(Exception):
    """Something that the person at the command line can mend."""


class Results:
    """The folder of results: checked before the work, filled as it goes on.

    Files are kept in memory until `save`, and each appears whole.
    """

    def __init__(self, title: str, out: Path, runs: int, option: str = "runs"):
        if runs < 1:
            raise ExperimentError(f"--{option} must be at least 1; got {runs}")
        self.out = out
        self._files: dict[str, bytes] = {}
        interrupts.written.clear()
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise ExperimentError(
                f"--out must be a folder that can be written to; got {out} "
                f"({error.strerror})"
            ) from error
        console.print(f"{title}, {runs} times", highlight=False)

    def add_json(self, name: str, content: dict[str, Any]) -> None:
        """Numbers, with where they come from."""
        whole = _named(to_builtin({"environment": environment(), **content}))
        text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
        self._files[name] = text.encode()

    def add_table(self, name: str, table: ResultTable) -> None:
        """A table in Markdown, for the documentation."""
        self._files[name] = table.to_markdown().encode()

    def add_figure(self, name: str, figure: Figure) -> None:
        """A figure as PNG."""
        with tempfile.SpooledTemporaryFile() as stream:
            figure.savefig(stream, format="png", dpi=160)
            stream.seek(0)
            self._files[name] = stream.read()

    def save(self) -> None:
        """Writes every file under another name first, so none is ever half there."""
        with interrupts.writing:
            try:
                while self._files:
                    name = next(iter(self._files))
                    self._write(self.out / name, self._files[name])
                    del self._files[name]
            except OSError as error:
                raise ExperimentError(
                    f"cannot write to {self.out} ({error.strerror})"
                ) from error

    def _write(self, path: Path, content: bytes) -> None:
        temporary = tempfile.NamedTemporaryFile(dir=self.out, delete=False)
        try:
            with temporary:
                temporary.write(content)
            os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, path)
        except BaseException:
            os.unlink(temporary.name)
            raise
        if path not in interrupts.written:
            interrupts.written.append(path)


class Record(dict):
    """A dict, or what was a named tuple of an experiment: read as either."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def read_json(path: Path) -> Any:
    """The numbers of a file that `Results` wrote, as the studies that gave them."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ExperimentError(f"cannot read {path} ({error.strerror})") from error
    return _from_builtin(json.loads(text))


def _from_builtin(value: Any) -> Any:
    """Lists of numbers, of whatever rank, as arrays; summaries and timings as such."""
    if isinstance(value, dict):
        record = Record({name: _from_builtin(own) for name, own in value.items()})
        for kind in (jaxwgc.Summary, Timing):
            if tuple(record) == kind._fields:
                return kind(**record)
        return record
    if isinstance(value, list):
        values = [_from_builtin(own) for own in value]
        # Of one kind: a count and a share beside each other are no array.
        kinds = {(type(own), np.shape(own)) for own in values}
        is_array = len(kinds) == 1 and isinstance(values[0], int | float | np.ndarray)
        return np.array(values) if is_array else values
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        **{own.__name__: own.__version__ for own in (jaxwgc, jax, np, matplotlib)},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }


def _named(value: Any) -> Any:
    """Numbers that JSON has not by their names."""
    if isinstance(value, dict):
        return {name: _named(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_named(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value


def to_builtin(value: Any) -> Any:
    """Dicts, lists and numbers, as JSON has them; named tuples as dicts."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: to_builtin(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [to_builtin(own) for own in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.tolist()
    return value
