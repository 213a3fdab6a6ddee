"""Alarms: what a run's own numbers say that nobody would wait for the end of the run to hear; each rule is one file in `rules/`."""

from mtgen.alarms.log import ALARMS, Alarm, read_alarms
from mtgen.alarms.monitor import Watch

__all__ = ["ALARMS", "Alarm", "Watch", "read_alarms"]
