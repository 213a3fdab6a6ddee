"""Use a trained model: draw pictures or whole data sets with it, and read image files."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mtgen.data.geometry import window
from mtgen.data.picture import FORMATS, resized, scaled
from mtgen.errors import ConfigError, DataError, UserError
from mtgen.evaluation.metric import Progress
from mtgen.pictures import enlarged_overlay, sample_grid, to_uint8
from mtgen.registry import suggest
from mtgen.runs import find_run, load_run
from mtgen.sampling import Model, balanced_labels, generate
from mtgen.schema import Canvas, DatasetCard, Prompt
from mtgen.shards.write import Sample, ShardWriter

TEST_SHARE = 0.1
"""Share of generated samples that go into the test split, which a run needs beside its training split."""
LARGEST_SHOWN = 1024
"""Pixels of an overlay picture's side; a larger image is shown reduced."""

Reading = TypedDict(
    "Reading",
    {"file": str, "class": str, "number": int, "probability": float, "mask": Image.Image, "overlay": Image.Image, "error": str},
    total=False,
)
"""What was read in one file: `class` (name), `number` and `probability` where the run reads classes, `mask` (`L`, class numbers)
and `overlay` (the mask in colours over the image) where it reads masks; or `error`, one line, where the file cannot be read."""


def parse_class(text: str, card: DatasetCard) -> int:
    """A class's number, given as its name, in any case, or as its number.

    Raises:
        ConfigError: there is no such class; the nearest name is suggested.
    """
    if not card.classes:
        raise ConfigError(f"class {text!r}: data set {card.name!r} names no classes; ask for samples without a class")
    names = {name.lower(): number for number, name in reversed(list(enumerate(card.classes)))}
    wanted = text.strip().lower()
    if wanted in names:
        return names[wanted]
    if wanted.isascii() and wanted.isdigit() and int(wanted) < len(card.classes):
        return int(wanted)
    last = len(card.classes) - 1
    raise ConfigError(f"class {text!r}: data set {card.name!r} has no such class; {suggest(wanted, card.classes)}, or 0 to {last}")


def sample_shards(
    model: Model,
    folder: str | Path,
    labels: Tensor,
    seed: int,
    *,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Draw one sample for each of `labels` and write image, mask and class as a data set that can be trained on.

    The last tenth, one sample at least, is the test split. Equal seeds write equal bytes.

    Args:
        labels: `[N]` class numbers, N at least 2; -1: no class.

    Raises:
        DataError: the folder is taken, or cannot be written.
    """
    if len(labels) < 2:
        raise ConfigError("a data set takes 2 samples at least, one to train on and one to test on; ask for more")
    card, training = model.card, min(len(labels) - 1, round(len(labels) * (1 - TEST_SHARE)))
    source = f"generated with seed {seed} by a model that was trained on {card.name!r}" + (f" ({card.source})" if card.source else "")
    writer = ShardWriter(
        folder, f"{card.name}-generated", card.classes, card.mask_classes, source=source, licence=card.licence, overwrite=overwrite
    )
    with writer:
        written = 0
        for canvas, rows in generate(model, Prompt.of_classes(labels), seed, "shards"):
            for sample in _samples(canvas, labels[rows], written):
                writer.write("train" if written < training else "test", sample)
                written += 1
            progress("draw samples", written, len(labels))
    return Path(folder)


def _samples(canvas: Canvas, labels: Tensor, first: int) -> Iterator[Sample]:
    """The samples of a canvas as they are stored, numbered from `first`."""
    pixels = to_uint8(canvas.image).permute(0, 2, 3, 1).numpy()
    masks = None if canvas.mask is None else canvas.mask.argmax(1).to("cpu", torch.uint8).numpy()
    for row, label in enumerate(labels.tolist()):
        image = pixels[row] if pixels.shape[3] == 3 else pixels[row, :, :, 0]
        known = label if label >= 0 else None
        yield Sample(f"{first + row:08d}", image, known, None if masks is None else masks[row], labels=None if known is None else [known])


def read_square(path: Path, channels: int) -> Image.Image:
    """An image file as it is meant to be seen (EXIF rotation), cut to the largest centred square, grey or RGB.

    Raises:
        DataError: it is not there, is damaged, or is no image; names it.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16"):  # Pillow clips 16 bits to 8, where DALI scales them
                picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
            picture = picture.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no PNG, JPEG or WebP file; convert it to one of these") from None
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise whatever damaged bytes lead them to
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as an image ({reason}); give a PNG, JPEG or WebP file that is whole") from None
    width, height = (np.array([side], dtype=np.int32) for side in picture.size)
    cut = window(width, height, 1.0, False, 0, np.zeros(1, dtype=np.int64))  # as in training
    (left, top), (wide, high) = cut.start[0].tolist(), cut.size[0].tolist()
    return picture.crop((left, top, left + wide, top + high))


def predict_files(model: Model, paths: Iterable[str | Path], batch_size: int = 32) -> Iterator[Reading]:
    """Read image files, in order; a file that cannot be read gives its error, and the others go on.

    Each is cut to its largest centred square and resized as in training. A mask has the size of that square.
    """
    waiting = [str(path) for path in paths]
    for start in range(0, len(waiting), batch_size):
        readings: list[Reading] = [{"file": path} for path in waiting[start : start + batch_size]]
        good: list[tuple[Reading, int, Image.Image]] = []
        inputs = []
        for reading in readings:
            try:
                square = read_square(Path(reading["file"]), model.channels)
            except DataError as error:
                reading["error"] = str(error)
                continue
            inputs.append(_as_input(square, model.size))
            shown = min(square.width, LARGEST_SHOWN)  # large photographs are not kept whole
            good.append((reading, square.width, square.resize((shown, shown), Image.Resampling.BILINEAR)))
        if good:
            _read(model, torch.stack(inputs), good)
        yield from readings


def _as_input(square: Image.Image, size: tuple[int, int]) -> Tensor:
    """`[C,R,R]` float32 in [-1, 1], resized as in training on a CPU; DALI on a GPU comes within a grey level or two of it."""
    pixels = torch.from_numpy(np.array(square)).reshape(square.height, square.width, -1)
    return scaled(pixels if square.size == (size[1], size[0]) else resized(pixels, *size))


def _read(model: Model, images: Tensor, good: Sequence[tuple[Reading, int, Image.Image]]) -> None:
    """Put what the model reads in the images into their readings."""
    with torch.no_grad():
        prediction = model.predict(images.to(model.device))
    if prediction.class_logits is not None:
        probability, number = prediction.class_logits.float().softmax(1).max(1)
        for row, (reading, _, _) in enumerate(good):
            reading["number"], reading["probability"] = int(number[row]), float(probability[row])
            reading["class"] = model.card.classes[reading["number"]]
    if prediction.mask_logits is not None:
        masks = prediction.mask_logits.argmax(1).to("cpu", torch.uint8).numpy()
        for mask, (reading, side, shown) in zip(masks, good, strict=True):
            small = Image.fromarray(mask)
            reading["mask"] = small.resize((side, side), Image.Resampling.NEAREST)
            there = np.asarray(small.resize(shown.size, Image.Resampling.NEAREST))
            reading["overlay"] = enlarged_overlay(shown, there, model.card.mask_classes)


def _save(picture: Image.Image, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another place or name") from None


def sample_run(run: Path, classes: list[str] | None, n: int, seed: int, out: Path | None, shards: Path | None, device: str) -> str:
    """Draw `n` samples of a run's newest checkpoint, as a grid or as shards; returns what was written, in words."""
    folder = find_run(run)
    model, images = load_run(folder, device)
    chosen = list(dict.fromkeys(parse_class(text, model.card) for text in classes or [])) or list(range(len(model.card.classes)))
    labels = balanced_labels(n, chosen)
    if shards is not None:
        sample_shards(model, shards, labels, seed)
        return f"wrote {n:,} samples as shards into {shards}; next: mtgen train CONFIG data.path={shards}"
    canvas = Canvas.cat([part for part, _ in generate(model, Prompt.of_classes(labels), seed, "sample")])
    path = out or folder / "samples" / f"{images:09d}-sample-{seed}.png"
    _save(sample_grid(canvas, labels, model.card), path)
    return f"wrote {n:,} samples to {path}"


def predict_run(run: Path, paths: Sequence[Path], out: Path | None, device: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Read files with a run's newest checkpoint and write masks and overlays as PNG.

    Returns:
        A row for each file that was read, in which `mask` and `overlay` are paths; and a line for each that was not.
    """
    folder = find_run(run)
    model, _ = load_run(folder, device)
    into, rows, problems = out or folder / "predictions", [], []
    taken: set[str] = set()
    for reading in predict_files(model, paths):
        if "error" in reading:
            problems.append(reading["error"])
            continue
        row: dict[str, Any] = dict(reading)
        name = _free(Path(reading["file"]).stem, taken)
        for kind in ("mask", "overlay"):
            if kind in row:
                path = into / f"{name}-{kind}.png"
                _save(row[kind], path)
                row[kind] = str(path)
        rows.append(row)
    return rows, problems


def _free(stem: str, taken: set[str]) -> str:
    """`stem`, numbered where another file has it already."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name
