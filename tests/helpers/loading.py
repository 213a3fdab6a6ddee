"""A loader as tests like to write it: the settings of its view and its own side by side."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from mtgen.data import loader
from mtgen.data.loader import Loader
from mtgen.data.mixture import Samples
from mtgen.data.transform_spec import TransformSpec
from mtgen.schema import Batch


def load(index: Samples, **settings: Any) -> Loader:
    view, own = _parted(
        {"batch_size": 12, "rank": 0, "world": 1, "resolution": 8, "channels": "gray", "seed": 5} | settings
    )
    return Loader(index, view, **own)


def once(index: Samples, **settings: Any) -> Iterator[Batch]:
    view, own = _parted({"batch_size": 25, "resolution": 8, "channels": "gray"} | settings)
    return loader.iterate_split(index, view, **own)


def _parted(settings: dict[str, Any]) -> tuple[TransformSpec, dict[str, Any]]:
    mine = {field.name for field in fields(TransformSpec)}
    return TransformSpec(**{k: v for k, v in settings.items() if k in mine}), {
        k: v for k, v in settings.items() if k not in mine
    }
