"""Read images: class, tags, mask and boxes of each, as numbers, as pictures, or as a data set."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mtgen.data.image_io import header
from mtgen.errors import DataError, UserError, printable
from mtgen.inference.box_overlay import MIN_BOX_SCORE, PixelBox, in_pixels, with_boxes
from mtgen.inference.inputs import CroppedImage, InputImage, Inputs, batches, overlay_base
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.schema import DatasetCard
from mtgen.shards.write import Sample, ShardWriter
from mtgen.utils.progress_callback import StageProgress
from mtgen.visualization.grids import enlarged_overlay

PREDICT_BATCH_SIZE = 32
TOP_CLASSES = 5
MIN_TAG_PROBABILITY = 0.5
"""Probability from which a class counts as being in the image."""
TEST_SPLIT_EVERY = 10
"""Of so many files one goes into the test split, which a run needs beside its training split."""


@dataclass
class ImagePrediction:
    """What was read in one image.

    Attributes:
        source: which image.
        error: one line, where it cannot be read; everything else is empty then.
        cut: what the run saw of it; boxes and mask belong to that part.
        number, probability: its class, where the run reads classes.
        likely: numbers and probabilities of its five likeliest classes, the likeliest first, where the run reads classes.
        tags: numbers and probabilities of the classes that are in it, where the run tags; the surest first.
        boxes: in pixels of the whole image, where the run detects.
        mask: `[h,w]` uint8 mask classes at the run's resolution, where the run segments.
    """

    source: InputImage
    error: str | None = None
    cut: CroppedImage | None = None
    number: int | None = None
    probability: float = 0.0
    likely: list[tuple[int, float]] = field(default_factory=list)
    tags: list[tuple[int, float]] | None = None
    boxes: list[PixelBox] | None = None
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)

    def row(self, card: DatasetCard) -> dict[str, Any]:
        """The reading as JSON: names, numbers and pixels. `seen` is the part of the image that the run saw, as x0, y0, x1, y1."""
        row: dict[str, Any] = {"file": self.source.name}
        if self.cut is None:
            return row | {"error": self.error}
        (width, height), left, top = self.cut.picture.size, self.cut.left, self.cut.top
        row |= {
            "width": self.cut.whole[0],
            "height": self.cut.whole[1],
            "seen": [left, top, left + width, top + height],
        }
        if self.number is not None:
            row |= {"class": card.classes[self.number], "number": self.number, "probability": self.probability}
        if self.tags is not None:
            row["tags"] = [{"class": card.classes[n], "number": n, "probability": p} for n, p in self.tags]
        if self.boxes is not None:
            row["boxes"] = [box.row(card.classes) for box in self.boxes]
        return row

    def mask_picture(self) -> Image.Image | None:
        """The mask at the size of the part that was seen, `L` with class numbers."""
        if self.mask is None or self.cut is None:
            return None
        return Image.fromarray(self.mask).resize(self.cut.picture.size, Image.Resampling.NEAREST)

    def overlay(self, card: DatasetCard) -> Image.Image | None:
        """The part that was seen, under its mask and boxes; `None` where the run reads neither."""
        if self.cut is None or (self.mask is None and self.boxes is None):
            return None
        picture = overlay_base(self.cut)
        mask = np.zeros(picture.size[::-1], np.uint8)
        if self.mask is not None:
            mask = np.asarray(Image.fromarray(self.mask).resize(picture.size, Image.Resampling.NEAREST))
        names = card.mask_classes if self.mask is not None else ["background"]
        drawn = enlarged_overlay(picture, mask, names)
        if not self.boxes:
            return drawn
        x, y = drawn.width / self.cut.picture.width, drawn.height / self.cut.picture.height
        left, top = self.cut.left, self.cut.top
        moved = [
            b._replace(x0=(b.x0 - left) * x, y0=(b.y0 - top) * y, x1=(b.x1 - left) * x, y1=(b.y1 - top) * y)
            for b in self.boxes
        ]
        return with_boxes(drawn, moved, card.classes)

    def sample(self, key: str) -> Sample:
        """The image with everything that was read in it, as it is stored. What was cut off is left out: nothing is known of it."""
        assert self.cut is not None
        left, top, labels = self.cut.left, self.cut.top, set()
        boxes = None
        if self.boxes is not None:
            boxes = [[*b.moved(-left, -top)[:4], b.number] for b in self.boxes]
            labels |= {b.number for b in self.boxes}
        labels |= {number for number, _ in self.tags or []} | ({self.number} if self.number is not None else set())
        mask = self.mask_picture()
        return Sample(
            key,
            self.cut.data if self.cut.is_whole else _encoded(self.cut),
            self.number,
            None if mask is None else np.asarray(mask),
            boxes,
            sorted(labels) if boxes is not None or self.tags is not None or self.number is not None else None,
        )


def _encoded(cut: CroppedImage) -> bytes:
    """What was seen of an image as a file of its own: PNG, or JPEG where the image was one."""
    out = io.BytesIO()
    if header(cut.data)[0] == "jpeg":
        cut.picture.save(out, "JPEG", quality=95)
    else:
        cut.picture.save(out, "PNG")
    return out.getvalue()


def predict_images(
    model: Model, sources: Iterable[InputImage], least: float = MIN_BOX_SCORE, batch_size: int = PREDICT_BATCH_SIZE
) -> Iterator[ImagePrediction]:
    """Read images, in order and a batch at a time; one that cannot be read gives its error, and the others go on.

    Args:
        least: score from which a box counts.
    """
    for found, images in batches(iter(sources), model.channels, model.size, batch_size):
        some = [
            ImagePrediction(s, error=str(c)) if isinstance(c, DataError) else ImagePrediction(s, cut=c)
            for s, c in found
        ]
        if len(images):
            _read(model, images, [reading for reading in some if reading.cut is not None], least)
        yield from some


def _read(model: Model, images: torch.Tensor, good: Sequence[ImagePrediction], least: float) -> None:
    """Put what the model reads in the images into their readings."""
    prediction = model.predict(images)
    for row, reading in enumerate(good):
        if prediction.class_logits is not None:
            share, order = prediction.class_logits[row].float().softmax(0).sort(descending=True)
            reading.likely = list(zip(order[:TOP_CLASSES].tolist(), share[:TOP_CLASSES].tolist(), strict=True))
            reading.number, reading.probability = reading.likely[0]
        if prediction.label_logits is not None:
            share, order = prediction.label_logits[row].float().sigmoid().sort(descending=True)
            reading.tags = [
                (n, p) for n, p in zip(order.tolist(), share.tolist(), strict=True) if p >= MIN_TAG_PROBABILITY
            ]
        if prediction.mask_logits is not None:
            reading.mask = prediction.mask_logits[row].argmax(0).to("cpu", torch.uint8).numpy()
        if prediction.boxes is not None and reading.cut is not None:
            cut = reading.cut
            reading.boxes = in_pixels(prediction.boxes[row], *cut.picture.size, least, cut.left, cut.top)


@dataclass
class PredictionSummary:
    """What became of the images: how many were read, how many could not be, and where the results are."""

    read: int
    damaged: int
    out: Path


def predict_run(
    run: Path,
    paths: Sequence[str | Path],
    out: Path | None = None,
    device: str = "auto",
    *,
    checkpoint: str | None = None,
    shards: Path | None = None,
    least: float = MIN_BOX_SCORE,
    seen: Callable[[dict[str, Any]], None] = lambda row: None,
    problem: Callable[[str], None] = lambda text: None,
    progress: StageProgress = lambda stage, done, total: None,
) -> PredictionSummary:
    """Read images with a run's checkpoint (default: the newest); masks and overlays are written as PNG, or everything as a data set.

    Args:
        paths: image files, folders of them, data sets.
        out: folder for the pictures; default: in the run's folder.
        shards: folder for a data set of the images and what was read in them, instead of pictures.
        seen: is given a row for each image that was read, in which `mask` and `overlay` are paths.
        problem: is given a line for each that was not.
    """
    folder = find_run(run)
    into = shards or out or folder / "predictions"
    inputs = Inputs(paths, into)
    model, _ = load_run(folder, device, checkpoint)
    summary, total = PredictionSummary(0, 0, into), len(inputs)
    with contextlib.ExitStack() as stack:
        writer = None if shards is None else stack.enter_context(_writer(model.card, into))
        for reading in predict_images(model, inputs, least):
            if reading.error is not None:
                summary.damaged += 1
                problem(reading.error)
            else:
                split = reading.source.split or ("test" if summary.read % TEST_SPLIT_EVERY == 1 else "train")
                summary.read += 1
                if writer is not None:
                    writer.write(split, reading.sample(f"{summary.read - 1:08d}"))
                    seen(reading.row(model.card))
                else:
                    seen(reading.row(model.card) | _pictures(reading, model.card, into))
            progress("read images", summary.read + summary.damaged, total)
        if writer is not None and summary.read < 2:
            raise DataError(
                f"{summary.read} images could be read; a data set takes 2 at least, one to train on and one to test on"
            )
    return summary


def _writer(card: DatasetCard, folder: Path) -> ShardWriter:
    source = f"labels as read by a model that was trained on {card.name!r}"
    return ShardWriter(folder, f"{folder.name}-read", card.classes, card.mask_classes, source=source)


def _pictures(reading: ImagePrediction, card: DatasetCard, into: Path) -> dict[str, str]:
    """Mask and overlay as files -> their paths."""
    paths = {}
    for kind, picture in (("mask", reading.mask_picture()), ("overlay", reading.overlay(card))):
        if picture is not None:
            place = into / reading.source.place
            path = place.with_name(f"{place.name}-{kind}.png")
            save(picture, path)
            paths[kind] = str(path)
    return paths


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture, and the folders that it lies in.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another place or name"
        ) from None


@contextlib.contextmanager
def json_rows(path: Path | None, lines: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A file, or standard output (`-`), that rows are written to as they come: a line each, or as one JSON list.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield lambda row: None
        return
    try:
        with contextlib.nullcontext(sys.stdout) if str(path) == "-" else path.open("a", encoding="utf-8") as file:
            written = 0

            def write(row: dict[str, Any]) -> None:
                nonlocal written
                if not written:
                    empty()
                text = printable(json.dumps(row, ensure_ascii=False))
                file.write(f"{text}\n" if lines else f"{',' if written else '['}\n {text}")
                written += 1

            def empty() -> None:
                if (
                    file is not sys.stdout and path.is_file()
                ):  # and only now: a mistyped run must not empty the results of another
                    file.truncate(0)

            yield write
            if not written:
                empty()
            if not lines:
                file.write("\n]\n" if written else "[]\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
