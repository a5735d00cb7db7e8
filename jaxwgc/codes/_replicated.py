"""Plain copies of every part, in an order in which owner and helper meet."""

from collections.abc import Sequence

import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._constructors import owned_parts
from jaxwgc.codes._gradient_code import GradientCode
from jaxwgc.decoders import LeastSquares, OneCopy


def replicated(
    num_workers: int,
    num_parts: int | None = None,
    copies: int = 2,
    loads: Sequence[float] | np.ndarray | None = None,
) -> GradientCode:
    """Every part on that many workers, each a message of its own.

    A worker goes through its own parts first, then through those of the next worker,
    and of the one after that, each from the last part backwards: so owner and helper
    meet in the middle. In a calm round nobody gets to a second copy, and what a slow
    worker has not finished its helpers have, so that waiting `until_decodable` takes
    hardly longer than without copies, and survives any copies - 1 workers.

    Workers keep a gradient for each part that they have finished, until they are asked
    for a sum of some: see `Decoding.requests`.

    Args:
      num_workers: n, at least 1.
      num_parts: k, or None for n.
      copies: d, from 1 to n.
      loads: (n,), how many parts each worker owns, in proportion; the speeds of the
        workers, say. Rounded so that the sum is k; by default alike.

    Returns:
      A real code of zeros and ones, with as many messages a worker as the largest
      number of parts that one holds. A worker with fewer has rows of zeros in the place
      of messages that it does not send.

    Raises:
      ValueError: where num_workers or num_parts is less than 1, copies are less than 1
        or more than n, or loads are not n finite numbers of at least 0, or all 0.
      TypeError: where an argument has the wrong type.

    Example:
      >>> import jaxwgc
      >>> code = jaxwgc.codes.replicated(3, num_parts=6, copies=2)
      >>> code.encoding_matrix[:4]
      array([[1., 0., 0., 0., 0., 0.],
             [0., 1., 0., 0., 0., 0.],
             [0., 0., 0., 1., 0., 0.],
             [0., 0., 1., 0., 0., 0.]])
      >>> jaxwgc.effective_weights(code, finished=[2, 4, 0])
      Array([1., 1., 1., 1., 1., 1.], dtype=float32)

    References:
      The library's. With one copy and a deadline, Giladi et al., "DropCompute: simple
      and more robust distributed synchronous training via compute variance reduction",
      NeurIPS 2023.
    """
    num_parts = num_workers if num_parts is None else num_parts
    copies = _validation.check_up_to("copies", copies, num_workers=num_workers)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    loads = np.ones(num_workers) if loads is None else loads
    sizes = owned_parts(num_workers, num_parts, loads)
    owners = np.arange(num_workers).repeat(sizes)[:, None]
    steps = np.arange(copies)
    holders = (owners - steps) % num_workers
    # What each worker goes through before it comes to the parts of the next one, ...
    sizes_met = sizes[(np.arange(num_workers)[:, None] + steps) % num_workers]
    num_held = sizes_met.sum(1)
    before = (sizes_met.cumsum(1) - sizes_met)[holders, steps]
    # ... and before the part among those: from the first one, or from the last.
    starts = (sizes.cumsum() - sizes)[owners]
    place = np.arange(num_parts)[:, None] - starts
    turns = before + np.where(steps == 0, place, sizes[owners] - 1 - place)
    num_messages = int(num_held.max())
    messages = holders * num_messages + turns
    matrix = np.zeros((num_workers * num_messages, num_parts))
    matrix[messages, np.arange(num_parts)[:, None]] = 1
    return GradientCode(
        encoding_matrix=matrix,
        assignment=matrix.reshape(num_workers, num_messages, num_parts).any(1),
        target=np.ones(num_parts),
        num_stragglers=copies - 1,
        decoders=(OneCopy(messages, num_workers), LeastSquares()),
        messages_per_worker=num_messages,
        required_parts=np.minimum(np.arange(num_messages) + 1, num_held[:, None]),
    )
