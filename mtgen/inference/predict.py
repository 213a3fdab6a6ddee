"""Predict the labels of images (class, tags, mask, boxes) as numbers, as pictures or as a data set."""

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
from mtgen.inference.box_overlay import MIN_BOX_SCORE, PixelBox, draw_boxes, to_pixel_boxes
from mtgen.inference.inputs import CroppedImage, InputImage, Inputs, load_batches, shrink_for_overlay
from mtgen.models.loading import find_run, load_run
from mtgen.models.model import Model
from mtgen.schema import DatasetCard
from mtgen.shards.write import Sample, ShardWriter
from mtgen.utils.progress_callback import StageProgress
from mtgen.visualization.grids import enlarged_overlay

PREDICT_BATCH_SIZE = 32
TOP_CLASSES = 5
"""Number of most probable classes that are kept for each image."""
MIN_TAG_PROBABILITY = 0.5
"""Minimum probability of a tag."""
TEST_SPLIT_EVERY = 10
"""Every n-th file goes into the test split; training needs a train and a test split."""


@dataclass
class ImagePrediction:
    """Predictions for one image; those of tasks that the run was not trained on are empty.

    Attributes:
        source: the image.
        error: one line if the image cannot be read; everything else is empty then.
        crop: the part of the image that the run saw, to which mask and boxes belong.
        number, probability: the predicted class.
        top_classes: numbers and probabilities of the `TOP_CLASSES` most probable classes, in descending order.
        tags: numbers and probabilities of the classes that are in the image, in descending order.
        boxes: in pixels of the whole image.
        mask: `[h,w]` uint8 mask classes at the run's resolution.
    """

    source: InputImage
    error: str | None = None
    crop: CroppedImage | None = None
    number: int | None = None
    probability: float = 0.0
    top_classes: list[tuple[int, float]] = field(default_factory=list)
    tags: list[tuple[int, float]] | None = None
    boxes: list[PixelBox] | None = None
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)

    def row(self, card: DatasetCard) -> dict[str, Any]:
        """The prediction as a JSON object; `seen` is the part that the run saw: x0, y0, x1, y1 in pixels."""
        row: dict[str, Any] = {"file": self.source.name}
        if self.crop is None:
            return row | {"error": self.error}
        (width, height), left, top = self.crop.picture.size, self.crop.left, self.crop.top
        row |= {
            "width": self.crop.whole[0],
            "height": self.crop.whole[1],
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
        """The mask at the size of the crop, mode `L` with class numbers."""
        if self.mask is None or self.crop is None:
            return None
        return Image.fromarray(self.mask).resize(self.crop.picture.size, Image.Resampling.NEAREST)

    def overlay(self, card: DatasetCard) -> Image.Image | None:
        """The crop with its mask and boxes drawn over it; `None` if the run predicts neither."""
        if self.crop is None or (self.mask is None and self.boxes is None):
            return None
        picture = shrink_for_overlay(self.crop)
        mask = np.zeros(picture.size[::-1], np.uint8)
        if self.mask is not None:
            mask = np.asarray(Image.fromarray(self.mask).resize(picture.size, Image.Resampling.NEAREST))
        names = card.mask_classes if self.mask is not None else ["background"]
        drawn = enlarged_overlay(picture, mask, names)
        if not self.boxes:
            return drawn
        x, y = drawn.width / self.crop.picture.width, drawn.height / self.crop.picture.height
        left, top = self.crop.left, self.crop.top
        scaled = [
            b._replace(x0=(b.x0 - left) * x, y0=(b.y0 - top) * y, x1=(b.x1 - left) * x, y1=(b.y1 - top) * y)
            for b in self.boxes
        ]
        return draw_boxes(drawn, scaled, card.classes)

    def to_sample(self, key: str) -> Sample:
        """The crop with its predictions as labels, ready to be written to a shard.

        What was cropped away is left out, since nothing was predicted for it.
        """
        assert self.crop is not None
        left, top, labels = self.crop.left, self.crop.top, set()
        boxes = None
        if self.boxes is not None:
            boxes = [[*b.shifted(-left, -top)[:4], b.number] for b in self.boxes]
            labels |= {b.number for b in self.boxes}
        labels |= {number for number, _ in self.tags or []} | ({self.number} if self.number is not None else set())
        mask = self.mask_picture()
        return Sample(
            key,
            self.crop.data if self.crop.is_whole else _encode(self.crop),
            self.number,
            None if mask is None else np.asarray(mask),
            boxes,
            sorted(labels) if boxes is not None or self.tags is not None or self.number is not None else None,
        )


def _encode(crop: CroppedImage) -> bytes:
    """Encode a crop as JPEG if the image was one, else as PNG."""
    out = io.BytesIO()
    if header(crop.data)[0] == "jpeg":
        crop.picture.save(out, "JPEG", quality=95)
    else:
        crop.picture.save(out, "PNG")
    return out.getvalue()


def predict_images(
    model: Model, sources: Iterable[InputImage], min_score: float = MIN_BOX_SCORE, batch_size: int = PREDICT_BATCH_SIZE
) -> Iterator[ImagePrediction]:
    """Predict images in order, one batch at a time; an image that cannot be read yields its error.

    Args:
        min_score: boxes with a lower score are discarded.
    """
    for found, images in load_batches(iter(sources), model.channels, model.size, batch_size):
        some = [
            ImagePrediction(s, error=str(c)) if isinstance(c, DataError) else ImagePrediction(s, crop=c)
            for s, c in found
        ]
        if len(images):
            _fill(model, images, [prediction for prediction in some if prediction.crop is not None], min_score)
        yield from some


def _fill(model: Model, images: torch.Tensor, some: Sequence[ImagePrediction], min_score: float) -> None:
    """Run the model on `images` and fill in the predictions, one for each of them."""
    found = model.predict(images)
    for row, one in enumerate(some):
        if found.class_logits is not None:
            probability, order = found.class_logits[row].float().softmax(0).sort(descending=True)
            one.top_classes = list(zip(order[:TOP_CLASSES].tolist(), probability[:TOP_CLASSES].tolist(), strict=True))
            one.number, one.probability = one.top_classes[0]
        if found.label_logits is not None:
            probability, order = found.label_logits[row].float().sigmoid().sort(descending=True)
            one.tags = [
                (n, p) for n, p in zip(order.tolist(), probability.tolist(), strict=True) if p >= MIN_TAG_PROBABILITY
            ]
        if found.mask_logits is not None:
            one.mask = found.mask_logits[row].argmax(0).to("cpu", torch.uint8).numpy()
        if found.boxes is not None and one.crop is not None:
            crop = one.crop
            one.boxes = to_pixel_boxes(found.boxes[row], *crop.picture.size, min_score, crop.left, crop.top)


@dataclass
class PredictionSummary:
    """Outcome of a prediction or translation.

    Attributes:
        processed: images that have results.
        damaged: images that could not be read.
        out: folder or URL of the results.
        left_alone: files in the folders that are not images, one line per kind.
    """

    processed: int
    damaged: int
    out: str | Path
    left_alone: list[str] = field(default_factory=list)


def predict_run(
    run: Path,
    paths: Sequence[str | Path],
    out: Path | None = None,
    device: str = "auto",
    *,
    checkpoint: str | None = None,
    shards: str | Path | None = None,
    min_score: float = MIN_BOX_SCORE,
    on_result: Callable[[dict[str, Any]], None] = lambda row: None,
    on_error: Callable[[str], None] = lambda text: None,
    progress: StageProgress = lambda stage, done, total: None,
) -> PredictionSummary:
    """Predict images with a run, and write masks and overlays as PNG files, or everything as a data set.

    Args:
        paths: image files, folders of them, data sets.
        out: folder for the pictures; default: in the run's folder.
        checkpoint: default: the newest.
        shards: folder or URL for a data set of the images with their predictions as labels, instead of pictures.
        min_score: boxes with a lower score are discarded.
        on_result: called with the JSON row of each image; `mask` and `overlay` are paths.
        on_error: called with one line for each image that cannot be read.

    Raises:
        ConfigError: the results would be written among the images.
        DataError: no image was found, or too few for a data set.
        CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    folder = find_run(run)
    into = out or folder / "predictions"
    inputs = Inputs(paths, Path(shards or into))
    model, _ = load_run(folder, device, checkpoint)
    total = len(inputs)
    summary = PredictionSummary(0, 0, shards or into, inputs.left_alone.lines())
    with contextlib.ExitStack() as stack:
        writer = None if shards is None else stack.enter_context(_writer(model.card, shards))
        for prediction in predict_images(model, inputs, min_score):
            if prediction.error is not None:
                summary.damaged += 1
                on_error(prediction.error)
            else:
                number = summary.processed
                split = prediction.source.split or ("test" if number % TEST_SPLIT_EVERY == 1 else "train")
                summary.processed += 1
                if writer is not None:
                    writer.write(split, prediction.to_sample(f"{number:08d}"))
                    on_result(prediction.row(model.card))
                else:
                    on_result(prediction.row(model.card) | _save_pictures(prediction, model.card, into))
            progress("predict images", summary.processed + summary.damaged, total)
        if writer is not None and summary.processed < 2:
            raise DataError(
                f"--shards {shards}: only {summary.processed} images could be read; a data set needs at least 2, "
                "one to train on and one to test on"
            )
    return summary


def _writer(card: DatasetCard, location: str | Path) -> ShardWriter:
    source = f"labels predicted by a model that was trained on {card.name!r}"
    return ShardWriter(location, f"{Path(location).name}-predicted", card.classes, card.mask_classes, source=source)


def _save_pictures(prediction: ImagePrediction, card: DatasetCard, into: Path) -> dict[str, str]:
    """Write mask and overlay; returns their paths by kind."""
    paths = {}
    for kind, picture in (("mask", prediction.mask_picture()), ("overlay", prediction.overlay(card))):
        if picture is not None:
            base = into / prediction.source.result_path
            path = base.with_name(f"{base.name}-{kind}.png")
            save_picture(picture, path)
            paths[kind] = str(path)
    return paths


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture and create its folders.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); choose another folder or name"
        ) from None


@contextlib.contextmanager
def json_rows(path: Path | None, lines: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open a file, or standard output (`-`), for JSON rows.

    An existing file is emptied at the first row only, so that a mistyped run does not erase earlier results.

    Args:
        path: `None`: rows are discarded.
        lines: write one row per line (JSON Lines) instead of one JSON list.

    Yields:
        A function that writes one row.

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
                if file is not sys.stdout and path.is_file():
                    file.truncate(0)

            yield write
            if not written:
                empty()
            if not lines:
                file.write("\n]\n" if written else "[]\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from None
