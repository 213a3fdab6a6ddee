from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtgen.errors import ConfigError
from mtgen.inference.inputs import open_cropped, to_input
from mtgen.inference.translate import target_prompt, translate_run
from mtgen.models.model import Model
from mtgen.schema import Prompt
from mtgen.utils import counter_rng
from mtgen.visualization.grids import to_uint8

Make = Callable[..., Model]
TASKS = ("generation", "translation")


def test_a_folder_is_translated_and_damaged_files_are_counted(
    translating: Path, translator: Model, make_picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    make_picture(8, 8, 1).save(tmp_path / "in" / "b.png")
    make_picture(8, 8, 2).save(tmp_path / "in" / "sub" / "c.jpg")
    (tmp_path / "in" / "a.png").write_text("no image")
    problems: list[str] = []
    summary = translate_run(
        translating, "zebras", [tmp_path / "in"], tmp_path / "out", 3, "cpu", on_error=problems.append
    )
    assert (summary.processed, summary.damaged) == (2, 1) and "a.png" in problems[0]
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")) == [
        "b.png",
        "sub/c.png",
    ]
    image = to_input(open_cropped((tmp_path / "in" / "b.png").read_bytes(), "b", 3, (8, 8)).picture, (8, 8))[None]
    prompt = Prompt(1, {"domain": torch.tensor([1])}, {"domain": torch.tensor([True])})
    canvas = translator.translate(image, prompt, counter_rng.normal(3, "translate", torch.tensor([1]), (4,), "cpu"))
    assert canvas is not None
    expected = to_uint8(canvas.image)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(Image.open(tmp_path / "out" / "b.png")).astype(int) - expected).max() <= 1


def test_an_unknown_domain_is_an_error_with_the_nearest_right_one(translator: Model) -> None:
    with pytest.raises(ConfigError, match="did you mean 'horses'"):
        target_prompt(translator, "horse")


def test_where_classes_are_the_domains_a_class_is_the_target(make_model: Make) -> None:
    model = make_model(tasks=TASKS, conditions=("class",), translation={"side": 4, "domain": "class"})
    assert target_prompt(model, "two").values["class"].tolist() == [2]


def test_a_run_that_does_not_translate_says_what_it_does(model: Model) -> None:
    with pytest.raises(ConfigError, match="was not trained to translate.*its tasks: generation"):
        target_prompt(model, "zebras")
