"""Encoding, decoding and weighting for every gradient code.

All functions are pure, work under `jax.jit` and `jax.vmap`, and compute in JAX's
default precision. Decoding weights are constants for `jax.grad`. In rounds that cannot
be decoded exactly, they do depend on the entries and the weights of the code;
derivatives with respect to those ignore this. First derivatives of the least-squares
`Decoding.error` are correct nevertheless, its second derivatives are not.
"""

from jaxwgc.coding._arbitration import arbitrate
from jaxwgc.coding._decode import Arrived, ErrorLocation, decode, decoding
from jaxwgc.coding._decoding import Decoding
from jaxwgc.coding._locate_errors import ErrorLocator, locate_errors
from jaxwgc.coding._memory import Memory
from jaxwgc.coding._messages import (
    decode_sums,
    encode,
    form_messages,
    requested_sum,
)
from jaxwgc.coding._projection import project
from jaxwgc.coding._quantization import allocate_bits, quantization_variance, quantize
from jaxwgc.coding._weighting import (
    inverse_variance_weights,
    source_variances,
    weighted,
)

__all__ = [
    "Arrived",
    "Decoding",
    "ErrorLocation",
    "ErrorLocator",
    "Memory",
    "allocate_bits",
    "requested_sum",
    "arbitrate",
    "decode",
    "decode_sums",
    "decoding",
    "encode",
    "form_messages",
    "inverse_variance_weights",
    "locate_errors",
    "project",
    "quantization_variance",
    "quantize",
    "source_variances",
    "weighted",
]
