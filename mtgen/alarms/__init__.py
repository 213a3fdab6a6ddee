"""Alarms: what a run's own numbers say that nobody would wait for the end of the run to hear; each rule is one file in `rules/`."""

from mtgen.alarms.log import ALARMS_FILE, Alarm, read_alarms
from mtgen.alarms.monitor import AlarmMonitor

__all__ = ["ALARMS_FILE", "Alarm", "AlarmMonitor", "read_alarms"]
