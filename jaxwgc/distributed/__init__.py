"""The same step where workers are real.

`mesh_value_and_grad` spreads parts and workers over the devices of one program, for
scale: there, a device that stops, stops all.
"""

from jaxwgc.distributed._mesh import mesh_value_and_grad
from jaxwgc.distributed._placement import PlacedParts, place_parts

__all__ = [
    "PlacedParts",
    "mesh_value_and_grad",
    "place_parts",
]
