"""The monitor runs every rule on a run's rows and writes each alarm to `alarms.jsonl` once."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from mtgen.alarms.base import ALARM_RULES, Finding
from mtgen.alarms.log import Alarm, append, read_alarms
from mtgen.config import Config
from mtgen.tracking.journal import read_journal


class AlarmMonitor:
    """The alarms of one run, in the process that writes its journal.

    Args:
        config: the run's configuration.
        folder: the run's folder; after a resume, its journal has been cut already.

    Attributes:
        raised: every alarm of the run so far, also from before a resume. An alarm with the same kind and subject is
            never raised again, even if the run resumes from before it.
        late: alarms for rows that an earlier process wrote, but was killed before it raised them.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder
        self.raised = read_alarms(folder)
        self._rules = {kind: ALARM_RULES[kind](config) for kind in ALARM_RULES}
        # the rules' state is restored from the rows before a resume
        self.late = [alarm for row in read_journal(folder) for alarm in self.check(row.images, row.values)]

    def check(self, images: int, numbers: Mapping[str, float]) -> list[Alarm]:
        """The alarms that a new row of the journal raises; they have been written when this returns."""
        known = {(alarm.kind, alarm.about) for alarm in self.raised}
        found = [
            Alarm(images, kind, finding.about, finding.what, finding.help)
            for kind in list(self._rules)
            for finding in self._findings(kind, images, numbers)
        ]
        new = list(
            {(alarm.kind, alarm.about): alarm for alarm in found if (alarm.kind, alarm.about) not in known}.values()
        )
        for alarm in new:
            append(self.folder, alarm)
        self.raised += new
        return new

    def _findings(self, kind: str, images: int, numbers: Mapping[str, float]) -> list[Finding]:
        """What one rule finds; a rule that fails is disabled, so that it cannot stop the run."""
        try:
            return list(self._rules[kind].check(images, numbers))
        except Exception as error:  # noqa: BLE001 - a third party's rule can raise anything
            del self._rules[kind]
            warnings.warn(f"the alarm {kind!r} failed and is disabled ({type(error).__name__}: {error})", stacklevel=3)
            return []
