"""Loaders for tests: the fields of the `TransformSpec` and the loader's own arguments are given together."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from mtgen.data import loader
from mtgen.data.loader import Loader
from mtgen.data.mixture import Samples
from mtgen.data.transform_spec import TransformSpec
from mtgen.schema import Batch


def load(index: Samples, **settings: Any) -> Loader:
    spec, own = _separate(
        {"batch_size": 12, "rank": 0, "world": 1, "resolution": 8, "channels": "gray", "seed": 5} | settings
    )
    return Loader(index, spec, **own)


def once(index: Samples, **settings: Any) -> Iterator[Batch]:
    spec, own = _separate({"batch_size": 25, "resolution": 8, "channels": "gray"} | settings)
    return loader.iterate_split(index, spec, **own)


def _separate(settings: dict[str, Any]) -> tuple[TransformSpec, dict[str, Any]]:
    names = {field.name for field in fields(TransformSpec)}
    spec = TransformSpec(**{name: value for name, value in settings.items() if name in names})
    return spec, {name: value for name, value in settings.items() if name not in names}
