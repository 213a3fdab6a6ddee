"""The command that predicts the cost of a configuration."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtgen.cli.common import PREPARE_PANEL, ConfigFile, Json, Overrides, app, load_config, table, write_json
from mtgen.errors import ConfigError
from mtgen.preflight.gpu_specs import GPUS

if TYPE_CHECKING:
    from mtgen.config import Config
    from mtgen.preflight.cost import Cost
    from mtgen.preflight.roofline import Forecast
    from mtgen.schema import DatasetCard


def _card(settings: "Config", classes: int | None) -> "DatasetCard":
    """The card of the run's data set, or of one with `classes` classes."""
    from mtgen.data.mixture import open_samples
    from mtgen.schema import DatasetCard

    if classes is None:
        return open_samples(settings.data, "train").card
    names = [f"class {number}" for number in range(classes)]
    domains = [f"domain {number}" for number in range(max(2, len(settings.data.mixture)))]
    return DatasetCard(name="plan", classes=names, mask_classes=["background", *names], domains=domains, splits={})


@app.command(rich_help_panel=PREPARE_PANEL)
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="number of workers, each with one GPU")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help=f"GPU to predict memory, speed and days for: {', '.join(GPUS)}")
    ] = None,
    utilization: Annotated[
        float, typer.Option(min=0.01, max=1, help="assumed fraction of the GPU's peak throughput that is reached")
    ] = 0.25,
    classes: Annotated[
        int | None, typer.Option(min=1, help="number of classes, if the data set is not available locally")
    ] = None,
    json_file: Json = None,
) -> None:
    """Count a configuration's parameters, operations and memory.

    With a GPU's name, also predicts what fits, the speed, and the days of training. Ranges in parentheses are error
    bars: what pessimistic and optimistic assumptions give.

    Example: `mtgen plan configs/coco-256.yaml --classes 80 --workers 16 --gpu h100`
    """
    from mtgen.preflight.cost import cost
    from mtgen.preflight.roofline import forecast_bars

    if gpu is not None and gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu}: unknown GPU; possible: {', '.join(GPUS)}")
    settings = load_config(config, [*(overrides or []), f"workers={workers}", "device=auto"])
    if settings.precision == "auto":  # every GPU that is known here computes bfloat16 natively
        settings = settings.model_copy(update={"precision": "bf16"})
    found = cost(settings, _card(settings, classes))
    values: dict[str, Any] = {f"parameters, {part}": f"{number:,}" for part, number in found.parameters.items()}
    values |= {
        "parameters, all": f"{found.total:,}",
        "GFLOPs per image: one step": f"{found.step / 1e9:.2f}",
        "GFLOPs per image: generation": f"{found.sampling / 1e9:.2f}",
        "GFLOPs per image: prediction": f"{found.prediction / 1e9:.2f}",
        "kernels per micro-batch, both steps": f"{found.kernels:,}",
        "waits of the host for its GPU per micro-batch": str(found.waits),
        "MiB of activations per image (estimate)": f"{found.activations / 2**20:.1f}",
        **{
            f"MiB of state per worker, ZeRO-{stage}": f"{found.state_bytes(stage, workers) / 2**20:.0f}"
            for stage in (0, 1, 2)
        },
        "MiB that a worker sends per step": f"{found.traffic(workers) / 2**20:.1f}",
    }
    numbers: dict[str, Any] = {
        "parameters": found.parameters,
        "step": found.step,
        "drawing": found.sampling,
        "reading": found.prediction,
    }
    numbers |= {"kernels": found.kernels, "activations": found.activations, "traffic": found.traffic(workers)}
    numbers["state"] = [found.state_bytes(stage, workers) for stage in (0, 1, 2)]
    if gpu is not None:
        bars = forecast_bars(settings, found, GPUS[gpu], workers, utilization)
        worst, predicted, best = bars
        values |= _shown(bars, settings, found, f"{workers} x {gpu}", utilization)
        numbers |= {
            "predicted_images_per_second": predicted.images_per_second,
            "predicted_images_per_second_bars": [worst.images_per_second, best.images_per_second],
            "predicted_days": predicted.days(settings.train.images),
            "predicted_step_seconds": asdict(predicted.times),
        }
        numbers |= {"assumed_utilisation": utilization, "bound": predicted.times.bound, "fits": predicted.fits}
        numbers |= {"memory": predicted.memory, "most_rows": predicted.most_rows}
    table(str(config), values)
    write_json(json_file, numbers)


def _shown(bars: list["Forecast"], settings: "Config", cost: "Cost", where: str, utilization: float) -> dict[str, str]:
    """Rows of the table that hold the prediction, with error bars."""
    worst, found, best = bars
    most = found.most_rows * settings.max_workers * settings.train.accumulation
    fits = "fits" if found.fits else "DOES NOT FIT: raise train.accumulation or zero_stage, or lower batch_size"
    gib = f"{found.memory / 2**30:.1f} of {found.capacity / 2**30:.0f}"
    parts = [
        f"{name} {1e3 * seconds:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})"
        for (name, seconds), low, high in zip(
            asdict(found.times).items(), asdict(best.times).values(), asdict(worst.times).values(), strict=True
        )
    ]
    images = settings.train.images
    shown = {
        f"PREDICTION for {where} at {utilization:.0%} of peak: images/s": f"{found.images_per_second:,.0f} "
        f"({worst.images_per_second:,.0f} to {best.images_per_second:,.0f})",
        f"PREDICTION: days for {images:,} images": f"{found.days(images):.3g} "
        f"({best.days(images):.3g} to {worst.days(images):.3g})",
        "PREDICTION: GiB needed per GPU, of what it has": f"{gib}, {fits}",
        f"PREDICTION: largest batch_size that fits (now {settings.batch_size})": f"{most:,}"
        if most
        else "none: the state alone does not fit",
        "PREDICTION: ms per step, by part": ", ".join(parts),
        "PREDICTION: bottleneck": found.times.bound,
    }
    if every := settings.checkpoint.every:
        shown[f"PREDICTION: a checkpoint of {cost.checkpoint_bytes / 1e9:.2f} GB"] = (
            f"every {every / found.images_per_second:.3g} s; stops training for {found.checkpoint_stall:.2g} s "
            f"({best.checkpoint_stall:.2g} to {worst.checkpoint_stall:.2g})"
        )
    if every := settings.evaluate.every:
        shown["PREDICTION: an evaluation"] = (
            f"every {every / found.images_per_second:.3g} s; takes one GPU at least {found.evaluation:.2g} s "
            f"({best.evaluation:.2g} to {worst.evaluation:.2g})"
        )
    return shown
