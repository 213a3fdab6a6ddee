"""folder: images in class folders, with masks, captions, boxes and sounds beside them; files are stored unchanged."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.shards.class_folders import ClassFolders
from mtgen.shards.input_files import (
    IMAGE_SUFFIXES,
    file_state,
    held_out,
    key_of,
    read,
    read_image,
    read_names,
    read_text,
    size_of,
)
from mtgen.shards.input_names import files_below, split_folders
from mtgen.shards.inspect import better_recipe
from mtgen.shards.labels_beside import (
    LABEL_SUFFIXES,
    SOUND_SUFFIXES,
    check_labels,
    coordinates_in,
    label_files,
    read_annotation,
)
from mtgen.shards.listing import IMPOSSIBLE, LIKELY, POSSIBLE, Listing, Proposal
from mtgen.shards.mask_files import MaskClasses, lossless, mask_classes, pair_by_names
from mtgen.shards.mask_folders import MaskFolders, mask_folders
from mtgen.shards.recipe import RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.write import Sample

NO_MASKS = "none"
"""Value of `mask_suffix` with which all pictures are images."""


class FolderOptions(ConfigSection):
    """Options of the recipe `folder`."""

    images: str = Field(min_length=1, description="folder of images, [train|val|test/][CLASS/]FILE")
    masks: str | None = Field(
        None, description="folder of masks with the same paths as the images; default: FILE.mask.png beside each image"
    )
    mask_suffix: str | None = Field(
        None,
        min_length=1,
        description='what names of masks add to those of their images, such as _mask; "none": all pictures are images; '
        "default: .mask, _mask, _seg, -label, ... are recognized",
    )
    mask_classes: list[str] = Field(
        [],
        description="names of the mask classes, or a text file with one name per line; default: class 0, class 1, ...",
    )
    mask_values: list[int] = Field(
        [], description="values of the masks that are the classes 0, 1, ...; default: values are class numbers"
    )
    classes: list[str] = Field(
        [],
        description="names of the classes, in order, or a file of them; default: the class folders, alphabetically",
    )
    nested: Literal["outer", "inner"] = Field(
        "outer", description="of class folders in class folders, which name the classes"
    )
    captions: bool | None = Field(
        None, description="take .txt files for captions; default: unless they contain coordinates, which is an error"
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="fraction of the samples in the test split, if there are no split folders"
    )
    force: bool = Field(False, description="read the folder even if it looks like that of another recipe")

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
        found = files_below(self.root, self.left_alone)
        if not options.force and (better := better_recipe("folder", Listing.of_files(self.root, found))):
            raise DataError(
                f"images={options.images}: {better}; force=true reads it as a folder of images all the same"
            )
        pictures = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        beside = {} if options.mask_suffix == NO_MASKS else pair_by_names(pictures, options.mask_suffix)
        folders = self._mask_folders(pictures)
        beside |= {self.root / image: self.root / mask for image, mask in folders.pairs.items()}
        unpaired = {self.root / mask for mask in folders.unpaired}
        images = [path for path in self._images(pictures, beside) if path not in unpaired]
        pairs = beside if options.masks is None else self._masks_in(Path(options.masks).resolve(), images)
        self.masks = {image.relative_to(self.root): lossless(mask, image) for image, mask in pairs.items()}
        files = [path.relative_to(self.root) for path in images]
        if not files:
            raise DataError(
                f"images={options.images}: no images in it ({', '.join(IMAGE_SUFFIXES)}); "
                "give the folder with the images"
            )
        self.logical = {file: folders.logical.get(file, file) for file in files}
        self.folders = split_folders(self.root, list(self.logical.values()), options.classes)
        self.files = self._split(files)
        logical = list(self.logical.values())
        self.class_folders = ClassFolders(self.root, logical, self.folders, options.nested, options.classes)
        self.classes = self.class_folders.names
        self.notices += self.class_folders.notices
        self.source = f"files of the folder {self.root.name}"
        self.values = self._mask_classes()
        self.mask_classes = self.values.names or [f"{UNNAMED_CLASS_PREFIX}{n}" for n in range(self.values.count)]
        labels = [path for file in files for path in label_files(self.root / file)]
        texts = [path for path in found if path.suffix == ".txt"]
        self.notices += check_labels([*texts, *labels], options.captions)
        self.sources = [file_state(path) for path in sorted({*images, *labels, *self.masks.values()})]
        self._leave_alone(found, {*pictures, *labels})

    def _split(self, files: list[Path]) -> dict[str, list[Path]]:
        """Split -> its images: by their split folders or, if there are none, by a hash of their paths."""
        splits: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
        by_folder = bool(self.folders.splits)
        chosen = set() if by_folder else held_out(self.seed, [path.as_posix() for path in files], self.options.test)
        for path in files:
            splits[
                self.folders.split_of(self.logical[path]) or ("test" if path.as_posix() in chosen else "train")
            ].append(path)
        renamed = [f"{name} is {split}" for name, split in self.folders.splits.items() if name.casefold() != split]
        self.notices += [f"the split folder {line}" for line in renamed]
        return {split: members for split, members in splits.items() if members}

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(files) for split, files in self.files.items()}

    def _mask_folders(self, pictures: list[Path]) -> MaskFolders:
        """The folders of masks beside folders of images, unless masks are elsewhere."""
        if self.options.masks is not None or self.options.mask_suffix == NO_MASKS or self.options.classes:
            return MaskFolders()
        found = mask_folders([path.relative_to(self.root) for path in pictures], self.root)
        for image, mask in list(found.pairs.items())[:1]:
            self.notices.append(
                f"{len(found.pairs):,} pictures are masks by their folders, such as {mask} of {image} "
                "(mask_suffix=none makes them images)"
            )
        for mask in found.unpaired:
            self.left_alone.add("masks without an image", mask)
        return found

    def _images(self, pictures: list[Path], beside: dict[Path, Path]) -> list[Path]:
        """The pictures that are not masks: neither in `beside` (image -> mask) nor called `x.mask.png`."""
        options, masks = self.options, set(beside.values())
        if options.mask_suffix not in (None, NO_MASKS) and options.masks is None and not masks:
            raise DataError(
                f"mask_suffix={options.mask_suffix}: no picture is named like another with that added; correct it, or "
                "leave it out"
            )
        by_word = [
            (image, mask) for image, mask in beside.items() if image.parent == mask.parent and not _is_called_mask(mask)
        ]
        if by_word:
            image, mask = by_word[0]
            self.notices.append(
                f"{len(by_word):,} pictures are masks by their names, such as {mask.name} of {image.name} "
                "(mask_suffix=none makes them images)"
            )
        for path in pictures:
            if _is_called_mask(path) and path not in masks:
                self.left_alone.add("masks without an image", path.relative_to(self.root))
            elif path in masks and options.masks is not None:
                self.left_alone.add("masks beside images, as masks= is given", path.relative_to(self.root))
        return [path for path in pictures if path not in masks and not _is_called_mask(path)]

    def _masks_in(self, folder: Path, images: list[Path]) -> dict[Path, Path]:
        """Image -> the mask with its path in `folder`, or with a word for masks added; `DataError` if none fits."""
        found = [path for path in files_below(folder, self.left_alone) if path.suffix.lower() in IMAGE_SUFFIXES]
        same = {path.relative_to(folder).with_suffix(""): path for path in found}
        as_images = {self.root / path.relative_to(folder): path for path in found}
        by_word = pair_by_names([*images, *(as_images.keys() - set(images))], self.options.mask_suffix)
        pairs: dict[Path, Path] = {}
        for image in images:
            candidates = [
                same.get(image.relative_to(self.root).with_suffix("")),
                as_images.get(by_word.get(image, image)),
            ]
            masks = list(dict.fromkeys(mask for mask in candidates if mask is not None))
            if len(masks) > 1:
                raise DataError(f"{image}: has two masks, {masks[0]} and {masks[1]}; remove one")
            if masks:
                pairs[image] = masks[0]
        if not pairs:
            first = images[0].relative_to(self.root).with_suffix(".png") if images else "x.png"
            raise DataError(
                f"masks={self.options.masks}: has no {first}, nor a mask for any other image; "
                "masks need the paths of their images, with the suffix .png"
            )
        used = set(pairs.values())
        for path in found:
            if path not in used:
                self.left_alone.add("files in masks= that belong to no image", path.relative_to(folder))
        return pairs

    def _mask_classes(self) -> MaskClasses:
        masks = [self.masks[file] for files in self.files.values() for file in files if file in self.masks]
        try:
            values = mask_classes(masks, self.options.mask_classes, self.options.mask_values)
        except DataError as error:
            beside = self.options.masks is None and not all(map(_is_called_mask, masks))
            raise DataError(f"{error}{'; mask_suffix=none if these are images like others' * beside}") from None
        self.notices += [values.notice] if values.notice else []
        return values

    def _leave_alone(self, found: Iterable[Path], used: set[Path]) -> None:
        """Count the files that are neither images nor labels of one."""
        for path in found:
            if path not in used:
                orphan = path.suffix.lower() in LABEL_SUFFIXES
                kind = "labels without an image of their name" if orphan else f"{path.suffix.lower() or 'other'} files"
                self.left_alone.add(kind, path.relative_to(self.root))

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.root / self.files[split][number])

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image file."""
        file = self.files[split][number]
        path = self.root / file
        mask, caption, annotation = self.masks.get(file), path.with_suffix(".txt"), path.with_suffix(".json")
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
            label=self.class_folders.number(self.logical[file]),
            mask=None if mask is None else self.values.read(mask),
            boxes=values.get("boxes"),
            labels=values.get("labels"),
            caption=self._caption(caption) if self.options.captions is not False and caption.is_file() else None,
            sound=read(sounds[0]) if sounds else None,
        )

    def _caption(self, path: Path) -> str | None:
        text = read_text(path)
        if self.options.captions is None and coordinates_in(text):
            raise DataError(f"{path}: {text.splitlines()[0][:40]!r} is no caption but coordinates; remove the file")
        return text or None

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """A folder of images, with the labels that lie beside them."""
        pictures = listing.with_suffix(*IMAGE_SUFFIXES)
        if not pictures or not listing.path.is_dir():
            return []
        recipe_options = FolderOptions(images=str(listing.path), force=True)
        try:
            recipe = cls(recipe_options, 0)
        except DataError as error:
            return [Proposal({"images": str(listing.path)}, str(error).splitlines()[0], IMPOSSIBLE)]
        what = f"{len(recipe.logical):,} images"
        what += f" in {len(recipe.classes)} class folder{'s' * (len(recipe.classes) > 1)}" if recipe.classes else ""
        what += f", {len(recipe.masks):,} masks" if recipe.masks else ""
        what += f", split folders {', '.join(recipe.folders.splits)}" if recipe.folders.splits else ""
        return [Proposal({"images": str(listing.path)}, what, LIKELY if recipe.classes or recipe.masks else POSSIBLE)]


def _is_called_mask(path: Path) -> bool:
    return path.stem.lower().endswith(".mask")
