"""Finding the parts of a data set in COCO's format: files of instances, their images, captions and splits."""

import json
import re
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from mtgen.errors import DataError
from mtgen.shards.input_names import LeftAlone, ListedFiles, files_below, split_named

_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_OTHER_KINDS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info", "results")
"""First words of names of COCO's other JSON files."""


@dataclass(frozen=True)
class CocoFiles:
    """One file of instances with what belongs to it; `split` is `None` if no name says which it is."""

    instances: Path
    images: Path
    captions: Path | None
    split: str | None


def find_coco_files(root: Path, left_alone: LeftAlone) -> list[CocoFiles]:
    """The files of instances below a folder: COCO's annotations/instances_SPLIT.json, or any others, such as
    Roboflow's SPLIT/_annotations.coco.json.

    Raises:
        DataError: there are none, or the images of one are not found.
    """
    found = [path for path in files_below(root, left_alone) if path.suffix.lower() == ".json"]
    listed = [path for path in found if path.name.startswith("instances_")]
    listed = listed or [path for path in found if not path.name.startswith(_OTHER_KINDS) and has_images(path)]
    if not listed:
        raise DataError(f"root={root}: no JSON file of instances in it, such as annotations/instances_train.json")
    parts = []
    for path in listed:
        captions = path.with_name(path.name.replace("instances", "captions", 1))
        split = split_named(path.stem.removeprefix("instances")) or split_named(path.parent.name)
        named = captions if captions != path and captions.is_file() else None
        parts.append(CocoFiles(path, images_of(path, root), named, split))
    used = {path for part in parts for path in (part.instances, part.captions)}
    for path in found:
        if path not in used:
            left_alone.add("JSON files without instances", path.relative_to(root))
    return parts


def has_images(path: Path) -> bool:
    """Whether a JSON file lists images and annotations, without parsing it."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(b'"annotations"') >= 0 and _FILE_NAME.search(content) is not None


def images_of(path: Path, root: Path) -> Path:
    """The folder of the images that a file lists: the first of the usual ones that has the first image."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        match = _FILE_NAME.search(content)
        name = str(json.loads(match[1])) if match else ""
    tail = path.stem.removeprefix("instances_")
    names = [tail, f"images/{tail}", f"{tail}/images", "images", "."]
    places = [path.parent, path.parent / "images", *(root / name for name in names)]
    places += [
        place for place in sorted(root.iterdir()) if place.is_dir() and split_named(place.name) == split_named(tail)
    ]
    for place in dict.fromkeys(place.resolve() for place in places):
        if place.is_dir():
            try:
                ListedFiles(place).find(name, "")
            except DataError:
                continue
            return place
    raise DataError(f"{path}: its first image {name!r} is not in {root}; give images= and instances= instead of root=")
