"""The alarms of a run on disk: `alarms.jsonl`, one per line, append-only."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

ALARMS_FILE = "alarms.jsonl"


@dataclass(frozen=True)
class Alarm:
    """A problem of a run.

    Attributes:
        images: the run's position when it was found.
        kind: the rule that found it, such as "collapse".
        about: the part of the run that it is about (a network, a task). Alarms with equal `kind` and `about` are the
            same.
        what: what was found, in numbers.
        help: what usually helps.
    """

    images: int
    kind: str
    about: str
    what: str
    help: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.images:,} images: {self.what}. What usually helps: {self.help}"


def read_alarms(folder: Path) -> list[Alarm]:
    """A run's alarms in the order in which they were raised; damaged or incomplete lines are left out."""
    try:
        lines = (folder / ALARMS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [alarm for line in lines if (alarm := _parse(line)) is not None]


def _parse(line: str) -> Alarm | None:
    try:
        row = json.loads(line)
        return Alarm(int(row["images"]), *(str(row[name]) for name in ("kind", "about", "what", "help")))
    except (ValueError, KeyError, TypeError):
        return None


def append(folder: Path, alarm: Alarm) -> None:
    """Append a line, on a new line even if a killed process left an incomplete one. A failed write is a warning."""
    path = folder / ALARMS_FILE
    try:
        with path.open("a+b", buffering=0) as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps(asdict(alarm)).encode() + b"\n")
    except OSError as error:
        warnings.warn(f"{path}: not written ({error.strerror})", stacklevel=2)
