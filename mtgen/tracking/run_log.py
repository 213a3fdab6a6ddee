"""A run's log, `log.txt`: what happened and when, in plain lines that are only ever added to."""

import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

LOG_FILE = "log.txt"
_STAMP = "%Y-%m-%d %H:%M:%S  "
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # colors and the like, ECMA-48


class RunLog:
    """Adds lines to the log of a run; several processes may, since a line is written at once.

    What cannot be written is a warning: no line is worth a run.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOG_FILE

    def write(self, text: str) -> None:
        """Add a line with the time of day; what follows a line break is indented, colors and control characters are left out."""
        stamp = time.strftime(_STAMP)
        lines = [
            "".join(c for c in line.expandtabs() if c.isprintable()) for line in _ESCAPE.sub("", text).splitlines()
        ]
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write((stamp + f"\n{' ' * len(stamp)}".join(lines) + "\n").encode("utf-8", "replace"))
        except OSError as error:
            warnings.warn(f"{self.path}: a line is lost ({error.strerror}): {text}", stacklevel=2)

    def tee(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """A function that says a line as `say` does, and writes it down."""

        def both(text: str) -> None:
            say(text)
            self.write(text)

        return both
