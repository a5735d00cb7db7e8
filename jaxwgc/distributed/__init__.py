"""The same step where workers are real.

`RayCluster` runs a worker a process through Ray, which is the extra `jaxwgc[ray]`:
workers may be slow, frozen, dead or wrong, and come back.
"""

from jaxwgc.distributed._ray_cluster import RayCluster
from jaxwgc.distributed._ray_rounds import Round
from jaxwgc.distributed._ray_training import Progress, TrainingState

__all__ = [
    "Progress",
    "RayCluster",
    "Round",
    "TrainingState",
]
