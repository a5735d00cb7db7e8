"""Measured times of workers: arrays, frames, files, and names of columns."""

from jaxwgc.traces._column_names import ColumnOptions as ColumnOptions
from jaxwgc.traces._files import FileOptions as FileOptions
from jaxwgc.traces._files import read_trace as read_trace
from jaxwgc.traces._files import read_traces as read_traces
from jaxwgc.traces._frames import WorkerTimes as WorkerTimes
from jaxwgc.traces._frames import is_frame as is_frame
from jaxwgc.traces._frames import times_of_frame as times_of_frame
from jaxwgc.traces._measured_times import as_seconds as as_seconds
from jaxwgc.traces._measured_times import measured_times as measured_times
from jaxwgc.traces._missing_at_end import missing_at_end as missing_at_end
