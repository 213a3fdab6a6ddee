"""The command that says what a configuration costs before it runs."""

from typing import Annotated, Any

import typer

from mtgen.cli.common import PREPARE, ConfigFile, Json, Overrides, app, load_config, table, write_json
from mtgen.errors import ConfigError

PEAK = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12}
"""Dense bf16 operations a second that NVIDIA's data sheets name (h100, h200: SXM)."""


@app.command(rich_help_panel=PREPARE)
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="workers, a GPU each")] = 1,
    gpu: Annotated[str | None, typer.Option(help=f"predict the speed on: {', '.join(PEAK)}")] = None,
    utilisation: Annotated[float, typer.Option(min=0.01, max=1, help="share of the GPU's peak that is reached; an assumption")] = 0.25,
    json_file: Json = None,
) -> None:
    """What a configuration costs: parameters, operations and memory.

    With a GPU's name, a prediction of speed and days too.

    Example: `mtgen plan configs/digits-32.yaml --gpus 8 --gpu h100`
    """
    from mtgen.cost import cost
    from mtgen.data.mixture import open_samples

    if gpu is not None and gpu not in PEAK:
        raise ConfigError(f"--gpu {gpu}: no peak is known for it; possible: {', '.join(PEAK)}")
    settings = load_config(config, overrides)
    found = cost(settings, open_samples(settings.data, "train").card)
    values: dict[str, Any] = {f"parameters, {part}": f"{number:,}" for part, number in found.parameters.items()}
    values |= {
        "parameters, all": f"{found.total:,}",
        "GFLOPs an image: a step": f"{found.step / 1e9:.2f}",
        "GFLOPs an image: drawing": f"{found.drawing / 1e9:.2f}",
        "GFLOPs an image: reading": f"{found.reading / 1e9:.2f}",
        "MiB of activations an image (estimate)": f"{found.activations / 2**20:.1f}",
        **{f"MiB of state a worker, ZeRO-{stage}": f"{found.state_bytes(stage, gpus) / 2**20:.0f}" for stage in (0, 1, 2)},
        "MiB that a worker sends in a step": f"{found.traffic(gpus) / 2**20:.1f}",
    }
    numbers = {"parameters": found.parameters, "step": found.step, "drawing": found.drawing, "reading": found.reading}
    numbers |= {"activations": found.activations, "state": [found.state_bytes(s, gpus) for s in (0, 1, 2)], "traffic": found.traffic(gpus)}
    if gpu is not None:
        speed = gpus * PEAK[gpu] * utilisation / found.step
        days = settings.train.images / speed / 86400
        values[f"PREDICTION for {gpus} x {gpu} at {utilisation:.0%} of the peak: images/s"] = f"{speed:,.0f}"
        values[f"PREDICTION: days for {settings.train.images:,} images"] = f"{days:.3g}"
        numbers |= {"predicted_images_per_second": speed, "predicted_days": days, "assumed_utilisation": utilisation}
    table(str(config), values)
    write_json(json_file, numbers)
