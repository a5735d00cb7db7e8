"""Measured times of workers: arrays, frames, files, and names of columns.

For other rooms and the command line; users pass arrays and DataFrames to those.
"""

from jaxwgc.traces._column_names import FileOptions
from jaxwgc.traces._files import read_trace, read_traces
from jaxwgc.traces._frames import WorkerTimes as WorkerTimes
from jaxwgc.traces._frames import is_frame, times_of_frame
from jaxwgc.traces._measured_times import as_seconds, measured_times
from jaxwgc.traces._missing_at_end import missing_at_end

__all__ = [
    "FileOptions",
    "as_seconds",
    "is_frame",
    "measured_times",
    "missing_at_end",
    "read_trace",
    "read_traces",
    "times_of_frame",
]
