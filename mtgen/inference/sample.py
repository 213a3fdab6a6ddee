"""Generate samples: as a grid, as a data set to train on, or as an interpolation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtgen.errors import ConfigError, summarize_lines
from mtgen.inference.box_overlay import MIN_BOX_SCORE, to_pixel_boxes
from mtgen.inference.predict import save_picture
from mtgen.inference.prompt import ParsedPrompt, PromptRequest, parse_request
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.models.sampling import generate
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Canvas, Condition, DatasetCard, Prompt
from mtgen.shards.write import Sample, ShardWriter
from mtgen.utils import counter_rng
from mtgen.utils.progress_callback import StageProgress
from mtgen.utils.shell import shell_command
from mtgen.visualization.grids import sample_grid, to_pixels, to_uint8

TEST_FRACTION = 0.1
"""Fraction of generated samples in the test split; training needs a train and a test split."""
MAX_GRID_SAMPLES = 10_000
"""Maximum number of samples in a grid, which is held in memory."""
MAX_INTERPOLATION_STEPS = 200
"""Maximum number of samples per interpolation, which are generated in one batch."""
MIN_STRIP_IMAGE_PIXELS = 64
"""Minimum side of an image in a strip; a smaller image is enlarged."""
MAX_UNUSED_SHOWN = 5
"""Classes without a training sample that a warning names."""
STRIP_GAP_PIXELS = 2
"""Margin around each image of a strip."""


def sample_shards(
    model: Model,
    location: str | Path,
    parsed: ParsedPrompt,
    n: int,
    seed: int,
    *,
    truncation: float = 1.0,
    min_score: float = MIN_BOX_SCORE,
    overwrite: bool = False,
    progress: StageProgress = lambda stage, done, total: None,
) -> str | Path:
    """Generate `n` samples, cycling through the rows of a prompt, and write them with their labels as a data set.

    A sample has image, mask, boxes, class and caption. The last tenth, at least one sample, is the test split.
    The same seed writes the same bytes. Returns `location`.

    Args:
        location: folder or URL of the data set; it must not exist, or be empty.
        n: at least 2.
        min_score: boxes with a lower score are discarded.

    Raises:
        ConfigError: `n` is too small for two splits.
        DataError: the location is not empty, or cannot be written.
    """
    if n < 2:
        raise ConfigError(f"n={n}: a data set needs at least 2 samples, one to train on and one to test on")
    card, training = model.card, min(n - 1, round(n * (1 - TEST_FRACTION)))
    source = f"generated with seed {seed} by a model that was trained on {card.name!r}" + (
        f" ({card.source})" if card.source else ""
    )
    writer = ShardWriter(
        location,
        f"{card.name}-generated",
        card.classes,
        card.mask_classes,
        source=source,
        licence=card.licence,
        overwrite=overwrite,
    )
    with writer:
        written = 0
        for canvas, position in generate(model, parsed.prompt, seed, "shards", n=n, truncation=truncation):
            for sample in _samples(canvas, parsed, position, min_score):
                writer.write("train" if written < training else "test", sample)
                written += 1
            progress("generate samples", written, n)
    return location


def _samples(canvas: Canvas, parsed: ParsedPrompt, position: Tensor, min_score: float) -> Iterator[Sample]:
    """Convert a canvas to samples for a shard, keyed by their position."""
    pixels = to_uint8(canvas.image).permute(0, 2, 3, 1).numpy()
    masks = None if canvas.mask is None else canvas.mask.argmax(1).to("cpu", torch.uint8).numpy()
    boxes = None if canvas.boxes is None else decode_canvas(canvas.boxes)
    height, width = pixels.shape[1:3]
    for row, number in enumerate(position.tolist()):
        classes = parsed.classes[number % len(parsed)]
        found = None if boxes is None else to_pixel_boxes(boxes[row], width, height, min_score)
        labels = {*classes, *(box.number for box in found or [])}
        yield Sample(
            f"{number:08d}",
            pixels[row] if pixels.shape[3] == 3 else pixels[row, :, :, 0],
            classes[0] if len(classes) == 1 else None,
            None if masks is None else masks[row],
            None if found is None else [[*box[:4], box.number] for box in found],
            sorted(labels) if labels or found is not None else None,
            parsed.captions[number % len(parsed)],
        )


def sample_run(
    run: Path,
    request: PromptRequest,
    n: int,
    seed: int,
    *,
    out: Path | None = None,
    shards: str | Path | None = None,
    truncation: float = 1.0,
    device: str = "auto",
    checkpoint: str | None = None,
    progress: StageProgress = lambda stage, done, total: None,
) -> str:
    """Generate `n` samples of a run as a grid or as shards.

    Args:
        out: file of the grid; default: in the run's folder.
        shards: folder or URL for a data set, which is written instead of a grid.
        truncation: factor of the latents, from 0 (the most probable sample, always the same) to 1 (full diversity).
        checkpoint: default: the newest.

    Returns:
        A sentence that says what was written.

    Raises:
        ConfigError: an argument is out of range, or as `parse_request`.
        DataError: as `parse_request` and `sample_shards`.
        CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    check_truncation(truncation)
    folder = find_run(run)
    model, images = load_run(folder, device, checkpoint)
    parsed = parse_request(model, request)
    if shards is not None:
        sample_shards(model, shards, parsed, n, seed, truncation=truncation, progress=progress)
        following = shell_command("mtgen train CONFIG", f"data.path={shards}")
        return f"wrote {n:,} samples as shards to {shards}; next: {following}{_unused(model.card, parsed)}"
    if n > MAX_GRID_SAMPLES:
        raise ConfigError(
            f"--num-images {n}: a grid holds at most {MAX_GRID_SAMPLES:,} samples; write more with --shards LOCATION"
        )
    parts = []
    for part, position in generate(model, parsed.prompt, seed, "sample", n=n, truncation=truncation):
        parts.append(part.map(lambda tensor: tensor.cpu()))
        progress("generate samples", int(position[-1]) + 1, n)
    path = out or folder / "samples" / f"{images:09d}-sample-{seed}.png"
    save_picture(_grid(model, Canvas.cat(parts), parsed), path)
    return f"wrote {n:,} samples to {path}{_unused(model.card, parsed)}"


def _unused(card: DatasetCard, parsed: ParsedPrompt) -> str:
    """A line on the classes of the request that no training sample has."""
    requested = {card.classes[number] for classes in parsed.classes for number in classes}
    unused = [name for name in card.unused_classes if name in requested]
    if not unused:
        return ""
    listed = ", ".join(summarize_lines(unused, MAX_UNUSED_SHOWN))
    return f"\nwarning: the training data has no sample of {listed}: the model has never seen what it generates for it"


def check_truncation(truncation: float) -> None:
    """Check that a truncation is between 0 and 1.

    Raises:
        ConfigError: it is not.
    """
    if not 0 <= truncation <= 1:
        raise ConfigError(
            f"--truncation {truncation:g}: is out of range; possible: 0 (the most probable sample, always the same) "
            "to 1 (full diversity)"
        )


def _grid(model: Model, canvas: Canvas, parsed: ParsedPrompt) -> Image.Image:
    """Samples in one column per class, or per combination if there are other conditions than classes."""
    rows, card = torch.arange(len(canvas.image)) % len(parsed), model.card
    if any(len(classes) != 1 for classes in parsed.classes) or set(parsed.prompt.values) - {"class"}:
        card = card.model_copy(update={"classes": parsed.names if any(parsed.names) else []})
        return sample_grid(canvas, rows, card)
    return sample_grid(canvas, parsed.labels[rows], card)


def interpolate_run(
    run: Path,
    request: PromptRequest,
    n: int,
    steps: int,
    seed: int,
    *,
    out: Path | None = None,
    truncation: float = 1.0,
    device: str = "auto",
    checkpoint: str | None = None,
) -> str:
    """Interpolate between samples: rows of `steps` images, `n` images in all.

    A request with two combinations interpolates between these conditions, with one latent per row; otherwise each row
    interpolates between two latents.

    Returns:
        A sentence that says what was written.

    Raises:
        ConfigError: an argument is out of range, the request has more than two combinations, or as `parse_request`.
        DataError: as `parse_request`.
        CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    check_truncation(truncation)
    if not 2 <= steps <= MAX_INTERPOLATION_STEPS:
        raise ConfigError(
            f"--interpolate {steps}: is out of range; possible: 2 to {MAX_INTERPOLATION_STEPS} images per row"
        )
    folder = find_run(run)
    model, images = load_run(folder, device, checkpoint)
    parsed = parse_request(model, request)
    typed = any((request.classes, request.texts, request.sounds, request.images, request.layouts, request.domains))
    if typed and len(parsed) > 2:
        raise ConfigError(
            f"--interpolate {steps}: the options give {len(parsed)} combinations of conditions; give one or two"
        )
    rows = min(max(1, n // steps), MAX_GRID_SAMPLES // steps)
    prompt = parsed.prompt if typed else _unconditional()
    pictures = []
    for row in range(rows):
        latents = counter_rng.normal(
            seed, "interpolate", torch.tensor([2 * row, 2 * row + 1]), (model.latent_size,), model.device
        )
        pictures.append(
            interpolate_samples(model, prompt, latents[: 3 - len(prompt)], steps, truncation).image.float().cpu()
        )
    path = out or folder / "samples" / f"{images:09d}-interpolation-{seed}.png"
    save_picture(image_strip(torch.cat(pictures), steps), path)
    ends = " to ".join(name or "nothing" for name in parsed.names) if len(prompt) == 2 else "one latent to another"
    return f"wrote {rows} rows of {steps} samples, from {ends}, to {path}"


def _unconditional() -> Prompt:
    return Prompt(1, {}, {})


@torch.no_grad()
def interpolate_samples(model: Model, ends: Prompt, latents: Tensor, steps: int, truncation: float = 1.0) -> Canvas:
    """Generate `steps` samples between two ends.

    Args:
        ends: conditions of the first and last sample; a single row is kept constant.
        latents: `[2,Z]` latents of the first and last sample; `[1,Z]` is kept constant.
    """
    fraction = torch.linspace(0, 1, steps, device=model.device)
    condition, latents = model.condition(ends), latents.to(model.device)
    first = torch.zeros(steps, dtype=torch.int64, device=model.device)
    condition = interpolate_conditions(condition, fraction) if len(ends) == 2 else condition.rows(first)
    latent = slerp(latents[0], latents[1], fraction) if len(latents) == 2 else latents[first]
    return model.networks.generator(latent * truncation, condition)


def slerp(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    """Spherical linear interpolation: latents `[Z]` and `[Z]`, fractions `[S]` in [0, 1] -> `[S,Z]`.

    Normal latents are close to a sphere, which linear interpolation would leave. Source: Shoemake 1985.
    """
    angle = torch.acos((first @ second / (first.norm() * second.norm())).clamp(-1, 1))
    fraction = fraction[:, None]
    if angle < 1e-4:
        return first + fraction * (second - first)
    return (torch.sin((1 - fraction) * angle) * first + torch.sin(fraction * angle) * second) / torch.sin(angle)


def interpolate_conditions(ends: Condition, fraction: Tensor) -> Condition:
    """Interpolate between the two rows of a condition at fractions `[S]` in [0, 1] -> S rows.

    A token that only one of them has is present in that one's half, since attention cannot see half a token.
    """

    def mix(x: Tensor) -> Tensor:
        part = fraction.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        return torch.lerp(x[:1], x[1:], part)

    condition = Condition(mix(ends.pooled), layout=None if ends.layout is None else mix(ends.layout))
    if ends.tokens is not None and ends.present is not None:
        nearer = (fraction >= 0.5).long()
        both = ends.present.all(0)[None, :, None]
        condition.tokens = torch.where(both, mix(ends.tokens), ends.tokens[nearer])
        condition.present = ends.present[nearer]
    return condition


def image_strip(images: Tensor, columns: int) -> Image.Image:
    """Arrange images `[R*columns,C,H,W]` in [-1, 1] in R rows of one picture; small images are enlarged."""
    pixels = to_pixels(images)
    scale = max(1, -(-MIN_STRIP_IMAGE_PIXELS // min(pixels.shape[1:3])))
    gap = (STRIP_GAP_PIXELS, STRIP_GAP_PIXELS)
    pixels = np.pad(
        pixels.repeat(scale, 1).repeat(scale, 2),
        ((0, 0), gap, gap, (0, 0)),
        constant_values=255,
    )
    rows = pixels.reshape(-1, columns, *pixels.shape[1:])
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0))
