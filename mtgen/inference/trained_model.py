"""A trained model for use in a program: `mtgen.load`. Needs neither Ray, DeepSpeed, MLflow nor, but for sounds, DALI."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mtgen.errors import ConfigError, DataError
from mtgen.inference.box_overlay import MIN_BOX_SCORE, PixelBox, in_pixels
from mtgen.inference.inputs import InMemoryFile, InputImage, batches, file
from mtgen.inference.predict import PREDICT_BATCH_SIZE, predict_images, save
from mtgen.inference.prompt import PromptRequest, parse_interpolation_ends, parse_request
from mtgen.inference.sample import check_truncation, interpolate_samples
from mtgen.inference.translate import target_prompt, translate_images
from mtgen.models.loading import find_model, load_run
from mtgen.models.model import Model
from mtgen.models.sampling import generate
from mtgen.networks.center_maps import decode_canvas
from mtgen.schema import Canvas, DatasetCard, Prompt
from mtgen.shards.input_files import FileLike
from mtgen.utils import counter_rng
from mtgen.visualization.grids import to_pictures

Picture = str | Path | InMemoryFile | Image.Image | NDArray[np.uint8]
"""An image: a PNG, JPEG or WebP file (or its bytes), a Pillow image, or `[H,W]`, `[H,W,1]` (gray) or `[H,W,3]` (RGB) uint8."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Pillow's modes that a PNG holds."""
Words = str | Sequence[str]
Files = str | FileLike | Sequence[str | FileLike]
"""One, or several that are asked for in turn."""


@dataclass
class LabeledImages:
    """Images with what was asked for, drawn or read with them: one entry an image in every list.

    Attributes:
        images: `L` or `RGB`. Of an image that was read, the part that the model saw: cut to the model's aspect, not resized.
        classes: name of the class that was asked for or read; `None` where there is none, or several.
        masks: `[h,w]` uint8 of the image's size, numbers of `mask_classes`; `None` where the model has no masks.
        boxes: in pixels of the image; `None` where the model has no boxes.
        rows: the same in JSON's types, in pixels of the whole image where one was read (`seen`: the part that the model saw).
        card: what classes and mask classes are called.
        names: what was asked for, in words; empty where nothing was.
    """

    images: list[Image.Image]
    classes: list[str | None]
    masks: list[NDArray[np.uint8] | None]
    boxes: list[list[PixelBox] | None]
    rows: list[dict[str, Any]]
    card: DatasetCard
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def save(self, folder: str | Path) -> Path:
        """Write `000000.png`, its mask as `000000-mask.png`, ... and all rows, a line each, as `labels.jsonl`; what is there is replaced.

        Raises:
            UserError: the folder cannot be written.
        """
        folder, lines = Path(folder), []
        for number, (image, mask, row) in enumerate(zip(self.images, self.masks, self.rows, strict=True)):
            names = {"image": f"{number:06d}.png"} | ({} if mask is None else {"mask": f"{number:06d}-mask.png"})
            save(image, folder / names["image"])
            if mask is not None:
                save(Image.fromarray(mask), folder / names["mask"])
            lines.append(json.dumps(row | names, ensure_ascii=False) + "\n")
        (folder / "labels.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder


class TrainedModel:
    """A run or an exported model: draw images with their labels, read images, draw them anew in another domain.

    Attributes:
        model: the networks themselves, for tensors instead of pictures.
        images: images seen in training.
    """

    def __init__(self, model: Model, images: int) -> None:
        self.model = model
        self.images = images

    @property
    def card(self) -> DatasetCard:
        """What classes and mask classes are called."""
        return self.model.card

    @property
    def conditions(self) -> list[str]:
        """What images can be asked for by."""
        return self.model.conditions

    @property
    def tasks(self) -> list[str]:
        """What it was trained on."""
        return [task.name for task in self.model.networks.tasks]

    def __repr__(self) -> str:
        height, width = self.model.size
        by = ", ".join(self.conditions) or "nothing"
        return f"<mtgen model of {width}x{height}, {', '.join(self.tasks)}; asked for by {by}; {self.images:,} images seen>"

    def sample(
        self,
        n: int = 1,
        class_: Words = (),
        *,
        caption: Words = (),
        sound: Files = (),
        image: Files = (),
        layout: Files = (),
        domain: Words = (),
        seed: int = 0,
        truncation: float = 1.0,
        score: float = MIN_BOX_SCORE,
    ) -> LabeledImages:
        """Draw `n` images with their masks and boxes; several values of a condition are asked for in turn, as by `mtgen sample`.

        Sample i's latent is a function of (seed, i) alone. Without any condition all classes are asked for in turn.

        Args:
            class_: name or number; "a+b": both in one image.
            sound, image, layout: files; a layout is a mask (PNG) or boxes (JSON).
            domain: name or number of a data set of the run's mixture.
            truncation: 0 (the likeliest, always the same) to 1 (everything).
            score: from which a box counts.

        Raises:
            ConfigError: the model was not trained on a condition, or knows no such class or domain; a number is out of range.
            DataError: a file cannot be read as what it should be.
        """
        words = [[str(value) for value in _several(some)] for some in (class_, caption, domain)]
        files = [[_file(value) for value in _several(some)] for some in (sound, image, layout)]
        request = PromptRequest(words[0], words[1], files[0], files[1], files[2], words[2])
        return self.sample_prompt(request, n, seed=seed, truncation=truncation, score=score)

    def sample_prompt(
        self,
        request: PromptRequest,
        n: int = 1,
        *,
        seed: int = 0,
        truncation: float = 1.0,
        score: float = MIN_BOX_SCORE,
    ) -> LabeledImages:
        """As `sample`, for what is asked for as a whole.

        Raises:
            ConfigError, DataError: as `sample`.
        """
        check_truncation(truncation)
        if n < 1:
            raise ConfigError(f"n={n}: possible: 1 or more")
        asked = parse_request(self.model, request)
        parts = list(generate(self.model, asked.prompt, seed, "sample", n=n, truncation=truncation))
        canvas = Canvas.cat([part.map(lambda tensor: tensor.cpu()) for part, _ in parts])
        found = self._drawn(canvas, score)
        found.names = [asked.names[number % len(asked)] for number in range(n)]
        for number in range(n):
            some = [self.card.classes[k] for k in asked.classes[number % len(asked)]]
            found.classes[number] = one = some[0] if len(some) == 1 else None
            said = {"class": one, "classes": None if one else some, "caption": asked.captions[number % len(asked)]}
            found.rows[number] = {name: value for name, value in said.items() if value} | found.rows[number]
        return found

    def interpolate(
        self,
        first: PromptRequest,
        last: PromptRequest,
        n: int = 9,
        *,
        seeds: tuple[int, int] = (0, 0),
        truncation: float = 1.0,
        score: float = MIN_BOX_SCORE,
    ) -> LabeledImages:
        """Draw `n` images that lead from what `first` asks for to what `last` asks for; an end is the first sample of its seed.

        Raises:
            ConfigError, DataError: as `sample`.
        """
        check_truncation(truncation)
        if n < 2:
            raise ConfigError(f"n={n}: a way has two ends, so possible: 2 or more")
        ends = parse_interpolation_ends(self.model, first, last)
        start = torch.zeros(1, dtype=torch.int64)
        latents = [
            counter_rng.normal(seed, "sample", start, (self.model.latent_size,), self.model.device)
            for seed in dict.fromkeys(seeds)
        ]
        canvas = interpolate_samples(self.model, ends.prompt, torch.cat(latents), n, truncation)
        return self._drawn(canvas.map(lambda tensor: tensor.cpu()), score)

    def predict(self, images: Picture | Sequence[Picture], *, score: float = MIN_BOX_SCORE) -> LabeledImages:
        """Read images; class, tags with their probabilities, and boxes with their scores are in `rows`.

        Args:
            score: from which a box counts.

        Raises:
            DataError: an image cannot be read; names it.
        """
        found = LabeledImages([], [], [], [], [], self.card)
        for reading in predict_images(self.model, _sources(images), score):
            if reading.error is not None or reading.cut is None:
                raise DataError(str(reading.error))
            mask, cut = reading.mask_picture(), reading.cut
            found.images.append(cut.picture)
            found.classes.append(None if reading.number is None else self.card.classes[reading.number])
            found.masks.append(None if mask is None else np.asarray(mask))
            found.boxes.append(
                None if reading.boxes is None else [box.moved(-cut.left, -cut.top) for box in reading.boxes]
            )
            found.rows.append(reading.row(self.card))
        return found

    def reconstruct(self, images: Picture | Sequence[Picture], *, score: float = MIN_BOX_SCORE) -> LabeledImages:
        """Draw images anew from the latents that the model reads in them, and the classes that it reads, where it draws by class.

        Raises:
            ConfigError: the model was not trained to reconstruct.
            DataError: an image cannot be read; names it.
        """
        if "reconstruction" not in self.tasks:
            raise ConfigError(
                f"the run was not trained to reconstruct (tasks.reconstruction); its tasks: {', '.join(self.tasks)}"
            )
        canvases = []
        for found, inputs in batches(_sources(images), self.model.channels, self.model.size, PREDICT_BATCH_SIZE):
            if damaged := next((cut for _, cut in found if isinstance(cut, DataError)), None):
                raise damaged
            read = self.model.predict(inputs).class_logits
            labels = torch.full((len(inputs),), -1) if read is None else read.argmax(1).cpu()
            canvas = self.model.reconstruct(inputs, Prompt.of_classes(labels))
            assert canvas is not None  # the run has that task
            canvases.append(canvas.map(lambda tensor: tensor.cpu()))
        return self._drawn(Canvas.cat(canvases), score) if canvases else LabeledImages([], [], [], [], [], self.card)

    def translate(
        self, images: Picture | Sequence[Picture], to: str, *, seed: int = 0, score: float = MIN_BOX_SCORE
    ) -> LabeledImages:
        """Draw images anew in the domain `to`: a data set of the run's mixture, or a class, by name or number.

        Raises:
            ConfigError: the model was not trained to translate, or knows no such domain.
            DataError: an image cannot be read; names it.
        """
        canvases = []
        for _, canvas in translate_images(self.model, _sources(images), target_prompt(self.model, to), seed):
            if isinstance(canvas, DataError):
                raise canvas
            canvases.append(canvas)
        return self._drawn(Canvas.cat(canvases), score) if canvases else LabeledImages([], [], [], [], [], self.card)

    def _drawn(self, canvas: Canvas, score: float) -> LabeledImages:
        """A canvas on the CPU as pictures, arrays and pixels, without what was asked for."""
        images, count = to_pictures(canvas.image), len(canvas.image)
        masks: list[Any] = [None] * count if canvas.mask is None else [*canvas.mask.argmax(1).to(torch.uint8).numpy()]
        boxes: list[Any] = [None] * count
        if canvas.boxes is not None:
            boxes = [in_pixels(found, *images[0].size, score) for found in decode_canvas(canvas.boxes)]
        rows = [{} if some is None else {"boxes": [box.row(self.card.classes) for box in some]} for some in boxes]
        return LabeledImages(images, [None] * count, masks, boxes, rows, self.card)


def load(path: str | Path, device: str = "auto") -> TrainedModel:
    """A trained model: a run by its folder or its name under `runs/`, an exported folder or file, or one checkpoint.

    Args:
        device: "cpu", "cuda", or "auto": cuda where there is one.

    Raises:
        CheckpointError: there is no such model, it is damaged, or another version of mtgen wrote it.
    """
    return TrainedModel(*load_run(find_model(path), device))


def _several(value: Any) -> tuple[Any, ...]:
    return (
        (value,)
        if isinstance(value, int | Path | InMemoryFile) or (isinstance(value, str) and value)
        else tuple(value or ())
    )


def _file(value: str | FileLike) -> FileLike:
    return Path(value) if isinstance(value, str) else value


def _sources(images: Picture | Sequence[Picture]) -> Iterator[InputImage]:
    """Images as the readers take them: each gives its bytes."""
    some = [images] if isinstance(images, str | Path | InMemoryFile | Image.Image | np.ndarray) else images
    for number, one in enumerate(some):
        if isinstance(one, str | Path | InMemoryFile):
            yield InputImage(str(one), Path(), partial(file, _file(one)))
        else:
            yield InputImage(f"image {number}", Path(), partial(_encoded, one, f"image {number}"))


def _encoded(picture: Any, name: str) -> bytes:
    """A picture in memory as PNG, so that it takes the way of every other image."""
    if isinstance(picture, np.ndarray):
        pixels = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
        if pixels.dtype != np.uint8 or (pixels.ndim, pixels.shape[2:]) not in ((2, ()), (3, (3,))) or not pixels.size:
            raise DataError(
                f"{name}: is an array of {list(picture.shape)} {picture.dtype}; give [H,W] or [H,W,3] of uint8, 0 to 255"
            )
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    if not isinstance(picture, Image.Image):
        raise DataError(
            f"{name}: is a {type(picture).__name__}; give a file's path, a Pillow image, or an array [H,W] or [H,W,3] of uint8"
        )
    out, upright = io.BytesIO(), ImageOps.exif_transpose(picture)
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(out, "PNG")
    return out.getvalue()
