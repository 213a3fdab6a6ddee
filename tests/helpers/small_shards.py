"""Small data sets in real shards, written by webdataset."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

Samples = list[dict[str, Any]]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(pixels, "PNG", **options)`: the bytes of an image file."""

    def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form, **options)
        return file.getvalue()

    return encoded


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write({"train": [samples of one shard, ...]}, ...)`: the folder of a data set.

    A sample is `{"__key__": key, suffix: bytes, ...}`.
    """

    def written(
        splits: dict[str, list[Samples]],
        classes: int = 10,
        mask_classes: int = 11,
        name: str = "set",
        named: dict[str, Any] | None = None,
        **card: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        content: dict[str, Any] = {"name": name, "classes": [f"class {i}" for i in range(classes)]}
        content |= {"mask_classes": [f"mask {i}" for i in range(mask_classes)], "splits": {}} | (named or {}) | card
        for split, shards in splits.items():
            for number, samples in enumerate(shards):
                with webdataset.TarWriter(str(folder / f"{split}-{number:06d}.tar"), encoder=False) as tar:
                    for sample in samples:
                        tar.write(sample)
            pattern = f"{split}-{{000000..{len(shards) - 1:06d}}}.tar" if len(shards) > 1 else f"{split}-000000.tar"
            content["splits"][split] = {"samples": sum(map(len, shards)), "shards": pattern}
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return written


@pytest.fixture
def sample(encode: Callable[..., bytes]) -> Callable[..., dict[str, Any]]:
    """`sample(i)`: a sample with class, image and mask; its number is the value of every pixel of both."""

    def made(i: int, side: int = 8, **changes: Any) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "__key__": f"s{i:05d}",
            "png": encode(np.full((side, side), i % 256, np.uint8)),
            "cls": str(i % 10).encode(),
            "mask.png": encode(np.full((side, side), i % 11, np.uint8)),
        }
        return {k: v for k, v in (parts | changes).items() if v is not None}

    return made


@pytest.fixture
def numbered(write: Write, sample: Callable[..., dict[str, Any]]) -> Path:
    """60 samples in two shards, with their numbers as pixel values; every third has no class, every fourth no mask."""

    def one(i: int) -> dict[str, Any]:
        changes = {"cls": None} if i % 3 == 0 else {}
        return sample(i, **changes, **({"mask.png": None} if i % 4 == 0 else {}))

    return write(
        {
            "train": [[one(i) for i in range(35)], [one(i) for i in range(35, 60)]],
            "test": [[one(i) for i in range(60, 67)]],
        }
    )
