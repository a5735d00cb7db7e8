"""Asynchronous training without rounds, and a comparison of methods by `race`."""

from jaxwgc.asynchronous._collecting import fedbuff, rennala
from jaxwgc.asynchronous._every_arrival import delay_adaptive, every_arrival, rescaled
from jaxwgc.asynchronous._problem import Problem
from jaxwgc.asynchronous._race import race
from jaxwgc.asynchronous._results import Race
from jaxwgc.asynchronous._ringleader import ringleader
from jaxwgc.asynchronous._ringmaster import ringmaster
from jaxwgc.asynchronous._rule import Arrival, AsynchronousRule, Decision
from jaxwgc.asynchronous._synchronous import synchronous
from jaxwgc.asynchronous._training import Event, TrainingState, train

__all__ = [
    "Arrival",
    "AsynchronousRule",
    "Decision",
    "Event",
    "Problem",
    "Race",
    "TrainingState",
    "delay_adaptive",
    "every_arrival",
    "fedbuff",
    "race",
    "rennala",
    "rescaled",
    "ringleader",
    "ringmaster",
    "synchronous",
    "train",
]
