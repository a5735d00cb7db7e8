"""Reports: which workers are slow, since when, and what it costs."""

from jaxwgc.reports._straggler_report import StragglerReport, straggler_report
from jaxwgc.reports._wait_report import WaitReport

__all__ = ["StragglerReport", "WaitReport", "straggler_report"]
