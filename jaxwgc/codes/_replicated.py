"""Plain copies of every part, ordered so that owner and helper meet."""

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
    """Returns a code with `copies` workers per part and one message per part.

    A worker first computes its own parts, then the parts of the next worker, and of the
    one after it, each from the last part backwards. So owner and helper meet in the
    middle. In rounds without stragglers, no second copy is computed. Parts that a slow
    worker has not finished are computed by its helpers. Waiting `until_decodable`
    therefore takes hardly longer than without copies, and any copies - 1 lost workers
    are tolerated.

    Workers keep a gradient for each finished part, until a weighted sum is requested:
    see `Decoding.requests`.

    Args:
      num_workers: n, at least 1.
      num_parts: k, or None for n.
      copies: Replication factor d, from 1 to n.
      loads: Relative number of parts that each worker owns, (n,), e.g. the speeds of
        the workers. Rounded so that the sum is k; equal by default.

    Returns:
      A real code of zeros and ones, with as many messages per worker as the largest
      number of parts that a worker holds. A worker with fewer parts has rows of zeros
      for messages that it does not send.

    Raises:
      ValueError: If num_workers or num_parts is below 1, copies are below 1 or above n,
        or loads are not n finite numbers of at least 0, or all 0.
      TypeError: If an argument has the wrong type.

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
      New in this library. With one copy and a deadline, Giladi et al., "DropCompute:
      simple and more robust distributed synchronous training via compute variance
      reduction", NeurIPS 2023.
    """
    num_parts = num_workers if num_parts is None else num_parts
    copies = _validation.check_up_to("copies", copies, num_workers=num_workers)
    num_parts = _validation.check_int("num_parts", num_parts, minimum=1)
    loads = np.ones(num_workers) if loads is None else loads
    sizes = owned_parts(num_workers, num_parts, loads)
    owners = np.arange(num_workers).repeat(sizes)[:, None]
    steps = np.arange(copies)
    holders = (owners - steps) % num_workers
    # Number of parts that a worker computes before it reaches those of an owner, ...
    sizes_met = sizes[(np.arange(num_workers)[:, None] + steps) % num_workers]
    num_held = sizes_met.sum(1)
    before = (sizes_met.cumsum(1) - sizes_met)[holders, steps]
    # ... and before the part among that owner's: from the first one, or from the last.
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
