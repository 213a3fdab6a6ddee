"""The pictures of a run's first samples show the input of the discriminator's first step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from PIL import Image

from mtgen.config import Config
from mtgen.data.loader import Loader
from mtgen.data.transform_spec import transform_spec_of
from mtgen.models.model import build
from mtgen.shards.make import make
from mtgen.training.dataset import build_order, open_data
from mtgen.training.first_batch import SAMPLES_PER_DATASET, write_first_batch
from mtgen.training.steps import build_steps
from mtgen.visualization.grids import to_pixels
from mtgen.visualization.layers import LAYERS_FOLDER

TASKS: dict[str, Any] = {"generation": {}, "classification": {}, "segmentation": {}, "detection": {}}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for number, name in enumerate(("one", "two")):
        make("shapes", folder / name, resolution=16, train=40, test=10, seed=number)
    return folder


def config(sets: Path, runs: Path, **data: Any) -> Config:
    varied = {"channels": "rgb", "crop": 0.5, "flip": True, **(data or {"path": str(sets / "one")})}
    return toy.config(
        runs=str(runs), data=varied, tasks=TASKS, batch_size=SAMPLES_PER_DATASET, augment__probability=0.5
    )


def layers(run: Path, name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """What the report loads: the description, and the images as `[B,H,W,3]`."""
    about = json.loads((run / LAYERS_FOLDER / f"{0:09d}-{name}.json").read_text())
    with Image.open(run / LAYERS_FOLDER / f"{0:09d}-{name}.webp") as picture:
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return about, pixels.view(about["rows"], about["height"], about["width"], 3)


def test_the_picture_shows_the_images_of_the_first_step(sets: Path, tmp_path: Path) -> None:
    settings = config(sets, tmp_path)
    samples = open_data(settings)
    (path,) = write_first_batch(settings, samples)
    assert path.parent == tmp_path / "toy" / "samples" and path.match("batch-0*.png")

    networks = build(settings, samples.card)
    step, _, _ = build_steps(settings, networks)
    with Loader(
        samples,
        transform_spec_of(settings),
        batch_size=SAMPLES_PER_DATASET,
        rank=0,
        world=1,
        order=build_order(settings, samples),
    ) as loader:
        roles = step.assign_roles(next(loader), networks.generator)
    seen = step.step_context(roles, networks.side, networks.generator, step.noise(roles, networks.generator)).batch
    about, shown = layers(tmp_path / "toy", path.stem.replace("batch-0", "batch"))
    assert torch.equal(shown, torch.from_numpy(to_pixels(seen.image[seen.position.argsort()])))
    assert about["masked"]
    plain = set(roles.batch.position[~step.warp(roles, "real").changed].tolist())
    assert 0 < len(plain) < SAMPLES_PER_DATASET
    assert {row for row, boxes in enumerate(about["boxes"][0]) if boxes} <= plain


def test_every_data_set_of_a_mixture_has_a_picture_also_a_rare_one(sets: Path, tmp_path: Path) -> None:
    mixture = [{"path": str(sets / "one"), "weight": 99}, {"path": str(sets / "two"), "weight": 1}]
    settings = config(sets, tmp_path, mixture=mixture)
    samples = open_data(settings)
    paths = write_first_batch(settings, samples)
    assert len(paths) == len(set(paths)) == 2 and all(path.is_file() for path in paths)
    assert [layers(tmp_path / "toy", path.stem.replace("batch-0", "batch"))[0]["rows"] for path in paths] == [
        SAMPLES_PER_DATASET,
        SAMPLES_PER_DATASET,
    ]


def test_the_title_of_an_image_is_its_caption_or_else_its_class(sets: Path, tmp_path: Path) -> None:
    titles = []
    for conditions in ({"class": {}}, {"caption": {"tokens": 64}}):
        settings = config(sets, tmp_path).model_copy(
            update={"conditions": toy.config(conditions=conditions).conditions}
        )
        (path,) = write_first_batch(settings, open_data(settings))
        titles.append(layers(tmp_path / "toy", path.stem.replace("batch-0", "batch"))[0]["captions"])
    assert all(name in text and name != text for name, text in zip(*titles, strict=True)), titles
