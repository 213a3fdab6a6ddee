"""masks: a tree of images and a tree of their masks, such as Cityscapes'; image files are stored unchanged."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator, model_validator

from mtgen.config import ConfigSection
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.annotated import in_splits
from mtgen.shards.input_files import IMAGE_SUFFIXES, file_state, key_of, read_image, read_names
from mtgen.shards.input_names import files_below, split_named
from mtgen.shards.listing import CERTAIN, LIKELY, Listing, Proposal
from mtgen.shards.recipe import RECIPES, UNNAMED_CLASS_PREFIX, Recipe
from mtgen.shards.write import Sample

CITYSCAPES = {  # the classes that are evaluated: their names and label ids, in the order of the train ids
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19},
    **{"traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26},
    **{"truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "cityscapes": {
        "image": "leftImg8bit/SPLIT/NAME_leftImg8bit.png",
        "mask": "gtFine/SPLIT/NAME_gtFine_labelIds.png",
        "mask_classes": list(CITYSCAPES),
        "mask_values": list(CITYSCAPES.values()),
        "unknown": "rest",
    },
    "ade20k": {
        "image": "images/SPLIT/NAME.jpg",
        "mask": "annotations/SPLIT/NAME.png",
        "mask_values": list(range(1, 151)),
        "unknown": [0],
    },
}
"""Options of known data sets. Sources: cityscapesScripts, helpers/labels.py; the ADE20K challenge of 2016."""

USUAL_PATTERNS = [
    ("SPLIT/images/NAME", "SPLIT/masks/NAME"),
    ("images/SPLIT/NAME", "masks/SPLIT/NAME"),
    ("images/NAME", "masks/NAME"),
    ("images/NAME", "masks/NAME_mask"),
    ("NAME", "NAME_mask"),
    ("NAME", "NAME_segmentation"),
]
"""Where public data sets have images and masks."""


class MasksOptions(ConfigSection):
    """Options of the recipe `masks`."""

    root: str = Field(min_length=1, description="folder that contains images and masks")
    layout: Literal["cityscapes", "ade20k"] | None = Field(None, description="set all options below for this data set")
    image: str = Field(
        "images/NAME",
        pattern="NAME",
        description="where images are: NAME is any path, SPLIT a split; any suffix, or one",
    )
    mask: str = Field("masks/NAME", pattern="NAME", description="where the mask of an image is, with the same NAME")
    mask_classes: list[str] = Field(
        [],
        description="names of the mask classes, or a text file with one per line; lines `R G B NAME`: color masks",
    )
    colors: list[tuple[int, int, int]] = Field([], description="red, green and blue of each mask class, of color masks")
    mask_values: list[int] = Field([], description="value of each mask class in the masks; default: 0, 1, 2, ...")
    unknown: list[int] | Literal["rest"] = Field(
        [IGNORE_INDEX], description="values of pixels of unknown class; `rest`: all other values, or colors"
    )
    test: float = Field(0.1, ge=0, lt=1, description="fraction of the samples in the test split, without SPLIT")

    @model_validator(mode="before")
    @classmethod
    def _known_layout(cls, values: Any) -> Any:
        return LAYOUTS.get(str(values.get("layout")), {}) | values if isinstance(values, dict) else values

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("mask_classes"), str):
            return values
        names = read_names(Path(values["mask_classes"]))
        colored = [re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)", name) for name in names]
        if not all(colored):
            return values | {"mask_classes": names}
        found = [match.groups() for match in colored if match]
        return values | {"mask_classes": [group[3] for group in found], "colors": [group[:3] for group in found]}

    @field_validator("colors")
    @classmethod
    def _eight_bits(cls, colors: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        if any(not 0 <= channel <= 255 for color in colors for channel in color):
            raise ValueError("a color is red, green and blue, each from 0 to 255")
        return colors

    @model_validator(mode="after")
    def _lengths(self) -> "MasksOptions":
        for name, given in (("mask_values", self.mask_values), ("colors", self.colors)):
            if given and self.mask_classes and len(given) != len(self.mask_classes):
                raise ValueError(
                    f"{name} has {len(given)} entries for {len(self.mask_classes)} mask classes; give one each"
                )
            if len(set(map(str, given))) < len(given):
                raise ValueError(f"{name} has an entry twice; every mask class needs its own")
        if self.colors and self.mask_values:
            raise ValueError("colors and mask_values exclude each other; give one of them")
        return self


@dataclass(frozen=True)
class _Pair:
    """An image, its mask or `None`, its name, and the split of its folder, if it is in one."""

    image: Path
    mask: Path | None
    name: str
    split: str | None


@RECIPES.register("masks")
class MasksRecipe(Recipe):
    """One sample per image, with the mask that the pattern `mask` gives for its name.

    A mask without any pixel of known class is left out, as are those of Cityscapes' test images.
    """

    Options = MasksOptions
    classes: list[str] = []
    licence = ""

    def __init__(self, options: MasksOptions, seed: int) -> None:
        super().__init__(options, seed)
        self.root = Path(options.root).resolve()
        if not self.root.is_dir():
            raise DataError(f"root={options.root}: the folder does not exist; give the one of images and masks")
        self.pairs = self._pairs()
        masks = [pair.mask for pairs in self.pairs.values() for pair in pairs if pair.mask]
        if not masks:
            first = next(iter(self.pairs.values()))[0]
            raise DataError(
                f"mask={options.mask}: no image has a mask; the one of {first.image} would be "
                f"{self.root / _filled(options.mask, first.name)}"
            )
        self.mask_classes = options.mask_classes or self._unnamed(masks)
        self.table = _table(options, len(self.mask_classes))
        files = [path for pairs in self.pairs.values() for pair in pairs for path in (pair.image, pair.mask) if path]
        self.sources = [file_state(path) for path in files]
        self.source = f"images and masks of {self.root.name}"

    def _pairs(self) -> dict[str, list[_Pair]]:
        """Split -> its images with their masks."""
        image_form, mask_form = _matcher(self.options.image), _matcher(self.options.mask)
        images: dict[tuple[str, str], Path] = {}
        masks: dict[tuple[str, str], Path] = {}
        for path in files_below(self.root, self.left_alone):
            within = path.relative_to(self.root).as_posix()
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                self.left_alone.add("files that are not images", within)
            elif (key := _names(mask_form, within)) is not None:
                masks[key] = path
            elif (key := _names(image_form, within)) is not None:
                images[key] = path
            else:
                self.left_alone.add("images that match neither pattern", within)
        if not images:
            raise DataError(f"image={self.options.image}: no image in {self.root} matches; correct the pattern")
        for key in masks.keys() - images.keys():
            self.left_alone.add("masks without an image", masks[key].relative_to(self.root))
        if without := len(images.keys() - masks.keys()):
            self.notices.append(f"{without:,} of {len(images):,} images have no mask")
        pairs = [
            _Pair(path, masks.get((folder, name)), f"{folder}/{name}" if folder else name, split_named(folder))
            for (folder, name), path in images.items()
        ]
        return in_splits(self.seed, pairs, self.options.test)

    @classmethod
    def detect(cls, listing: Listing) -> list[Proposal]:
        """A known layout, or one of the usual pairs of folders or names."""
        if listing.path.is_file():
            return []
        files = [file.as_posix() for file in listing.with_suffix(*IMAGE_SUFFIXES)]
        forms: list[dict[str, Any]] = [{"layout": name} for name in LAYOUTS]
        forms += [{"image": image, "mask": mask} for image, mask in USUAL_PATTERNS]
        for form in forms:
            options = {"root": str(listing.path)} | form
            patterns = [_matcher((LAYOUTS.get(form.get("layout", "")) or form)[key]) for key in ("image", "mask")]
            masks = {key for file in files if (key := _names(patterns[1], file)) is not None}
            both = masks & {key for file in files if (key := _names(patterns[0], file)) is not None}
            if both and 2 * len(both) >= len(masks):
                reason = f"{len(both):,} images with a mask of the same name"
                return [Proposal(options, reason, CERTAIN if "layout" in form else LIKELY)]
        return []

    def _unnamed(self, masks: Sequence[Path]) -> list[str]:
        """Numbered names: as many as `mask_values`, or up to the largest value in the masks."""
        if self.options.colors:
            raise DataError(
                "colors: the mask classes need names; give mask_classes=[...] or lines `R G B NAME` in a file"
            )
        count = len(self.options.mask_values)
        if not count:
            unknown = [] if self.options.unknown == "rest" else self.options.unknown
            found = set[int]().union(*(np.unique(_read_values(path)).tolist() for path in masks)) - set(unknown)
            count = max(found, default=0) + 1
            if count == 1:
                raise DataError(
                    f"{masks[0]} and the other masks have no class but 0 ({unknown}: unknown); if 255 is a class, "
                    "write mask_values=[0,255] mask_classes=[background,object]"
                )
        if count > IGNORE_INDEX:
            raise DataError(
                f"{self.root}: the masks have {count} values; say which are classes, with mask_values=[...]"
            )
        return [f"{UNNAMED_CLASS_PREFIX}{number}" for number in range(count)]

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of samples."""
        return {split: len(pairs) for split, pairs in self.pairs.items()}

    def origin(self, split: str, number: int) -> str:
        """The image file."""
        return str(self.pairs[split][number].image)

    def make(self, split: str, number: int) -> Sample:
        """Make the sample of one image."""
        pair = self.pairs[split][number]
        mask = None if pair.mask is None else self._mask(pair.mask)
        return Sample(key=key_of(pair.name), image=read_image(pair.image), mask=mask)

    def _mask(self, path: Path) -> NDArray[np.uint8] | None:
        """`[H,W]`: mask classes; `None` if no pixel has a known one."""
        values = _read_colors(path) if self.options.colors else _read_values(path)
        found = np.unique(values)
        if missing := [value for value in found.tolist() if value not in self.table]:
            if self.options.unknown != "rest":
                shown = ", ".join(map(_shown_color if self.options.colors else str, missing[:10]))
                known = "colors" if self.options.colors else "mask_values"
                raise DataError(
                    f"{path}: {known} without a mask class: {shown}; add them to {known}, or write unknown=rest"
                )
        numbers = np.array([self.table.get(value, IGNORE_INDEX) for value in found.tolist()], np.uint8)
        mask = numbers[np.searchsorted(found, values)]
        return mask if (mask != IGNORE_INDEX).any() else None


def _matcher(pattern: str) -> re.Pattern[str]:
    """A pattern of paths with NAME and SPLIT as a regular expression; without a suffix, any is allowed."""
    suffix = "" if Path(pattern).suffix.lower() in IMAGE_SUFFIXES else r"\.[^./]+"
    text = re.escape(pattern.strip("/"))
    text = text.replace("NAME", "(?P<name>.+)", 1).replace("NAME", "(?P=name)")
    return re.compile(text.replace("SPLIT", "(?P<split>[^/]+)", 1).replace("SPLIT", "(?P=split)") + suffix)


def _names(form: re.Pattern[str], path: str) -> tuple[str, str] | None:
    """Folder of the split and name of a file; `None` if its path does not match, or the folder is not of a split."""
    match = form.fullmatch(path)
    if match is None:
        return None
    folder = match.groupdict().get("split") or ""
    return (folder, match["name"]) if not folder or split_named(folder) else None


def _filled(pattern: str, name: str) -> str:
    split, _, rest = name.partition("/")
    return (
        pattern.replace("SPLIT", split).replace("NAME", rest) if "SPLIT" in pattern else pattern.replace("NAME", name)
    )


def _table(options: MasksOptions, count: int) -> dict[int, int]:
    """Value (of a color: its 24 bits) in the masks -> mask class; 255 for those that are unknown."""
    unknown = {} if options.unknown == "rest" or options.colors else dict.fromkeys(options.unknown, IGNORE_INDEX)
    if options.colors:
        return {(red << 16) + (green << 8) + blue: number for number, (red, green, blue) in enumerate(options.colors)}
    return unknown | {value: number for number, value in enumerate(options.mask_values or range(count))}


def _read_values(path: Path) -> NDArray[np.int64]:
    """Read a mask of one channel of 8 or 16 bits -> `[H,W]`; palettes give their indices."""
    picture = _open(path)
    if picture.mode == "RGB":
        channels = np.asarray(picture)
        if (channels == channels[..., :1]).all():
            return channels[..., 0].astype(np.int64)
        raise DataError(
            f"{path}: has colors; name the color of each class, with lines `R G B NAME` in mask_classes=FILE"
        )
    if picture.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"{path}: has pixels of mode {picture.mode}; save masks with one channel, or three of color")
    return np.asarray(picture).astype(np.int64)


def _read_colors(path: Path) -> NDArray[np.int64]:
    """Read a color mask -> `[H,W]`: the 24 bits of red, green and blue."""
    channels = np.asarray(_open(path).convert("RGB")).astype(np.int64)
    return (channels[..., 0] << 16) + (channels[..., 1] << 8) + channels[..., 2]


def _open(path: Path) -> Image.Image:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError(f"{path}: a mask in JPEG, whose values are blurred; use the original PNG, or threshold it")
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # noqa: BLE001 - Pillow raises all kinds of exceptions on damaged bytes
        raise DataError(f"{path}: damaged mask ({' '.join(str(error).split())})") from None


def _shown_color(value: int) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})"
