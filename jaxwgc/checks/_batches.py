"""Parts of one step, as a function `batches(step, part)` returns them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwgc._common import validation
from jaxwgc.aggregate import shapes_of


def parts_of_step(
    batches: Callable[[int, int], Any], num_parts: int, step: int = 0
) -> Any:
    """Returns the batches of a step as parts, leaves (num_parts, ...).

    Raises:
      ValueError: If the batches of two parts differ in structure or shapes.
    """
    validation.check_callable("batches", batches)
    parts = [jax.device_get(batches(step, part)) for part in range(num_parts)]
    if not jax.tree.leaves(parts[0]):
        raise ValueError(
            f"batches must return arrays; got {parts[0]!r} of part 0 in step {step}"
        )
    shapes = [shapes_of(part) for part in parts]
    for part, shapes_of_part in enumerate(shapes):
        if shapes_of_part != shapes[0]:
            raise ValueError(
                "batches must return arrays of equal structure and shapes; got "
                f"{shapes[0]} of part 0 and {shapes_of_part} of part {part} in step "
                f"{step}"
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def rows_of(parts: Any) -> Any:
    """Returns the rows of all parts, leaves (num_parts * m, ...)."""
    leaves = jax.tree.leaves(parts)
    if any(np.ndim(leaf) < 2 for leaf in leaves):
        raise ValueError(
            "batches must return arrays with a leading axis of rows; got "
            f"{shapes_of(jax.tree.map(lambda leaf: leaf[0], parts))}"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)


def problems_of_batches(
    batches: Callable[[int, int], Any], parts: Any, step: int = 0
) -> tuple[str, ...]:
    """Returns a problem if a second call returns other batches than `parts`.

    Another problem is that all parts have the same batch.
    """
    num_parts = len(jax.tree.leaves(parts)[0])
    if num_parts > 1 and all(_is_shared(leaf) for leaf in jax.tree.leaves(parts)):
        return (
            f"batches(step={step}, part) returns the same arrays for all parts: the "
            "gradient is that of one part. Derive the rows from step and part, e.g. "
            "row = (step * num_parts + part) * rows_per_part",
        )
    again = parts_of_step(batches, num_parts, step)
    for part in range(num_parts):
        if _bytes_of_part(again, part) != _bytes_of_part(parts, part):
            return (
                f"batches(step={step}, part={part}) returns other arrays when it is "
                "called again: the holders of a part would differ. Derive all "
                "randomness from step and part, e.g. "
                "np.random.default_rng([step, part])",
            )
    return ()


def _bytes_of_part(parts: Any, part: int) -> list[bytes]:
    """Returns the bytes of each array of a part, so that NaNs are equal, too."""
    return [leaf[part].tobytes() for leaf in jax.tree.leaves(parts)]


def _is_shared(leaf: np.ndarray) -> bool:
    """Returns whether an array is equal in all parts."""
    return all(part.tobytes() == leaf[0].tobytes() for part in leaf)
