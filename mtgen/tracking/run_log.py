"""A run's log, `log.txt`: plain lines with the time of each event, to which lines are only appended."""

import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

LOG_FILE = "log.txt"
_STAMP = "%Y-%m-%d %H:%M:%S  "
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colors and the like, ECMA-48


class RunLog:
    """Appends lines to the log of a run, also from several processes, since each entry is a single write.

    A line that cannot be written is a warning and does not stop the run.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOG_FILE

    def write(self, text: str) -> None:
        """Append a line with the date and time; further lines are indented, control characters and colors removed."""
        stamp = time.strftime(_STAMP)
        lines = [
            "".join(c for c in line.expandtabs() if c.isprintable()) for line in _ESCAPE.sub("", text).splitlines()
        ]
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write((stamp + f"\n{' ' * len(stamp)}".join(lines) + "\n").encode("utf-8", "replace"))
        except OSError as error:
            warnings.warn(f"{self.path}: a line could not be written ({error.strerror}): {text}", stacklevel=2)

    def tee(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """A function that passes a line to `say` and appends it to the log."""

        def both(text: str) -> None:
            say(text)
            self.write(text)

        return both
