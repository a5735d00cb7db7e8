"""Reports as text and as JSON: names of workers, tables, fields."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxwgc._common import validation


def worker_labels(
    names: Sequence[str] | None, table: np.ndarray, argument: str
) -> np.ndarray:
    """Returns the names of at least 2 workers, str (workers,); 0, 1, ... by default.

    Raises:
      ValueError: If a table (rounds, workers) has fewer than 2 workers, or `names` has
        another length.
    """
    num_workers = table.shape[1]
    if num_workers < 2:
        raise ValueError(f"{argument} must have at least 2 workers; got {table.shape}")
    numbered = range(num_workers) if names is None else names
    labels = np.array([str(name) for name in numbered])
    validation.check_shape("names", labels, "(num_workers,)", (num_workers,))
    return labels


def for_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields with arrays as lists, and NaN and infinity as None."""
    text = json.dumps(fields, default=np.ndarray.tolist)
    # JSON has neither NaN nor infinity.
    return json.loads(text, parse_constant=lambda _: None)
