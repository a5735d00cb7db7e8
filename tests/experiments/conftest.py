"""The command line, and where its results for the documentation are."""

import logging
import pathlib
import sys

import pytest

from experiments import __main__

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line in this process; returns its status, and what it says.

    Commands with real workers log errors alone, which other tests must not inherit.
    """
    logger = logging.getLogger("jaxwgc.distributed")
    level = logger.level

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
        try:
            status = __main__.main()
        except SystemExit as ended:
            status = ended.code
        return status, "".join(capsys.readouterr())

    yield run
    logger.setLevel(level)
