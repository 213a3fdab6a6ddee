"""Speed and cost of the training."""

from statistics import median

from mtgen.report.blocks import SECTIONS, Fact, Facts, ReportSection, Table
from mtgen.report.run_record import RunRecord
from mtgen.tracking.progress_bar import format_duration

MAX_SLOW_WORKERS = 10
"""Workers in the table of slow ones."""


@SECTIONS.register("cost")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Throughput, time spent waiting for data, device hours, slow workers."""
    device = "GPU" if any(name.startswith("system/gpu_") for name in record.series) else "CPU worker"
    hours = record.device_hours
    workers = sorted({session.workers for session in record.sessions})
    facts = [Fact("device hours", f"{hours:.2f}", f"{' or '.join(map(str, workers))} × {device}")]
    if record.images:
        facts.append(Fact("device hours per million images", f"{1e6 * hours / record.images:.1f}"))
    if speeds := [value for _, value in record.series.get("speed/images_per_second", [])]:
        facts.append(
            Fact("throughput", f"{median(speeds):,.1f} images/s", f"median; {min(speeds):,.1f} to {max(speeds):,.1f}")
        )
    if waits := [value for _, value in record.series.get("speed/data_wait_share", [])]:
        facts.append(Fact("waiting for data", f"{100 * sum(waits) / len(waits):.2f} %", "mean fraction of the time"))
    facts.append(
        Fact(
            "wall time",
            format_duration(record.seconds),
            f"in {len(record.sessions)} session{'s' if len(record.sessions) > 1 else ''}",
        )
    )
    slowest = _slowest(record)
    return ReportSection(7, "Speed and cost", [Facts(facts), *([slowest] if slowest else [])])


def _slowest(record: RunRecord) -> Table | None:
    """The workers with the slowest forward passes, for which all others wait."""
    names = [f"workers/forward_ms_{name}" for name in ("slowest", "max", "mean")]
    rows = [tuple(row.values[name] for name in names) for row in record.rows if set(names) <= row.values.keys()]
    found: dict[int, list[float]] = {}
    for worker, longest, mean in rows:
        found.setdefault(int(worker), []).append(longest / max(mean, 1e-9))
    if not found:
        return None
    hosts = (record.starts[-1].start or {}).get("hosts", [])
    shown = sorted(found.items(), key=lambda item: -len(item[1]))[:MAX_SLOW_WORKERS]
    return Table(
        ["worker", "node", "rows in which it was the slowest", "its forward pass, relative to the mean"],
        [
            [
                str(worker),
                hosts[worker] if worker < len(hosts) else "",
                f"{len(ratios):,} of {len(rows):,}",
                f"{median(ratios):.2f}",
            ]
            for worker, ratios in shown
        ],
        "Slow workers: all others wait for the slowest one in every step. Nodes are those of the last start.",
    )
