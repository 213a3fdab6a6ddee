"""Images to predict and classes to generate: other formats are read, what is left alone is counted."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mtgen.errors import ConfigError
from mtgen.inference.inputs import Inputs
from mtgen.inference.label_names import parse_class
from mtgen.inference.sample import _unused
from mtgen.schema import DatasetCard


def test_a_folder_of_many_kinds_is_read_as_recipes_read_it(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif", "gif", "bmp"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a-{suffix}.{suffix}")
    for name in ("b.heic", "notes.txt", "._c.png", ".ipynb_checkpoints"):
        (tmp_path / name).touch()
    inputs = Inputs([str(tmp_path)], tmp_path / "out")
    assert len(inputs) == 5 == len([image.load() for image in inputs])
    assert inputs.left_alone.lines() == [
        "2 hidden or system files (._c.png, .ipynb_checkpoints)",
        "1 .heic files (b.heic)",
        "1 .txt files (notes.txt)",
    ]


def test_a_name_that_two_classes_have_needs_the_number() -> None:
    card = DatasetCard(name="x", classes=["cells", "cells", "Dog", "dog"], splits={})
    with pytest.raises(ConfigError, match="'cells': is the name of 2 of them, 0 and 1; give the number"):
        parse_class("cells", card)
    assert [parse_class(text, card) for text in ("1", "dog", "Dog")] == [1, 3, 2]


def test_classes_that_training_never_saw_are_named() -> None:
    card = DatasetCard.model_validate({"name": "x", "classes": ["a", "b"], "splits": {}, "unused_classes": ["b"]})
    assert "no sample of b" in _unused(card, SimpleNamespace(classes=[(0,), (1,)]))  # type: ignore[arg-type]
    assert _unused(card, SimpleNamespace(classes=[(0,)])) == ""  # type: ignore[arg-type]
