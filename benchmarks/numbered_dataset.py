"""Data sets whose images say which sample they are: 8x8 pixels of one color, the sample's number in its three bytes."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE = 8
CLASSES = 10


def png(number: int) -> bytes:
    """The image of sample `number`."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number >> 16, number >> 8 & 255, number & 255)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def numbers(image: Tensor) -> NDArray[np.int64]:
    """`[B,3,H,W]` in [-1,1] -> `[B]` the samples' numbers."""
    red, green, blue = np.rint((image[:, :, 0, 0].numpy() + 1) * 127.5).astype(np.int64).T
    return (red << 16) + (green << 8) + blue


def write(folder: Path, samples: int, a_shard: int, members: Callable[[int], list[tuple[str, bytes]]]) -> None:
    """Write `dataset.json` and shards of `a_shard` samples each.

    Args:
        members: number of a sample -> its (suffix, bytes).
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"train-{number:06d}.tar" for number in range(-(-samples // a_shard))]
    for number, name in enumerate(names):
        with (folder / name).open("wb") as file:
            for sample in range(number * a_shard, min((number + 1) * a_shard, samples)):
                for suffix, data in members(sample):
                    info = tarfile.TarInfo(f"{sample:08d}.{suffix}")
                    info.size = len(data)
                    file.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
            file.write(bytes(1024))
    card = {
        "name": "numbered",
        "classes": [f"class {k}" for k in range(CLASSES)],
        "splits": {"train": {"samples": samples, "shards": names}},
    }
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")


def plain(sample: int) -> list[tuple[str, bytes]]:
    """Image and class of a sample."""
    return [("png", png(sample)), ("cls", str(sample % CLASSES).encode())]
