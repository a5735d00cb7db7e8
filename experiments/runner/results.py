"""Files of experiments: numbers that are shown, written atomically."""

import json
import math
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

import jaxwgc
from experiments.runner.timing import Timing

# Names of Protocol Buffers for numbers that JSON does not have.
NOT_FINITE = {json.dumps(value): value for value in (math.inf, -math.inf, math.nan)}
# Significant digits in files; tables show fewer.
SIGNIFICANT_DIGITS = 8


class ExperimentError(Exception):
    """An error that the user of the command line can correct."""


class Record(dict):
    """Numbers by name, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def check_positive(**options: int) -> None:
    """Rejects options of the command line that are below 1."""
    for name, value in options.items():
        if value < 1:
            option = name.replace("_", "-")
            raise ExperimentError(f"--{option} must be at least 1; got {value}")


def check_folder(out: Path) -> None:
    """Rejects a folder that cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        rule = f"--out must be a folder that can be written to; got {out}"
        raise ExperimentError(f"{rule} ({error.strerror})") from error


def save_whole(path: Path, content: bytes) -> None:
    """Writes under another name first, so that no file is incomplete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def to_json(content: dict[str, Any]) -> bytes:
    """Returns JSON with a line per number or innermost list."""
    text = json.dumps(to_builtin(content, json.dumps), indent=1, allow_nan=False)
    return re.sub(r"\[[^][{}]*\]", lambda hit: " ".join(hit[0].split()), text).encode()


def environment() -> dict[str, Any]:
    """Returns versions and hardware of the measurement."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        **{lib.__name__: lib.__version__ for lib in (jaxwgc, jax, np, matplotlib)},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }


def to_records(value: Any) -> Any:
    """Returns records of the content of JSON: the inverse of `to_builtin`.

    Nested lists of floats become arrays, and lists of ints become tuples.
    """
    if isinstance(value, dict):
        record = Record({name: to_records(child) for name, child in value.items()})
        fields = tuple(record)
        if fields == Timing._fields:
            return Timing(**record)
        if fields and fields in (jaxwgc.Summary._fields, jaxwgc.Summary._fields[:3]):
            return jaxwgc.Summary(**{"standard_error": math.nan, **record})
        return record
    if isinstance(value, list):
        return _array_or_list([to_records(child) for child in value])
    if isinstance(value, str):
        return NOT_FINITE.get(value, value)
    return value


def _array_or_list(values: list[Any]) -> np.ndarray | tuple[int, ...] | list[Any]:
    # A list of counts and fractions is not an array.
    kinds = {(type(child), np.shape(child)) for child in values}
    if len(kinds) != 1:
        return values
    if isinstance(values[0], float | np.ndarray):
        return np.array(values)
    if type(values[0]) is int:
        return tuple(values)
    return values


def to_builtin(value: Any, name_of: Any = float) -> Any:
    """Returns dicts, lists and numbers; named tuples as dicts, floats rounded.

    Args:
        value: Nested numbers.
        name_of: Converts infinity and NaN, which JSON does not have.

    Returns:
        Content for `json`. Summaries of arrays lose their standard errors.
    """
    if isinstance(value, jaxwgc.Summary) and np.ndim(value.mean):
        value = dict(zip(value._fields[:3], value))
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: to_builtin(child, name_of) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [to_builtin(child, name_of) for child in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return name_of(value)
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return value
