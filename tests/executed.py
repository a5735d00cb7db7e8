"""Notes which functions of the library a run of pytest executes, and its seconds.

    python -m pytest -p tests.executed --executed FILE tests/codes/test_graphs.py

For `make mutations`, which runs only tests that execute the function with the fault.
Needs Python 3.12.
"""

import json
import pathlib
import sys
import time

LIBRARY = str(pathlib.Path(__file__).parents[1] / "jaxwgc")
functions = set()
start = time.monotonic()


def note(code, offset):
    """Notes a function the first time that it is called."""
    path = code.co_filename
    if path.startswith(LIBRARY):
        inside = path.removeprefix(LIBRARY)
        functions.add(f"jaxwgc{inside}:{code.co_qualname}")
    return sys.monitoring.DISABLE


def pytest_addoption(parser):
    """Adds the option that names the file."""
    parser.addoption("--executed", type=pathlib.Path)


def pytest_configure(config):
    """Starts to note functions."""
    tool = sys.monitoring.COVERAGE_ID
    events = sys.monitoring.events.PY_START
    sys.monitoring.use_tool_id(tool, "executed")
    sys.monitoring.register_callback(tool, events, note)
    sys.monitoring.set_events(tool, events)


def pytest_sessionfinish(session, exitstatus):
    """Writes the functions and the seconds of a run that passes."""
    sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, 0)
    if exitstatus == 0:
        seconds = time.monotonic() - start
        run = {"seconds": round(seconds, 1), "functions": sorted(functions)}
        session.config.getoption("--executed").write_text(json.dumps(run))
