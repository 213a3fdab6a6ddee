"""Models with every condition and task, and runs of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.made_models import made, picture, saved
from PIL import Image

from mtgen.models.model import Model

Make = Callable[..., Model]


@pytest.fixture(scope="session")
def make_model() -> Make:
    return made


@pytest.fixture(scope="session")
def save_run() -> Callable[[Model, Path], Path]:
    return saved


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture(scope="session")
def model() -> Model:
    return made()


@pytest.fixture(scope="session")
def run(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model, tmp_path_factory.mktemp("runs") / "test")


@pytest.fixture(scope="session")
def translator() -> Model:
    return made(tasks=("generation", "translation"), conditions=("domain", "class"), translation={"side": 4})


@pytest.fixture(scope="session")
def translating(translator: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(translator, tmp_path_factory.mktemp("runs") / "translator")
