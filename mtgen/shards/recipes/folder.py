"""folder: images in class folders, with masks, captions, boxes and sounds beside them; files are stored unchanged."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mtgen.config import ConfigSection
from mtgen.data.boxes import ANNOTATION_EXAMPLE
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.input_files import (
    CONVERTED_IMAGE_SUFFIXES,
    STORED_IMAGE_SUFFIXES,
    file_state,
    held_out,
    key_of,
    read,
    read_image,
    read_json,
    read_mask,
    read_names,
    read_text,
    size_of,
)
from mtgen.shards.make import RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.write import Sample

FOLDER_SPLITS = ("train", "test", "val")
SOUND_SUFFIXES = (".wav", ".flac")


class FolderOptions(ConfigSection):
    """Options of the recipe `folder`."""

    images: str = Field(min_length=1, description="folder of images, [train|test|val/][CLASS/]FILE")
    masks: str | None = Field(
        None, description="folder of masks with the same paths as the images; default: FILE.mask.png beside each image"
    )
    mask_classes: list[str] = Field(
        [],
        description="names of the mask classes, or a text file with one name per line; default: class 0, class 1, ...",
    )
    classes: list[str] = Field(
        [],
        description="names of the classes, in order, or a file of them; default: the class folders, alphabetically",
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="fraction of the samples in the test split, if there are no split folders"
    )

    @field_validator("mask_classes", "classes", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_names(Path(value)) if isinstance(value, str) else value


@RECIPES.register("folder")
class FolderRecipe(Recipe):
    """One sample per image `x.jpg`, with `x.mask.png`, `x.txt` (caption), `x.json` (boxes), `x.wav` or `x.flac`."""

    Options = FolderOptions
    licence = ""

    def __init__(self, options: FolderOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.root = Path(options.images).resolve()
        if not self.root.is_dir():
            raise DataError(f"images={options.images}: the folder does not exist; give the one with the images")
        if options.masks is not None and not Path(options.masks).is_dir():
            raise DataError(f"masks={options.masks}: the folder does not exist; give the one with the masks")
        pictures = self._pictures()
        files = [path.relative_to(self.root) for path in pictures if not path.stem.lower().endswith(".mask")]
        if not files:
            raise DataError(
                f"images={options.images}: no images in it "
                f"({', '.join(STORED_IMAGE_SUFFIXES + CONVERTED_IMAGE_SUFFIXES)}); give the folder with the images"
            )
        outside = [path for path in files if path.parts[0] not in FOLDER_SPLITS]
        if outside and {path.parts[0] for path in files} >= {"train", "test"}:
            raise DataError(
                f"{self.root / outside[0]}: is outside the folders train and test; move it into one, or elsewhere"
            )
        self.depth = 0 if outside else 1  # of the class folders
        self.files = self._split(files)
        folders = {path.parts[self.depth] for path in files if len(path.parts) > self.depth + 1}
        self.classes = options.classes or sorted(folders)
        if unknown := sorted(folders - set(self.classes)):
            raise DataError(
                f"classes={self.classes}: {self.root} also has a class folder {unknown[0]!r}; name it or remove it"
            )
        self.source = f"files of the folder {self.root.name}"
        masks = self._masks(files, pictures)
        self.mask_classes = options.mask_classes or self._generated_names(masks)
        inputs = {path for file in files for path in self._with_labels(file)} | set(masks)
        self.sources = [file_state(path) for path in sorted(inputs)]

    def _split(self, files: list[Path]) -> dict[str, list[Path]]:
        """Split -> its images: by their split folders or, if there are none, by a hash of their paths."""
        splits: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
        chosen = set() if self.depth else held_out(self.seed, [path.as_posix() for path in files], self.options.test)
        for path in files:
            if self.depth:
                split = path.parts[0]
            else:
                split = "test" if path.as_posix() in chosen else "train"
            splits[split].append(path)
        return {split: members for split, members in splits.items() if members}

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(files) for split, files in self.files.items()}

    def _pictures(self) -> list[Path]:
        """All image files, including masks, following links to folders; `DataError` if a link is broken or circular."""
        paths: list[Path] = []
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            for link in (path for name in subfolders if (path := Path(folder, name)).is_symlink()):
                if Path(folder).resolve().is_relative_to(link.resolve()):
                    raise DataError(f"{link}: is a link to a folder that contains it; remove it")
            paths += [
                path
                for name in names
                if (path := Path(folder, name)).suffix.lower() in STORED_IMAGE_SUFFIXES + CONVERTED_IMAGE_SUFFIXES
            ]
        paths.sort()
        files = [path for path in paths if path.is_file()]
        if len(files) < len(paths) and (broken := [path for path in paths if not path.exists()]):
            raise DataError(f"{broken[0]}: is a link to a missing file; restore the file or remove the link")
        return files

    def _masks(self, files: list[Path], pictures: list[Path]) -> list[Path]:
        """The masks of the images `files`; `DataError` if some of `pictures` look like masks but would be ignored."""
        masks = [mask for path in files if (mask := self._mask(path)) is not None]
        if self.options.masks is not None and not masks:
            first = files[0].with_suffix(".png")
            raise DataError(
                f"masks={self.options.masks}: has no {first}, nor a mask for any other image; "
                "masks need the paths of their images, with the suffix .png"
            )
        if self.options.masks is None:
            for path in pictures:
                if path.stem.lower().endswith(".mask") and path.suffix != ".png":
                    raise DataError(f"{path}: a mask has to be a PNG; save it as {Path(path.stem).stem}.mask.png")
        return masks

    def _with_labels(self, file: Path) -> list[Path]:
        """An image file and the caption, annotation and sound beside it."""
        image = self.root / file
        labels = [image.with_suffix(suffix) for suffix in (".txt", ".json", *SOUND_SUFFIXES)]
        return [image, *(path for path in labels if path.is_file())]

    def _mask(self, file: Path) -> Path | None:
        if self.options.masks is not None:
            path = (Path(self.options.masks).resolve() / file).with_suffix(".png")
        else:
            path = (self.root / file).with_suffix(".mask.png")
        return path if path.is_file() else None

    @staticmethod
    def _generated_names(masks: list[Path]) -> list[str]:
        """Names for all mask classes up to the largest value in the masks."""
        largest = -1
        for path in masks:
            values = read_mask(path)
            largest = max(largest, int(values[values != IGNORE_INDEX].max(initial=0)))
        return [f"{UNNAMED_CLASS_PREFIX}{number}" for number in range(largest + 1)]

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.root / self.files[split][number])

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image file."""
        file = self.files[split][number]
        path = self.root / file
        parts = file.parts[self.depth :]
        mask, caption, annotation = self._mask(file), path.with_suffix(".txt"), path.with_suffix(".json")
        image = read_image(path)
        sounds = [sound for suffix in SOUND_SUFFIXES if (sound := path.with_suffix(suffix)).is_file()]
        values = read_annotation(annotation) if annotation.is_file() else {}
        if "width" in values or "height" in values:
            width, height = size_of(path, image)
            annotated = values.get("width", width), values.get("height", height)
            if annotated != (width, height):
                raise DataError(
                    f"{annotation}: is for {annotated[0]}x{annotated[1]} pixels, but {path.name} has "
                    f"{width}x{height}; use the image that was annotated"
                )
        return Sample(
            key=key_of(file.with_suffix("").as_posix()),
            image=image,
            label=self.classes.index(parts[0]) if len(parts) > 1 else None,
            mask=None if mask is None else read_mask(mask),
            boxes=values.get("boxes"),
            labels=values.get("labels"),
            caption=(read_text(caption) or None) if caption.is_file() else None,
            sound=read(sounds[0]) if sounds else None,
        )


def read_annotation(path: Path) -> dict[str, Any]:
    """Read boxes and labels of an `x.json`; `DataError` if it is not an object with lists of them."""
    values = read_json(path)
    if not isinstance(values, dict) or not all(isinstance(values.get(key, []), list) for key in ("boxes", "labels")):
        raise DataError(f"{path}: has to be an object such as {ANNOTATION_EXAMPLE}")
    boxes = [box if isinstance(box, list) else [box] for box in values.get("boxes", [])]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for box in boxes for v in box):
        raise DataError(f"{path}: a box is [x0, y0, x1, y1, class], five numbers")
    if invalid := [box for box in boxes if len(box) == 5 and not float(box[4]).is_integer()]:
        raise DataError(f"{path}: box {invalid[0]}: the last number, its class, has to be an integer")
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in values.get("labels", [])):
        raise DataError(f"{path}: labels have to be class numbers, integers")
    return values
