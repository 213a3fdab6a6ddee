"""Alarms: problems that a run's own numbers show while it trains. Each rule is one file in `rules/`."""

from mtgen.alarms.log import ALARMS_FILE, Alarm, read_alarms
from mtgen.alarms.monitor import AlarmMonitor

__all__ = ["ALARMS_FILE", "Alarm", "AlarmMonitor", "read_alarms"]
