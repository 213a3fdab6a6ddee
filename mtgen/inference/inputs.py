"""Images that a run is to read: files, folders of any number of them and data sets, one after the other in flat memory."""

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
from mtgen.shards.input_files import STORED_IMAGE_SUFFIXES, FileLike
from mtgen.storage.source import is_url

if TYPE_CHECKING:
    from mtgen.data.index import Index

SORT_CHUNK_ENTRIES = 10_000
"""Entries of a folder that are put in order at a time: memory does not grow with the folder."""

MAX_OVERLAY_PIXELS = 1024
"""Pixels of an overlay picture's longer side; a larger image is shown reduced."""


@dataclass(frozen=True)
class InputImage:
    """One image that is to be read.

    Attributes:
        name: where it is, for messages and JSON.
        place: where its results go, below their folder, without a suffix.
        load: gives its bytes; `DataError` names it where it cannot be read.
        split: of the data set that it is in; `None` for files.
    """

    name: str
    place: Path
    load: Callable[[], bytes]
    split: str | None = None


@dataclass(frozen=True)
class InMemoryFile:
    """A file in memory, with the name that it had where it came from."""

    name: str
    data: bytes

    @property
    def suffix(self) -> str:
        """Of its name, such as ".png"."""
        return PurePath(self.name).suffix

    def read_bytes(self) -> bytes:
        """What is in it."""
        return self.data

    def __str__(self) -> str:
        return self.name


@dataclass
class CroppedImage:
    """What a run sees of an image.

    Attributes:
        data: the file's bytes.
        picture: the image as displayed, cut to the run's aspect.
        left, top: where that lies in the whole image, and `whole`, width and height of that, pixels.
    """

    data: bytes
    picture: Image.Image
    left: int
    top: int
    whole: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was cut off."""
        return self.picture.size == self.whole


def file(path: FileLike) -> bytes:
    """The bytes of an image file; `DataError` names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a PNG, JPEG or WebP file that is whole"
        ) from None


def opened(data: bytes, name: str, channels: int, size: tuple[int, int]) -> CroppedImage:
    """An image as it is meant to be seen (EXIF rotation), gray or RGB, cut to the aspect of `size` (height, width) as in training.

    Raises:
        DataError: it is damaged, or is no image; begins with `name`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if reason := truncation_problem(data):
                raise ValueError(reason)
            picture = to_eight_bits(ImageOps.exif_transpose(file)).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise DataError(f"{name}: is no PNG, JPEG or WebP file; convert it to one of these") from None
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise whatever damaged bytes lead them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name}: cannot be read as an image ({reason}); give a PNG, JPEG or WebP file that is whole"
        ) from None
    view = center_window(*picture.size, size)
    (left, top), (wide, high) = view.start[0].tolist(), view.size[0].tolist()
    return CroppedImage(data, picture.crop((left, top, left + wide, top + high)), left, top, picture.size)


def as_input(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """A cut picture -> `[C,H,W]` float32 in [-1, 1], resized as in training on a CPU; DALI on a GPU comes within a gray level or two."""
    pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, -1)
    return to_unit_range(pixels if picture.size == (size[1], size[0]) else resized(pixels, *size))


def batches(
    sources: Iterator[InputImage], channels: int, size: tuple[int, int], batch_size: int
) -> Iterator[tuple[list[tuple[InputImage, CroppedImage | DataError]], Tensor]]:
    """Sources, opened, in batches: each with its picture or with what is wrong with it, and the good ones' inputs `[B,C,H,W]`."""
    while some := list(islice(sources, batch_size)):
        found: list[tuple[InputImage, CroppedImage | DataError]] = []
        inputs = []
        for source in some:
            try:
                cut = opened(source.load(), source.name, channels, size)
            except DataError as error:
                found.append((source, error))
                continue
            found.append((source, cut))
            inputs.append(as_input(cut.picture, size))
        yield found, torch.stack(inputs) if inputs else torch.empty(0, channels, *size)


def several(paths: Sequence[str | Path]) -> bool:
    """Whether there may be any number of images: folders and data sets, not files alone."""
    return any(_is_data_set(str(path)) or Path(path).is_dir() for path in paths)


class Inputs:
    """Everything that a user names: image files, folders of them (searched through and through) and data sets (all their splits).

    Iterating gives a `InputImage` each, without holding more than a piece of a folder.

    Args:
        paths: files, folders, or folders and URLs of data sets.
        out: where results go, which is not read.

    Raises:
        ConfigError: results would go among the files that are read.
        DataError: a data set cannot be opened, or there is no image at all.
    """

    def __init__(self, paths: Sequence[str | Path], out: Path) -> None:
        self.arguments = [str(path) for path in paths]
        self.out = out.resolve()
        self.cards: dict[str, DatasetCard] = {path: read_card(path) for path in self.arguments if _is_data_set(path)}
        for path in self.folders:
            if self.out == Path(path).resolve() or self.out in Path(path).resolve().parents:
                raise ConfigError(
                    f"{out}: results would lie among the images of {path}, and be read as images; choose another folder"
                )
        for path in self.arguments:
            if Path(path).is_file() and Path(path).resolve().parent == self.out:
                raise ConfigError(
                    f"{out}: results would lie beside {path}, and could replace it; choose another folder"
                )
        if not len(self):
            raise DataError(f"{', '.join(self.arguments)}: no image in it ({', '.join(STORED_IMAGE_SUFFIXES)})")

    @property
    def folders(self) -> list[str]:
        """The folders of files."""
        return [path for path in self.arguments if path not in self.cards and Path(path).is_dir()]

    def __len__(self) -> int:
        """How many images there are, damaged ones counted in."""
        files = len(self.arguments) - len(self.cards) - len(self.folders)
        samples = sum(split.samples for card in self.cards.values() for split in card.splits.values())
        return files + samples + sum(1 for folder in self.folders for _ in self._walk(Path(folder)))

    def __iter__(self) -> Iterator[InputImage]:
        taken: set[str] = set()
        folders = set(self.folders)
        for path in self.arguments:
            if path in self.cards:
                yield from self._samples(path, self._base(path, taken))
            elif path in folders:
                base = self._base(path, taken)
                for found, problem in self._walk(Path(path)):
                    place = base / found.relative_to(path)
                    load = partial(file, found) if problem is None else partial(_refuse, problem)
                    yield InputImage(printable(str(found)), place.with_name(_stem(found)), load)
            else:
                yield InputImage(path, Path(_free(Path(path).stem, taken)), partial(file, Path(path)))

    def _base(self, path: str, taken: set[str]) -> Path:
        """The folder of an argument's results: one of its own where there are several arguments."""
        return Path(_free(Path(path.rstrip("/")).resolve().name, taken)) if len(self.arguments) > 1 else Path()

    def _walk(self, folder: Path) -> Iterator[tuple[Path, str | None]]:
        """Image files below a folder, and folders that cannot be listed, with the reason; links to folders are not followed."""
        try:
            with os.scandir(folder) as entries:
                while some := sorted(islice(entries, SORT_CHUNK_ENTRIES), key=lambda entry: entry.name):
                    for entry in some:
                        path = Path(entry.path)
                        if entry.is_dir(follow_symlinks=False):
                            if path.resolve() != self.out:
                                yield from self._walk(path)
                        elif path.suffix.lower() in STORED_IMAGE_SUFFIXES and not path.stem.lower().endswith(
                            ".mask"
                        ):  # masks lie beside images
                            yield path, None
        except OSError as error:
            yield folder, f"{folder}: cannot be listed ({error.strerror})"

    def _samples(self, path: str, base: Path) -> Iterator[InputImage]:
        """The samples of a data set, split by split; the index leaves out damaged ones, which are named."""
        from mtgen.data.index import open_index  # brings pyarrow, which files and folders do not need

        for split in self.cards[path].splits:
            index = open_index(path, split, on_damage="skip", damage_limit=1.0)
            for problem in index.problems:
                text = f"{path}/{problem}"
                yield InputImage(text, base, partial(_refuse, text), split)
            for row in range(len(index)):
                place = base / Path(index.shard(row)).stem / re.sub(r"[^A-Za-z0-9_-]", "_", index.key(row))
                yield InputImage(index.name(row), place, partial(_stored, index, row), split)


def _is_data_set(path: str) -> bool:
    if path.endswith((".tar", ".tgz")):
        raise ConfigError(
            f"{path}: give the folder of the shards, with its {CARD_FILE} (`mtgen shards describe FOLDER` writes one)"
        )
    return is_url(path) or (Path(path) / CARD_FILE).is_file()


def _stored(index: "Index", row: int) -> bytes:
    return index.read(row, "image")


def _refuse(problem: str) -> bytes:
    raise DataError(problem)


def _stem(path: Path) -> str:
    """A file's name without its suffix, unless another image beside it has the same."""
    others = [
        path.with_suffix(s) for suffix in STORED_IMAGE_SUFFIXES for s in (suffix, suffix.upper()) if s != path.suffix
    ]
    return (
        path.name.replace(".", "-")
        if not path.stem.strip(".") or any(other.exists() for other in others)
        else path.stem
    )


def _free(stem: str, taken: set[str]) -> str:
    """`stem`, numbered where another argument has it already."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def overlay_base(cut: CroppedImage) -> Image.Image:
    """A cut picture, reduced where it is large."""
    longest = max(cut.picture.size)
    if longest <= MAX_OVERLAY_PIXELS:
        return cut.picture
    sides = [max(1, round(side * MAX_OVERLAY_PIXELS / longest)) for side in cut.picture.size]
    return cut.picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
