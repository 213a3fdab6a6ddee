"""Data sets whose images encode the sample's number: 8x8 pixels of one color, whose three bytes are the number."""

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
    """Decode images `[B,3,H,W]` in [-1,1] to the samples' numbers `[B]`."""
    red, green, blue = np.rint((image[:, :, 0, 0].numpy() + 1) * 127.5).astype(np.int64).T
    return (red << 16) + (green << 8) + blue


def write(folder: Path, samples: int, shard_size: int, members: Callable[[int], list[tuple[str, bytes]]]) -> None:
    """Write `dataset.json` and shards of `shard_size` samples.

    Args:
        members: function of a sample's number that returns its (suffix, bytes) pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"train-{number:06d}.tar" for number in range(-(-samples // shard_size))]
    for number, name in enumerate(names):
        with (folder / name).open("wb") as file:
            for sample in range(number * shard_size, min((number + 1) * shard_size, samples)):
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


def image_and_class(sample: int) -> list[tuple[str, bytes]]:
    """Image and class of a sample."""
    return [("png", png(sample)), ("cls", str(sample % CLASSES).encode())]
