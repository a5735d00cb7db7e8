"""Gradient coding on a mesh of devices, or on worker processes that Ray starts.

`mesh_value_and_grad` spreads parts and workers over the devices of one program, for
scale: if a device stops, all devices stop. `RayCluster` runs each worker as a process,
for faults: workers may be slow, frozen, dead or wrong, and are replaced. `RayCluster`
needs the extra `ray`.
"""

from typing import TYPE_CHECKING

from jaxwgc._common import lazy

if TYPE_CHECKING:
    from jaxwgc.distributed._mesh import mesh_value_and_grad
    from jaxwgc.distributed._placement import place_parts
    from jaxwgc.distributed.ray._callbacks import JsonLines, Progress
    from jaxwgc.distributed.ray._cluster import RayCluster
    from jaxwgc.distributed.ray._messages import Round
    from jaxwgc.distributed.ray._options import Faults, Timeouts, Verification

__all__ = [
    "Faults",
    "JsonLines",
    "Progress",
    "RayCluster",
    "Round",
    "Timeouts",
    "Verification",
    "mesh_value_and_grad",
    "place_parts",
]

# Names are imported at their first use. Worker processes need none of them, and start
# sooner without these imports.
_MODULES = {
    "Faults": "ray._options",
    "JsonLines": "ray._callbacks",
    "Progress": "ray._callbacks",
    "RayCluster": "ray._cluster",
    "Round": "ray._messages",
    "Timeouts": "ray._options",
    "Verification": "ray._options",
    "mesh_value_and_grad": "_mesh",
    "place_parts": "_placement",
}

# `__getattr__` is hidden from type checkers. Otherwise they would not report unknown
# names.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
