"""Coded steps on real workers.

`mesh_value_and_grad` spreads parts and workers over the devices of one program, for
scale: if a device stops, all devices stop. `RayCluster` runs each worker as a process,
for faults: workers may be slow, frozen, dead or wrong, and are replaced. It needs the
extra `ray`.
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

# A process of a worker needs none of these names, and starts sooner without them.
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

# Type checkers report unknown names, since they do not see `__getattr__`.
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attributes(__name__, _MODULES)
