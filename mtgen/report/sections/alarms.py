"""What a run warned of, and what to do about it: the rows of `alarms.jsonl`, `{"images", "kind", "what", "help"}`."""

import json

from mtgen.report.blocks import SECTIONS, Bullets, Section
from mtgen.report.record import Record

FILE = "alarms.jsonl"


@SECTIONS.register("alarms")
def gather(record: Record, other: Record | None) -> Section | None:
    """A line an alarm; none where the run raised none."""
    path = record.folder / FILE
    if not path.is_file():
        return None
    lines = [line for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if (line := _line(text))]
    return Section(1, "Alarms", [Bullets(lines, alarm=True)]) if lines else None


def _line(text: str) -> str:
    """One row in words; a row that is being written, or damaged, is as it stands."""
    try:
        row = json.loads(text)
        help_ = f": {row['help']}" if row.get("help") else ""
        return f"{row['images']:,} images, {row['kind']}: {row['what']}{help_}"
    except (ValueError, KeyError, TypeError):
        return text
