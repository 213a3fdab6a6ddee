"""The sections of a page that shows several runs side by side."""

from collections.abc import Sequence

from mtgen.evaluation.metric import better
from mtgen.report.blocks import Block, Curves, Note, Pictures, ReportSection, Table
from mtgen.report.curves import charts
from mtgen.report.image_timeline import grid_files, in_page_order, select_positions, track
from mtgen.report.run_record import RunRecord, flat
from mtgen.tracking.progress_bar import format_duration

METRIC_GROUPS = ("val", "test", "generated", "evaluation")
"""Groups of numbers in the journal that are metrics."""


def comparison(records: Sequence[RunRecord]) -> list[ReportSection]:
    """Facts, pictures, metrics, curves, and the differences of the configurations."""
    labels = distinct_labels(records)
    return [
        ReportSection(0, "Runs", [_facts(records, labels)]),
        ReportSection(1, "Pictures at equal positions", _pictures(records, labels)),
        ReportSection(2, "Metrics", [metrics(records, labels)]),
        ReportSection(
            3, "Curves", [Curves(charts({label: record.series for label, record in zip(labels, records, strict=True)}))]
        ),
        ReportSection(4, "Configuration", differences(records, labels)),
    ]


def distinct_labels(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; with their folders where names are equal, and numbered where folders are equal, too."""
    names = [record.name for record in records]
    names = [
        name if names.count(name) == 1 else f"{name} ({record.folder})"
        for name, record in zip(names, records, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} #{number + 1}" for number, name in enumerate(names)]


def _facts(records: Sequence[RunRecord], labels: list[str]) -> Table:
    rows = {
        "status": [record.status for record in records],
        "images": [f"{record.images:,}" for record in records],
        "time": [format_duration(record.seconds) for record in records],
        "device hours": [f"{record.device_hours:.2f}" for record in records],
        "data": [record.tags.get("dataset.name", "") for record in records],
        "version": [record.tags.get("mtgen.version", "") for record in records],
    }
    return Table(["", *labels], [[name, *values] for name, values in rows.items()])


def _pictures(records: Sequence[RunRecord], labels: list[str]) -> list[Block]:
    found = [grid_files(record) for record in records]
    kinds = dict.fromkeys(name for run in found for name in run)
    names = [name for name in in_page_order(kinds) if not name.startswith("batch-")]
    if not names:
        return [Note("None of the runs has pictures.")]
    positions = select_positions(found, names)
    blocks: list[Block] = []
    for name in names:
        tracks = [track(label, run[name], positions) for label, run in zip(labels, found, strict=True) if name in run]
        tracks = [part for part in tracks if part["frames"]]
        if tracks:
            blocks.append(Pictures(tracks[0]["frames"][0]["title"], {"tracks": tracks}))
    return blocks


def metrics(records: Sequence[RunRecord], labels: list[str]) -> Table:
    """The last value of every metric; the best of a row is marked where the runs differ and one direction is better."""
    names = dict.fromkeys(
        name for record in records for name in record.series if name.partition("/")[0] in METRIC_GROUPS
    )
    rows, best = [], set()
    for number, name in enumerate(sorted(names)):
        values = [record.last(name) for record in records]
        known = [value for value in values if value is not None]
        rows.append([name, *("-" if value is None else f"{value:.4g}" for value in values)])
        direction = better(name)
        if direction and len(known) > 1 and min(known) != max(known):
            top = max(known) if direction == "higher" else min(known)
            best |= {(number, column + 1) for column, value in enumerate(values) if value == top}
    caption = "Last value of each metric. The best is marked where higher or lower is better."
    return Table(["metric", *labels], rows, caption, best)


def differences(records: Sequence[RunRecord], labels: list[str]) -> list[Block]:
    """One row per key whose values differ."""
    flats = [flat(record.config) for record in records]
    keys = [key for key in dict.fromkeys(key for one in flats for key in one) if key not in ("name", "runs")]
    rows = [[key, *(one.get(key, "-") for one in flats)] for key in keys if len({one.get(key) for one in flats}) > 1]
    return [Table(["key", *labels], rows)] if rows else [Note("The configurations are identical.")]
