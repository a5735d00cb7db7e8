"""What the tests of experiments replace."""

import pytest

from experiments.paper import descent
from experiments.weights import methods
from jaxwgc import codes, stragglers


def decode_by_groups(patch):
    """The paper's code gives way to one of as many parts that compiles in no time.

    It is as exact: descent takes the same steps.
    """
    code = codes.fractional_repetition(descent.CODE.num_parts, num_stragglers=4)
    patch.setattr(descent, "CODE", code)
    patch.setattr(descent, "STRAGGLERS", stragglers.uniform(code.num_stragglers))
    patch.setattr(methods, "CODE", code)


@pytest.fixture
def decoded_by_groups(monkeypatch):
    """`decode_by_groups` for one test."""
    decode_by_groups(monkeypatch)
