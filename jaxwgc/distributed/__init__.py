"""Coded steps on real workers.

`mesh_value_and_grad` spreads parts and workers over the devices of one program, for
scale: if a device stops, all devices stop. `RayCluster` runs each worker as a process,
for faults: workers may be slow, frozen, dead or wrong, and are replaced. It needs the
extra `ray`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxwgc.distributed._mesh import mesh_value_and_grad
    from jaxwgc.distributed._placement import PlacedParts, place_parts
    from jaxwgc.distributed.ray._callbacks import JsonLines, Progress, TrainingState
    from jaxwgc.distributed.ray._cluster import RayCluster
    from jaxwgc.distributed.ray._messages import Round
    from jaxwgc.distributed.ray._options import Faults, Timeouts, Verification

__all__ = [
    "Faults",
    "JsonLines",
    "PlacedParts",
    "Progress",
    "RayCluster",
    "Round",
    "Timeouts",
    "TrainingState",
    "Verification",
    "mesh_value_and_grad",
    "place_parts",
]

# Module of each name, imported at its first use. The process of a worker needs none of
# them, and starts sooner without them.
_MODULES = {
    "Faults": "ray._options",
    "JsonLines": "ray._callbacks",
    "PlacedParts": "_placement",
    "Progress": "ray._callbacks",
    "RayCluster": "ray._cluster",
    "Round": "ray._messages",
    "Timeouts": "ray._options",
    "TrainingState": "ray._callbacks",
    "Verification": "ray._options",
    "mesh_value_and_grad": "_mesh",
    "place_parts": "_placement",
}


def __getattr__(name: str) -> Any:
    """Imports a function or class at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"jaxwgc.distributed.{_MODULES[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
