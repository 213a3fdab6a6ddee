"""Images to predict or translate: files, folders and data sets, streamed one after another in bounded memory."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mtgen.data.dataset_card import CARD_FILE, read_card
from mtgen.data.image_io import FORMATS, resized, to_eight_bits, to_unit_range, truncation_problem
from mtgen.errors import ConfigError, DataError, printable
from mtgen.inference.layouts import center_window
from mtgen.schema import DatasetCard
from mtgen.shards.input_files import CONVERTED_IMAGE_SUFFIXES, IMAGE_SUFFIXES, FileLike, read_image
from mtgen.shards.input_names import LeftAlone, is_system_name
from mtgen.storage.source import is_url

if TYPE_CHECKING:
    from mtgen.data.index import Index

SORT_CHUNK_ENTRIES = 10_000
"""Folder entries sorted at a time, so that memory does not grow with the folder."""

MAX_OVERLAY_PIXELS = 1024
"""Longer side of an overlay picture; a larger image is reduced."""


@dataclass(frozen=True)
class InputImage:
    """One image to process.

    Attributes:
        name: its path or sample name, for messages and JSON.
        result_path: path of its results without a suffix, relative to the output folder.
        load: returns its bytes; raises a `DataError` that names it if it cannot be read.
        split: split of the data set that it belongs to; `None` for files.
    """

    name: str
    result_path: Path
    load: Callable[[], bytes]
    split: str | None = None


@dataclass(frozen=True)
class InMemoryFile:
    """A file in memory, with its original name."""

    name: str
    data: bytes

    @property
    def suffix(self) -> str:
        """Suffix of its name, such as ".png"."""
        return PurePath(self.name).suffix

    def read_bytes(self) -> bytes:
        """Content of the file."""
        return self.data

    def __str__(self) -> str:
        return self.name


@dataclass
class CroppedImage:
    """The part of an image that a run sees.

    Attributes:
        data: bytes of the file.
        picture: the image as displayed, cropped to the run's aspect ratio.
        left, top: position of the crop in the whole image, pixels.
        whole: width and height of the whole image, pixels.
    """

    data: bytes
    picture: Image.Image
    left: int
    top: int
    whole: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was cropped."""
        return self.picture.size == self.whole


def read_file(path: FileLike) -> bytes:
    """Bytes of an image file.

    Raises:
        DataError: the file cannot be read; names it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give an intact PNG, JPEG or WebP file") from None


def open_cropped(data: bytes, name: str, channels: int, size: tuple[int, int]) -> CroppedImage:
    """Decode an image, apply its EXIF rotation, convert it to gray or RGB, and crop it as training does.

    Args:
        name: for error messages, which begin with it.
        channels: 1 (gray) or 3 (RGB).
        size: height and width of the run's images, which give the aspect ratio.

    Raises:
        DataError: the data is damaged or not an image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if reason := truncation_problem(data):
                raise ValueError(reason)
            picture = to_eight_bits(ImageOps.exif_transpose(file)).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise DataError(f"{name}: is not a PNG, JPEG or WebP file; convert it to one of these") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise whatever damaged bytes lead them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: cannot be read as an image ({reason}); give an intact PNG, JPEG or WebP file"
        ) from None
    view = center_window(*picture.size, size)
    (left, top), (wide, high) = view.start[0].tolist(), view.size[0].tolist()
    return CroppedImage(data, picture.crop((left, top, left + wide, top + high)), left, top, picture.size)


def to_input(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Convert a cropped picture to `[C,H,W]` float32 in [-1, 1], resized as in training on a CPU.

    DALI on a GPU differs from it by one or two gray levels.
    """
    pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1)
    return to_unit_range(pixels if picture.size == (size[1], size[0]) else resized(pixels, *size))


def load_batches(
    sources: Iterator[InputImage], channels: int, size: tuple[int, int], batch_size: int
) -> Iterator[tuple[list[tuple[InputImage, CroppedImage | DataError]], Tensor]]:
    """Open images in batches.

    Yields:
        Each image of the batch with its crop or its error; and the inputs `[B,C,H,W]` of those without an error.
    """
    while some := list(islice(sources, batch_size)):
        found: list[tuple[InputImage, CroppedImage | DataError]] = []
        inputs = []
        for source in some:
            try:
                crop = open_cropped(source.load(), source.name, channels, size)
            except DataError as error:
                found.append((source, error))
                continue
            found.append((source, crop))
            inputs.append(to_input(crop.picture, size))
        yield found, torch.stack(inputs) if inputs else torch.empty(0, channels, *size)


def has_many_inputs(paths: Sequence[str | Path]) -> bool:
    """Whether the paths include a folder or a data set, which may hold any number of images."""
    return any(_is_data_set(str(path)) or Path(path).is_dir() for path in paths)


class Inputs:
    """All images that a user names: files, folders (searched recursively) and data sets (all splits).

    Iterating yields an `InputImage` per image and never holds more than one chunk of a folder.

    Args:
        paths: image files, folders, or folders and URLs of data sets.
        out: output folder, which is skipped.

    Raises:
        ConfigError: the results would be written among the inputs.
        DataError: a data set cannot be opened, or no image was found.
    """

    def __init__(self, paths: Sequence[str | Path], out: Path) -> None:
        self.arguments = [str(path) for path in paths]
        self.out = out.resolve()
        self.left_alone = LeftAlone()
        self.cards: dict[str, DatasetCard] = {path: read_card(path) for path in self.arguments if _is_data_set(path)}
        for path in self.folders:
            if self.out == Path(path).resolve() or self.out in Path(path).resolve().parents:
                raise ConfigError(
                    f"{out}: the results would be written among the images of {path} and be taken for images; "
                    "choose another folder"
                )
        for path in self.arguments:
            if Path(path).is_file() and Path(path).resolve().parent == self.out:
                raise ConfigError(
                    f"{out}: the results would be written beside {path} and could replace it; choose another folder"
                )
        if not len(self):
            raise DataError(f"{', '.join(self.arguments)}: no image found ({', '.join(IMAGE_SUFFIXES)})")

    @property
    def folders(self) -> list[str]:
        """Arguments that are folders of files."""
        return [path for path in self.arguments if path not in self.cards and Path(path).is_dir()]

    def __len__(self) -> int:
        """Number of images, damaged ones included."""
        files = len(self.arguments) - len(self.cards) - len(self.folders)
        samples = sum(split.samples for card in self.cards.values() for split in card.splits.values())
        self.left_alone = LeftAlone()
        return files + samples + sum(1 for folder in self.folders for _ in self._walk(Path(folder), self.left_alone))

    def __iter__(self) -> Iterator[InputImage]:
        taken: set[str] = set()
        folders = set(self.folders)
        for path in self.arguments:
            if path in self.cards:
                yield from self._samples(path, self._base(path, taken))
            elif path in folders:
                base = self._base(path, taken)
                for found, problem in self._walk(Path(path)):
                    result = base / found.relative_to(path)
                    load = partial(_read_image_file, found) if problem is None else partial(_refuse, problem)
                    yield InputImage(printable(str(found)), result.with_name(_result_stem(found)), load)
            else:
                yield InputImage(path, Path(_unique(Path(path).stem, taken)), partial(_read_image_file, Path(path)))

    def _base(self, path: str, taken: set[str]) -> Path:
        """Folder of an argument's results: a separate one if there are several arguments."""
        return Path(_unique(Path(path.rstrip("/")).resolve().name, taken)) if len(self.arguments) > 1 else Path()

    def _walk(self, folder: Path, left_alone: LeftAlone | None = None) -> Iterator[tuple[Path, str | None]]:
        """Yield the image files below a folder, and with a reason the folders that cannot be listed.

        Links to folders are not followed; files that are not images are counted in `left_alone`.
        """
        try:
            with os.scandir(folder) as entries:
                while some := sorted(islice(entries, SORT_CHUNK_ENTRIES), key=lambda entry: entry.name):
                    for entry in some:
                        path = Path(entry.path)
                        hidden = is_system_name(entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            if path.resolve() != self.out and not hidden:
                                yield from self._walk(path, left_alone)
                        elif not hidden and _is_image(path):
                            yield path, None
                        elif left_alone is not None:
                            kind = f"{path.suffix.lower() or 'other'} files"
                            left_alone.add("hidden or system files" if hidden else kind, path.name)
        except OSError as error:
            yield folder, f"{folder}: cannot be listed ({error.strerror})"

    def _samples(self, path: str, base: Path) -> Iterator[InputImage]:
        """Yield the samples of a data set, split by split; damaged ones, which the index omits, come as errors."""
        from mtgen.data.index import open_index  # imports pyarrow, which files and folders do not need

        for split in self.cards[path].splits:
            index = open_index(path, split, on_damage="skip", damage_limit=1.0)
            for problem in index.problems:
                text = f"{path}/{problem}"
                yield InputImage(text, base, partial(_refuse, text), split)
            for row in range(len(index)):
                result = base / Path(index.shard(row)).stem / re.sub(r"[^A-Za-z0-9_-]", "_", index.key(row))
                yield InputImage(index.name(row), result, partial(_read_sample, index, row), split)


def _is_data_set(path: str) -> bool:
    if path.endswith((".tar", ".tgz")):
        raise ConfigError(
            f"{path}: is a single shard; give the folder of the shards, which has a {CARD_FILE} "
            "(`mtgen shards describe FOLDER` writes one)"
        )
    return is_url(path) or (Path(path) / CARD_FILE).is_file()


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, and not the mask (NAME.mask.png) of another one."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.stem.lower().endswith(".mask")


def _read_image_file(path: Path) -> bytes:
    """The bytes of an image file; formats that the model does not decode are converted to PNG."""
    return read_image(path) if path.suffix.lower() in CONVERTED_IMAGE_SUFFIXES else read_file(path)


def _read_sample(index: "Index", row: int) -> bytes:
    return index.read(row, "image")


def _refuse(problem: str) -> bytes:
    raise DataError(problem)


def _result_stem(path: Path) -> str:
    """File name without its suffix; with the suffix if another image in the folder has the same stem."""
    others = [path.with_suffix(s) for suffix in IMAGE_SUFFIXES for s in (suffix, suffix.upper()) if s != path.suffix]
    if not path.stem.strip(".") or any(other.exists() for other in others):
        return path.name.replace(".", "-")
    return path.stem


def _unique(stem: str, taken: set[str]) -> str:
    """`stem`, with a number appended if another argument has it already."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def shrink_for_overlay(crop: CroppedImage) -> Image.Image:
    """The cropped picture, reduced if its longer side exceeds `MAX_OVERLAY_PIXELS`."""
    longest = max(crop.picture.size)
    if longest <= MAX_OVERLAY_PIXELS:
        return crop.picture
    sides = [max(1, round(side * MAX_OVERLAY_PIXELS / longest)) for side in crop.picture.size]
    return crop.picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
