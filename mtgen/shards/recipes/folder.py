"""folder: images in class folders, with masks, captions, boxes and sounds beside them; files are stored as they are."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.input_files import (
    CONVERTED_IMAGE_SUFFIXES,
    STORED_IMAGE_SUFFIXES,
    key_of,
    read,
    read_image,
    read_json,
    read_mask,
    read_names,
    read_text,
    share,
    size_of,
    state,
)
from mtgen.shards.make import RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.write import Sample

FOLDER_SPLITS = ("train", "test", "val")
SOUND_SUFFIXES = (".wav", ".flac")


class FolderOptions(ConfigSection):
    """Options of the recipe `folder`."""

    images: str = Field(min_length=1, description="folder of images, [train|test|val/][CLASS/]FILE")
    masks: str | None = Field(
        None, description="folder of masks, laid out as the images; default: FILE.mask.png beside each image"
    )
    mask_classes: list[str] = Field(
        [],
        description="names of the masks' classes, or a text file with a name in each line; default: as many as their values need",
    )
    classes: list[str] = Field(
        [],
        description="names of the classes, in order, or a file of them; default: the class folders in alphabetical order",
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="share split off for the test split, where there are no split folders"
    )

    @field_validator("mask_classes", "classes", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_names(Path(value)) if isinstance(value, str) else value


@RECIPES.register("folder")
class FolderRecipe(Recipe):
    """One sample an image: `x.jpg`, and beside it `x.mask.png`, `x.txt` (caption), `x.json` (boxes), `x.wav` or `x.flac`."""

    Options = FolderOptions
    licence = ""

    def __init__(self, options: FolderOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.root = Path(options.images).resolve()
        if not self.root.is_dir():
            raise DataError(f"images={options.images}: there is no such folder; give the one that holds the images")
        if options.masks is not None and not Path(options.masks).is_dir():
            raise DataError(f"masks={options.masks}: there is no such folder; give the one that holds the masks")
        pictures = self._pictures()
        files = [path.relative_to(self.root) for path in pictures if not path.stem.lower().endswith(".mask")]
        if not files:
            raise DataError(
                f"images={options.images}: no images in it ({', '.join(STORED_IMAGE_SUFFIXES + CONVERTED_IMAGE_SUFFIXES)})"
            )
        apart = [path for path in files if path.parts[0] not in FOLDER_SPLITS]
        split_folders = not apart
        if apart and {path.parts[0] for path in files} >= {"train", "test"}:
            raise DataError(
                f"{self.root / apart[0]}: lies outside of the folders train and test beside it; move it into one, or away"
            )
        self.files: dict[str, list[Path]] = {}
        found: set[str] = set()
        for path in files:
            inner = path.parts[int(split_folders) :]
            found.update(inner[:1] if len(inner) > 1 else [])
            split = (
                path.parts[0] if split_folders else "test" if share(seed, path.as_posix()) < options.test else "train"
            )
            self.files.setdefault(split, []).append(path)
        self.files = {split: self.files[split] for split in ("train", "val", "test") if split in self.files}
        self.depth = int(split_folders)
        self.classes = options.classes or sorted(found)
        if unknown := sorted(found - set(self.classes)):
            raise DataError(
                f"classes={self.classes}: {self.root} has a class folder {unknown[0]!r} too; name it, or take it away"
            )
        self.source = f"files of the folder {self.root.name}"
        masks = self._masks(files, pictures)
        self.mask_classes = options.mask_classes or self._values(masks)
        self.sources = [
            state(path) for path in sorted({beside for file in files for beside in self._beside(file)} | set(masks))
        ]

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(files) for split, files in self.files.items()}

    def _pictures(self) -> list[Path]:
        """All image files, masks among them, links to folders followed; `DataError` names a link that leads nowhere or in a circle."""
        named: list[Path] = []
        for folder, inner, names in os.walk(self.root, followlinks=True):
            for link in (path for name in inner if (path := Path(folder, name)).is_symlink()):
                if Path(folder).resolve().is_relative_to(link.resolve()):
                    raise DataError(f"{link}: is a link to a folder that it lies in; remove it")
            named += [
                path
                for name in names
                if (path := Path(folder, name)).suffix.lower() in STORED_IMAGE_SUFFIXES + CONVERTED_IMAGE_SUFFIXES
            ]
        named.sort()
        found = [path for path in named if path.is_file()]
        if len(found) < len(named) and (lost := [path for path in named if not path.exists()]):
            raise DataError(f"{lost[0]}: is a link to a file that is not there; bring it back, or remove the link")
        return found

    def _masks(self, files: list[Path], pictures: list[Path]) -> list[Path]:
        """The masks of the images `files`; `DataError` where there seem to be some among all `pictures` that would not be read."""
        found = [mask for path in files if (mask := self._mask(path)) is not None]
        if self.options.masks is not None and not found:
            first = files[0].with_suffix(".png")
            raise DataError(
                f"masks={self.options.masks}: has no {first}, nor a mask for any other image; name them alike"
            )
        if self.options.masks is None:
            for path in pictures:
                if path.stem.lower().endswith(".mask") and path.suffix != ".png":
                    raise DataError(
                        f"{path}: masks are PNG files named x.mask.png; save it as {Path(path.stem).stem}.mask.png"
                    )
        return found

    def _beside(self, file: Path) -> list[Path]:
        own = self.root / file
        return [
            own,
            *(path for suffix in (".txt", ".json", *SOUND_SUFFIXES) if (path := own.with_suffix(suffix)).is_file()),
        ]

    def _mask(self, file: Path) -> Path | None:
        if self.options.masks is not None:
            path = (Path(self.options.masks).resolve() / file).with_suffix(".png")
        else:
            path = (self.root / file).with_suffix(".mask.png")
        return path if path.is_file() else None

    @staticmethod
    def _values(masks: list[Path]) -> list[str]:
        """Names for the mask classes that are found: as many as the largest value needs."""
        largest = -1
        for path in masks:
            values = read_mask(path)
            largest = max(largest, int(values[values != IGNORE_INDEX].max(initial=0)))
        return [f"{UNNAMED_CLASS_PREFIX}{number}" for number in range(largest + 1)]

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.root / self.files[split][number])

    def make(self, split: str, number: int) -> Sample:
        """The sample of one image file."""
        file = self.files[split][number]
        path = self.root / file
        parts = file.parts[self.depth :]
        mask, caption, about = self._mask(file), path.with_suffix(".txt"), path.with_suffix(".json")
        image = read_image(path)
        sounds = [sound for suffix in SOUND_SUFFIXES if (sound := path.with_suffix(suffix)).is_file()]
        boxes = read_boxes(about) if about.is_file() else {}
        if "width" in boxes or "height" in boxes:
            width, height = size_of(path, image)
            said = boxes.get("width", width), boxes.get("height", height)
            if said != (width, height):
                raise DataError(
                    f"{about}: is about an image of {said[0]}x{said[1]}, and {path.name} has {width}x{height}"
                )
        return Sample(
            key=key_of(file.with_suffix("").as_posix()),
            image=image,
            label=self.classes.index(parts[0]) if len(parts) > 1 else None,
            mask=None if mask is None else read_mask(mask),
            boxes=boxes.get("boxes"),
            labels=boxes.get("labels"),
            caption=(read_text(caption) or None) if caption.is_file() else None,
            sound=read(sounds[0]) if sounds else None,
        )


def read_boxes(path: Path) -> dict[str, Any]:
    """What an `x.json` says of boxes and labels; `DataError` where it is no object with lists of them."""
    about = read_json(path)
    if not isinstance(about, dict) or not all(isinstance(about.get(name, []), list) for name in ("boxes", "labels")):
        raise DataError(
            f'{path}: has to be an object such as {{"boxes": [[x0, y0, x1, y1, class]], "labels": [class]}}'
        )
    numbers = [box if isinstance(box, list) else [box] for box in about.get("boxes", [])]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for box in numbers for v in box):
        raise DataError(f"{path}: a box is [x0, y0, x1, y1, class], five numbers")
    if wrong := [box for box in numbers if len(box) == 5 and not float(box[4]).is_integer()]:
        raise DataError(f"{path}: box {wrong[0]}: its last number is its class, a whole number")
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in about.get("labels", [])):
        raise DataError(f"{path}: labels are class numbers")
    return about
