"""Wrong arguments raise errors that name the argument, the rule and the value."""

import pytest

from tests.catalogue.rows import EVERY_ROW
from tests.catalogue.wrong_values import wrong_values


@pytest.mark.parametrize(
    ("row", "name"),
    [(row, name) for row in EVERY_ROW for name in row.arguments],
    ids=str,
)
def test_wrong_arguments(row, name):
    """One argument is wrong, the others are right."""
    for value, error, words in wrong_values(row, name):
        with pytest.raises(error, match=rf"\b{name} {words}"):
            row.call({**row.arguments, name: value})
