"""What the run drew and read, over time."""

from mtgen.report.blocks import SECTIONS, Block, Note, Pictures, Section
from mtgen.report.image_timeline import kept, sheets, track
from mtgen.report.run_record import Record

ORDER = ("grid", "reading", "asked-", "reconstruction", "translation", "batch-")
"""Kinds of sheets, by how their names begin."""


@SECTIONS.register("pictures")
def gather(record: Record, other: Record | None) -> Section:
    """A block for every kind of sheet."""
    found = sheets(record)
    names = sorted(
        found, key=lambda name: next((i for i, begin in enumerate(ORDER) if name.startswith(begin)), len(ORDER))
    )
    if not names:
        return Section(
            2, "Pictures", [Note("There are no pictures yet: they come with the first snapshot (evaluate.every).")]
        )
    positions = kept([found], names)
    everywhere = {position for name in names for position in found[name]}
    blocks: list[Block] = []
    for name in names:
        one = track("", found[name], positions)
        if one["frames"]:
            blocks.append(Pictures(one["frames"][-1]["title"], {"tracks": [one]}))
    if len(positions) < len(everywhere):
        blocks.append(
            Note(
                f"{len(positions)} of {len(everywhere)} moments are shown, evenly spaced; the others are in samples/layers."
            )
        )
    return Section(2, "Pictures", blocks)
