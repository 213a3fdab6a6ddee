"""The examples of docs/how-to.md and docs/balancing.md work: each is written to its file, and its command is run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.documents import ROOT, Fence, commands, fences

from mtgen.registry import by_path
from mtgen.shards.make import make
from mtgen.tracking.journal import read_journal

PAGE = ROOT / "docs/how-to.md"
SHORT = (
    "workers=0 batch_size=8 train.images=16 train.log_every=8 checkpoint.every=16 evaluate.every=1000000 device=cpu "
    "precision=fp32 "
    "generator.widths=[8,8,8,8] discriminator.widths=[8,8,8,8] data.path=data"
).split()


def example(name: str) -> tuple[Path, Fence, list[str]]:
    """Of the page's section `A NAME`: where its example belongs, the example, and the command below it."""
    title = PAGE.read_text(encoding="utf-8").splitlines().index(f"## A {name}") + 1
    code, shell = [fence for fence in fences(PAGE) if fence.line > title and fence.language in ("python", "bash")][:2]
    words = next(list(command.words) for command in commands(PAGE) if command.line == shell.line)
    return Path(code.text.splitlines()[0].removeprefix("# ")), code, words


def run(folder: Path, words: list[str]) -> str:
    """A command of the copy of mtgen that is in `folder`, in that folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "MTGEN_CACHE": str(folder / "cache")}
    ended = subprocess.run(
        [sys.executable, "-m", "mtgen.cli", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, f"{shlex.join(words)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of mtgen and a small data set."""
    shutil.copytree(ROOT / "mtgen", tmp_path / "mtgen", ignore=shutil.ignore_patterns("__pycache__"))
    make("digits", tmp_path / "data", train=24, test=8, style="gray")
    return tmp_path


def written(folder: Path, name: str) -> list[str]:
    """Put an example into the copy; its command."""
    path, code, words = example(name)
    assert len(code.text.splitlines()) <= 50, "an example is read in one sitting"
    (folder / path).write_text(code.text, encoding="utf-8")
    return words


def numbers_of(folder: Path) -> set[str]:
    return {name for row in read_journal(folder) for name in row.values}


@pytest.mark.e2e
def test_a_weighting_of_ones_own_trains_a_run(copy: Path) -> None:
    run(copy, [*written(copy, "weighting"), *SHORT])
    assert "balancing_discriminator/weight_generation" in numbers_of(copy / "runs/smooth")
    assert "smooth.py:Smooth" in (copy / "runs/smooth/config.yaml").read_text()


@pytest.mark.e2e
def test_a_task_is_one_file(copy: Path) -> None:
    run(copy, [*written(copy, "task"), *SHORT])
    assert "loss_d/rotation_cross_entropy" in numbers_of(copy / "runs/turned")
    assert "rotation" in json.loads(run(copy, ["configs", "schema"]))["properties"]["tasks"]["properties"]


@pytest.mark.e2e
def test_a_metric_is_one_file(copy: Path) -> None:
    words = written(copy, "metric")
    run(copy, ["train", "digits-32", *SHORT, "evaluate.samples=100"])
    run(copy, [*words[:-1], "16", "--json", "numbers.json"])
    assert json.loads((copy / "numbers.json").read_text())["generated/foreground"] >= 0


@pytest.mark.e2e
def test_a_recipe_is_one_file(copy: Path) -> None:
    words = written(copy, "data recipe")
    shutil.copytree(ROOT / "docs/pictures", copy / "photos")
    (copy / "photos/list.csv").write_text(
        "file,class,caption\noverview.png,grid,many digits\nexplore-generate.png,pairs,masks and digits\n"
    )
    run(copy, [*words, "test=0"])
    card = json.loads((copy / "data_shards/listed/dataset.json").read_text())
    assert (card["classes"], card["splits"]["train"]["samples"]) == (["grid", "pairs"], 2)


def test_the_example_in_balancing_weighs_as_it_says(tmp_path: Path) -> None:
    import torch

    code = next(fence.text for fence in fences(ROOT / "docs/balancing.md") if fence.language == "python")
    (tmp_path / "my_weighting.py").write_text(code)
    weights = by_path(f"{tmp_path}/my_weighting.py:SmallestFirst")()(torch.diag(torch.tensor([1.0, 4.0])))
    assert weights.tolist() == pytest.approx([1.6, 0.4])
