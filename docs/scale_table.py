"""The table of docs/scale.md: what `mtgen plan` predicts for `configs/coco-256.yaml` on 1 to 1,024 H100s."""

from pathlib import Path

from mtgen.config import load
from mtgen.preflight.cost import Cost, cost
from mtgen.preflight.gpu_specs import GPUS
from mtgen.preflight.roofline import UTILIZATION, Forecast, forecast_bars
from mtgen.schema import DatasetCard

CONFIG = Path(__file__).parents[1] / "configs/coco-256.yaml"
CASES = [(16, 1), (16, 16), (16, 128), (16, 1024), (64, 1), (64, 16), (64, 1024), (2, 1024)]
"""Images per GPU, and GPUs."""
CLASSES = 80


def counted() -> Cost:
    """The cost of the configuration with COCO's classes."""
    names = [str(number) for number in range(CLASSES)]
    card = DatasetCard(name="plan", classes=names, mask_classes=["background", *names], domains=["0", "1"], splits={})
    return cost(load(CONFIG, ["workers=1", "device=auto"]).model_copy(update={"precision": "bf16"}), card)


def predicted(found: Cost, each: int, gpus: int) -> list[Forecast]:
    """The pessimistic, expected and optimistic forecast with `each` images per GPU."""
    config = load(CONFIG, [f"workers={gpus}", f"batch_size={each * gpus}", "device=auto"])
    return forecast_bars(config.model_copy(update={"precision": "bf16"}), found, GPUS["h100"], gpus, UTILIZATION)


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}"


def rows(found: Cost) -> list[str]:
    """The rows of the table, in Markdown."""
    lines = []
    for each, gpus in CASES:
        worst, expected, best = predicted(found, each, gpus)
        speed = [significant(bar.images_per_second) for bar in (expected, worst, best)]
        alone = predicted(found, each, 1)
        efficiency = [
            f"{many.images_per_second / gpus / one.images_per_second:.2f}"
            for many, one in zip((expected, worst, best), (alone[1], alone[0], alone[2]), strict=True)
        ]
        times = expected.times
        busy = f"{1e3 * times.arithmetic:.1f}, {1e3 * times.memory:.1f}, {1e3 * times.launches:.1f}"
        rest = (times.reduction, times.alignment, times.latency, times.stragglers)
        lines.append(
            f"| {each} | {gpus:,} | {each * gpus:,} | {speed[0]} ({speed[1]} to {speed[2]}) | "
            f"{efficiency[0]} ({efficiency[1]} to {efficiency[2]}) | {expected.memory / 2**30:.1f} | "
            f"{60e6 / expected.images_per_second / 3600:.3g} | {busy} | "
            f"{', '.join(f'{1e3 * seconds:.1f}' for seconds in rest)} |"
        )
    return lines


def facts(found: Cost) -> list[str]:
    """Other numbers of the page."""
    one = predicted(found, 16, 1)[1]
    large = predicted(found, 64, 1024)[1]
    pairs = 64 * 65_536
    return [
        f"{found.total / 1e6:.1f}M parameters, {found.step / 1e9:,.0f} GFLOPs per image and step, "
        f"{found.activations / 2**20:,.0f} MiB of activations per image, {found.kernels:,} kernels per micro-batch",
        f"{found.waits} waits of the host, {found.gates} gates, {found.contrasts} contrasts",
        f"{found.contrast_bytes * pairs / 2**30:.1f} GiB for the contrasts with 64 images per GPU on 1,024 GPUs; "
        f"{found.contrast_bytes * 65_536**2 / 2**30:,.0f} GiB for whole matrices",
        f"{one.most_rows} images fit one GPU; {large.most_rows} images each fit 1,024",
        f"{found.state_bytes(0, 1) / 2**20:,.0f} MiB of state without partitions",
        f"a checkpoint has {found.checkpoint_bytes / 1e9:.1f} GB and stops training for "
        f"{large.checkpoint_stall:.2f} s; an evaluation takes one GPU at least {large.evaluation:.1f} s; "
        f"either is due every {1e6 / large.images_per_second:.1f} s there",
    ]


def main() -> None:
    """Print the table and the other numbers."""
    found = counted()
    print("\n".join([*rows(found), "", *facts(found)]))


if __name__ == "__main__":
    main()
