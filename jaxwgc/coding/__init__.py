"""Encoding, decoding and weighting for every gradient code.

All functions are pure, work under `jax.jit` and `jax.vmap`, and compute in JAX's
default precision. Decoding weights are constants for `jax.grad`. In rounds that cannot
be decoded exactly, they do depend on the entries and the weights of the code;
derivatives with respect to those ignore this. First derivatives of the least-squares
`decoding_error` are correct nevertheless, its second derivatives are not.
"""

from jaxwgc.coding._arrived import Arrived as Arrived
from jaxwgc.coding._arrived import ErrorLocation
from jaxwgc.coding._arrived import Finished as Finished
from jaxwgc.coding._arrived import Received as Received
from jaxwgc.coding._decode import (
    decode,
    decoding,
    decoding_error,
    decoding_weights,
    effective_weights,
)
from jaxwgc.coding._decoding import Decoding
from jaxwgc.coding._decoding import check_messages_of as check_messages_of
from jaxwgc.coding._errors._arbitration import Arbitration, arbitrate
from jaxwgc.coding._errors._projection import key_from as key_from
from jaxwgc.coding._errors._projection import project as project
from jaxwgc.coding._flat_vectors import ravel as ravel
from jaxwgc.coding._flat_vectors import raveled_size as raveled_size
from jaxwgc.coding._locate_errors import ErrorLocator as ErrorLocator
from jaxwgc.coding._locate_errors import locate_errors
from jaxwgc.coding._locate_errors import rounding_noise as rounding_noise
from jaxwgc.coding._memory import Memory
from jaxwgc.coding._messages import (
    answer_request,
    decode_answers,
    encode,
    form_messages,
)
from jaxwgc.coding._quantization import allocate_bits, quantization_variance, quantize
from jaxwgc.coding._quantization import check_bits as check_bits
from jaxwgc.coding._weighting import (
    inverse_variance_weights,
    source_variances,
    weighted,
)

__all__ = [
    "Arbitration",
    "Decoding",
    "ErrorLocation",
    "Memory",
    "allocate_bits",
    "answer_request",
    "arbitrate",
    "decode",
    "decode_answers",
    "decoding",
    "decoding_error",
    "decoding_weights",
    "effective_weights",
    "encode",
    "form_messages",
    "inverse_variance_weights",
    "locate_errors",
    "quantization_variance",
    "quantize",
    "source_variances",
    "weighted",
]
