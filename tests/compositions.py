"""Codes of segments, clusters and several messages, and what arrives of them."""

import jax
import numpy as np
import pytest

from jaxwgc import codes

KEY = jax.random.key(0)
CODES = {
    "segments": codes.communication_efficient(6, 2, 2),
    "complex segments": codes.communication_efficient(5, 1, 3),
    "clusters, lagrange": codes.clustered(codes.reed_solomon(3, 3, 2), 2),
    "clusters, group": codes.clustered(codes.binary(3, 1), 2),
    "clusters of clusters": codes.clustered(
        codes.clustered(codes.cyclic_mds(2, 1), 2), 2
    ),
    "clusters of segments": codes.clustered(codes.communication_efficient(3, 0, 3), 2),
    "messages, complex": codes.multi_message(codes.cyclic_mds(4, 2)),
    "messages, uncoded": codes.multi_message(codes.uncoded(3, 9)),
    "partial, complex": codes.partial(codes.cyclic_mds(3, 1), 1),
    "clusters of partial": codes.clustered(
        codes.partial(codes.cyclic_repetition(KEY, 3, 1), 1), 2
    ),
    "clusters of messages": codes.clustered(
        codes.multi_message(codes.cyclic_mds(3, 1)), 2
    ),
}
SEVERAL = [name for name, code in CODES.items() if code.messages_per_worker > 1]
every_code = pytest.mark.parametrize("name", CODES)


def sent(code, received):
    """The messages that arrive, bool (rounds, num_messages)."""
    if code.messages_per_worker == 1:
        return received
    if received.dtype == bool:
        return received.repeat(code.messages_per_worker, axis=1)
    arrived = [
        [
            code.loads[worker] >= finished[worker] >= code.required_parts[worker][turn]
            for worker in range(code.num_workers)
            for turn in range(code.messages_per_worker)
        ]
        for finished in received
    ]
    return np.array(arrived)
