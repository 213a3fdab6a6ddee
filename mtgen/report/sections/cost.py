"""Speed and cost of the training."""

from statistics import median

from mtgen.report.blocks import SECTIONS, Fact, Facts, ReportSection
from mtgen.report.run_record import RunRecord
from mtgen.tracking.progress_bar import format_duration


@SECTIONS.register("cost")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Throughput, time spent waiting for data, device hours."""
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
    return ReportSection(7, "Speed and cost", [Facts(facts)])
