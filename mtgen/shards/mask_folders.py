"""Folders of masks beside folders of images: images/x.jpg and masks/x.png, also in split folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtgen.errors import DataError
from mtgen.shards.mask_files import image_stems

_IMAGE_WORDS = {
    *("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "rgb"),
    *("input", "inputs", "frame", "frames", "original", "originals", "orig"),
}
_MASK_WORDS = {
    *("mask", "masks", "seg", "segm", "segs", "segmentation", "segmentations", "label", "labels", "labelids", "gt"),
    *("groundtruth", "annotation", "annotations", "annot", "annots", "anno", "matte", "mattes", "trimap", "trimaps"),
    *(
        "segmentationclass",
        "segmentationobject",
        "segmentationclassaug",
        "segmentationclassraw",
        "segmentationclasspng",
    ),
}


@dataclass(frozen=True)
class MaskFolders:
    """Images and their masks in parallel folders.

    Attributes:
        pairs: image -> its mask.
        unpaired: pictures in folders of masks that belong to no image.
        logical: image -> its path without the folder of images, from which split and class are read.
    """

    pairs: dict[Path, Path] = field(default_factory=dict)
    unpaired: list[Path] = field(default_factory=list)
    logical: dict[Path, Path] = field(default_factory=dict)


def mask_folders(pictures: Sequence[Path], root: Path) -> MaskFolders:
    """Find folders of masks beside folders of images, by their names; nothing if there are none.

    Args:
        pictures: images and masks, relative to `root`.

    Raises:
        DataError: there are such folders, but masks and images do not fit by their names.
    """
    images = {path: level for path in pictures if (level := _level(path, _IMAGE_WORDS)) is not None}
    masks = {
        path: level for path in pictures if path not in images and (level := _level(path, _MASK_WORDS)) is not None
    }
    siblings = {_place(path, level) for path, level in images.items()}
    masks = {path: level for path, level in masks.items() if _place(path, level) in siblings}
    if not masks:
        return MaskFolders()
    logical = {path: _without(path, level) for path, level in images.items()}
    by_stem = {path.with_suffix(""): image for image, path in logical.items()}
    found = MaskFolders(logical=logical)
    for mask, level in masks.items():
        target = _without(mask, level).with_suffix("")
        stems = [target.name, *image_stems(target.name)]
        image = next((image for stem in stems if (image := by_stem.get(target.with_name(stem)))), None)
        if image is None:
            found.unpaired.append(mask)
        elif image in found.pairs:
            raise DataError(
                f"{root / image}: has two masks by their names, {found.pairs[image]} and {mask}; remove one"
            )
        else:
            found.pairs[image] = mask
    others = [path for path in pictures if path not in images and path not in masks]
    if not found.pairs or others:
        first = next(iter(masks))
        what = f"{root / others[0]} is in neither" if others else "no mask has the name of an image"
        raise DataError(
            f"{root / first}: is in a folder of masks beside one of images, but {what}; give images= the one and "
            "masks= the other, with the same names"
        )
    return found


def _level(path: Path, words: set[str]) -> int | None:
    """The first folder of a path whose name has one of the words."""
    for level, name in enumerate(path.parts[:-1]):
        if words & set(_words(name)):
            return level
    return None


def _words(name: str) -> list[str]:
    return re.split(r"[ ._-]+", name.casefold())


def _rest(name: str) -> str:
    """The name of a folder without words for images and masks: "train" of "train_masks"."""
    return "_".join(word for word in _words(name) if word and word not in _IMAGE_WORDS | _MASK_WORDS)


def _place(path: Path, level: int) -> tuple[tuple[str, ...], str]:
    return path.parts[:level], _rest(path.parts[level])


def _without(path: Path, level: int) -> Path:
    rest = _rest(path.parts[level])
    return Path(*path.parts[:level], *([rest] if rest else []), *path.parts[level + 1 :])
