"""Checks that a function of sketching refuses arguments."""

import numpy as np
import pytest

from tests.catalogue.row import by_name
from tests.catalogue.rows import SKETCHING

ROWS = by_name(SKETCHING)


def check_refusal(function, changes, error, message):
    """Calls a function with the arguments of its row, of which some are replaced."""
    arguments = {**ROWS[function.__name__].arguments, **changes}
    with pytest.raises(error, match=message), np.errstate(all="ignore"):
        function(**arguments)
