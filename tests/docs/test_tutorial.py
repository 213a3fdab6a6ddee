"""Every command of docs/tutorial.md runs, in order, on a few small images; only the trainings are shortened."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.documents import ROOT, SHORT, Fence, demo, fences, lines_of, split
from PIL import Image

from mtgen.cli import main
from mtgen.evaluation.reference import classifier, segmenter

PAGE = ROOT / "docs/tutorial.md"
INSTALL = ("make setup", "source .venv/bin/activate")


def picture(path: Path, random: np.random.Generator) -> None:
    """A photograph of a bright square on a dark ground, and its mask beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, mask = random.integers(0, 90, (48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
    left, top = random.integers(4, 30, 2)
    image[top : top + 14, left : left + 20] += 150
    mask[top : top + 14, left : left + 20] = 1
    Image.fromarray(image).save(path)
    Image.fromarray(mask).save(path.with_suffix(".mask.png"))


def furnish(folder: Path) -> None:
    """What the tutorial's reader has: photographs with masks, class folders, captions, COCO's files."""
    random = np.random.default_rng(0)
    for name in ("beach", "street", *(f"photo{number}" for number in range(30))):
        picture(folder / f"photos/{name}.jpg", random)
    (folder / "names.txt").write_text("background\nsquare\n")
    for number in range(16):
        picture(folder / f"pets/{('cat', 'dog')[number % 2]}/{number}.jpg", random)
        picture(folder / f"scenes/{number}.jpg", random)
        (folder / f"scenes/{number}.txt").write_text(f"a red boat, {number}")
        picture(folder / f"coco2017/train2017/{number}.jpg", random)
    for path in [
        *folder.glob("pets/*/*.mask.png"),
        *folder.glob("scenes/*.mask.png"),
        *folder.glob("coco2017/train2017/*.mask.png"),
    ]:
        path.unlink()
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48} for number in range(16)]
    corners = [[10, 10, 30, 10, 30, 24, 10, 24]]
    things = [
        {
            "id": n,
            "image_id": n,
            "category_id": 3,
            "bbox": [10, 10, 20, 14],
            "area": 280,
            "iscrowd": 0,
            "segmentation": corners,
        }
        for n in range(16)
    ]
    instances = {"images": images, "categories": [{"id": 3, "name": "square"}], "annotations": things}
    (folder / "coco2017/annotations").mkdir()
    (folder / "coco2017/annotations/instances_train2017.json").write_text(json.dumps(instances))
    captions = [{"id": number, "image_id": number, "caption": "a bright square"} for number in range(16)]
    (folder / "coco2017/annotations/captions_train2017.json").write_text(
        json.dumps({"images": images, "annotations": captions})
    )


def shortened(words: list[str]) -> list[str]:
    """A command as it is run here: fewer images."""
    if words[:1] == ["train"]:
        return [
            *words,
            *(SHORT if not words[1].startswith("coco") else ["batch_size=2"]),
        ]  # its networks have their own widths
    return shlex.split(re.sub(r"-n \d+", "-n 8", shlex.join(words)))


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mtgen", *shortened(words)])
    try:
        main()
    except SystemExit as end:
        assert not end.code, f"{shlex.join(words)}: ended with {end.code}"


def run_shell(fence: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, line in lines_of(fence):
        for words in split(line):
            if not words or " ".join(words) in INSTALL:
                continue
            assert words[0] == "mtgen", f"the tutorial asks for something that this test does not run: {line}"
            run(words[1:], monkeypatch)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; the reference models of `mtgen evaluate` are trained for a moment only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "CLASSIFIER_TRAIN_IMAGES", 10 * classifier.CLASSIFIER_BATCH_SIZE)
    monkeypatch.setattr(segmenter, "SEGMENTER_TRAIN_IMAGES", 10 * segmenter.SEGMENTER_BATCH_SIZE)
    return tmp_path


@pytest.mark.e2e
@pytest.mark.timeout(2400)  # some thirty commands, eight of them trainings
def test_every_command_of_the_tutorial_works_in_a_fresh_folder(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(fresh)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for fence in fences(PAGE):
        if fence.language == "bash":
            run_shell(fence, monkeypatch)
        elif fence.language == "python":
            subprocess.run([sys.executable, "-c", fence.text], check=True, cwd=fresh, env=environment)
    for name in re.findall(
        r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8").partition("## Read the report")[0], re.MULTILINE
    ):
        assert (fresh / "runs/mine" / name).exists(), f"runs/mine has no {name}"
    numbers = json.loads((fresh / "numbers.json").read_text())
    measured = re.findall(r"^\| `([a-z]+/[a-z_0-9]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert measured and not [name for name in measured if name not in numbers and name not in numbers["skipped"]]
    for made in (
        "mine.html",
        "generated.png",
        "cats.png",
        "painted.png",
        "boats.png",
        "masks.html",
        "mine.sbatch",
        "predicted.jsonl",
    ):
        assert (fresh / made).stat().st_size, made
    assert list((fresh / "sixteen").glob("*.png"))


@pytest.mark.e2e
def test_what_make_demo_names_to_be_done_next_works(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {command.words[0]: list(command.words) for command in demo()}
    assert set(commands) == {"train", "sample", "ui", "evaluate", "shards"}  # ui: tests/tracking/test_mlflow_ui.py
    run([*commands["shards"][:4], "style=gray", "train=120", "test=16"], monkeypatch)
    run(["train", "demo"], monkeypatch)
    for words in [list(command.words) for command in demo() if command.words[0] in ("evaluate", "sample")]:
        run(words, monkeypatch)
    assert (fresh / "runs/demo/grid.png").is_file() and (fresh / "made/dataset.json").is_file()
