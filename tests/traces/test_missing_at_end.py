"""Workers that have stopped responding at the end of a trace."""

import numpy as np

from jaxwgc.traces._missing_at_end import missing_at_end


def test_share_of_missing_responses_is_at_least_that_of_all_workers():
    """Worker 0 misses the last two rounds, and the others miss four of 20."""
    is_response = np.ones((10, 3), bool)
    is_response[8:, 0] = False
    is_response[[1, 2, 5], 1] = False
    is_response[4, 2] = False
    end = missing_at_end(is_response)
    np.testing.assert_array_equal(end.start, [8, 10, 10])
    # One more missing response of two more: 1 / 10 of worker 0, and 5 / 30 of all.
    np.testing.assert_allclose(end.p_value, [(5 / 30) ** 2, 1, 1])
