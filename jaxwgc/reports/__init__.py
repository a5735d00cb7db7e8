"""Reports on which workers are slow, since when, and how much time this costs."""

from jaxwgc.reports._statistics import Rounds
from jaxwgc.reports._step_times import SpeedChange, StepTimes
from jaxwgc.reports._straggler_report import StragglerReport, straggler_report
from jaxwgc.reports._wait_report import WaitReport
from jaxwgc.reports._workers import Kind

__all__ = [
    "Kind",
    "Rounds",
    "SpeedChange",
    "StepTimes",
    "StragglerReport",
    "WaitReport",
    "straggler_report",
]
