"""Draw samples: as a picture, as a data set to train on, or as a way from one to another."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtgen.errors import ConfigError
from mtgen.inference.box_overlay import MIN_BOX_SCORE, in_pixels
from mtgen.inference.predict import save
from mtgen.inference.prompt import ParsedPrompt, PromptRequest, parse_request
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.models.sampling import generate
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Canvas, Condition, Prompt
from mtgen.shards.write import Sample, ShardWriter
from mtgen.utils import counter_rng
from mtgen.utils.progress_callback import StageProgress
from mtgen.utils.shell import shell_command
from mtgen.visualization.grids import sample_grid, to_pixels, to_uint8

TEST_FRACTION = 0.1
"""Share of generated samples that go into the test split, which a run needs beside its training split."""
MAX_GRID_SAMPLES = 10_000
"""Samples of a picture at most: it is held in memory."""
MAX_INTERPOLATION_STEPS = 200
"""Samples from one end to the other at most: they are drawn together."""
STRIP_GAP_PIXELS = 2
"""Pixels between the pictures of a strip."""


def sample_shards(
    model: Model,
    folder: str | Path,
    asked: ParsedPrompt,
    n: int,
    seed: int,
    *,
    truncation: float = 1.0,
    least: float = MIN_BOX_SCORE,
    overwrite: bool = False,
    progress: StageProgress = lambda stage, done, total: None,
) -> Path:
    """Draw `n` samples, what is asked for in turn, and write image, mask, boxes, class and caption as a data set to train on.

    The last tenth, one sample at least, is the test split. Equal seeds write equal bytes.

    Args:
        n: 2 at least.
        least: score from which a box that was drawn counts.

    Raises:
        ConfigError: one sample is no data set.
        DataError: the folder is taken, or cannot be written.
    """
    if n < 2:
        raise ConfigError("a data set takes 2 samples at least, one to train on and one to test on; ask for more")
    card, training = model.card, min(n - 1, round(n * (1 - TEST_FRACTION)))
    source = f"generated with seed {seed} by a model that was trained on {card.name!r}" + (
        f" ({card.source})" if card.source else ""
    )
    writer = ShardWriter(
        folder,
        f"{card.name}-generated",
        card.classes,
        card.mask_classes,
        source=source,
        licence=card.licence,
        overwrite=overwrite,
    )
    with writer:
        written = 0
        for canvas, position in generate(model, asked.prompt, seed, "shards", n=n, truncation=truncation):
            for sample in _samples(canvas, asked, position, least):
                writer.write("train" if written < training else "test", sample)
                written += 1
            progress("draw samples", written, n)
    return Path(folder)


def _samples(canvas: Canvas, asked: ParsedPrompt, position: Tensor, least: float) -> Iterator[Sample]:
    """The samples of a canvas as they are stored, keyed by their position."""
    pixels = to_uint8(canvas.image).permute(0, 2, 3, 1).numpy()
    masks = None if canvas.mask is None else canvas.mask.argmax(1).to("cpu", torch.uint8).numpy()
    boxes = None if canvas.boxes is None else decode_canvas(canvas.boxes)
    height, width = pixels.shape[1:3]
    for row, number in enumerate(position.tolist()):
        classes = asked.classes[number % len(asked)]
        found = None if boxes is None else in_pixels(boxes[row], width, height, least)
        labels = {*classes, *(box.number for box in found or [])}
        yield Sample(
            f"{number:08d}",
            pixels[row] if pixels.shape[3] == 3 else pixels[row, :, :, 0],
            classes[0] if len(classes) == 1 else None,
            None if masks is None else masks[row],
            None if found is None else [[*box[:4], box.number] for box in found],
            sorted(labels) if labels or found is not None else None,
            asked.captions[number % len(asked)],
        )


def sample_run(
    run: Path,
    request: PromptRequest,
    n: int,
    seed: int,
    *,
    out: Path | None = None,
    shards: Path | None = None,
    truncation: float = 1.0,
    device: str = "auto",
    checkpoint: str | None = None,
    progress: StageProgress = lambda stage, done, total: None,
) -> str:
    """Draw `n` samples of a run's checkpoint (default: the newest) as a grid or as shards; returns what was written, in words.

    Args:
        truncation: factor of the latents: 0 draws what is likeliest, the same every time, and 1 everything that the run can.
    """
    check_truncation(truncation)
    folder = find_run(run)
    model, images = load_run(folder, device, checkpoint)
    asked = parse_request(model, request)
    if shards is not None:
        sample_shards(model, shards, asked, n, seed, truncation=truncation, progress=progress)
        return f"wrote {n:,} samples as shards into {shards}; next: {shell_command('mtgen train CONFIG', f'data.path={shards}')}"
    if n > MAX_GRID_SAMPLES:
        raise ConfigError(
            f"--num-images {n}: a picture takes {MAX_GRID_SAMPLES:,} samples at most; write more with --shards FOLDER"
        )
    parts = []
    for part, position in generate(model, asked.prompt, seed, "sample", n=n, truncation=truncation):
        parts.append(part.map(lambda tensor: tensor.cpu()))
        progress("draw samples", int(position[-1]) + 1, n)
    path = out or folder / "samples" / f"{images:09d}-sample-{seed}.png"
    save(_grid(model, Canvas.cat(parts), asked), path)
    return f"wrote {n:,} samples to {path}"


def check_truncation(truncation: float) -> None:
    """Raises:
    ConfigError: it is not between 0 and 1.
    """
    if not 0 <= truncation <= 1:
        raise ConfigError(
            f"--truncation {truncation:g}: possible: 0 (the likeliest sample, always the same) to 1 (everything)"
        )


def _grid(model: Model, canvas: Canvas, asked: ParsedPrompt) -> Image.Image:
    """Samples in columns, a class each; or, where more than classes is asked for, a combination each."""
    rows, card = torch.arange(len(canvas.image)) % len(asked), model.card
    if any(len(classes) != 1 for classes in asked.classes) or set(asked.prompt.values) - {"class"}:
        card = card.model_copy(update={"classes": asked.names if any(asked.names) else []})
        return sample_grid(canvas, rows, card)
    return sample_grid(canvas, asked.labels[rows], card)


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
    """Draw rows of `steps` samples that lead from one to another, `n` in all; returns what was written, in words.

    Each row leads between two latents; where two conditions are asked for, from the one to the other, with the row's latent held.
    """
    check_truncation(truncation)
    if not 2 <= steps <= MAX_INTERPOLATION_STEPS:
        raise ConfigError(f"--interpolate {steps}: possible: 2 to {MAX_INTERPOLATION_STEPS} images a row")
    folder = find_run(run)
    model, images = load_run(folder, device, checkpoint)
    asked = parse_request(model, request)
    typed = any((request.classes, request.texts, request.sounds, request.images, request.layouts, request.domains))
    if typed and len(asked) > 2:
        raise ConfigError(
            f"--interpolate leads from one condition to another, and {len(asked)} are asked for; give one or two"
        )
    rows = min(max(1, n // steps), MAX_GRID_SAMPLES // steps)
    prompt = asked.prompt if typed else _nothing()
    pictures = []
    for row in range(rows):
        latents = counter_rng.normal(
            seed, "interpolate", torch.tensor([2 * row, 2 * row + 1]), (model.latent_size,), model.device
        )
        pictures.append(
            interpolate_samples(model, prompt, latents[: 3 - len(prompt)], steps, truncation).image.float().cpu()
        )
    path = out or folder / "samples" / f"{images:09d}-interpolation-{seed}.png"
    save(image_strip(torch.cat(pictures), steps), path)
    ends = " to ".join(name or "nothing" for name in asked.names) if len(prompt) == 2 else "one latent to another"
    return f"wrote {rows} rows of {steps} samples, from {ends}, to {path}"


def _nothing() -> Prompt:
    return Prompt(1, {}, {})


@torch.no_grad()
def interpolate_samples(model: Model, ends: Prompt, latents: Tensor, steps: int, truncation: float = 1.0) -> Canvas:
    """Samples that lead from one to another.

    Args:
        ends: the conditions of the first and the last sample; one row: it is held.
        latents: `[2,Z]` theirs; `[1,Z]`: it is held.
    """
    share = torch.linspace(0, 1, steps, device=model.device)
    condition, latents = model.condition(ends), latents.to(model.device)
    held = torch.zeros(steps, dtype=torch.int64, device=model.device)
    condition = interpolate_conditions(condition, share) if len(ends) == 2 else condition.rows(held)
    latent = slerp(latents[0], latents[1], share) if len(latents) == 2 else latents[held]
    return model.networks.generator(latent * truncation, condition)


def slerp(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """`[Z]`, `[Z]` and `[S]` shares, 0 to 1 -> `[S,Z]` on the great circle between them, where normal latents lie (Shoemake 1985)."""
    angle = torch.acos((first @ second / (first.norm() * second.norm())).clamp(-1, 1))
    share = share[:, None]
    if angle < 1e-4:
        return first + share * (second - first)
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def interpolate_conditions(ends: Condition, share: Tensor) -> Condition:
    """A condition of two rows and `[S]` shares, 0 to 1 -> S rows that lead from the one to the other.

    A token that only one of them has is there in its half of the way: attention knows no token that is half there.
    """

    def mixed(x: Tensor) -> Tensor:
        part = share.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        return torch.lerp(x[:1], x[1:], part)

    condition = Condition(mixed(ends.pooled), layout=None if ends.layout is None else mixed(ends.layout))
    if ends.tokens is not None and ends.present is not None:
        nearer = (share >= 0.5).long()
        both = ends.present.all(0)[None, :, None]
        condition.tokens = torch.where(both, mixed(ends.tokens), ends.tokens[nearer])
        condition.present = ends.present[nearer]
    return condition


def image_strip(images: Tensor, columns: int) -> Image.Image:
    """Images `[R*columns,C,H,W]` in [-1, 1] -> one picture of R rows, enlarged where they are small."""
    pixels = to_pixels(images)
    scale = max(1, -(-64 // min(pixels.shape[1:3])))
    pixels = np.pad(
        pixels.repeat(scale, 1).repeat(scale, 2),
        ((0, 0), (STRIP_GAP_PIXELS, STRIP_GAP_PIXELS), (STRIP_GAP_PIXELS, STRIP_GAP_PIXELS), (0, 0)),
        constant_values=255,
    )
    rows = pixels.reshape(-1, columns, *pixels.shape[1:])
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0))
