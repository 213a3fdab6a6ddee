"""The alarms of a run on disk: `alarms.jsonl`, a line each, only ever added to."""

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

ALARMS_FILE = "alarms.jsonl"


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong with a run.

    Attributes:
        images: the run's position when it was noticed.
        kind: the rule that noticed it, such as "collapse".
        about: what of the run it is about (a side, a task); with `kind` it says which alarms are the same.
        what: what was seen, in numbers.
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
    """A run's alarms in the order in which they were raised; a line that is damaged, or still being written, is left out."""
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
    """Add a line, after the end of one that a killed process left half written. What cannot be written is a warning."""
    path = folder / ALARMS_FILE
    try:
        with path.open("a+b", buffering=0) as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps(asdict(alarm)).encode() + b"\n")
    except OSError as error:
        warnings.warn(f"{path}: not written ({error.strerror})", stacklevel=2)
