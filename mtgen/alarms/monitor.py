"""One watcher runs every rule over a run's rows, and keeps what they find in `alarms.jsonl`, each thing once."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from mtgen.alarms.base import ALARM_RULES, Finding
from mtgen.alarms.log import Alarm, append, read_alarms
from mtgen.config import Config
from mtgen.tracking.journal import read_journal


class AlarmMonitor:
    """The alarms of one run, for the process that writes its journal.

    Args:
        config: of the run.
        folder: the run's; its journal is cut to where the run goes on already.

    Attributes:
        raised: every alarm of the run so far, also those from before a resume. One whose kind and subject are among
            them is not raised again, even where the resume went back to before it.
        late: those of them that an earlier process wrote the rows for, but was killed before it said so.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder
        self.raised = read_alarms(folder)
        self._rules = {kind: ALARM_RULES[kind](config) for kind in ALARM_RULES}
        # what the rules knew before a resume
        self.late = [alarm for row in read_journal(folder) for alarm in self.check(row.images, row.values)]

    def check(self, images: int, numbers: Mapping[str, float]) -> list[Alarm]:
        """The alarms that a new row of the journal raises; they are in the run's file when this returns."""
        known = {(alarm.kind, alarm.about) for alarm in self.raised}
        found = [
            Alarm(images, kind, finding.about, finding.what, finding.help)
            for kind in list(self._rules)
            for finding in self._look(kind, images, numbers)
        ]
        new = list(
            {(alarm.kind, alarm.about): alarm for alarm in found if (alarm.kind, alarm.about) not in known}.values()
        )
        for alarm in new:
            append(self.folder, alarm)
        self.raised += new
        return new

    def _look(self, kind: str, images: int, numbers: Mapping[str, float]) -> list[Finding]:
        """What one rule finds; a rule that fails is left out from then on, since no alarm is worth a run."""
        try:
            return list(self._rules[kind].check(images, numbers))
        except Exception as error:  # noqa: BLE001 - a rule may be anybody's
            del self._rules[kind]
            warnings.warn(f"the alarm {kind!r} failed and is off ({type(error).__name__}: {error})", stacklevel=3)
            return []
