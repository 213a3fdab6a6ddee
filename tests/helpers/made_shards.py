"""What a data set says about each of its images, for tests of recipes and exports."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtgen.data import image_io
from mtgen.data.boxes import annotation
from mtgen.data.dataset_card import read_card
from mtgen.data.index import open_index
from mtgen.shards.make import make
from mtgen.shards.validate import validate

HEIGHT, WIDTH = 12, 16


def pixels(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def picture(path: Path, seed: int = 0, image: np.ndarray | None = None) -> Path:
    """Write an image of 16x12 pixels, or the one that is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed) if image is None else image).save(path)
    return path


def contents(folder: Path) -> dict[bytes, dict[str, Any]]:
    """Pixels of an image -> its split and components, classes by their names; masks are lists of rows."""
    card, found = read_card(folder), {}
    names = [*card.mask_classes, *["?"] * 256]
    for split in card.splits:
        index = open_index(folder, split)
        for i in range(len(index)):
            item: dict[str, Any] = {"split": split}
            if index.label[i] >= 0:
                item["class"] = card.classes[index.label[i]]
            if index.present["tags"][i]:
                width, height = int(index.width[i]), int(index.height[i])
                stored = annotation(index.read(i, "tags"), width, height, index.class_table(i))
                if index.present["boxes"][i]:
                    item["boxes"] = sorted(
                        (card.classes[int(b[4])], *np.round(b[:4], 6).tolist()) for b in stored.boxes
                    )
                item["labels"] = sorted(card.classes[label] for label in stored.labels)
            if index.present["mask"][i]:
                values = image_io.pixels(index.read(i, "mask"))
                item["mask"] = [[names[value] for value in row] for row in values.tolist()]
            item |= {part: index.read(i, part) for part in ("caption", "sound") if index.present[part][i]}
            found[image_io.decode_upright(index.read(i, "image")).tobytes()] = item
    return found


def made(recipe: str, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Make a data set and check it -> what it says about its images, by split and in order."""
    make(recipe, out, **options)
    assert validate(out).problems == []
    return list(contents(out).values())


def drawn(rows: list[list[str]], name: str) -> np.ndarray:
    """`[H,W]` bool: where the mask of `contents` has a class."""
    return np.array(rows) == name
