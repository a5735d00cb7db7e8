"""Coded steps on real workers.

`mesh_value_and_grad` spreads parts and workers over the devices of one program, for
scale: if a device stops, all devices stop. `RayCluster` runs each worker as a process,
for faults: workers may be slow, frozen, dead or wrong, and are replaced. It needs the
extra `ray`.
"""

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
